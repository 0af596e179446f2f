//! Copies of hot values that other nodes own.
//!
//! A copy is kept when its key is asked for often, here or at its owner, for a short time and in a small share of the
//! budget. It is dropped by the same writes as the original.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::cache::payload::{Payload, Slot};
use crate::{
    cache::store::{Inserted, Item, Store},
    value::Value,
};

/// Requests within a second that make a key hot at one node.
const HOT: u16 = 8;

/// Requests within a second, of all peers together, that make a key hot at its owner.
pub(crate) const HOT_AT_OWNER: u16 = 32;

/// The part of a group's budget that copies may take: one over this.
pub(crate) const SHARE: u64 = 8;

/// Counters of a group. Two keys that share one are counted together, which makes a cold key hot now and then.
const COUNTERS: usize = 4096;

/// Counters that are looked at together: those of a cache line.
const NEIGHBOURS: usize = 16;

/// How many times as often as most of its neighbours a hot key is asked for: when each counter has many keys, all of
/// them count much.
const STANDS_OUT: u16 = 4;

/// How often keys were asked for in this second, about.
pub(crate) struct HotKeyCounter(Box<[AtomicU32]>);

impl HotKeyCounter {
    pub(crate) fn new() -> Self {
        Self((0..COUNTERS).map(|_| AtomicU32::new(0)).collect())
    }

    /// Counts a request.
    pub(crate) fn touch(&self, hash: u64, now_ms: u64) {
        let counter = self.counter(hash);
        let count = count(counter, now_ms).saturating_add(1);
        // Two that write at once lose one.
        counter.store(second(now_ms) << 16 | u32::from(count), Relaxed);
    }

    /// Whether there have been so many requests in this second, and far more than for other keys.
    pub(crate) fn is_hot(&self, hash: u64, now_ms: u64, least: u16) -> bool {
        let count_here = count(self.counter(hash), now_ms);
        if count_here < least {
            return false;
        }
        let first = hash as usize % COUNTERS / NEIGHBOURS * NEIGHBOURS;
        let neighbours = self.0.get(first..first + NEIGHBOURS).unwrap_or_default();
        // A few of them may be hot too.
        let as_busy = neighbours.iter().filter(|other| count(other, now_ms).saturating_mul(STANDS_OUT) > count_here);
        as_busy.count() <= NEIGHBOURS / 2
    }

    fn counter(&self, hash: u64) -> &AtomicU32 {
        #[expect(clippy::indexing_slicing, reason = "the remainder is below the number of counters")]
        &self.0[hash as usize % COUNTERS]
    }
}

/// How many requests a counter has in this second.
fn count(counter: &AtomicU32, now_ms: u64) -> u16 {
    // The high half is the second, the low one the count.
    let counter = counter.load(Relaxed);
    if counter >> 16 == second(now_ms) { counter as u16 } else { 0 }
}

fn second(now_ms: u64) -> u32 {
    (now_ms / 1000) as u32 & 0xffff
}

/// The copies of a group on this node.
pub(crate) struct Replicas<V: Value> {
    store: Store<Payload<V>>,
    heat: HotKeyCounter,
}

impl<V: Value> Replicas<V> {
    pub(crate) fn new(capacity_bytes: u64, max_value_bytes: u64, seed: u64) -> Self {
        Self { store: Store::new(capacity_bytes, max_value_bytes, seed), heat: HotKeyCounter::new() }
    }

    pub(crate) fn store(&self) -> &Store<Payload<V>> {
        &self.store
    }

    pub(crate) fn get(&self, key: &str, now_ms: u64) -> Option<Slot<V>> {
        self.store.get(key, now_ms)
    }

    /// A caller needs the owner for this key.
    pub(crate) fn missed(&self, hash: u64, now_ms: u64) {
        self.heat.touch(hash, now_ms);
    }

    /// Whether a copy of the owner's answer should be kept: the key is hot, or there was a copy until a moment ago, and
    /// it is asked for again.
    pub(crate) fn wants(&self, key: &str, hash: u64, now_ms: u64) -> bool {
        self.heat.is_hot(hash, now_ms, HOT) || self.store.peek(key).is_some_and(|slot| !slot.is_gone(now_ms))
    }

    #[must_use = "hold it until your own locks are released: dropping it runs the payloads' Drop"]
    pub(crate) fn keep(&self, key: &str, slot: Slot<V>) -> Inserted<Payload<V>> {
        self.store.insert(key, slot)
    }

    #[must_use = "hold it until your own locks are released: dropping it may run the payload's Drop"]
    pub(crate) fn remove(&self, key: &str) -> Option<Slot<V>> {
        self.store.remove(key)
    }

    /// From now on no copy is kept.
    pub(crate) fn close(&self) {
        self.store.close();
    }

    #[must_use = "hold them until your own locks are released: dropping them may run the payloads' Drop"]
    pub(crate) fn clear(&self) -> Vec<Item<Payload<V>>> {
        self.store.clear()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.store.bytes()
    }

    pub(crate) fn len(&self) -> usize {
        self.store.len()
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.store.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_hot_in_the_second_in_which_it_is_asked_for_often() {
        let heat = HotKeyCounter::new();
        (0..HOT).for_each(|_| heat.touch(7, 1500));
        heat.touch(8, 1500);
        assert!(heat.is_hot(7, 1999, HOT) && !heat.is_hot(7, 1999, HOT + 1) && !heat.is_hot(8, 1999, HOT));
        heat.touch(7, 2000);
        assert!(!heat.is_hot(7, 2000, HOT), "another second");
    }

    #[test]
    fn where_all_are_busy_only_those_are_hot_that_stand_out() {
        let (heat, mut rng) = (HotKeyCounter::new(), fastrand::Rng::with_seed(1));
        // Half a million requests for as many keys, and a thousand for each of a hundred others.
        (0..500_000).for_each(|_| heat.touch(rng.u64(..), 1000));
        let hot: Vec<u64> = (0..100).map(|_| rng.u64(..)).collect();
        hot.iter().for_each(|hash| (0..1000).for_each(|_| heat.touch(*hash, 1000)));
        assert!(hot.iter().all(|hash| heat.is_hot(*hash, 1000, HOT)));
        let hot_counters = COUNTERS / hot.len();
        let cold = (0..10_000).filter(|_| heat.is_hot(rng.u64(..), 1000, HOT)).count();
        assert!(cold <= 2 * 10_000 / hot_counters, "{cold} of 10,000 cold keys share a counter with a hot one");
    }
}
