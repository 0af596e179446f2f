//! What stands between a provider and the ring: `step(now, input) -> actions`, without clock and without I/O.
//!
//! A provider may be wrong, late, empty-handed or lying. So a peer becomes a member only by answering, a member
//! leaves only when discovery has missed it for long enough or it says so itself, and a set that loses most
//! peers is not believed until somebody confirms it. Health is no part of it: a peer that does not answer stays
//! a member, and requests are routed around it elsewhere.

mod dials;
mod events;
mod hello;
mod leave;
mod listing;
mod members;
mod resolve_backoff;
mod sets;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::identity::{Address, Incarnation, NodeState, PeerId};
use crate::membership::stabilizer::{
    dials::{DialPurpose, Dials, Link},
    listing::Listing,
    resolve_backoff::ResolveBackoff,
};
pub(crate) use crate::membership::stabilizer::{
    events::{Action, Counters, DialId, HelloFacts, Input, Refusal, Warning},
    listing::distinct,
    members::{Member, MemberSet},
};

/// A member list is installed when nothing has changed for this long: peers that connect together enter together.
const SETTLE_QUIET: Duration = Duration::from_millis(50);
/// And no later than this after the first change, so that a stream of changes delays nobody for long.
const SETTLE_LIMIT: Duration = Duration::from_millis(250);
/// How long a first complete set may keep a node from being Ready: as long as a healthy peer may take to answer.
const READY_LIMIT: Duration = Duration::from_secs(2);
/// How long a node whose discovery says nothing waits to be Ready, when it knows nobody who is: a source that is down must
/// not keep a service from starting.
const UNHEARD_LIMIT: Duration = Duration::from_secs(10);
/// When to say that discovery never names this node: after every watch and every readiness delay worth waiting for.
const SELF_LISTED_LIMIT: Duration = Duration::from_secs(10);
/// Between two warnings of a kind that discovery or a peer could cause at any rate; counters count them all.
const WARN_AGAIN: Duration = Duration::from_secs(10);
/// Our own incarnations that may still be on their way back to us in a Hello.
const FORMER_LIVES: usize = 16;

/// The state of membership at one node.
#[derive(Debug)]
pub(crate) struct Stabilizer {
    me: HelloFacts,
    /// What we called ourselves before we raised our incarnation.
    former: BTreeSet<Incarnation>,
    /// While another node lives under our id, raising our incarnation would start a race that nobody wins.
    rival_until: Duration,
    listing: Listing,
    complete: Option<Listing>,
    first_set_at: Option<Duration>,
    members: BTreeMap<PeerId, Entry>,
    dials: Dials,
    /// Whose the hinted addresses have turned out to be.
    owners_of: BTreeMap<Address, AddressOwner>,
    /// The lives that said goodbye, and until when they are not let in again.
    gone: BTreeMap<PeerId, (Incarnation, Duration)>,
    removals: Removals,
    asking: ResolveBackoff,
    /// Who was listed and had no connection when it was last looked.
    unreachable: BTreeSet<PeerId>,
    self_listed: SelfListed,
    settle: Settle,
    installed: MemberSet,
    /// When a warning that anybody can cause was last written.
    warned_at: BTreeMap<&'static str, Duration>,
    counters: Counters,
    actions: Vec<Action>,
}

/// A member other than this node.
#[derive(Debug)]
struct Entry {
    facts: HelloFacts,
    dial: DialId,
    standing: ListingStatus,
    /// When it was last pinged because discovery said that it left.
    left_at: Option<Duration>,
}

/// What discovery says about a member.
#[derive(Debug)]
enum ListingStatus {
    /// It is there.
    Listed,
    /// It is there, but is said to have left.
    Left(Probe),
    /// The last complete set is without it.
    Missing(Probe),
}

/// The questions to a member whose membership is in doubt.
#[derive(Debug)]
struct Probe {
    since: Duration,
    /// Pings that failed in a row.
    failures: u32,
    is_asked: bool,
    next_ping: Duration,
}

/// Whether missing peers may leave.
#[derive(Debug, PartialEq, Eq)]
enum Removals {
    Allowed,
    /// The last complete set lost most peers and nobody has confirmed it.
    Held {
        is_asked: bool,
    },
}

/// Whose a hinted address is.
#[derive(Debug)]
struct AddressOwner {
    whose: OwnerKind,
    unlisted_since: Option<Duration>,
}

#[derive(Debug, PartialEq, Eq)]
enum OwnerKind {
    Me,
    Peer(PeerId),
}

/// Whether discovery names this node.
#[derive(Debug, PartialEq, Eq)]
enum SelfListed {
    NotYet,
    Seen,
    /// It was reported that it does not.
    Reported,
}

/// Changes that are not installed yet.
#[derive(Debug)]
enum Settle {
    /// Nothing has been installed: the first list does not wait.
    First,
    Quiet,
    Changed {
        first: Duration,
        last: Duration,
    },
}

