//! Writes that a peer has not heard of: told as soon as it can be told again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::{identity::PeerId, sync::Mutex};

/// Keys that are remembered for one peer. What is more becomes "all of the group".
const MAX_KEYS: usize = 10_000;

/// Peers that have left the view and may come back with what they held; as many as a node may have.
const MAX_DEPARTED: usize = 2_000;

/// For so long a peer that has left may come back and hear what it has missed.
const DEPARTED: Duration = Duration::from_secs(3600);

/// What one peer has missed of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Missed {
    Keys(BTreeSet<Arc<str>>),
    Everything,
}

/// What peers have missed.
#[derive(Debug, Default)]
pub(crate) struct Undelivered(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    missed: BTreeMap<PeerId, BTreeMap<Arc<str>, Missed>>,
    /// Peers that are no longer in the view, and since when.
    departed: BTreeMap<PeerId, u64>,
}

impl Undelivered {
    /// This peer has not heard that a key of a group has changed; `None` = that all have.
    pub(crate) fn missed(&self, peer: &PeerId, group: &Arc<str>, key: Option<&Arc<str>>) {
        let mut state = self.0.lock();
        let groups = state.missed.entry(peer.clone()).or_default();
        let keys = |missed: &Missed| if let Missed::Keys(keys) = missed { keys.len() } else { 0 };
        let is_full = groups.values().map(keys).sum::<usize>() >= MAX_KEYS;
        match (groups.entry(Arc::clone(group)).or_insert_with(|| Missed::Keys(BTreeSet::new())), key) {
            (Missed::Keys(keys), Some(key)) if !is_full || keys.contains(key) => drop(keys.insert(Arc::clone(key))),
            (missed, _) => *missed = Missed::Everything,
        }
    }

    /// Something of a group has changed: those that have left the view do not hear of it.
    pub(crate) fn departed(&self, group: &Arc<str>) {
        let mut state = self.0.lock();
        let State { missed, departed } = &mut *state;
        for peer in departed.keys() {
            missed.entry(peer.clone()).or_default().insert(Arc::clone(group), Missed::Everything);
        }
    }

    /// There is another view: who is in it now, and who no longer is.
    pub(crate) fn view_changed<'a>(
        &self,
        gone: impl Iterator<Item = &'a PeerId>,
        here: &BTreeSet<PeerId>,
        now_ms: u64,
    ) {
        let mut state = self.0.lock();
        for peer in gone {
            if state.departed.len() < MAX_DEPARTED {
                state.departed.insert(peer.clone(), now_ms);
            }
        }
        let State { missed, departed } = &mut *state;
        departed.retain(|peer, since_ms| {
            !here.contains(peer) && now_ms.saturating_sub(*since_ms) < DEPARTED.as_millis() as u64
        });
        missed.retain(|peer, _| here.contains(peer) || departed.contains_key(peer));
    }

    /// Whether a peer has missed anything.
    pub(crate) fn has_missed(&self, peer: &PeerId) -> bool {
        self.0.lock().missed.contains_key(peer)
    }

    /// Takes out what this peer has missed; who cannot tell it puts it back.
    pub(crate) fn take(&self, peer: &PeerId) -> BTreeMap<Arc<str>, Missed> {
        self.0.lock().missed.remove(peer).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> PeerId {
        PeerId::new(name).unwrap()
    }

    #[test]
    fn what_is_too_much_to_remember_becomes_everything_of_its_group() {
        let (undelivered, peer) = (Undelivered::default(), id("a"));
        let [users, orders]: [Arc<str>; 2] = ["users".into(), "orders".into()];
        for n in 0..MAX_KEYS {
            undelivered.missed(&peer, &users, Some(&format!("key-{n}").into()));
            undelivered.missed(&peer, &users, Some(&"key-1".into()));
        }
        let missed = undelivered.take(&peer);
        assert!(matches!(&missed[&users], Missed::Keys(keys) if keys.len() == MAX_KEYS));
        assert!(undelivered.take(&peer).is_empty());

        for n in 0..=MAX_KEYS {
            undelivered.missed(&peer, &users, Some(&format!("key-{n}").into()));
        }
        undelivered.missed(&peer, &orders, Some(&"key-1".into()));
        undelivered.missed(&peer, &users, Some(&"key-1".into()));
        let missed = undelivered.take(&peer);
        assert_eq!(missed[&users], Missed::Everything);
        assert!(matches!(&missed[&orders], Missed::Keys(keys) if keys.len() == 1), "there is room again");
    }

    #[test]
    fn who_has_left_misses_every_write_until_it_is_back_or_is_given_up() {
        let undelivered = Undelivered::default();
        let (users, here) = ("users".into(), |names: &[&str]| names.iter().map(|name| id(name)).collect());
        undelivered.view_changed([id("a"), id("b")].iter(), &here(&["c"]), 0);
        assert!(!undelivered.has_missed(&id("a")), "nothing was written yet");
        undelivered.departed(&users);
        undelivered.view_changed([].iter(), &here(&["a", "c"]), 1000);
        assert_eq!(undelivered.take(&id("a")), [(Arc::clone(&users), Missed::Everything)].into());
        undelivered.departed(&users);
        assert!(!undelivered.has_missed(&id("a")) && undelivered.has_missed(&id("b")));
        undelivered.view_changed([].iter(), &here(&["a", "c"]), 3_600_000);
        assert!(!undelivered.has_missed(&id("b")));
    }
}
