//! Index of the writes that this node has heard of, by key, for the names in requests and the judgement of values.

use std::{collections::BTreeMap, sync::Arc};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{identity::Instance, protocol::message::WriteName, runtime::seed};

/// Hash of a group and a key. Two keys may have one hash.
pub(super) type KeyHash = u64;

/// Returns the hash of a key within all groups, with a seed of the process, because a client that chooses keys could
/// otherwise make all writes share one hash.
pub(super) fn key_hash(group: &str, key: &str) -> KeyHash {
    xxh3_64_with_seed(key.as_bytes(), xxh3_64_with_seed(group.as_bytes(), seed::of_process()))
}

/// Positions in logs by writer.
pub(crate) type Positions = BTreeMap<Instance, Shown>;

/// Position of another node in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) number: u64,
    pub(crate) base: u64,
}

/// Writes that are named for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// Writes of the key itself.
    Key,
    /// Writes of the key, and of all keys of its group.
    Group,
    /// Writes of the key, of all keys of its group, and the bases of logs.
    All,
}

/// Names of the writes that this node has heard of.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Writes of single keys. Two keys of one hash name the writes of each other, which does no harm.
    by_key: BTreeMap<KeyHash, Vec<WriteName>>,
    /// Writes of all keys of a group: the last number of each writer.
    by_group: BTreeMap<Arc<str>, BTreeMap<Instance, u64>>,
    /// Bases, which count as writes of all keys of all groups.
    bases: BTreeMap<Instance, u64>,
    /// Number of the changes of `by_group` and `bases`.
    pub(crate) wide_changes: u64,
}

impl Index {
    /// Adds a write of a key.
    pub(super) fn add(&mut self, hash: KeyHash, name: WriteName) {
        add(&mut self.by_key, hash, name);
    }

    /// Adds a write of all keys of a group.
    pub(super) fn add_of_group(&mut self, writer: &Instance, group: &Arc<str>, number: u64) {
        let last = self.by_group.entry(Arc::clone(group)).or_default().entry(writer.clone()).or_default();
        if *last < number {
            *last = number;
            self.wide_changes += 1;
        }
    }

    /// Adds a base.
    pub(super) fn add_base(&mut self, writer: &Instance, number: u64) {
        let base = self.bases.entry(writer.clone()).or_default();
        if *base < number {
            *base = number;
            self.wide_changes += 1;
        }
    }

    /// Returns whether this write of a key, or a later one of the same writer, is named.
    pub(super) fn has(&self, hash: KeyHash, name: &WriteName) -> bool {
        let mut known = self.by_key.get(&hash).into_iter().flatten();
        known.any(|known| known.writer == name.writer && known.number >= name.number)
    }

    /// Removes the name of a write of a key, unless a later one of the same writer is there.
    pub(super) fn remove(&mut self, hash: KeyHash, writer: &Instance, number: u64) {
        remove(&mut self.by_key, hash, writer, number);
    }

    /// Removes all names of a writer.
    pub(super) fn forget(&mut self, writer: &Instance) {
        self.bases.remove(writer);
        self.by_group.values_mut().for_each(|writers| {
            writers.remove(writer);
        });
        self.by_group.retain(|_, writers| !writers.is_empty());
        self.by_key.retain(|_, names| {
            names.retain(|name| name.writer != *writer);
            !names.is_empty()
        });
        self.wide_changes += 1;
    }

    /// Returns the names of the writes of a key that another node, with these positions, has not said that it has.
    pub(crate) fn names(&self, group: &str, key: &str, positions: &Positions, of: Named) -> Vec<WriteName> {
        let mut names: Vec<WriteName> = Vec::new();
        let mut name = |writer: &Instance, number: u64| {
            if positions.get(writer).is_some_and(|shown| shown.number >= number) {
                return;
            }
            match names.iter_mut().find(|known| known.writer == *writer) {
                Some(known) => known.number = known.number.max(number),
                None => names.push(WriteName { writer: writer.clone(), number }),
            }
        };
        for known in self.by_key.get(&key_hash(group, key)).into_iter().flatten() {
            name(&known.writer, known.number);
        }
        if of != Named::Key {
            self.by_group.get(group).into_iter().flatten().for_each(|(writer, number)| name(writer, *number));
        }
        if of == Named::All {
            self.bases.iter().for_each(|(writer, number)| name(writer, *number));
        }
        names
    }

    /// Returns whether another node with these positions has said to have every write of all keys.
    pub(crate) fn has_said_all_wide(&self, positions: &Positions) -> bool {
        let wide = self.by_group.values().flatten().chain(&self.bases);
        wide.into_iter().all(|(writer, number)| positions.get(writer).is_some_and(|shown| shown.number >= *number))
    }
}

/// Adds a name, in the place of an earlier one of the same writer.
pub(super) fn add(names: &mut BTreeMap<KeyHash, Vec<WriteName>>, hash: KeyHash, name: WriteName) {
    let names = names.entry(hash).or_default();
    match names.iter_mut().find(|known| known.writer == name.writer) {
        Some(known) => known.number = known.number.max(name.number),
        None => names.push(name),
    }
}

/// Removes a name, unless a later one of the same writer is there.
pub(super) fn remove(names: &mut BTreeMap<KeyHash, Vec<WriteName>>, hash: KeyHash, writer: &Instance, number: u64) {
    if let Some(of_key) = names.get_mut(&hash) {
        of_key.retain(|name| name.writer != *writer || name.number > number);
        if of_key.is_empty() {
            names.remove(&hash);
        }
    }
}

#[cfg(test)]
#[cfg(not(simulation))]
mod tests {
    use super::*;

    /// Checks that nobody outside of the process can compute the hash of a key.
    #[test]
    fn hash_of_a_key_has_a_seed() {
        let unseeded = xxh3_64_with_seed(b"key", xxh3_64_with_seed(b"group", 0));
        assert_eq!(key_hash("group", "key"), key_hash("group", "key"));
        assert_ne!(key_hash("group", "key"), unseeded);
        assert_ne!(key_hash("group", "key"), key_hash("other", "key"));
    }
}
