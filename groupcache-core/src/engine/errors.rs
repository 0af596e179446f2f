//! Errors of gets and writes: their kinds, their texts and their counters.

use std::{sync::Arc, time::Duration};

use crate::{
    error::{BoxError, Error, Kind, Result},
    flight::nesting::NestingError,
    identity::PeerId,
    limits::{MAX_CHAIN, MAX_KEY_BYTES},
    loader::LoadError,
    protocol::message::BadKey,
    runtime::stats::GroupCounters,
};

/// Maker of the errors of one group, which also counts time-outs, overloads and rejections by the breaker.
#[derive(Clone, Debug)]
pub(crate) struct GroupErrors {
    name: Arc<str>,
    counters: Arc<GroupCounters>,
}

impl GroupErrors {
    pub(crate) fn new(name: Arc<str>, counters: Arc<GroupCounters>) -> Self {
        Self { name, counters }
    }

    /// Returns an error if the length of `key` is not allowed.
    pub(crate) fn check_key(key: &str) -> Result<()> {
        match key.len() {
            0 => Err(Error::new(Kind::BadKey, BadKey::Empty.text())),
            n if n > MAX_KEY_BYTES => Err(Error::new(Kind::BadKey, BadKey::TooLong.text())),
            _ => Ok(()),
        }
    }

    pub(crate) fn removed(&self) -> Error {
        let name = &self.name;
        Error::new(Kind::UnknownGroup, format!("group {name:?} was removed from its node; build it again"))
    }

    pub(crate) fn closed(&self) -> Error {
        let name = &self.name;
        Error::new(
            Kind::Closed,
            format!(
                "group {name:?} is closed: its node was shut down or the group was removed; build it on a running node"
            ),
        )
    }

    /// Returns the error of a get or a write that waited for `after` (zero for an unknown time), while `peer` had the
    /// request if one had it.
    pub(crate) fn timed_out(&self, after: Duration, peer: Option<&PeerId>) -> Error {
        self.counters.timeouts.up();
        let text = match after {
            Duration::ZERO => format!("no outcome of a call of group {:?} before its deadline", self.name),
            _ => format!("no outcome of a call of group {:?} within {after:?}", self.name),
        };
        match peer {
            Some(peer) => {
                let text = format!("{text}, because a peer has not answered yet; raise the deadline or check the peer");
                Error::at_peer(Kind::Timeout, text, peer.as_str())
            }
            None => Error::new(Kind::Timeout, format!("{text}; raise the deadline, or make the loader faster")),
        }
    }

    pub(crate) fn overloaded(&self, why: &str) -> Error {
        self.counters.overloaded.up();
        Error::new(Kind::Overloaded, format!("group {:?} is overloaded: {why}; try again later", self.name))
    }

    /// Returns the error of a key that is in quarantine for `remaining`, or of a suspected key that no other node can
    /// load.
    pub(crate) fn quarantined(&self, remaining: Option<Duration>) -> Error {
        self.counters.quarantined.up();
        let name = &self.name;
        let text = match remaining {
            Some(remaining) => format!(
                "a key of group {name:?} is in quarantine for {} s, because processes ended while they loaded it; look into \
                 its loader",
                remaining.as_secs()
            ),
            None => format!(
                "a process ended while it loaded a key of group {name:?}, and no other node can try it; look into its loader"
            ),
        };
        Error::new(Kind::Quarantined, text)
    }

    pub(crate) fn nesting(&self, error: NestingError) -> Error {
        let name = &self.name;
        let text = match error {
            NestingError::Cycle => {
                format!(
                    "a load of group {name:?} needs, through other loads, the value that it is loading; break the cycle"
                )
            }
            NestingError::TooDeep => {
                format!(
                    "a load of group {name:?} is nested more than {MAX_CHAIN} loads deep; make its loaders nest less"
                )
            }
        };
        Error::new(Kind::LoadFailed { is_transient: false }, text)
    }

    pub(crate) fn too_old(&self) -> Error {
        let text = format!(
            "every value of group {:?} that was found is older than its max_staleness: a loader has read an older value \
             through another group, or a peer has another bound; give all of them the same max_staleness",
            self.name
        );
        Error::new(Kind::LoadFailed { is_transient: true }, text)
    }

    pub(crate) fn not_found(&self) -> Error {
        Error::new(Kind::NotFound, "the loader found nothing")
    }

    pub(crate) fn load_failed(&self, LoadError { cause, is_transient }: LoadError) -> Error {
        let text = format!("the loader of group {:?} failed", self.name);
        // The error of a nested get keeps its predicates.
        match cause.downcast::<Error>() {
            Ok(nested) => {
                let is_transient = is_transient || nested.is_transient();
                Error::caused(Kind::LoadFailed { is_transient }, text, *nested)
            }
            Err(cause) => Error::caused(Kind::LoadFailed { is_transient }, text, cause),
        }
    }

    pub(crate) fn breaker_open(&self, wait: Duration) -> Error {
        self.counters.breaker_rejections.up();
        let text = format!(
            "the breaker of group {:?} is open, because its loader failed again and again; try again in {} ms",
            self.name,
            wait.as_millis()
        );
        Error::new(Kind::LoadFailed { is_transient: true }, text)
    }

    pub(crate) fn nothing_unchanged(&self) -> Error {
        let text = format!(
            "the loader of group {:?} returned Loaded::unchanged() without a previous value; return it only if \
             Load::previous() is Some",
            self.name
        );
        Error::new(Kind::LoadFailed { is_transient: false }, text)
    }
}

/// Returns the message of a panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> BoxError {
    let text = panic.downcast_ref::<&str>().copied().map(ToOwned::to_owned);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned()).into()
}
