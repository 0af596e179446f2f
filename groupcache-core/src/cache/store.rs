//! Store: entries bounded by bytes, which expire, and are evicted by use so that the budget is never exceeded.
//!
//! No other file names the eviction crate. The store knows no groups, flights or clocks: the caller passes the time,
//! the payload reports its heap bytes, and the caller takes the locks that its own invariants need.
//!
//! **No user code runs under a lock.** Entries that leave the store (evicted, replaced, refused, removed) are handed to
//! the caller, which drops them after releasing its own locks, because a payload's `Drop` is user code.

use std::hash::{BuildHasher, Hasher};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use compact_str::CompactString;
use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};
use triomphe::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub(crate) use crate::cache::entry::{Entry, HeapSize, Times};

/// Longest key of the API. The shard of the largest value must hold its key too.
const MAX_KEY_BYTES: u64 = 1024;

/// Maximum number of shards. More locks do not help: 64 shards gave 1.59 times one thread's hits on two cores, 512
/// shards 1.66 times. The number is a constant, because a number that depends on the cores would make two runs of one
/// simulation differ.
const MAX_SHARDS: u64 = 64;

/// Minimum bytes of a shard. A few large entries would fill a smaller shard and leave its neighbours empty. A small
/// budget is therefore one shard, in which one entry may take nearly all of the budget.
const MIN_SHARD_BYTES: u64 = 2 << 20;

/// Share of a shard that one entry may take, because the eviction policy admits nothing heavier than its hot part.
const HOT_SHARE: f64 = 0.97;

/// Bytes of budget per estimated entry. The eviction crate remembers evicted keys, half as many as the estimate, so
/// that a key that returns soon counts as hot. A remembered key takes a slot and is not in the accounted bytes.
const BYTES_PER_ESTIMATED_ITEM: u64 = 512;

/// Minimum number of estimated entries per shard, below which the eviction crate would reduce the number of shards.
const MIN_ITEMS_PER_SHARD: u64 = 32;

/// Maximum capacity: far above any memory, and far below the overflow of sums of weights.
const MAX_CAPACITY_BYTES: u64 = 1 << 62;

/// Shared entry: an `Arc` without weak references, because a second counter would cost each entry 16 bytes.
pub(crate) type Slot<T> = Arc<Entry<T>>;

/// Key and entry, removed from the store or still in it.
pub(crate) type Item<T> = (Key, Slot<T>);

/// Key in the store; a short key is kept in its slot.
pub(crate) type Key = CompactString;

/// Fate of an entry that was passed to [`Store::insert`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The entry is in the store.
    Kept,
    /// The entry was evicted at once, because every other entry was used more.
    Crowded,
    /// The entry is heavier than [`Store::max_entry_bytes`]. An older entry of the key was removed, because it is
    /// stale.
    TooLarge,
    /// The store is closed.
    Closed,
}

/// Result of [`Store::insert`]: the fate of the entry, and the entries that left.
#[derive(Debug)]
#[must_use = "hold it until your own locks are released: dropping it runs the payloads' Drop"]
pub(crate) struct Inserted<T> {
    /// Fate of the new entry.
    pub(crate) admission: Admission,
    /// Entries that are not in the store any more: evicted, replaced or refused.
    displaced: Displaced<T>,
}

impl<T> Inserted<T> {
    /// Returns the entries of other keys that left to make room for the entry of `key`.
    pub(crate) fn evicted(&self, key: &str) -> impl Iterator<Item = (&str, &Slot<T>)> {
        let others = self.displaced.iter().filter(move |(other, _)| **other != *key);
        others.map(|(other, entry)| (&**other, entry))
    }
}

/// Entries that the eviction crate removed while it held the lock of a shard.
#[derive(Debug)]
struct Displaced<T> {
    /// First entry, which costs no allocation under the lock: an insert mostly displaces one entry of similar size.
    first: Option<Item<T>>,
    rest: Vec<Item<T>>,
}

