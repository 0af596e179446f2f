//! Loads of many keys in one call of the loader.
//!
//! Loads that begin in one moment (the keys of a `get_many`, the requests of one frame, callers that came together) are
//! gathered and handed to the loader together. Each is a flight of its own all the same: shared by all who ask for its
//! key, and kept only if no write has passed it.

use std::{collections::BTreeSet, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::join_all};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Flying, Inner,
    load::{Begun, finish, panic_text},
};
use crate::{
    chain::CURRENT,
    clock,
    error::{Error, Kind, Result},
    flight::LandOnDrop,
    loader::{LoadError, LoadReason, Loaded, SharedBatchLoader},
    sync::Mutex,
    value::Value,
};

/// For how many milliseconds a batch waits at most, while a frame or a call for many keys is being taken: one with a
/// thousand keys takes about one, and there is an end where frames come without a pause.
const MAX_WAITS: usize = 3;

/// A load that waits for others to come along.
struct Waiting<V: Value> {
    flight: Flying<V>,
    hash: u64,
    reason: LoadReason,
    /// Lands the flight if nobody else does.
    guard: LandOnDrop<Box<dyn FnOnce() + Send + Sync>>,
}

/// What a group with a batch loader has beside others.
pub(super) struct Batches<V: Value> {
    loader: SharedBatchLoader<V>,
    max_keys: usize,
    waiting: Mutex<Vec<Waiting<V>>>,
}

impl<V: Value> Batches<V> {
    pub(super) fn new(loader: SharedBatchLoader<V>, max_keys: usize) -> Self {
        Self { loader, max_keys, waiting: Mutex::default() }
    }
}

impl<V: Value> Inner<V> {
    /// A load has begun: it goes with those that begin in the same moment.
    pub(super) fn load_with_others(
        self: &Arc<Self>,
        batches: &Arc<Batches<V>>,
        flight: Flying<V>,
        hash: u64,
        reason: LoadReason,
    ) {
        let waiting = self.waiting(flight, hash, reason);
        let is_first = {
            let mut all = batches.waiting.lock();
            all.push(waiting);
            all.len() == 1
        };
        if !is_first {
            return;
        }
        let group = Arc::clone(self);
        let mut gathering = Gathering { batches: Arc::clone(batches), has_taken: false };
        self.shared.tasks.load(async move {
            // The rest of the frame, or of the keys, gets here in this moment, on another thread perhaps.
            tokio::task::yield_now().await;
            for _ in 0..MAX_WAITS {
                if !group.shared.registry.is_taking() {
                    break;
                }
                sleep(Duration::from_millis(1)).await;
            }
            let mut all = gathering.take();
            while !all.is_empty() {
                let (some, rest) = one_batch(all, gathering.batches.max_keys);
                group.shared.tasks.load(run(Arc::clone(&group), Arc::clone(&gathering.batches), some));
                all = rest;
            }
        });
    }

    /// A load that another load waits for goes alone: it has permits of its own depth.
    pub(super) fn load_alone(
        self: &Arc<Self>,
        batches: &Arc<Batches<V>>,
        flight: Flying<V>,
        hash: u64,
        reason: LoadReason,
    ) {
        let waiting = self.waiting(flight, hash, reason);
        self.shared.tasks.load(run(Arc::clone(self), Arc::clone(batches), vec![waiting]));
    }

    fn waiting(self: &Arc<Self>, flight: Flying<V>, hash: u64, reason: LoadReason) -> Waiting<V> {
        let (group, flying) = (Arc::clone(self), Arc::clone(&flight));
        let land: Box<dyn FnOnce() + Send + Sync> = Box::new(move || group.give_up(&flying));
        Waiting { flight, hash, reason, guard: LandOnDrop::new(land) }
    }
}

/// The first of them, each key once: a key that was written meanwhile is waited for by two flights. The others come next.
fn one_batch<V: Value>(all: Vec<Waiting<V>>, max_keys: usize) -> (Vec<Waiting<V>>, Vec<Waiting<V>>) {
    let mut keys = BTreeSet::new();
    all.into_iter().partition(|waiting| keys.len() < max_keys && keys.insert(Arc::clone(waiting.flight.key())))
}

