//! Answers to a fetch: what a response of a peer, or the loss of the peer, means for the get.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    cache::{
        payload::{Payload, Slot},
        replicas::Replicas,
        store::{Entry, Times},
    },
    engine::{Failure, Outcome, Work, fetch::FetchStep},
    error::{Error, Kind},
    flight::Flight,
    peer::client::{call::Outcome as Reached, receiver::Reply},
    protocol::message::{DeadlineOwner, Encoded, Response},
    runtime::{
        clock::{NEVER, later},
        small_bytes,
        sync::atomic::Ordering::Relaxed,
    },
    value::Value,
};

impl<V: Value> FetchStep<'_, V> {
    /// Returns the times of a replica. After the time for which it is served, the replica stays for one more
    /// `replica_time_to_live`, as a sign that the key was hot.
    fn times(&self, value: &Encoded, now_ms: u64) -> Times {
        let left_ms = self.flight.begun_ms;
        // A peer without a bound sends the age of the value alone.
        let as_of_ms = self.engine.as_of_peer(value.as_of_age_ms.or(Some(value.age_ms)), left_ms);
        let serve_until_ms = later(
            now_ms,
            Duration::from_millis(value.borrow_ms).min(self.engine.settings.freshness.replica_time_to_live),
        );
        Times {
            as_of_ms: as_of_ms.unwrap_or_else(|| now_ms.saturating_sub(value.age_ms)),
            refresh_at_ms: NEVER,
            fresh_until_ms: serve_until_ms,
            serve_until_ms,
            keep_until_ms: later(serve_until_ms, self.engine.settings.freshness.replica_time_to_live),
            checked: self.fetch.snapshot.changes,
        }
    }

    /// Completes the flight and keeps the value as a replica, unless a write came after the flight began.
    fn complete_and_keep(&self, slot: Slot<V>, replicas: &Replicas<V>) {
        let keep = || replicas.keep(self.flight.key(), Slot::clone(&slot));
        let horizon_ms = self.engine.horizon_of_taken_ms();
        if let Some(inserted) = self.engine.flights.complete(self.flight, Ok(Slot::clone(&slot)), horizon_ms, keep) {
            self.engine.cache.after_insert(self.flight.key(), &inserted, true, self.engine.context.now_ms());
            self.engine.drop_displaced(inserted);
        }
    }

    /// Completes the flight with an error of the peer that was asked.
    fn fail(&self, kind: Kind, text: impl Into<String>) {
        let error = match self.asked() {
            Some(peer) => Error::at_peer(kind, text, peer.as_str()),
            None => Error::new(kind, text),
        };
        self.complete(Err(error.into()));
    }

    /// Returns whether the "not found" of a peer is older than the bound of the group. A peer without a bound sends no
    /// age.
    fn is_old_nothing(&self, as_of_age_ms: Option<u64>) -> bool {
        let left_ms = self.flight.begun_ms;
        let as_of_ms = self.engine.as_of_peer(as_of_age_ms, left_ms).unwrap_or(0);
        !self.engine.is_recent(as_of_ms, left_ms)
    }

    /// Takes the response of a peer: completes the flight, or asks the next candidate.
    fn answered(&self, response: Response) {
        let name = &self.engine.settings.name;
        match response {
            Response::Value(value) => {
                let now_ms = self.engine.context.now_ms();
                let times = self.times(&value, now_ms);
                let is_held = self.engine.holds.is_held(self.flight.key(), self.flight.begun_ms);
                let is_doubtful = self.fetch.is_doubtful.load(Relaxed) || !self.engine.may_keep_taken();
                let may_keep = value.borrow_ms > 0 && !is_held && !is_doubtful;
                let replicas = self.engine.cache.replicas.as_ref().filter(|_| may_keep);
                let replicas =
                    replicas.filter(|own| value.is_hot || own.wants(self.flight.key(), self.fetch.hash, now_ms));
                // A replica is copied, because a slice would keep the whole frame in memory.
                let bytes = if replicas.is_some() { small_bytes::copy(&value.bytes) } else { value.bytes };
                let slot = Slot::new(Entry::new(Payload::received(bytes), times));
                match replicas {
                    Some(replicas) => self.complete_and_keep(slot, replicas),
                    None => self.complete(Ok(slot)),
                }
            }
            Response::NotFound { as_of_age_ms } if self.is_old_nothing(as_of_age_ms) => self.advance(),
            Response::NotFound { .. } => self.fail(Kind::NotFound, "the loader found nothing"),
            Response::LoadFailed { .. } if mutant!(FallbackOnEveryError) => self.advance(),
            Response::LoadFailed { is_transient, text } => {
                self.fail(Kind::LoadFailed { is_transient }, format!("the loader of group {name:?} failed: {text}"));
            }
            Response::Overloaded { retry_after } => {
                self.engine.counters.overloaded.up();
                let text = format!("a peer that serves group {name:?} is overloaded; try again after {retry_after:?}");
                self.fail(Kind::Overloaded, text);
            }
            Response::Quarantined { retry_after } => {
                self.complete(Err(self.engine.errors.quarantined(Some(retry_after)).into()));
            }
            Response::TooLarge => {
                let text = format!(
                    "a value of group {name:?} is larger than its owner's limits.max_value_bytes; raise it everywhere"
                );
                self.fail(Kind::TooLarge, text);
            }
            Response::Deadline(DeadlineOwner::Asker) => self.complete(Err(Failure::Expired(self.asked()))),
            Response::Deadline(DeadlineOwner::Load) => {
                self.engine.counters.timeouts.up();
                self.fail(
                    Kind::Timeout,
                    format!("a peer's load of a value of group {name:?} took too long; raise the load_deadline"),
                );
            }
            Response::BadRequest(text) => self.fail(Kind::BadKey, text),
            // The peer did no work, so that the request to the next candidate does not take from the fallback budget.
            Response::Declined(_)
            | Response::Referred(_)
            | Response::WrongPeer
            | Response::Unsupported
            | Response::Pending
            | Response::Held
            | Response::Begun
            | Response::Done
            | Response::Page(_)
            | Response::Logs(_) => {
                self.engine.counters.fetch_errors.up();
                self.advance();
            }
        }
    }
}

impl<V: Value> Reply for Flight<Outcome<V>, Work<V>> {
    fn reply(self: Arc<Self>, outcome: Reached, at: Instant) {
        let Work::Fetch(fetch) = &self.context else { return };
        if self.is_complete() {
            return;
        }
        // Every waiter holds the engine, so that without it nothing waits.
        let Some(engine) = fetch.engine.upgrade() else { return };
        let Some(step) = FetchStep::of(&self, &engine) else { return };
        match outcome {
            Reached::Answered(response) => {
                engine.peer_latencies.add(at.saturating_duration_since(fetch.begun));
                step.answered(response);
            }
            Reached::Unreachable => {
                engine.counters.fetch_errors.up();
                fetch.has_failed.store(true, Relaxed);
                step.advance();
            }
            Reached::Died { process, has_run } => {
                engine.counters.fetch_errors.up();
                fetch.has_failed.store(true, Relaxed);
                if has_run {
                    step.died(process);
                }
                step.advance();
            }
            Reached::Expired => step.complete(Err(Failure::Expired(step.asked()))),
        }
    }
}
