//! Listing: the content of peer sets as ids with their addresses, and addresses without an id.

use std::collections::BTreeMap;

use crate::membership::stabilizer::dials::{DialPurpose, MAX_PEERS};
use crate::{
    identity::{Address, Incarnation, MAX_ADDRESSES, PeerId},
    membership::provider::{Peer, Trust},
};

/// The discovery records of one id.
#[derive(Clone, Debug, Default)]
pub(super) struct Listed {
    pub(super) addresses: Vec<Address>,
    pub(super) incarnation: Option<Incarnation>,
    /// Highest trust in a source that lists the id.
    pub(super) trust: Trust,
}

/// The listed peers.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    pub(super) named: BTreeMap<PeerId, Listed>,
    /// Addresses without an id, each with the highest trust in a source that lists it.
    pub(super) hints: BTreeMap<Address, Trust>,
}

impl Listing {
    /// Reads the records of a set. Also returns the number of entries beyond the limit.
    ///
    /// Two records of one id become one peer with the addresses of both, the addresses of the newer incarnation first.
    pub(super) fn read(peers: Vec<Peer>) -> (Self, usize) {
        let (mut listing, mut left_out) = (Self::default(), 0);
        for peer in peers {
            match peer.id {
                None => {
                    let addresses = peer.addresses.into_iter().take(MAX_ADDRESSES);
                    addresses.for_each(|address| listing.add_hint(address, peer.trust));
                }
                Some(id) => {
                    let listed = listing.named.entry(id).or_default();
                    // `None` is less than any incarnation, so that a record with an incarnation comes first.
                    let is_newer = peer.incarnation > listed.incarnation;
                    listed.merge(peer.addresses, peer.incarnation, is_newer);
                    listed.trust = listed.trust.max(peer.trust);
                }
            }
            left_out += listing.trim(); // within the loop, because a set may be of any size
        }
        (listing, left_out)
    }

    /// Adds the records of a partial set, with its addresses first because they are newer. Returns the number of
    /// entries beyond the limit.
    pub(super) fn overlay(&mut self, later: Self) -> usize {
        later.hints.into_iter().for_each(|(address, trust)| self.add_hint(address, trust));
        for (id, listed) in later.named {
            let known = self.named.entry(id).or_default();
            known.merge(listed.addresses, listed.incarnation, true);
            known.trust = known.trust.max(listed.trust);
        }
        self.trim()
    }

    fn add_hint(&mut self, address: Address, trust: Trust) {
        let known = self.hints.entry(address).or_default();
        *known = trust.max(*known);
    }

    /// Removes the entries beyond the limit and returns their number. The last names in order are removed, so that all
    /// nodes leave out the same entries. Addresses are removed first, because they may belong to peers that are listed
    /// by id.
    fn trim(&mut self) -> usize {
        let mut left_out = 0;
        while self.named.len() + self.hints.len() > MAX_PEERS {
            if self.hints.pop_last().is_none() {
                self.named.pop_last();
            }
            left_out += 1;
        }
        left_out
    }

    /// Returns whether both listings have the same ids and the same addresses without an id. The addresses of ids may
    /// differ.
    pub(super) fn has_peers_of(&self, other: &Self) -> bool {
        self.hints.keys().eq(other.hints.keys()) && self.named.keys().eq(other.named.keys())
    }

    /// Returns whether the address is listed without an id or under the id of this node, which may answer there itself.
    pub(super) fn has_address(&self, address: &Address, me: &PeerId) -> bool {
        self.hints.contains_key(address) || self.named.get(me).is_some_and(|listed| listed.addresses.contains(address))
    }

    /// Returns whether the peer or address of a target is listed.
    pub(super) fn wants(&self, purpose: &DialPurpose) -> bool {
        match purpose {
            DialPurpose::Named(id) | DialPurpose::Member(id) => self.named.contains_key(id),
            DialPurpose::Hint(address) => self.hints.contains_key(address),
        }
    }
}

impl Listed {
    fn merge(&mut self, addresses: Vec<Address>, incarnation: Option<Incarnation>, is_newer: bool) {
        let known = std::mem::take(&mut self.addresses);
        let (first, second) = if is_newer { (addresses, known) } else { (known, addresses) };
        self.addresses = distinct(first.into_iter().chain(second));
        self.incarnation = self.incarnation.max(incarnation);
    }
}

/// Returns the first [`MAX_ADDRESSES`] distinct addresses, in their order.
pub(crate) fn distinct(addresses: impl IntoIterator<Item = Address>) -> Vec<Address> {
    let mut kept = Vec::new();
    for address in addresses {
        if kept.len() < MAX_ADDRESSES && !kept.contains(&address) {
            kept.push(address);
        }
    }
    kept
}
