//! The locks and maps of the crate: one door, so that an interleaving checker can stand behind it.

use std::hash::{BuildHasher, Hash, Hasher};

use dashmap::DashMap;

use xxhash_rust::xxh3::xxh3_64_with_seed;

#[cfg(shuttle)]
use shuttle::sync as imp;
#[cfg(not(shuttle))]
use std::sync as imp;

pub(crate) use imp::MutexGuard;
/// Atomics whose order among themselves matters. Those that only count are std's own.
pub(crate) use imp::atomic;

#[cfg(not(shuttle))]
pub(crate) use arc_swap::{ArcSwap, Guard};

#[cfg(shuttle)]
pub(crate) use swap::{ArcSwap, Guard};

/// A mutex that a panic does not poison: what it guards is changed in steps that cannot panic in between.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(imp::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(imp::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(imp::PoisonError::into_inner)
    }
}

/// Hashes maps within one process: keyed, so that nobody can choose keys that meet, and seeded by the node, so
/// that a simulation repeats itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keyed(pub(crate) u64);

impl BuildHasher for Keyed {
    type Hasher = KeyedHasher;

    fn build_hasher(&self) -> KeyedHasher {
        KeyedHasher(self.0)
    }
}

/// Chains one-shot hashes; the streaming state of xxh3 would cost more than the hash of a key.
pub(crate) struct KeyedHasher(u64);

impl Hasher for KeyedHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The one hash map of the crate. Its order depends on the seed and on nothing else.
#[expect(clippy::disallowed_types, reason = "keyed by the node's seed, not by the process's")]
pub(crate) type Map<K, V> = std::collections::HashMap<K, V, Keyed>;

/// What the checker cannot see inside of, as a lock that it can.
#[cfg(shuttle)]
mod swap {
    use std::sync::Arc;

    use super::Mutex;

    pub(crate) type Guard<T> = T;

    #[derive(Debug, Default)]
    pub(crate) struct ArcSwap<T>(Mutex<Arc<T>>);

    impl<T> ArcSwap<T> {
        pub(crate) fn from_pointee(value: T) -> Self {
            Self(Mutex::new(Arc::new(value)))
        }

        pub(crate) fn load(&self) -> Guard<Arc<T>> {
            self.load_full()
        }

        pub(crate) fn load_full(&self) -> Arc<T> {
            Arc::clone(&self.0.lock())
        }

        pub(crate) fn store(&self, value: Arc<T>) {
            drop(self.swap(value));
        }

        pub(crate) fn swap(&self, value: Arc<T>) -> Arc<T> {
            std::mem::replace(&mut *self.0.lock(), value)
        }
    }
}

/// Shards of a map of groups or connections: few keys, read by all threads.
const SHARDS: usize = 16;

/// A concurrent map. By itself it would take a number of shards from the cores of the machine, and its order with it.
pub(crate) fn sharded<K: Eq + Hash, V>(hasher: Keyed) -> DashMap<K, V, Keyed> {
    DashMap::with_capacity_and_hasher_and_shard_amount(0, hasher, SHARDS)
}
