//! Engine as peers use it: the object-safe service of a group.

use std::{
    error::Error as _,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    cache::{
        self,
        payload::{Slot, decode},
        replicas::HOT_AT_OWNER,
    },
    engine::{
        Engine, Failure, GroupFlight, Outcome, apply, entry, fetch,
        load::{self, Dispatched},
        lookup::Purpose,
        pending::Deadline,
        previous_owner, receive, send, suspect,
    },
    error::{Error, Kind, Result},
    flight::{
        Kind as Table,
        nesting::{JoinGuard, Stage},
    },
    identity::{Instance, PeerId},
    limits::{MAX_ERROR_TEXT, RETRY_AFTER},
    loader::LoadReason,
    peer::group_service::{
        GroupService, LoadRequest, Notice, PageRequest, PageResult, Progress, ResponseFuture, ValueRoom,
    },
    protocol::message::{Bounds, DeadlineOwner, Decline, Encoded, Page, Response, Source, WriteName},
    runtime::clock::{self, NEVER, later},
    telemetry::{GroupInfo, GroupLoads},
    value::Value,
};

/// Milliseconds for which a peer may keep a replica of a stale value, because a refresh is about to replace the value.
const STALE_REPLICA_MS: u64 = 1000;

/// Time past its deadline after which a load counts as overdue: the load did not end when it was aborted, so that it
/// blocks its thread.
const OVERDUE: Duration = Duration::from_secs(1);

impl<V: Value> GroupService for Engine<V> {
    fn format(&self) -> u32 {
        self.settings.format
    }

    fn info(&self) -> GroupInfo {
        self.group_info()
    }

    fn loads(&self) -> GroupLoads {
        self.group_loads()
    }

    fn cached_response(self: Arc<Self>, key: &str) -> Option<Response> {
        self.counters.peer_requests.up();
        let (now_ms, horizon_ms) = (self.context.now_ms(), self.horizon_ms());
        let hash = self.ownership.hash(key);
        self.cache.requests.touch(hash, now_ms);
        let slot = match self.lookup(key, now_ms, Purpose::Serve) {
            Ok(slot) => slot,
            Err(unusable) => {
                self.count_miss_reason(key, now_ms, unusable.is_some());
                self.drop_elsewhere(unusable);
                return None;
            }
        };
        let as_of_age_ms = self.as_of_age_ms(slot.as_of_ms.max(horizon_ms), self.context.local.clock.exact_ms());
        if as_of_age_ms.is_some_and(|age_ms| !self.suits_a_peer(age_ms)) {
            self.count_miss_reason(key, now_ms, true);
            // Removed, because otherwise the load of the request would find the same entry.
            self.counters.too_stale.up();
            self.drop_elsewhere(self.cache.owned.remove_same(key, &slot));
            self.drop_elsewhere(Some(slot));
            return None;
        }
        self.counters.peer_request_hits.up();
        slot.touch(now_ms);
        load::refresh_if_due(&self, key, &slot, now_ms);
        let is_hot = self.cache.requests.is_hot(hash, now_ms, HOT_AT_OWNER);
        let response = encode_entry(&self, &slot, now_ms, Source::Memory, is_hot, as_of_age_ms);
        self.drop_elsewhere(Some(slot));
        Some(response)
    }

    fn peeked_response(&self, key: &str) -> Option<Response> {
        let (now_ms, horizon_ms) = (self.context.now_ms(), self.horizon_ms());
        let slot = self.lookup(key, now_ms, Purpose::Serve).map_err(|unusable| self.drop_elsewhere(unusable)).ok()?;
        let as_of_age_ms = self.as_of_age_ms(slot.as_of_ms.max(horizon_ms), self.context.local.clock.exact_ms());
        let is_recent = as_of_age_ms.is_none_or(|age_ms| self.suits_a_peer(age_ms));
        // The response never calls the value hot, because a peek keeps no replica.
        let response = is_recent.then(|| encode_entry(self, &slot, now_ms, Source::Memory, false, as_of_age_ms));
        self.drop_elsewhere(Some(slot));
        response
    }

    fn read_as_previous_owner(&self, key: &str) -> Response {
        previous_owner::answer(self, key)
    }

