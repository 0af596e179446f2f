//! How a member leaves: by its own goodbye, by a hint and a failed ping, or by being missed for long enough.

use std::time::Duration;

use crate::identity::{Incarnation, PeerId};
use crate::membership::stabilizer::{
    Entry, ListingStatus, OwnerKind, Probe, Removals, Stabilizer,
    dials::{DialPurpose, Link},
    events::{Action, Warning},
};

/// How long a missing peer stays: longer than a pod's record takes to be rewritten.
const GRACE: Duration = Duration::from_secs(5);
/// From a failed ping to the next: what fails twice so far apart is not one lost packet.
const PING_AGAIN: Duration = Duration::from_secs(1);
/// From an answered ping to the next, and from one that was never reported back.
const PING_ALIVE: Duration = Duration::from_secs(5);
/// Failed pings that prove a peer of a held set gone.
const FAILURES_TO_RELEASE: u32 = 2;
/// How long a life that said goodbye is not let in again: it may answer until its process has ended.
const GONE_MEMORY: Duration = Duration::from_secs(60);
/// Between two pings that discovery's hints cause at one peer: anybody may be able to send hints.
const LEFT_AGAIN: Duration = Duration::from_secs(1);

impl Probe {
    pub(super) fn new(now: Duration) -> Self {
        Self { since: now, failures: 0, is_asked: false, next_ping: now }
    }

    /// The connection broke: what was the last sign of life is old. Failed pings stay a second apart.
    pub(super) fn hurry(&mut self, now: Duration) {
        if !self.is_asked && self.failures == 0 {
            self.next_ping = self.next_ping.min(now);
        }
    }

    fn ask(&mut self, now: Duration) {
        self.is_asked = true;
        self.next_ping = now + PING_ALIVE;
    }
}

impl Stabilizer {
    /// A peer said goodbye on its own connection.
    pub(super) fn goodbye(&mut self, now: Duration, id: &PeerId, incarnation: Incarnation) {
        let Some(entry) = self.members.get(id).filter(|_| !mutant!(GoodbyeIgnored)) else { return };
        if entry.facts.incarnation != incarnation {
            self.counters.ignored_goodbyes += 1;
            return self.warn_rarely(now, "goodbye", Warning::IgnoredGoodbye { id: id.clone() });
        }
        self.gone.insert(id.clone(), (incarnation, now + GONE_MEMORY));
        self.remove(now, id);
        // While it is listed it is dialled: its next life will answer there.
        self.reconcile(now);
    }

    /// Discovery says that a peer left. Only the peer itself can say that, so it is asked.
    pub(super) fn said_to_have_left(&mut self, now: Duration, id: &PeerId, incarnation: Option<Incarnation>) {
        if *id == self.me.id {
            return incarnation.into_iter().for_each(|i| self.heard_of_me(now, i));
        }
        let Some(entry) = self.members.get_mut(id) else { return };
        let is_live = self.dials.is_live(entry.dial);
        let is_former = incarnation.is_some_and(|i| i < entry.facts.incarnation);
        if !is_former && entry.left_at.is_none_or(|at| now >= at + LEFT_AGAIN) {
            entry.left_at = Some(now);
            if matches!(entry.standing, ListingStatus::Listed) {
                entry.standing = ListingStatus::Left(Probe::new(now));
            }
            if let ListingStatus::Left(probe) | ListingStatus::Missing(probe) = &mut entry.standing {
                probe.ask(now);
                self.actions.push(Action::Ping { id: id.clone() });
            }
        }
        if is_live || is_former {
            self.counters.ignored_goodbyes += 1;
            self.warn_rarely(now, "goodbye", Warning::IgnoredGoodbye { id: id.clone() });
        }
    }

