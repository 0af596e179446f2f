//! Store: entries bounded by bytes, which expire, and are evicted by use so that the budget is never exceeded.
//!
//! The store knows no groups, flights or clocks: the caller passes the time, the payload reports its heap bytes, and the
//! caller takes the locks that its own invariants need. [`shard`] has the policy of eviction.
//!
//! **The budget is shared.** A store has two parts, each with a handle of its own: owned entries and replicas. A replica
//! takes room that an owned entry may use as well, up to a limit of all replicas together.
//!
//! **No user code runs under a lock.** Entries that leave the store (evicted, replaced, refused, removed) are handed to
//! the caller, which drops them after releasing its own locks, because a payload's `Drop` is user code.

mod inserted;
mod queue;
mod remembered;
mod shard;

use std::sync::{
    Arc as StdArc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use compact_str::CompactString;
use triomphe::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use self::inserted::Displaced;
pub(crate) use self::inserted::{Admission, Inserted};
pub(crate) use crate::cache::entry::{Entry, HeapSize, Times};
use crate::{
    cache::store::{
        queue::Kind,
        shard::{Shard, Step},
    },
    runtime::sync::{RwLock, atomic::AtomicU64},
};

/// Longest key of the API. The shard of the largest value must hold its key too.
const MAX_KEY_BYTES: u64 = 1024;

/// Maximum number of shards. More locks do not help: 64 shards gave 1.59 times one thread's hits on two cores, 512
/// shards 1.66 times. The number is a constant, because a number that depends on the cores would make two runs of one
/// simulation differ.
const MAX_SHARDS: u64 = 64;

/// Minimum bytes of a shard. A few large entries would fill a smaller shard and leave its neighbours empty. A small
/// budget is therefore one shard, in which one entry may take nearly all of the budget.
const MIN_SHARD_BYTES: u64 = 2 << 20;

/// Share of a shard that one entry may take, so that a small entry stays beside the largest one.
const LARGEST_SHARE: f64 = 0.97;

/// Maximum capacity: far above any memory, and far below the overflow of sums of weights.
const MAX_CAPACITY_BYTES: u64 = 1 << 62;

/// Shared entry: an `Arc` without weak references, because a second counter would cost each entry 16 bytes.
pub(crate) type Slot<T> = Arc<Entry<T>>;

/// Key and entry, removed from the store or still in it.
pub(crate) type Item<T> = (Key, Slot<T>);

/// Key in the store; a short key is kept in its slot.
pub(crate) type Key = CompactString;

/// Knowledge of a store about a key without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trace {
    /// An entry that was ended, because it may lack a write.
    Capped,
    /// An entry at the end of its time.
    Expired,
    /// No entry, and one was evicted lately.
    Evicted,
    /// No entry, or one that came a moment ago.
    Absent,
}

/// Part of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Entries of keys that this node owns or owned, or loaded in the place of their owner.
    Owned,
    /// Replicas of values that other nodes own.
    Replicas,
}

impl Part {
    fn of(kind: Kind) -> Self {
        if kind == Kind::Replica { Self::Replicas } else { Self::Owned }
    }
}

/// Entries that have left a store together.
#[must_use = "hold them until your own locks are released: dropping them may run the payloads' Drop"]
pub(crate) struct Cleared<T>(Vec<Shard<T>>);

impl<T: HeapSize> Cleared<T> {
    /// Returns the number of entries.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|shard| shard.len(Part::Owned) + shard.len(Part::Replicas)).sum()
    }
}

/// Entries of one group, bounded by bytes: one of the two parts of a store.
pub(crate) struct Store<T: HeapSize> {
    /// Shards of both parts; their number is a power of two.
    shards: StdArc<[RwLock<Shard<T>>]>,
    part: Part,
    capacity: u64,
    max_entry: u64,
    /// Maximum bytes of all replicas.
    replicas_limit: u64,
    /// Bytes of all replicas, and of those that are about to be stored.
    replicas_bytes: StdArc<AtomicU64>,
    /// Seed of the hash, so that a client that chooses keys cannot know which of them collide.
    seed: u64,
    is_closed: AtomicBool,
}

