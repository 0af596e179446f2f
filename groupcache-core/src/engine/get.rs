//! Steps of a get, in order: memory, the view, the owner, the loader.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    cache::payload::NoValue,
    engine::{
        Engine, Failure, GroupFlight,
        decode::value_of,
        fetch,
        load::{self, Dispatched},
        lookup::Purpose,
        pending::{Deadline, PendingGet},
    },
    error::Result,
    flight::nesting::LoadContext,
    loader::LoadReason,
    protocol::chain::LoadChain,
    runtime::clock::later,
    value::Value,
};

/// Number of outcomes that are too old for a get, after which the get fails: that of a flight of others, that of the
/// owner, and that of a load on this node.
const MAX_TOO_OLD: u32 = 3;

impl<V: Value> Engine<V> {
    /// Returns the answer of memory (step 1), a value or "not found", and looks for an owned entry before a replica.
    /// Counts a hit or a miss.
    pub(crate) fn hit(self: &Arc<Self>, key: &str) -> Option<Result<V>> {
        let now_ms = self.context.now_ms();
        let horizon_ms = self.context.local.writes.has_bounds.load(Relaxed).then(|| self.horizon_ms());
        let was_unusable = match self.lookup(key, now_ms, Purpose::Serve) {
            Ok(slot) => match slot.payload.value() {
                Ok(value) => {
                    self.counters.hits.up();
                    self.note_read(slot.as_of_ms, horizon_ms);
                    slot.touch(now_ms);
                    load::refresh_if_due(self, key, &slot, now_ms);
                    return Some(Ok(value));
                }
                Err(NoValue::NotFound) => {
                    self.counters.hits.up();
                    self.note_read(slot.as_of_ms, horizon_ms);
                    return Some(Err(self.errors.not_found()));
                }
                Err(NoValue::Undecodable(_)) => true,
            },
            Err(unusable) => unusable.is_some(),
        };
        if let Ok(slot) = self.lookup(key, now_ms, Purpose::ServeReplica)
            && let Ok(value) = slot.payload.value()
        {
            self.counters.hits.up();
            self.counters.replica_hits.up();
            self.note_read(slot.as_of_ms, horizon_ms);
            return Some(Ok(value));
        }
        self.counters.misses.up();
        self.count_miss_reason(key, now_ms, was_unusable);
        None
    }

    /// Returns the time before which the "not found" of a flight contains every write. The answer of a load is as old as
    /// the load and as the values that its loader has read. The age of a peer's answer is not kept, so that only the get
    /// that began the flight, and gets within the horizon, receive the answer.
    pub(super) fn as_of_nothing(&self, flight: &GroupFlight<V>) -> u64 {
        match flight.context.load_context() {
            Some(load) => flight.begun_ms.min(load.read_as_of_ms()),
            None => flight.begun_ms.saturating_sub(self.settings.max_staleness_ms.unwrap_or(0)),
        }
    }

    /// Records in the calling load, if a loader makes the get, that the load has read a value of this age. Without a
    /// `horizon_ms`, which was read before the value, only the age of the value counts.
    fn note_read(&self, as_of_ms: u64, horizon_ms: Option<u64>) {
        if self.context.local.writes.has_bounds.load(Relaxed)
            && let Some(load) = LoadContext::current()
        {
            load.note_read(horizon_ms.map_or(as_of_ms, |horizon_ms| horizon_ms.max(as_of_ms)));
        }
    }

    /// Takes steps 2 to 4 for a key that memory does not answer, and waits for the outcome.
    pub(crate) async fn miss(self: &Arc<Self>, key: &str, limit: Duration) -> Result<V> {
        let deadline = Deadline::start(&self.context.local.clock, &self.context.timers, limit);
        let pending = self.begin(key, deadline, LoadContext::current().as_ref())?;
        let dispatched = self.dispatch(key, &pending, pending.deadline.begun)?;
        self.finish(key, &pending, dispatched).await
    }

    /// Checks the key and computes its hash. If a loader makes the get (`asker`), records in its load that the load
    /// waits for the key.
    pub(crate) fn begin(&self, key: &str, deadline: Deadline, asker: Option<&Arc<LoadContext>>) -> Result<PendingGet> {
        self.check(key)?;
        let hash = self.ownership.hash(key);
        let waiting = asker.map(|load| load.wait_for(hash)).transpose().map_err(|e| self.errors.nesting(e))?;
        let chain = asker.map_or(LoadChain::EMPTY, |load| load.chain());
        Ok(PendingGet { deadline, hash, chain, _waiting: waiting })
    }

