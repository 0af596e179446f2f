//! Delete holds: times after a remove during which loaded values of a key are returned and not cached.
//!
//! A hold is for a source that is written in one place and read from replicas that lag behind. A load is judged by the
//! time at which it began, so that a load from within a hold is not cached after the hold either.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use crate::runtime::sync::{
    Mutex,
    atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire},
    },
};

/// Maximum length of a hold. A peer may ask for any length.
pub(crate) const MAX_HOLD: Duration = Duration::from_secs(600);

/// Maximum number of keys that are held at once in a group. A further hold is for all keys of one stripe.
const MAX_KEYS: usize = 10_000;

/// Number of stripes, which take 512 KiB in a group with a full table. A further hold applies to all keys of its
/// stripe, which are about one of 65,536 keys.
const STRIPES: usize = 1 << 16;

/// Delete holds of a group, with the coarse times at which they end.
#[derive(Debug, Default)]
pub(crate) struct DeleteHolds {
    /// Time at which the last hold ends. In a group without holds a load reads nothing else.
    last_ms: AtomicU64,
    held: Mutex<HeldKeys>,
}

#[derive(Debug, Default)]
struct HeldKeys {
    /// Ends of the holds by key.
    keys: BTreeMap<Arc<str>, u64>,
    /// Keys in the order in which their holds end.
    ends: BTreeSet<(u64, Arc<str>)>,
    /// Holds beside the table.
    further: FurtherHolds,
    /// End of the last hold that a sweep forgot. A load of any key that began before this end and still runs counts as
    /// held, because the load is past its deadline, or waited before its deadline began.
    swept_ms: u64,
}

/// Holds beside the full table of keys, by stripe. The hash of a key gives its stripe, and a hold applies to all keys
/// of the stripe.
#[derive(Debug, Default)]
struct FurtherHolds {
    hasher: RandomState,
    /// Ends of the holds by stripe; empty without such holds.
    ends: Box<[u64]>,
    last_ms: u64,
}

impl FurtherHolds {
    fn stripe(&self, key: &str) -> usize {
        self.hasher.hash_one(key) as usize % STRIPES
    }

    fn hold(&mut self, key: &str, until_ms: u64) {
        if self.ends.is_empty() {
            self.ends = vec![0; STRIPES].into();
        }
        let stripe = self.stripe(key);
        if let Some(end) = self.ends.get_mut(stripe) {
            *end = until_ms.max(*end);
        }
        self.last_ms = self.last_ms.max(until_ms);
    }

    fn is_held(&self, key: &str, begun_ms: u64) -> bool {
        begun_ms < self.last_ms && self.ends.get(self.stripe(key)).is_some_and(|until_ms| begun_ms < *until_ms)
    }

    /// Frees the stripes if all holds have ended by `now_ms`, and returns the end of the last one then.
    fn sweep(&mut self, now_ms: u64) -> Option<u64> {
        let is_over = self.last_ms <= now_ms && !self.ends.is_empty();
        is_over.then(|| {
            self.ends = Box::default();
            self.last_ms
        })
    }
}

impl HeldKeys {
    /// Sets the end of a key's hold.
    fn hold(&mut self, key: Arc<str>, until_ms: u64) {
        if let Some(earlier_ms) = self.keys.insert(Arc::clone(&key), until_ms) {
            self.ends.remove(&(earlier_ms, Arc::clone(&key)));
        }
        self.ends.insert((until_ms, key));
    }

    /// Forgets the hold that ends first, if it ends by `now_ms`, and returns its key and its end.
    fn forget_first(&mut self, now_ms: u64) -> Option<(u64, Arc<str>)> {
        let (until_ms, key) = self.ends.first().filter(|(until_ms, _)| *until_ms <= now_ms).cloned()?;
        self.ends.pop_first();
        self.keys.remove(&key);
        Some((until_ms, key))
    }

    /// Makes room for another key if a hold has ended by `now_ms`, and returns whether there is room. A load that began
    /// within this hold may still run, so that the hold stays beside the table.
    fn make_room(&mut self, now_ms: u64) -> bool {
        if self.keys.len() < MAX_KEYS {
            return true;
        }
        let Some((until_ms, key)) = self.forget_first(now_ms) else { return false };
        self.further.hold(&key, until_ms);
        true
    }
}

impl DeleteHolds {
    /// Holds a key, so that no load that begins before `until_ms` is cached. A longer hold of the key stays.
    pub(crate) fn hold(&self, key: &str, now_ms: u64, until_ms: u64) {
        let mut held = self.held.lock();
        match held.keys.get(key).copied() {
            Some(known_ms) if known_ms >= until_ms => {}
            Some(_) => held.hold(key.into(), until_ms),
            None if held.make_room(now_ms) => held.hold(key.into(), until_ms),
            None => held.further.hold(key, until_ms),
        }
        self.last_ms.fetch_max(until_ms, AcqRel);
    }

