//! Answers on connections to targets: from a peer, from the local node, or from an unexpected node.

use std::time::Duration;

use crate::identity::{Address, Incarnation, PeerId};
use crate::membership::stabilizer::{
    AddressOwner, Entry, ListingStatus, MAX_EARLIER_INCARNATIONS, OwnerKind, SelfListed, Stabilizer,
    dials::{DialPurpose, Link},
    events::{Action, Refusal, Warning},
    members::{DialId, HelloFacts},
};

/// Time for which an answer with the id of this node is remembered: longer than the longest backoff until the next
/// answer.
const DUPLICATE_ID_MEMORY: Duration = Duration::from_secs(60);

/// Minimum time between two raises of the incarnation, because an announcer of higher ones may repeat them.
const RAISE_PAUSE: Duration = Duration::from_secs(1);

impl Stabilizer {
    /// Handles a Hello from a target.
    pub(super) fn hello(&mut self, now: Duration, dial: DialId, hello: HelloFacts) {
        // The target was hung up while the Hello was in transit.
        let Some(purpose) = self.dials.get(dial).map(|t| t.purpose.clone()) else { return };
        if hello.id == self.me.id
            && hello.incarnation != self.me.incarnation
            && !self.earlier_incarnations.contains(&hello.incarnation)
        {
            return self.duplicate_id(now, dial, hello.incarnation);
        }
        if purpose.id().is_some_and(|expected| *expected != hello.id) {
            self.actions.push(Action::Redial { dial });
            return self.refused(now, dial, Refusal::WrongId { found: Some(hello.id) });
        }
        if hello.id == self.me.id {
            return self.found_local_node(now, dial);
        }
        if self.departed.get(&hello.id).is_some_and(|(incarnation, _)| *incarnation == hello.incarnation) {
            return self.redial(now, dial);
        }
        // The target was listed when it was dialled and is not listed any more.
        if !matches!(purpose, DialPurpose::Member(_)) && !self.listing.wants(&purpose) {
            return self.hangup(dial);
        }
        let other = self.members.get(&hello.id).filter(|entry| entry.dial != dial && self.dials.is_live(entry.dial));
        match other.map(|entry| entry.facts.incarnation) {
            Some(known) if known > hello.incarnation => self.stale_incarnation(now, dial, hello, known),
            Some(known) if known == hello.incarnation => {
                self.record_hint_owner(now, &purpose, &hello.id);
                self.hangup(dial);
            }
            // A new peer, a newer incarnation, or the only incarnation that answers, which may be lower after a restart
            // with the clock set back.
            _ => self.admit(now, dial, purpose, hello),
        }
    }

    /// Makes the peer a member on this connection, or moves the member to it.
    fn admit(&mut self, now: Duration, dial: DialId, purpose: DialPurpose, hello: HelloFacts) {
        self.record_hint_owner(now, &purpose, &hello.id);
        let id = hello.id.clone();
        if !matches!(purpose, DialPurpose::Member(_)) {
            let named = DialPurpose::Named(id.clone());
            let surplus = self.dials.select(|t| t.purpose == named);
            let surplus = surplus.into_iter().chain(self.members.get(&id).map(|old| old.dial));
            for other in surplus.filter(|other| *other != dial).collect::<Vec<_>>() {
                self.hangup(other);
            }
        }
        if let Some(target) = self.dials.get_mut(dial) {
            target.purpose = DialPurpose::Member(id.clone());
            target.link = Link::Live;
            target.refusal = None;
            target.unlisted_since = None;
        }
        match self.members.get_mut(&id) {
            Some(entry) => {
                entry.dial = dial;
                entry.facts = hello;
            }
            None => {
                let listed_by = self.listed_ids().get(&id).copied().unwrap_or_default();
                let listing_status = ListingStatus::Listed;
                self.members.insert(id, Entry { facts: hello, dial, listing_status, listed_by, left_at: None });
            }
        }
        self.changed(now);
    }

    /// Records the peer that answered at a hinted address. The peer counts as listed, because the address is.
    fn record_hint_owner(&mut self, now: Duration, purpose: &DialPurpose, id: &PeerId) {
        let DialPurpose::Hint(address) = purpose else { return };
        self.record_owner(now, address.clone(), OwnerKind::Peer(id.clone()));
        if let Some(entry) = self.members.get_mut(id) {
            entry.listing_status = ListingStatus::Listed;
        }
    }

