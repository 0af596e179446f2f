//! A load: begun once, run in a task of its own, shared by everyone who asks meanwhile.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    Flying, Inner, Outcome, Work,
    held::{Held, Slot},
    protect,
};
use crate::{
    chain::{CURRENT, Chain, Joined, Lineage},
    clock::{self, later},
    error::{BoxError, Error, Kind, Result},
    flight::{Join, Kind as Table, LandOnDrop},
    loader::{Load, LoadReason, Loaded, What},
    permits::QueueFull,
    store::{Entry, Times},
    value::Value,
};

/// How long after a refresh was begun, or has failed, the next one may be.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);

/// What a caller got into.
pub(super) enum Loading<V: Value> {
    /// It has arrived meanwhile.
    Found(Slot<V>),
    /// Under way; who was begun for a chain is entered there as long as the guard lives.
    Flight(Flying<V>, Option<Joined>),
}

impl<V: Value> Inner<V> {
    /// Joins the load of a key, or begins it.
    pub(super) fn join_load(
        self: &Arc<Self>,
        key: &str,
        hash: u64,
        chain: &Chain,
        reason: LoadReason,
    ) -> Result<Loading<V>> {
        let lineage = Lineage::begin(chain, hash).map_err(|knot| self.knotted(knot))?;
        let now_ms = self.shared.local.clock.read_ms();
        let mut expired = None;
        let look_again = || self.look_again(key, now_ms, &mut expired);
        let joined = self.flights.join(Table::Load, key, now_ms, |_| true, look_again, || Work::Load(lineage));
        drop(expired);
        match joined {
            Join::Found(slot) => Ok(Loading::Found(slot)),
            Join::Shared(flight) => {
                self.counters.shared_flights.up();
                let load = flight.context.lineage();
                let joined = load.map(|load| load.join(chain)).transpose().map_err(|knot| self.knotted(knot))?;
                Ok(Loading::Flight(flight, joined.flatten()))
            }
            Join::Began(flight) => {
                self.begin(Arc::clone(&flight), hash, reason, chain.depth() > 0);
                Ok(Loading::Flight(flight, None))
            }
        }
    }

    /// Starts a load, by itself or together with others.
    fn begin(self: &Arc<Self>, flight: Flying<V>, hash: u64, reason: LoadReason, is_nested: bool) {
        tracing::trace!(group = &*self.settings.name, key = &**flight.key(), ?reason, "to load");
        match &self.batches {
            None => self.shared.tasks.load(run(Arc::clone(self), flight, hash, reason)),
            Some(batches) if is_nested => self.load_alone(batches, flight, hash, reason),
            Some(batches) => self.load_with_others(batches, flight, hash, reason),
        }
    }

    /// What is in memory, looked at under the lock of the flights: the flight that ended just before may have left
    /// it. What has expired is handed out instead, to be let go of outside.
    pub(super) fn look_again(&self, key: &str, now_ms: u64, expired: &mut Option<Slot<V>>) -> Option<Slot<V>> {
        let slot = self.store.peek(key)?;
        if slot.is_expired(now_ms) || self.flights.is_clearing() || !self.may_serve(key, &slot, now_ms) {
            *expired = Some(slot);
            return None;
        }
        Some(slot)
    }

    /// Lands a flight with an error when dropped: for a task that is to land it.
    pub(super) fn land_on_drop(self: &Arc<Self>, flight: &Flying<V>) -> LandOnDrop<impl FnOnce() + use<V>> {
        let (group, flight) = (Arc::clone(self), Arc::clone(flight));
        LandOnDrop::new(move || group.give_up(&flight))
    }

    /// Nobody will land this flight any more.
    pub(super) fn give_up(&self, flight: &Flying<V>) {
        let text = "the work was given up: the node was shut down or its runtime ended";
        self.flights.land(flight, Err(Error::new(Kind::Closed, text).into()), || ());
    }

    /// Joins the load of a key if one runs; for a node that drains.
    pub(super) fn running_load(&self, key: &str) -> Option<Flying<V>> {
        self.flights.running(Table::Load, key)
    }

