//! Keys that were written or loaded here since they may have moved.

use std::collections::VecDeque;

use crate::runtime::sync::Mutex;

/// Bits for keys that are not asked for. Two keys that share one are both loaded: with 5,000 of them one in 26.
const SETTLED: usize = 1 << 17;

/// Former views whose bits are kept apart, 16 KiB each: those of older ones are one.
const SETTLED_VIEWS: usize = 9;

/// Keys that were written or loaded here since they may have moved, by their hashes: for each former view those since it
/// was followed by another, until that one was.
#[derive(Debug, Default)]
pub(crate) struct OverwrittenKeys(Mutex<VecDeque<(u64, Box<[u64]>)>>);

impl OverwrittenKeys {
    pub(crate) fn add(&self, number: u64, hash: u64) {
        let mut views = self.0.lock();
        if views.back().is_none_or(|(newest, _)| *newest < number) {
            views.push_back((number, vec![0; SETTLED / 64].into()));
            if views.len() > SETTLED_VIEWS {
                unite_oldest(&mut views);
            }
        }
        // Who was told of an older view meanwhile settles it since the newest.
        if let Some((_, bits)) = views.back_mut() {
            let (at, bit) = bit(hash);
            if let Some(bits) = bits.get_mut(at) {
                *bits |= bit;
            }
        }
    }

    /// Since that view was followed by another.
    pub(crate) fn has(&self, number: u64, hash: u64) -> bool {
        let (at, bit) = bit(hash);
        let views = self.0.lock();
        views
            .iter()
            .rev()
            .take_while(|(since, _)| *since >= number)
            .any(|(_, bits)| bits.get(at).is_some_and(|bits| bits & bit != 0))
    }

    /// Older views than that are not looked at one by one any more; `None`: there is none to look at.
    pub(crate) fn sweep(&self, oldest: Option<u64>) {
        let mut views = self.0.lock();
        let Some(oldest) = oldest else { return views.clear() };
        while views.len() > 1 && views.front().is_some_and(|(number, _)| *number < oldest) {
            unite_oldest(&mut views);
        }
    }
}

/// What was settled since the oldest view counts since the one after it: it is loaded once more, at worst.
fn unite_oldest(views: &mut VecDeque<(u64, Box<[u64]>)>) {
    let oldest = views.pop_front();
    if let (Some((_, oldest)), Some((_, next))) = (oldest, views.front_mut()) {
        next.iter_mut().zip(oldest).for_each(|(bits, more)| *bits |= more);
    }
}

/// Where the bit of a key is.
fn bit(hash: u64) -> (usize, u64) {
    let at = hash as usize % SETTLED;
    (at / 64, 1 << (at % 64))
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use super::*;

    #[test]
    fn what_is_settled_is_so_since_all_views_before_and_not_since_those_after() {
        let settled = OverwrittenKeys::default();
        (1..=40).for_each(|number| settled.add(number, number));
        // Those of their own, and those that are one since there are too many.
        for number in [1, 2, 31, 32, 33, 40] {
            assert!((1..=number).all(|since| settled.has(since, number)), "{number}");
        }
        assert!((33..=40).all(|number| !settled.has(number + 1, number)));
        assert!(settled.has(32, 1) && !settled.has(33, 1), "older ones count since the oldest that is kept apart");
        settled.sweep(Some(36));
        assert!(settled.has(36, 35) && !settled.has(37, 35) && settled.has(1, 36));
        assert_eq!(settled.0.lock().len(), 5);
        settled.sweep(Some(100));
        assert!((1..=40).all(|number| settled.has(0, number)), "it is not forgotten that they were settled at all");
        settled.sweep(None);
        assert!(!settled.has(0, 40));
    }
}
