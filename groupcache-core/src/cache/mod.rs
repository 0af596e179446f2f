//! Cache: the entries of one group in this node's memory, owned entries and replicas, within one budget.
//!
//! **No user code runs under a lock.** Entries that leave the cache are handed to the caller, and the caller drops them
//! after its own locks are released, because the `Drop` of a value is user code.
//!
//! [`store`] bounds the bytes, [`entry`] has the times of an entry, and [`freshness`] computes them.

pub(crate) mod entry;
mod evictions;
pub(crate) mod freshness;
pub(crate) mod payload;
pub(crate) mod replicas;
pub(crate) mod revalidation;
pub(crate) mod store;

use std::{sync::Arc, thread, time::Duration};

use tokio::runtime::Handle;

use self::evictions::EvictionSender;
pub use self::evictions::{EvictionEvent, EvictionEvents, EvictionReason};
use crate::{
    cache::{
        payload::{Payload, Slot},
        replicas::{HotKeyCounter, Replicas},
        store::{Admission, Cleared, HeapSize, Inserted, Key, Store},
    },
    runtime::{clock::Clock, histogram::Histogram, stats::GroupCounters},
    value::Value,
};

/// Number of entries that a sweep checks before other tasks run: some tens of microseconds of work.
const SWEPT_AT_ONCE: usize = 256;

/// Maximum number of values that are dropped on the caller's thread: one or two milliseconds of work.
const DROPPED_HERE: usize = 8192;

/// Entries of one group on this node.
pub(crate) struct Cache<V: Value> {
    /// Entries of keys that this node owns or owned, or loaded in the place of their owner.
    pub(crate) owned: Store<Payload<V>>,
    /// Replicas of hot values that other nodes own; `None` in a group that keeps none.
    pub(crate) replicas: Option<Replicas<V>>,
    /// Counter of the requests of peers for keys of this node, which finds hot keys.
    pub(crate) requests: HotKeyCounter,
    pub(crate) events: EvictionSender,
    /// Ages of the entries that were evicted for want of room.
    pub(crate) eviction_ages: Histogram,
    counters: Arc<GroupCounters>,
}

impl<V: Value> Cache<V> {
    /// Creates a cache of `capacity` bytes. `largest` is the weight of the heaviest value, and `seed` keys the hash.
    pub(crate) fn new(
        capacity: u64,
        largest: u64,
        has_replicas: bool,
        seed: u64,
        counters: Arc<GroupCounters>,
    ) -> Self {
        let owned = Store::new(capacity, largest, seed);
        Self {
            replicas: has_replicas.then(|| Replicas::beside(&owned)),
            owned,
            requests: HotKeyCounter::new(),
            events: EvictionSender::default(),
            eviction_ages: Histogram::new(),
            counters,
        }
    }

    /// Counts and reports the entries that left to make room for a new one. Must not be called under a lock.
    pub(crate) fn after_insert(&self, key: &str, inserted: &Inserted<Payload<V>>, is_replica: bool, now_ms: u64) {
        if inserted.admission == Admission::TooLarge && !is_replica {
            self.counters.too_large_to_keep.up();
        }
        let mut count = 0;
        for (key, slot, was_replica) in inserted.evicted(key) {
            count += 1;
            self.eviction_ages.add(Duration::from_millis(now_ms.saturating_sub(slot.as_of_ms)));
            if !was_replica && !slot.was_used() {
                self.counters.evicted_unread.up();
            }
            self.on_evicted(key, slot, EvictionReason::Room, was_replica);
        }
        self.counters.evictions.add(count);
    }

    fn on_evicted(&self, key: &str, slot: &Slot<V>, why: EvictionReason, replica: bool) {
        self.events.send(|| EvictionEvent { key: key.into(), bytes: slot.weight(key), why, replica });
    }

    /// Removes the replica of a key and returns it.
    #[must_use = "hold it until your own locks are released: dropping it may run the payload's Drop"]
    pub(crate) fn remove_replica(&self, key: &str) -> Option<Slot<V>> {
        self.replicas.as_ref()?.remove(key)
    }

    /// Removes all entries and returns them, owned entries and replicas.
    #[must_use = "hold them until your own locks are released: dropping them may run the payloads' Drop"]
    pub(crate) fn clear(&self) -> Cleared<Payload<V>> {
        self.owned.clear() // the replicas share its shards
    }

    /// Stops storing: inserts are refused from now on.
    pub(crate) fn close(&self) {
        self.owned.close();
        self.replicas.iter().for_each(Replicas::close);
    }

    /// Drops the entries that are of no use any more, and lets other tasks run in between.
    pub(crate) async fn sweep(&self, clock: &Clock) {
        self.sweep_store(&self.owned, clock, false).await;
        if let Some(replicas) = &self.replicas {
            self.sweep_store(replicas.store(), clock, true).await;
        }
    }