    /// A hit on what is stale, or will be soon: one load for all of the cluster, and nobody waits for it.
    pub(super) fn freshen(self: &Arc<Self>, key: &str, slot: &Slot<V>, now_ms: u64) {
        if now_ms >= slot.fresh_until_ms() {
            self.counters.stale_hits.up();
        }
        // Who owns the key refreshes it, and one that leaves begins nothing.
        if now_ms < slot.refresh_at_ms() || !self.is_mine(key) || self.shared.is_draining() {
            return;
        }
        // What is there was set since, and a refresh could only take it away.
        if self.holds.is_held(key, now_ms) {
            return;
        }
        if !slot.is_to_be_refreshed(now_ms, later(now_ms, REFRESH_PAUSE)) || self.shared.is_closed() {
            return;
        }
        let Ok(lineage) = Lineage::begin(&Chain::EMPTY, self.place.hash(key.as_bytes())) else { return };
        // What is there is not what is looked for.
        let joined = self.flights.join(Table::Load, key, now_ms, |_| true, || None::<()>, || Work::Load(lineage));
        if let Join::Began(flight) = joined {
            self.counters.refreshes.up();
            let hash = self.place.hash(key.as_bytes());
            self.begin(flight, hash, LoadReason::Refresh, false);
        }
    }

    /// What a load can show its loader, and fall back on when it fails.
    pub(super) fn previous(&self, key: &str) -> Option<Slot<V>> {
        if self.flights.is_clearing() {
            return None;
        }
        let (slot, now_ms) = (self.store.peek(key)?, self.shared.now_ms());
        self.may_serve(key, &slot, now_ms); // it may be gone by what has changed
        (!slot.is_gone(now_ms)).then_some(slot)
    }
}

/// What there was when a load began.
pub(super) struct Begun<V: Value> {
    /// The last change.
    pub(super) changes: u32,
    pub(super) previous: Option<Slot<V>>,
}

/// The task of one load. Whatever happens to it, even if it is never polled, the flight lands.
fn run<V: Value>(
    group: Arc<Inner<V>>,
    flight: Flying<V>,
    hash: u64,
    reason: LoadReason,
) -> impl Future<Output = ()> + Send {
    let guard = group.land_on_drop(&flight);
    async move {
        let changes = group.shared.changes.number();
        // Without a permit, and before the time of the load begins.
        if group.may_have_moved(&flight, reason) && group.take_from_formers(&flight, hash, changes).await {
            return guard.defuse();
        }
        let begun = Begun { changes: group.shared.changes.number(), previous: group.previous(flight.key()) };
        let outcome = load(&group, &flight, reason, begun.previous.as_deref()).await;
        finish(&group, &flight, hash, outcome, &begun);
        guard.defuse();
    }
}

/// Permit, loader, deadline.
async fn load<V: Value>(
    group: &Inner<V>,
    flight: &Flying<V>,
    reason: LoadReason,
    previous: Option<&Entry<Held<V>>>,
) -> Result<Loaded<V>> {
    let Some(lineage) = flight.context.lineage().cloned() else {
        return Err(Error::new(Kind::Closed, "the load has no lineage"));
    };
    let limit = group.settings.load_deadline;
    let deadline = clock::deadline(limit);
    let previous = previous.and_then(|slot| slot.payload.value().ok());
    let call = || {
        let load = Load::new(flight.key(), &group.settings.name, deadline, reason, previous.as_ref());
        one_attempt(group, &lineage, load, deadline)
    };
    group.attempts(&lineage, deadline, call, Result::is_err).await
}

/// Calls the loader once.
async fn one_attempt<V: Value>(
    group: &Inner<V>,
    lineage: &Arc<Lineage>,
    load: Load<'_, V>,
    deadline: Instant,
) -> Result<Loaded<V>> {
    group.counters.loads.up();
    if load.reason() == LoadReason::Fallback {
        group.counters.fallback_loads.up();
    }
    // The call itself is in the block: a loader may panic before it returns its future.
    let call = AssertUnwindSafe(async { group.loader.start(load).await }).catch_unwind();
    let begun = Instant::now();
    let called = timeout_at(deadline, CURRENT.scope(Arc::clone(lineage), call)).await;
    group.load_latencies.add(begun.elapsed());
    let failed = match called {
        Ok(Ok(Ok(loaded))) => return Ok(loaded),
        Ok(Ok(Err(error))) => group.load_failed(error),
        Ok(Err(panic)) if mutant!(PanicNotCaught) => std::panic::resume_unwind(panic),
        Ok(Err(panic)) => {
            let text = format!("the loader of group {:?} panicked", group.settings.name);
            Error::caused(Kind::LoadFailed { is_transient: false }, text, panic_text(&*panic))
        }
        Err(_) => {
            let (name, limit) = (&group.settings.name, group.settings.load_deadline);
            Error::new(
                Kind::Timeout,
                format!("the loader of group {name:?} took longer than {limit:?} and was aborted"),
            )
        }
    };
    group.counters.load_errors.up();
    Err(failed)
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> BoxError {
    let text = panic.downcast_ref::<&str>().copied().map(ToOwned::to_owned);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned()).into()
}

