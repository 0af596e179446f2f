//! What an answer on a connection means: a peer, ourselves, or somebody who should not be there.

use std::time::Duration;

use crate::identity::{Address, Incarnation, PeerId};
use crate::membership::stabilizer::{
    AddressOwner, Entry, FORMER_LIVES, ListingStatus, OwnerKind, SelfListed, Stabilizer,
    dials::{DialPurpose, Link},
    events::{Action, DialId, HelloFacts, Refusal, Warning},
};

/// After another node answered under our id: longer than the longest back-off until it answers again.
const RIVAL_MEMORY: Duration = Duration::from_secs(60);

impl Stabilizer {
    /// A Hello came on our connection to a target.
    pub(super) fn hello(&mut self, now: Duration, dial: DialId, hello: HelloFacts) {
        // Hung up while it was on its way.
        let Some(aim) = self.dials.get(dial).map(|t| t.aim.clone()) else { return };
        if hello.id == self.me.id
            && hello.incarnation != self.me.incarnation
            && !self.former.contains(&hello.incarnation)
        {
            return self.duplicate_id(now, dial, hello.incarnation);
        }
        if aim.id().is_some_and(|expected| *expected != hello.id) {
            self.actions.push(Action::Redial { dial });
            return self.refused(now, dial, Refusal::WrongId { found: Some(hello.id) });
        }
        if hello.id == self.me.id {
            return self.found_myself(now, dial);
        }
        if self.gone.get(&hello.id).is_some_and(|(incarnation, _)| *incarnation == hello.incarnation) {
            return self.redial(now, dial);
        }
        // It was listed when it was dialled, and is not any more.
        if !matches!(aim, DialPurpose::Member(_)) && !self.listing.wants(&aim) {
            return self.hangup(dial);
        }
        let other = self.members.get(&hello.id).filter(|old| old.dial != dial && self.dials.is_live(old.dial));
        match other.map(|old| old.facts.incarnation) {
            Some(known) if known > hello.incarnation => self.stale_incarnation(now, dial, hello, known),
            Some(known) if known == hello.incarnation => {
                self.learn(now, &aim, &hello.id);
                self.hangup(dial);
            }
            // New, newer, or the only life that answers: then its incarnation may be lower too, after a restart
            // with the clock set back.
            _ => self.admit(now, dial, aim, hello),
        }
    }

    /// Makes the peer a member on this connection, or moves the member to it.
    fn admit(&mut self, now: Duration, dial: DialId, aim: DialPurpose, hello: HelloFacts) {
        self.learn(now, &aim, &hello.id);
        let id = hello.id.clone();
        if !matches!(aim, DialPurpose::Member(_)) {
            let named = DialPurpose::Named(id.clone());
            let surplus = self.dials.which(|t| t.aim == named);
            let surplus = surplus.into_iter().chain(self.members.get(&id).map(|old| old.dial));
            for other in surplus.filter(|other| *other != dial).collect::<Vec<_>>() {
                self.hangup(other);
            }
        }
        if let Some(target) = self.dials.get_mut(dial) {
            target.aim = DialPurpose::Member(id.clone());
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
                self.members.insert(id, Entry { facts: hello, dial, standing: ListingStatus::Listed, left_at: None });
            }
        }
        self.changed(now);
    }

    /// Remembers whose a hinted address is: it is listed, and so is the peer.
    fn learn(&mut self, now: Duration, aim: &DialPurpose, id: &PeerId) {
        let DialPurpose::Hint(address) = aim else { return };
        self.own(now, address.clone(), OwnerKind::Peer(id.clone()));
        if let Some(entry) = self.members.get_mut(id) {
            entry.standing = ListingStatus::Listed;
        }
    }

    fn own(&mut self, now: Duration, address: Address, whose: OwnerKind) {
        let unlisted_since = if self.listing.has_address(&address, &self.me.id) { None } else { Some(now) };
        self.owners_of.insert(address, AddressOwner { whose, unlisted_since });
    }

    fn found_myself(&mut self, now: Duration, dial: DialId) {
        self.self_listed = SelfListed::Seen;
        if let Some(target) = self.dials.get(dial) {
            for address in target.addresses.clone() {
                self.own(now, address, OwnerKind::Me);
            }
        }
        self.hangup(dial);
    }

    /// Another live node answers under our id.
    fn duplicate_id(&mut self, now: Duration, dial: DialId, incarnation: Incarnation) {
        self.rival_until = now + RIVAL_MEMORY;
        let at = self.dials.get(dial).map(|t| t.addresses.clone()).unwrap_or_default();
        self.actions.push(Action::DuplicateId { at, incarnation });
        self.redial(now, dial);
    }

    /// Two lives of one id answer. The lower incarnation waits until the higher is gone.
    fn stale_incarnation(&mut self, now: Duration, dial: DialId, hello: HelloFacts, known: Incarnation) {
        self.counters.old_lives += 1;
        let warning = Warning::OldLife { id: hello.id, incarnation: hello.incarnation, known };
        self.warn_rarely(now, "old life", warning);
        self.redial(now, dial);
    }

    fn redial(&mut self, now: Duration, dial: DialId) {
        self.actions.push(Action::Redial { dial });
        self.down(now, dial);
    }

    /// The target answered and was not what it should be.
    pub(super) fn refused(&mut self, now: Duration, dial: DialId, why: Refusal) {
        let Some(target) = self.dials.get_mut(dial) else { return };
        self.counters.refusals += 1;
        if target.refusal.as_ref() != Some(&why) {
            target.refusal = Some(why.clone());
            let (addresses, expected) = (target.addresses.clone(), target.expected.clone());
            self.actions.push(Action::Warn(Warning::Refused { addresses, expected, why: why.clone() }));
        }
        let aim = target.aim.clone();
        if let (Refusal::WrongId { .. }, DialPurpose::Member(id)) = (why, aim) {
            // One of its hinted addresses has a new owner; dialled as hints again, they will tell which.
            self.owners_of.retain(|_, alias| !alias.is_of(&id));
            self.down(now, dial);
            return self.reconcile(now);
        }
        self.down(now, dial);
    }

    /// The connection is not there: health, which changes no member list.
    pub(super) fn down(&mut self, now: Duration, dial: DialId) {
        let Some(target) = self.dials.get_mut(dial) else { return };
        target.link = Link::Down;
        if let DialPurpose::Member(id) = &target.aim
            && let Some(Entry { standing: ListingStatus::Missing(probe), .. }) = self.members.get_mut(id)
        {
            probe.hurry(now);
        }
        self.retarget(dial);
    }

    /// Somebody knows us by another incarnation: ours must be the highest.
    pub(super) fn heard_of_me(&mut self, now: Duration, incarnation: Incarnation) {
        if incarnation <= self.me.incarnation || now < self.rival_until {
            return;
        }
        // Nothing is above the highest number; what claims it is not believed.
        let Some(above) = incarnation.0.checked_add(1).map(Incarnation) else { return };
        self.former.insert(self.me.incarnation);
        if self.former.len() > FORMER_LIVES {
            self.former.pop_first();
        }
        self.me.incarnation = above;
        self.actions.push(Action::RaiseIncarnation(above));
        self.changed(now);
    }
}
