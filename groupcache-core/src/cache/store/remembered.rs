//! Remembered keys: hashes of the keys that were evicted last, so that a key that returns soon is told from a new one.

use std::collections::VecDeque;

use hashbrown::HashTable;

use crate::cache::store::shard::spread;

/// State of an entry when it was evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Left {
    /// Newcomer that nobody had used.
    Unused = 0,
    /// Newcomer that had been used.
    Used = 1,
    /// Proven entry.
    Proven = 2,
}

/// Bits of a mark that hold the [`Left`]; the others hold a number.
const LEFT_BITS: u32 = 2;

/// Number and state of one evicted key. Eight bytes, because a shard has up to 1.25 of them per entry.
#[derive(Debug)]
struct Trace {
    hash: u32,
    mark: u32,
}

/// Hashes of one kind, oldest first.
#[derive(Debug, Default)]
struct Line {
    hashes: VecDeque<u32>,
    /// Number of the first hash.
    first: u32,
}

/// The keys that were evicted last, newcomers and proven entries apart.
///
/// Two keys of one hash are taken for one key, which costs nothing but a wrong guess.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    traces: HashTable<Trace>,
    newcomers: Line,
    proven: Line,
}

impl Remembered {
    /// Forgets a key, and returns how it left if it was remembered.
    pub(super) fn take(&mut self, hash: u32) -> Option<Left> {
        let found = self.traces.find_entry(spread(hash), |trace| trace.hash == hash).ok()?;
        let (Trace { mark, .. }, _) = found.remove();
        Some(match mark % (1 << LEFT_BITS) {
            0 => Left::Unused,
            1 => Left::Used,
            _ => Left::Proven,
        })
    }

    /// Returns whether a key is remembered.
    pub(super) fn has(&self, hash: u32) -> bool {
        self.traces.find(spread(hash), |trace| trace.hash == hash).is_some()
    }

    /// Remembers a key that left, and forgets the oldest of its kind beyond `most`.
    pub(super) fn add(&mut self, hash: u32, left: Left, most: usize) {
        self.take(hash);
        let line = self.line(left);
        let mark = mark(line.first.wrapping_add(line.hashes.len() as u32), left);
        line.hashes.push_back(hash);
        self.traces.insert_unique(spread(hash), Trace { hash, mark }, |trace| spread(trace.hash));
        while self.line(left).hashes.len() > most {
            self.forget_oldest(left);
        }
    }

    fn forget_oldest(&mut self, left: Left) {
        let line = self.line(left);
        let Some(hash) = line.hashes.pop_front() else { return };
        let number = mark(line.first, Left::Unused);
        line.first = line.first.wrapping_add(1);
        let is_proven = left == Left::Proven;
        // Another trace of the hash is younger and stays.
        let is_oldest = |trace: &Trace| {
            trace.hash == hash
                && trace.mark >> LEFT_BITS == number >> LEFT_BITS
                && (trace.mark % (1 << LEFT_BITS) == Left::Proven as u32) == is_proven
        };
        if let Ok(found) = self.traces.find_entry(spread(hash), is_oldest) {
            found.remove();
        }
    }

    fn line(&mut self, left: Left) -> &mut Line {
        if left == Left::Proven { &mut self.proven } else { &mut self.newcomers }
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.traces.allocation_size() + (self.newcomers.hashes.capacity() + self.proven.hashes.capacity()) * 4
    }
}

fn mark(number: u32, left: Left) -> u32 {
    number << LEFT_BITS | left as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembered_keys_are_the_last_of_each_kind() {
        let mut keys = Remembered::default();
        (0..10).for_each(|hash| keys.add(hash, if hash % 2 == 0 { Left::Used } else { Left::Unused }, 4));
        (10..20).for_each(|hash| keys.add(hash, Left::Proven, 2));
        let taken: Vec<_> = (0..20).map(|hash| keys.take(hash)).collect();
        let mut expected = [None; 20];
        expected[6..10].copy_from_slice(&[Some(Left::Used), Some(Left::Unused), Some(Left::Used), Some(Left::Unused)]);
        expected[18..].copy_from_slice(&[Some(Left::Proven); 2]);
        assert_eq!(taken, expected);
        assert_eq!(keys.take(9), None, "taken once");
    }

    /// Checks that the place of a key that was taken, and has left again, does not take the younger trace with it.
    #[test]
    fn key_that_left_again_is_remembered_as_of_then() {
        let mut keys = Remembered::default();
        keys.add(1, Left::Unused, 3);
        assert_eq!(keys.take(1), Some(Left::Unused));
        (2..4).for_each(|hash| keys.add(hash, Left::Unused, 3));
        keys.add(1, Left::Used, 3);
        keys.add(4, Left::Unused, 3);
        assert_eq!(
            [1, 2, 3, 4].map(|hash| keys.take(hash)),
            [Some(Left::Used), None, Some(Left::Unused), Some(Left::Unused)]
        );
    }
}
