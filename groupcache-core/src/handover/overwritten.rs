//! Overwritten keys: keys that were written or loaded at this node after they may have moved here.
//!
//! A set of bits may report a key that was not overwritten. The key is then loaded instead of received. An
//! overwritten key is never missed while a view from before the write is read.

use std::collections::VecDeque;

use crate::runtime::sync::Mutex;

/// Number of bits for the keys of one view. A key that shares a bit with an overwritten key is loaded, too: one key in
/// 26 with 5,000 overwritten keys.
const BITS: usize = 1 << 17;

/// Number of previous views with bits of their own, 16 KiB each. Older views share the bits of the oldest of these.
const MAX_VIEWS: usize = 9;

/// The overwritten keys of a group, as bits by the hashes of the keys.
///
/// Each previous view has the keys that were overwritten after the next view replaced it, until that view was replaced
/// too. Views are in the order of their numbers.
#[derive(Debug, Default)]
pub(crate) struct OverwrittenKeys(Mutex<VecDeque<(u64, Box<[u64]>)>>);

impl OverwrittenKeys {
    /// Records that a key was overwritten while the newest previous view had this number.
    pub(crate) fn add(&self, number: u64, hash: u64) {
        let mut views = self.0.lock();
        if views.back().is_none_or(|(newest, _)| *newest < number) {
            views.push_back((number, vec![0; BITS / 64].into()));
            if views.len() > MAX_VIEWS {
                unite_oldest(&mut views);
            }
        }
        // A caller that has read an earlier number records the key for the newest view.
        if let Some((_, bits)) = views.back_mut() {
            let (at, bit) = bit(hash);
            if let Some(bits) = bits.get_mut(at) {
                *bits |= bit;
            }
        }
    }

    /// Returns whether a key was overwritten after the previous view of that number was replaced.
    pub(crate) fn has(&self, number: u64, hash: u64) -> bool {
        let (at, bit) = bit(hash);
        let views = self.0.lock();
        views
            .iter()
            .rev()
            .take_while(|(newer, _)| *newer >= number)
            .any(|(_, bits)| bits.get(at).is_some_and(|bits| bits & bit != 0))
    }

    /// Unites the views before `oldest`, which no caller reads any more. If no view is read any more (`None`), forgets
    /// all keys.
    pub(crate) fn sweep(&self, oldest: Option<u64>) {
        let mut views = self.0.lock();
        let Some(oldest) = oldest else { return views.clear() };
        while views.len() > 1 && views.front().is_some_and(|(number, _)| *number < oldest) {
            unite_oldest(&mut views);
        }
    }
}

/// Moves the keys of the oldest view to the one after it. At worst, a key is then loaded once more.
fn unite_oldest(views: &mut VecDeque<(u64, Box<[u64]>)>) {
    let oldest = views.pop_front();
    if let (Some((_, oldest)), Some((_, next))) = (oldest, views.front_mut()) {
        next.iter_mut().zip(oldest).for_each(|(bits, more)| *bits |= more);
    }
}

/// Returns the index of the word and the mask of the bit of a key.
fn bit(hash: u64) -> (usize, u64) {
    let at = hash as usize % BITS;
    (at / 64, 1 << (at % 64))
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use super::*;

    /// Checks that an overwritten key counts for the view of its time and for all earlier views, and for no later view.
    #[test]
    fn key_is_overwritten_since_earlier_views_only() {
        let overwritten = OverwrittenKeys::default();
        (1..=40).for_each(|number| overwritten.add(number, number));
        // Some views have bits of their own, and the oldest ones share theirs.
        for number in [1, 2, 31, 32, 33, 40] {
            assert!((1..=number).all(|since| overwritten.has(since, number)), "{number}");
        }
        assert!((33..=40).all(|number| !overwritten.has(number + 1, number)));
        assert!(
            overwritten.has(32, 1) && !overwritten.has(33, 1),
            "united views count since the oldest view with bits of its own"
        );
        overwritten.sweep(Some(36));
        assert!(overwritten.has(36, 35) && !overwritten.has(37, 35) && overwritten.has(1, 36));
        assert_eq!(overwritten.0.lock().len(), 5);
        overwritten.sweep(Some(100));
        assert!((1..=40).all(|number| overwritten.has(0, number)), "a sweep forgets no key while a view is read");
        overwritten.sweep(None);
        assert!(!overwritten.has(0, 40));
    }
}
