//! Misses: why memory did not answer a get or a request of a peer.

use crate::{cache::store::Trace, engine::Engine, value::Value};

impl<V: Value> Engine<V> {
    /// Counts the reason for which memory did not answer. `was_unusable` says that it had a value that was refused. Not
    /// part of a hit, which must not pay for the code.
    #[cold]
    #[inline(never)]
    pub(super) fn count_miss_reason(&self, key: &str, now_ms: u64, was_unusable: bool) {
        let counters = &self.counters;
        let reason = if !self.ownership.is_mine(self.ownership.hash(key)) {
            &counters.missed_remote
        } else if was_unusable {
            &counters.missed_unusable
        } else {
            match self.cache.owned.trace(key, now_ms) {
                Trace::Capped => &counters.missed_unusable,
                Trace::Expired => &counters.missed_expired,
                Trace::Evicted => &counters.missed_evicted,
                Trace::Absent => &counters.missed_absent,
            }
        };
        reason.up();
    }
}
