//! Keys whose loads are not kept for a while: their source is written in one place and read in others that lag behind.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire},
    },
    time::Duration,
};

use crate::sync::Mutex;

/// The longest that a key is held: a peer may ask for any time.
pub(super) const MAX_HOLD: Duration = Duration::from_secs(3600);

/// Keys that are held at once. With more the whole group is, until the last of them ends.
const MAX_KEYS: usize = 10_000;

/// The held keys of a group, with the coarse times at which their holds end.
#[derive(Debug, Default)]
pub(super) struct Holds {
    /// No hold ends after this: all that a load looks at in a group that holds nothing.
    last_ms: AtomicU64,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    keys: BTreeMap<Arc<str>, u64>,
    all_until_ms: u64,
}

impl Holds {
    /// From now on no load of this key is kept that begins before `until_ms`.
    pub(super) fn hold(&self, key: &str, now_ms: u64, until_ms: u64) {
        let mut held = self.held.lock();
        if held.keys.len() >= MAX_KEYS {
            held.keys.retain(|_, until_ms| *until_ms > now_ms);
        }
        if held.keys.len() >= MAX_KEYS && !held.keys.contains_key(key) {
            held.all_until_ms = held.all_until_ms.max(until_ms);
        } else {
            let until = held.keys.entry(key.into()).or_default();
            *until = until_ms.max(*until);
        }
        self.last_ms.fetch_max(until_ms, AcqRel);
    }

    /// Whether what began then is not to be kept.
    pub(super) fn is_held(&self, key: &str, begun_ms: u64) -> bool {
        if begun_ms >= self.last_ms.load(Acquire) {
            return false;
        }
        let held = self.held.lock();
        begun_ms < held.all_until_ms || held.keys.get(key).is_some_and(|until_ms| begun_ms < *until_ms)
    }

    /// Forgets what is over. A load that began before still counts: `begun_ms` is when the oldest did.
    pub(super) fn sweep(&self, begun_ms: u64) {
        self.held.lock().keys.retain(|_, until_ms| *until_ms > begun_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_before_the_end_of_its_hold_is_held() {
        let holds = Holds::default();
        assert!(!holds.is_held("a", 0));
        holds.hold("a", 1000, 2000);
        holds.hold("a", 1000, 1500);
        for (key, begun_ms, is_held) in [("a", 1000, true), ("a", 1999, true), ("a", 2000, false), ("b", 1500, false)] {
            assert_eq!(holds.is_held(key, begun_ms), is_held, "{key} at {begun_ms}");
        }
        holds.sweep(1999);
        assert!(holds.is_held("a", 1999));
        holds.sweep(2000);
        assert!(!holds.is_held("a", 1999));
    }

    #[test]
    fn too_many_keys_hold_the_group() {
        let holds = Holds::default();
        (0..MAX_KEYS).for_each(|n| holds.hold(&n.to_string(), 0, 1000));
        holds.hold("one more", 500, 2000);
        assert!(holds.is_held("any", 1999) && !holds.is_held("any", 2000));
        holds.hold("again", 1000, 3000);
        assert!(!holds.is_held("any", 2000) && holds.is_held("again", 2999), "there is room again");
        assert!(holds.held.lock().keys.len() < 3);
    }
}
