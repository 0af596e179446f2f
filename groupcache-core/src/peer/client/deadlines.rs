//! Deadlines of the calls of one peer, in order, so that a sweep looks at those that have passed and at no other.

use std::{cmp::Reverse, collections::BinaryHeap};

/// Number of answered calls that are kept before all calls are searched for them: 16 KiB, so that a search is worth its
/// time.
const MAX_ENDED: usize = 1024;

/// Deadlines with the ids of their calls. An answered call stays until its deadline, or until more than half of
/// the calls have ended. Deadlines mostly grow, so that an insertion is a comparison.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    order: BinaryHeap<Reverse<(u64, u64)>>,
}

impl Deadlines {
    /// Adds a call. `waiting` is the number of calls that wait, for which `waits` is true.
    pub(super) fn add(&mut self, deadline_ms: u64, id: u64, waiting: usize, waits: impl Fn(u64) -> bool) {
        if self.order.len() > 2 * waiting + MAX_ENDED {
            self.order.retain(|Reverse((_, id))| waits(*id));
        }
        self.order.push(Reverse((deadline_ms, id)));
    }

    /// Takes a call with a deadline that has passed. The call may have ended.
    pub(super) fn next_passed(&mut self, now_ms: u64) -> Option<u64> {
        let Reverse((deadline_ms, id)) = *self.order.peek()?;
        if deadline_ms > now_ms {
            return None;
        }
        self.order.pop();
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_deadlines_come_in_order() {
        let mut deadlines = Deadlines::default();
        for (deadline_ms, id) in [(30, 1), (10, 2), (20, 3), (u64::MAX, 4)] {
            deadlines.add(deadline_ms, id, 4, |_| true);
        }
        let passed = std::iter::from_fn(|| deadlines.next_passed(25)).collect::<Vec<_>>();
        assert_eq!((passed, deadlines.next_passed(29), deadlines.next_passed(30)), (vec![2, 3], None, Some(1)));
    }

    /// Checks that a million answered calls leave a short list, although their deadlines are far ahead.
    #[test]
    fn deadlines_of_answered_calls_are_removed() {
        let mut deadlines = Deadlines::default();
        for id in 0..1_000_000 {
            deadlines.add(10_000 + id, id, 10, |waiting| waiting + 10 > id);
            assert!(deadlines.order.len() <= MAX_ENDED + 21);
        }
    }
}
