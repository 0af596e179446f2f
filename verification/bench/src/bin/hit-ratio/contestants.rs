//! Contestants: other policies of eviction with room for a number of entries, and the optimum, which knows the future.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    num::NonZeroUsize,
};

use lru::LruCache;

/// A policy that is asked for one key after the other.
pub(crate) trait Contestant {
    /// Requests a key, which is kept after a miss. Returns whether it was there.
    fn request(&mut self, key: u32) -> bool;
}

/// Returns the share of requests, in percent, that found their key.
pub(crate) fn percent(keys: &[u32], mut contestant: impl Contestant) -> f64 {
    let hits = keys.iter().filter(|key| contestant.request(**key)).count();
    100.0 * hits as f64 / keys.len() as f64
}

/// The order of last use.
pub(crate) struct Lru(LruCache<u32, ()>);

impl Lru {
    /// Creates a cache with room for that number of entries.
    pub(crate) fn new(room: usize) -> Self {
        Self(LruCache::new(NonZeroUsize::new(room).unwrap_or(NonZeroUsize::MIN)))
    }
}

impl Contestant for Lru {
    fn request(&mut self, key: u32) -> bool {
        self.0.put(key, ()).is_some()
    }
}

/// The crate `quick_cache` as it comes.
pub(crate) struct QuickCache(quick_cache::unsync::Cache<u32, ()>);

impl QuickCache {
    /// Creates a cache with room for that number of entries.
    pub(crate) fn new(room: usize) -> Self {
        Self(quick_cache::unsync::Cache::new(room))
    }
}

impl Contestant for QuickCache {
    fn request(&mut self, key: u32) -> bool {
        let is_there = self.0.get(&key).is_some();
        if !is_there {
            self.0.insert(key, ());
        }
        is_there
    }
}

/// SIEVE: a queue and a hand, which passes over entries that were used.
pub(crate) struct Sieve {
    room: usize,
    /// Places of the entries in the order of their inserts, from a number that ascends.
    order: BTreeMap<u64, (u32, bool)>,
    places: BTreeMap<u32, u64>,
    next: u64,
    hand: u64,
}

impl Sieve {
    /// Creates a cache with room for that number of entries.
    pub(crate) const fn new(room: usize) -> Self {
        Self { room, order: BTreeMap::new(), places: BTreeMap::new(), next: 0, hand: 0 }
    }

    fn evict(&mut self) {
        loop {
            let from_hand = self.order.range_mut(self.hand..).next().map(|(place, entry)| (*place, entry));
            let Some((place, (key, was_used))) = from_hand else {
                self.hand = 0;
                continue;
            };
            self.hand = place + 1;
            if !std::mem::take(was_used) {
                self.places.remove(key);
                self.order.remove(&place);
                // Entries that come later are beyond the hand until it has passed the oldest ones again.
                self.hand = self.order.range(place..).next().map_or(0, |(next, _)| *next);
                return;
            }
        }
    }
}

impl Contestant for Sieve {
    fn request(&mut self, key: u32) -> bool {
        if let Some((_, was_used)) = self.places.get(&key).and_then(|place| self.order.get_mut(place)) {
            *was_used = true;
            return true;
        }
        if self.places.len() >= self.room {
            self.evict();
        }
        self.order.insert(self.next, (key, false));
        self.places.insert(key, self.next);
        self.next += 1;
        false
    }
}

/// S3-FIFO: a tenth of the room for new keys, nine tenths for keys that were used twice or returned.
pub(crate) struct S3Fifo {
    room: usize,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    ghosts: VecDeque<(u32, u64)>,
    /// Number of the newest ghost of each key.
    ghost_of: BTreeMap<u32, u64>,
    next_ghost: u64,
    uses: BTreeMap<u32, u8>,
}

impl S3Fifo {
    /// Creates a cache with room for that number of entries.
    pub(crate) const fn new(room: usize) -> Self {
        Self {
            room,
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghosts: VecDeque::new(),
            ghost_of: BTreeMap::new(),
            next_ghost: 0,
            uses: BTreeMap::new(),
        }
    }

    fn small_room(&self) -> usize {
        (self.room / 10).max(1)
    }

    fn evict_small(&mut self) {
        while let Some(key) = self.small.pop_front() {
            if self.uses.get(&key).is_some_and(|uses| *uses > 1) {
                self.uses.insert(key, 0);
                self.main.push_back(key);
                if self.main.len() > self.room - self.small_room() {
                    return self.evict_main();
                }
                continue;
            }
            self.uses.remove(&key);
            self.next_ghost += 1;
            self.ghosts.push_back((key, self.next_ghost));
            self.ghost_of.insert(key, self.next_ghost);
            while self.ghost_of.len() > self.room - self.small_room() {
                let Some((oldest, number)) = self.ghosts.pop_front() else { return };
                if self.ghost_of.get(&oldest) == Some(&number) {
                    self.ghost_of.remove(&oldest);
                }
            }
            return;
        }
    }

    fn evict_main(&mut self) {
        while let Some(key) = self.main.pop_front() {
            match self.uses.get_mut(&key) {
                Some(uses) if *uses > 0 => {
                    *uses -= 1;
                    self.main.push_back(key);
                }
                _ => {
                    self.uses.remove(&key);
                    return;
                }
            }
        }
    }
}

impl Contestant for S3Fifo {
    fn request(&mut self, key: u32) -> bool {
        if let Some(uses) = self.uses.get_mut(&key) {
            *uses = (*uses + 1).min(3);
            return true;
        }
        while self.small.len() + self.main.len() >= self.room {
            if self.small.len() >= self.small_room() { self.evict_small() } else { self.evict_main() }
        }
        let has_returned = self.ghost_of.remove(&key).is_some();
        if has_returned {
            self.main.push_back(key)
        } else {
            self.small.push_back(key)
        }
        self.uses.insert(key, 0);
        false
    }
}

/// Returns the share of requests, in percent, that the best choice of evictions answers.
pub(crate) fn optimum(keys: &[u32], room: usize) -> f64 {
    let mut next_of = BTreeMap::new();
    let mut nexts = vec![usize::MAX; keys.len()];
    for (at, key) in keys.iter().enumerate().rev() {
        if let (Some(next), Some(later)) = (nexts.get_mut(at), next_of.insert(*key, at)) {
            *next = later;
        }
    }
    let (mut kept, mut by_next, mut hits) = (BTreeMap::new(), BTreeSet::new(), 0);
    for (key, next) in keys.iter().zip(nexts) {
        if let Some(due) = kept.remove(key) {
            hits += 1;
            by_next.remove(&(due, *key));
        } else if kept.len() >= room
            && let Some((latest, other)) = by_next.pop_last()
        {
            if latest < next {
                by_next.insert((latest, other));
                continue;
            }
            kept.remove(&other);
        }
        kept.insert(*key, next);
        by_next.insert((next, *key));
    }
    100.0 * f64::from(hits) / keys.len() as f64
}
