//! Peer sets: the targets to dial, the missing members, and the suspension of removals.

use std::{collections::BTreeSet, time::Duration};

use crate::membership::stabilizer::{
    ListingStatus, OwnerKind, Probe, Removals, SelfListed, Stabilizer, dials::DialPurpose, events::Warning,
    listing::Listing,
};
use crate::{identity::PeerId, membership::provider::PeerSet};

impl Stabilizer {
    /// Handles a set that a provider published.
    pub(super) fn set(&mut self, now: Duration, set: PeerSet) {
        let (listing, left_out) = Listing::read(set.peers);
        self.count_ignored_addresses(&listing);
        let listed_incarnation = listing.named.get(&self.me.id).and_then(|listed| listed.incarnation);
        if !set.is_complete {
            let left_out = left_out + self.listing.overlay(listing);
            self.warn_of_excess(now, left_out);
        } else {
            self.warn_of_excess(now, left_out);
            self.complete_set(now, listing);
        }
        if let Some(incarnation) = listed_incarnation {
            self.raise_incarnation(now, incarnation);
        }
        self.reconcile(now);
        self.sweep(now);
    }

    fn complete_set(&mut self, now: Duration, listing: Listing) {
        self.counters.sets += 1;
        self.first_set_at.get_or_insert(now);
        if listing.named.contains_key(&self.me.id) || listing.hints.iter().any(|a| self.is_own_address(a)) {
            self.self_listed = SelfListed::Seen;
        }
        let is_same = self.complete.as_ref().is_some_and(|last| last.has_peers_of(&listing));
        self.complete = Some(listing.clone());
        self.listing = listing;
        if !is_same {
            self.resolve_backoff.reset(now);
            self.check_missing(now);
        } else if self.removals == (Removals::Suspended { is_asked: true }) {
            // The provider has confirmed the set after a request to look again.
            self.removals = Removals::Allowed;
        }
        if self.removals == Removals::Allowed {
            self.counters.last_set_at = Some(now);
        }
    }

    /// Suspends removals if the listing lacks more than half of the members, because a broken watch, selector or name
    /// server is likelier than their departure.
    fn check_missing(&mut self, now: Duration) {
        let listed = self.listed_ids();
        let of = self.members.len();
        let missing = self.members.keys().filter(|id| !listed.contains(*id)).count();
        if missing * 2 <= of || mutant!(EmptySetAccepted) {
            self.removals = Removals::Allowed;
            return;
        }
        self.removals = Removals::Suspended { is_asked: false };
        self.resolve_backoff.expedite(now);
        self.counters.holds += 1;
        self.warn_rarely(now, "suspended", Warning::Held { missing, of });
    }

    /// Brings targets and listing statuses in line with the listing.
    pub(super) fn reconcile(&mut self, now: Duration) {
        let listed = self.listed_ids();
        for (id, entry) in &mut self.members {
            entry.listing_status.follow(now, listed.contains(id));
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
            self.listing.hints.iter().filter(|a| !self.address_owners.contains_key(*a)).cloned().map(DialPurpose::Hint);
        for purpose in named.chain(hints).collect::<Vec<_>>() {
            if !dialled.contains(&purpose) {
                self.open(purpose);
            }
        }
        let named = self.dials.select(|t| t.purpose.id().is_some_and(|id| self.listing.named.contains_key(id)));
        for dial in named {
            self.update_target(dial);
        }
    }

    /// Returns the peers that discovery lists, by id or by an address at which the peer has answered.
    fn listed_ids(&self) -> BTreeSet<PeerId> {
        let by_address =
            self.listing.hints.iter().filter_map(|address| match &self.address_owners.get(address)?.kind {
                OwnerKind::Peer(id) => Some(id.clone()),
                OwnerKind::Local => None,
            });
        self.listing.named.keys().cloned().chain(by_address).collect()
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

impl ListingStatus {
    fn follow(&mut self, now: Duration, is_listed: bool) {
        match (&self, is_listed) {
            (Self::Missing(_), true) => *self = Self::Listed,
            (Self::Listed | Self::Left(_), false) => *self = Self::Missing(Probe::new(now)),
            (Self::Listed | Self::Left(_), true) | (Self::Missing(_), false) => {}
        }
    }
}