impl<T: HeapSize> Store<T> {
    /// Creates a store of at most `capacity_bytes`, and returns its owned part. A store of 0 bytes keeps nothing.
    ///
    /// `max_value_bytes` is the maximum weight of one value, encoded and decoded form together, which bounds the number
    /// of shards. `seed` keys the hash. An empty store allocates nothing for entries.
    pub(crate) fn new(capacity_bytes: u64, max_value_bytes: u64, seed: u64) -> Self {
        let largest = max_value_bytes.saturating_add(MAX_KEY_BYTES).saturating_add(Entry::<T>::OVERHEAD_BYTES);
        Self::with_shards(capacity_bytes, shards_for(capacity_bytes, largest), seed)
    }

    fn with_shards(capacity_bytes: u64, shards: u64, seed: u64) -> Self {
        let shard_bytes = capacity_bytes.min(MAX_CAPACITY_BYTES) / shards;
        Self {
            shards: (0..shards).map(|_| RwLock::new(Shard::new(shard_bytes))).collect(),
            part: Part::Owned,
            capacity: shard_bytes * shards,
            max_entry: largest_bytes(shard_bytes),
            replicas_limit: 0,
            replicas_bytes: StdArc::default(),
            seed,
            is_closed: AtomicBool::new(false),
        }
    }

    /// Returns the part of the replicas, which may take up to `limit_bytes` of the budget together.
    pub(crate) fn replicas(&self, limit_bytes: u64) -> Self {
        Self {
            shards: StdArc::clone(&self.shards),
            part: Part::Replicas,
            capacity: self.capacity,
            max_entry: self.max_entry.min(limit_bytes),
            replicas_limit: limit_bytes,
            replicas_bytes: StdArc::clone(&self.replicas_bytes),
            seed: self.seed,
            is_closed: AtomicBool::new(false),
        }
    }

    /// Returns the index of the shard of a key, and its hash in that shard.
    fn place(&self, key: &str) -> (usize, u32) {
        let hash = xxh3_64_with_seed(key.as_bytes(), self.seed);
        ((hash >> 32) as usize & (self.shards.len() - 1), hash as u32)
    }

    fn shard(&self, index: usize) -> &RwLock<Shard<T>> {
        #[expect(clippy::indexing_slicing, reason = "each index is below the number of shards")]
        &self.shards[index]
    }

    /// Returns the entry of `key` if it may still be served at `now_ms`, and counts a use.
    ///
    /// An expired entry is a miss and stays until it is replaced, evicted or swept.
    pub(crate) fn get(&self, key: &str, now_ms: u64) -> Option<Slot<T>> {
        let (index, hash) = self.place(key);
        let entry = self.shard(index).read().get(hash, key, self.part).cloned();
        entry.filter(|entry| !entry.is_expired(now_ms))
    }

    /// Returns the entry of `key`, expired or not, for use under the caller's lock.
    ///
    /// The call counts no use and drops nothing. The caller checks [`Entry::is_expired`], and drops the entry after its
    /// lock is released.
    #[must_use = "hold it until your own locks are released: dropping it may run the payload's Drop"]
    pub(crate) fn peek(&self, key: &str) -> Option<Slot<T>> {
        let (index, hash) = self.place(key);
        self.shard(index).read().peek(hash, key, self.part).cloned()
    }

    /// Returns what memory knows of a key that it did not answer for. Returns no entry, because the last reference to one
    /// must not be dropped by each caller.
    pub(crate) fn trace(&self, key: &str, now_ms: u64) -> Trace {
        let (index, hash) = self.place(key);
        let shard = self.shard(index).read();
        match shard.peek(hash, key, self.part) {
            Some(entry) if entry.is_capped() => Trace::Capped,
            Some(entry) if entry.is_expired(now_ms) => Trace::Expired,
            None if shard.remembers(hash) => Trace::Evicted,
            Some(_) | None => Trace::Absent,
        }
    }

