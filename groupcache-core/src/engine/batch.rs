//! Loads of many keys in one call of the loader.
//!
//! Loads that begin in one moment (the keys of a `get_many`, the requests of one frame, callers that came together) are
//! gathered and handed to the loader together. Each is a flight of its own all the same: shared by all who ask for its
//! key, and kept only if no write has passed it.

use std::{collections::BTreeSet, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::join_all};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    engine::{
        Engine, GroupFlight,
        load::{self, LoadStart, complete, panic_text},
        previous_owner,
    },
    error::{Error, Kind, Result},
    flight::{CompleteOnDrop, nesting::CURRENT},
    loader::{LoadError, LoadReason, Loaded, SharedBatchLoader},
    runtime::{clock, sync::Mutex},
    value::Value,
};

/// For how many milliseconds a batch waits at most, while a frame or a call for many keys is being taken: one with a
/// thousand keys takes about one, and there is an end where frames come without a pause.
const MAX_WAITS: usize = 3;

/// A load that waits for others to come along.
struct Waiting<V: Value> {
    flight: GroupFlight<V>,
    hash: u64,
    reason: LoadReason,
    /// Lands the flight if nobody else does.
    guard: CompleteOnDrop<Box<dyn FnOnce() + Send + Sync>>,
}

/// What a group with a batch loader has beside others.
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

/// Begins a load together with those that begin in the same moment.
pub(crate) fn load_with_others<V: Value>(
    engine: &Arc<Engine<V>>,
    batches: &Arc<Batches<V>>,
    flight: GroupFlight<V>,
    hash: u64,
    reason: LoadReason,
) {
    let waiting = waiting(engine, flight, hash, reason);
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
        // The rest of the frame, or of the keys, arrives in this moment, perhaps on another thread.
        tokio::task::yield_now().await;
        for _ in 0..MAX_WAITS {
            if !engine.context.registry.is_taking() {
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
        let mut all = gathering.take();
        while !all.is_empty() {
            let (some, rest) = one_batch(all, gathering.batches.max_keys);
            engine.context.tasks.load(run(Arc::clone(&engine), Arc::clone(&gathering.batches), some));
            all = rest;
        }
    });
}

/// Begins a load that another load waits for: it goes alone, because it has the permits of its own depth.
pub(crate) fn load_alone<V: Value>(
    engine: &Arc<Engine<V>>,
    batches: &Arc<Batches<V>>,
    flight: GroupFlight<V>,
    hash: u64,
    reason: LoadReason,
) {
    let waiting = waiting(engine, flight, hash, reason);
    engine.context.tasks.load(run(Arc::clone(engine), Arc::clone(batches), vec![waiting]));
}

fn waiting<V: Value>(engine: &Arc<Engine<V>>, flight: GroupFlight<V>, hash: u64, reason: LoadReason) -> Waiting<V> {
    let (engine, given_up) = (Arc::clone(engine), Arc::clone(&flight));
    let complete: Box<dyn FnOnce() + Send + Sync> = Box::new(move || load::give_up(&engine, &given_up));
    Waiting { flight, hash, reason, guard: CompleteOnDrop::new(complete) }
}

/// The first of them, each key once: a key that was written meanwhile is waited for by two flights. The others come next.
fn one_batch<V: Value>(all: Vec<Waiting<V>>, max_keys: usize) -> (Vec<Waiting<V>>, Vec<Waiting<V>>) {
    let mut keys = BTreeSet::new();
    all.into_iter().partition(|waiting| keys.len() < max_keys && keys.insert(Arc::clone(waiting.flight.key())))
}

/// The task of one batch.
async fn run<V: Value>(engine: Arc<Engine<V>>, batches: Arc<Batches<V>>, some: Vec<Waiting<V>>) {
    let some = not_elsewhere(&engine, some).await;
    if some.is_empty() {
        return;
    }
    let changes = engine.context.changes.number();
    let keys: Vec<Arc<str>> = some.iter().map(|waiting| Arc::clone(waiting.flight.key())).collect();
    let mut outcomes = match load_many(&engine, &batches, &some, &keys).await {
        Ok(outcomes) => outcomes.into_iter().map(|outcome| outcome.map_err(|e| engine.errors.load_failed(e))).collect(),
        Err(error) => vec![Err(error); some.len()],
    };
    for Waiting { flight, hash, guard, .. } in some.into_iter().rev() {
        if let Some(outcome) = outcomes.pop() {
            if outcome.is_err() {
                engine.counters.load_errors.up();
            }
            let start = LoadStart { changes, ..LoadStart::now(&engine, flight.key()) };
            complete(&engine, &flight, hash, outcome, &start);
            guard.defuse();
        }
    }
}

