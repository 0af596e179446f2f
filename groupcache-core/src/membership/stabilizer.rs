//! Stabilizer: the pure state machine between providers and the ring, `step(now, input) -> actions`.
//!
//! The stabilizer has no clock and does no I/O, so that tests can run it in virtual time. A provider may be wrong,
//! late, empty or malicious. Therefore:
//!
//! - A peer becomes a member only after it has answered with a Hello.
//! - A member leaves only after its own goodbye, after a reported departure and a failed ping, or after complete sets
//!   have been without it: for 5 s if an authority listed it last, and otherwise until its connection is lost and two
//!   pings have failed.
//! - A complete set without more than half of the members suspends removals, until the provider confirms the set or
//!   every missing member has failed two pings.
//! - A complete set of an authority that has ceased to list the local node proves itself wrong, and suspends removals
//!   until every missing member has failed two pings.
//! - Health is not membership: an unreachable peer stays a member, and the engine routes requests around it.
//!
//! Read on in `events` (inputs and actions), `sets` (peer sets), `listing` (their content), `hello` (answers of
//! targets), `inbound` (peers that connect), `leave` (removals), `members` (the member list and its shares), `dials` and
//! `targets` (the targets and their addresses) and `resolve_backoff` (questions to the provider).

mod dials;
mod events;
mod hello;
mod inbound;
mod leave;
mod listing;
mod members;
mod resolve_backoff;
mod sets;
mod targets;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::membership::stabilizer::{
    dials::{DialPurpose, Dials, Link},
    inbound::Unlisted,
    listing::Listing,
    resolve_backoff::ResolveBackoff,
};
pub(crate) use crate::membership::stabilizer::{
    events::{Action, Counters, DiscoveryReport, Input, Refusal, Warning},
    inbound::InboundPeer,
    listing::distinct,
    members::{DialId, HelloFacts, Member, MemberSet},
};
use crate::{
    identity::{Address, Incarnation, NodeState, PeerId},
    membership::provider::Trust,
};

/// Time without a change after which a member list is installed, so that peers that connect together enter together.
const DEBOUNCE_QUIET: Duration = Duration::from_millis(50);
/// Maximum time from the first change to the installation, so that a stream of changes delays no peer for long.
const DEBOUNCE_LIMIT: Duration = Duration::from_millis(250);
/// Maximum time from the first complete set to Ready: the time that a healthy peer may take to answer.
const READY_LIMIT: Duration = Duration::from_secs(2);
/// Time after which a node without a complete set becomes Ready if no member is Ready, because a source that is down
/// must not keep a service from starting.
const SILENT_DISCOVERY_LIMIT: Duration = Duration::from_secs(10);
/// Time from the first complete set to the warning that discovery does not list this node: longer than watches and
/// readiness probes delay a listing.
const SELF_LISTED_LIMIT: Duration = Duration::from_secs(10);
/// Minimum time between two log lines of one kind, because discovery or a peer can cause them at any rate. Counters
/// count every event.
const WARN_AGAIN: Duration = Duration::from_secs(10);
/// Maximum number of remembered earlier incarnations of the local node, which may still return in a Hello.
const MAX_EARLIER_INCARNATIONS: usize = 16;

