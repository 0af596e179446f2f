//! Removal of members: after their goodbye, after a reported departure and a failed ping, or after complete sets have
//! been without them for long enough.

use std::time::Duration;

use crate::membership::stabilizer::{
    Entry, ListingStatus, OwnerKind, Probe, Removals, Stabilizer,
    dials::{DialPurpose, Link},
    events::{Action, Warning},
};
use crate::{
    identity::{Incarnation, PeerId},
    membership::provider::Trust,
};

/// Time for which a missing member stays: longer than the record of a pod takes to be rewritten.
const GRACE: Duration = Duration::from_secs(5);
/// Time from a failed ping to the next, so that two failures do not come from one lost packet.
const PING_AGAIN_FAILED: Duration = Duration::from_secs(1);
/// Time from an answered ping to the next, and from a ping without a result.
const PING_AGAIN_ALIVE: Duration = Duration::from_secs(5);
/// Number of consecutive failed pings after which a missing member counts as gone while removals are suspended.
const FAILURES_TO_REMOVE: u32 = 2;
/// Time for which the Hello of an incarnation is rejected after its goodbye, because its process may still answer.
const DEPARTED_MEMORY: Duration = Duration::from_secs(60);
/// Minimum time between two pings that reported departures cause at one peer, because any client may be able to send
/// hints to discovery.
const LEFT_PING_PAUSE: Duration = Duration::from_secs(1);

impl Probe {
    pub(super) fn new(now: Duration) -> Self {
        Self { since: now, failures: 0, is_outstanding: false, next_ping: now }
    }

    /// Makes the next ping due at once, because the connection broke. Failed pings stay a second apart.
    pub(super) fn expedite(&mut self, now: Duration) {
        if !self.is_outstanding && self.failures == 0 {
            self.next_ping = self.next_ping.min(now);
        }
    }

    /// Notes that a ping is sent.
    fn ping_sent(&mut self, now: Duration) {
        self.is_outstanding = true;
        self.next_ping = now + PING_AGAIN_ALIVE;
    }
}

impl Stabilizer {
    /// Handles the goodbye of a peer on its own connection.
    pub(super) fn goodbye(&mut self, now: Duration, id: &PeerId, incarnation: Incarnation) {
        let Some(entry) = self.members.get(id).filter(|_| !mutant!(GoodbyeIgnored)) else { return };
        if entry.facts.incarnation != incarnation {
            self.counters.ignored_goodbyes += 1;
            return self.warn_rarely(now, "goodbye", Warning::IgnoredGoodbye { id: id.clone() });
        }
        self.departed.insert(id.clone(), (incarnation, now + DEPARTED_MEMORY));
        self.remove(now, id);
        // A listed peer is dialled again, because its next incarnation will answer there.
        self.reconcile(now);
    }

    /// Handles a report of discovery that a peer has left. The peer is pinged, because only its own goodbye is proof.
    pub(super) fn departure_reported(&mut self, now: Duration, id: &PeerId, incarnation: Option<Incarnation>) {
        if *id == self.me.id {
            return incarnation.into_iter().for_each(|i| self.raise_incarnation(now, i));
        }
        let Some(entry) = self.members.get_mut(id) else { return };
        let is_live = self.dials.is_live(entry.dial);
        let is_stale = incarnation.is_some_and(|i| i < entry.facts.incarnation);
        if !is_stale && entry.left_at.is_none_or(|at| now >= at + LEFT_PING_PAUSE) {
            entry.left_at = Some(now);
            if matches!(entry.listing_status, ListingStatus::Listed) {
                entry.listing_status = ListingStatus::Left(Probe::new(now));
            }
            if let ListingStatus::Left(probe) | ListingStatus::Missing(probe) = &mut entry.listing_status {
                probe.ping_sent(now);
                self.actions.push(Action::Ping { id: id.clone() });
            }
        }
        if is_live || is_stale {
            self.counters.ignored_goodbyes += 1;
            self.warn_rarely(now, "goodbye", Warning::IgnoredGoodbye { id: id.clone() });
        }
    }

