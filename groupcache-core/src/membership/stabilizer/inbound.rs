//! Peers that are connected to the local node: the addresses that they say, and those that discovery does not list.

use std::{collections::BTreeSet, time::Duration};

use crate::identity::{Address, MAX_ADDRESSES, NodeState, PeerId};
use crate::membership::stabilizer::{
    Stabilizer,
    dials::Link,
    events::{Action, Warning},
};

/// Time after which discovery is asked about a connected peer that it does not list: longer than a working watch takes,
/// because each question costs the source a full list, and a node that starts connects to all others at once.
const ASK_AFTER: Duration = Duration::from_millis(500);

/// Time after which a connected peer that discovery does not list is reported: longer than discovery usually takes to
/// list a node that has just started.
const UNLISTED_LIMIT: Duration = Duration::from_secs(5);

/// A peer that is connected to the local node, with what its last Hello says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InboundPeer {
    pub(crate) id: PeerId,
    pub(crate) state: NodeState,
    pub(crate) addresses: Vec<Address>,
    /// Whether a certificate proves that the peer belongs to the cluster.
    pub(crate) is_proven: bool,
    /// Fingerprint of the peer's ring in its last frame.
    pub(crate) fingerprint: u64,
}

/// A connected peer that discovery does not list.
#[derive(Debug)]
pub(super) struct Unlisted {
    since: Duration,
    is_asked_about: bool,
    /// Whether the peer has been unlisted for [`UNLISTED_LIMIT`].
    is_due: bool,
    is_said: bool,
}

impl Stabilizer {
    /// Handles a change of the peers that are connected to the local node. Of two connections of one id, the later one
    /// counts.
    pub(super) fn inbound(&mut self, now: Duration, peers: Vec<InboundPeer>) {
        let peers = peers.into_iter().filter(|peer| peer.id != self.me.id);
        self.inbound = peers.map(|peer| (peer.id.clone(), peer)).collect();
        let is_said = |id: &PeerId| self.inbound.contains_key(id);
        for dial in self.dials.select(|t| t.link != Link::Live && t.purpose.id().is_some_and(is_said)) {
            self.update_target(dial);
        }
        self.update_unlisted(now);
    }

    /// Updates the connected peers that discovery does not list.
    pub(super) fn update_unlisted(&mut self, now: Duration) {
        let listed = self.listed_ids();
        // A draining peer may be unlisted because it drains.
        let is_unlisted = |peer: &&InboundPeer| {
            peer.state != NodeState::Draining
                && !listed.contains_key(&peer.id)
                && !peer.addresses.iter().any(|address| self.listing.hints.contains_key(address))
        };
        let found: BTreeSet<_> = self.inbound.values().filter(is_unlisted).map(|peer| peer.id.clone()).collect();
        self.unlisted.retain(|id, _| found.contains(id));
        for id in found {
            self.unlisted.entry(id).or_insert(Unlisted {
                since: now,
                is_asked_about: false,
                is_due: false,
                is_said: false,
            });
        }
    }

    /// Asks discovery again about each connected peer that has been unlisted for [`ASK_AFTER`], and returns the peers to
    /// ask about.
    pub(super) fn ask_about_unlisted(&mut self, now: Duration) -> Vec<PeerId> {
        let due: Vec<_> = self.unlisted.iter_mut().filter(|(_, unlisted)| now >= unlisted.since + ASK_AFTER).collect();
        let mut is_new = false;
        let mut ids = Vec::new();
        for (id, unlisted) in due {
            is_new |= !std::mem::replace(&mut unlisted.is_asked_about, true);
            ids.push(id.clone());
        }
        if is_new && self.complete.is_some() {
            self.resolve_backoff.ask_at_once(now);
        }
        ids
    }

    /// Counts each peer that has been connected and unlisted for [`UNLISTED_LIMIT`], and says them in one line.
    pub(super) fn report_unlisted(&mut self, now: Duration) {
        for unlisted in self.unlisted.values_mut().filter(|unlisted| !unlisted.is_due) {
            unlisted.is_due = now >= unlisted.since + UNLISTED_LIMIT;
            self.counters.unlisted += u64::from(unlisted.is_due);
        }
        let is_unsaid = |unlisted: &Unlisted| unlisted.is_due && !unlisted.is_said;
        if self.unlisted.values().any(is_unsaid) && self.may_warn(now, "unlisted") {
            let unsaid = self.unlisted.iter_mut().filter(|(_, unlisted)| is_unsaid(unlisted));
            let ids = unsaid.map(|(id, unlisted)| {
                unlisted.is_said = true;
                id.clone()
            });
            let ids = ids.collect();
            self.actions.push(Action::Warn(Warning::UnlistedPeers { ids }));
        }
    }

    /// Returns the connected peers that discovery has not listed for [`UNLISTED_LIMIT`].
    pub(crate) fn unlisted(&self) -> impl Iterator<Item = &PeerId> {
        self.unlisted.iter().filter(|(_, unlisted)| unlisted.is_due).map(|(id, _)| id)
    }

    /// Returns the fingerprint of the ring of a member, by the connection that is open in either direction.
    pub(super) fn fingerprint_of(&self, id: &PeerId) -> Option<u64> {
        let entry = self.members.get(id).filter(|entry| self.dials.is_live(entry.dial));
        entry.map(|entry| entry.facts.fingerprint).or_else(|| Some(self.inbound.get(id)?.fingerprint))
    }

    /// Adds the addresses that a peer says of itself on its connection to the local node. The addresses of a proven
    /// peer come first, because anybody may announce others.
    pub(super) fn with_said_addresses(&self, id: &PeerId, mut addresses: Vec<Address>) -> Vec<Address> {
        if let Some(peer) = self.inbound.get(id) {
            // An unproven peer has the last place, so that announced addresses do not cut it off.
            let said = peer.addresses.iter().take(if peer.is_proven { MAX_ADDRESSES } else { 1 });
            let at = if peer.is_proven { 0 } else { addresses.len().min(MAX_ADDRESSES - 1) };
            addresses.splice(at..at, said.cloned());
        }
        addresses
    }
}