impl<T> Displaced<T> {
    fn push(&mut self, key: Key, entry: Slot<T>) {
        match self.first {
            None => self.first = Some((key, entry)),
            Some(_) => self.rest.push((key, entry)),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Item<T>> {
        self.first.iter().chain(&self.rest)
    }
}

impl<T> Default for Displaced<T> {
    fn default() -> Self {
        Self { first: None, rest: Vec::new() }
    }
}

/// Hook of the eviction crate that passes displaced entries out of the lock of the shard.
struct HandOut<T>(PhantomData<fn() -> T>);

impl<T> Clone for HandOut<T> {
    fn clone(&self) -> Self {
        Self(PhantomData)
    }
}

impl<T> Lifecycle<Key, Slot<T>> for HandOut<T> {
    type RequestState = Displaced<T>;

    fn on_evict(&self, displaced: &mut Displaced<T>, key: Key, entry: Slot<T>) {
        displaced.push(key, entry);
    }
}

/// Weigher of entries, which never change their weights.
#[derive(Clone)]
struct FixedWeight;

impl<T: HeapSize> Weighter<Key, Slot<T>> for FixedWeight {
    fn weight(&self, key: &Key, entry: &Slot<T>) -> u64 {
        entry.weight(key)
    }
}

/// Hasher with a seed, so that a client that chooses keys cannot know which of them collide.
#[derive(Debug, Clone)]
struct Keyed {
    seed: u64,
}

impl BuildHasher for Keyed {
    type Hasher = KeyHasher;

    fn build_hasher(&self) -> KeyHasher {
        KeyHasher(self.seed)
    }
}

/// Hasher of one string.
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn write_u8(&mut self, _terminator: u8) {
        // `str` ends its hash with a byte that separates the strings of a tuple. A single string does not need it.
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Entries of one group, bounded by bytes.
pub(crate) struct Store<T: HeapSize> {
    cache: Cache<Key, Slot<T>, FixedWeight, Keyed, HandOut<T>>,
    capacity: u64,
    max_entry: u64,
    is_closed: AtomicBool,
}

impl<T: HeapSize> Store<T> {
    /// Creates a store of at most `capacity_bytes`. A store of 0 bytes keeps nothing.
    ///
    /// `max_value_bytes` is the maximum weight of one value, encoded and decoded form together, which bounds the number
    /// of shards. `seed` keys the hash. An empty store allocates nothing for entries.
    pub(crate) fn new(capacity_bytes: u64, max_value_bytes: u64, seed: u64) -> Self {
        let largest = max_value_bytes.saturating_add(MAX_KEY_BYTES).saturating_add(Entry::<T>::OVERHEAD_BYTES);
        Self::with_shards(capacity_bytes, shards_for(capacity_bytes, largest), seed)
    }

    fn with_shards(capacity_bytes: u64, shards: u64, seed: u64) -> Self {
        // Rounded down here, because the eviction crate rounds the part of each shard up.
        let shard_bytes = capacity_bytes.min(MAX_CAPACITY_BYTES) / shards;
        let capacity = shard_bytes * shards;
        let items = (capacity / BYTES_PER_ESTIMATED_ITEM).max(MIN_ITEMS_PER_SHARD * shards);
        let items = usize::try_from(items).unwrap_or(usize::MAX);
        let options = OptionsBuilder::new()
            .shards(usize::try_from(shards).unwrap_or(1))
            .estimated_items_capacity(items)
            .weight_capacity(capacity)
            .hot_allocation(HOT_SHARE)
            .build();
        let cache = match options {
            Ok(options) => Cache::with_options(options, FixedWeight, Keyed { seed }, HandOut(PhantomData)),
            // Unreachable, because only a missing option is an error and all are given. The fallback is the same store
            // in one shard, because an estimate of 1 item allows no second shard.
            Err(_) => Cache::with(1, capacity, FixedWeight, Keyed { seed }, HandOut(PhantomData)),
        };
        let max_entry = hot_bytes(cache.shard_capacity());
        Self { cache, capacity, max_entry, is_closed: AtomicBool::new(false) }
    }

    /// Returns the entry of `key` if it may still be served at `now_ms`, and counts a use.
    ///
    /// An expired entry is a miss and stays until it is replaced, evicted or swept.
    pub(crate) fn get(&self, key: &str, now_ms: u64) -> Option<Slot<T>> {
        self.cache.get(key).filter(|entry| !entry.is_expired(now_ms))
    }

    /// Returns the entry of `key`, expired or not, for use under the caller's lock.
    ///
    /// The call counts no use and drops nothing. The caller checks [`Entry::is_expired`], and drops the entry after its
    /// lock is released.
    #[must_use = "hold it until your own locks are released: dropping it may run the payload's Drop"]
    pub(crate) fn peek(&self, key: &str) -> Option<Slot<T>> {
        self.cache.peek(key)
    }

    /// Stores `entry`, which was built for `key`, in the place of an older one.
    ///
    /// The older entry is removed even if the new one is too large or evicted at once, because it is stale. A closed
    /// store refuses the new entry and leaves the older one.
    pub(crate) fn insert(&self, key: &str, entry: Slot<T>) -> Inserted<T> {
        let mut displaced = Displaced::default();
        let admission = if self.is_closed.load(Relaxed) {
            displaced.push(key.into(), entry);
            Admission::Closed
        } else if entry.weight(key) > self.max_entry {
            if let Some((key, older)) = self.cache.remove(key) {
                displaced.push(key, older);
            }
            displaced.push(key.into(), entry);
            Admission::TooLarge
        } else {
            let new = Arc::as_ptr(&entry);
            self.cache.insert_with_lifecycle(key.into(), entry, &mut displaced);
            // Eviction removes the least used entry, which may be the new one.
            let crowded = displaced.iter().any(|(_, entry)| Arc::as_ptr(entry) == new);
            if crowded { Admission::Crowded } else { Admission::Kept }
        };
        Inserted { admission, displaced }
    }

    /// Removes the entry of `key`, expired or not, and returns it.
    #[must_use = "hold it until your own locks are released: dropping it may run the payload's Drop"]
    pub(crate) fn remove(&self, key: &str) -> Option<Slot<T>> {
        self.cache.remove(key).map(|(_, entry)| entry)
    }

    /// Removes the entry of `key` if it is still this one, and returns it.
    #[must_use = "hold it until your own locks are released: dropping it may run the payload's Drop"]
    pub(crate) fn remove_same(&self, key: &str, entry: &Slot<T>) -> Option<Slot<T>> {
        self.cache.remove_if(key, |current| Arc::ptr_eq(current, entry)).map(|(_, removed)| removed)
    }

    /// Removes every entry that was there when the call began, and returns them. The entry of a concurrent insert may
    /// stay.
    ///
    /// The lock of a shard is held for one entry at a time, so that gets go on.
    #[must_use = "hold them until your own locks are released: dropping them may run the payloads' Drop"]
    pub(crate) fn clear(&self) -> Vec<Item<T>> {
        // Not the eviction crate's `clear`, which drops all values under the lock.
        self.cache.drain().collect()
    }

    /// Stops storing: inserts are refused from now on. A concurrent insert may still succeed. A caller that must
    /// exclude one takes the locks under which inserts run.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Relaxed);
    }

    /// Returns all entries, expired ones included. The lock of a shard is held for one entry at a time, so entries that
    /// are inserted or removed meanwhile may be missed. Dropping an entry may run the payload's `Drop`.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Item<T>> {
        self.cache.iter()
    }

    /// Returns the weight of the heaviest entry that is kept, key and [`Entry::OVERHEAD_BYTES`] included.
    pub(crate) fn max_entry_bytes(&self) -> u64 {
        self.max_entry
    }

    /// Returns the accounted bytes of all entries, expired ones included; never above [`capacity`](Self::capacity).
    ///
    /// Takes the lock of each shard in turn, which suits statistics and not each get.
    pub(crate) fn bytes(&self) -> u64 {
        self.cache.weight()
    }

    /// Returns the number of entries, expired ones included. Takes the lock of each shard in turn.
    pub(crate) fn len(&self) -> usize {
        self.cache.len()
    }

    /// Returns the budget in bytes: the requested capacity, rounded down by less than 64 bytes. The maximum is 2⁶²
    /// bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }
}

/// Returns the largest number of shards, a power of two, with which each shard still holds an entry of `largest`
/// accounted bytes and has [`MIN_SHARD_BYTES`], or 1.
fn shards_for(capacity: u64, largest: u64) -> u64 {
    let mut shards = MAX_SHARDS;
    while shards > 1 && (capacity / shards < MIN_SHARD_BYTES || hot_bytes(capacity / shards) < largest) {
        shards /= 2;
    }
    shards
}

/// Returns the bytes of a shard that one entry may fill, by the same operations as the eviction crate.
fn hot_bytes(shard_bytes: u64) -> u64 {
    // Not rounded to 0, because a shard of one byte admits one byte.
    ((shard_bytes as f64 * HOT_SHARE) as u64).clamp(shard_bytes.min(1), shard_bytes)
}

#[cfg(test)]
mod tests;
