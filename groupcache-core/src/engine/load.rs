//! Load: begun once, run in a task of its own, and shared by all callers that get the key meanwhile.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::time::{Instant, timeout_at};

use crate::{
    cache::{
        payload::{Payload, Slot},
        store::Entry,
    },
    engine::{Engine, GroupFlight, Outcome, Work, batch, entry, lookup::Purpose, previous_owner},
    error::{BoxError, Error, Kind, Result},
    flight::{
        CompleteOnDrop, Join, Kind as Table,
        nesting::{CURRENT, JoinGuard, LoadContext},
    },
    loader::{Load, LoadReason, Loaded},
    protocol::chain::LoadChain,
    runtime::clock::{self, later},
    value::Value,
};

/// Minimum time between the beginnings of two refreshes of a key. A stale value is also served for this time after a
/// failed load.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);

/// State of a get after it was dispatched.
pub(crate) enum Dispatched<V: Value> {
    /// An entry was stored meanwhile.
    Found(Slot<V>),
    /// A flight runs. While the guard lives, the load that the caller joined has the load chain of the caller.
    Flight(GroupFlight<V>, Option<JoinGuard>),
}

/// Joins the load of a key, or begins it.
///
/// # Errors
/// The load chain is too deep, or closes a cycle.
pub(crate) fn join<V: Value>(
    engine: &Arc<Engine<V>>,
    key: &str,
    hash: u64,
    chain: &LoadChain,
    reason: LoadReason,
) -> Result<Dispatched<V>> {
    let load = LoadContext::begin(chain, hash).map_err(|e| engine.errors.nesting(e))?;
    let now_ms = engine.context.local.clock.read_ms();
    let mut unusable = None;
    let recheck = || engine.lookup(key, now_ms, Purpose::BeginFlight).map_err(|slot| unusable = slot).ok();
    let joined = engine.flights.join(Table::Load, key, now_ms, |_| true, recheck, || Work::Load(load));
    drop(unusable);
    match joined {
        Join::Found(slot) => Ok(Dispatched::Found(slot)),
        Join::Shared(flight) => {
            engine.counters.shared_flights.up();
            let load = flight.context.load_context();
            let joined = load.map(|load| load.join(chain)).transpose().map_err(|e| engine.errors.nesting(e))?;
            Ok(Dispatched::Flight(flight, joined.flatten()))
        }
        Join::Started(flight) => {
            begin(engine, Arc::clone(&flight), hash, reason, chain.depth() > 0);
            Ok(Dispatched::Flight(flight, None))
        }
    }
}

/// Starts a load, alone or in a batch.
fn begin<V: Value>(engine: &Arc<Engine<V>>, flight: GroupFlight<V>, hash: u64, reason: LoadReason, is_nested: bool) {
    tracing::trace!(group = &*engine.settings.name, key = &**flight.key(), ?reason, "load.start");
    match &engine.loads.batches {
        None => engine.context.tasks.load(run(Arc::clone(engine), flight, hash, reason)),
        Some(batches) if is_nested => batch::load_alone(engine, batches, flight, hash, reason),
        Some(batches) => batch::load_with_others(engine, batches, flight, hash, reason),
    }
}

/// Returns a guard which completes a flight with an error when it is dropped, for the task that is to complete the
/// flight.
pub(crate) fn complete_on_drop<V: Value>(
    engine: &Arc<Engine<V>>,
    flight: &GroupFlight<V>,
) -> CompleteOnDrop<impl FnOnce() + use<V>> {
    let (engine, flight) = (Arc::clone(engine), Arc::clone(flight));
    CompleteOnDrop::new(move || give_up(&engine, &flight))
}

/// Completes a flight with an error, because its task ended without an outcome.
pub(crate) fn give_up<V: Value>(engine: &Engine<V>, flight: &GroupFlight<V>) {
    let text = "a load was abandoned, because the node was shut down or its runtime ended; start another node";
    engine.flights.complete(flight, Err(Error::new(Kind::Closed, text).into()), || ());
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
    let Ok(load) = LoadContext::begin(&LoadChain::EMPTY, hash) else { return };
    // The present entry does not satisfy a refresh, so that memory is not checked again.
    let joined = engine.flights.join(Table::Load, key, now_ms, |_| true, || None::<()>, || Work::Load(load));
    if let Join::Started(flight) = joined {
        engine.counters.refreshes.up();
        begin(engine, flight, hash, LoadReason::Refresh, false);
    }
}

/// State of the node when a load begins.
pub(crate) struct LoadStart<V: Value> {
    /// Number of the last change.
    pub(crate) changes: u32,
    /// Previous entry, for the loader, and for the waiters if the loader fails.
    pub(crate) previous: Option<Slot<V>>,
}

impl<V: Value> LoadStart<V> {
    pub(crate) fn now(engine: &Engine<V>, key: &str) -> Self {
        let changes = engine.context.changes.number();
        Self { changes, previous: engine.lookup(key, engine.context.now_ms(), Purpose::Previous).ok() }
    }
}

/// Returns the task of one load. The flight completes whatever happens to the task, even if it is never polled.
fn run<V: Value>(
    engine: Arc<Engine<V>>,
    flight: GroupFlight<V>,
    hash: u64,
    reason: LoadReason,
) -> impl Future<Output = ()> + Send {
    let guard = complete_on_drop(&engine, &flight);
    async move {
        let changes = engine.context.changes.number();
        // Before the load takes a permit, and before its deadline starts.
        if previous_owner::may_have_moved(&engine, &flight, reason)
            && previous_owner::take(&engine, &flight, hash, changes).await
        {
            return guard.defuse();
        }
        let start = LoadStart::now(&engine, flight.key());
        let outcome = load(&engine, &flight, reason, start.previous.as_deref()).await;
        complete(&engine, &flight, hash, outcome, &start);
        guard.defuse();
    }
}

