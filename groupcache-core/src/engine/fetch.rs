//! A fetch: asks the owner of a key, then its successors, then loads here.
//!
//! A fetch is no task: its callers wait on its flight, and the task that reads a connection moves it forward with each
//! response.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    cache::{
        payload::{Payload, Slot},
        replicas::Replicas,
        store::{Entry, Times},
    },
    engine::{
        Engine, Failure, GroupFlight, Outcome, Work,
        get::PendingGet,
        load::{self, Dispatched},
        lookup::Purpose,
        ownership::ViewSnapshot,
    },
    error::{Error, Kind},
    flight::{Flight, Join, Kind as Table, within},
    identity::PeerId,
    loader::LoadReason,
    membership::stabilizer::Member,
    peer::client::{
        link::Link,
        request_table::{Call, NotSent, Outcome as Reached, Reply},
    },
    protocol::{
        chain::LoadChain,
        message::{DeadlineOwner, Encoded, Op, Response},
    },
    runtime::{
        clock::{NEVER, later},
        small_bytes,
        sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    value::Value,
};

/// What a fetch keeps, in its flight.
pub(crate) struct Fetch<V: Value> {
    /// Weak, since the group has the flight: they must not keep each other.
    engine: Weak<Engine<V>>,
    snapshot: ViewSnapshot,
    hash: u64,
    chain: LoadChain,
    begun: Instant,
    deadline_ms: u64,
    /// Rank of the candidate to look at next; 0 = the owner. The one before is the one that was asked last.
    next: AtomicUsize,
    /// A peer was asked and turned out to be unreachable: further attempts come out of the fallback budget.
    has_failed: AtomicBool,
}

impl<V: Value> Fetch<V> {
    pub(crate) fn depth(&self) -> usize {
        self.chain.depth()
    }
}

/// Joins the fetch of a key, or makes one, which `begin` begins.
///
/// A running fetch is joined only if it was begun for loads that are nested at least as deep: the load at the owner may
/// wait for a permit, and must learn the depth of the deepest load that waits for it. The owner has one load for both.
pub(crate) fn join<V: Value>(
    engine: &Arc<Engine<V>>,
    key: &str,
    pending: &PendingGet,
    snapshot: ViewSnapshot,
    now: Instant,
    begin: impl FnOnce(FetchStep<'_, V>),
) -> Dispatched<V> {
    let now_ms = engine.context.local.clock.at_ms(now);
    if let Some(replicas) = &engine.cache.replicas {
        replicas.missed(pending.hash, now_ms);
    }
    let mut unusable = None;
    let recheck = || engine.lookup(key, now_ms, Purpose::BeginFlight).map_err(|slot| unusable = slot).ok();
    let fetch = || {
        Work::Fetch(Fetch {
            engine: Arc::downgrade(engine),
            hash: pending.hash,
            chain: pending.chain.clone(),
            begun: now,
            deadline_ms: later(now_ms, engine.context.local.limits.get_deadline),
            snapshot,
            next: AtomicUsize::new(0),
            has_failed: AtomicBool::new(false),
        })
    };
    let is_as_deep = |work: &Work<V>| work.depth() >= pending.chain.depth();
    let joined = engine.flights.join(Table::Fetch, key, now_ms, is_as_deep, recheck, fetch);
    drop(unusable);
    let flight = match joined {
        Join::Found(slot) => return Dispatched::Found(slot),
        Join::Shared(flight) => {
            engine.counters.shared_flights.up();
            flight
        }
        Join::Started(flight) => {
            engine.counters.fetches.up();
            if let Some(step) = FetchStep::of(&flight, engine) {
                begin(step);
            }
            flight
        }
    };
    Dispatched::Flight(flight, None)
}

/// A fetch that is brought forward.
pub(crate) struct FetchStep<'a, V: Value> {
    engine: &'a Arc<Engine<V>>,
    pub(crate) flight: &'a GroupFlight<V>,
    fetch: &'a Fetch<V>,
}

impl<'a, V: Value> FetchStep<'a, V> {
    pub(crate) fn of(flight: &'a GroupFlight<V>, engine: &'a Arc<Engine<V>>) -> Option<Self> {
        if let Work::Fetch(fetch) = &flight.context { Some(Self { engine, flight, fetch }) } else { None }
    }

