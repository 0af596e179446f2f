//! Lookup: how gets, peeks, flights and loads read local memory.

use std::sync::atomic::Ordering::Relaxed;

use crate::{
    cache::{payload::Slot, replicas::Replicas},
    engine::Engine,
    value::Value,
};

/// Purpose of a lookup, which decides which entries are usable and whether the lookup counts as a use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// An entry is served to a caller or a peer. Counts as a use.
    Serve,
    /// A replica is served to a caller. Counts as a use.
    ServeReplica,
    /// A flight is about to begin, under the lock of its shard. An entry may be there, because another flight of the
    /// key has just ended.
    BeginFlight,
    /// A load needs the previous value, which may be stale.
    Previous,
}

impl<V: Value> Engine<V> {
    /// Returns the entry of `key` if it is usable for `purpose`. Otherwise returns the entry that is not usable as the
    /// error, if one was found.
    ///
    /// The caller drops such an entry after its own locks are released, because the entry may be the last reference to
    /// a value.
    pub(crate) fn lookup(&self, key: &str, now_ms: u64, purpose: Purpose) -> Result<Slot<V>, Option<Slot<V>>> {
        // Before the entry; see `Engine::horizon_ms`.
        let horizon_ms = self.settings.max_staleness_ms.map(|_| self.horizon_ms());
        let slot = match purpose {
            Purpose::Serve => self.cache.owned.get(key, now_ms),
            Purpose::ServeReplica => {
                self.cache.replicas.as_ref().and_then(|replicas: &Replicas<V>| replicas.get(key, now_ms))
            }
            Purpose::BeginFlight | Purpose::Previous => self.cache.owned.peek(key),
        };
        let slot = slot.ok_or(None)?;
        let may_serve = self.ownership.may_serve(key, &slot, now_ms);
        let is_usable = match purpose {
            Purpose::Serve | Purpose::ServeReplica => may_serve && !self.is_removed.load(Relaxed),
            Purpose::BeginFlight => may_serve && !slot.is_expired(now_ms) && !self.flights.is_clearing(),
            Purpose::Previous => !slot.is_gone(now_ms) && !self.flights.is_clearing(),
        };
        if !is_usable {
            return Err(Some(slot));
        }
        if let Some(horizon_ms) = horizon_ms
            && purpose != Purpose::Previous
            && !self.is_recent(slot.as_of_ms.max(horizon_ms), self.context.local.clock.exact_ms())
        {
            self.counters.too_stale.up();
            return Err(Some(slot));
        }
        Ok(slot)
    }
}