    fn page(self: Arc<Self>, to: PeerId, cursor: u64) -> ResponseFuture {
        // In a task of its own, because copying a page takes a while and the connection has other requests to answer.
        let page = send::page(self, to, cursor);
        Box::pin(async move { tokio::spawn(page).await.unwrap_or(Response::Declined(Decline::Other)) })
    }

    fn build_plan(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move { send::build_plan(&self).await })
    }

    fn progress(&self, is_reached: &dyn Fn(&PeerId) -> bool) -> Option<Progress> {
        send::current_plan(self).progress(is_reached)
    }

    fn room(&self) -> u64 {
        receive::room(self)
    }

    fn store_page(
        self: Arc<Self>,
        page: Page,
        request: PageRequest,
    ) -> Pin<Box<dyn Future<Output = PageResult> + Send>> {
        Box::pin(receive::store_page(self, page, request))
    }

    fn load(self: Arc<Self>, request: LoadRequest<'_>) -> ResponseFuture {
        let dispatched = match begin_load(&self, &request) {
            Ok(dispatched) => dispatched,
            Err(refusal) => return Box::pin(std::future::ready(refusal)),
        };
        let notice = request.notice;
        // The load begins above and not at the first poll, because it must precede the later requests of the
        // connection.
        let deadline = clock::deadline(request.wait);
        let arrived_ms = self.context.local.clock.read_ms();
        let engine = Arc::clone(&self);
        let waited = dispatched.map(|dispatched| match dispatched {
            Dispatched::Found(slot) => Waited::Found(slot),
            Dispatched::Flight(flight, joined) => Waited::Flight(AwaitedFlight(engine, Some(flight)), joined),
        });
        Box::pin(async move {
            let (outcome, horizon_ms, nothing_ms) = match &waited {
                Ok(Waited::Found(slot)) => (Ok(Slot::clone(slot)), 0, 0),
                Ok(Waited::Flight(AwaitedFlight(_, Some(flight)), _joined)) => {
                    match self.context.timers.timeout_at(deadline, noticed(flight, notice)).await {
                        Some(outcome) => (outcome, flight.horizon_ms(), self.as_of_nothing(flight)),
                        None => return Response::Deadline(DeadlineOwner::Asker),
                    }
                }
                Ok(Waited::Flight(AwaitedFlight(_, None), _)) => return Response::Declined(Decline::Other), // not reached
                Err(error) => (Err(error.clone().into()), 0, 0),
            };
            let as_of_ms = outcome.as_ref().map_or(nothing_ms, |slot| slot.as_of_ms).max(horizon_ms);
            let response = encode_outcome(&self, outcome, self.as_of_age_ms(as_of_ms, arrived_ms));
            if let Ok(Waited::Found(slot)) = waited {
                self.drop_elsewhere(Some(slot));
            }
            response
        })
    }

    fn invalidate_and_hold(&self, key: &str, hold: Duration) {
        apply::drop_and_hold(self, key, hold);
    }

    fn clear(&self) {
        apply::drop_all(self);
    }

    fn longest_wait(&self) -> Duration {
        self.settings.load_deadline.saturating_add(OVERDUE)
    }

    fn set(
        self: Arc<Self>,
        key: &str,
        value: Bytes,
        room: Option<ValueRoom>,
        known: Option<(&Instance, &[WriteName])>,
    ) -> ResponseFuture {
        let of_user = self.context.tasks.runtimes.of_user.clone();
        let token = apply::drop_written(&self, key);
        let (writes, name) = (&self.context.local.writes, &self.settings.name);
        // After the drop, so that a write which comes meanwhile keeps the value out.
        if known.is_some_and(|(writer, known)| writes.has_heard_beyond(writer, name, key, known)) {
            return Box::pin(std::future::ready(Response::Done));
        }
        // The value contains every write of the key that this node has applied, whenever its writer made it.
        let as_of_ms = self.horizon_ms();
        let key: Arc<str> = key.into();
        let store = move || {
            let (now_ms, hash) = (self.context.local.clock.read_ms(), self.ownership.hash(&key));
            let _room = room;
            let Ok(value) = decode::<V>(value) else { return Response::Declined(Decline::OtherFormat) };
            let Ok(slot) = entry::of_set(&self, &key, hash, now_ms, as_of_ms, value) else {
                return Response::Declined(Decline::OtherFormat);
            };
            // If a later write came meanwhile, that one stands, and this write is done too.
            if let Some(inserted) = self.flights.finish_write(token, || self.cache.owned.insert(&key, slot)) {
                self.cache.after_insert(&key, &inserted, false, now_ms);
            }
            Response::Done
        };
        if V::DECODES_LIKE_A_CLONE {
            return Box::pin(std::future::ready(store()));
        }
        // Not in the task that reads the connection, because decoding is user code and may take a long time.
        Box::pin(
            async move { of_user.spawn(async move { store() }).await.unwrap_or(Response::Declined(Decline::Other)) },
        )
    }

    fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    fn forget(&self) {
        apply::forget_all(self);
    }

    fn bounds(&self) -> Bounds {
        self.settings.bounds()
    }

    fn sweep(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let now_ms = self.context.now_ms();
            // Holds stay for one load deadline longer, because a load that began during a hold may still run.
            let longest_ms = self.settings.load_deadline.as_millis() as u64;
            self.holds.sweep(now_ms.saturating_sub(longest_ms));
            self.handover.previous.sweep(&self.context.handover);
            self.handover.plans.sweep(now_ms);
            self.cache.sweep(&self.context.local.clock).await;
        })
    }

    fn watch(&self) {
        let now_ms = self.context.now_ms();
        let longest = self.longest_wait();
        // The loaders with slots ignore their deadlines, and the key would not be loaded any more.
        self.load_slots.begin_stuck(now_ms.saturating_sub(longest.as_millis() as u64));
        for flight in self.flights.all(Table::Load) {
            let begun_ms = flight.context.load_context().map_or(0, |load| load.begun_ms()).max(flight.begun_ms);
            let overdue_ms = later(begun_ms, longest);
            if overdue_ms <= now_ms && flight.first_time_overdue() {
                self.counters.overdue_loads.up();
                tracing::warn!(
                    group = %self.settings.name,
                    "a load runs past its deadline: its loader blocks its thread; move blocking code to spawn_blocking"
                );
            }
        }
    }

    fn close(self: Arc<Self>) {
        self.is_removed.store(!self.context.is_closed(), Relaxed);
        for table in [Table::Fetch, Table::Load] {
            for flight in self.flights.all(table) {
                self.flights.complete(&flight, Err(self.errors.closed().into()), 0, || ());
            }
        }
        // A flight that still finds the cache open inserts under the lock of its shard, and this clear of the flights
        // takes the same lock before the cache is cleared.
        self.flights.clear(|| self.cache.close());
        self.cache.events.close();
        let runtimes = &self.context.tasks.runtimes;
        cache::drop_in_background(self.cache.clear(), &runtimes.of_user, !runtimes.is_on_own_thread());
    }
}

