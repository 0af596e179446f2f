//! Cache: the entries of one group in this node's memory, owned ones and replicas, within one budget.
//!
//! **No user code runs under a lock.** Whatever leaves the cache is handed to the caller, and the caller drops it after
//! its own locks are released, because the `Drop` of a value is user code.

pub(crate) mod entry;
mod evictions;
pub(crate) mod freshness;
pub(crate) mod payload;
pub(crate) mod replicas;
pub(crate) mod revalidation;
pub(crate) mod store;

use std::{sync::Arc, thread};

use tokio::runtime::Handle;

use self::evictions::EvictionSender;
pub use self::evictions::{EvictionEvent, EvictionEvents, EvictionReason};
use crate::{
    cache::{
        payload::{Payload, Slot, drop_all_caught, drop_caught},
        replicas::{HotKeyCounter, Replicas},
        store::{Admission, Inserted, Item, Key, Store},
    },
    runtime::{clock::Clock, stats::GroupCounters},
    value::Value,
};

/// Entries that one step of a sweep looks at before other tasks get their turn: some tens of microseconds.
const SWEPT_AT_ONCE: usize = 256;

/// Values that are dropped on the caller's thread: a millisecond or two of work.
const DROPPED_HERE: usize = 8192;

/// The entries of one group on this node.
pub(crate) struct Cache<V: Value> {
    /// Entries of keys that this node owns, or loaded in the place of their owner.
    pub(crate) owned: Store<Payload<V>>,
    /// Replicas of hot values that other nodes own; `None` in a group that keeps none.
    pub(crate) replicas: Option<Replicas<V>>,
    /// How often peers ask for keys of this node.
    pub(crate) requests: HotKeyCounter,
    pub(crate) events: EvictionSender,
    counters: Arc<GroupCounters>,
}

impl<V: Value> Cache<V> {
    /// Makes a cache of `capacity` bytes; `largest` is the weight of the heaviest value, and `seed` keys the hashes.
    pub(crate) fn new(
        capacity: u64,
        largest: u64,
        has_replicas: bool,
        mut seed: impl FnMut() -> u64,
        counters: Arc<GroupCounters>,
    ) -> Self {
        let for_replicas = if has_replicas { capacity / replicas::SHARE } else { 0 };
        let replicas = has_replicas.then(|| Replicas::new(for_replicas, largest, seed()));
        Self {
            owned: Store::new(capacity - for_replicas, largest, seed()),
            replicas,
            requests: HotKeyCounter::new(),
            events: EvictionSender::default(),
            counters,
        }
    }

    /// Counts and reports what had to leave for a new entry, and drops it. Must not be called under a lock.
    pub(crate) fn after_insert(&self, key: &str, inserted: Inserted<Payload<V>>, is_replica: bool) {
        if inserted.admission == Admission::TooLarge && !is_replica {
            self.counters.too_large_to_keep.up();
        }
        let mut count = 0;
        for (key, slot) in inserted.evicted(key) {
            count += 1;
            self.on_evicted(key, slot, EvictionReason::Room, is_replica);
        }
        self.counters.evictions.add(count);
        drop_all_caught(inserted.into_items());
    }

    fn on_evicted(&self, key: &str, slot: &Slot<V>, why: EvictionReason, replica: bool) {
        self.events.send(|| EvictionEvent { key: key.into(), bytes: slot.weight(key), why, replica });
    }

    /// Takes the replica of a key out.
    #[must_use = "hold it until your own locks are released: dropping it may run the payload's Drop"]
    pub(crate) fn remove_replica(&self, key: &str) -> Option<Slot<V>> {
        self.replicas.as_ref()?.remove(key)
    }

    /// Takes all entries out, owned ones and replicas.
    #[must_use = "hold them until your own locks are released: dropping them may run the payloads' Drop"]
    pub(crate) fn clear(&self) -> Vec<Item<Payload<V>>> {
        let mut items = self.owned.clear();
        items.extend(self.replicas.iter().flat_map(Replicas::clear));
        items
    }