/// Encodes, stores unless a write has passed, and tells everyone.
pub(super) fn finish<V: Value>(
    group: &Inner<V>,
    flight: &Flying<V>,
    hash: u64,
    loaded: Result<Loaded<V>>,
    begun: &Begun<V>,
) {
    let now_ms = group.shared.local.clock.read_ms();
    let was_loaded = loaded.is_ok();
    let is_held = group.holds.is_held(flight.key(), flight.begun_ms);
    let loaded = loaded.map(|loaded| if is_held { loaded.do_not_keep() } else { loaded });
    let entry = loaded.and_then(|loaded| group.entry(flight.key(), hash, loaded, now_ms, begun));
    // What cannot be encoded is none: what was there is not taken away for it.
    let is_answer = was_loaded && !matches!(&entry, Err(e) if e.is_load_failed());
    let (outcome, keep) = match entry {
        Ok((outcome, keep)) => (outcome, keep),
        Err(error) => (group.or_stale(flight.key(), error, now_ms, begun.previous.as_ref()), None),
    };
    group.formers.settle(&group.shared.handover, hash, now_ms);
    let keeps = keep.is_some();
    // An answer that is not to be kept is an answer all the same: what was there before is not true any more.
    let store = || match keep {
        Some(slot) => (Some(group.store.insert(flight.key(), slot)), None),
        None if is_answer => (None, group.store.remove(flight.key())),
        None => (None, None),
    };
    let landed = group.flights.land(flight, outcome, store);
    match landed {
        None if keeps => group.counters.passed_by_a_write.up(),
        Some((Some(inserted), _)) => group.stored(flight.key(), inserted, false),
        _ => {}
    }
}

/// What a load holds while it runs.
type HeldPermits = (Option<OwnedSemaphorePermit>, OwnedSemaphorePermit);

impl<V: Value> Inner<V> {
    /// Calls a loader, with permits, and as often as the group says when the error is transient.
    pub(super) async fn attempts<T, F: Future<Output = Result<T>>>(
        &self,
        lineage: &Arc<Lineage>,
        deadline: Instant,
        mut call: impl FnMut() -> F,
        has_failed: impl FnOnce(&Result<T>) -> bool,
    ) -> Result<T> {
        let permits = self.permits(lineage, deadline).await?;
        let mut attempt = 0;
        let loaded = loop {
            let loaded = call().await;
            attempt += 1;
            let is_worth_another = matches!(&loaded, Err(e) if e.is_load_failed() && e.is_transient());
            let again_at = Instant::now() + protect::pause(attempt, self.random());
            if !is_worth_another || attempt > self.settings.protect.retries || again_at >= deadline {
                break loaded;
            }
            self.counters.retries.up();
            sleep_until(again_at).await;
        };
        drop(permits);
        self.guard.ended(has_failed(&loaded), Instant::now());
        loaded
    }

    /// Waits until a load may run; an error when its breaker is open, or too many wait.
    async fn permits(&self, lineage: &Arc<Lineage>, deadline: Instant) -> Result<HeldPermits> {
        self.guard.may_wait(Instant::now()).map_err(|wait| self.not_admitted(wait))?;
        let permits = async {
            // The group's own first: who waits for it keeps none of the node's from other groups.
            let of_group = match &self.guard.permits {
                Some(permits) => Some(permits.acquire(lineage).await?),
                None => None,
            };
            Ok::<_, QueueFull>((of_group, self.shared.permits.acquire(lineage).await?))
        };
        let permits = match timeout_at(deadline, permits).await {
            Ok(Ok(permits)) => permits,
            Ok(Err(_)) => return Err(self.overloaded("as many loads wait as are allowed")),
            Err(_) => return Err(self.overloaded("no permit to load came free in time")),
        };
        // Those before it may have failed meanwhile.
        self.guard.admit(Instant::now()).map_err(|wait| self.not_admitted(wait))?;
        Ok(permits)
    }