impl Stabilizer {
    /// `me` is what this node says of itself; `rng` spreads questions to the provider.
    pub(crate) fn new(me: HelloFacts, rng: fastrand::Rng) -> Self {
        Self {
            me: me.within_limits(),
            former: BTreeSet::new(),
            rival_until: Duration::ZERO,
            listing: Listing::default(),
            complete: None,
            first_set_at: None,
            members: BTreeMap::new(),
            dials: Dials::default(),
            owners_of: BTreeMap::new(),
            gone: BTreeMap::new(),
            removals: Removals::Allowed,
            asking: ResolveBackoff::new(rng),
            unreachable: BTreeSet::new(),
            self_listed: SelfListed::NotYet,
            settle: Settle::First,
            installed: MemberSet::default(),
            warned_at: BTreeMap::new(),
            counters: Counters::default(),
            actions: Vec::new(),
        }
    }

    /// Takes what happened at `now`, a monotonic time since the node's start, and says what to do, in this order.
    pub(crate) fn step(&mut self, now: Duration, input: Input) -> Vec<Action> {
        match input {
            Input::Set(set) => self.set(now, set),
            Input::Left { id, incarnation } => self.said_to_have_left(now, &id, incarnation),
            Input::Hello { dial, hello } => self.hello(now, dial, hello.within_limits()),
            Input::Refused { dial, why } => self.refused(now, dial, why),
            Input::Failed { dial } | Input::Lost { dial } => self.down(now, dial),
            Input::Goodbye { id, incarnation } => self.goodbye(now, &id, incarnation),
            Input::Pinged { id, is_alive } => self.pinged(now, &id, is_alive),
            Input::Fingerprint { id, fingerprint } => {
                if let Some(entry) = self.members.get_mut(&id) {
                    entry.facts.fingerprint = fingerprint;
                }
            }
            Input::Installed { fingerprint } => self.me.fingerprint = fingerprint,
            Input::Drain => {
                self.me.state = NodeState::Draining;
                self.changed(now);
            }
            Input::Tick => self.tick(now),
        }
        self.become_ready(now);
        self.install(now);
        std::mem::take(&mut self.actions)
    }

    /// What has been counted since the start.
    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    fn tick(&mut self, now: Duration) {
        self.sweep(now);
        self.ask(now);
        let waited = self.first_set_at.is_some_and(|first| now >= first + SELF_LISTED_LIMIT);
        if waited && self.self_listed == SelfListed::NotYet {
            self.self_listed = SelfListed::Reported;
            self.actions.push(Action::Warn(Warning::SelfNotListed));
        }
    }

    /// Joining becomes Ready when the peers of the first complete set have answered, or could have.
    fn become_ready(&mut self, now: Duration) {
        if self.me.state != NodeState::Joining {
            return;
        }
        // A record of our own id at another address is waited for too: who answers there is a rival, and a node
        // that has one must not start to own keys.
        let is_waiting = self.dials.iter().any(|(_, t)| t.link == Link::Dialling);
        let is_due = match self.first_set_at {
            Some(first) => !is_waiting || now >= first + READY_LIMIT,
            None => now >= UNHEARD_LIMIT && self.members.values().all(|m| m.facts.state != NodeState::Ready),
        };
        if is_due {
            self.me.state = NodeState::Ready;
            // Whoever waits for it must find the peers in the view that have answered: a node that took itself to be
            // alone would load every key, and say of a write that nobody else had to hear of it.
            self.install_now();
            self.actions.push(Action::Ready);
        }
    }

    /// Asks the provider to look again while views differ, a set is held, or a listed peer cannot be reached.
    fn ask(&mut self, now: Duration) {
        let is_held = self.removals != Removals::Allowed;
        let unreachable = self.listed_and_unreachable();
        let mut ids = unreachable.clone();
        for (id, entry) in &self.members {
            let differs = self.dials.is_live(entry.dial) && entry.facts.fingerprint != self.me.fingerprint;
            if differs || (is_held && matches!(entry.standing, ListingStatus::Missing(_))) {
                ids.insert(id.clone());
            }
        }
        // A peer that is lost now must not wait for what the others have made of the back-off.
        if !unreachable.is_subset(&self.unreachable) {
            self.asking.reset(now);
        }
        self.unreachable = unreachable;
        if ids.is_empty() {
            return self.asking.rest();
        }
        if self.asking.is_due(now) {
            if is_held {
                self.removals = Removals::Held { is_asked: true };
            }
            self.counters.resolves += 1;
            self.actions.push(Action::Resolve { ids: ids.into_iter().collect() });
        }
    }

    /// Who is listed by name and has no connection: gone perhaps, and discovery may be able to tell.
    fn listed_and_unreachable(&self) -> BTreeSet<PeerId> {
        let is_down = |t: &&dials::Target| t.link == Link::Down && t.aim.id().is_some_and(|id| *id != self.me.id);
        let down = self.dials.iter().map(|(_, target)| target).filter(is_down);
        let ids = down.filter_map(|target| target.aim.id());
        ids.filter(|id| self.listing.named.contains_key(*id)).cloned().collect()
    }

