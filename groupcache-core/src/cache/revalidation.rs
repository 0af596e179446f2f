//! Revalidation: the changes after which an entry is checked again, because its key may have another owner or because
//! writes of the time before may be forgotten.
//!
//! A change does not visit the entries. Each entry carries the number of the last change that it was checked against,
//! and the next hit checks it again. A hit in quiet times compares two numbers.

use std::collections::VecDeque;

use crate::runtime::sync::{
    Mutex,
    atomic::{
        AtomicU32,
        Ordering::{AcqRel, Acquire},
    },
};

/// Number of changes that are remembered, eight bytes each. A deploy of a thousand nodes makes four changes per node, and
/// one for the groups of each.
/// An entry that was not read during more changes is not worth keeping.
const REMEMBERED: usize = 8192;

/// Change after which entries are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The node has another view, so that keys may have other owners.
    View,
    /// The node met another node after a long absence. Other nodes may have forgotten writes that it has not heard of.
    Absence,
}

/// Changes since an entry was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangesSince {
    Nothing,
    /// More changes than are remembered.
    TooMuch,
    /// Coarse times of the first change of any kind, and of the last absence.
    Changes {
        first_ms: u64,
        absence_ms: Option<u64>,
    },
}

/// Changes of a node.
#[derive(Debug, Default)]
pub(crate) struct ChangeLog {
    number: AtomicU32,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    /// Coarse time of each remembered change. The last one belongs to the current number.
    times: VecDeque<u64>,
    /// Numbers and coarse times of the remembered changes that are absences.
    absences: VecDeque<(u32, u64)>,
}

impl ChangeLog {
    /// Returns the number of the last change. Read it before the view, because an entry with a number that is too old
    /// is only checked once more.
    pub(crate) fn number(&self) -> u32 {
        self.number.load(Acquire)
    }

    /// Records a change that is already in effect.
    pub(crate) fn record(&self, change: Change, now_ms: u64) {
        let mut log = self.log.lock();
        let number = self.number().wrapping_add(1);
        log.times.push_back(now_ms);
        if change == Change::Absence {
            log.absences.push_back((number, now_ms));
        }
        if log.times.len() > REMEMBERED {
            log.times.pop_front();
        }
        let remembered = log.times.len() as u32;
        while log.absences.front().is_some_and(|(absence, _)| number.wrapping_sub(*absence) >= remembered) {
            log.absences.pop_front();
        }
        self.number.fetch_add(1, AcqRel);
    }

    /// Returns the changes after the one of this number.
    pub(crate) fn since(&self, number: u32) -> ChangesSince {
        let log = self.log.lock();
        let now = self.number();
        let behind = now.wrapping_sub(number);
        if behind == 0 {
            return ChangesSince::Nothing;
        }
        let first = log.times.len().checked_sub(behind as usize).and_then(|begin| log.times.get(begin));
        let Some(first_ms) = first else { return ChangesSince::TooMuch };
        let absence = log.absences.iter().rev().find(|(absence, _)| now.wrapping_sub(*absence) < behind);
        ChangesSince::Changes { first_ms: *first_ms, absence_ms: absence.map(|(_, at_ms)| *at_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_since_a_number_begin_with_the_first() {
        let changes = ChangeLog::default();
        let first = changes.number();
        changes.record(Change::View, 10);
        let later = changes.number();
        changes.record(Change::Absence, 20);
        changes.record(Change::View, 30);
        assert_eq!(changes.since(first), ChangesSince::Changes { first_ms: 10, absence_ms: Some(20) });
        assert_eq!(changes.since(later), ChangesSince::Changes { first_ms: 20, absence_ms: Some(20) });
        assert_eq!(changes.since(changes.number()), ChangesSince::Nothing);
        assert_eq!(changes.since(later.wrapping_add(1)), ChangesSince::Changes { first_ms: 30, absence_ms: None });
    }

    #[test]
    fn number_older_than_the_log_is_too_much() {
        let changes = ChangeLog::default();
        changes.record(Change::Absence, 0);
        (1..9000).for_each(|at_ms| changes.record(Change::View, at_ms));
        assert_eq!(changes.since(0), ChangesSince::TooMuch);
        assert_eq!(changes.since(807), ChangesSince::TooMuch);
        assert_eq!(changes.since(808), ChangesSince::Changes { first_ms: 808, absence_ms: None });
        changes.record(Change::Absence, 9000);
        assert_eq!(changes.since(8999), ChangesSince::Changes { first_ms: 8999, absence_ms: Some(9000) });
    }
}
