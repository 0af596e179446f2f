//! Breaker of one link: whether the link takes requests.
//!
//! Each peer has one long-lived connection, so the connection is the health check. As in an electric circuit, the
//! breaker is closed while the connection lives, and open while attempts to connect fail. No response opens it, however
//! slow or failed the response is. Only the loss of the connection and failed attempts to connect do.

/// State of the connection to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breaker {
    /// No connection yet. Nothing is routed to the peer, because it has not sent its Hello.
    Connecting,
    /// Connected, so that requests flow.
    Closed,
    /// Replacement of a connection that has just ended. Requests wait for the outcome of this one attempt.
    Reconnecting,
    /// Unreachable since `since_ms`. Requests go to a successor, and attempts to connect go on in the background.
    Open { since_ms: u64 },
    /// Final state of a closed link.
    Removed,
}

/// Cause of the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Closed or reset. The process may be gone or only the path, and one attempt to connect decides which.
    Broken,
    /// Closed or reset soon after it was made, and not for the first time. Requests do not wait for the next
    /// connection.
    Flapping,
    /// No byte came while a ping was outstanding. Requests do not wait for a new connection, because the kernel of a
    /// hung peer accepts connections too.
    Silent,
    /// Closed by this node to connect again with other certificates. The peer is in order.
    Renewed,
    /// Closed by this node.
    ClosedLocally,
}

impl Breaker {
    /// Returns whether requests are taken.
    pub(crate) fn admits(self) -> bool {
        matches!(self, Self::Closed | Self::Reconnecting)
    }

    /// Returns the state after a Hello.
    pub(crate) fn connected(self) -> Self {
        match self {
            Self::Removed => Self::Removed,
            _ => Self::Closed,
        }
    }

    /// Returns the state after the end of a connection.
    pub(crate) fn ended(self, end: End, now_ms: u64) -> Self {
        match (self, end) {
            (Self::Removed, _) => Self::Removed,
            (Self::Closed, End::Broken | End::Renewed) => Self::Reconnecting,
            (Self::Open { since_ms }, _) => Self::Open { since_ms },
            _ => Self::Open { since_ms: now_ms },
        }
    }

    /// Returns the state after a failed attempt to connect.
    pub(crate) fn failed(self, now_ms: u64) -> Self {
        match self {
            Self::Connecting | Self::Closed | Self::Reconnecting => Self::Open { since_ms: now_ms },
            Self::Open { .. } | Self::Removed => self,
        }
    }

    /// Returns for how many milliseconds the peer has been unreachable; `None` when the breaker is not open.
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

    /// Checks that callers wait for one attempt, and that the breaker is open from its failure until the next
    /// connection.
    #[test]
    fn broken_connection_is_replaced_before_breaker_opens() {
        let broken = Breaker::Connecting.connected().ended(End::Broken, 5);
        assert!(broken.admits(), "callers wait for one attempt");
        let open = broken.failed(7);
        assert!(!open.admits());
        assert_eq!(open.failed(9).open_for(10), Some(3), "the breaker is open since the first failure");
        assert_eq!(open.ended(End::Silent, 9).open_for(10), Some(3));
        assert!(open.connected().admits());
    }

    /// Checks that callers wait for no attempt when a peer is silent or keeps closing its connections.
    #[test]
    fn silent_or_flapping_connection_opens_breaker_at_once() {
        assert_eq!(Breaker::Closed.ended(End::Silent, 5), Breaker::Open { since_ms: 5 });
        assert_eq!(Breaker::Closed.ended(End::Flapping, 5), Breaker::Open { since_ms: 5 });
    }

    /// Checks that no event leaves the state of a closed link.
    #[test]
    fn removed_breaker_stays_removed() {
        let removed = Breaker::Removed;
        assert_eq!(
            (removed.connected(), removed.failed(1), removed.ended(End::Broken, 1)),
            (removed, removed, removed)
        );
    }
}