/// Lands those that former owners have the values of; all of them are asked at once. The rest is to be loaded.
async fn not_elsewhere<V: Value>(engine: &Engine<V>, some: Vec<Waiting<V>>) -> Vec<Waiting<V>> {
    let changes = engine.context.changes.number();
    let look = async |waiting: Waiting<V>| {
        let Waiting { flight, hash, reason, .. } = &waiting;
        let is_complete = previous_owner::may_have_moved(engine, flight, *reason)
            && previous_owner::take(engine, flight, *hash, changes).await;
        if is_complete {
            waiting.guard.defuse();
            return None;
        }
        Some(waiting)
    };
    join_all(some.into_iter().map(look)).await.into_iter().flatten().collect()
}

type Outcomes<V> = Vec<std::result::Result<Loaded<V>, LoadError>>;

/// Permits, attempts and deadline, of all keys together.
async fn load_many<V: Value>(
    engine: &Engine<V>,
    batches: &Batches<V>,
    some: &[Waiting<V>],
    keys: &[Arc<str>],
) -> Result<Outcomes<V>> {
    let mut contexts = some.iter().filter_map(|waiting| waiting.flight.context.load_context());
    let Some(context) = contexts.next().cloned() else {
        return Err(Error::new(Kind::Closed, "the load has no context"));
    };
    // Begun for nobody among loads, or alone: but a load may come to wait for any of them.
    contexts.for_each(|other| other.follow(&context));
    let deadline = clock::deadline(engine.loads.deadline);
    let keys: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
    let fallbacks = some.iter().filter(|waiting| waiting.reason == LoadReason::Fallback).count();
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
    // A source that fails for each of its keys has failed.
    let has_failed =
        |loaded: &Result<Outcomes<V>>| loaded.as_ref().map_or(true, |all| all.iter().all(|one| one.is_err()));
    engine.loads.attempts(&context, deadline, call, has_failed).await
}

type Called<V> = std::result::Result<
    std::result::Result<std::result::Result<Outcomes<V>, LoadError>, Box<dyn std::any::Any + Send>>,
    tokio::time::error::Elapsed,
>;

/// What a call of the batch loader came to; a wrong number of answers is nobody's.
fn outcome<V: Value>(engine: &Engine<V>, called: Called<V>, wanted: usize) -> Result<Outcomes<V>> {
    let name = &engine.settings.name;
    let failed = |text: String| Error::new(Kind::LoadFailed { is_transient: false }, text);
    match called {
        Ok(Ok(Ok(outcomes))) if outcomes.len() == wanted => Ok(outcomes),
        Ok(Ok(Ok(outcomes))) => Err(failed(format!(
            "the batch loader of group {name:?} gave {} answers to {wanted} keys; give one for each, in their order",
            outcomes.len()
        ))),
        Ok(Ok(Err(error))) => Err(engine.errors.load_failed(error)),
        Ok(Err(panic)) => {
            let text = format!("the batch loader of group {name:?} panicked");
            Err(Error::caused(Kind::LoadFailed { is_transient: false }, text, panic_text(&*panic)))
        }
        Err(_) => {
            let limit = engine.loads.deadline;
            let text = format!("the batch loader of group {name:?} took longer than {limit:?} and was aborted");
            Err(Error::new(Kind::Timeout, text))
        }
    }
}

/// Takes what waits, once. If it never comes to that, because the node or its runtime has ended, what waits is landed
/// when this is dropped.
struct Gathering<V: Value> {
    batches: Arc<Batches<V>>,
    has_taken: bool,
}

impl<V: Value> Gathering<V> {
    fn take(&mut self) -> Vec<Waiting<V>> {
        // What comes from now on has a gathering of its own.
        self.has_taken = true;
        std::mem::take(&mut *self.batches.waiting.lock())
    }
}

impl<V: Value> Drop for Gathering<V> {
    fn drop(&mut self) {
        if !self.has_taken {
            drop(self.take()); // outside of the lock
        }
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use futures_util::poll;

    use super::*;
    use crate::{Node, loader::BatchLoader};

    /// Remembers what it was asked for.
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

    #[tokio::test]
    async fn a_key_that_is_written_between_two_gets_is_in_a_batch_of_its_own_for_each() {
        let node = Node::builder().start().await.unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let group = node.group::<String>("rows").capacity_bytes(1 << 20).batch_loader(Rows(Arc::clone(&asked)));
        let group = group.build().unwrap();
        let mut gets = [Box::pin(group.get("k")), Box::pin(group.get("other")), Box::pin(group.get("k"))];
        let [first, other, second] = &mut gets;
        assert!(poll!(&mut *first).is_pending() && poll!(&mut *other).is_pending());
        group.service().invalidate("k");
        assert!(poll!(&mut *second).is_pending());
        assert_eq!(first.await.unwrap(), "row k");
        assert_eq!((other.await.unwrap(), second.await.unwrap()), ("row other".to_owned(), "row k".to_owned()));
        assert_eq!(*asked.lock(), [vec!["k", "other"], vec!["k"]]);
    }
}