    /// Joins or begins the load (step 4) of a key that this node owns, or the fetch (step 3) of another key. Does not
    /// wait. A key with strikes is fetched in any case.
    pub(super) fn dispatch(self: &Arc<Self>, key: &str, pending: &PendingGet, now: Instant) -> Result<Dispatched<V>> {
        let snapshot = self.ownership.snapshot(); // step 2: the view is taken once
        if self.ownership.owns(&snapshot.view, pending.hash) && self.suspect(key).is_none() {
            load::join(self, key, pending.hash, &pending.chain, LoadReason::Owner)
        } else {
            Ok(fetch::join(self, key, pending, snapshot, now, |step| step.advance()))
        }
    }

    /// Waits for the flight, and dispatches again if the flight's deadline passed before the caller's.
    pub(crate) async fn finish(
        self: &Arc<Self>,
        key: &str,
        pending: &PendingGet,
        mut dispatched: Dispatched<V>,
    ) -> Result<V> {
        let (clock, deadline) = (&self.context.local.clock, &pending.deadline);
        let begun_ms = self.settings.max_staleness_ms.map_or(0, |_| clock.at_ms(deadline.begun));
        let mut too_old = 0;
        loop {
            let (flight, _joined) = match dispatched {
                Dispatched::Found(slot) => {
                    self.note_read(slot.as_of_ms, None);
                    return value_of(self, key, pending, &slot).await;
                }
                Dispatched::Flight(flight, joined) => (flight, joined),
            };
            // A fetch ends by its own deadline, so that only a caller with an earlier deadline needs a timer, and a caller
            // on another runtime, because that of the node may be blocked.
            let (context, fetch_limit) = (&self.context, self.context.local.limits.get_deadline);
            let is_early = deadline.end_ms < later(flight.begun_ms, fetch_limit);
            let needs_timer = flight.context.load_context().is_some() || is_early || !context.timers.is_reliable();
            let outcome = if needs_timer && !mutant!(DeadlineIgnored) {
                // Boxed, because otherwise every get that waits would have room for this branch.
                Box::pin(context.timers.timeout_at(deadline.end, flight.outcome())).await
            } else {
                Some(flight.outcome().await)
            };
            match outcome {
                Some(Ok(slot)) if self.is_recent(flight.horizon_ms().max(slot.as_of_ms), begun_ms) => {
                    self.note_read(slot.as_of_ms, Some(flight.horizon_ms()));
                    return value_of(self, key, pending, &slot).await;
                }
                Some(Err(Failure::Final(error))) if !error.is_not_found() => return Err(error),
                Some(Err(Failure::Final(error)))
                    if self.is_recent(self.as_of_nothing(&flight).max(flight.horizon_ms()), begun_ms) =>
                {
                    self.note_read(self.as_of_nothing(&flight), Some(flight.horizon_ms()));
                    return Err(error);
                }
                // The flight began before this get, or its peer or its loader has read an older value.
                Some(Ok(_) | Err(Failure::Final(_))) => {
                    self.counters.too_stale.up();
                    self.check(key)?;
                    too_old += 1;
                    if too_old == MAX_TOO_OLD || clock.read_ms() >= deadline.end_ms {
                        return Err(self.errors.too_old());
                    }
                    dispatched = match too_old {
                        1 => self.dispatch(key, pending, self.context.timers.now())?,
                        _ => load::join(self, key, pending.hash, &pending.chain, LoadReason::Fallback)?,
                    };
                    continue;
                }
                Some(Err(Failure::Expired(_))) if clock.read_ms() < deadline.end_ms => self.check(key)?,
                Some(Err(Failure::Expired(peer))) => return Err(self.errors.timed_out(deadline.limit, peer.as_ref())),
                None => return Err(self.errors.timed_out(deadline.limit, None)),
            }
            // With the current time, because a fetch that begins with the old time would end at once.
            dispatched = self.dispatch(key, pending, self.context.timers.now())?;
        }
    }
}
