//! A fetch: asks the owner of a key, then its successors, then loads here.
//!
//! It is no task: the callers wait on its flight, and the task that reads a connection brings it forward with
//! each outcome.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Failure, Flying, Inner, Outcome,
    held::{Held, Slot},
    load::Loading,
    mirror::Mirror,
};
use crate::{
    chain::Chain,
    clock::{NEVER, later},
    error::{Error, Kind},
    flight::{Join, Kind as Table, within},
    identity::PeerId,
    loader::LoadReason,
    membership::view::View,
    message::{Answer, Encoded, Op},
    peer::table::{Call, NotSent, Outcome as Reached, Reply},
    store::{Entry, Times},
    sync::Mutex,
    value::Value,
};

/// How far the clocks of two nodes may differ in where a deadline is: ticks, and the way of a request.
const DEADLINE_BLUR_MS: u64 = 100;

struct Fetch<V: Value> {
    group: Arc<Inner<V>>,
    flight: Flying<V>,
    view: Arc<View>,
    hash: u64,
    chain: Chain,
    begun: Instant,
    deadline_ms: u64,
    /// The last change before the view was taken.
    changes: u32,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Rank of the candidate to look at next; 0 = the owner.
    next: usize,
    /// A peer was asked and turned out to be unreachable: further attempts come out of the fallback budget.
    has_failed: bool,
    /// Whom the outstanding request is with.
    asked: Option<PeerId>,
}

impl<V: Value> Inner<V> {
    /// Joins the fetch of a key, or begins it.
    pub(super) fn join_fetch(
        self: &Arc<Self>,
        key: &str,
        hash: u64,
        view: Arc<View>,
        changes: u32,
        chain: Chain,
        begun: Instant,
    ) -> Loading<V> {
        let now_ms = self.shared.local.clock.at_ms(begun);
        if let Some(mirror) = &self.mirror {
            mirror.missed(hash, now_ms);
        }
        let mut expired = None;
        let look_again = || self.look_again(key, now_ms, &mut expired);
        let joined = self.flights.join(Table::Fetch, key, now_ms, look_again, || None);
        drop(expired);
        let flight = match joined {
            Join::Found(slot) => return Loading::Found(slot),
            Join::Shared(flight) => {
                self.counters.shared_flights.up();
                flight
            }
            Join::Began(flight) => {
                self.counters.fetches.up();
                let fetch = Fetch {
                    group: Arc::clone(self),
                    flight: Arc::clone(&flight),
                    view,
                    hash,
                    chain,
                    begun,
                    deadline_ms: later(now_ms, self.shared.local.limits.get_deadline),
                    changes,
                    progress: Mutex::default(),
                };
                Arc::new(fetch).advance();
                flight
            }
        };
        Loading::Flight(flight, None)
    }
}

impl<V: Value> Fetch<V> {
    /// Asks the next candidate that can be asked; loads here when it is our turn, or nobody is left.
    fn advance(self: Arc<Self>) {
        let (shared, scope) = (&self.group.shared, self.group.settings.scope);
        if shared.tasks.is_closing() {
            return self.land(Err(self.group.closed().into()));
        }
        loop {
            let (rank, has_failed) = {
                let mut progress = self.progress.lock();
                let rank = progress.next;
                progress.next += 1;
                (rank, progress.has_failed)
            };
            let member = match rank {
                0 => self.view.owner(scope, self.hash), // needs no allocation
                _ => self.view.candidates(scope, self.hash).nth(rank),
            };
            let Some(member) = member.filter(|member| member.dial.is_some()) else {
                return self.load_here();
            };
            let Some(link) = shared.link(member) else { continue };
            if !link.offers(&self.group.settings.name, self.group.settings.format) {
                continue; // known from its Hello: it would decline
            }
            if has_failed && !shared.may_ask_again() {
                return self.load_here();
            }
            self.progress.lock().asked = Some(member.id.clone());
            let call = Call {
                op: Op::Get,
                group: self.group.index(),
                key: Arc::clone(self.flight.key()),
                deadline_ms: self.deadline_ms,
                rank,
                chain: self.chain.clone(),
                reply: Arc::clone(&self) as Arc<dyn Reply>,
            };
            match link.send(call) {
                Ok(()) => return,
                Err(NotSent::Open) => {} // routing around it is free
                Err(NotSent::Full) => {
                    let error = self.group.overloaded("as many requests wait for the owner as are allowed");
                    return self.land(Err(error.into()));
                }
            }
        }
    }

    /// Nobody else answers for the key: we do.
    fn load_here(self: Arc<Self>) {
        match self.group.join_load(self.flight.key(), self.hash, &self.chain, LoadReason::Fallback) {
            Ok(Loading::Found(slot)) => self.land(Ok(slot)),
            Ok(Loading::Flight(load, joined)) => {
                let group = Arc::clone(&self.group);
                let guard = group.land_on_drop(&self.flight);
                // The load may take longer than a get: who waits must be told in time all the same.
                let end = group.shared.local.clock.instant(self.deadline_ms);
                group.shared.tasks.load(async move {
                    let outcome = within(Some(end), load.outcome()).await;
                    drop(joined);
                    self.land(outcome.unwrap_or(Err(Failure::Expired(None))));
                    guard.defuse();
                });
            }
            Err(error) => self.land(Err(error.into())),
        }
    }

