//! A fetch: asks the owner of a key, then its successors, then loads here.
//!
//! It is no task: the callers wait on its flight, and the task that reads a connection brings it forward with
//! each outcome.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Failure, Flying, Inner, Outcome, Work,
    held::{Held, Slot},
    load::Loading,
    mirror::Mirror,
    miss::Miss,
};
use crate::{
    chain::Chain,
    clock::{NEVER, later},
    error::{Error, Kind},
    flight::{Flight, Join, Kind as Table, within},
    identity::PeerId,
    loader::LoadReason,
    membership::{stabilizer::Member, view::View},
    message::{Answer, Encoded, Op, Whose},
    peer::{
        link::Link,
        table::{Call, NotSent, Outcome as Reached, Reply},
    },
    shared::Shared,
    short,
    store::{Entry, Times},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    value::Value,
};

/// What a fetch keeps, in its flight.
pub(super) struct Fetch<V: Value> {
    /// Weak, since the group has the flight: they must not keep each other.
    group: Weak<Inner<V>>,
    seen: Seen,
    hash: u64,
    chain: Chain,
    begun: Instant,
    deadline_ms: u64,
    /// Rank of the candidate to look at next; 0 = the owner. The one before is the one that was asked last.
    next: AtomicUsize,
    /// A peer was asked and turned out to be unreachable: further attempts come out of the fallback budget.
    has_failed: AtomicBool,
}

impl<V: Value> Fetch<V> {
    pub(super) fn depth(&self) -> usize {
        self.chain.depth()
    }
}

/// A view, and the last change before it was taken.
#[derive(Clone)]
pub(super) struct Seen {
    changes: u32,
    pub(super) view: Arc<View>,
}

impl Seen {
    pub(super) fn now(shared: &Shared) -> Self {
        let changes = shared.changes.number(); // before the view
        Self { changes, view: shared.view() }
    }
}

impl<V: Value> Inner<V> {
    /// Joins the fetch of a key, or makes one, which is to begin now.
    ///
    /// The load at the owner may wait for a permit, and must learn how deep those are nested who wait for it: a fetch for
    /// shallower ones is not enough. The owner has one load for both.
    pub(super) fn join_fetch(
        self: &Arc<Self>,
        key: &str,
        miss: &Miss,
        seen: Seen,
        now: Instant,
        begin: impl FnOnce(Turn<'_, V>),
    ) -> Loading<V> {
        let now_ms = self.shared.local.clock.at_ms(now);
        if let Some(mirror) = &self.mirror {
            mirror.missed(miss.hash, now_ms);
        }
        let mut expired = None;
        let look_again = || self.look_again(key, now_ms, &mut expired);
        let fetch = || {
            Work::Fetch(Fetch {
                group: Arc::downgrade(self),
                hash: miss.hash,
                chain: miss.chain.clone(),
                begun: now,
                deadline_ms: later(now_ms, self.shared.local.limits.get_deadline),
                seen,
                next: AtomicUsize::new(0),
                has_failed: AtomicBool::new(false),
            })
        };
        let is_as_deep = |work: &Work<V>| work.depth() >= miss.chain.depth();
        let joined = self.flights.join(Table::Fetch, key, now_ms, is_as_deep, look_again, fetch);
        drop(expired);
        let flight = match joined {
            Join::Found(slot) => return Loading::Found(slot),
            Join::Shared(flight) => {
                self.counters.shared_flights.up();
                flight
            }
            Join::Began(flight) => {
                self.counters.fetches.up();
                if let Some(turn) = Turn::of(&flight, self) {
                    begin(turn);
                }
                flight
            }
        };
        Loading::Flight(flight, None)
    }
}

/// A fetch that is brought forward.
pub(super) struct Turn<'a, V: Value> {
    group: &'a Arc<Inner<V>>,
    pub(super) flight: &'a Flying<V>,
    fetch: &'a Fetch<V>,
}

impl<'a, V: Value> Turn<'a, V> {
    pub(super) fn of(flight: &'a Flying<V>, group: &'a Arc<Inner<V>>) -> Option<Self> {
        if let Work::Fetch(fetch) = &flight.context { Some(Self { group, flight, fetch }) } else { None }
    }

