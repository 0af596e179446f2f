//! Control of loads: how many run at once, when a failed load is tried again, and when none is begun.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until, timeout_at},
};

use crate::{
    context::NodeContext,
    engine::{Batches, Loaders, Settings, errors::GroupErrors},
    error::Result,
    flight::{
        nesting::LoadContext,
        permits::{Permits, QueueFull},
    },
    loader::SharedLoader,
    runtime::{backoff::pauses, histogram::Histogram, stats::GroupCounters, sync::Mutex},
    value::Value,
};

/// How a group protects its source.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoadPolicy {
    /// Maximum number of loads at once, for each depth of nesting; `None` = the node's limit.
    pub(crate) max_loads: Option<usize>,
    /// Number of attempts after the first.
    pub(crate) retries: u32,
    /// Number of failures in a row that open the breaker, and how long it stays open.
    pub(crate) breaker: Option<(u32, Duration)>,
}

/// Shortest pause before the second attempt; each pause is up to twice as long as the one before.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

/// Longest pause between two attempts.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// The loader of a group and what stands before it: permits, retries and the breaker.
pub(crate) struct LoadControl<V: Value> {
    pub(crate) loader: SharedLoader<V>,
    /// Batches of a group with a batch loader: all loads go through them.
    pub(crate) batches: Option<Arc<Batches<V>>>,
    /// Longest time of one load.
    pub(crate) deadline: Duration,
    /// Durations of the calls of the loader.
    pub(crate) latencies: Histogram,
    retries: u32,
    guard: LoadGuard,
    context: Arc<NodeContext>,
    errors: Arc<GroupErrors>,
    counters: Arc<GroupCounters>,
}

/// Permits that a load holds while it runs: the group's and the node's.
type HeldPermits = (Option<OwnedSemaphorePermit>, OwnedSemaphorePermit);

impl<V: Value> LoadControl<V> {
    pub(crate) fn new(
        context: &Arc<NodeContext>,
        settings: &Settings,
        loaders: Loaders<V>,
        errors: &Arc<GroupErrors>,
        counters: &Arc<GroupCounters>,
    ) -> Self {
        Self {
            loader: loaders.single,
            batches: loaders.batch.map(|(loader, max_keys)| Arc::new(Batches::new(loader, max_keys))),
            deadline: settings.load_deadline,
            latencies: Histogram::new(),
            retries: settings.load_policy.retries,
            guard: LoadGuard::new(&settings.load_policy, context.local.limits.max_queued_loads),
            context: Arc::clone(context),
            errors: Arc::clone(errors),
            counters: Arc::clone(counters),
        }
    }

    /// Calls a loader, with permits, and again while its error is transient and the group's retries allow it.
    pub(crate) async fn attempts<T, F: Future<Output = Result<T>>>(
        &self,
        load: &Arc<LoadContext>,
        deadline: Instant,
        mut call: impl FnMut() -> F,
        has_failed: impl FnOnce(&Result<T>) -> bool,
    ) -> Result<T> {
        let permits = self.permits(load, deadline).await?;
        let mut loaded = call().await;
        if is_transient(&loaded) && self.retries > 0 {
            let pauses = pauses(RETRY_PAUSE, RETRY_PAUSE_MAX, self.context.random());
            for pause in pauses.take(self.retries as usize) {
                let again_at = Instant::now() + pause;
                if again_at >= deadline {
                    break;
                }
                self.counters.retries.up();
                sleep_until(again_at).await;
                loaded = call().await;
                if !is_transient(&loaded) {
                    break;
                }
            }
        }
        drop(permits);
        self.guard.record(has_failed(&loaded), Instant::now());
        loaded
    }

    /// Waits until a load may run; an error when the breaker is open, or too many loads wait.
    async fn permits(&self, load: &Arc<LoadContext>, deadline: Instant) -> Result<HeldPermits> {
        self.guard.may_wait(Instant::now()).map_err(|wait| self.errors.breaker_open(wait))?;
        let permits = async {
            // The group's own first, because a load that waits for it must keep none of the node's from other groups.
            let of_group = match &self.guard.permits {
                Some(permits) => Some(permits.acquire(load).await?),
                None => None,
            };
            Ok::<_, QueueFull>((of_group, self.context.permits.acquire(load).await?))
        };
        let permits = match timeout_at(deadline, permits).await {
            Ok(Ok(permits)) => permits,
            Ok(Err(_)) => return Err(self.errors.overloaded("as many loads wait as are allowed")),
            Err(_) => return Err(self.errors.overloaded("no permit to load came free in time")),
        };
        // Loads before this one may have failed meanwhile.
        self.guard.admit(Instant::now()).map_err(|wait| self.errors.breaker_open(wait))?;
        Ok(permits)
    }
}

