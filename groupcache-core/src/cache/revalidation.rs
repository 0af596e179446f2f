//! What makes an entry doubtful: that its key may have gone to another owner, and that this node may not have heard of a
//! write.
//!
//! Entries are not looked through when it happens: each carries the number of the last change that it was checked
//! against, and is checked again by the next hit. A hit in quiet times compares two numbers.

use std::collections::VecDeque;

use crate::runtime::sync::{
    Mutex,
    atomic::{
        AtomicU32,
        Ordering::{AcqRel, Acquire},
    },
};

/// Changes that are remembered, eight bytes each: a deploy of a thousand nodes makes four for each of them. An entry that
/// nobody has asked for through more of them is not worth keeping.
const REMEMBERED: usize = 4096;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// There is another view: keys have other owners.
    View,
    /// This node was cut off, or stood still: writes may have passed it by.
    Partitioned,
}

/// What has happened since an entry was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangesSince {
    Nothing,
    /// Too much to remember.
    TooMuch,
    /// Coarse times of the first change of either kind.
    Changes {
        first_ms: u64,
        partitioned_ms: Option<u64>,
    },
}

/// The changes of a node.
#[derive(Debug, Default)]
pub(crate) struct ChangeLog {
    number: AtomicU32,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    /// The coarse time of each change; the last one is that of the number.
    times: VecDeque<u64>,
    /// Of those, the ones that may have hidden writes, by their numbers.
    partitions: VecDeque<(u32, u64)>,
}

impl ChangeLog {
    /// The number of the last change. Read before what it is about: an entry with a number that is too old is only
    /// checked once more.
    pub(crate) fn number(&self) -> u32 {
        self.number.load(Acquire)
    }

    /// Something has changed, and is in effect already.
    pub(crate) fn record(&self, change: Change, now_ms: u64) {
        let mut log = self.log.lock();
        let number = self.number().wrapping_add(1);
        log.times.push_back(now_ms);
        if change == Change::Partitioned {
            log.partitions.push_back((number, now_ms));
        }
        if log.times.len() > REMEMBERED {
            log.times.pop_front();
        }
        let remembered = log.times.len() as u32;
        while log.partitions.front().is_some_and(|(cut_off, _)| number.wrapping_sub(*cut_off) >= remembered) {
            log.partitions.pop_front();
        }
        self.number.fetch_add(1, AcqRel);
    }

    pub(crate) fn since(&self, number: u32) -> ChangesSince {
        let log = self.log.lock();
        let now = self.number();
        let behind = now.wrapping_sub(number);
        if behind == 0 {
            return ChangesSince::Nothing;
        }
        let first = log.times.len().checked_sub(behind as usize).and_then(|begin| log.times.get(begin));
        let Some(first_ms) = first else { return ChangesSince::TooMuch };
        let cut_off = log.partitions.iter().find(|(cut_off, _)| now.wrapping_sub(*cut_off) < behind);
        ChangesSince::Changes { first_ms: *first_ms, partitioned_ms: cut_off.map(|(_, at_ms)| *at_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missed_is_told_from_its_beginning() {
        let changes = ChangeLog::default();
        let begun = changes.number();
        changes.record(Change::View, 10);
        let later = changes.number();
        changes.record(Change::Partitioned, 20);
        changes.record(Change::View, 30);
        assert_eq!(changes.since(begun), ChangesSince::Changes { first_ms: 10, partitioned_ms: Some(20) });
        assert_eq!(changes.since(later), ChangesSince::Changes { first_ms: 20, partitioned_ms: Some(20) });
        assert_eq!(changes.since(changes.number()), ChangesSince::Nothing);
        assert_eq!(changes.since(later.wrapping_add(1)), ChangesSince::Changes { first_ms: 30, partitioned_ms: None });
    }

    #[test]
    fn very_old_numbers_are_too_old() {
        let changes = ChangeLog::default();
        changes.record(Change::Partitioned, 0);
        (1..5000).for_each(|at_ms| changes.record(Change::View, at_ms));
        assert_eq!(changes.since(0), ChangesSince::TooMuch);
        assert_eq!(changes.since(903), ChangesSince::TooMuch);
        assert_eq!(changes.since(904), ChangesSince::Changes { first_ms: 904, partitioned_ms: None });
        changes.record(Change::Partitioned, 5000);
        assert_eq!(changes.since(4999), ChangesSince::Changes { first_ms: 4999, partitioned_ms: Some(5000) });
    }
}
