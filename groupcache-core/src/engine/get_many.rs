//! Gets of many keys at once: the requests to each owner leave together, in one frame if the keys fit 256 KiB.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    engine::{
        Engine, GroupFlight,
        fetch::{self, FetchStep},
        load::{self, Dispatched},
        ownership::ViewSnapshot,
        pending::{Deadline, PendingGet},
    },
    error::Result,
    flight::nesting::LoadContext,
    loader::LoadReason,
    membership::stabilizer::DialId,
    peer::client::link::Link,
    value::Value,
};

/// Maximum number of keys that are dispatched together: as many requests fit a frame, and as many loads may wait on
/// this node by default.
const AT_ONCE: usize = 1000;

/// Returns the outcomes of many keys, in their order, within `limit`.
pub(crate) async fn get_many<V: Value, K: AsRef<str>>(
    engine: &Arc<Engine<V>>,
    keys: &[K],
    limit: Duration,
) -> Vec<Result<V>> {
    let begun = engine.context.timers.now();
    let mut outcomes: Vec<_> = keys.iter().map(|key| engine.hit(key.as_ref())).collect();
    let mut missing: Vec<_> = outcomes.iter_mut().zip(keys).filter(|(outcome, _)| outcome.is_none()).collect();
    for chunk in missing.chunks_mut(AT_ONCE) {
        let left = limit.saturating_sub(engine.context.timers.now().saturating_duration_since(begun));
        if left.is_zero() {
            // No flight begins that has no waiter.
            chunk.iter_mut().for_each(|(outcome, _)| **outcome = Some(Err(engine.errors.timed_out(limit, None))));
            continue;
        }
        let found = miss_many(engine, chunk.iter().map(|(_, key)| key.as_ref()), left).await;
        for ((outcome, _), found) in chunk.iter_mut().zip(found) {
            **outcome = Some(found);
        }
    }
    outcomes.into_iter().flatten().collect()
}

/// Dispatches all keys together, and then waits for each.
async fn miss_many<'a, V: Value>(
    engine: &Arc<Engine<V>>,
    keys: impl Iterator<Item = &'a str>,
    limit: Duration,
) -> Vec<Result<V>> {
    let dispatched: Vec<_> = {
        let _window = engine.context.registry.takes_many();
        let mut batch = BatchedGet::new(engine, limit);
        keys.map(|key| (key, batch.dispatch(key))).collect()
    };
    let mut outcomes = Vec::with_capacity(dispatched.len());
    // All requests are under way, so awaiting them in order takes no longer than the slowest.
    for (key, dispatched) in dispatched {
        outcomes.push(match dispatched {
            Ok((dispatched, pending)) => engine.finish(key, &pending, dispatched).await,
            Err(error) => Err(error),
        });
    }
    outcomes
}

/// Gets that begin together. Clock, view and links are read once, and the requests to each owner leave when the batch
/// is dropped.
struct BatchedGet<'a, V: Value> {
    engine: &'a Arc<Engine<V>>,
    deadline: Deadline,
    snapshot: ViewSnapshot,
    /// Load that makes the gets, if a loader makes them.
    asker: Option<Arc<LoadContext>>,
    /// Fetches by owner, in an order that is the same in each run.
    by_owner: BTreeMap<DialId, OwnersFetches<V>>,
}

/// Fetches that are to begin with one owner. Without a link to it, they have begun with its successors.
struct OwnersFetches<V: Value> {
    link: Option<Arc<Link>>,
    flights: Vec<GroupFlight<V>>,
}

impl<'a, V: Value> BatchedGet<'a, V> {
    fn new(engine: &'a Arc<Engine<V>>, limit: Duration) -> Self {
        let (deadline, snapshot) =
            (Deadline::start(&engine.context.local.clock, &engine.context.timers, limit), engine.ownership.snapshot());
        Self { engine, deadline, snapshot, asker: LoadContext::current(), by_owner: BTreeMap::new() }
    }

    /// Joins or begins the load or the fetch of a key. The request to its owner leaves with those for the other keys.
    fn dispatch(&mut self, key: &str) -> Result<(Dispatched<V>, PendingGet)> {
        let (engine, view) = (self.engine, Arc::clone(&self.snapshot.view));
        let pending = engine.begin(key, self.deadline, self.asker.as_ref())?;
        if engine.suspect(key).is_some() {
            return Ok((engine.dispatch(key, &pending, self.deadline.begun)?, pending));
        }
        let owner = engine.ownership.peer_owner(&view, pending.hash).and_then(|owner| Some((owner, owner.dial?)));
        let Some((owner, dial)) = owner else {
            return Ok((load::join(engine, key, pending.hash, &pending.chain, LoadReason::Owner)?, pending));
        };
        let begin = |step: FetchStep<'_, V>| {
            let found = || OwnersFetches { link: step.link(owner), flights: Vec::new() };
            let of_owner = self.by_owner.entry(dial).or_insert_with(found);
            match of_owner.link {
                Some(_) => of_owner.flights.push(Arc::clone(step.flight)),
                None => step.advance(),
            }
        };
        let dispatched = fetch::join(engine, key, &pending, self.snapshot.clone(), self.deadline.begun, begin);
        Ok((dispatched, pending))
    }
}

impl<V: Value> Drop for BatchedGet<'_, V> {
    fn drop(&mut self) {
        for OwnersFetches { link, flights } in self.by_owner.values() {
            if let Some(owner) = link {
                fetch::ask_together(self.engine, owner, flights);
            }
        }
    }
}
