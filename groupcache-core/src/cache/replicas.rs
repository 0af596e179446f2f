//! Replicas: copies of hot values that other nodes own.
//!
//! A replica is kept for a short time if its key is requested often on this node or at its owner. All replicas together
//! take a small share of the budget at most, which owned entries use while there are none. A write drops the replica as
//! it drops the entry of the owner.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::cache::payload::{Payload, Slot};
use crate::{
    cache::store::{Inserted, Store},
    value::Value,
};

/// Number of requests within a second that make a key hot on one node.
const HOT: u16 = 8;

/// Number of requests within a second, of all peers together, that make a key hot at its owner.
pub(crate) const HOT_AT_OWNER: u16 = 32;

/// Divisor of a group's budget: replicas may take 1/SHARE of it.
const SHARE: u64 = 8;

/// Number of counters of a group. Keys that share a counter are counted together, so a cold key is hot now and then.
const COUNTERS: usize = 4096;

/// Number of counters that are compared with each other: those of a cache line.
const NEIGHBOURS: usize = 16;

/// Factor by which the counter of a hot key must exceed most of its neighbours. If each counter has many keys, all
/// counters are high.
const STANDS_OUT: u16 = 4;

/// Approximate numbers of the requests for keys in the current second.
pub(crate) struct HotKeyCounter(Box<[AtomicU32]>);

impl HotKeyCounter {
    pub(crate) fn new() -> Self {
        Self((0..COUNTERS).map(|_| AtomicU32::new(0)).collect())
    }

    /// Counts a request.
    pub(crate) fn touch(&self, hash: u64, now_ms: u64) {
        let counter = self.counter(hash);
        let count = count(counter, now_ms).saturating_add(1);
        // Of two requests at the same moment one may be lost.
        counter.store(second(now_ms) << 16 | u32::from(count), Relaxed);
    }

    /// Returns whether a key had at least `least` requests in this second, and far more than most other keys.
    pub(crate) fn is_hot(&self, hash: u64, now_ms: u64, least: u16) -> bool {
        let count_here = count(self.counter(hash), now_ms);
        if count_here < least {
            return false;
        }
        let first = hash as usize % COUNTERS / NEIGHBOURS * NEIGHBOURS;
        let neighbours = self.0.get(first..first + NEIGHBOURS).unwrap_or_default();
        // A few of the neighbours may be hot too.
        let as_busy = neighbours.iter().filter(|other| count(other, now_ms).saturating_mul(STANDS_OUT) > count_here);
        as_busy.count() <= NEIGHBOURS / 2
    }

    fn counter(&self, hash: u64) -> &AtomicU32 {
        #[expect(clippy::indexing_slicing, reason = "the remainder is below the number of counters")]
        &self.0[hash as usize % COUNTERS]
    }
}

/// Returns the number of requests that a counter has in this second.
fn count(counter: &AtomicU32, now_ms: u64) -> u16 {
    // The high half is the second, the low one the count.
    let counter = counter.load(Relaxed);
    if counter >> 16 == second(now_ms) { counter as u16 } else { 0 }
}

fn second(now_ms: u64) -> u32 {
    (now_ms / 1000) as u32 & 0xffff
}

/// Replicas of a group on this node.
pub(crate) struct Replicas<V: Value> {
    store: Store<Payload<V>>,
    heat: HotKeyCounter,
}

impl<V: Value> Replicas<V> {
    /// Creates the replicas that share the budget of `owned`.
    pub(crate) fn beside(owned: &Store<Payload<V>>) -> Self {
        Self { store: owned.replicas(owned.capacity() / SHARE), heat: HotKeyCounter::new() }
    }

    pub(crate) fn store(&self) -> &Store<Payload<V>> {
        &self.store
    }

    pub(crate) fn get(&self, key: &str, now_ms: u64) -> Option<Slot<V>> {
        self.store.get(key, now_ms)
    }

    /// Counts a get that this node cannot answer from memory, and that goes to another node.
    pub(crate) fn missed(&self, hash: u64, now_ms: u64) {
        self.heat.touch(hash, now_ms);
    }

    /// Returns whether the owner's response should be kept as a replica: the key is hot, or memory has a replica,
    /// perhaps an expired one that has not left yet.
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

    /// Stops storing: no replica is kept from now on.
    pub(crate) fn close(&self) {
        self.store.close();
    }

    pub(crate) fn len(&self) -> usize {
        self.store.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that requests of one second make a key hot in that second only.
    #[test]
    fn key_is_hot_in_the_second_of_its_requests() {
        let heat = HotKeyCounter::new();
        (0..HOT).for_each(|_| heat.touch(7, 1500));
        heat.touch(8, 1500);
        assert!(heat.is_hot(7, 1999, HOT) && !heat.is_hot(7, 1999, HOT + 1) && !heat.is_hot(8, 1999, HOT));
        heat.touch(7, 2000);
        assert!(!heat.is_hot(7, 2000, HOT), "in the next second");
    }

    /// Checks that a busy node finds the keys that stand out, and takes few others for hot.
    #[test]
    fn outstanding_keys_are_hot_on_a_busy_node() {
        let (heat, mut rng) = (HotKeyCounter::new(), fastrand::Rng::with_seed(1));
        // Half a million requests, each for another key, and a thousand requests for each of a hundred keys.
        (0..500_000).for_each(|_| heat.touch(rng.u64(..), 1000));
        let hot: Vec<u64> = (0..100).map(|_| rng.u64(..)).collect();
        hot.iter().for_each(|hash| (0..1000).for_each(|_| heat.touch(*hash, 1000)));
        assert!(hot.iter().all(|hash| heat.is_hot(*hash, 1000, HOT)));
        let hot_counters = COUNTERS / hot.len();
        let cold = (0..10_000).filter(|_| heat.is_hot(rng.u64(..), 1000, HOT)).count();
        assert!(cold <= 2 * 10_000 / hot_counters, "{cold} of 10,000 cold keys share a counter with a hot one");
    }
}
