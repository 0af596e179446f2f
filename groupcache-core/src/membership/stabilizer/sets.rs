//! Peer sets: the targets to dial, the missing members, and the suspension of removals.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::membership::stabilizer::{
    Entry, InboundPeer, ListingStatus, OwnerKind, Probe, Removals, SelfListed, Stabilizer, Suspension,
    dials::DialPurpose, events::Warning, listing::Listing,
};
use crate::{
    identity::{Address, NodeState, PeerId},
    membership::provider::{PeerSet, Trust},
};

impl Stabilizer {
    /// Handles a set that a provider published.
    pub(super) fn set(&mut self, now: Duration, set: PeerSet) {
        let (mut listing, left_out) =
            Listing::read(set.peers, |id| is_known(&self.members, &self.inbound, &self.me.id, id));
        listing.resolve_names(&self.names);
        self.count_ignored_addresses(&listing);
        let listed_incarnation = listing.named.get(&self.me.id).and_then(|listed| listed.incarnation);
        if !set.is_complete {
            let (members, inbound, me) = (&self.members, &self.inbound, &self.me.id);
            let left_out = left_out + self.listing.overlay(listing, |id| is_known(members, inbound, me, id));
            self.listing.resolve_names(&self.names);
            self.warn_of_excess(now, left_out);
        } else {
            self.warn_of_excess(now, left_out);
            self.complete_set(now, listing);
        }
        self.names.retain(|name, _| self.listing.listed_hints.contains_key(name));
        if let Some(incarnation) = listed_incarnation {
            self.raise_incarnation(now, incarnation);
        }
        self.reconcile(now);
        self.sweep(now);
    }

    /// Handles the addresses that a name server has for a listed name without an id. Several addresses of one family are
    /// several nodes behind one name, and each of them becomes a target.
    pub(super) fn resolved(&mut self, now: Duration, name: Address, addresses: Vec<Address>) {
        if !self.listing.listed_hints.contains_key(&name) {
            return; // the name was looked up while it was removed from the list
        }
        // The name server lists the node that answered at the name from now on, and is no authority.
        if let Some(OwnerKind::Peer(id)) = self.address_owners.get(&name).map(|owner| &owner.kind)
            && let Some(entry) = self.members.get_mut(id)
            && !addresses.is_empty()
        {
            entry.listed_by = Trust::Hints;
        }
        if addresses.is_empty() {
            self.names.remove(&name);
        } else {
            self.names.insert(name, addresses);
        }
        self.listing.resolve_names(&self.names);
        self.reconcile(now);
        self.sweep(now);
    }

    /// Returns the listed names without an id. Several nodes may answer behind each.
    pub(crate) fn hinted_names(&self) -> BTreeSet<Address> {
        self.listing.listed_hints.keys().filter(|address| is_name(address)).cloned().collect()
    }

    fn complete_set(&mut self, now: Duration, listing: Listing) {
        self.counters.sets += 1;
        self.first_set_at.get_or_insert(now);
        let self_trust = self.trust_of_local_record(&listing);
        if self_trust.is_some() {
            self.self_listed = SelfListed::Seen;
        }
        self.authority_listed_self |= self_trust == Some(Trust::Authority);
        let is_same = self.complete.as_ref().is_some_and(|last| last.has_peers_of(&listing));
        self.complete = Some(listing.clone());
        self.listing = listing;
        if !is_same {
            self.resolve_backoff.reset(now);
            self.check_missing(now, self_trust);
        } else if self.removals == Removals::Suspended(Suspension::MostMissing { is_asked: true }) {
            // The provider has confirmed the set after a request to look again.
            self.removals = Removals::Allowed;
        }
        if self.removals == Removals::Allowed {
            self.counters.last_set_at = Some(now);
        }
    }

    /// Suspends removals if an authority has ceased to list this node, which is alive, or if the listing lacks more than
    /// half of the members. In both cases a broken watch, selector or name server is likelier than their departure.
    fn check_missing(&mut self, now: Duration, self_trust: Option<Trust>) {
        let listed = self.listed_ids();
        let of = self.members.len();
        let missing = self.members.keys().filter(|id| !listed.contains_key(*id)).count();
        // A draining node may be unlisted because it drains.
        let is_self_lost =
            self.authority_listed_self && self_trust != Some(Trust::Authority) && self.me.state != NodeState::Draining;
        let suspension = match missing {
            0 => None,
            _ if is_self_lost => Some(Suspension::SelfUnlisted),
            _ if missing * 2 > of && !mutant!(EmptySetAccepted) => Some(Suspension::MostMissing { is_asked: false }),
            _ => None,
        };
        let Some(suspension) = suspension else {
            self.removals = Removals::Allowed;
            return;
        };
        let warning = match suspension {
            Suspension::SelfUnlisted => Warning::SelfUnlisted { missing, of },
            Suspension::MostMissing { .. } => Warning::Held { missing, of },
        };
        self.removals = Removals::Suspended(suspension);
        self.resolve_backoff.expedite(now);
        self.counters.holds += 1;
        self.warn_rarely(now, "suspended", warning);
    }

