//! Errors of gets and writes, in words for the caller.

use std::{sync::Arc, time::Duration};

use crate::{
    error::{Error, Kind, Result},
    flight::nesting::NestingError,
    identity::PeerId,
    limits::{MAX_CHAIN, MAX_KEY_BYTES},
    loader::LoadError,
    protocol::message::BadKey,
    runtime::stats::GroupCounters,
};

/// Maker of the errors of one group: each names the group, and those that are counted are counted here.
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
        Error::new(Kind::Closed, format!("group {name:?} is closed: its node was shut down, or it was removed from it"))
    }

    /// Returns the error of a get that waited for `after` (zero: for an unknown time) while `peer` had the request.
    pub(crate) fn timed_out(&self, after: Duration, peer: Option<&PeerId>) -> Error {
        self.counters.timeouts.up();
        let text = match after {
            Duration::ZERO => format!("no value of group {:?} in time", self.name),
            _ => format!("no value of group {:?} within {after:?}", self.name),
        };
        match peer {
            Some(peer) => Error::at_peer(Kind::Timeout, format!("{text}; its owner is at work on it"), peer.as_str()),
            None => Error::new(Kind::Timeout, text),
        }
    }

    pub(crate) fn overloaded(&self, why: &str) -> Error {
        self.counters.overloaded.up();
        Error::new(Kind::Overloaded, format!("group {:?}: {why}; ask again later", self.name))
    }

    pub(crate) fn nesting(&self, error: NestingError) -> Error {
        let name = &self.name;
        let text = match error {
            NestingError::Cycle => {
                format!("a load of group {name:?} needs, through other loads, the value that it is loading")
            }
            NestingError::TooDeep => format!("a load of group {name:?} is nested more than {MAX_CHAIN} loads deep"),
        };
        Error::new(Kind::LoadFailed { is_transient: false }, text)
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
            "the loader of group {:?} has failed again and again, and is not called for {} ms",
            self.name,
            wait.as_millis()
        );
        Error::new(Kind::LoadFailed { is_transient: true }, text)
    }

    pub(crate) fn nothing_unchanged(&self) -> Error {
        let text = format!(
            "the loader of group {:?} said that the value is unchanged, and there is no previous one; answer so only \
             where Load::previous() is some",
            self.name
        );
        Error::new(Kind::LoadFailed { is_transient: false }, text)
    }
}