    async fn sweep_store(&self, store: &Store<Payload<V>>, clock: &Clock, is_replica: bool) {
        for (checked, step) in store.steps().enumerate() {
            let Some((key, slot)) = step else {
                tokio::task::yield_now().await;
                continue;
            };
            if slot.is_spent(clock.now_ms()) && store.remove_same(&key, &slot).is_some() {
                self.counters.expired.up();
                self.on_evicted(&key, &slot, EvictionReason::Age, is_replica);
            }
            drop(slot); // the last reference if another caller removed the entry meanwhile
            if checked % SWEPT_AT_ONCE == SWEPT_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Returns all entries, expired ones included, each with whether it is a replica.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, Slot<V>, bool)> {
        let owned = self.owned.iter().map(|(key, slot)| (key, slot, false));
        let replicas = self.replicas.iter().flat_map(|replicas| replicas.store().iter());
        owned.chain(replicas.map(|(key, slot)| (key, slot, true)))
    }

    /// Returns the accounted bytes of all entries.
    pub(crate) fn bytes(&self) -> u64 {
        self.owned.bytes_of_parts()
    }

    /// Returns the number of entries, expired ones included.
    pub(crate) fn len(&self) -> usize {
        self.owned.len() + self.replicas_len()
    }

    /// Returns whether no entry is in memory.
    pub(crate) fn is_empty(&self) -> bool {
        self.owned.len() == 0 && self.replicas_len() == 0
    }

    /// Returns the number of replicas.
    pub(crate) fn replicas_len(&self) -> usize {
        self.replicas.as_ref().map_or(0, Replicas::len)
    }

    /// Returns the budget in bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.owned.capacity()
    }
}

/// Drops `entries`. More than [`DROPPED_HERE`] are dropped on a thread of their own, because a thread that serves gets must
/// not be delayed. Fewer are dropped here if `may_drop_here`, and otherwise in a task of the user's runtime, because the
/// `Drop` of a value is code of the user.
///
/// The thread is not one of the runtime's blocking threads, because a runtime that ends waits for those, and because
/// spawning one panics if the system has no thread left. If this thread cannot be spawned, the entries are dropped at
/// once.
pub(crate) fn drop_in_background<T: HeapSize + Send + Sync + 'static>(
    entries: Cleared<T>,
    of_user: &Handle,
    may_drop_here: bool,
) {
    let count = entries.len();
    let free = RunOnDrop(Some(move || drop(entries)));
    // Simulated time does not know threads.
    if count > DROPPED_HERE && cfg!(not(simulation)) {
        let runtime = of_user.clone(); // the `Drop` of a value may need a runtime
        let on_a_thread = move || {
            let _context = runtime.enter();
            drop(free);
        };
        drop(thread::Builder::new().name("groupcache-free".to_owned()).spawn(on_a_thread));
    } else if !may_drop_here {
        drop(of_user.spawn(async move { drop(free) }));
    }
}

/// Closure that runs when it is dropped, because a thread that does not start drops its closure.
struct RunOnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for RunOnDrop<F> {
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            call();
        }
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use std::{
        sync::mpsc::{Sender, channel},
        thread::ThreadId,
    };

    use bytes::{Bytes, BytesMut};

    use super::*;
    use crate::{
        cache::store::{Entry, Times},
        value::{DecodeError, EncodeError},
    };

    /// Value that reports the thread on which it is dropped.
    #[derive(Clone)]
    struct ReportsThread(Sender<ThreadId>);

    impl Drop for ReportsThread {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().id());
        }
    }

    impl Value for ReportsThread {
        fn encode(&self, _: &mut BytesMut) -> Result<(), EncodeError> {
            Ok(())
        }

        fn decode(_: Bytes) -> Result<Self, DecodeError> {
            Err(DecodeError::new("this value is never decoded"))
        }

        fn weight(&self) -> usize {
            0
        }
    }

    /// Checks that many values are dropped on another thread than the caller's, and few values on the caller's.
    #[tokio::test]
    async fn many_values_are_dropped_on_their_own_thread() {
        let here = thread::current().id();
        for (count, is_here) in [(1, true), (DROPPED_HERE, true), (DROPPED_HERE + 1, false)] {
            let (report, reports) = channel();
            let entry = |_| {
                let payload = Payload::of(ReportsThread(report.clone())).unwrap();
                Slot::new(Entry::new(payload, Times::until(0, 1)))
            };
            let store = Store::new(1 << 30, 1 << 10, 1);
            (0..count).for_each(|n| drop(store.insert(&n.to_string(), entry(n))));
            drop_in_background(store.clear(), &Handle::current(), true);
            drop(report);
            let on: Vec<_> = reports.iter().collect(); // ends with the last value
            assert_eq!((on.len(), on.iter().all(|on| (*on == here) == is_here)), (count, true), "{count} values");
        }
    }
}