    /// Asks the next candidate that can be asked; loads here when it is our turn, or nobody is left.
    pub(crate) fn advance(&self) {
        let (context, fetch) = (&self.engine.context, self.fetch);
        if context.tasks.is_closing() {
            return self.complete(Err(self.engine.errors.closed().into()));
        }
        loop {
            let rank = fetch.next.fetch_add(1, Relaxed);
            let Some(member) = self.candidate(rank).filter(|member| !member.is_local()) else {
                return self.load_here();
            };
            let Some(link) = self.link(member) else { continue };
            if fetch.has_failed.load(Relaxed) && !context.may_ask_again() {
                return self.load_here();
            }
            match link.send(self.call(rank)) {
                Ok(()) => return,
                Err(NotSent::Open) => {} // routing around it is free
                Err(NotSent::Full) => return self.complete(Err(self.queue_is_full())),
            }
        }
    }

    /// The link to a peer, if it has the group: known from its Hello, or it would decline.
    pub(crate) fn link(&self, member: &Member) -> Option<Arc<Link>> {
        let settings = &self.engine.settings;
        self.engine.context.link(member).filter(|link| link.offers(&settings.name, settings.format))
    }

    fn call(&self, rank: usize) -> Call {
        Call {
            op: Op::Get,
            group: self.engine.index(),
            key: Arc::clone(self.flight.key()),
            deadline_ms: self.fetch.deadline_ms,
            rank,
            chain: self.fetch.chain.clone(),
            reply: Arc::clone(self.flight) as Arc<dyn Reply>,
        }
    }

    fn queue_is_full(&self) -> Failure {
        self.engine.errors.overloaded("as many requests wait for the owner as are allowed").into()
    }

    fn candidate(&self, rank: usize) -> Option<&'a Member> {
        self.engine.ownership.candidate(&self.fetch.snapshot.view, self.fetch.hash, rank)
    }

    /// Whom the outstanding request is with, or the last one was.
    fn asked(&self) -> Option<PeerId> {
        let rank = self.fetch.next.load(Relaxed).checked_sub(1)?;
        self.candidate(rank).filter(|member| !member.is_local()).map(|member| member.id.clone())
    }

    /// Nobody else answers for the key: we do.
    fn load_here(&self) {
        let fetch = self.fetch;
        match load::join(self.engine, self.flight.key(), fetch.hash, &fetch.chain, LoadReason::Fallback) {
            Ok(Dispatched::Found(slot)) => self.complete(Ok(slot)),
            Ok(Dispatched::Flight(load, joined)) => {
                let (engine, flight) = (Arc::clone(self.engine), Arc::clone(self.flight));
                let guard = load::complete_on_drop(&engine, &flight);
                // The load may take longer than a get: who waits must be told in time all the same.
                let end = engine.context.local.clock.instant(fetch.deadline_ms);
                self.engine.context.tasks.load(async move {
                    let outcome = within(Some(end), load.outcome()).await;
                    drop(joined);
                    complete(&engine, &flight, outcome.unwrap_or(Err(Failure::Expired(None))));
                    guard.defuse();
                });
            }
            Err(error) => self.complete(Err(error.into())),
        }
    }

    fn complete(&self, outcome: Outcome<V>) {
        complete(self.engine, self.flight, outcome);
    }

    /// The times of a copy. Once it is not served any more it stays for as long again, as a sign that the key was hot.
    fn times(&self, value: &Encoded, now_ms: u64) -> Times {
        let serve_until_ms = later(
            now_ms,
            Duration::from_millis(value.borrow_ms).min(self.engine.settings.freshness.replica_time_to_live),
        );
        Times {
            loaded_at_ms: now_ms.saturating_sub(value.age_ms),
            refresh_at_ms: NEVER,
            fresh_until_ms: serve_until_ms,
            serve_until_ms,
            keep_until_ms: later(serve_until_ms, self.engine.settings.freshness.replica_time_to_live),
            checked: self.fetch.snapshot.changes,
        }
    }

    /// A copy is kept, unless a write has passed it.
    fn complete_and_keep(&self, slot: Slot<V>, replicas: &Replicas<V>) {
        let keep = || replicas.keep(self.flight.key(), Slot::clone(&slot));
        if let Some(inserted) = self.engine.flights.complete(self.flight, Ok(Slot::clone(&slot)), keep) {
            self.engine.cache.after_insert(self.flight.key(), inserted, true);
        }
    }

    fn fail(&self, kind: Kind, text: impl Into<String>) {
        let error = match self.asked() {
            Some(peer) => Error::at_peer(kind, text, peer.as_str()),
            None => Error::new(kind, text),
        };
        self.complete(Err(error.into()));
    }

    fn answered(&self, answer: Response) {
        let name = &self.engine.settings.name;
        match answer {
            Response::Value(value) => {
                let now_ms = self.engine.context.now_ms();
                let times = self.times(&value, now_ms);
                let is_held = self.engine.holds.is_held(self.flight.key(), self.flight.begun_ms);
                let is_orphaned = value.borrow_ms > 0 && !is_held;
                let replicas = self.engine.cache.replicas.as_ref().filter(|_| is_orphaned);
                let replicas = replicas.filter(|m| value.is_hot || m.wants(self.flight.key(), self.fetch.hash, now_ms));
                // What is kept is a copy: a slice would hold all of the frame alive.
                let bytes = if replicas.is_some() { small_bytes::copy(&value.bytes) } else { value.bytes };
                let slot = Slot::new(Entry::new(Payload::received(bytes), times));
                match replicas {
                    Some(replicas) => self.complete_and_keep(slot, replicas),
                    None => self.complete(Ok(slot)),
                }
            }
            Response::NotFound => self.fail(Kind::NotFound, "the loader found nothing"),
            Response::LoadFailed { .. } if mutant!(FallbackOnEveryError) => self.advance(),
            Response::LoadFailed { is_transient, text } => {
                self.fail(Kind::LoadFailed { is_transient }, format!("the loader of group {name:?} failed: {text}"));
            }
            Response::Overloaded { retry_after } => {
                self.engine.counters.overloaded.up();
                let text =
                    format!("the owner of a key of group {name:?} is overloaded; ask again after {retry_after:?}");
                self.fail(Kind::Overloaded, text);
            }
            Response::TooLarge => {
                let text = format!("a value of group {name:?} is larger than its owner's limits.max_value_bytes");
                self.fail(Kind::TooLarge, text);
            }
            Response::Deadline(DeadlineOwner::Asker) => self.complete(Err(Failure::Expired(self.asked()))),
            Response::Deadline(DeadlineOwner::Load) => {
                self.engine.counters.timeouts.up();
                self.fail(Kind::Timeout, format!("the load of a value of group {name:?} ran into its deadline"));
            }
            Response::BadRequest(text) => self.fail(Kind::BadKey, text),
            // Not by this node; asking the next one is free, since this one did no work.
            Response::Declined(_)
            | Response::Referred(_)
            | Response::WrongPeer
            | Response::Unsupported
            | Response::Pending
            | Response::Done
            | Response::Page(_) => {
                self.engine.counters.fetch_errors.up();
                self.advance();
            }
        }
    }
}

