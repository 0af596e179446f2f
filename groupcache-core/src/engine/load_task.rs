//! The task of one load: previous owners, permits, the loader, and the completion of the flight.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::{Instant, timeout_at};

use crate::{
    cache::{
        payload::{Payload, Slot, drop_caught},
        store::{Admission as StoreAdmission, Entry},
    },
    engine::{
        Engine, Failure, GroupFlight, Outcome,
        entry::{self, LoadStart},
        errors::panic_text,
        load::NewLoad,
        previous_owner,
        suspect::{self, Admission},
    },
    error::{Error, Kind, Result},
    flight::{
        CompleteOnDrop,
        nesting::{CURRENT, LoadContext},
    },
    loader::{Load, LoadReason, Loaded},
    runtime::clock::{self, later},
    telemetry::{LoadRecord, LoadResult},
    value::Value,
};

/// Time for which a stale value is served after a failed load.
const STALE_PAUSE: Duration = Duration::from_secs(1);

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
    if std::thread::panicking() && !mutant!(PanicNotCaught) {
        return fail(engine, flight, panicked(engine, &"the message is in the log"));
    }
    let text = "a load was abandoned, because the node was shut down or its runtime ended; start another node";
    fail(engine, flight, Error::new(Kind::Closed, text));
}

/// Completes a flight with an error, unless it has its outcome.
fn fail<V: Value>(engine: &Engine<V>, flight: &GroupFlight<V>, error: Error) {
    if !flight.is_complete() {
        engine.flights.complete(flight, Err(error.into()), 0, || ());
    }
}

/// Returns the error of a load during which the code of a value has panicked. The error belongs to the load and not to
/// the node, so that no other node repeats the load.
fn panicked<V: Value>(engine: &Engine<V>, panic: &(dyn Any + Send)) -> Error {
    engine.counters.load_errors.up();
    let text = format!("a value of group {:?} panicked when it was cloned or dropped", engine.settings.name);
    Error::caused(Kind::LoadFailed { is_transient: false }, text, panic_text(panic))
}

/// Runs a part of a load that clones and drops values, which is user code beside the loader.
///
/// # Errors
/// The code of a value has panicked.
pub(super) async fn caught<V: Value, T>(engine: &Engine<V>, part: impl Future<Output = T>) -> Result<T> {
    match AssertUnwindSafe(part).catch_unwind().await {
        Ok(done) => Ok(done),
        Err(panic) if mutant!(PanicNotCaught) => std::panic::resume_unwind(panic),
        Err(panic) => Err(panicked(engine, &*panic)),
    }
}

/// Asks the previous owners for the value of a load, if one may have it. Returns whether the flight is complete.
pub(super) async fn was_taken<V: Value>(
    engine: &Engine<V>,
    flight: &GroupFlight<V>,
    hash: u64,
    reason: LoadReason,
    changes: u32,
) -> bool {
    if !previous_owner::may_have_moved(engine, flight, reason) {
        return false;
    }
    caught(engine, previous_owner::take(engine, flight, hash, changes)).await.unwrap_or_else(|error| {
        fail(engine, flight, error);
        true
    })
}

/// Returns the task of one load. The flight completes whatever happens to the task, even if it is never polled.
pub(crate) fn run<V: Value>(engine: Arc<Engine<V>>, load: NewLoad<V>) -> impl Future<Output = ()> + Send {
    let NewLoad { flight, hash, reason, admission, .. } = load;
    let guard = complete_on_drop(&engine, &flight);
    async move {
        let changes = engine.context.changes.number();
        // Before the load takes a permit, and before its deadline starts.
        if was_taken(&engine, &flight, hash, reason, changes).await {
            return guard.defuse();
        }
        let start = LoadStart::now(&engine, flight.key(), reason);
        let outcome = caught(&engine, call(&engine, &flight, reason, admission, start.previous.as_deref())).await;
        complete(&engine, &flight, hash, outcome.and_then(|loaded| loaded), &start);
        guard.defuse();
    }
}

