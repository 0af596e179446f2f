//! Misses: why memory did not answer a get or a request of a peer.

use crate::{engine::Engine, value::Value};

impl<V: Value> Engine<V> {
    /// Counts the reason for which memory did not answer. Not part of a hit, which must not pay for the code.
    #[cold]
    #[inline(never)]
    pub(super) fn count_miss_reason(&self, key: &str, now_ms: u64) {
        let counters = &self.counters;
        let reason = if !self.ownership.is_mine(self.ownership.hash(key)) {
            &counters.missed_remote
        } else {
            match self.cache.owned.trace(key) {
                (Some(slot), _) if slot.is_expired(now_ms) => &counters.missed_expired,
                (Some(_), _) => &counters.missed_unusable,
                (None, true) => &counters.missed_evicted,
                (None, false) => &counters.missed_absent,
            }
        };
        reason.up();
    }
}