    fn land(&self, outcome: Outcome<V>) {
        if outcome.is_err() {
            self.group.counters.fetch_errors.up();
        }
        self.group.flights.land(&self.flight, outcome, || ());
    }

    /// The times of a copy. Once it is not served any more it stays for as long again, as a sign that the key was hot.
    fn times(&self, value: &Encoded, now_ms: u64) -> Times {
        let serve_until_ms =
            later(now_ms, Duration::from_millis(value.borrow_ms).min(self.group.settings.ages.borrowed));
        Times {
            loaded_at_ms: now_ms.saturating_sub(value.age_ms),
            refresh_at_ms: NEVER,
            fresh_until_ms: serve_until_ms,
            serve_until_ms,
            keep_until_ms: later(serve_until_ms, self.group.settings.ages.borrowed),
            checked: self.changes,
        }
    }

    /// A copy is kept, unless a write has passed it.
    fn land_and_keep(&self, slot: Slot<V>, mirror: &Mirror<V>) {
        let keep = || mirror.keep(self.flight.key(), Arc::clone(&slot));
        if let Some(inserted) = self.group.flights.land(&self.flight, Ok(Arc::clone(&slot)), keep) {
            self.group.stored(self.flight.key(), inserted, true);
        }
    }

    fn asked(&self) -> Option<PeerId> {
        self.progress.lock().asked.clone()
    }

    fn said(&self, kind: Kind, text: impl Into<String>) {
        let error = match self.asked() {
            Some(peer) => Error::at_peer(kind, text, peer.as_str()),
            None => Error::new(kind, text),
        };
        self.land(Err(error.into()));
    }

    fn answered(self: Arc<Self>, answer: Answer) {
        let name = &self.group.settings.name;
        match answer {
            Answer::Value(value) => {
                let now_ms = self.group.shared.now_ms();
                let times = self.times(&value, now_ms);
                let is_held = self.group.holds.is_held(self.flight.key(), self.flight.begun_ms);
                let (heap_bytes, is_lent) = (value.bytes.len() as u64, value.borrow_ms > 0 && !is_held);
                let slot = Arc::new(Entry::new(self.flight.key(), Held::received(value.bytes), heap_bytes, times));
                let mirror = self.group.mirror.as_ref().filter(|_| is_lent);
                let mirror = mirror.filter(|m| value.is_hot || m.wants(self.flight.key(), self.hash, now_ms));
                match mirror {
                    Some(mirror) => self.land_and_keep(slot, mirror),
                    None => self.land(Ok(slot)),
                }
            }
            Answer::NotFound => self.said(Kind::NotFound, "the loader found nothing"),
            Answer::LoadFailed { .. } if mutant!(FallbackOnEveryError) => self.advance(),
            Answer::LoadFailed { is_transient, text } => {
                self.said(Kind::LoadFailed { is_transient }, format!("the loader of group {name:?} failed: {text}"));
            }
            Answer::Overloaded { retry_after } => {
                self.group.counters.overloaded.up();
                let text =
                    format!("the owner of a key of group {name:?} is overloaded; ask again after {retry_after:?}");
                self.said(Kind::Overloaded, text);
            }
            Answer::TooLarge => {
                let text = format!("a value of group {name:?} is larger than its owner's limits.max_value_bytes");
                self.said(Kind::TooLarge, text);
            }
            // It ran into our deadline, not into its own: who may wait longer asks again.
            Answer::Deadline if self.group.shared.now_ms() + DEADLINE_BLUR_MS >= self.deadline_ms => {
                self.land(Err(Failure::Expired(self.asked())));
            }
            Answer::Deadline => {
                self.group.counters.timeouts.up();
                self.said(Kind::Timeout, format!("the load of a value of group {name:?} ran into its deadline"));
            }
            Answer::BadRequest(text) => self.said(Kind::BadKey, text),
            // Not by this node; asking the next one is free, since this one did no work.
            Answer::Declined(_)
            | Answer::WrongPeer
            | Answer::Unsupported
            | Answer::Pending
            | Answer::Done
            | Answer::Page(_) => {
                self.group.counters.fetch_errors.up();
                self.advance();
            }
        }
    }
}

impl<V: Value> Reply for Fetch<V> {
    fn reply(self: Arc<Self>, outcome: Reached, at: Instant) {
        match outcome {
            Reached::Answered(answer) => {
                self.group.peer_latencies.add(at.saturating_duration_since(self.begun));
                self.answered(answer);
            }
            Reached::Unreachable => {
                self.group.counters.fetch_errors.up();
                self.progress.lock().has_failed = true;
                self.advance();
            }
            Reached::Expired => self.land(Err(Failure::Expired(self.asked()))),
        }
    }
}
