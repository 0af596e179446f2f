//! The breaker of one peer: whether it may be asked now.
//!
//! With one long-lived connection for each peer, the connection *is* the health check: it is closed (in the
//! breaker's sense: current flows) while the connection lives, and open while attempts to connect fail. Nothing
//! that the peer answers, slow or failed as it may be, opens it; only silence and refusal do.

/// Where the connection to a peer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breaker {
    /// Not connected yet; nobody routes to it, since it has not said Hello.
    Connecting,
    /// Connected: requests flow.
    Closed,
    /// The connection broke a moment ago and is being replaced; requests wait for the outcome of that one attempt.
    Reconnecting,
    /// Not reachable since then; requests go to a successor, attempts go on in the background.
    Open { since_ms: u64 },
    /// No longer a peer.
    Removed,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Closed or reset: the process may be gone, or only the path. One attempt tells.
    Broken,
    /// Closed or reset soon after it was made, and not for the first time: the next one is not waited for.
    Flapping,
    /// It said nothing while a ping was outstanding; a new connection would be accepted by its kernel and tell nothing.
    Silent,
    /// We close it to make a new one, with other certificates; nothing is wrong with the peer.
    Renewed,
    /// We closed it ourselves.
    ClosedLocally,
}

impl Breaker {
    /// Whether requests are taken.
    pub(crate) fn admits(self) -> bool {
        matches!(self, Self::Closed | Self::Reconnecting)
    }

    pub(crate) fn connected(self) -> Self {
        match self {
            Self::Removed => Self::Removed,
            _ => Self::Closed,
        }
    }

    pub(crate) fn ended(self, end: End, now_ms: u64) -> Self {
        match (self, end) {
            (Self::Removed, _) => Self::Removed,
            (Self::Closed, End::Broken | End::Renewed) => Self::Reconnecting,
            (Self::Open { since_ms }, _) => Self::Open { since_ms },
            _ => Self::Open { since_ms: now_ms },
        }
    }

    /// An attempt to connect failed.
    pub(crate) fn failed(self, now_ms: u64) -> Self {
        match self {
            Self::Connecting | Self::Closed | Self::Reconnecting => Self::Open { since_ms: now_ms },
            Self::Open { .. } | Self::Removed => self,
        }
    }

    /// Milliseconds for which it has been unreachable.
    pub(crate) fn open_for(self, now_ms: u64) -> Option<u64> {
        match self {
            Self::Open { since_ms } => Some(now_ms.saturating_sub(since_ms)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_connection_is_replaced_before_the_breaker_opens() {
        let broken = Breaker::Connecting.connected().ended(End::Broken, 5);
        assert!(broken.admits(), "callers wait for one attempt");
        let open = broken.failed(7);
        assert!(!open.admits());
        assert_eq!(open.failed(9).open_for(10), Some(3), "open since the first failure");
        assert_eq!(open.ended(End::Silent, 9).open_for(10), Some(3));
        assert!(open.connected().admits());
    }

    #[test]
    fn silence_opens_at_once_and_so_does_a_peer_that_keeps_closing() {
        assert_eq!(Breaker::Closed.ended(End::Silent, 5), Breaker::Open { since_ms: 5 });
        assert_eq!(Breaker::Closed.ended(End::Flapping, 5), Breaker::Open { since_ms: 5 });
    }

    #[test]
    fn gone_stays_gone() {
        let gone = Breaker::Removed;
        assert_eq!((gone.connected(), gone.failed(1), gone.ended(End::Broken, 1)), (gone, gone, gone));
    }
}
