//! Shard: a part of the store under one lock, and the policy that decides which of its entries leave for others.
//!
//! Owned entries are in one of two queues. A key that was not there lately comes in as a **newcomer**. A key that
//! returns soon after it was evicted from there comes in as **proven**. The oldest newcomer leaves while the newcomers
//! have more than their share, and the oldest proven entry otherwise. An entry that was used since it came, or since it
//! was passed over, is passed over instead.
//!
//! Two things follow from the keys that return. The share of the newcomers grows with each key that was evicted as a
//! newcomer, and shrinks with each that was evicted as a proven entry. A newcomer with a use becomes proven without an
//! eviction, if more keys return that were evicted as used newcomers than as proven entries.
//!
//! An eviction passes over a bounded number of entries, and mostly over none.

use hashbrown::HashTable;

use crate::cache::store::{
    Displaced, HeapSize, Item, Key, Part, Slot,
    queue::{Kind, Place, Places, Queue},
    remembered::{Left, Remembered},
};

/// Least share of the newcomers, as a divisor of the budget: one part in 20, with which the share begins.
///
/// Measured with the traces of `make bench-hit-ratio`, as all numbers here. A larger part loses on loops, a smaller one
/// on recent keys.
const MIN_NEWCOMERS: u64 = 20;

/// Largest share of the newcomers, as a divisor of the budget.
const MAX_NEWCOMERS: u64 = 2;

/// Divisor of the weight by which the share of the newcomers grows: half as much as it shrinks by. With equal steps
/// the share of the newcomers reaches its maximum where it does harm.
const GROWTH: u64 = 2;

/// Divisor of the number of entries that bounds the lead of used newcomers over proven entries.
const LEAD: usize = 5;

/// Maximum number of places that one call passes while it looks for an entry, so that the lock is held briefly.
const PASSED_AT_ONCE: u32 = 1024;

/// Maximum number of used entries that one eviction passes over, so that the lock is held for some tens of microseconds.
/// Beyond it a used entry leaves.
const PASSED_BY_EVICTION: u32 = 256;

/// Result of a step over the places of a shard.
pub(super) enum Step<I> {
    /// The item, and the place at which the next step begins.
    Found(u32, I),
    /// Nothing yet; the next step begins at this place.
    Nothing(u32),
    /// No place is left.
    End,
}

/// Entries of a shard.
pub(super) struct Shard<T> {
    /// Places of the entries, by key and part.
    table: HashTable<u32>,
    places: Places<T>,
    newcomers: Queue,
    proven: Queue,
    replicas: Queue,
    remembered: Remembered,
    capacity: u64,
    /// Bytes from which on newcomers leave before proven entries.
    newcomers_target: u64,
    /// Number of used newcomers that returned, less that of proven entries.
    lead: i64,
    /// Whether no owned entry was evicted since the shard had none.
    is_filling: bool,
}

/// Returns the hash of a table for half of a hash. The table takes the place from the low bits and a tag from the high
/// ones.
pub(super) fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