/// The membership state of one node.
#[derive(Debug)]
pub(crate) struct Stabilizer {
    /// Facts of the local node.
    me: HelloFacts,
    /// Incarnations of the local node before it raised its incarnation.
    earlier_incarnations: BTreeSet<Incarnation>,
    /// Earliest time of the next raise of the incarnation, because each is announced to all peers.
    next_raise: Duration,
    /// End of the time in which the incarnation is not raised, because another live node has this id and both nodes
    /// would raise theirs in turn.
    duplicate_id_until: Duration,
    /// The last complete set with the partial sets after it.
    listing: Listing,
    /// The last complete set.
    complete: Option<Listing>,
    first_set_at: Option<Duration>,
    /// Addresses of the nodes behind each listed name that has several.
    names: BTreeMap<Address, Vec<Address>>,
    members: BTreeMap<PeerId, Entry>,
    dials: Dials,
    /// The node that has answered at each hinted address.
    address_owners: BTreeMap<Address, AddressOwner>,
    /// Incarnations that have sent a goodbye, each with the end of the time in which its Hello is rejected.
    departed: BTreeMap<PeerId, (Incarnation, Duration)>,
    removals: Removals,
    resolve_backoff: ResolveBackoff,
    /// Peers that are connected to the local node.
    inbound: BTreeMap<PeerId, InboundPeer>,
    /// Connected peers that discovery does not list.
    unlisted: BTreeMap<PeerId, Unlisted>,
    /// Peers that were listed by name and had no connection at the last tick.
    unreachable: BTreeSet<PeerId>,
    self_listed: SelfListed,
    /// Whether a complete set of an authority has listed this node.
    authority_listed_self: bool,
    debounce: Debounce,
    installed: MemberSet,
    /// Time of the last warning of each kind that discovery or a peer can cause at any rate.
    warned_at: BTreeMap<&'static str, Duration>,
    counters: Counters,
    actions: Vec<Action>,
}

/// A member other than this node.
#[derive(Debug)]
struct Entry {
    facts: HelloFacts,
    dial: DialId,
    listing_status: ListingStatus,
    /// Highest trust in a source of the last listing with the member.
    listed_by: Trust,
    /// Time of the last ping that a reported departure caused.
    left_at: Option<Duration>,
}

/// The presence of a member in discovery.
#[derive(Debug)]
enum ListingStatus {
    /// Present in the last complete set or in a partial set after it.
    Listed,
    /// Listed, with a reported departure.
    Left(Probe),
    /// Absent from the last complete set and from the partial sets after it.
    Missing(Probe),
}

/// The pings to a member that may have left.
#[derive(Debug)]
struct Probe {
    since: Duration,
    /// Number of consecutive failed pings.
    failures: u32,
    /// Whether the result of a ping is outstanding.
    is_outstanding: bool,
    next_ping: Duration,
}

/// The permission to remove missing members.
#[derive(Debug, PartialEq, Eq)]
enum Removals {
    Allowed,
    Suspended(Suspension),
}

/// The reason for which removals are suspended.
#[derive(Debug, PartialEq, Eq)]
enum Suspension {
    /// The last complete set lacks more than half of the members, and is not confirmed.
    MostMissing {
        /// Whether the provider has been asked to look again.
        is_asked: bool,
    },
    /// The last complete set of an authority lacks this node, which an earlier set listed. No set confirms it, because
    /// a second look at the same wrong source is no evidence.
    SelfUnlisted,
}

/// The owner of a hinted address: the node that has answered there.
#[derive(Debug)]
struct AddressOwner {
    kind: OwnerKind,
    unlisted_since: Option<Duration>,
}

/// The local node or a peer, as the owner of an address.
#[derive(Debug, PartialEq, Eq)]
enum OwnerKind {
    Local,
    Peer(PeerId),
}

/// The presence of the local node in discovery.
#[derive(Debug, PartialEq, Eq)]
enum SelfListed {
    NotYet,
    Seen,
    /// Not listed, with the warning already written.
    Reported,
}

/// The changes that are not installed yet.
#[derive(Debug)]
enum Debounce {
    /// Nothing is installed yet, so that the first list is installed at once.
    First,
    Quiet,
    Changed {
        first: Duration,
        last: Duration,
    },
}

impl Stabilizer {
    /// Creates the stabilizer of the node described by `me`. `rng` is the source of jitter for resolve requests.
    pub(crate) fn new(me: HelloFacts, rng: fastrand::Rng) -> Self {
        Self {
            me: me.within_limits(),
            earlier_incarnations: BTreeSet::new(),
            next_raise: Duration::ZERO,
            duplicate_id_until: Duration::ZERO,
            listing: Listing::default(),
            complete: None,
            first_set_at: None,
            names: BTreeMap::new(),
            members: BTreeMap::new(),
            dials: Dials::default(),
            address_owners: BTreeMap::new(),
            departed: BTreeMap::new(),
            removals: Removals::Allowed,
            resolve_backoff: ResolveBackoff::new(rng),
            inbound: BTreeMap::new(),
            unlisted: BTreeMap::new(),
            unreachable: BTreeSet::new(),
            self_listed: SelfListed::NotYet,
            authority_listed_self: false,
            debounce: Debounce::First,
            installed: MemberSet::default(),
            warned_at: BTreeMap::new(),
            counters: Counters::default(),
            actions: Vec::new(),
        }
    }