/// Whether another attempt may succeed.
fn is_transient<T>(loaded: &Result<T>) -> bool {
    matches!(loaded, Err(e) if e.is_load_failed() && e.is_transient())
}

/// The group's own permits, and its breaker.
struct LoadGuard {
    permits: Option<Permits>,
    breaker: Option<LoadBreaker>,
}

impl LoadGuard {
    fn new(load_policy: &LoadPolicy, max_queued: usize) -> Self {
        let breaker = |(failures, open_for)| LoadBreaker { failures, open_for, state: Mutex::new(State::Closed(0)) };
        Self {
            permits: load_policy.max_loads.map(|at_once| Permits::new(at_once, max_queued)),
            breaker: load_policy.breaker.map(breaker),
        }
    }

    /// Returns how long the breaker stays open, if it is open: a load need not wait for permits then.
    fn may_wait(&self, now: Instant) -> Result<(), Duration> {
        self.breaker.as_ref().map_or(Ok(()), |breaker| breaker.open_for(now).map_or(Ok(()), Err))
    }

    /// Returns how long no load will begin, if none may begin now.
    fn admit(&self, now: Instant) -> Result<(), Duration> {
        self.breaker.as_ref().map_or(Ok(()), |breaker| breaker.admit(now))
    }

    /// Records how a load ended. A load that finds nothing has not failed.
    fn record(&self, has_failed: bool, now: Instant) {
        if let Some(breaker) = &self.breaker {
            breaker.record(has_failed, now);
        }
    }
}

/// Breaker that stops loads from a source which fails every time.
struct LoadBreaker {
    failures: u32,
    open_for: Duration,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Loads go on; this many have failed in a row.
    Closed(u32),
    /// No load until then.
    Open(Instant),
    /// A single load has been under way since then, to see whether the source is back.
    Probing(Instant),
}

impl LoadBreaker {
    /// Returns when the breaker may close again; a time that is too long to be added becomes a day.
    fn end(&self, since: Instant) -> Instant {
        since.checked_add(self.open_for).unwrap_or(since + Duration::from_secs(86_400))
    }

    fn open_for(&self, now: Instant) -> Option<Duration> {
        self.open_in(*self.state.lock(), now)
    }

    fn open_in(&self, state: State, now: Instant) -> Option<Duration> {
        match state {
            State::Closed(_) => None,
            State::Open(until) => (now < until).then(|| until - now),
            // A probe that never ends, or was given up, must not keep the breaker open for ever.
            State::Probing(since) => (now < self.end(since)).then(|| self.end(since) - now),
        }
    }

    fn admit(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock();
        if let Some(wait) = self.open_in(*state, now) {
            return Err(wait);
        }
        if !matches!(*state, State::Closed(_)) {
            *state = State::Probing(now);
        }
        Ok(())
    }

    fn record(&self, has_failed: bool, now: Instant) {
        let mut state = self.state.lock();
        *state = match (*state, has_failed) {
            (_, false) => State::Closed(0),
            (State::Closed(failures), true) if failures + 1 < self.failures => State::Closed(failures + 1),
            (State::Closed(_) | State::Probing(_), true) => State::Open(self.end(now)),
            // A load that began before the breaker opened.
            (State::Open(until), true) => State::Open(until),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Checks that one load at a time asks whether the source is back.
    #[test]
    fn failures_in_a_row_open_the_breaker() {
        let load_policy = LoadPolicy { breaker: Some((3, SECOND)), ..LoadPolicy::default() };
        let (guard, now) = (LoadGuard::new(&load_policy, 8), Instant::now());
        for has_failed in [true, true, false, true, true] {
            assert_eq!(guard.admit(now), Ok(()));
            guard.record(has_failed, now);
        }
        guard.record(true, now);
        assert_eq!(guard.admit(now + SECOND / 4), Err(SECOND * 3 / 4));
        assert_eq!(guard.admit(now + SECOND), Ok(()), "the probe");
        assert!(guard.admit(now + SECOND).is_err(), "and no other");
        guard.record(true, now + SECOND);
        assert!(guard.admit(now + SECOND).is_err());
        assert_eq!(guard.admit(now + SECOND * 2), Ok(()));
        guard.record(false, now + SECOND * 2);
        assert_eq!(guard.admit(now + SECOND * 2), Ok(()));
    }

    #[test]
    fn probe_without_end_is_followed_by_another() {
        let load_policy = LoadPolicy { breaker: Some((1, SECOND)), ..LoadPolicy::default() };
        let (guard, now) = (LoadGuard::new(&load_policy, 8), Instant::now());
        guard.record(true, now);
        assert_eq!(guard.admit(now + SECOND), Ok(()));
        assert!(guard.admit(now + SECOND).is_err());
        assert_eq!(guard.admit(now + SECOND * 2), Ok(()));
    }
}