    /// Asks the next candidate that can be asked; loads here when it is our turn, or nobody is left.
    pub(super) fn advance(&self) {
        let (shared, fetch) = (&self.group.shared, self.fetch);
        if shared.tasks.is_closing() {
            return self.land(Err(self.group.closed().into()));
        }
        loop {
            let rank = fetch.next.fetch_add(1, Relaxed);
            let Some(member) = self.candidate(rank).filter(|member| member.dial.is_some()) else {
                return self.load_here();
            };
            let Some(link) = self.link(member) else { continue };
            if fetch.has_failed.load(Relaxed) && !shared.may_ask_again() {
                return self.load_here();
            }
            match link.send(self.call(rank)) {
                Ok(()) => return,
                Err(NotSent::Open) => {} // routing around it is free
                Err(NotSent::Full) => return self.land(Err(self.queue_is_full())),
            }
        }
    }

    /// The link to a peer, if it has the group: known from its Hello, or it would decline.
    pub(super) fn link(&self, member: &Member) -> Option<Arc<Link>> {
        let settings = &self.group.settings;
        self.group.shared.link(member).filter(|link| link.offers(&settings.name, settings.format))
    }

    fn call(&self, rank: usize) -> Call {
        Call {
            op: Op::Get,
            group: self.group.index(),
            key: Arc::clone(self.flight.key()),
            deadline_ms: self.fetch.deadline_ms,
            rank,
            chain: self.fetch.chain.clone(),
            reply: Arc::clone(self.flight) as Arc<dyn Reply>,
        }
    }

    fn queue_is_full(&self) -> Failure {
        self.group.overloaded("as many requests wait for the owner as are allowed").into()
    }

    fn candidate(&self, rank: usize) -> Option<&'a Member> {
        let (view, scope) = (&self.fetch.seen.view, self.group.settings.scope);
        match rank {
            0 => view.owner(scope, self.fetch.hash), // needs no allocation
            _ => view.candidates(scope, self.fetch.hash).nth(rank),
        }
    }

    /// Whom the outstanding request is with, or the last one was.
    fn asked(&self) -> Option<PeerId> {
        let rank = self.fetch.next.load(Relaxed).checked_sub(1)?;
        self.candidate(rank).filter(|member| member.dial.is_some()).map(|member| member.id.clone())
    }

    /// Nobody else answers for the key: we do.
    fn load_here(&self) {
        let fetch = self.fetch;
        match self.group.join_load(self.flight.key(), fetch.hash, &fetch.chain, LoadReason::Fallback) {
            Ok(Loading::Found(slot)) => self.land(Ok(slot)),
            Ok(Loading::Flight(load, joined)) => {
                let (group, flight) = (Arc::clone(self.group), Arc::clone(self.flight));
                let guard = group.land_on_drop(&flight);
                // The load may take longer than a get: who waits must be told in time all the same.
                let end = group.shared.local.clock.instant(fetch.deadline_ms);
                self.group.shared.tasks.load(async move {
                    let outcome = within(Some(end), load.outcome()).await;
                    drop(joined);
                    land(&group, &flight, outcome.unwrap_or(Err(Failure::Expired(None))));
                    guard.defuse();
                });
            }
            Err(error) => self.land(Err(error.into())),
        }
    }

    fn land(&self, outcome: Outcome<V>) {
        land(self.group, self.flight, outcome);
    }

    /// The times of a copy. Once it is not served any more it stays for as long again, as a sign that the key was hot.
    fn times(&self, value: &Encoded, now_ms: u64) -> Times {
        let serve_until_ms =
            later(now_ms, Duration::from_millis(value.borrow_ms).min(self.group.settings.ages.borrowed));
        Times {
            loaded_at_ms: now_ms.saturating_sub(value.age_ms),
            refresh_at_ms: NEVER,
            fresh_until_ms: serve_until_ms,
            serve_until_ms,
            keep_until_ms: later(serve_until_ms, self.group.settings.ages.borrowed),
            checked: self.fetch.seen.changes,
        }
    }

    /// A copy is kept, unless a write has passed it.
    fn land_and_keep(&self, slot: Slot<V>, mirror: &Mirror<V>) {
        let keep = || mirror.keep(self.flight.key(), Slot::clone(&slot));
        if let Some(inserted) = self.group.flights.land(self.flight, Ok(Slot::clone(&slot)), keep) {
            self.group.stored(self.flight.key(), inserted, true);
        }
    }

    fn said(&self, kind: Kind, text: impl Into<String>) {
        let error = match self.asked() {
            Some(peer) => Error::at_peer(kind, text, peer.as_str()),
            None => Error::new(kind, text),
        };
        self.land(Err(error.into()));
    }

    fn answered(&self, answer: Answer) {
        let name = &self.group.settings.name;
        match answer {
            Answer::Value(value) => {
                let now_ms = self.group.shared.now_ms();
                let times = self.times(&value, now_ms);
                let is_held = self.group.holds.is_held(self.flight.key(), self.flight.begun_ms);
                let is_lent = value.borrow_ms > 0 && !is_held;
                let mirror = self.group.mirror.as_ref().filter(|_| is_lent);
                let mirror = mirror.filter(|m| value.is_hot || m.wants(self.flight.key(), self.fetch.hash, now_ms));
                // What is kept is a copy: a slice would hold all of the frame alive.
                let bytes = if mirror.is_some() { short::copied(&value.bytes) } else { value.bytes };
                let slot = Slot::new(Entry::new(Held::received(bytes), times));
                match mirror {
                    Some(mirror) => self.land_and_keep(slot, mirror),
                    None => self.land(Ok(slot)),
                }
            }
            Answer::NotFound => self.said(Kind::NotFound, "the loader found nothing"),
            Answer::LoadFailed { .. } if mutant!(FallbackOnEveryError) => self.advance(),
            Answer::LoadFailed { is_transient, text } => {
                self.said(Kind::LoadFailed { is_transient }, format!("the loader of group {name:?} failed: {text}"));
            }
            Answer::Overloaded { retry_after } => {
                self.group.counters.overloaded.up();
                let text =
                    format!("the owner of a key of group {name:?} is overloaded; ask again after {retry_after:?}");
                self.said(Kind::Overloaded, text);
            }
            Answer::TooLarge => {
                let text = format!("a value of group {name:?} is larger than its owner's limits.max_value_bytes");
                self.said(Kind::TooLarge, text);
            }
            Answer::Deadline(Whose::Asker) => self.land(Err(Failure::Expired(self.asked()))),
            Answer::Deadline(Whose::Load) => {
                self.group.counters.timeouts.up();
                self.said(Kind::Timeout, format!("the load of a value of group {name:?} ran into its deadline"));
            }
            Answer::BadRequest(text) => self.said(Kind::BadKey, text),
            // Not by this node; asking the next one is free, since this one did no work.
            Answer::Declined(_)
            | Answer::Referred(_)
            | Answer::WrongPeer
            | Answer::Unsupported
            | Answer::Pending
            | Answer::Done
            | Answer::Page(_) => {
                self.group.counters.fetch_errors.up();
                self.advance();
            }
        }
    }
}

