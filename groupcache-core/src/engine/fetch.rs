//! Fetch: asks the owner of a key, then its successors, and loads on this node if no candidate answers.
//!
//! A fetch has no task. The callers wait for its flight, and the task that reads a connection takes the next step of
//! the fetch with each response.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::{
    engine::{
        Engine, Failure, GroupFlight, Outcome, Work,
        load::{self, Dispatched},
        load_task,
        lookup::Purpose,
        ownership::{Candidates, ViewSnapshot},
        pending::PendingGet,
        suspect::Suspect,
    },
    flight::{Join, Kind as Table, nesting::JoinGuard},
    identity::{Instance, PeerId},
    loader::LoadReason,
    membership::stabilizer::Member,
    peer::client::{
        call::{Call, NotSent},
        link::Link,
        receiver::{Receiver, Reply},
    },
    protocol::{
        chain::LoadChain,
        message::{Op, Strikes},
    },
    runtime::{
        clock::later,
        sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    value::Value,
};

/// State of a fetch, kept in its flight.
pub(crate) struct Fetch<V: Value> {
    /// Engine of the group. Weak, because the engine holds the flight.
    pub(super) engine: Weak<Engine<V>>,
    pub(super) snapshot: ViewSnapshot,
    pub(super) hash: u64,
    chain: LoadChain,
    pub(super) begun: Instant,
    deadline_ms: u64,
    candidates: Candidates,
    /// Rank of the next candidate; rank 0 is the owner. The candidate before it was tried last.
    next: AtomicUsize,
    /// Whether the request to a peer ended because the peer is unreachable. Further requests then take from the
    /// fallback budget.
    pub(super) has_failed: AtomicBool,
    /// Whether a peer was asked that cannot say which writes of the key it has heard of. Its value is not kept.
    pub(super) is_doubtful: AtomicBool,
}

impl<V: Value> Fetch<V> {
    /// Returns the depth of the load chain for which the fetch began.
    pub(crate) fn depth(&self) -> usize {
        self.chain.depth()
    }

    /// Returns whether the value may lack a write that this node has heard of.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.is_doubtful.load(Relaxed)
    }
}

/// Joins the fetch of a key, or makes one and begins it with `begin`.
///
/// A running fetch is joined only if it began for a load chain at least as deep, because the load at the owner may wait
/// for a permit and must learn the depth of the deepest load that waits for it. The owner runs one load for both
/// fetches.
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
            candidates: Candidates::default(),
            next: AtomicUsize::new(0),
            has_failed: AtomicBool::new(false),
            is_doubtful: AtomicBool::new(false),
        })
    };
    let suits = |work: &Work<V>| work.depth() >= pending.chain.depth() && !work.is_doubtful();
    let joined = engine.flights.join(Table::Fetch, key, now_ms, suits, recheck, fetch);
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

/// Time for which the first candidate without a strike waits before its callers ask another node for a suspected key. The
/// callers of other nodes ask this node meanwhile, so that one process is at risk and not two.
const NEWS: Duration = Duration::from_millis(500);

/// Next step of a fetch.
enum Next<'a> {
    Ask(&'a Member),
    /// The candidate is passed over.
    Skip,
    /// The local node is the candidate that the callers of other nodes ask.
    Wait,
    /// No candidate is left.
    None,
}

/// Step of a fetch, taken by the task that begins it or that reads a response.
pub(crate) struct FetchStep<'a, V: Value> {
    pub(super) engine: &'a Arc<Engine<V>>,
    pub(crate) flight: &'a GroupFlight<V>,
    pub(super) fetch: &'a Fetch<V>,
}

impl<'a, V: Value> FetchStep<'a, V> {
    /// Returns the step of a flight, or `None` if the flight is a load.
    pub(crate) fn of(flight: &'a GroupFlight<V>, engine: &'a Arc<Engine<V>>) -> Option<Self> {
        if let Work::Fetch(fetch) = &flight.context { Some(Self { engine, flight, fetch }) } else { None }
    }