/// Calls the loader in the turn of the load, with permits, attempts and a deadline.
async fn call<V: Value>(
    engine: &Engine<V>,
    flight: &GroupFlight<V>,
    reason: LoadReason,
    admission: Admission,
    previous: Option<&Entry<Payload<V>>>,
) -> Result<Loaded<V>> {
    let Some(context) = flight.context.load_context().cloned() else {
        return Err(Error::new(Kind::Closed, "the load has no context"));
    };
    let deadline = clock::deadline(engine.loads.deadline);
    let turn = suspect::turn(engine, admission, deadline).await?;
    let previous = previous.and_then(|slot| slot.payload.value().ok());
    let call = || {
        let load = Load::new(flight.key(), &engine.settings.name, deadline, reason, previous.as_ref());
        one_attempt(engine, &context, load, deadline)
    };
    let survived = |loaded: &Result<Loaded<V>>| {
        engine.survived(flight.key());
        loaded.is_err()
    };
    let begins = suspect::begin(engine, flight, turn);
    let loaded = engine.loads.attempts(&context, deadline, begins, call, survived).await;
    drop_caught(previous); // its panic is no reason to lose the loaded value
    loaded
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

/// Encodes a loaded value, caches it unless a write came after the flight began, and completes the flight. A panic of
/// the code of a value is an error of the load.
pub(crate) fn complete<V: Value>(
    engine: &Engine<V>,
    flight: &GroupFlight<V>,
    hash: u64,
    loaded: Result<Loaded<V>>,
    start: &LoadStart<V>,
) {
    let completed = catch_unwind(AssertUnwindSafe(|| complete_with(engine, flight, hash, loaded, start)));
    if let Err(panic) = completed {
        fail(engine, flight, panicked(engine, &*panic));
    }
}

fn complete_with<V: Value>(
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
    let horizon_ms = engine.horizon_ms();
    let entry = loaded.and_then(|loaded| entry::of_load(engine, flight, hash, loaded, now_ms, start));
    // A value that cannot be encoded is no answer, and does not remove the present entry.
    let is_answer = was_loaded && !matches!(&entry, Err(e) if e.is_load_failed());
    let result = match &entry {
        Ok((Ok(_), _)) => LoadResult::Value,
        Ok((Err(Failure::Final(error)), _)) | Err(error) => LoadResult::of(error),
        Ok((Err(Failure::Expired(_)), _)) => LoadResult::TimedOut,
    };
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
    let stored = engine.flights.complete(flight, outcome, horizon_ms, store);
    engine.recent_loads.add(LoadRecord {
        key: Arc::clone(flight.key()),
        reason: start.reason,
        result,
        is_kept: matches!(&stored, Some((Some(inserted), _)) if inserted.admission == StoreAdmission::Kept),
        begun_ms: flight.begun_ms,
        ended_ms: now_ms,
    });
    match stored {
        None if keeps => engine.counters.discarded_after_write.up(),
        Some((Some(inserted), _)) => engine.cache.after_insert(flight.key(), &inserted, false, now_ms),
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
    let horizon_ms = engine.horizon_ms();
    let is_usable = |slot: &&Slot<V>| {
        let is_value = slot.payload.encoded().is_some();
        is_value && !slot.is_gone(now_ms) && engine.is_recent(slot.as_of_ms.max(horizon_ms), now_ms)
    };
    let usable = previous.filter(is_usable);
    // A value that is too large is an answer, after which the previous value is outdated.
    let is_failure = !error.is_too_large();
    let Some(slot) = usable.filter(|_| is_failure && !engine.settings.freshness.stale_if_error.is_zero()) else {
        return Err(error.into());
    };
    engine.counters.stale_on_error.up();
    if slot.is_expired(now_ms) {
        // Served on for a while, so that not each of the next gets waits for another failure of the loader.
        slot.serve_on(later(now_ms, STALE_PAUSE));
    }
    Ok(Slot::clone(slot))
}