    /// Returns whether a load that began at `begun_ms` must not be cached.
    pub(crate) fn is_held(&self, key: &str, begun_ms: u64) -> bool {
        if begun_ms >= self.last_ms.load(Acquire) {
            return false;
        }
        let held = self.held.lock();
        let is_held = held.keys.get(key).is_some_and(|until_ms| begun_ms < *until_ms);
        is_held || begun_ms < held.swept_ms || held.further.is_held(key, begun_ms)
    }

    /// Forgets the holds that ended before the oldest running load began, at `begun_ms`.
    pub(crate) fn sweep(&self, begun_ms: u64) {
        let mut held = self.held.lock();
        while let Some((until_ms, _)) = held.forget_first(begun_ms) {
            held.swept_ms = held.swept_ms.max(until_ms);
        }
        held.swept_ms = held.swept_ms.max(held.further.sweep(begun_ms).unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that a load which began within a hold beside the table is held after the sweep of the hold.
    #[test]
    fn load_begun_within_a_swept_further_hold_is_held() {
        let holds = DeleteHolds::default();
        (0..MAX_KEYS).for_each(|n| holds.hold(&format!("key-{n}"), 0, 1000));
        holds.hold("further", 0, 3000);
        holds.sweep(3000);
        assert!(holds.is_held("further", 2999) && !holds.is_held("further", 3000));
    }

    /// Checks that a load is held if it began before the end of its key's hold, and that a shorter hold does not end a
    /// longer one.
    #[test]
    fn load_begun_before_the_end_of_a_hold_is_held() {
        let holds = DeleteHolds::default();
        assert!(!holds.is_held("a", 0));
        holds.hold("a", 1000, 2000);
        holds.hold("a", 1000, 1500);
        for (key, begun_ms, is_held) in [("a", 1000, true), ("a", 1999, true), ("a", 2000, false), ("b", 1500, false)] {
            assert_eq!(holds.is_held(key, begun_ms), is_held, "{key} at {begun_ms}");
        }
        holds.hold("b", 1000, 3000);
        holds.sweep(1999);
        assert_eq!(holds.held.lock().keys.len(), 2);
        holds.sweep(2000);
        assert_eq!(holds.held.lock().keys.len(), 1);
        assert!(holds.is_held("a", 1999), "a load of the hold may run past its deadline");
        assert!(!holds.is_held("a", 2000) && holds.is_held("b", 2999));
    }

    /// Returns how many of 1,000 keys that nobody holds are held all the same.
    fn held_of_others(holds: &DeleteHolds, begun_ms: u64) -> usize {
        (0..1000).filter(|n| holds.is_held(&format!("other-{n}"), begun_ms)).count()
    }

    /// Checks that a hold beyond the limit applies to its own key and few others, and that an ended hold makes room for
    /// another.
    #[test]
    fn hold_beyond_the_table_spares_other_keys() {
        let holds = DeleteHolds::default();
        (0..MAX_KEYS as u64).for_each(|n| holds.hold(&n.to_string(), 0, 1000 + n % 2));
        assert_eq!(held_of_others(&holds, 0), 0);
        holds.hold("one more", 500, 2000);
        holds.hold("7", 500, 1500);
        assert!(holds.is_held("one more", 1999) && !holds.is_held("one more", 2000) && holds.is_held("7", 1499));
        assert!(held_of_others(&holds, 500) <= 10, "a hold is for its own key");
        holds.hold("again", 1000, 3000);
        assert!(holds.is_held("again", 2999) && !holds.is_held("again", 3000), "there is room again");
        assert_eq!(holds.held.lock().keys.len(), MAX_KEYS);
        (0..MAX_KEYS).for_each(|n| holds.hold(&format!("further-{n}"), 1000, 3000));
        assert!((0..MAX_KEYS).all(|n| holds.is_held(&format!("further-{n}"), 2999)), "each key that was named is held");
        assert!(held_of_others(&holds, 2999) < 300);
        holds.sweep(3000);
        let held = holds.held.lock();
        assert!(held.keys.is_empty() && held.further.ends.is_empty());
    }

    /// Checks that a load that began within a hold is not cached after the hold was forgotten for want of room.
    #[test]
    fn load_of_a_forgotten_hold_is_held() {
        let holds = DeleteHolds::default();
        holds.hold("a", 0, 1000);
        (0..MAX_KEYS).for_each(|n| holds.hold(&n.to_string(), 2000, 3000));
        assert!(!holds.held.lock().keys.contains_key("a"));
        assert!(holds.is_held("a", 999) && !holds.is_held("a", 1000));
        assert!(held_of_others(&holds, 999) <= 10, "loads of other keys are cached");
    }

    /// Checks that a key that is held several times has one end, the latest.
    #[test]
    fn key_held_repeatedly_has_one_end() {
        let holds = DeleteHolds::default();
        for until_ms in [1000, 3000, 2000] {
            holds.hold("a", 0, until_ms);
        }
        let held = holds.held.lock();
        assert_eq!(held.ends.iter().map(|(until_ms, _)| *until_ms).collect::<Vec<_>>(), [3000]);
    }
}