    /// Sends the request to the next candidate that takes it. Loads on this node if it is the next candidate, if no
    /// candidate is left, or if the fallback budget is spent.
    pub(crate) fn advance(&self) {
        let (context, fetch) = (&self.engine.context, self.fetch);
        if context.tasks.is_closing() {
            return self.complete(Err(self.engine.errors.closed().into()));
        }
        let suspect = self.engine.suspect(self.flight.key());
        loop {
            let rank = fetch.next.fetch_add(1, Relaxed);
            let next = match &suspect {
                None => self.candidate(rank).filter(|member| !member.is_local()).map_or(Next::None, Next::Ask),
                Some(suspect) => self.next_for(suspect, rank),
            };
            let member = match next {
                Next::Ask(member) => member,
                Next::Skip => continue,
                Next::Wait => return self.wait_for_news(),
                Next::None if suspect.is_none() => return self.load_here(),
                Next::None => {
                    let quarantine = suspect.and_then(|suspect| suspect.quarantine());
                    return self.complete(Err(self.engine.errors.quarantined(quarantine).into()));
                }
            };
            let Some(link) = self.link(member) else { continue };
            if suspect.is_none() && fetch.has_failed.load(Relaxed) && !context.may_ask_again() {
                return self.load_here();
            }
            match link.send(self.call(&link, rank)) {
                Ok(()) => return,
                Err(NotSent::Open) => {} // an open breaker costs nothing: the next candidate is asked
                Err(NotSent::Full) => return self.complete(Err(self.queue_is_full())),
            }
        }
    }

