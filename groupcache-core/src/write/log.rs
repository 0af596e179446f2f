//! Log of one writer as this node has heard it: a position, the entries that can be passed on, and the gaps.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

/// Write of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) number: u64,
    pub(crate) group: Arc<str>,
    /// Key of the write; `None` = all keys of the group.
    pub(crate) key: Option<Arc<str>>,
    /// Time of the write on the clock of this node.
    pub(crate) written_ms: u64,
}

/// Log of one writer.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Number up to which every entry is applied.
    position: u64,
    /// Number at which this node began without having received the entries up to it.
    base: u64,
    /// Numbers of applied entries after a gap.
    ahead: BTreeSet<u64>,
    /// Applied entries, in the order of their numbers. An entry of all keys stands for those that fell off.
    entries: VecDeque<Entry>,
    /// Last number of an entry that this node has heard of, which may not be applied yet.
    pub(super) announced: u64,
    /// Change of all logs at which the position moved last.
    pub(super) changed: u64,
    /// Time at which an entry was heard last.
    pub(super) heard_ms: u64,
}

impl Log {
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Returns whether the entry of a number is applied.
    pub(crate) fn has(&self, number: u64) -> bool {
        number <= self.position || self.ahead.contains(&number)
    }

    /// Returns whether an entry need not be applied. An entry of all keys may stand for others that fell off, so that it is
    /// applied unless the position has passed it.
    pub(crate) fn is_applied(&self, entry: &Entry) -> bool {
        if entry.key.is_some() { self.has(entry.number) } else { entry.number <= self.position }
    }

    /// Returns whether an entry is applied after an entry that is not.
    pub(crate) fn has_gap(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Records an applied entry. The position waits for the entries of a gap. Returns whether it moved.
    pub(crate) fn record(&mut self, entry: Entry) -> bool {
        let number = entry.number;
        if self.is_applied(&entry) {
            return false;
        }
        self.insert(entry);
        self.ahead.insert(number);
        self.close_gaps()
    }

    /// Keeps an entry that others may ask for. An entry of all keys takes the place of earlier ones of its group.
    fn insert(&mut self, entry: Entry) {
        if entry.key.is_none() {
            let is_covered =
                |known: &Entry| known.number <= entry.number && known.group == entry.group && known.key.is_none();
            self.entries.retain(|known| !is_covered(known));
        }
        let at = self.entries.partition_point(|known| known.number < entry.number);
        if self.entries.get(at).is_none_or(|known| known.number != entry.number || known.group != entry.group) {
            self.entries.insert(at, entry);
        }
    }

    fn close_gaps(&mut self) -> bool {
        let before = self.position;
        while let Some(next) = self.position.checked_add(1).filter(|next| self.ahead.remove(next)) {
            self.position = next;
        }
        self.position != before
    }

    /// Records that every entry up to `number` is applied. Returns whether the position moved.
    pub(crate) fn reach(&mut self, number: u64) -> bool {
        if number <= self.position {
            return false;
        }
        self.position = number;
        self.ahead = self.ahead.split_off(&number);
        self.ahead.remove(&number);
        self.close_gaps();
        true
    }

    /// Begins at `number` without the entries up to it, which count as an entry of all keys of all groups. Returns
    /// whether the position moved.
    pub(crate) fn begin_at(&mut self, number: u64) -> bool {
        if number <= self.position {
            return false;
        }
        self.base = number;
        self.entries.retain(|entry| entry.number > number);
        self.reach(number)
    }

    /// Adds entries from before the base, which another node has. `after` is the number before the first of them.
    pub(crate) fn fill(&mut self, after: u64, entries: Vec<Entry>) {
        if after >= self.base {
            return;
        }
        let base = std::mem::replace(&mut self.base, after);
        entries.into_iter().filter(|entry| entry.number <= base).for_each(|entry| self.insert(entry));
    }

    /// Returns the entries after `number`, up to the position, oldest first.
    pub(crate) fn after(&self, number: u64) -> impl Iterator<Item = &Entry> {
        let first = self.entries.partition_point(|entry| entry.number <= number);
        self.entries.range(first..).take_while(|entry| entry.number <= self.position)
    }

    /// Takes the oldest entry of a single key off, and keeps an entry of all keys of its group in its place. Returns the
    /// entry.
    pub(crate) fn forget_first(&mut self) -> Option<Entry> {
        // Only entries of all keys are before it, at most one of each group.
        let first = self.entries.iter().position(|entry| entry.key.is_some())?;
        let forgotten = self.entries.remove(first)?;
        let all = Entry { key: None, ..forgotten.clone() };
        if let Some(earlier) = self.entries.iter().take(first).position(|entry| entry.group == all.group) {
            self.entries.remove(earlier);
        }
        let at = self.entries.partition_point(|known| known.number < all.number);
        self.entries.insert(at, all);
        Some(forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> Entry {
        Entry { number, group: "users".into(), key: Some(format!("key-{number}").into()), written_ms: number }
    }

    fn numbers(log: &Log, after: u64) -> Vec<(u64, bool)> {
        log.after(after).map(|entry| (entry.number, entry.key.is_some())).collect()
    }

    /// Checks that the position waits for the entries of a gap, and that each entry counts once.
    #[test]
    fn position_waits_for_entries_of_a_gap() {
        let mut log = Log::default();
        assert!(log.record(entry(1)) && !log.record(entry(3)) && !log.record(entry(3)));
        assert_eq!((log.position(), log.has(2), log.has(3), log.has_gap()), (1, false, true, true));
        assert_eq!(numbers(&log, 0), [(1, true)], "an entry after a gap is not passed on");
        assert!(log.record(entry(2)) && !log.record(entry(1)));
        assert_eq!((log.position(), log.has_gap()), (3, false));
        assert_eq!(numbers(&log, 1), [(2, true), (3, true)]);
    }

    /// Checks that a log which begins at a number has no entries before it until another node fills them in.
    #[test]
    fn base_lacks_entries_until_they_are_filled_in() {
        let mut log = Log::default();
        log.record(entry(7));
        assert!(log.begin_at(5) && !log.begin_at(4));
        assert_eq!((log.position(), log.base(), log.has(6), log.has(7)), (5, 5, false, true));
        log.record(entry(6));
        assert_eq!((log.position(), numbers(&log, 0)), (7, vec![(6, true), (7, true)]));
        log.fill(2, (3..=6).map(entry).collect());
        assert_eq!((log.base(), numbers(&log, 2).len()), (2, 5));
        log.fill(3, vec![entry(4)]);
        assert_eq!(log.base(), 2, "a later part adds nothing");
    }

    /// Checks that entries which fall off become one entry of all keys of their group, at the last of their numbers.
    #[test]
    fn forgotten_entries_become_all_of_their_group() {
        let mut log = Log::default();
        assert!((1..=4).all(|number| log.record(entry(number))));
        log.record(Entry { group: "orders".into(), ..entry(5) });
        assert_eq!(log.forget_first().map(|entry| entry.number), Some(1));
        assert_eq!(log.forget_first().map(|entry| entry.number), Some(2));
        assert_eq!(numbers(&log, 0), [(2, false), (3, true), (4, true), (5, true)]);
        (0..3).for_each(|_| assert!(log.forget_first().is_some()));
        assert_eq!((numbers(&log, 0), log.forget_first()), (vec![(4, false), (5, false)], None));
        assert_eq!(log.position(), 5);
    }
}
