//! Loads of many keys in one call of a batch loader.
//!
//! Loads that begin in one moment (the keys of a `get_many`, the requests of one frame, the gets of several callers)
//! are gathered and passed to the loader together. Each load is a flight of its own: all callers of its key share it,
//! and its value is cached only if no write came after the flight began.

use std::{collections::BTreeSet, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::join_all};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    engine::{
        Engine,
        entry::LoadStart,
        errors::panic_text,
        load::NewLoad,
        load_task::{self, complete},
        suspect::{self, Admission},
    },
    error::{Error, Kind, Result},
    flight::{CompleteOnDrop, nesting::CURRENT},
    loader::{LoadError, LoadReason, Loaded, SharedBatchLoader},
    runtime::{clock, sync::Mutex},
    value::Value,
};

/// Maximum number of milliseconds that a batch waits while a frame or a get of many keys is being dispatched. A frame
/// of 1,000 keys takes about 1 ms. The maximum ends the wait if frames arrive without a pause.
const MAX_WAITS: usize = 3;

/// Load that waits for its batch.
struct Waiting<V: Value> {
    load: NewLoad<V>,
    /// Completes the flight with an error if the batch does not complete it.
    guard: CompleteOnDrop<Box<dyn FnOnce() + Send + Sync>>,
}

impl<V: Value> Waiting<V> {
    /// Returns whether the load waits for a turn or its key has no strikes, and completes its flight otherwise.
    fn may_be_loaded(&self, engine: &Engine<V>) -> bool {
        if self.load.admission != Admission::AtOnce {
            return true;
        }
        let checked = engine.check_load_here(self.load.flight.key());
        checked.map_err(|error| engine.flights.complete(&self.load.flight, Err(error.into()), 0, || ())).is_ok()
    }
}

/// Batch loader of a group, and the loads that wait for its next call.
pub(crate) struct Batches<V: Value> {
    loader: SharedBatchLoader<V>,
    max_keys: usize,
    waiting: Mutex<Vec<Waiting<V>>>,
}

impl<V: Value> Batches<V> {
    pub(crate) fn new(loader: SharedBatchLoader<V>, max_keys: usize) -> Self {
        Self { loader, max_keys, waiting: Mutex::default() }
    }
}

