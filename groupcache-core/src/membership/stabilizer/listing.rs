//! What discovery says, in one form: ids with their addresses, and addresses that belong to nobody yet.

use std::collections::{BTreeMap, BTreeSet};

use crate::membership::stabilizer::dials::DialPurpose;
use crate::{
    identity::{Address, Incarnation, MAX_ADDRESSES, PeerId},
    membership::provider::Peer,
};

/// Most peers that are taken from a set, and most that all sets since the last complete one may add up to.
/// Each costs a connection, and a ring of so many is still rebuilt in milliseconds.
pub(super) const MAX_PEERS: usize = 2_000;

/// What discovery says about one id.
#[derive(Clone, Debug, Default)]
pub(super) struct Listed {
    pub(super) addresses: Vec<Address>,
    pub(super) incarnation: Option<Incarnation>,
}

/// Who is listed.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    pub(super) named: BTreeMap<PeerId, Listed>,
    pub(super) hints: BTreeSet<Address>,
}

impl Listing {
    /// Reads a set and tells how many entries were beyond the limit.
    ///
    /// One id listed twice is one peer with the addresses of both, those of the newer life first.
    pub(super) fn read(peers: Vec<Peer>) -> (Self, usize) {
        let (mut listing, mut left_out) = (Self::default(), 0);
        for peer in peers {
            match peer.id {
                None => listing.hints.extend(peer.addresses.into_iter().take(MAX_ADDRESSES)),
                Some(id) => {
                    let listed = listing.named.entry(id).or_default();
                    // `None` is less than any: a record with an incarnation is the better one.
                    let is_newer = peer.incarnation > listed.incarnation;
                    listed.merge(peer.addresses, peer.incarnation, is_newer);
                }
            }
            left_out += listing.trim(); // now: a set may be of any size
        }
        (listing, left_out)
    }

    /// Adds a later listing that says nothing about who is missing; what it says of an address is newer.
    pub(super) fn overlay(&mut self, later: Self) -> usize {
        self.hints.extend(later.hints);
        for (id, listed) in later.named {
            self.named.entry(id).or_default().merge(listed.addresses, listed.incarnation, true);
        }
        self.trim()
    }

    /// Which entries are beyond the limit depends on their names alone, so that all nodes leave out the same.
    /// Addresses go first: they may be those of peers that are named too.
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

    /// Whether both list the same peers, wherever those are.
    pub(super) fn has_peers_of(&self, other: &Self) -> bool {
        self.hints == other.hints && self.named.keys().eq(other.named.keys())
    }

    /// Whether the address is listed without a peer's name or under our own: that is where we may find ourselves.
    pub(super) fn has_address(&self, address: &Address, me: &PeerId) -> bool {
        self.hints.contains(address) || self.named.get(me).is_some_and(|listed| listed.addresses.contains(address))
    }

    /// Whether this is listed.
    pub(super) fn wants(&self, aim: &DialPurpose) -> bool {
        match aim {
            DialPurpose::Named(id) | DialPurpose::Member(id) => self.named.contains_key(id),
            DialPurpose::Hint(address) => self.hints.contains(address),
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

/// The first few of the addresses, each once, in their order.
pub(crate) fn distinct(addresses: impl IntoIterator<Item = Address>) -> Vec<Address> {
    let mut kept = Vec::new();
    for address in addresses {
        if kept.len() < MAX_ADDRESSES && !kept.contains(&address) {
            kept.push(address);
        }
    }
    kept
}
