//! The byte-bounded store of one group: entries with an expiry, evicted by use, never above the budget.
//!
//! This is the only file that names the eviction crate. It knows nothing of groups, flights or clocks: the caller
//! gives the time, says what an entry weighs, and keeps whatever locks it needs.
//!
//! **No user code runs under a lock.** What the store lets go of (evicted, replaced, refused, removed) is handed to
//! the caller, who drops it after releasing its own locks: a payload's `Drop` is user code.

use std::hash::{BuildHasher, Hasher};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use compact_str::CompactString;
use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};
use triomphe::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub(crate) use crate::cache::entry::{Entry, HeapSize, Times};

/// The longest key of the API; the shard that holds the largest value must hold its key too.
const MAX_KEY_BYTES: u64 = 1024;

/// Past this, more locks no longer help: 64 shards gave 1.59 times one thread's hits on two cores, 512 gave 1.66.
/// A constant, because a count of cores would make two runs of one simulation differ.
const MAX_SHARDS: u64 = 64;

/// A shard below this is not worth its lock: a few large entries would fill it and leave its neighbours empty.
/// It is also what makes a small budget one shard, in which one entry may take nearly all of it.
const MIN_SHARD_BYTES: u64 = 2 << 20;

/// The share of a shard that one entry may take: the eviction policy admits nothing heavier than its hot part.
const HOT_SHARE: f64 = 0.97;

/// One remembered key per this many bytes of budget. An evicted key is remembered for a while (50 % of this estimate)
/// so that one that returns soon counts as hot; such a memory takes a slot and is not in the accounted bytes.
const BYTES_PER_ESTIMATED_ITEM: u64 = 512;

/// Below this many estimated items per shard the eviction crate would lower the number of shards by itself.
const MIN_ITEMS_PER_SHARD: u64 = 32;

/// Far above any memory, far below where sums of weights could overflow.
const MAX_CAPACITY_BYTES: u64 = 1 << 62;

/// An entry as it is shared. An `Arc` without weak references: its second counter would cost each entry 16 bytes.
pub(crate) type Slot<T> = Arc<Entry<T>>;

/// An entry that has left the store, or a look at one that has not.
pub(crate) type Item<T> = (Key, Slot<T>);

/// A key as it is kept: in its slot, if it is short.
pub(crate) type Key = CompactString;

/// What became of an entry that was given to [`Store::insert`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is in the store.
    Kept,
    /// It was evicted at once: every other entry had been used more.
    Crowded,
    /// It is heavier than [`Store::max_entry_bytes`]. An older entry of the key was removed, because it is stale.
    TooLarge,
    /// The store keeps nothing any more.
    Closed,
}

/// The answer of [`Store::insert`]: what became of the entry, and what had to leave.
#[derive(Debug)]
#[must_use = "hold it until your own locks are released: dropping it runs the payloads' Drop"]
pub(crate) struct Inserted<T> {
    /// What became of the new entry.
    pub(crate) admission: Admission,
    /// All that is no longer in the store: evicted, replaced, or refused.
    displaced: Displaced<T>,
}

impl<T> Inserted<T> {
    /// The entries that left to make room for the one of `key`.
    pub(crate) fn evicted(&self, key: &str) -> impl Iterator<Item = (&str, &Slot<T>)> {
        let others = self.displaced.iter().filter(move |(other, _)| **other != *key);
        others.map(|(other, entry)| (&**other, entry))
    }

    /// What is no longer in the store, to be dropped one by one.
    pub(crate) fn into_items(self) -> impl Iterator<Item = Item<T>> {
        self.displaced.first.into_iter().chain(self.displaced.rest)
    }
}

