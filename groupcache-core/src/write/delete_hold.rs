//! Keys whose loads are not kept for a while: their source is written in one place and read in others that lag behind.

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

/// The longest that a key is held: a peer may ask for any time.
pub(crate) const MAX_HOLD: Duration = Duration::from_secs(3600);

/// Keys that are held at once. With more the whole group is, until the last of them ends.
const MAX_KEYS: usize = 10_000;

/// The held keys of a group, with the coarse times at which their holds end.
#[derive(Debug, Default)]
pub(crate) struct DeleteHolds {
    /// No hold ends after this: all that a load looks at in a group that holds nothing.
    last_ms: AtomicU64,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    keys: BTreeMap<Arc<str>, u64>,
    /// The same by their ends.
    ends: BTreeSet<(u64, Arc<str>)>,
    /// Every key is held until then.
    all_until_ms: u64,
}

impl Held {
    fn hold(&mut self, key: Arc<str>, until_ms: u64) {
        if let Some(earlier_ms) = self.keys.insert(Arc::clone(&key), until_ms) {
            self.ends.remove(&(earlier_ms, Arc::clone(&key)));
        }
        self.ends.insert((until_ms, key));
    }

    /// Forgets the first to end, if it has ended by then. A load that began within it and still runs is not kept all
    /// the same: it began before the end of what holds all keys.
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
    /// From now on no load of this key is kept that begins before `until_ms`.
    pub(crate) fn hold(&self, key: &str, now_ms: u64, until_ms: u64) {
        let mut held = self.held.lock();
        let has_room = held.keys.contains_key(key) || held.keys.len() < MAX_KEYS || held.forget_first(now_ms);
        match held.keys.get(key) {
            Some(later_ms) if *later_ms >= until_ms => {}
            _ if has_room => held.hold(key.into(), until_ms),
            _ => held.all_until_ms = held.all_until_ms.max(until_ms),
        }
        self.last_ms.fetch_max(until_ms, AcqRel);
    }

    /// Whether what began then is not to be kept.
    pub(crate) fn is_held(&self, key: &str, begun_ms: u64) -> bool {
        if begun_ms >= self.last_ms.load(Acquire) {
            return false;
        }
        let held = self.held.lock();
        begun_ms < held.all_until_ms || held.keys.get(key).is_some_and(|until_ms| begun_ms < *until_ms)
    }

    /// Forgets what ended before the oldest load began that may still run, at `begun_ms`.
    pub(crate) fn sweep(&self, begun_ms: u64) {
        let mut held = self.held.lock();
        while held.forget_first(begun_ms) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_before_the_end_of_its_hold_is_held() {
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
        assert!(holds.is_held("a", 1999), "what began in it may run for longer than it should");
        assert!(!holds.is_held("a", 2000) && holds.is_held("b", 2999));
    }

    #[test]
    fn too_many_keys_hold_the_group() {
        let holds = DeleteHolds::default();
        (0..MAX_KEYS as u64).for_each(|n| holds.hold(&n.to_string(), 0, 1000 + n % 2));
        holds.hold("one more", 500, 2000);
        holds.hold("7", 500, 1500);
        assert!(holds.is_held("any", 1999) && !holds.is_held("any", 2000));
        holds.hold("again", 1000, 3000);
        assert!(!holds.is_held("any", 2000) && holds.is_held("again", 2999), "there is room again");
        assert_eq!(holds.held.lock().keys.len(), MAX_KEYS);
    }

    #[test]
    fn a_load_that_began_in_a_hold_is_not_kept_when_the_hold_is_forgotten_for_want_of_room() {
        let holds = DeleteHolds::default();
        holds.hold("a", 0, 1000);
        (0..MAX_KEYS).for_each(|n| holds.hold(&n.to_string(), 2000, 3000));
        assert!(!holds.held.lock().keys.contains_key("a"));
        assert!(holds.is_held("a", 999) && !holds.is_held("a", 1000));
    }

    #[test]
    fn each_key_has_one_end() {
        let holds = DeleteHolds::default();
        for until_ms in [1000, 3000, 2000] {
            holds.hold("a", 0, until_ms);
        }
        let held = holds.held.lock();
        assert_eq!(held.ends.iter().map(|(until_ms, _)| *until_ms).collect::<Vec<_>>(), [3000]);
    }
}