/// Load that a request of a peer waits for.
enum Waited<V: Value> {
    Found(Slot<V>),
    Flight(AwaitedFlight<V>, Option<JoinGuard>),
}

/// Flight that a request of a peer waits for. If this is the last reference, its outcome is dropped elsewhere, because
/// the task that reads the connection serves other requests.
struct AwaitedFlight<V: Value>(Arc<Engine<V>>, Option<GroupFlight<V>>);

impl<V: Value> Drop for AwaitedFlight<V> {
    fn drop(&mut self) {
        let last = self.1.take().and_then(Arc::into_inner);
        self.0.drop_elsewhere(last.and_then(|flight| flight.into_outcome()?.ok()));
    }
}

/// Waits for the outcome of a load, and gives notice while the load waits for its turn and when its loader is called.
async fn noticed<V: Value>(flight: &GroupFlight<V>, notice: Option<Notice>) -> Outcome<V> {
    if let (Some(notice), Some(load)) = (notice, flight.context.load_context()) {
        if load.stage() == Stage::WaitsForTurn {
            notice(Response::Held);
        }
        tokio::select! {
            biased;
            outcome = flight.outcome() => return outcome,
            () = load.called() => notice(Response::Begun),
        }
    }
    flight.outcome().await
}

/// Joins or begins the load for a peer's request, or returns the response that refuses it. A draining node only joins
/// loads that run already.
fn begin_load<V: Value>(
    engine: &Arc<Engine<V>>,
    request: &LoadRequest<'_>,
) -> std::result::Result<Result<Dispatched<V>>, Response> {
    if engine.context.is_draining() {
        let running = engine.flights.running(Table::Load, request.key);
        let running = running.ok_or(Response::Declined(Decline::Draining))?;
        let joined = load::join_running(engine, &running, &request.chain);
        return Ok(joined.map(|joined| Dispatched::Flight(running, joined)));
    }
    if engine.context.is_closed() {
        return Err(Response::Declined(Decline::Closing));
    }
    let admission = suspect::admit(engine, request)?;
    let hash = engine.ownership.hash(request.key);
    let is_mine = engine.ownership.is_mine(hash);
    if mutant!(ServerForwards) && !is_mine {
        let deadline = Deadline::start(&engine.context.local.clock, &engine.context.timers, request.wait);
        return Ok(engine.begin(request.key, deadline, None).map(|pending| {
            let snapshot = engine.ownership.snapshot();
            fetch::join(engine, request.key, &pending, snapshot, pending.deadline.begun, |step| step.advance())
        }));
    }
    let reason = if is_mine { LoadReason::Owner } else { LoadReason::Fallback };
    Ok(load::join_as(engine, request.key, hash, &request.chain, reason, admission))
}