/// Calls the loader, with permits, attempts and a deadline.
async fn load<V: Value>(
    engine: &Engine<V>,
    flight: &GroupFlight<V>,
    reason: LoadReason,
    previous: Option<&Entry<Payload<V>>>,
) -> Result<Loaded<V>> {
    let Some(context) = flight.context.load_context().cloned() else {
        return Err(Error::new(Kind::Closed, "the load has no context"));
    };
    let deadline = clock::deadline(engine.loads.deadline);
    let previous = previous.and_then(|slot| slot.payload.value().ok());
    let call = || {
        let load = Load::new(flight.key(), &engine.settings.name, deadline, reason, previous.as_ref());
        one_attempt(engine, &context, load, deadline)
    };
    engine.loads.attempts(&context, deadline, call, Result::is_err).await
}

/// Calls the loader once.
async fn one_attempt<V: Value>(
    engine: &Engine<V>,
    context: &Arc<LoadContext>,
    load: Load<'_, V>,
    deadline: Instant,
) -> Result<Loaded<V>> {
    engine.counters.loads.up();
    if load.reason() == LoadReason::Fallback {
        engine.counters.fallback_loads.up();
    }
    // The call is inside of the block, because a loader may panic before it returns its future.
    let call = AssertUnwindSafe(async { engine.loads.loader.start(load).await }).catch_unwind();
    let begun = Instant::now();
    let called = timeout_at(deadline, CURRENT.scope(Arc::clone(context), call)).await;
    engine.loads.latencies.add(begun.elapsed());
    let name = &engine.settings.name;
    let failed = match called {
        Ok(Ok(Ok(loaded))) => return Ok(loaded),
        Ok(Ok(Err(error))) => engine.errors.load_failed(error),
        Ok(Err(panic)) if mutant!(PanicNotCaught) => std::panic::resume_unwind(panic),
        Ok(Err(panic)) => {
            let text = format!("the loader of group {name:?} panicked");
            Error::caused(Kind::LoadFailed { is_transient: false }, text, panic_text(&*panic))
        }
        Err(_) => {
            let limit = engine.loads.deadline;
            let text = format!(
                "the loader of group {name:?} took longer than {limit:?} and was aborted; raise its load_deadline"
            );
            Error::new(Kind::Timeout, text)
        }
    };
    engine.counters.load_errors.up();
    Err(failed)
}

/// Returns the message of a panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> BoxError {
    let text = panic.downcast_ref::<&str>().copied().map(ToOwned::to_owned);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned()).into()
}

/// Encodes a loaded value, caches it unless a write came after the flight began, and completes the flight.
pub(crate) fn complete<V: Value>(
    engine: &Engine<V>,
    flight: &GroupFlight<V>,
    hash: u64,
    loaded: Result<Loaded<V>>,
    start: &LoadStart<V>,
) {
    let now_ms = engine.context.local.clock.read_ms();
    let was_loaded = loaded.is_ok();
    let is_held = engine.holds.is_held(flight.key(), flight.begun_ms);
    let loaded = loaded.map(|loaded| if is_held { loaded.do_not_keep() } else { loaded });
    let entry = loaded.and_then(|loaded| entry::of_load(engine, flight.key(), hash, loaded, now_ms, start));
    // A value that cannot be encoded is no answer, and does not remove the present entry.
    let is_answer = was_loaded && !matches!(&entry, Err(e) if e.is_load_failed());
    let (outcome, keep) = match entry {
        Ok((outcome, keep)) => (outcome, keep),
        Err(error) => (fallback_to_stale(engine, flight.key(), error, now_ms, start.previous.as_ref()), None),
    };
    engine.handover.previous.mark_overwritten(&engine.context.handover, hash, now_ms);
    let keeps = keep.is_some();
    // An answer that is not kept removes the present entry, which is outdated.
    let store = || match keep {
        Some(slot) => (Some(engine.cache.owned.insert(flight.key(), slot)), None),
        None if is_answer => (None, engine.cache.owned.remove(flight.key())),
        None => (None, None),
    };
    match engine.flights.complete(flight, outcome, store) {
        None if keeps => engine.counters.discarded_after_write.up(),
        Some((Some(inserted), _)) => engine.cache.after_insert(flight.key(), inserted, false),
        _ => {}
    }
}

/// Returns the outcome of a failed load: the previous value if the group's `stale_if_error` allows it, otherwise the
/// error.
fn fallback_to_stale<V: Value>(
    engine: &Engine<V>,
    key: &str,
    error: Error,
    now_ms: u64,
    previous: Option<&Slot<V>>,
) -> Outcome<V> {
    if let Some(slot) = previous {
        engine.ownership.may_serve(key, slot, now_ms); // applies changes during the load, which may end the entry
    }
    let usable = previous.filter(|slot| slot.payload.encoded().is_some() && !slot.is_gone(now_ms));
    // A value that is too large is an answer, after which the previous value is outdated.
    let is_failure = !error.is_too_large();
    let Some(slot) = usable.filter(|_| is_failure && !engine.settings.freshness.stale_if_error.is_zero()) else {
        return Err(error.into());
    };
    engine.counters.stale_on_error.up();
    if slot.is_expired(now_ms) {
        // Served on for a while, so that not each of the next gets waits for another failure of the loader.
        slot.serve_on(later(now_ms, REFRESH_PAUSE));
    }
    Ok(Slot::clone(slot))
}