impl<T: HeapSize> Shard<T> {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            table: HashTable::new(),
            places: Places::default(),
            newcomers: Queue::new(),
            proven: Queue::new(),
            replicas: Queue::new(),
            remembered: Remembered::default(),
            capacity,
            newcomers_target: capacity / MIN_NEWCOMERS,
            lead: 0,
            is_filling: true,
        }
    }

    fn find(&self, hash: u32, key: &str, part: Part) -> Option<u32> {
        let is_key =
            |at: &u32| self.places.get(*at).is_some_and(|place| Part::of(place.kind) == part && place.key == key);
        self.table.find(spread(hash), is_key).copied()
    }

    /// Returns an entry and counts a use.
    pub(super) fn get(&self, hash: u32, key: &str, part: Part) -> Option<&Slot<T>> {
        let place = self.places.get(self.find(hash, key, part)?)?;
        place.touch();
        Some(&place.entry)
    }

    /// Returns an entry.
    pub(super) fn peek(&self, hash: u32, key: &str, part: Part) -> Option<&Slot<T>> {
        self.places.get(self.find(hash, key, part)?).map(|place| &place.entry)
    }

    /// Stores an entry, which weighs no more than the shard may hold, and evicts others until the shard has room.
    ///
    /// An entry that replaces an older one keeps the place of that one in the order, and may be the one that leaves.
    pub(super) fn insert(&mut self, hash: u32, key: Key, entry: Slot<T>, part: Part, displaced: &mut Displaced<T>) {
        let weight = entry.weight(&key);
        if let Some(at) = self.find(hash, &key, part)
            && let Some(place) = self.places.get_mut(at)
        {
            let (kind, older_weight) = (place.kind, place.entry.weight(&place.key));
            place.touch();
            let older = std::mem::replace(&mut place.entry, entry);
            let queue = self.queue_mut(kind);
            queue.bytes = queue.bytes - older_weight + weight;
            displaced.push(part, key, older);
            self.make_room(0, displaced);
            return;
        }
        let kind = match part {
            Part::Owned => self.kind_of_new(hash, weight),
            Part::Replicas => Kind::Replica,
        };
        // Before the insert, so that the new entry is not the one that leaves.
        self.make_room(weight, displaced);
        let Self { table, places, newcomers, proven, replicas, .. } = self;
        let queue = match kind {
            Kind::Newcomer => newcomers,
            Kind::Proven => proven,
            Kind::Replica => replicas,
        };
        let at = queue.add(places, Place::new(key, entry, hash, kind), weight);
        table.insert_unique(spread(hash), at, |at| places.get(*at).map_or(0, |place| spread(place.hash)));
    }

    /// Returns the kind of a new owned entry, and learns from a key that returns.
    fn kind_of_new(&mut self, hash: u32, weight: u64) -> Kind {
        let most = (self.len(Part::Owned) / LEAD) as i64;
        match self.remembered.take(hash) {
            Some(Left::Proven) => {
                let least = self.capacity / MIN_NEWCOMERS;
                self.newcomers_target = self.newcomers_target.saturating_sub(weight).max(least);
                self.lead = (self.lead - 1).max(-most);
                Kind::Newcomer
            }
            Some(left) => {
                let largest = self.capacity / MAX_NEWCOMERS;
                self.newcomers_target = (self.newcomers_target + weight / GROWTH).min(largest);
                if left == Left::Used {
                    self.lead = (self.lead + 1).min(most);
                }
                Kind::Proven
            }
            // The first entries fill the shard. In a loop over more keys than fit they stay, and have hits.
            None if self.is_filling && self.proven.bytes + weight <= self.capacity - self.newcomers_target => {
                Kind::Proven
            }
            None => Kind::Newcomer,
        }
    }

    /// Evicts entries until there is room for `weight` more bytes.
    fn make_room(&mut self, weight: u64, displaced: &mut Displaced<T>) {
        while self.bytes(Part::Owned) + self.replicas.bytes + weight > self.capacity {
            // The share of the replicas bounds them in all shards together. In one shard they leave first while they have
            // most of it, except for a single large one.
            let crowd = self.replicas.len > 1 && self.replicas.bytes > self.capacity / 2;
            let has_left =
                crowd && self.evict_replica(displaced) || self.evict_owned(displaced) || self.evict_replica(displaced);
            if !has_left {
                return;
            }
        }
    }

    /// Evicts one owned entry. Returns whether there was one.
    fn evict_owned(&mut self, displaced: &mut Displaced<T>) -> bool {
        let mut passed = 0;
        loop {
            let may_pass = passed < PASSED_BY_EVICTION;
            passed += 1;
            let is_newcomer = self.proven.len == 0 || self.newcomers.bytes >= self.newcomers_target.max(1);
            let oldest = if is_newcomer { self.newcomers.oldest } else { self.proven.oldest };
            let Some(at) = oldest else { return false };
            let Some(place) = self.places.get_mut(at) else { return false };
            if is_newcomer && may_pass && place.spend_uses() {
                if self.lead > 0 {
                    place.kind = Kind::Proven;
                    let weight = place.entry.weight(&place.key);
                    self.newcomers.pass(&mut self.proven, &mut self.places, at, weight);
                } else {
                    self.newcomers.renew(&mut self.places, at);
                }
            } else if !is_newcomer && may_pass && place.spend_use() {
                self.proven.renew(&mut self.places, at);
            } else {
                let _ = is_newcomer && place.spend_uses(); // an entry that cannot be passed over
                let (hash, was_used) = (place.hash, place.was_used);
                let len = self.len(Part::Owned);
                match (is_newcomer, was_used) {
                    (true, false) => self.remembered.add(hash, Left::Unused, len - len / 4),
                    (true, true) => self.remembered.add(hash, Left::Used, len - len / 4),
                    (false, _) => self.remembered.add(hash, Left::Proven, len - len / 2),
                }
                self.evict_at(at, displaced);
                self.is_filling = self.len(Part::Owned) == 0;
                return true;
            }
        }
    }

    /// Evicts one replica. Returns whether there was one.
    pub(super) fn evict_replica(&mut self, displaced: &mut Displaced<T>) -> bool {
        for passed in 0.. {
            let Some(at) = self.replicas.oldest else { return false };
            let Some(place) = self.places.get_mut(at) else { return false };
            if passed == PASSED_BY_EVICTION || !place.spend_use() {
                self.evict_at(at, displaced);
                return true;
            }
            self.replicas.renew(&mut self.places, at);
        }
        false
    }

    fn evict_at(&mut self, at: u32, displaced: &mut Displaced<T>) {
        let part = self.places.get(at).map_or(Part::Owned, |place| Part::of(place.kind));
        if let Some((key, entry)) = self.remove_at(at) {
            displaced.push(part, key, entry);
        }
    }

    fn remove_at(&mut self, at: u32) -> Option<Item<T>> {
        let place = self.places.get(at)?;
        let (hash, kind, weight) = (place.hash, place.kind, place.entry.weight(&place.key));
        if let Ok(found) = self.table.find_entry(spread(hash), |there| *there == at) {
            found.remove();
        }
        let Self { places, newcomers, proven, replicas, .. } = self;
        let queue = match kind {
            Kind::Newcomer => newcomers,
            Kind::Proven => proven,
            Kind::Replica => replicas,
        };
        let place = queue.remove(places, at, weight)?;
        self.is_filling |= self.len(Part::Owned) == 0;
        Some((place.key, place.entry))
    }

    /// Removes the entry of a key if `is_meant` says so, and returns it.
    pub(super) fn remove_if(
        &mut self,
        hash: u32,
        key: &str,
        part: Part,
        is_meant: impl FnOnce(&Slot<T>) -> bool,
    ) -> Option<Item<T>> {
        let at = self.find(hash, key, part)?;
        let place = self.places.get(at)?;
        if is_meant(&place.entry) { self.remove_at(at) } else { None }
    }

    /// Returns the first entry of a part at or after a place.
    pub(super) fn entry_from(&self, from: u32, part: Part) -> Step<Item<T>> {
        if from >= self.places.count() || self.len(part) == 0 {
            return Step::End;
        }
        let end = from.saturating_add(PASSED_AT_ONCE).min(self.places.count());
        let entry = |at| self.places.get(at).filter(|place| Part::of(place.kind) == part).map(|place| (at, place));
        match (from..end).find_map(entry) {
            Some((at, place)) => Step::Found(at + 1, (place.key.clone(), Slot::clone(&place.entry))),
            None => Step::Nothing(end),
        }
    }

    /// Removes all entries, and returns them. The lessons of returning keys stay.
    pub(super) fn clear(&mut self) -> Self {
        let empty = Self {
            remembered: std::mem::take(&mut self.remembered),
            newcomers_target: self.newcomers_target,
            lead: self.lead,
            ..Self::new(self.capacity)
        };
        std::mem::replace(self, empty)
    }

    fn queue_mut(&mut self, kind: Kind) -> &mut Queue {
        match kind {
            Kind::Newcomer => &mut self.newcomers,
            Kind::Proven => &mut self.proven,
            Kind::Replica => &mut self.replicas,
        }
    }

    /// Returns whether a key was evicted lately.
    pub(super) fn remembers(&self, hash: u32) -> bool {
        self.remembered.has(hash)
    }

    /// Returns the accounted bytes of a part.
    pub(super) fn bytes(&self, part: Part) -> u64 {
        match part {
            Part::Owned => self.newcomers.bytes + self.proven.bytes,
            Part::Replicas => self.replicas.bytes,
        }
    }

    /// Returns the number of entries of a part.
    pub(super) fn len(&self, part: Part) -> usize {
        match part {
            Part::Owned => self.newcomers.len + self.proven.len,
            Part::Replicas => self.replicas.len,
        }
    }

    /// Returns the bytes from which on newcomers leave before proven entries.
    #[cfg(test)]
    pub(super) fn newcomers_target(&self) -> u64 {
        self.newcomers_target
    }

    /// Returns the bytes of the table, the places and the remembered keys.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.table.allocation_size() + self.places.memory() + self.remembered.memory()
    }
}