    /// Stores `entry`, which was built for `key`, in the place of an older one.
    ///
    /// The older entry is removed even if the new one is too large or evicted at once, because it is stale. A closed
    /// store refuses the new entry and leaves the older one.
    pub(crate) fn insert(&self, key: &str, entry: Slot<T>) -> Inserted<T> {
        let mut displaced = Displaced::default();
        let weight = entry.weight(key);
        let refusal = if self.is_closed.load(Relaxed) {
            Some(Admission::Closed)
        } else if weight > self.max_entry {
            self.displace(key, &mut displaced);
            Some(Admission::TooLarge)
        } else if self.part == Part::Replicas && !self.reserve(key, weight, &mut displaced) {
            Some(Admission::Crowded)
        } else {
            None
        };
        if let Some(admission) = refusal {
            displaced.push(self.part, key.into(), entry);
            return Inserted::new(admission, self.part, displaced);
        }
        let new = Arc::as_ptr(&entry);
        let (index, hash) = self.place(key);
        let own_key = Key::from(key); // a long one is allocated outside of the lock
        let mut shard = self.shard(index).write();
        let replicas = shard.bytes(Part::Replicas);
        shard.insert(hash, own_key, entry, self.part, &mut displaced);
        let reserved = if self.part == Part::Replicas { weight } else { 0 };
        let unused = replicas + reserved - shard.bytes(Part::Replicas);
        if unused > 0 {
            self.replicas_bytes.fetch_sub(unused, Relaxed); // one counter of all shards
        }
        drop(shard);
        // Eviction removes the least used entry, which may be the new one.
        let crowded = displaced.iter().any(|left| Arc::as_ptr(&left.entry) == new);
        let admission = if crowded { Admission::Crowded } else { Admission::Kept };
        Inserted::new(admission, self.part, displaced)
    }

    /// Reserves bytes for a replica. Returns whether the limit of the replicas has room for it, perhaps after others
    /// have left: those of its shard first, and then those of the next ones.
    fn reserve(&self, key: &str, weight: u64, displaced: &mut Displaced<T>) -> bool {
        self.displace(key, displaced);
        let within_limit = |bytes: u64| bytes.checked_add(weight).filter(|bytes| *bytes <= self.replicas_limit);
        let (index, _) = self.place(key);
        for step in 0..self.shards.len() {
            let shard = self.shard((index + step) & (self.shards.len() - 1));
            loop {
                if self.replicas_bytes.fetch_update(Relaxed, Relaxed, within_limit).is_ok() {
                    return true;
                }
                let mut shard = shard.write();
                let before = shard.bytes(Part::Replicas);
                let has_left = shard.evict_replica(displaced);
                self.replicas_bytes.fetch_sub(before - shard.bytes(Part::Replicas), Relaxed);
                if !has_left {
                    break;
                }
            }
        }
        false
    }

    fn displace(&self, key: &str, displaced: &mut Displaced<T>) {
        if let Some((key, older)) = self.remove_if(key, |_| true) {
            displaced.push(self.part, key, older);
        }
    }

    fn remove_if(&self, key: &str, is_meant: impl FnOnce(&Slot<T>) -> bool) -> Option<Item<T>> {
        let (index, hash) = self.place(key);
        let mut shard = self.shard(index).write();
        let item = shard.remove_if(hash, key, self.part, is_meant);
        self.release(item.as_ref());
        item
    }

    /// Gives the bytes of a removed entry back to the limit of the replicas.
    fn release(&self, item: Option<&Item<T>>) {
        if self.part == Part::Replicas
            && let Some((key, entry)) = item
        {
            self.replicas_bytes.fetch_sub(entry.weight(key), Relaxed);
        }
    }

    /// Removes the entry of `key`, expired or not, and returns it.
    #[must_use = "hold it until your own locks are released: dropping it may run the payload's Drop"]
    pub(crate) fn remove(&self, key: &str) -> Option<Slot<T>> {
        self.remove_if(key, |_| true).map(|(_, entry)| entry)
    }

