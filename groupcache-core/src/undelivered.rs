//! Writes that a peer has not heard of: told first when it is connected again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{identity::PeerId, sync::Mutex};

/// Keys that are remembered for one peer. What is more becomes "all of the group".
const MAX_KEYS: usize = 10_000;

/// Peers for which anything is remembered; as many as a node may have.
const MAX_PEERS: usize = 2_000;

/// What one peer has missed of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Missed {
    Keys(BTreeSet<Arc<str>>),
    Everything,
}

/// What peers have missed.
#[derive(Debug, Default)]
pub(crate) struct Undelivered(Mutex<BTreeMap<PeerId, BTreeMap<Arc<str>, Missed>>>);

impl Undelivered {
    /// This peer has not heard that a key of a group has changed; `None` = that all have.
    pub(crate) fn missed(&self, peer: &PeerId, group: &Arc<str>, key: Option<&Arc<str>>) {
        let mut peers = self.0.lock();
        if peers.len() >= MAX_PEERS && !peers.contains_key(peer) {
            return; // its copies end in their time
        }
        let groups = peers.entry(peer.clone()).or_default();
        let keys = |missed: &Missed| if let Missed::Keys(keys) = missed { keys.len() } else { 0 };
        let is_full = groups.values().map(keys).sum::<usize>() >= MAX_KEYS;
        match (groups.entry(Arc::clone(group)).or_insert_with(|| Missed::Keys(BTreeSet::new())), key) {
            (Missed::Keys(keys), Some(key)) if !is_full || keys.contains(key) => drop(keys.insert(Arc::clone(key))),
            (missed, _) => *missed = Missed::Everything,
        }
    }

    /// Takes out what this peer has missed; who cannot tell it puts it back.
    pub(crate) fn take(&self, peer: &PeerId) -> BTreeMap<Arc<str>, Missed> {
        self.0.lock().remove(peer).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_to_remember_becomes_everything_of_its_group() {
        let (undelivered, peer) = (Undelivered::default(), PeerId::new("a").unwrap());
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
}