    /// Stores nothing from now on.
    pub(crate) fn close(&self) {
        self.owned.close();
        self.replicas.iter().for_each(Replicas::close);
    }

    /// Drops entries that are of no use any more, and lets other tasks run in between.
    pub(crate) async fn sweep(&self, clock: &Clock) {
        self.sweep_store(&self.owned, clock, false).await;
        if let Some(replicas) = &self.replicas {
            self.sweep_store(replicas.store(), clock, true).await;
        }
    }

    async fn sweep_store(&self, store: &Store<Payload<V>>, clock: &Clock, is_replica: bool) {
        for (looked_at, (key, slot)) in store.iter().enumerate() {
            if slot.is_spent(clock.now_ms()) && store.remove_same(&key, &slot).is_some() {
                self.counters.expired.up();
                self.on_evicted(&key, &slot, EvictionReason::Age, is_replica);
            }
            drop_caught(slot); // the last reference if another caller took the entry out meanwhile
            if looked_at % SWEPT_AT_ONCE == SWEPT_AT_ONCE - 1 {
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
        self.owned.bytes() + self.replicas.as_ref().map_or(0, Replicas::bytes)
    }

    /// Returns the number of entries, expired ones included.
    pub(crate) fn len(&self) -> usize {
        self.owned.len() + self.replicas_len()
    }

    /// Returns the number of replicas.
    pub(crate) fn replicas_len(&self) -> usize {
        self.replicas.as_ref().map_or(0, Replicas::len)
    }

    /// Returns the budget in bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.owned.capacity() + self.replicas.as_ref().map_or(0, Replicas::capacity)
    }
}

/// Drops `items`: many of them on a thread of their own, because a thread that serves gets must not be held up.
///
/// The thread is not one of the runtime's blocking threads: a runtime that ends waits for those, and spawning one panics
/// where the system has no thread left. There the items are dropped at once.
pub(crate) fn drop_in_background<T: Send + Sync + 'static>(items: Vec<Item<T>>) {
    let count = items.len();
    drop_on_thread(count, move || drop_all_caught(items));
}

/// Runs `free`, which drops `count` values, at once or on a thread of its own.
fn drop_on_thread(count: usize, free: impl FnOnce() + Send + 'static) {
    let free = RunOnDrop(Some(free));
    // A thread is outside of simulated time.
    if count > DROPPED_HERE && cfg!(not(simulation)) {
        let runtime = Handle::try_current().ok(); // the `Drop` of a value is user code and may want a runtime
        let on_a_thread = move || {
            let _context = runtime.as_ref().map(Handle::enter);
            drop(free);
        };
        drop(thread::Builder::new().name("groupcache-free".to_owned()).spawn(on_a_thread));
    }
}

/// A closure that runs when it is dropped, wherever that is: a thread that does not start drops its closure.
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

    /// A value which reports the thread on which it is dropped.
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
            Err(DecodeError::new("there is no need"))
        }

        fn weight(&self) -> usize {
            0
        }
    }

    /// Checks that many values are dropped on a thread that serves nobody.
    #[tokio::test]
    async fn many_values_are_dropped_on_their_own_thread() {
        let here = thread::current().id();
        for (count, is_here) in [(1, true), (DROPPED_HERE, true), (DROPPED_HERE + 1, false)] {
            let (report, reports) = channel();
            let entry = |_| {
                let payload = Payload::of(ReportsThread(report.clone())).unwrap();
                (Key::from("k"), Slot::new(Entry::new(payload, Times::until(0, 1))))
            };
            let items: Vec<_> = (0..count).map(entry).collect();
            drop_in_background(items);
            drop(report);
            let on: Vec<_> = reports.iter().collect(); // ends with the last value
            assert_eq!((on.len(), on.iter().all(|on| (*on == here) == is_here)), (count, true), "{count} values");
        }
    }
}