    /// Returns the trust in the source that lists this node, by its id or by an address at which this node answers.
    fn trust_of_local_record(&self, listing: &Listing) -> Option<Trust> {
        let named = listing.named.get(&self.me.id).map(|listed| listed.trust);
        let is_own = |address: &Address| self.is_own_address(address) || self.me.addresses.contains(address);
        // A name may be of several nodes now and of one later, so that no authority lists this node by it.
        let trust_of = |address: &Address, trust: Trust| if is_name(address) { Trust::Hints } else { trust };
        let hinted = listing.hints.iter().filter(|(address, _)| is_own(address)).map(|(a, trust)| trust_of(a, *trust));
        named.into_iter().chain(hinted).max()
    }

    /// Brings targets and listing statuses in line with the listing.
    pub(super) fn reconcile(&mut self, now: Duration) {
        let listed = self.listed_ids();
        for (id, entry) in &mut self.members {
            let trust = listed.get(id).copied();
            entry.listed_by = trust.unwrap_or(entry.listed_by);
            entry.listing_status.follow(now, trust.is_some());
        }
        for (address, owner) in &mut self.address_owners {
            let is_listed = self.listing.has_address(address, &self.me.id);
            owner.unlisted_since = if is_listed { None } else { owner.unlisted_since.or(Some(now)) };
        }
        // The record of the local id is dialled only at addresses that are not known to be the local node's.
        let me = DialPurpose::Named(self.me.id.clone());
        let wants_own_record = !self.addresses_of(&me, &[]).is_empty();
        let mut dialled = BTreeSet::new();
        for target in self.dials.iter_mut() {
            let is_listed = match &target.purpose {
                DialPurpose::Member(_) => true,
                purpose if *purpose == me => wants_own_record,
                purpose => self.listing.wants(purpose),
            };
            target.unlisted_since = if is_listed { None } else { target.unlisted_since.or(Some(now)) };
            dialled.insert(target.purpose.clone());
        }
        let named =
            self.listing.named.keys().filter(|id| !self.members.contains_key(*id)).cloned().map(DialPurpose::Named);
        let hints =
            self.listing.hints.keys().filter(|a| !self.address_owners.contains_key(*a)).cloned().map(DialPurpose::Hint);
        for purpose in named.chain(hints).collect::<Vec<_>>() {
            if !dialled.contains(&purpose) {
                self.open(purpose);
            }
        }
        let named = self.dials.select(|t| t.purpose.id().is_some_and(|id| self.listing.named.contains_key(id)));
        for dial in named {
            self.update_target(dial);
        }
        self.update_unlisted(now);
    }

    /// Returns the peers that discovery lists, by id or by an address at which the peer has answered, each with the
    /// highest trust in a source that lists it.
    pub(super) fn listed_ids(&self) -> BTreeMap<PeerId, Trust> {
        let by_address =
            self.listing.hints.iter().filter_map(|(address, trust)| match &self.address_owners.get(address)?.kind {
                OwnerKind::Peer(id) => Some((id.clone(), *trust)),
                OwnerKind::Local => None,
            });
        let mut listed: BTreeMap<_, _> = self.listing.named.iter().map(|(id, l)| (id.clone(), l.trust)).collect();
        for (id, trust) in by_address {
            let known = listed.entry(id).or_default();
            *known = trust.max(*known);
        }
        listed
    }

    fn count_ignored_addresses(&mut self, listing: &Listing) {
        for (id, listed) in &listing.named {
            let Some(entry) = self.members.get(id).filter(|entry| self.dials.is_live(entry.dial)) else { continue };
            let known = self.listing.named.get(id);
            let is_new = |a| !entry.facts.addresses.contains(a) && !known.is_some_and(|k| k.addresses.contains(a));
            self.counters.ignored_addresses += u64::from(listed.addresses.iter().any(is_new));
        }
    }

    fn warn_of_excess(&mut self, now: Duration, left_out: usize) {
        if left_out > 0 {
            self.warn_rarely(now, "too many peers", Warning::TooManyPeers { left_out });
        }
    }
}

fn is_name(address: &Address) -> bool {
    address.as_str().parse::<std::net::SocketAddr>().is_err()
}

/// Returns whether a peer has answered, or is the local node.
fn is_known(
    members: &BTreeMap<PeerId, Entry>,
    inbound: &BTreeMap<PeerId, InboundPeer>,
    me: &PeerId,
    id: &PeerId,
) -> bool {
    members.contains_key(id) || inbound.contains_key(id) || id == me
}

impl ListingStatus {
    fn follow(&mut self, now: Duration, is_listed: bool) {
        match (&self, is_listed) {
            (Self::Missing(_), true) => *self = Self::Listed,
            (Self::Listed | Self::Left(_), false) => *self = Self::Missing(Probe::new(now)),
            (Self::Listed | Self::Left(_), true) | (Self::Missing(_), false) => {}
        }
    }
}