/// Asks the owner of many keys for all of them, in one frame.
pub(super) fn ask_together<V: Value>(group: &Arc<Inner<V>>, owner: &Link, flights: &[Flying<V>]) {
    let turns = || flights.iter().filter_map(|flight| Turn::of(flight, group));
    let (taken, refused) = match group.shared.tasks.is_closing() {
        true => (0, Some(NotSent::Open)),
        false => owner.send_all(turns().map(|turn| turn.call(turn.fetch.next.fetch_add(1, Relaxed)))),
    };
    for turn in turns().skip(taken) {
        match refused {
            Some(NotSent::Full) => turn.land(Err(turn.queue_is_full())),
            Some(NotSent::Open) | None => turn.advance(),
        }
    }
}

fn land<V: Value>(group: &Inner<V>, flight: &Flying<V>, outcome: Outcome<V>) {
    if outcome.is_err() {
        group.counters.fetch_errors.up();
    }
    group.flights.land(flight, outcome, || ());
}

impl<V: Value> Reply for Flight<Outcome<V>, Work<V>> {
    fn reply(self: Arc<Self>, outcome: Reached, at: Instant) {
        let Work::Fetch(fetch) = &self.context else { return };
        // Whoever waits has the group.
        let Some(group) = fetch.group.upgrade() else { return };
        let turn = Turn { group: &group, flight: &self, fetch };
        match outcome {
            Reached::Answered(answer) => {
                group.peer_latencies.add(at.saturating_duration_since(fetch.begun));
                turn.answered(answer);
            }
            Reached::Unreachable => {
                group.counters.fetch_errors.up();
                fetch.has_failed.store(true, Relaxed);
                turn.advance();
            }
            Reached::Expired => turn.land(Err(Failure::Expired(turn.asked()))),
        }
    }
}
