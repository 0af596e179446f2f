//! Synchronization: the locks, atomics and maps of the crate. All of them come from here, so that a build for the
//! interleaving checker can replace them.

use std::hash::{BuildHasher, Hash, Hasher};

use dashmap::DashMap;

use xxhash_rust::xxh3::xxh3_64_with_seed;

#[cfg(shuttle)]
use shuttle::sync as imp;
#[cfg(not(shuttle))]
use std::sync as imp;

/// Atomics for which the order of accesses matters, so that the checker must see them. Plain counters use those of std.
pub(crate) use imp::atomic;
pub(crate) use imp::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

#[cfg(not(shuttle))]
pub(crate) use arc_swap::{ArcSwap, Guard};

#[cfg(shuttle)]
pub(crate) use swap::{ArcSwap, Guard};

/// Mutex that a panic does not poison, because guarded data changes in steps that cannot panic in between.
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

/// Lock for many readers or one writer that a panic does not poison, for the same reason.
#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(imp::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(imp::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(imp::PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(imp::PoisonError::into_inner)
    }
}

/// Hasher of the maps of one process. A seed of the node keys it, so that a client cannot choose colliding keys, and so
/// that a simulation is repeatable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keyed(pub(crate) u64);

impl BuildHasher for Keyed {
    type Hasher = KeyedHasher;

    fn build_hasher(&self) -> KeyedHasher {
        KeyedHasher(self.0)
    }
}

/// Hasher that chains one-shot hashes, because the streaming state of xxh3 would cost more than the hash of a key.
pub(crate) struct KeyedHasher(u64);

impl Hasher for KeyedHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Hash map of the crate. The order of its entries depends on the seed and on the keys only.
#[expect(clippy::disallowed_types, reason = "keyed by the node's seed, not by the process's")]
pub(crate) type Map<K, V> = std::collections::HashMap<K, V, Keyed>;

/// Replacement of `arc_swap` by a lock, because the interleaving checker cannot see into `arc_swap`.
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

/// Number of shards of a map of groups or connections, which has few keys and is read by all threads.
const SHARDS: usize = 16;

/// Makes a concurrent map with a fixed number of shards. By default the number, and with it the order of the entries,
/// would depend on the cores of the machine.
pub(crate) fn sharded<K: Eq + Hash, V>(hasher: Keyed) -> DashMap<K, V, Keyed> {
    DashMap::with_capacity_and_hasher_and_shard_amount(0, hasher, SHARDS)
}