/// Collects what the eviction crate lets go of while it holds a shard's lock.
#[derive(Debug)]
struct Displaced<T> {
    /// One insert mostly displaces one entry of a like size: that one costs no allocation under the lock.
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

/// Routes evicted, replaced and refused entries out of the shard's lock.
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

/// Weighs what never changes its weight.
#[derive(Clone)]
struct FixedWeight;

impl<T: HeapSize> Weighter<Key, Slot<T>> for FixedWeight {
    fn weight(&self, key: &Key, entry: &Slot<T>) -> u64 {
        entry.weight(key)
    }
}

/// Hashes keys under a seed, so that a client who chooses keys cannot know which of them collide.
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

/// The hasher of one string.
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn write_u8(&mut self, _terminator: u8) {
        // `str` ends its hash with a byte that keeps apart the strings of a tuple; a lone string needs none.
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The entries of one group, bounded by bytes.
pub(crate) struct Store<T: HeapSize> {
    cache: Cache<Key, Slot<T>, FixedWeight, Keyed, HandOut<T>>,
    capacity: u64,
    max_entry: u64,
    is_closed: AtomicBool,
}

impl<T: HeapSize> Store<T> {
    /// A store of at most `capacity_bytes`; 0 keeps nothing.
    ///
    /// `max_value_bytes` is the most that one value weighs, encoded and decoded form together; it decides how many
    /// shards there may be. `seed` keys the hash. Nothing is allocated for entries that are not there.
    pub(crate) fn new(capacity_bytes: u64, max_value_bytes: u64, seed: u64) -> Self {
        let largest = max_value_bytes.saturating_add(MAX_KEY_BYTES).saturating_add(Entry::<T>::OVERHEAD_BYTES);
        Self::with_shards(capacity_bytes, shards_for(capacity_bytes, largest), seed)
    }

    fn with_shards(capacity_bytes: u64, shards: u64, seed: u64) -> Self {
        // Rounded down here, because the eviction crate rounds each shard's part up.
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
            // Only an option that was not given is an error, and all are. This is the same store in one shard: an
            // estimate of 1 item allows no second.
            Err(_) => Cache::with(1, capacity, FixedWeight, Keyed { seed }, HandOut(PhantomData)),
        };
        let max_entry = hot_bytes(cache.shard_capacity());
        Self { cache, capacity, max_entry, is_closed: AtomicBool::new(false) }
    }

    /// The entry of `key` that may still be served at `now_ms`.
    ///
    /// An expired entry is a miss and stays until something takes its place or it is swept.
    pub(crate) fn get(&self, key: &str, now_ms: u64) -> Option<Slot<T>> {
        self.cache.get(key).filter(|entry| !entry.is_expired(now_ms))
    }

    /// The entry of `key` as it is, expired or not; for use under the caller's lock.
    ///
    /// It does not count as a use and drops nothing. The caller asks [`Entry::is_expired`] and drops what it got
    /// after its lock.
    #[must_use = "hold it until your own locks are released: dropping it may run the payload's Drop"]
    pub(crate) fn peek(&self, key: &str) -> Option<Slot<T>> {
        self.cache.peek(key)
    }

    /// Stores `entry`, which was built for `key`, in the place of an older one.
    ///
    /// When it is refused or evicted at once, the older entry is gone all the same: it is stale.
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
            // Eviction takes what was used least, and that may be what just came.
            let crowded = displaced.iter().any(|(_, entry)| Arc::as_ptr(entry) == new);
            if crowded { Admission::Crowded } else { Admission::Kept }
        };
        Inserted { admission, displaced }
    }

    /// Takes the entry of `key` out, expired or not.
    #[must_use = "hold it until your own locks are released: dropping it may run the payload's Drop"]
    pub(crate) fn remove(&self, key: &str) -> Option<Slot<T>> {
        self.cache.remove(key).map(|(_, entry)| entry)
    }

    /// Takes the entry of `key` out if it is still this very one.
    #[must_use = "hold it until your own locks are released: dropping it may run the payload's Drop"]
    pub(crate) fn remove_same(&self, key: &str, entry: &Slot<T>) -> Option<Slot<T>> {
        self.cache.remove_if(key, |current| Arc::ptr_eq(current, entry)).map(|(_, removed)| removed)
    }

    /// Takes out every entry that was there when the call began; an insert that runs meanwhile may stay.
    ///
    /// A shard's lock is held for one entry at a time, so gets go on.
    #[must_use = "hold them until your own locks are released: dropping them may run the payloads' Drop"]
    pub(crate) fn clear(&self) -> Vec<Item<T>> {
        // Not the crate's own `clear`, which drops all values under the lock.
        self.cache.drain().collect()
    }

    /// From now on nothing is stored. An insert that runs meanwhile may still be: who must know that none does takes
    /// the locks under which inserts run.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Relaxed);
    }

    /// All entries, expired ones included, one at a time: a shard's lock is held for one entry. What comes or goes
    /// meanwhile may be missed. Dropping an entry may run the payload's Drop.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Item<T>> {
        self.cache.iter()
    }

    /// The heaviest entry that is kept, in accounted bytes: key and [`Entry::OVERHEAD_BYTES`] included.
    pub(crate) fn max_entry_bytes(&self) -> u64 {
        self.max_entry
    }

    /// The accounted bytes of all entries, expired ones included; never above [`capacity`](Self::capacity).
    ///
    /// Takes each shard's lock in turn: for statistics, not for each get.
    pub(crate) fn bytes(&self) -> u64 {
        self.cache.weight()
    }

    /// The number of entries, expired ones included; takes each shard's lock in turn.
    pub(crate) fn len(&self) -> usize {
        self.cache.len()
    }

    /// The budget in bytes: what was asked for, less than 64 bytes of rounding taken off.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }
}

/// The most shards, a power of two, of which each still holds an entry of `largest` accounted bytes.
fn shards_for(capacity: u64, largest: u64) -> u64 {
    let mut shards = MAX_SHARDS;
    while shards > 1 && (capacity / shards < MIN_SHARD_BYTES || hot_bytes(capacity / shards) < largest) {
        shards /= 2;
    }
    shards
}

/// The part of a shard that one entry may fill; the eviction crate computes it with these very operations.
fn hot_bytes(shard_bytes: u64) -> u64 {
    // Not to 0: a shard of one byte admits one byte.
    ((shard_bytes as f64 * HOT_SHARE) as u64).clamp(shard_bytes.min(1), shard_bytes)
}

#[cfg(test)]
mod tests;
