//! Load: begun once, run in a task of its own, and shared by all callers that get the key meanwhile.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use crate::{
    cache::payload::Slot,
    engine::{Engine, GroupFlight, Work, batch, load_slots, load_task, lookup::Purpose, suspect::Admission},
    error::Result,
    flight::{
        Join, Kind as Table,
        nesting::{JoinGuard, LoadContext, Stage},
    },
    loader::LoadReason,
    protocol::chain::LoadChain,
    runtime::clock::later,
    value::Value,
};

/// Minimum time between the beginnings of two refreshes of a key.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);

/// Load that is to begin.
pub(super) struct NewLoad<V: Value> {
    pub(super) flight: GroupFlight<V>,
    pub(super) hash: u64,
    pub(super) reason: LoadReason,
    pub(super) admission: Admission,
}

impl<V: Value> NewLoad<V> {
    /// Returns whether the load is in a batch of its own: the load of a suspect, and a load that another load waits for.
    fn is_apart(&self) -> bool {
        self.admission != Admission::AtOnce || self.flight.context.load_context().is_some_and(|load| load.depth() > 0)
    }
}

/// State of a get after it was dispatched.
pub(crate) enum Dispatched<V: Value> {
    /// An entry was stored meanwhile.
    Found(Slot<V>),
    /// A flight runs. While the guard lives, the load that the caller joined has the load chain of the caller.
    Flight(GroupFlight<V>, Option<JoinGuard>),
}

/// Joins the load of a key, or begins it, for a caller of this node.
///
/// # Errors
/// The load chain is too deep, or closes a cycle. The key has strikes.
pub(crate) fn join<V: Value>(
    engine: &Arc<Engine<V>>,
    key: &str,
    hash: u64,
    chain: &LoadChain,
    reason: LoadReason,
) -> Result<Dispatched<V>> {
    engine.check_load_here(key)?;
    join_as(engine, key, hash, chain, reason, Admission::AtOnce)
}

/// Joins the load of a key, or begins it as `admission` says. The load of a suspect joins a load with a peer that hears of
/// the beginning, or with a loader that is called already; another one would be refused at its beginning.
///
/// # Errors
/// The load chain is too deep, or closes a cycle.
pub(super) fn join_as<V: Value>(
    engine: &Arc<Engine<V>>,
    key: &str,
    hash: u64,
    chain: &LoadChain,
    reason: LoadReason,
    admission: Admission,
) -> Result<Dispatched<V>> {
    let load = LoadContext::begin(chain, hash).map_err(|e| engine.errors.nesting(e))?;
    if admission != Admission::AtOnce {
        load.waits_for_turn();
    }
    let now_ms = engine.context.local.clock.read_ms();
    let mut unusable = None;
    let recheck = || engine.lookup(key, now_ms, Purpose::BeginFlight).map_err(|slot| unusable = slot).ok();
    let suits = |work: &Work<V>| {
        admission == Admission::AtOnce || work.load_context().is_some_and(|load| load.stage() != Stage::Waits)
    };
    let joined = engine.flights.join(Table::Load, key, now_ms, suits, recheck, || Work::Load(load));
    drop(unusable);
    match joined {
        Join::Found(slot) => Ok(Dispatched::Found(slot)),
        Join::Shared(flight) => {
            engine.counters.shared_flights.up();
            let joined = join_running(engine, &flight, chain)?;
            Ok(Dispatched::Flight(flight, joined))
        }
        Join::Started(flight) => {
            begin(engine, NewLoad { flight: Arc::clone(&flight), hash, reason, admission });
            Ok(Dispatched::Flight(flight, None))
        }
    }
}

/// Records that `chain` waits for a load, until the guard is dropped, and lets the load wait for no slot any more.
///
/// # Errors
/// The load waits for a load of the chain.
pub(super) fn join_running<V: Value>(
    engine: &Arc<Engine<V>>,
    flight: &GroupFlight<V>,
    chain: &LoadChain,
) -> Result<Option<JoinGuard>> {
    let load = flight.context.load_context();
    let joined = load.map(|load| load.join(chain)).transpose().map_err(|e| engine.errors.nesting(e))?;
    if chain.depth() > 0 {
        engine.load_slots.begin_needed(flight.key());
    }
    Ok(joined.flatten())
}

/// Starts a load once its key has a slot, and says so afterwards, because a subscriber that panics must find the task that
/// completes the flight.
fn begin<V: Value>(engine: &Arc<Engine<V>>, load: NewLoad<V>) {
    let (flight, reason, may_wait) = (Arc::clone(&load.flight), load.reason, load.admission == Admission::AtOnce);
    let starting = Arc::clone(engine);
    let begin = move |slot| {
        load.flight.hold(Box::new(slot));
        if starting.context.tasks.is_closing() || starting.is_removed.load(Relaxed) {
            load_task::give_up(&starting, &load.flight);
        }
        if !load.flight.is_complete() {
            if may_wait {
                load.flight.context.load_context().iter().for_each(|load| load.begins(starting.context.now_ms()));
            }
            start(&starting, load);
        }
    };
    if let Some(earlier) = engine.load_slots.begin(&flight, may_wait, engine.context.now_ms(), begin) {
        load_slots::follow(engine, earlier, Arc::clone(&flight));
    }
    tracing::trace!(group = &*engine.settings.name, key = &**flight.key(), ?reason, "load.start");
}

/// Starts a load, alone or in a batch.
fn start<V: Value>(engine: &Arc<Engine<V>>, load: NewLoad<V>) {
    match &engine.loads.batches {
        None => engine.context.tasks.load(load_task::run(Arc::clone(engine), load)),
        Some(batches) if load.is_apart() => batch::load_alone(engine, batches, load),
        Some(batches) => batch::load_with_others(engine, batches, load),
    }
}

/// Begins a refresh in the background if the entry of a hit is due for one. Counts a stale hit.
///
/// A refresh is one load in the whole cluster, because only the owner begins one.
pub(crate) fn refresh_if_due<V: Value>(engine: &Arc<Engine<V>>, key: &str, slot: &Slot<V>, now_ms: u64) {
    if now_ms >= slot.fresh_until_ms() {
        engine.counters.stale_hits.up();
    }
    if now_ms < slot.refresh_at_ms() {
        return;
    }
    let hash = engine.ownership.hash(key);
    // Only the owner refreshes a key, and a draining node begins no refresh.
    if !engine.ownership.is_mine(hash) || engine.context.is_draining() {
        return;
    }
    // An entry under a delete hold was set during the hold. A refresh would remove it, because its value is not kept.
    if engine.holds.is_held(key, now_ms) {
        return;
    }
    if !slot.is_to_be_refreshed(now_ms, later(now_ms, REFRESH_PAUSE)) || engine.context.is_closed() {
        return;
    }
    if engine.suspect(key).is_some() {
        return; // no caller waits that could witness the end of the process
    }
    let Ok(load) = LoadContext::begin(&LoadChain::EMPTY, hash) else { return };
    // The present entry does not satisfy a refresh, so that memory is not checked again.
    let joined = engine.flights.join(Table::Load, key, now_ms, |_| true, || None::<()>, || Work::Load(load));
    if let Join::Started(flight) = joined {
        engine.counters.refreshes.up();
        let (reason, admission) = (LoadReason::Refresh, Admission::AtOnce);
        begin(engine, NewLoad { flight, hash, reason, admission });
    }
}