    /// The members that have a connection now.
    pub(crate) fn reached(&self) -> BTreeSet<PeerId> {
        let live = self.members.iter().filter(|(_, entry)| self.dials.is_live(entry.dial));
        live.map(|(id, _)| id.clone()).collect()
    }

    /// Something that the member list shows may have changed.
    fn changed(&mut self, now: Duration) {
        match &mut self.settle {
            Settle::First => {}
            Settle::Quiet => self.settle = Settle::Changed { first: now, last: now },
            Settle::Changed { last, .. } => *last = now,
        }
    }

    fn install(&mut self, now: Duration) {
        match self.settle {
            Settle::First => {}
            Settle::Changed { first, last } if now >= last + SETTLE_QUIET || now >= first + SETTLE_LIMIT => {}
            Settle::Quiet | Settle::Changed { .. } => return,
        }
        self.install_now();
    }

    fn install_now(&mut self) {
        self.settle = Settle::Quiet;
        let others = self.members.values().map(|entry| Member::new(&entry.facts, Some(entry.dial)));
        let members = MemberSet::new(others.chain([Member::new(&self.me, None)]).collect());
        // A change may have been taken back before it was installed.
        if members != self.installed {
            self.installed = members.clone();
            self.counters.installs += 1;
            self.actions.push(Action::Install(members));
        }
    }

    /// For what others can cause at any rate.
    fn warn_rarely(&mut self, now: Duration, kind: &'static str, warning: Warning) {
        let last = self.warned_at.get(kind);
        if last.is_none_or(|last| now >= *last + WARN_AGAIN) {
            self.warned_at.insert(kind, now);
            self.actions.push(Action::Warn(warning));
        }
    }

    fn hangup(&mut self, dial: DialId) {
        if self.dials.remove(dial).is_some() {
            self.actions.push(Action::Hangup { dial });
        }
    }

    /// Dials what an aim has, if it has an address.
    fn open(&mut self, aim: DialPurpose) {
        let addresses = self.addresses_of(&aim, &[]);
        if addresses.is_empty() {
            return;
        }
        let expected = aim.id().cloned();
        if let Some(dial) = self.dials.open(aim, addresses.clone()) {
            self.actions.push(Action::Dial { dial, expected, addresses });
        }
    }

    /// Tells the node when a target has other addresses than it was told. A live connection is left alone.
    fn retarget(&mut self, dial: DialId) {
        let Some(target) = self.dials.get(dial).filter(|t| t.link != Link::Live) else { return };
        // What answers as somebody else is not tried again for old times' sake.
        let is_recycled = matches!(target.refusal, Some(Refusal::WrongId { .. }));
        let addresses = self.addresses_of(&target.aim, if is_recycled { &[] } else { &target.addresses });
        let expected = target.aim.id().cloned();
        if addresses.is_empty() || (addresses == target.addresses && expected == target.expected) {
            return;
        }
        if let Some(target) = self.dials.get_mut(dial) {
            target.addresses.clone_from(&addresses);
            target.expected.clone_from(&expected);
            self.actions.push(Action::Dial { dial, expected, addresses });
        }
    }

    /// Where to dial, best first: what discovery says, what the peer says, what worked before. A record of an
    /// older life comes last.
    fn addresses_of(&self, aim: &DialPurpose, before: &[Address]) -> Vec<Address> {
        let id = match aim {
            DialPurpose::Hint(address) => return vec![address.clone()],
            DialPurpose::Named(id) | DialPurpose::Member(id) => id,
        };
        let listed = self.listing.named.get(id);
        let of_list = listed.map(|l| l.addresses.clone()).unwrap_or_default();
        if *id == self.me.id {
            let is_foreign = |a: &Address| !self.me.addresses.contains(a) && !self.is_mine(a);
            return of_list.into_iter().filter(is_foreign).collect();
        }
        let mut all = Vec::new();
        let entry = self.members.get(id);
        let is_old = entry.zip(listed).is_some_and(|(e, l)| l.incarnation.is_some_and(|i| i < e.facts.incarnation));
        if !is_old {
            all.extend(of_list.iter().cloned());
        }
        all.extend(self.owners_of.iter().filter(|(_, a)| a.is_of(id)).map(|(address, _)| address.clone()));
        all.extend(entry.map(|e| e.facts.addresses.clone()).unwrap_or_default());
        all.extend(before.iter().cloned());
        all.extend(of_list);
        distinct(all)
    }

    fn is_mine(&self, address: &Address) -> bool {
        self.owners_of.get(address).is_some_and(|alias| alias.whose == OwnerKind::Me)
    }
}

impl AddressOwner {
    fn is_of(&self, id: &PeerId) -> bool {
        matches!(&self.whose, OwnerKind::Peer(peer) if peer == id)
    }
}
