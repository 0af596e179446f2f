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
    /// Addresses without an id as they are listed, each with the highest trust in a source that lists it.
    pub(super) listed_hints: BTreeMap<Address, Trust>,
    /// Addresses without an id, with the addresses of several nodes in the place of their common name.
    pub(super) hints: BTreeMap<Address, Trust>,
}

impl Listing {
    /// Reads the records of a set. Also returns the number of entries beyond the limit.
    ///
    /// Two records of one id become one peer with the addresses of both, the addresses of the newer incarnation first.
    /// `is_known` tells whether a peer has answered, so that it is not left out.
    pub(super) fn read(peers: Vec<Peer>, is_known: impl Fn(&PeerId) -> bool) -> (Self, usize) {
        let (mut listing, mut left_out) = (Self::default(), 0);
        for peer in peers {
            match peer.id {
                None => {
                    let addresses = peer.addresses.into_iter().take(MAX_ADDRESSES);
                    addresses.for_each(|address| add(&mut listing.listed_hints, address, peer.trust));
                }
                Some(id) => {
                    let listed = listing.named.entry(id).or_default();
                    // `None` is less than any incarnation, so that a record with an incarnation comes first. The record of
                    // an authority precedes both, because anybody may announce a higher incarnation.
                    let is_newer = (peer.trust, peer.incarnation) > (listed.trust, listed.incarnation);
                    listed.merge(peer.addresses, peer.incarnation, is_newer);
                    listed.trust = listed.trust.max(peer.trust);
                }
            }
            left_out += listing.trim(&is_known); // within the loop, because a set may be of any size
        }
        listing.hints = listing.listed_hints.clone();
        (listing, left_out)
    }

    /// Replaces each name of several nodes by the addresses of the nodes. A name server is no authority.
    pub(super) fn resolve_names(&mut self, names: &BTreeMap<Address, Vec<Address>>) {
        self.hints.clear();
        for (address, trust) in &self.listed_hints {
            match names.get(address) {
                None => add(&mut self.hints, address.clone(), *trust),
                Some(found) => {
                    for address in found.iter().take(MAX_PEERS.saturating_sub(self.hints.len())) {
                        add(&mut self.hints, address.clone(), Trust::Hints);
                    }
                }
            }
        }
    }

    /// Adds the records of a partial set, with its addresses first because they are newer. Returns the number of
    /// entries beyond the limit.
    pub(super) fn overlay(&mut self, later: Self, is_known: impl Fn(&PeerId) -> bool) -> usize {
        for (address, trust) in later.listed_hints {
            add(&mut self.hints, address.clone(), trust);
            add(&mut self.listed_hints, address, trust);
        }
        for (id, listed) in later.named {
            let known = self.named.entry(id).or_default();
            known.merge(listed.addresses, listed.incarnation, true);
            known.trust = known.trust.max(listed.trust);
        }
        self.trim(&is_known)
    }

    /// Removes the entries beyond the limit and returns their number. The last entries in order are removed, so that all
    /// nodes leave out the same ones. Entries of hints are removed before those of an authority, and known peers last,
    /// because anybody may invent others. Of equal ones addresses are removed first, because they may belong to peers that
    /// are listed by id.
    fn trim(&mut self, is_known: &impl Fn(&PeerId) -> bool) -> usize {
        let mut left_out = 0;
        while self.named.len() + self.listed_hints.len() > MAX_PEERS {
            let hint = |trust: Trust| self.listed_hints.iter().rev().find(move |(_, of)| **of <= trust);
            let id = |trust: Trust| self.named.iter().rev().find(move |(id, of)| of.trust <= trust && !is_known(id));
            let hint_or_id = |trust| match hint(trust) {
                Some((address, _)) => Some((Some(address.clone()), None)),
                None => id(trust).map(|(id, _)| (None, Some(id.clone()))),
            };
            let known = || self.named.keys().next_back().map(|id| (None, Some(id.clone())));
            match hint_or_id(Trust::Hints).or_else(|| hint_or_id(Trust::Authority)).or_else(known) {
                Some((Some(address), _)) => drop(self.listed_hints.remove(&address)),
                Some((None, Some(id))) => drop(self.named.remove(&id)),
                _ => break,
            }
            left_out += 1;
        }
        left_out
    }

    /// Returns whether both listings have the same ids and the same addresses without an id. The addresses of ids may
    /// differ.
    pub(super) fn has_peers_of(&self, other: &Self) -> bool {
        self.listed_hints.keys().eq(other.listed_hints.keys()) && self.named.keys().eq(other.named.keys())
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

fn add(hints: &mut BTreeMap<Address, Trust>, address: Address, trust: Trust) {
    let known = hints.entry(address).or_default();
    *known = trust.max(*known);
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