/// The task of one batch.
async fn run<V: Value>(group: Arc<Inner<V>>, batches: Arc<Batches<V>>, some: Vec<Waiting<V>>) {
    let some = not_elsewhere(&group, some).await;
    if some.is_empty() {
        return;
    }
    let changes = group.shared.changes.number();
    let keys: Vec<Arc<str>> = some.iter().map(|waiting| Arc::clone(waiting.flight.key())).collect();
    let mut outcomes = match load_many(&group, &batches, &some, &keys).await {
        Ok(outcomes) => outcomes.into_iter().map(|outcome| outcome.map_err(|e| group.load_failed(e))).collect(),
        Err(error) => vec![Err(error); some.len()],
    };
    for Waiting { flight, hash, guard, .. } in some.into_iter().rev() {
        if let Some(outcome) = outcomes.pop() {
            if outcome.is_err() {
                group.counters.load_errors.up();
            }
            let begun = Begun { changes, previous: group.previous(flight.key()) };
            finish(&group, &flight, hash, outcome, &begun);
            guard.defuse();
        }
    }
}

/// Lands those that former owners have the values of; all of them are asked at once. The rest is to be loaded.
async fn not_elsewhere<V: Value>(group: &Inner<V>, some: Vec<Waiting<V>>) -> Vec<Waiting<V>> {
    let changes = group.shared.changes.number();
    let look = async |waiting: Waiting<V>| {
        let Waiting { flight, hash, reason, .. } = &waiting;
        let has_landed = group.may_have_moved(flight, *reason) && group.take_from_formers(flight, *hash, changes).await;
        if has_landed {
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
    group: &Inner<V>,
    batches: &Batches<V>,
    some: &[Waiting<V>],
    keys: &[Arc<str>],
) -> Result<Outcomes<V>> {
    let mut lineages = some.iter().filter_map(|waiting| waiting.flight.context.lineage());
    let Some(lineage) = lineages.next().cloned() else {
        return Err(Error::new(Kind::Closed, "the load has no lineage"));
    };
    // Begun for nobody among loads, or alone: but a load may come to wait for any of them.
    lineages.for_each(|other| other.follow(&lineage));
    let deadline = clock::deadline(group.settings.load_deadline);
    let keys: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
    let fallbacks = some.iter().filter(|waiting| waiting.reason == LoadReason::Fallback).count();
    let call = || async {
        group.counters.loads.add(keys.len() as u64);
        group.counters.fallback_loads.add(fallbacks as u64);
        group.counters.batches.up();
        let call = AssertUnwindSafe(async { batches.loader.start(&keys).await }).catch_unwind();
        let begun = Instant::now();
        let called = timeout_at(deadline, CURRENT.scope(Arc::clone(&lineage), call)).await;
        group.load_latencies.add(begun.elapsed());
        outcome(group, called, keys.len())
    };
    // A source that fails for each of its keys has failed.
    let has_failed =
        |loaded: &Result<Outcomes<V>>| loaded.as_ref().map_or(true, |all| all.iter().all(|one| one.is_err()));
    group.attempts(&lineage, deadline, call, has_failed).await
}

type Called<V> = std::result::Result<
    std::result::Result<std::result::Result<Outcomes<V>, LoadError>, Box<dyn std::any::Any + Send>>,
    tokio::time::error::Elapsed,
>;

/// What a call of the batch loader came to; a wrong number of answers is nobody's.
fn outcome<V: Value>(group: &Inner<V>, called: Called<V>, wanted: usize) -> Result<Outcomes<V>> {
    let name = &group.settings.name;
    let failed = |text: String| Error::new(Kind::LoadFailed { is_transient: false }, text);
    match called {
        Ok(Ok(Ok(outcomes))) if outcomes.len() == wanted => Ok(outcomes),
        Ok(Ok(Ok(outcomes))) => Err(failed(format!(
            "the batch loader of group {name:?} gave {} answers to {wanted} keys; give one for each, in their order",
            outcomes.len()
        ))),
        Ok(Ok(Err(error))) => Err(group.load_failed(error)),
        Ok(Err(panic)) => {
            let text = format!("the batch loader of group {name:?} panicked");
            Err(Error::caused(Kind::LoadFailed { is_transient: false }, text, panic_text(&*panic)))
        }
        Err(_) => {
            let limit = group.settings.load_deadline;
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
    use crate::{BatchLoader, Node};

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
        group.served().invalidate("k");
        assert!(poll!(&mut *second).is_pending());
        assert_eq!(first.await.unwrap(), "row k");
        assert_eq!((other.await.unwrap(), second.await.unwrap()), ("row other".to_owned(), "row k".to_owned()));
        assert_eq!(*asked.lock(), [vec!["k", "other"], vec!["k"]]);
    }
}