    /// Handles the result of a ping.
    pub(super) fn pinged(&mut self, now: Duration, id: &PeerId, is_alive: bool) {
        let Some(entry) = self.members.get_mut(id) else { return };
        let (ListingStatus::Left(probe) | ListingStatus::Missing(probe)) = &mut entry.listing_status else { return };
        // The result belongs to a ping of an earlier probe.
        if !std::mem::take(&mut probe.is_outstanding) {
            return;
        }
        if is_alive {
            probe.failures = 0;
            probe.next_ping = now + PING_AGAIN_ALIVE;
            if matches!(entry.listing_status, ListingStatus::Left(_)) {
                entry.listing_status = ListingStatus::Listed;
            }
        } else {
            probe.failures = probe.failures.saturating_add(1);
            probe.next_ping = now + PING_AGAIN_FAILED;
        }
        self.sweep(now);
    }

    /// Removes missing members, unlisted targets and remembered facts that are due, and sends the pings that are due.
    pub(super) fn sweep(&mut self, now: Duration) {
        self.allow_removals();
        let leaving: Vec<_> =
            self.members.iter().filter(|(_, entry)| self.is_due(now, entry)).map(|(id, _)| id.clone()).collect();
        for id in &leaving {
            self.remove(now, id);
        }
        let is_over = |since: Option<Duration>| since.is_some_and(|since| now >= since + GRACE);
        let stale = self.dials.select(|t| !matches!(t.purpose, DialPurpose::Member(_)) && is_over(t.unlisted_since));
        for dial in &stale {
            self.hangup(*dial);
        }
        self.departed.retain(|_, (_, until)| now < *until);
        // The owner of an address is forgotten after the grace, because another peer may have the address when it is
        // listed again. The address of a missing member is kept, because the member is recognised by it when it is
        // listed again.
        let members = &self.members;
        let is_missing = |kind: &OwnerKind| match kind {
            OwnerKind::Local => false,
            OwnerKind::Peer(id) => {
                members.get(id).is_some_and(|e| matches!(e.listing_status, ListingStatus::Missing(_)))
            }
        };
        self.address_owners.retain(|_, owner| !is_over(owner.unlisted_since) || is_missing(&owner.kind));
        if !leaving.is_empty() || !stale.is_empty() {
            // A removed member that is still listed is dialled again, and so are targets that had no room.
            self.reconcile(now);
        }
        self.send_due_pings(now);
    }

    /// Allows removals again when every missing member has failed enough pings.
    fn allow_removals(&mut self) {
        let is_alive =
            |e: &Entry| matches!(&e.listing_status, ListingStatus::Missing(p) if p.failures < FAILURES_TO_REMOVE);
        if self.removals != Removals::Allowed && !self.members.values().any(is_alive) {
            self.removals = Removals::Allowed;
        }
    }

    fn is_due(&self, now: Duration, entry: &Entry) -> bool {
        match &entry.listing_status {
            ListingStatus::Listed => false,
            ListingStatus::Left(probe) => probe.failures > 0,
            ListingStatus::Missing(_) if self.removals != Removals::Allowed => false,
            // Hints may lack a member that is alive. The connection then tells whether the member has left.
            ListingStatus::Missing(probe) if entry.listed_by == Trust::Hints => {
                probe.failures >= FAILURES_TO_REMOVE && !self.dials.is_live(entry.dial)
            }
            ListingStatus::Missing(probe) => {
                let is_gone = probe.failures > 0 && !self.dials.is_live(entry.dial);
                is_gone || now >= probe.since + GRACE
            }
        }
    }

    fn send_due_pings(&mut self, now: Duration) {
        let is_suspended = self.removals != Removals::Allowed;
        for (id, entry) in &mut self.members {
            let is_down = self.dials.get(entry.dial).is_none_or(|t| t.link != Link::Live);
            let probe = match &mut entry.listing_status {
                ListingStatus::Left(probe) => probe,
                // A live connection is proof enough, except while removals are suspended, because the pings then decide
                // about most members.
                ListingStatus::Missing(probe) if is_suspended || is_down => probe,
                ListingStatus::Listed | ListingStatus::Missing(_) => continue,
            };
            if now >= probe.next_ping {
                probe.ping_sent(now);
                self.actions.push(Action::Ping { id: id.clone() });
            }
        }
    }

    fn remove(&mut self, now: Duration, id: &PeerId) {
        let Some(entry) = self.members.remove(id) else { return };
        self.hangup(entry.dial);
        self.address_owners.retain(|_, owner| !owner.is_of(id));
        self.counters.removals += 1;
        self.changed(now);
    }
}