    fn not_admitted(&self, wait: Duration) -> Error {
        self.counters.not_admitted.up();
        let text = format!(
            "the loader of group {:?} has failed again and again, and is not called for {} ms",
            self.settings.name,
            wait.as_millis()
        );
        Error::new(Kind::LoadFailed { is_transient: true }, text)
    }

    /// From 0 to 1.
    pub(super) fn random(&self) -> f64 {
        (self.shared.random() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// What those who wait get of what was loaded, and what is kept of it.
    fn entry(
        &self,
        key: &str,
        hash: u64,
        loaded: Loaded<V>,
        now_ms: u64,
        begun: &Begun<V>,
    ) -> Result<(Outcome<V>, Option<Slot<V>>)> {
        let is_value = !matches!(loaded.what, What::NotFound);
        // Checked as of its beginning: what has changed since may have passed it by.
        let times = self.times(loaded.keep, is_value, now_ms, hash);
        let times = times.map(|times| Times { checked: begun.changes, ..times });
        let is_kept = times.is_some();
        let times = times.unwrap_or_else(|| Times::until(now_ms, now_ms));
        let slot = match loaded.what {
            What::Value(value) => self.slot(key, value, times)?,
            What::NotFound => {
                let nothing = is_kept.then(|| Slot::new(Entry::new(Held::NOTHING, times)));
                return Ok((Err(self.not_found().into()), nothing));
            }
            What::Unchanged => {
                let previous = begun.previous.as_ref().filter(|slot| slot.payload.encoded().is_some());
                let previous = previous.ok_or_else(|| self.nothing_to_be_unchanged())?;
                Slot::new(Entry::new(previous.payload.again(), times))
            }
        };
        Ok((Ok(Slot::clone(&slot)), is_kept.then_some(slot)))
    }

    /// The error of those who wait, or the old value where the group would rather have that.
    fn or_stale(&self, key: &str, error: Error, now_ms: u64, previous: Option<&Slot<V>>) -> Outcome<V> {
        if let Some(slot) = previous {
            self.may_serve(key, slot, now_ms); // it may be gone by what has changed meanwhile
        }
        let usable = previous.filter(|slot| slot.payload.encoded().is_some() && !slot.is_gone(now_ms));
        // One that is too large is an answer, and what was there is not true any more.
        let is_failure = !error.is_too_large();
        let Some(slot) = usable.filter(|_| is_failure && !self.settings.ages.stale_if_error.is_zero()) else {
            return Err(error.into());
        };
        self.counters.stale_on_error.up();
        if slot.is_expired(now_ms) {
            // Not each of the gets that follow should wait for the loader to fail again.
            slot.serve_on(later(now_ms, REFRESH_PAUSE));
        }
        Ok(Slot::clone(slot))
    }

    /// An entry of a value that came from here, checked against the largest that may be sent.
    pub(super) fn slot(&self, key: &str, value: V, times: Times) -> Result<Slot<V>> {
        let encode = AssertUnwindSafe(|| Held::of(value));
        let text = || format!("a value of group {:?} could not be encoded", self.settings.name);
        let held = match std::panic::catch_unwind(encode) {
            Ok(Ok(held)) => held,
            Ok(Err(e)) => return Err(Error::caused(Kind::LoadFailed { is_transient: false }, text(), e)),
            Err(panic) => {
                return Err(Error::caused(Kind::LoadFailed { is_transient: false }, text(), panic_text(&*panic)));
            }
        };
        let max = self.shared.local.limits.max_value_bytes;
        let len = held.encoded().map_or(0, bytes::Bytes::len);
        tracing::trace!(group = &*self.settings.name, key, value = &*held.beginning(), bytes = len, "to keep");
        if len > max {
            let name = &self.settings.name;
            let text = format!(
                "a value of group {name:?} has {len} bytes and limits.max_value_bytes is {max}; raise it on every node, or store less"
            );
            return Err(Error::new(Kind::TooLarge, text));
        }
        Ok(Slot::new(Entry::new(held, times)))
    }
}
