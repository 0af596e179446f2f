//! What makes an entry doubtful: that its key may have gone to another owner, and that this node may not have heard of a
//! write.
//!
//! Entries are not looked through when it happens: each carries the number of the last change that it was checked
//! against, and is checked again by the next hit. A hit in quiet times compares two numbers.

use std::collections::VecDeque;

use crate::sync::{
    Mutex,
    atomic::{AtomicU32, Ordering::AcqRel, Ordering::Acquire},
};

/// Changes that are remembered. An entry that nobody has asked for through more of them is not worth keeping.
const REMEMBERED: usize = 64;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// There is another view: keys have other owners.
    View,
    /// This node was cut off, or stood still: writes may have passed it by.
    CutOff,
}

/// What has happened since an entry was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    Nothing,
    /// Too much to remember.
    TooMuch,
    /// Coarse times of the first change of either kind.
    Changes {
        first_ms: u64,
        cut_off_ms: Option<u64>,
    },
}

/// The changes of a node.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    number: AtomicU32,
    log: Mutex<VecDeque<(u32, u64, Change)>>,
}

impl Changes {
    /// The number of the last change. Read before what it is about: an entry with a number that is too old is only
    /// checked once more.
    pub(crate) fn number(&self) -> u32 {
        self.number.load(Acquire)
    }

    /// Something has changed, and is in effect already.
    pub(crate) fn happened(&self, change: Change, now_ms: u64) {
        let mut log = self.log.lock();
        let number = self.number().wrapping_add(1);
        log.push_back((number, now_ms, change));
        if log.len() > REMEMBERED {
            log.pop_front();
        }
        self.number.fetch_add(1, AcqRel);
    }

    pub(crate) fn since(&self, number: u32) -> Since {
        let log = self.log.lock();
        let behind = self.number().wrapping_sub(number) as usize;
        if behind == 0 {
            return Since::Nothing;
        }
        let Some(begin) = log.len().checked_sub(behind) else { return Since::TooMuch };
        let missed = || log.iter().skip(begin);
        let Some((_, first_ms, _)) = missed().next() else { return Since::TooMuch };
        let cut_off = missed().find(|(_, _, change)| *change == Change::CutOff);
        Since::Changes { first_ms: *first_ms, cut_off_ms: cut_off.map(|(_, at_ms, _)| *at_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missed_is_told_from_its_beginning() {
        let changes = Changes::default();
        let begun = changes.number();
        changes.happened(Change::View, 10);
        let later = changes.number();
        changes.happened(Change::CutOff, 20);
        changes.happened(Change::View, 30);
        assert_eq!(changes.since(begun), Since::Changes { first_ms: 10, cut_off_ms: Some(20) });
        assert_eq!(changes.since(later), Since::Changes { first_ms: 20, cut_off_ms: Some(20) });
        assert_eq!(changes.since(changes.number()), Since::Nothing);
        assert_eq!(changes.since(later.wrapping_add(1)), Since::Changes { first_ms: 30, cut_off_ms: None });
    }

    #[test]
    fn very_old_numbers_are_too_old() {
        let changes = Changes::default();
        (0..100).for_each(|at_ms| changes.happened(Change::View, at_ms));
        assert_eq!(changes.since(0), Since::TooMuch);
        assert_eq!(changes.since(35), Since::TooMuch);
        assert_eq!(changes.since(36), Since::Changes { first_ms: 36, cut_off_ms: None });
    }
}
