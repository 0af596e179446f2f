//! What a published set changes: who is dialled, who is missing, and whether that is believed.

use std::{collections::BTreeSet, time::Duration};

use crate::membership::stabilizer::{
    ListingStatus, OwnerKind, Probe, Removals, SelfListed, Stabilizer, dials::DialPurpose, events::Warning,
    listing::Listing,
};
use crate::{identity::PeerId, membership::provider::PeerSet};

impl Stabilizer {
    pub(super) fn set(&mut self, now: Duration, set: PeerSet) {
        let (listing, left_out) = Listing::read(set.peers);
        self.count_ignored_addresses(&listing);
        let heard = listing.named.get(&self.me.id).and_then(|listed| listed.incarnation);
        if !set.is_complete {
            let left_out = left_out + self.listing.overlay(listing);
            self.warn_of_excess(now, left_out);
        } else {
            self.warn_of_excess(now, left_out);
            self.complete_set(now, listing);
        }
        if let Some(incarnation) = heard {
            self.heard_of_me(now, incarnation);
        }
        self.reconcile(now);
        self.sweep(now);
    }

    fn complete_set(&mut self, now: Duration, listing: Listing) {
        self.counters.sets += 1;
        self.first_set_at.get_or_insert(now);
        if listing.named.contains_key(&self.me.id) || listing.hints.iter().any(|a| self.is_mine(a)) {
            self.self_listed = SelfListed::Seen;
        }
        let is_same = self.complete.as_ref().is_some_and(|before| before.has_peers_of(&listing));
        self.complete = Some(listing.clone());
        self.listing = listing;
        if !is_same {
            self.asking.reset(now);
            self.judge(now);
        } else if self.removals == (Removals::Held { is_asked: true }) {
            // The provider has looked again and means it.
            self.removals = Removals::Allowed;
        }
        if self.removals == Removals::Allowed {
            self.counters.last_set_at = Some(now);
        }
    }

    /// Holds a set that loses more than half of the members: a broken watch, selector or name server is likelier.
    fn judge(&mut self, now: Duration) {
        let listed = self.listed_ids();
        let of = self.members.len();
        let missing = self.members.keys().filter(|id| !listed.contains(*id)).count();
        if missing * 2 <= of || mutant!(EmptySetAccepted) {
            self.removals = Removals::Allowed;
            return;
        }
        self.removals = Removals::Held { is_asked: false };
        self.asking.hurry(now);
        self.counters.holds += 1;
        self.warn_rarely(now, "held", Warning::Held { missing, of });
    }

    /// Brings dials and standings in line with what is listed.
    pub(super) fn reconcile(&mut self, now: Duration) {
        let listed = self.listed_ids();
        for (id, entry) in &mut self.members {
            entry.standing.follow(now, listed.contains(id));
        }
        for (address, alias) in &mut self.owners_of {
            let is_listed = self.listing.has_address(address, &self.me.id);
            alias.unlisted_since = if is_listed { None } else { alias.unlisted_since.or(Some(now)) };
        }
        // Our own record is dialled only where we do not know to be.
        let me = DialPurpose::Named(self.me.id.clone());
        let wants_me = !self.addresses_of(&me, &[]).is_empty();
        let mut dialled = BTreeSet::new();
        for target in self.dials.iter_mut() {
            let is_listed = match &target.aim {
                DialPurpose::Member(_) => true,
                aim if *aim == me => wants_me,
                aim => self.listing.wants(aim),
            };
            target.unlisted_since = if is_listed { None } else { target.unlisted_since.or(Some(now)) };
            dialled.insert(target.aim.clone());
        }
        let named =
            self.listing.named.keys().filter(|id| !self.members.contains_key(*id)).cloned().map(DialPurpose::Named);
        let hints =
            self.listing.hints.iter().filter(|a| !self.owners_of.contains_key(*a)).cloned().map(DialPurpose::Hint);
        for aim in named.chain(hints).collect::<Vec<_>>() {
            if !dialled.contains(&aim) {
                self.open(aim);
            }
        }
        let named = self.dials.which(|t| t.aim.id().is_some_and(|id| self.listing.named.contains_key(id)));
        for dial in named {
            self.retarget(dial);
        }
    }

    /// The members that discovery lists, by name or by an address known to be theirs.
    fn listed_ids(&self) -> BTreeSet<PeerId> {
        let by_address = self.listing.hints.iter().filter_map(|address| match &self.owners_of.get(address)?.whose {
            OwnerKind::Peer(id) => Some(id.clone()),
            OwnerKind::Me => None,
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