/// Asks the owner of many keys for all of them, in one frame.
pub(crate) fn ask_together<V: Value>(engine: &Arc<Engine<V>>, owner: &Link, flights: &[GroupFlight<V>]) {
    let steps = || flights.iter().filter_map(|flight| FetchStep::of(flight, engine));
    let (taken, refused) = match engine.context.tasks.is_closing() {
        true => (0, Some(NotSent::Open)),
        false => owner.send_all(steps().map(|step| step.call(step.fetch.next.fetch_add(1, Relaxed)))),
    };
    for step in steps().skip(taken) {
        match refused {
            Some(NotSent::Full) => step.complete(Err(step.queue_is_full())),
            Some(NotSent::Open) | None => step.advance(),
        }
    }
}

fn complete<V: Value>(engine: &Engine<V>, flight: &GroupFlight<V>, outcome: Outcome<V>) {
    if outcome.is_err() {
        engine.counters.fetch_errors.up();
    }
    engine.flights.complete(flight, outcome, || ());
}

impl<V: Value> Reply for Flight<Outcome<V>, Work<V>> {
    fn reply(self: Arc<Self>, outcome: Reached, at: Instant) {
        let Work::Fetch(fetch) = &self.context else { return };
        // Whoever waits has the group.
        let Some(engine) = fetch.engine.upgrade() else { return };
        let step = FetchStep { engine: &engine, flight: &self, fetch };
        match outcome {
            Reached::Answered(answer) => {
                engine.peer_latencies.add(at.saturating_duration_since(fetch.begun));
                step.answered(answer);
            }
            Reached::Unreachable => {
                engine.counters.fetch_errors.up();
                fetch.has_failed.store(true, Relaxed);
                step.advance();
            }
            Reached::Expired => step.complete(Err(Failure::Expired(step.asked()))),
        }
    }
}