    fn record_owner(&mut self, now: Duration, address: Address, kind: OwnerKind) {
        let unlisted_since = if self.listing.has_address(&address, &self.me.id) { None } else { Some(now) };
        self.address_owners.insert(address, AddressOwner { kind, unlisted_since });
    }

    /// Records that the local node answers at the addresses of a target, and drops the target.
    pub(super) fn found_local_node(&mut self, now: Duration, dial: DialId) {
        self.self_listed = SelfListed::Seen;
        if let Some(target) = self.dials.get(dial) {
            for address in target.addresses.clone() {
                self.record_owner(now, address, OwnerKind::Local);
            }
        }
        self.hangup(dial);
    }

    /// Reports that another live node answers with the id of this node.
    fn duplicate_id(&mut self, now: Duration, dial: DialId, incarnation: Incarnation) {
        self.duplicate_id_until = now + DUPLICATE_ID_MEMORY;
        let at = self.dials.get(dial).map(|t| t.addresses.clone()).unwrap_or_default();
        if self.may_warn(now, "duplicate id") {
            self.actions.push(Action::DuplicateId { at, incarnation });
        }
        self.redial(now, dial);
    }

    /// Handles the Hello of a stale incarnation, which is dialled again until the newer one is gone.
    fn stale_incarnation(&mut self, now: Duration, dial: DialId, hello: HelloFacts, known: Incarnation) {
        self.counters.stale_incarnations += 1;
        let warning = Warning::OldLife { id: hello.id, incarnation: hello.incarnation, known };
        self.warn_rarely(now, "stale incarnation", warning);
        self.redial(now, dial);
    }

    fn redial(&mut self, now: Duration, dial: DialId) {
        self.actions.push(Action::Redial { dial });
        self.down(now, dial);
    }

    /// Handles a refused connection to a target that answered.
    pub(super) fn refused(&mut self, now: Duration, dial: DialId, why: Refusal) {
        let Some(target) = self.dials.get_mut(dial) else { return };
        self.counters.refusals += 1;
        let (purpose, addresses, expected) =
            (target.purpose.clone(), target.addresses.clone(), target.expected.clone());
        if target.refusal.replace(why.clone()).as_ref() != Some(&why) {
            self.warn_rarely(now, why.kind(), Warning::Refused { addresses, expected, why: why.clone() });
        }
        if let (Refusal::WrongId { .. }, DialPurpose::Member(id)) = (why, purpose) {
            // A hinted address of the member has a new owner. The addresses become hints again, so that dialling them
            // shows which.
            self.address_owners.retain(|_, owner| !owner.is_of(&id));
            self.down(now, dial);
            return self.reconcile(now);
        }
        self.down(now, dial);
    }

    /// Marks the connection of a target as down. Health changes no member list.
    pub(super) fn down(&mut self, now: Duration, dial: DialId) {
        let Some(target) = self.dials.get_mut(dial) else { return };
        target.link = Link::Down;
        if let DialPurpose::Member(id) = &target.purpose
            && let Some(Entry { listing_status: ListingStatus::Missing(probe), .. }) = self.members.get_mut(id)
        {
            probe.expedite(now);
        }
        self.update_target(dial);
    }

    /// Raises the incarnation of this node above `incarnation`, which discovery has for its id.
    pub(super) fn raise_incarnation(&mut self, now: Duration, incarnation: Incarnation) {
        if incarnation <= self.me.incarnation || now < self.duplicate_id_until.max(self.next_raise) {
            return;
        }
        // No incarnation is above the highest number, so that a record with it is ignored.
        let Some(above) = incarnation.0.checked_add(1).map(Incarnation) else { return };
        self.earlier_incarnations.insert(self.me.incarnation);
        if self.earlier_incarnations.len() > MAX_EARLIER_INCARNATIONS {
            self.earlier_incarnations.pop_first();
        }
        self.me.incarnation = above;
        self.next_raise = now + RAISE_PAUSE;
        self.actions.push(Action::RaiseIncarnation(above));
        self.changed(now);
    }
}
