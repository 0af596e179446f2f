//! What is wrong with a get or a write, in words for its caller.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use super::Inner;
use crate::{
    chain::Knot,
    config::MAX_KEY_BYTES,
    error::{Error, Kind, Result},
    identity::PeerId,
    loader::LoadError,
    message::BadKey,
    value::Value,
};

impl<V: Value> Inner<V> {
    pub(super) fn check(&self, key: &str) -> Result<()> {
        match key.len() {
            0 => Err(Error::new(Kind::BadKey, BadKey::Empty.text())),
            n if n > MAX_KEY_BYTES => Err(Error::new(Kind::BadKey, BadKey::TooLong.text())),
            _ if self.is_removed.load(Relaxed) => {
                let name = &self.settings.name;
                Err(Error::new(Kind::UnknownGroup, format!("group {name:?} was removed from its node; build it again")))
            }
            _ if self.shared.is_closed() => Err(self.closed()),
            _ => Ok(()),
        }
    }

    pub(super) fn closed(&self) -> Error {
        let name = &self.settings.name;
        Error::new(Kind::Closed, format!("group {name:?} is closed: its node was shut down, or it was removed from it"))
    }

    pub(super) fn timed_out(&self, after: Duration, peer: Option<&PeerId>) -> Error {
        self.counters.timeouts.up();
        let text = match after {
            Duration::ZERO => format!("no value of group {:?} in time", self.settings.name),
            _ => format!("no value of group {:?} within {after:?}", self.settings.name),
        };
        match peer {
            Some(peer) => Error::at_peer(Kind::Timeout, format!("{text}; its owner is at work on it"), peer.as_str()),
            None => Error::new(Kind::Timeout, text),
        }
    }

    pub(super) fn overloaded(&self, why: &str) -> Error {
        self.counters.overloaded.up();
        Error::new(Kind::Overloaded, format!("group {:?}: {why}; ask again later", self.settings.name))
    }

    pub(super) fn knotted(&self, knot: Knot) -> Error {
        let name = &self.settings.name;
        let text = match knot {
            Knot::Circle => {
                format!("a load of group {name:?} needs, through other loads, the value that it is loading")
            }
            Knot::TooDeep => {
                format!("a load of group {name:?} is nested more than {} loads deep", crate::config::MAX_CHAIN)
            }
        };
        Error::new(Kind::LoadFailed { is_transient: false }, text)
    }

    pub(super) fn not_found(&self) -> Error {
        Error::new(Kind::NotFound, "the loader found nothing")
    }

    pub(super) fn load_failed(&self, LoadError { cause, is_transient }: LoadError) -> Error {
        let text = format!("the loader of group {:?} failed", self.settings.name);
        // A nested get's error keeps what it says of itself.
        match cause.downcast::<Error>() {
            Ok(nested) => {
                let is_transient = is_transient || nested.is_transient();
                Error::caused(Kind::LoadFailed { is_transient }, text, *nested)
            }
            Err(cause) => Error::caused(Kind::LoadFailed { is_transient }, text, cause),
        }
    }

    pub(super) fn nothing_to_be_unchanged(&self) -> Error {
        let text = format!(
            "the loader of group {:?} said that the value is unchanged, and there is no previous one; answer so only \
             where Load::previous() is some",
            self.settings.name
        );
        Error::new(Kind::LoadFailed { is_transient: false }, text)
    }
}