    /// Applies an input at `now`, a monotonic time since the start of the node, and returns the actions in their order.
    pub(crate) fn step(&mut self, now: Duration, input: Input) -> Vec<Action> {
        match input {
            Input::Set(set) => self.set(now, set),
            Input::Left { id, incarnation } => self.departure_reported(now, &id, incarnation),
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
            Input::Inbound(peers) => self.inbound(now, peers),
            Input::Resolved { name, addresses } => self.resolved(now, name, addresses),
            Input::OwnAddress { dial } => {
                if let Some(target) = self.dials.get_mut(dial) {
                    target.is_own_port = true;
                }
                self.down(now, dial);
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

    /// Returns the counts since the start.
    #[cfg(test)]
    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    /// Returns the peers that discovery lists, of those that have answered, and whether discovery has answered and lists
    /// no other node.
    pub(crate) fn listing(&self) -> (BTreeSet<PeerId>, bool) {
        let listed: BTreeSet<_> = self.members.keys().cloned().collect();
        let has_targets = self.dials.iter().any(|(_, target)| self.is_unanswered(target));
        let is_alone = self.complete.is_some() && listed.is_empty() && !has_targets && self.inbound.is_empty();
        (listed, is_alone)
    }

    /// Returns whether no other node has answered at a target.
    fn is_unanswered(&self, target: &dials::Target) -> bool {
        let is_member = matches!(target.purpose, DialPurpose::Member(_));
        !is_member && target.purpose.id() != Some(&self.me.id) && !target.is_own_port
    }

    /// Returns the counts since the start, with what is wrong now.
    pub(crate) fn report(&self) -> DiscoveryReport {
        DiscoveryReport {
            counters: self.counters,
            stale: None,
            unlisted: self.unlisted().cloned().collect(),
            unanswered_targets: self.dials.iter().filter(|(_, target)| self.is_unanswered(target)).count(),
            is_self_unlisted: self.removals == Removals::Suspended(Suspension::SelfUnlisted),
        }
    }

    fn tick(&mut self, now: Duration) {
        if let Some(incarnation) = self.listing.named.get(&self.me.id).and_then(|listed| listed.incarnation) {
            self.raise_incarnation(now, incarnation);
        }
        self.sweep(now);
        self.resolve(now);
        self.report_unlisted(now);
        let waited = self.first_set_at.is_some_and(|first| now >= first + SELF_LISTED_LIMIT);
        if waited && self.self_listed == SelfListed::NotYet {
            self.self_listed = SelfListed::Reported;
            self.actions.push(Action::Warn(Warning::SelfNotListed));
        }
    }

    /// Makes a joining node Ready when the targets of the first complete set have answered or failed, or after
    /// [`READY_LIMIT`].
    fn become_ready(&mut self, now: Duration) {
        if self.me.state != NodeState::Joining {
            return;
        }
        // A record of the local id at a foreign address counts too, because a node that answers there has the same id,
        // and a node with a duplicate id must not start to own keys.
        let is_waiting = self.dials.iter().any(|(_, t)| t.link == Link::Dialling);
        let is_due = match self.first_set_at {
            Some(first) => !is_waiting || now >= first + READY_LIMIT,
            None => now >= SILENT_DISCOVERY_LIMIT && self.members.values().all(|m| m.facts.state != NodeState::Ready),
        };
        if is_due {
            self.me.state = NodeState::Ready;
            // The view must contain the peers that have answered before callers use the node. Otherwise the node would
            // load every key itself, and would report writes as complete without notifying a peer.
            self.install_now();
            self.actions.push(Action::Ready);
        }
    }

    /// Asks the provider to look again while views differ, removals are suspended, a listed peer is unreachable, or a
    /// connected peer is not listed.
    fn resolve(&mut self, now: Duration) {
        let is_suspended = self.removals != Removals::Allowed;
        let unreachable = self.listed_and_unreachable();
        let mut ids = unreachable.clone();
        for (id, entry) in &self.members {
            let differs = self.fingerprint_of(id).is_some_and(|fingerprint| fingerprint != self.me.fingerprint);
            if differs || (is_suspended && matches!(entry.listing_status, ListingStatus::Missing(_))) {
                ids.insert(id.clone());
            }
        }
        ids.extend(self.ask_about_unlisted(now));
        // A newly lost peer must not wait for a backoff that earlier losses have lengthened.
        if !unreachable.is_subset(&self.unreachable) {
            self.resolve_backoff.reset(now);
        }
        self.unreachable = unreachable;
        if ids.is_empty() {
            return self.resolve_backoff.stop();
        }
        if self.resolve_backoff.is_due(now) {
            if let Removals::Suspended(Suspension::MostMissing { is_asked }) = &mut self.removals {
                *is_asked = true;
            }
            self.counters.resolves += 1;
            self.actions.push(Action::Resolve { ids: ids.into_iter().collect() });
        }
    }

    /// Returns the peers that are listed by name and have no connection. Discovery may know whether they have left.
    fn listed_and_unreachable(&self) -> BTreeSet<PeerId> {
        let is_down = |t: &&dials::Target| t.link == Link::Down && t.purpose.id().is_some_and(|id| *id != self.me.id);
        let down = self.dials.iter().map(|(_, target)| target).filter(is_down);
        let ids = down.filter_map(|target| target.purpose.id());
        ids.filter(|id| self.listing.named.contains_key(*id)).cloned().collect()
    }

    /// Returns the members that have a live connection.
    pub(crate) fn reached(&self) -> BTreeSet<PeerId> {
        let live = self.members.iter().filter(|(_, entry)| self.dials.is_live(entry.dial));
        live.map(|(id, _)| id.clone()).collect()
    }

    /// Notes that the member list may have changed.
    fn changed(&mut self, now: Duration) {
        match &mut self.debounce {
            Debounce::First => {}
            Debounce::Quiet => self.debounce = Debounce::Changed { first: now, last: now },
            Debounce::Changed { last, .. } => *last = now,
        }
    }

    fn install(&mut self, now: Duration) {
        match self.debounce {
            Debounce::First => {}
            Debounce::Changed { first, last } if now >= last + DEBOUNCE_QUIET || now >= first + DEBOUNCE_LIMIT => {}
            Debounce::Quiet | Debounce::Changed { .. } => return,
        }
        self.install_now();
    }

    fn install_now(&mut self) {
        self.debounce = Debounce::Quiet;
        let others = self.members.values().map(|entry| Member::new(&entry.facts, Some(entry.dial)));
        let members = MemberSet::new(others.chain([Member::new(&self.me, None)]).collect());
        // A change may have been reverted before it was installed.
        if members != self.installed {
            self.installed = members.clone();
            self.counters.installs += 1;
            self.actions.push(Action::Install(members));
        }
    }

    /// Writes a warning, unless one of the same kind was written within [`WARN_AGAIN`].
    fn warn_rarely(&mut self, now: Duration, kind: &'static str, warning: Warning) {
        if self.may_warn(now, kind) {
            self.actions.push(Action::Warn(warning));
        }
    }

    /// Returns whether no warning of this kind was written within [`WARN_AGAIN`], and notes that one is written.
    fn may_warn(&mut self, now: Duration, kind: &'static str) -> bool {
        let is_due = self.warned_at.get(kind).is_none_or(|last| now >= *last + WARN_AGAIN);
        if is_due {
            self.warned_at.insert(kind, now);
        }
        is_due
    }
}

impl AddressOwner {
    fn is_of(&self, id: &PeerId) -> bool {
        matches!(&self.kind, OwnerKind::Peer(peer) if peer == id)
    }
}