/// Encodes an entry as the response to a peer.
fn encode_entry<V: Value>(
    engine: &Engine<V>,
    slot: &Slot<V>,
    now_ms: u64,
    source: Source,
    is_hot: bool,
    as_of_age_ms: Option<u64>,
) -> Response {
    let Some(bytes) = slot.payload.encoded() else { return Response::NotFound { as_of_age_ms } };
    let fresh_until_ms = slot.fresh_until_ms();
    let remaining_ms = (fresh_until_ms != NEVER).then(|| fresh_until_ms.saturating_sub(now_ms));
    let replica_ms = engine.settings.freshness.replica_time_to_live.as_millis() as u64;
    // A stale value may have replicas too. Otherwise a hot key would burden its owner for the time of a refresh.
    let stale_ms = slot.hit_until_ms().saturating_sub(now_ms).min(STALE_REPLICA_MS);
    Response::Value(Encoded {
        bytes: bytes.clone(),
        age_ms: now_ms.saturating_sub(slot.as_of_ms),
        as_of_age_ms,
        remaining_ms,
        borrow_ms: remaining_ms.map_or(replica_ms, |remaining_ms| remaining_ms.max(stale_ms).min(replica_ms)),
        is_hot,
        source,
    })
}

/// Encodes the outcome of a flight as the response to a peer.
fn encode_outcome<V: Value>(engine: &Engine<V>, outcome: Outcome<V>, as_of_age_ms: Option<u64>) -> Response {
    match outcome {
        Ok(slot) => encode_entry(engine, &slot, engine.context.now_ms(), Source::Loaded, false, as_of_age_ms),
        Err(Failure::Expired(_)) => Response::Deadline(DeadlineOwner::Asker),
        Err(Failure::Final(error)) => encode_error(&error, as_of_age_ms),
    }
}

/// Encodes an error as the response to a peer.
fn encode_error(error: &Error, as_of_age_ms: Option<u64>) -> Response {
    match error.kind() {
        Kind::NotFound => Response::NotFound { as_of_age_ms },
        Kind::LoadFailed { is_transient } => {
            // The text of the causes is all that the peer learns about the error.
            let mut text = String::new();
            let mut cause = error.source();
            while let Some(e) = cause.filter(|_| text.len() < MAX_ERROR_TEXT) {
                if !text.is_empty() {
                    text.push_str(": ");
                }
                text.push_str(&e.to_string());
                cause = e.source();
            }
            Response::LoadFailed { is_transient, text: if text.is_empty() { error.to_string() } else { text } }
        }
        Kind::Overloaded => Response::Overloaded { retry_after: RETRY_AFTER },
        Kind::Quarantined => Response::Quarantined { retry_after: RETRY_AFTER },
        Kind::TooLarge => Response::TooLarge,
        Kind::Timeout => Response::Deadline(DeadlineOwner::Load),
        Kind::Closed => Response::Declined(Decline::Closing),
        Kind::BadKey | Kind::UnknownGroup | Kind::Unreachable | Kind::Unauthenticated | Kind::Config => {
            Response::LoadFailed { is_transient: false, text: error.to_string() }
        }
    }
}
