//! Queue: the order of the entries of one kind in a shard, as a list through the places of the shard.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::cache::store::{Key, Slot};

/// Maximum number of uses that are counted: a proven entry is passed over so often before it leaves.
const MAX_USES: u8 = 3;

/// Index that is no place.
const NONE: u32 = u32::MAX;

/// Kind of an entry, which decides the queue that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Owned entry that has not shown yet that its key returns.
    Newcomer,
    /// Owned entry with a key that has returned.
    Proven,
    /// Replica.
    Replica,
}

/// Entry in its place, with its neighbours in its queue. With the key of up to 24 bytes a place takes 48 bytes.
pub(super) struct Place<T> {
    pub(super) key: Key,
    pub(super) entry: Slot<T>,
    /// Half of the hash of the key, by which the table of the shard and the remembered keys find it.
    pub(super) hash: u32,
    older: u32,
    newer: u32,
    pub(super) kind: Kind,
    /// Whether the entry was used before it was passed over.
    pub(super) was_used: bool,
    /// Uses since the entry came or was passed over.
    uses: AtomicU8,
}

impl<T> Place<T> {
    pub(super) fn new(key: Key, entry: Slot<T>, hash: u32, kind: Kind) -> Self {
        Self { key, entry, hash, older: NONE, newer: NONE, kind, was_used: false, uses: AtomicU8::new(0) }
    }

    /// Counts a use. Two uses at the same moment may be counted as one.
    pub(super) fn touch(&self) {
        let uses = self.uses.load(Relaxed);
        // An entry that all threads ask for is not written by each of them at each hit.
        if uses < MAX_USES {
            self.uses.store(uses + 1, Relaxed);
        }
    }

    /// Takes one use from a proven entry or a replica. Returns whether there was one.
    pub(super) fn spend_use(&mut self) -> bool {
        let uses = self.uses.get_mut();
        let had_use = *uses > 0;
        *uses = uses.saturating_sub(1);
        had_use
    }

    /// Takes all uses from a newcomer. Returns whether there were any.
    pub(super) fn spend_uses(&mut self) -> bool {
        let had_use = std::mem::take(self.uses.get_mut()) > 0;
        self.was_used |= had_use;
        had_use
    }
}

/// Places of a shard. A free one is used again before the number of places grows.
pub(super) struct Places<T> {
    places: Vec<Option<Place<T>>>,
    free: Vec<u32>,
}

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Places<T> {
    pub(super) fn get(&self, at: u32) -> Option<&Place<T>> {
        self.places.get(at as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, at: u32) -> Option<&mut Place<T>> {
        self.places.get_mut(at as usize)?.as_mut()
    }

    /// Puts an entry into a place and returns the index. The memory of 2³² entries is beyond any machine.
    fn put(&mut self, place: Place<T>) -> u32 {
        if let Some(at) = self.free.pop()
            && let Some(free) = self.places.get_mut(at as usize)
        {
            *free = Some(place);
            return at;
        }
        self.places.push(Some(place));
        (self.places.len() - 1) as u32
    }

    fn take(&mut self, at: u32) -> Option<Place<T>> {
        let place = self.places.get_mut(at as usize)?.take()?;
        self.free.push(at);
        Some(place)
    }

    /// Returns the number of places, free ones included.
    pub(super) fn count(&self) -> u32 {
        self.places.len() as u32
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.places.capacity() * size_of::<Option<Place<T>>>() + self.free.capacity() * size_of::<u32>()
    }
}

/// Order of the entries of one kind, and the sum of their weights.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) oldest: Option<u32>,
    newest: Option<u32>,
    pub(super) len: usize,
    pub(super) bytes: u64,
}

impl Queue {
    pub(super) const fn new() -> Self {
        Self { oldest: None, newest: None, len: 0, bytes: 0 }
    }

    /// Adds an entry of this weight as the newest one, and returns its place.
    pub(super) fn add<T>(&mut self, places: &mut Places<T>, place: Place<T>, weight: u64) -> u32 {
        let at = places.put(place);
        self.link(places, at);
        self.len += 1;
        self.bytes += weight;
        at
    }

    /// Removes an entry of this weight.
    pub(super) fn remove<T>(&mut self, places: &mut Places<T>, at: u32, weight: u64) -> Option<Place<T>> {
        self.unlink(places, at);
        self.len -= 1;
        self.bytes -= weight;
        places.take(at)
    }

    /// Moves an entry behind all others.
    pub(super) fn renew<T>(&mut self, places: &mut Places<T>, at: u32) {
        self.unlink(places, at);
        self.link(places, at);
    }

    /// Moves an entry of this weight to the end of another queue.
    pub(super) fn pass<T>(&mut self, other: &mut Self, places: &mut Places<T>, at: u32, weight: u64) {
        self.unlink(places, at);
        self.len -= 1;
        self.bytes -= weight;
        other.link(places, at);
        other.len += 1;
        other.bytes += weight;
    }

    fn link<T>(&mut self, places: &mut Places<T>, at: u32) {
        let older = self.newest.replace(at);
        match older.and_then(|older| places.get_mut(older)) {
            Some(older) => older.newer = at,
            None => self.oldest = Some(at),
        }
        if let Some(place) = places.get_mut(at) {
            (place.older, place.newer) = (older.unwrap_or(NONE), NONE);
        }
    }

    fn unlink<T>(&mut self, places: &mut Places<T>, at: u32) {
        let Some(&Place { older, newer, .. }) = places.get(at) else { return };
        match places.get_mut(older) {
            Some(place) => place.newer = newer,
            None => self.oldest = Some(newer).filter(|newer| *newer != NONE),
        }
        match places.get_mut(newer) {
            Some(place) => place.older = older,
            None => self.newest = Some(older).filter(|older| *older != NONE),
        }
    }
}
