//! Control of loads: how many run at once, when a failed load is tried again, and when no load begins.

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

/// Limits by which a group protects its source.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoadPolicy {
    /// Maximum number of loads at once, for each depth of nesting; `None` for the node's limit only.
    pub(crate) max_loads: Option<usize>,
    /// Number of attempts after the first.
    pub(crate) retries: u32,
    /// Number of failures in a row that open the breaker, and the time for which it stays open.
    pub(crate) breaker: Option<(u32, Duration)>,
}

/// Shortest pause before the second attempt. The shortest pause doubles with each attempt up to 1 s, and up to as much
/// is added at random.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

/// Longest pause between two attempts.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Loader of a group with its permits, its retries and its breaker.
pub(crate) struct LoadControl<V: Value> {
    pub(crate) loader: SharedLoader<V>,
    /// Batches of a group with a batch loader, through which all its loads go.
    pub(crate) batches: Option<Arc<Batches<V>>>,
    /// Maximum time of one load, with the wait for permits and all attempts.
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

    /// Takes permits, waits for `begins`, and calls a loader, again while its error is transient and both the group's retries and the
    /// deadline allow it. Records in the breaker whether the last attempt failed.
    ///
    /// # Errors
    /// The error of the last attempt, or that of a missing permit, an open breaker or `begins`.
    pub(crate) async fn attempts<T, R, F: Future<Output = Result<T>>>(
        &self,
        load: &Arc<LoadContext>,
        deadline: Instant,
        begins: impl Future<Output = Result<R>>,
        mut call: impl FnMut() -> F,
        has_failed: impl FnOnce(&Result<T>) -> bool,
    ) -> Result<T> {
        let permits = self.permits(load, deadline).await?;
        let _running = begins.await?; // its error is no failure of the source
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

    /// Waits until a load may run.
    ///
    /// # Errors
    /// The breaker is open, too many loads wait, or no permit came free before the deadline.
    async fn permits(&self, load: &Arc<LoadContext>, deadline: Instant) -> Result<HeldPermits> {
        self.guard.may_wait(Instant::now()).map_err(|wait| self.errors.breaker_open(wait))?;
        let permits = async {
            // The group's permit first, because a load that waits for it must not hold a permit of the node.
            let of_group = match &self.guard.permits {
                Some(permits) => Some(permits.acquire(load).await?),
                None => None,
            };
            Ok::<_, QueueFull>((of_group, self.context.permits.acquire(load).await?))
        };
        let permits = match timeout_at(deadline, permits).await {
            Ok(Ok(permits)) => permits,
            Ok(Err(_)) => return Err(self.errors.overloaded("max_queued_loads loads wait for a permit")),
            Err(_) => return Err(self.errors.overloaded("no permit for a load came free before its deadline")),
        };
        // Earlier loads may have failed meanwhile.
        self.guard.admit(Instant::now()).map_err(|wait| self.errors.breaker_open(wait))?;
        Ok(permits)
    }
}

/// Returns whether another attempt may succeed.
fn is_transient<T>(loaded: &Result<T>) -> bool {
    matches!(loaded, Err(e) if e.is_load_failed() && e.is_transient())
}

/// Permits and breaker of a group.
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

    /// Returns the remaining time of an open breaker as an error, because a load need not wait for permits then.
    fn may_wait(&self, now: Instant) -> Result<(), Duration> {
        self.breaker.as_ref().map_or(Ok(()), |breaker| breaker.open_for(now).map_or(Ok(()), Err))
    }

    /// Admits a load, or returns as an error for how long no load may begin.
    fn admit(&self, now: Instant) -> Result<(), Duration> {
        self.breaker.as_ref().map_or(Ok(()), |breaker| breaker.admit(now))
    }

    /// Records whether a load failed. A load that finds nothing has not failed.
    fn record(&self, has_failed: bool, now: Instant) {
        if let Some(breaker) = &self.breaker {
            breaker.record(has_failed, now);
        }
    }
}

/// Breaker that stops loads while their source fails.
struct LoadBreaker {
    failures: u32,
    open_for: Duration,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Loads run. The number counts the failures in a row.
    Closed(u32),
    /// No load begins before this time.
    Open(Instant),
    /// A single load has run since this time, to test the source.
    Probing(Instant),
}

impl LoadBreaker {
    /// Returns the end of an open period that begins at `since`. A period that is too long to be added becomes one day.
    fn end(&self, since: Instant) -> Instant {
        since.checked_add(self.open_for).unwrap_or(since + Duration::from_secs(86_400))
    }

    /// Returns how long the breaker stays open, if it is open.
    fn open_for(&self, now: Instant) -> Option<Duration> {
        self.open_in(*self.state.lock(), now)
    }

    fn open_in(&self, state: State, now: Instant) -> Option<Duration> {
        match state {
            State::Closed(_) => None,
            State::Open(until) => (now < until).then(|| until - now),
            // A probe without an end must not keep the breaker open for ever.
            State::Probing(since) => (now < self.end(since)).then(|| self.end(since) - now),
        }
    }

    /// Admits a load if the breaker is closed, or as the single probe once its open period is over.
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
            // The load began before the breaker opened.
            (State::Open(until), true) => State::Open(until),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Checks that failures in a row open the breaker, that one probe at a time tests the source, and that a success
    /// closes the breaker.
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
        assert!(guard.admit(now + SECOND).is_err(), "a second probe");
        guard.record(true, now + SECOND);
        assert!(guard.admit(now + SECOND).is_err());
        assert_eq!(guard.admit(now + SECOND * 2), Ok(()));
        guard.record(false, now + SECOND * 2);
        assert_eq!(guard.admit(now + SECOND * 2), Ok(()));
    }

    /// Checks that another probe begins after one that never ends.
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