    /// Removes the entry of `key` if it is still this one, and returns it.
    #[must_use = "hold it until your own locks are released: dropping it may run the payload's Drop"]
    pub(crate) fn remove_same(&self, key: &str, entry: &Slot<T>) -> Option<Slot<T>> {
        self.remove_if(key, |current| Arc::ptr_eq(current, entry)).map(|(_, removed)| removed)
    }

    /// Removes every entry of both parts that was there when the call began, and returns them. The entry of a concurrent
    /// insert may stay.
    ///
    /// Each shard is exchanged for an empty one, so that the call takes the same time for any number of entries.
    #[must_use = "hold them until your own locks are released: dropping them may run the payloads' Drop"]
    pub(crate) fn clear(&self) -> Cleared<T> {
        let clear = |shard: &RwLock<Shard<T>>| {
            let mut shard = shard.write();
            let cleared = shard.clear();
            self.replicas_bytes.fetch_sub(cleared.bytes(Part::Replicas), Relaxed);
            cleared
        };
        Cleared(self.shards.iter().map(clear).collect())
    }

    /// Returns all entries of this part, expired ones included. The lock of a shard is held for one entry at a time, so
    /// entries that are inserted or removed meanwhile may be missed. Dropping an entry may run the payload's `Drop`.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Item<T>> {
        self.steps().flatten()
    }

    /// Returns all entries of this part as [`iter`](Self::iter) does, and `None` for each step without an entry, so that
    /// other tasks may run.
    pub(crate) fn steps(&self) -> impl Iterator<Item = Option<Item<T>>> {
        let (mut index, mut from) = (0, 0);
        std::iter::from_fn(move || {
            while let Some(shard) = self.shards.get(index) {
                let step = shard.read().entry_from(from, self.part);
                match step {
                    Step::Found(next, item) => {
                        from = next;
                        return Some(Some(item));
                    }
                    Step::Nothing(next) => {
                        from = next;
                        return Some(None);
                    }
                    Step::End => (index, from) = (index + 1, 0),
                }
            }
            None
        })
    }

    /// Stops storing: inserts into this part are refused from now on. A concurrent insert may still succeed. A caller
    /// that must exclude one takes the locks under which inserts run.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Relaxed);
    }

    /// Returns the weight of the heaviest entry that is kept, key and [`Entry::OVERHEAD_BYTES`] included.
    pub(crate) fn max_entry_bytes(&self) -> u64 {
        self.max_entry
    }

    /// Returns the accounted bytes of the entries of this part, expired ones included.
    ///
    /// Takes the lock of each shard in turn, which suits statistics and not each get.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.read().bytes(self.part)).sum()
    }

    /// Returns the accounted bytes of both parts; never above [`capacity`](Self::capacity), because the parts of a shard
    /// are read together.
    pub(crate) fn bytes_of_parts(&self) -> u64 {
        let both = |shard: &RwLock<Shard<T>>| {
            let shard = shard.read();
            shard.bytes(Part::Owned) + shard.bytes(Part::Replicas)
        };
        self.shards.iter().map(both).sum()
    }

    /// Returns the number of entries of this part, expired ones included. Takes the lock of each shard in turn.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len(self.part)).sum()
    }

    /// Returns the budget of both parts in bytes: the requested capacity, rounded down by less than 64 bytes. The
    /// maximum is 2⁶² bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    #[cfg(test)]
    fn memory(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().memory()).sum()
    }
}

/// Returns the largest number of shards, a power of two, with which each shard still holds an entry of `largest`
/// accounted bytes and has [`MIN_SHARD_BYTES`], or 1.
fn shards_for(capacity: u64, largest: u64) -> u64 {
    let mut shards = MAX_SHARDS;
    while shards > 1 && (capacity / shards < MIN_SHARD_BYTES || largest_bytes(capacity / shards) < largest) {
        shards /= 2;
    }
    shards
}

/// Returns the bytes of a shard that one entry may fill.
fn largest_bytes(shard_bytes: u64) -> u64 {
    // Not rounded to 0, because a shard of one byte admits one byte.
    ((shard_bytes as f64 * LARGEST_SHARE) as u64).clamp(shard_bytes.min(1), shard_bytes)
}

#[cfg(test)]
mod tests;