/// Begins a load together with the other loads that begin in the same moment.
pub(crate) fn load_with_others<V: Value>(engine: &Arc<Engine<V>>, batches: &Arc<Batches<V>>, load: NewLoad<V>) {
    let waiting = waiting(engine, load);
    let is_first = {
        let mut all = batches.waiting.lock();
        all.push(waiting);
        all.len() == 1
    };
    if !is_first {
        return;
    }
    let engine = Arc::clone(engine);
    let mut gathering = Gathering { batches: Arc::clone(batches), has_taken: false };
    let context = Arc::clone(&engine.context);
    context.tasks.load(async move {
        // The rest of the frame or of the keys is being dispatched in this moment, perhaps on another thread.
        tokio::task::yield_now().await;
        for _ in 0..MAX_WAITS {
            if !engine.context.registry.is_taking() {
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
        let mut all = gathering.take();
        while !all.is_empty() {
            let (batch, rest) = one_batch(all, gathering.batches.max_keys);
            engine.context.tasks.load(run(Arc::clone(&engine), Arc::clone(&gathering.batches), batch));
            all = rest;
        }
    });
}

/// Begins a load in a batch of its own. A load that another load waits for takes a permit of its own depth, and the load
/// of a suspect waits for its turn.
pub(crate) fn load_alone<V: Value>(engine: &Arc<Engine<V>>, batches: &Arc<Batches<V>>, load: NewLoad<V>) {
    let waiting = waiting(engine, load);
    engine.context.tasks.load(run(Arc::clone(engine), Arc::clone(batches), vec![waiting]));
}

/// Makes a waiting load, which completes its flight with an error when it is dropped.
fn waiting<V: Value>(engine: &Arc<Engine<V>>, load: NewLoad<V>) -> Waiting<V> {
    let (engine, abandoned) = (Arc::clone(engine), Arc::clone(&load.flight));
    let complete: Box<dyn FnOnce() + Send + Sync> = Box::new(move || load_task::give_up(&engine, &abandoned));
    Waiting { load, guard: CompleteOnDrop::new(complete) }
}

/// Splits off the first batch, which has each key once, and returns the remaining loads too. A key that was written
/// between two gets has two flights, and the second one is in a later batch.
fn one_batch<V: Value>(all: Vec<Waiting<V>>, max_keys: usize) -> (Vec<Waiting<V>>, Vec<Waiting<V>>) {
    let mut keys = BTreeSet::new();
    all.into_iter().partition(|waiting| keys.len() < max_keys && keys.insert(Arc::clone(waiting.load.flight.key())))
}

/// Runs one batch: asks previous owners, calls the loader for the remaining keys, and completes each flight.
async fn run<V: Value>(engine: Arc<Engine<V>>, batches: Arc<Batches<V>>, batch: Vec<Waiting<V>>) {
    let mut batch = ask_previous_owners(&engine, batch).await;
    let (changes, loaded) = loop {
        if engine.context.local.quarantine.has_records() {
            batch.retain(|waiting| waiting.may_be_loaded(&engine));
        }
        let Some(first) = batch.first() else { return };
        let is_in_turn = first.load.admission != Admission::AtOnce;
        let changes = engine.context.changes.number();
        let keys: Vec<Arc<str>> = batch.iter().map(|waiting| Arc::clone(waiting.load.flight.key())).collect();
        let loaded = load_task::caught(&engine, load_many(&engine, &batches, &batch, &keys)).await;
        match loaded.and_then(|loaded| loaded) {
            // A key has got a strike while the batch waited for permits. The other keys are loaded without it.
            Err(error) if error.is_quarantined() && !is_in_turn => {}
            loaded => break (changes, loaded),
        }
    };
    let mut outcomes = match loaded {
        Ok(outcomes) => outcomes.into_iter().map(|outcome| outcome.map_err(|e| engine.errors.load_failed(e))).collect(),
        Err(error) => vec![Err(error); batch.len()],
    };
    for Waiting { load: NewLoad { flight, hash, reason, .. }, guard } in batch.into_iter().rev() {
        if let Some(outcome) = outcomes.pop() {
            if outcome.is_err() {
                engine.counters.load_errors.up();
            }
            let start = LoadStart { changes, ..LoadStart::now(&engine, flight.key(), reason) };
            complete(&engine, &flight, hash, outcome, &start);
            guard.defuse();
        }
    }
}

/// Asks the previous owners for all keys at once, completes the flights that get a value, and returns the other loads.
async fn ask_previous_owners<V: Value>(engine: &Engine<V>, batch: Vec<Waiting<V>>) -> Vec<Waiting<V>> {
    let changes = engine.context.changes.number();
    let ask = async |waiting: Waiting<V>| {
        let NewLoad { flight, hash, reason, .. } = &waiting.load;
        if load_task::was_taken(engine, flight, *hash, *reason, changes).await {
            waiting.guard.defuse();
            return None;
        }
        Some(waiting)
    };
    join_all(batch.into_iter().map(ask)).await.into_iter().flatten().collect()
}

type Outcomes<V> = Vec<std::result::Result<Loaded<V>, LoadError>>;

/// Calls the batch loader, with permits, attempts and a deadline of all keys together.
async fn load_many<V: Value>(
    engine: &Engine<V>,
    batches: &Batches<V>,
    batch: &[Waiting<V>],
    keys: &[Arc<str>],
) -> Result<Outcomes<V>> {
    let mut contexts = batch.iter().filter_map(|waiting| waiting.load.flight.context.load_context());
    let Some(context) = contexts.next().cloned() else {
        return Err(Error::new(Kind::Closed, "the load has no context"));
    };
    // No load waited for these when they began, unless the batch has one load only. A load may join any of them later,
    // and then the permit of the whole batch must be of its depth.
    contexts.for_each(|other| other.follow(&context));
    let deadline = clock::deadline(engine.loads.deadline);
    // A suspect is alone in its batch.
    let admission = batch.first().map_or(Admission::AtOnce, |first| first.load.admission);
    let turn = suspect::turn(engine, admission, deadline).await?;
    let keys: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
    let fallbacks = batch.iter().filter(|waiting| waiting.load.reason == LoadReason::Fallback).count();
    let call = || async {
        engine.counters.loads.add(keys.len() as u64);
        engine.counters.fallback_loads.add(fallbacks as u64);
        engine.counters.batches.up();
        let call = AssertUnwindSafe(async { batches.loader.start(&keys).await }).catch_unwind();
        let begun = Instant::now();
        let called = timeout_at(deadline, CURRENT.scope(Arc::clone(&context), call)).await;
        engine.loads.latencies.add(begun.elapsed());
        outcome(engine, called, keys.len())
    };
    // A call counts as failed if it fails as a whole, or for each of its keys.
    let has_failed = |loaded: &Result<Outcomes<V>>| {
        batch.iter().for_each(|waiting| engine.survived(waiting.load.flight.key()));
        loaded.as_ref().map_or(true, |all| all.iter().all(|outcome| outcome.is_err()))
    };
    let begins = async {
        if turn.is_none() && batch.iter().any(|waiting| engine.suspect(waiting.load.flight.key()).is_some()) {
            return Err(Error::new(Kind::Quarantined, "a key of the batch has got a strike"));
        }
        let mut turn = turn;
        let mut running = Vec::new();
        for waiting in batch {
            running.push(suspect::begin(engine, &waiting.load.flight, turn.take()).await?);
        }
        Ok(running)
    };
    engine.loads.attempts(&context, deadline, begins, call, has_failed).await
}

type Called<V> = std::result::Result<
    std::result::Result<std::result::Result<Outcomes<V>, LoadError>, Box<dyn std::any::Any + Send>>,
    tokio::time::error::Elapsed,
>;

/// Returns the outcomes of a call of the batch loader. A wrong number of outcomes is an error of all keys.
fn outcome<V: Value>(engine: &Engine<V>, called: Called<V>, wanted: usize) -> Result<Outcomes<V>> {
    let name = &engine.settings.name;
    let failed = |text: String| Error::new(Kind::LoadFailed { is_transient: false }, text);
    match called {
        Ok(Ok(Ok(outcomes))) if outcomes.len() == wanted => Ok(outcomes),
        Ok(Ok(Ok(outcomes))) => Err(failed(format!(
            "the batch loader of group {name:?} returned {} outcomes for {wanted} keys; return one per key, in order",
            outcomes.len()
        ))),
        Ok(Ok(Err(error))) => Err(engine.errors.load_failed(error)),
        Ok(Err(panic)) => {
            let text = format!("the batch loader of group {name:?} panicked");
            Err(Error::caused(Kind::LoadFailed { is_transient: false }, text, panic_text(&*panic)))
        }
        Err(_) => {
            let limit = engine.loads.deadline;
            let text = format!(
                "the batch loader of group {name:?} took longer than {limit:?} and was aborted; raise its load_deadline"
            );
            Err(Error::new(Kind::Timeout, text))
        }
    }
}

/// Guard of the task that takes the waiting loads once. If the task ends before that, because the node or its runtime
/// has ended, the drop completes their flights with an error.
struct Gathering<V: Value> {
    batches: Arc<Batches<V>>,
    has_taken: bool,
}

impl<V: Value> Gathering<V> {
    fn take(&mut self) -> Vec<Waiting<V>> {
        // Loads that begin from here on have a gathering of their own.
        self.has_taken = true;
        std::mem::take(&mut *self.batches.waiting.lock())
    }
}

impl<V: Value> Drop for Gathering<V> {
    fn drop(&mut self) {
        if !self.has_taken {
            drop(self.take()); // not under the lock
        }
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use futures_util::poll;

    use super::*;
    use crate::{Node, loader::BatchLoader};

    /// Batch loader that records the keys of its calls.
    struct Rows(Arc<Mutex<Vec<Vec<String>>>>);

    impl BatchLoader<String> for Rows {
        async fn load_many(
            &self,
            keys: &[&str],
        ) -> std::result::Result<Vec<std::result::Result<Loaded<String>, LoadError>>, LoadError> {
            self.0.lock().push(keys.iter().map(|key| (*key).to_owned()).collect());
            Ok(keys.iter().map(|key| Ok(Loaded::new(format!("row {key}")))).collect())
        }
    }

    /// Checks that no call has a key twice: a key that is written between two gets has two flights, in two batches.
    #[tokio::test]
    async fn key_written_between_two_gets_is_in_two_batches() {
        let node = Node::builder().start().await.unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let group = node.group::<String>("rows").capacity_bytes(1 << 20).batch_loader(Rows(Arc::clone(&calls)));
        let group = group.build().unwrap();
        let mut gets = [Box::pin(group.get("k")), Box::pin(group.get("other")), Box::pin(group.get("k"))];
        let [first, other, second] = &mut gets;
        assert!(poll!(&mut *first).is_pending() && poll!(&mut *other).is_pending());
        group.service().invalidate("k");
        assert!(poll!(&mut *second).is_pending());
        assert_eq!(first.await.unwrap(), "row k");
        assert_eq!((other.await.unwrap(), second.await.unwrap()), ("row other".to_owned(), "row k".to_owned()));
        assert_eq!(*calls.lock(), [vec!["k", "other"], vec!["k"]]);
    }
}
