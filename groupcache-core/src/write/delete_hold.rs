//! Delete holds: times after a remove during which loaded values of a key are returned and not cached.
//!
//! A hold is for a source that is written in one place and read from replicas that lag behind. A load is judged by the
//! time at which it began, so that a load from within a hold is not cached after the hold either.

use std::{
    collections::{BTreeMap, BTreeSet},
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
pub(crate) const MAX_HOLD: Duration = Duration::from_secs(3600);

/// Maximum number of keys that are held at once in a group. With more, the whole group is held until the last of the
/// further holds ends.
const MAX_KEYS: usize = 10_000;

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
    /// Time until which every key is held.
    all_until_ms: u64,
}

impl HeldKeys {
    /// Sets the end of a key's hold.
    fn hold(&mut self, key: Arc<str>, until_ms: u64) {
        if let Some(earlier_ms) = self.keys.insert(Arc::clone(&key), until_ms) {
            self.ends.remove(&(earlier_ms, Arc::clone(&key)));
        }
        self.ends.insert((until_ms, key));
    }

    /// Forgets the hold that ends first, if it ends by `now_ms`, and returns whether it did. A load that began within
    /// this hold and still runs is not cached either, because the hold of all keys is extended to the same end.
    fn forget_first(&mut self, now_ms: u64) -> bool {
        if self.ends.first().is_none_or(|(until_ms, _)| *until_ms > now_ms) {
            return false;
        }
        let Some((until_ms, key)) = self.ends.pop_first() else { return false };
        self.keys.remove(&key);
        self.all_until_ms = self.all_until_ms.max(until_ms);
        true
    }
}

impl DeleteHolds {
    /// Holds a key, so that no load that begins before `until_ms` is cached. A longer hold of the key stays.
    pub(crate) fn hold(&self, key: &str, now_ms: u64, until_ms: u64) {
        let mut held = self.held.lock();
        let has_room = held.keys.contains_key(key) || held.keys.len() < MAX_KEYS || held.forget_first(now_ms);
        match held.keys.get(key) {
            Some(known_ms) if *known_ms >= until_ms => {}
            _ if has_room => held.hold(key.into(), until_ms),
            _ => held.all_until_ms = held.all_until_ms.max(until_ms),
        }
        self.last_ms.fetch_max(until_ms, AcqRel);
    }

    /// Returns whether a load that began at `begun_ms` must not be cached.
    pub(crate) fn is_held(&self, key: &str, begun_ms: u64) -> bool {
        if begun_ms >= self.last_ms.load(Acquire) {
            return false;
        }
        let held = self.held.lock();
        begun_ms < held.all_until_ms || held.keys.get(key).is_some_and(|until_ms| begun_ms < *until_ms)
    }

    /// Forgets the holds that ended before the oldest running load began, at `begun_ms`.
    pub(crate) fn sweep(&self, begun_ms: u64) {
        let mut held = self.held.lock();
        while held.forget_first(begun_ms) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// Checks that a hold beyond the limit applies to all keys, and that an ended hold makes room for another.
    #[test]
    fn too_many_held_keys_hold_the_group() {
        let holds = DeleteHolds::default();
        (0..MAX_KEYS as u64).for_each(|n| holds.hold(&n.to_string(), 0, 1000 + n % 2));
        holds.hold("one more", 500, 2000);
        holds.hold("7", 500, 1500);
        assert!(holds.is_held("any", 1999) && !holds.is_held("any", 2000));
        holds.hold("again", 1000, 3000);
        assert!(!holds.is_held("any", 2000) && holds.is_held("again", 2999), "there is room again");
        assert_eq!(holds.held.lock().keys.len(), MAX_KEYS);
    }

    /// Checks that a load that began within a hold is not cached after the hold was forgotten for want of room.
    #[test]
    fn load_of_a_forgotten_hold_is_held() {
        let holds = DeleteHolds::default();
        holds.hold("a", 0, 1000);
        (0..MAX_KEYS).for_each(|n| holds.hold(&n.to_string(), 2000, 3000));
        assert!(!holds.held.lock().keys.contains_key("a"));
        assert!(holds.is_held("a", 999) && !holds.is_held("a", 1000));
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