    /// Returns the next candidate for a key with strikes: first the peers without a strike, and then those that have been
    /// started again since. No load begins on this node, because nobody would witness the end of its process. Of a key in
    /// quarantine, the owner may have a value in memory.
    fn next_for(&self, suspect: &Suspect, rank: usize) -> Next<'a> {
        let record = &suspect.record;
        if suspect.quarantine().is_some() {
            let owner = self.candidate(rank).filter(|owner| rank == 0 && !owner.is_local());
            return owner.map_or(Next::None, Next::Ask);
        }
        let count = self.fetch.snapshot.view.owners(self.engine.ownership.scope);
        let is_second_round = rank >= count;
        let Some(member) = self.candidate(if is_second_round { rank - count } else { rank }) else { return Next::None };
        let is_dead = || {
            let process = self.link(member).and_then(|link| link.instance());
            process.is_none_or(|process| record.names(&process))
        };
        if record.names_node(&member.id) != is_second_round || is_second_round && (member.is_local() || is_dead()) {
            Next::Skip
        } else if member.is_local() {
            Next::Wait
        } else {
            Next::Ask(member)
        }
    }

    /// Takes the next step a little later, or follows the load that a peer has begun here meanwhile.
    fn wait_for_news(&self) {
        let (engine, flight) = (Arc::clone(self.engine), Arc::clone(self.flight));
        let guard = load_task::complete_on_drop(&engine, &flight);
        self.engine.context.tasks.load(async move {
            let key = flight.key();
            if engine.flights.running(Table::Load, key).is_none() {
                sleep(NEWS).await;
            }
            if let Some(step) = FetchStep::of(&flight, &engine) {
                match engine.flights.running(Table::Load, key) {
                    Some(load) => step.join(load),
                    // Clean meanwhile, because a load for a peer has ended well: its value is in memory.
                    None if engine.suspect(key).is_none() => step.load_here(),
                    None => step.advance(),
                }
            }
            guard.defuse();
        });
    }

    /// Records that the process of a peer ended while it had the request.
    pub(super) fn died(&self, process: Instance) {
        let (local, name) = (&self.engine.context.local, &self.engine.settings.name);
        self.engine.counters.strikes.up();
        local.quarantine.strike(name, self.flight.key(), process, local.clock.read_ms());
    }

    /// Returns the link to a peer if the peer's Hello offers the group in this format. Another peer would decline.
    pub(crate) fn link(&self, member: &Member) -> Option<Arc<Link>> {
        let settings = &self.engine.settings;
        self.engine.context.link(member).filter(|link| link.offers(&settings.name, settings.format))
    }

    /// Returns the request to a peer. A value is taken only from a node that has heard of every write that this node has
    /// heard of.
    fn call(&self, link: &Link, rank: usize) -> Call {
        // After the flight was registered, so that a write that comes meanwhile detaches the flight.
        let known = link.names_for(&self.engine.settings.name, self.flight.key());
        if !known.is_empty() && !link.has_log() {
            self.fetch.is_doubtful.store(true, Relaxed);
        }
        Call {
            op: Op::Get,
            group: self.engine.index(),
            key: Arc::clone(self.flight.key()),
            deadline_ms: self.fetch.deadline_ms,
            rank,
            chain: self.fetch.chain.clone(),
            number: 0,
            known,
            strikes: self.strikes(link),
            reply: Receiver::new(Arc::clone(self.flight) as Arc<dyn Reply>),
        }
    }

    /// Returns the strikes against the key, for a peer that gives notice of the load.
    fn strikes(&self, link: &Link) -> Option<Box<Strikes>> {
        let suspect = self.engine.suspect(self.flight.key()).filter(|_| link.has_quarantine())?;
        Some(Box::new(suspect.record.to_wire(self.engine.context.local.clock.read_ms())))
    }

    fn queue_is_full(&self) -> Failure {
        self.engine.errors.overloaded("max_in_flight_per_peer or max_in_flight requests wait for peers").into()
    }

    fn candidate(&self, rank: usize) -> Option<&'a Member> {
        let fetch = self.fetch;
        fetch.candidates.get(&fetch.snapshot.view, self.engine.ownership.scope, fetch.hash, rank)
    }

    /// Returns the peer that was tried last, if any.
    pub(super) fn asked(&self) -> Option<PeerId> {
        let rank = self.fetch.next.load(Relaxed).checked_sub(1)?;
        self.candidate(rank).filter(|member| !member.is_local()).map(|member| member.id.clone())
    }

    /// Loads the key on this node, because no other node answers for it.
    fn load_here(&self) {
        let fetch = self.fetch;
        // A key with strikes is fetched by its owner too, and may be clean by now.
        let is_mine = self.engine.ownership.owns(&fetch.snapshot.view, fetch.hash);
        let reason = if is_mine { LoadReason::Owner } else { LoadReason::Fallback };
        match load::join(self.engine, self.flight.key(), fetch.hash, &fetch.chain, reason) {
            Ok(Dispatched::Found(slot)) => self.complete(Ok(slot)),
            Ok(Dispatched::Flight(load, joined)) => self.follow(load, joined),
            Err(error) => self.complete(Err(error.into())),
        }
    }

    /// Joins a load that runs on this node.
    fn join(&self, load: GroupFlight<V>) {
        match load::join_running(self.engine, &load, &self.fetch.chain) {
            Ok(joined) => self.follow(load, joined),
            Err(error) => self.complete(Err(error.into())),
        }
    }

    /// Completes the flight with the outcome of a load on this node.
    fn follow(&self, load: GroupFlight<V>, joined: Option<JoinGuard>) {
        let (engine, flight) = (Arc::clone(self.engine), Arc::clone(self.flight));
        let guard = load_task::complete_on_drop(&engine, &flight);
        // The load may take longer than a get, but the waiters of the fetch need an outcome by its deadline.
        let end = engine.context.local.clock.instant(self.fetch.deadline_ms);
        self.engine.context.tasks.load(async move {
            let outcome = engine.context.timers.timeout_at(end, load.outcome()).await;
            drop(joined);
            complete(&engine, &flight, outcome.unwrap_or(Err(Failure::Expired(None))));
            guard.defuse();
        });
    }

    pub(super) fn complete(&self, outcome: Outcome<V>) {
        complete(self.engine, self.flight, outcome);
    }
}

/// Sends the requests of many keys to their owner together.
pub(crate) fn ask_together<V: Value>(engine: &Arc<Engine<V>>, owner: &Link, flights: &[GroupFlight<V>]) {
    let steps = || flights.iter().filter_map(|flight| FetchStep::of(flight, engine));
    let (sent, refused) = match engine.context.tasks.is_closing() {
        true => (0, Some(NotSent::Open)),
        false => owner.send_all(steps().map(|step| step.call(owner, step.fetch.next.fetch_add(1, Relaxed)))),
    };
    for step in steps().skip(sent) {
        match refused {
            Some(NotSent::Full) => step.complete(Err(step.queue_is_full())),
            Some(NotSent::Open) | None => step.advance(),
        }
    }
}

/// Completes the flight of a fetch, keeps nothing, and counts an error.
fn complete<V: Value>(engine: &Engine<V>, flight: &GroupFlight<V>, outcome: Outcome<V>) {
    if outcome.is_err() {
        engine.counters.fetch_errors.up();
    }
    engine.flights.complete(flight, outcome, engine.horizon_of_taken_ms(), || ());
}