    /// A ping was answered, or not.
    pub(super) fn pinged(&mut self, now: Duration, id: &PeerId, is_alive: bool) {
        let Some(entry) = self.members.get_mut(id) else { return };
        let (ListingStatus::Left(probe) | ListingStatus::Missing(probe)) = &mut entry.standing else { return };
        // An answer to a question of an earlier doubt.
        if !std::mem::take(&mut probe.is_asked) {
            return;
        }
        if is_alive {
            probe.failures = 0;
            probe.next_ping = now + PING_ALIVE;
            if matches!(entry.standing, ListingStatus::Left(_)) {
                entry.standing = ListingStatus::Listed;
            }
        } else {
            probe.failures = probe.failures.saturating_add(1);
            probe.next_ping = now + PING_AGAIN;
        }
        self.sweep(now);
    }

    /// Lets go of what is due: missing members, targets that nobody lists, memories; and pings those in doubt.
    pub(super) fn sweep(&mut self, now: Duration) {
        self.release();
        let leaving: Vec<_> =
            self.members.iter().filter(|(_, entry)| self.is_due(now, entry)).map(|(id, _)| id.clone()).collect();
        for id in &leaving {
            self.remove(now, id);
        }
        let is_over = |since: Option<Duration>| since.is_some_and(|since| now >= since + GRACE);
        let stale = self.dials.which(|t| !matches!(t.aim, DialPurpose::Member(_)) && is_over(t.unlisted_since));
        for dial in &stale {
            self.hangup(*dial);
        }
        self.gone.retain(|_, (_, until)| now < *until);
        // An address that is listed again later may be somebody else's by then. But that of a missing peer is
        // what the peer will be known by when it is listed again.
        let members = &self.members;
        let is_missing = |whose: &OwnerKind| match whose {
            OwnerKind::Me => false,
            OwnerKind::Peer(id) => members.get(id).is_some_and(|e| matches!(e.standing, ListingStatus::Missing(_))),
        };
        self.owners_of.retain(|_, alias| !is_over(alias.unlisted_since) || is_missing(&alias.whose));
        if !leaving.is_empty() || !stale.is_empty() {
            // A peer that is listed and left by a hint is dialled anew, and so is what found no room before.
            self.reconcile(now);
        }
        self.ping_doubtful(now);
    }

    /// Ends a hold when every missing peer is proven gone.
    fn release(&mut self) {
        let is_alive = |e: &Entry| matches!(&e.standing, ListingStatus::Missing(p) if p.failures < FAILURES_TO_RELEASE);
        if self.removals != Removals::Allowed && !self.members.values().any(is_alive) {
            self.removals = Removals::Allowed;
        }
    }

    fn is_due(&self, now: Duration, entry: &Entry) -> bool {
        match &entry.standing {
            ListingStatus::Listed => false,
            ListingStatus::Left(probe) => probe.failures > 0,
            ListingStatus::Missing(_) if self.removals != Removals::Allowed => false,
            ListingStatus::Missing(probe) => {
                let is_gone = probe.failures > 0 && !self.dials.is_live(entry.dial);
                is_gone || now >= probe.since + GRACE
            }
        }
    }

    fn ping_doubtful(&mut self, now: Duration) {
        let is_held = self.removals != Removals::Allowed;
        for (id, entry) in &mut self.members {
            let is_down = self.dials.get(entry.dial).is_none_or(|t| t.link != Link::Live);
            let probe = match &mut entry.standing {
                ListingStatus::Left(probe) => probe,
                // A live connection is sign of life enough, save where most peers depend on it.
                ListingStatus::Missing(probe) if is_held || is_down => probe,
                ListingStatus::Listed | ListingStatus::Missing(_) => continue,
            };
            if now >= probe.next_ping {
                probe.ask(now);
                self.actions.push(Action::Ping { id: id.clone() });
            }
        }
    }

    fn remove(&mut self, now: Duration, id: &PeerId) {
        let Some(entry) = self.members.remove(id) else { return };
        self.hangup(entry.dial);
        self.owners_of.retain(|_, alias| !alias.is_of(id));
        self.counters.removals += 1;
        self.changed(now);
    }
}
