//! Result of an insertion: the fate of the entry, and the entries that left the store for it.

use crate::cache::store::{Key, Part, Slot};

/// Fate of an entry that was passed to [`Store::insert`](super::Store::insert).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The entry is in the store.
    Kept,
    /// The entry was evicted at once, because it replaced a lighter one and every other entry was used more, or a
    /// replica found the limit of the replicas taken.
    Crowded,
    /// The entry is heavier than [`Store::max_entry_bytes`](super::Store::max_entry_bytes). An older entry of the key was removed, because it is
    /// stale.
    TooLarge,
    /// The store is closed.
    Closed,
}

/// Result of [`Store::insert`](super::Store::insert): the fate of the entry, and the entries that left.
#[derive(Debug)]
#[must_use = "hold it until your own locks are released: dropping it runs the payloads' Drop"]
pub(crate) struct Inserted<T> {
    /// Fate of the new entry.
    pub(crate) admission: Admission,
    part: Part,
    /// Entries that are not in the store any more: evicted, replaced or refused.
    pub(super) displaced: Displaced<T>,
}

impl<T> Inserted<T> {
    pub(super) fn new(admission: Admission, part: Part, displaced: Displaced<T>) -> Self {
        Self { admission, part, displaced }
    }

    /// Returns whether entries have left the store.
    pub(crate) fn has_displaced(&self) -> bool {
        self.displaced.first.is_some()
    }

    /// Returns the entries that left to make room for the entry of `key`, each with whether it was a replica.
    pub(crate) fn evicted(&self, key: &str) -> impl Iterator<Item = (&str, &Slot<T>, bool)> {
        let others = self.displaced.iter().filter(move |left| left.part != self.part || *left.key != *key);
        others.map(|left| (&*left.key, &left.entry, left.part == Part::Replicas))
    }
}

/// Entry that has left.
#[derive(Debug)]
pub(super) struct Left<T> {
    part: Part,
    pub(super) key: Key,
    pub(super) entry: Slot<T>,
}

/// Entries that left while the lock of a shard was held.
#[derive(Debug)]
pub(super) struct Displaced<T> {
    /// First entry, which costs no allocation under the lock: an insert mostly displaces one entry of similar size.
    first: Option<Left<T>>,
    rest: Vec<Left<T>>,
}

impl<T> Displaced<T> {
    pub(super) fn push(&mut self, part: Part, key: Key, entry: Slot<T>) {
        let left = Left { part, key, entry };
        match self.first {
            None => self.first = Some(left),
            Some(_) => self.rest.push(left),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Left<T>> {
        self.first.iter().chain(&self.rest)
    }
}

impl<T> Default for Displaced<T> {
    fn default() -> Self {
        Self { first: None, rest: Vec::new() }
    }
}
