//! What stands between a group and its source: how many loads at once, another attempt, and none at all for a while.

use std::time::Duration;

use tokio::time::Instant;

use crate::{permits::Permits, sync::Mutex};

/// What a group was told about protecting its source.
#[derive(Clone, Debug, Default)]
pub(crate) struct Protect {
    pub(crate) max_loads: Option<usize>,
    /// Attempts after the first.
    pub(crate) retries: u32,
    /// So many failures in a row open it, for so long.
    pub(crate) breaker: Option<(u32, Duration)>,
}

/// The first pause before another attempt; each is twice the one before, and half of it is random.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause between two attempts.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// The pause before attempt `n`, from 1; `random` is from 0 to 1.
pub(super) fn pause(n: u32, random: f64) -> Duration {
    let longest = RETRY_PAUSE.saturating_mul(1 << n.saturating_sub(1).min(10)).min(RETRY_PAUSE_MAX);
    longest.mul_f64(0.5 + 0.5 * random)
}

/// The permits and the breaker of a group.
pub(super) struct Guard {
    pub(super) permits: Option<Permits>,
    breaker: Option<LoadBreaker>,
}

impl Guard {
    pub(super) fn new(protect: &Protect, max_queued: usize) -> Self {
        let breaker = |(failures, open_for)| LoadBreaker { failures, open_for, state: Mutex::new(State::Closed(0)) };
        Self {
            permits: protect.max_loads.map(|at_once| Permits::new(at_once, max_queued)),
            breaker: protect.breaker.map(breaker),
        }
    }

    /// Whether it makes sense to wait for the permits of a load; otherwise for how long it does not.
    pub(super) fn may_wait(&self, now: Instant) -> Result<(), Duration> {
        self.breaker.as_ref().map_or(Ok(()), |breaker| breaker.open_for(now).map_or(Ok(()), Err))
    }

    /// Whether a load may begin now, with its permits; otherwise how long none will.
    pub(super) fn admit(&self, now: Instant) -> Result<(), Duration> {
        self.breaker.as_ref().map_or(Ok(()), |breaker| breaker.admit(now))
    }

    /// How a load ended. What the loader does not find is no failure.
    pub(super) fn ended(&self, has_failed: bool, now: Instant) {
        if let Some(breaker) = &self.breaker {
            breaker.ended(has_failed, now);
        }
    }
}

/// Stops loads from a source that fails every time.
struct LoadBreaker {
    failures: u32,
    open_for: Duration,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Loads go on; so many have failed in a row.
    Closed(u32),
    /// None until then.
    Open(Instant),
    /// One is under way, since then, to see whether the source is back.
    Probing(Instant),
}

impl LoadBreaker {
    /// When it may close again; a time that is too long to be added is a day.
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
            // A probe that never ends, or was given up, must not keep it open for ever.
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

    fn ended(&self, has_failed: bool, now: Instant) {
        let mut state = self.state.lock();
        *state = match (*state, has_failed) {
            (_, false) => State::Closed(0),
            (State::Closed(failures), true) if failures + 1 < self.failures => State::Closed(failures + 1),
            (State::Closed(_) | State::Probing(_), true) => State::Open(self.end(now)),
            // One that began before it opened.
            (State::Open(until), true) => State::Open(until),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn failures_in_a_row_open_the_breaker_and_one_load_at_a_time_asks_again() {
        let protect = Protect { breaker: Some((3, SECOND)), ..Protect::default() };
        let (guard, now) = (Guard::new(&protect, 8), Instant::now());
        for has_failed in [true, true, false, true, true] {
            assert_eq!(guard.admit(now), Ok(()));
            guard.ended(has_failed, now);
        }
        guard.ended(true, now);
        assert_eq!(guard.admit(now + SECOND / 4), Err(SECOND * 3 / 4));
        assert_eq!(guard.admit(now + SECOND), Ok(()), "the probe");
        assert!(guard.admit(now + SECOND).is_err(), "and no other");
        guard.ended(true, now + SECOND);
        assert!(guard.admit(now + SECOND).is_err());
        assert_eq!(guard.admit(now + SECOND * 2), Ok(()));
        guard.ended(false, now + SECOND * 2);
        assert_eq!(guard.admit(now + SECOND * 2), Ok(()));
    }

    #[test]
    fn a_probe_that_never_ends_is_followed_by_another() {
        let protect = Protect { breaker: Some((1, SECOND)), ..Protect::default() };
        let (guard, now) = (Guard::new(&protect, 8), Instant::now());
        guard.ended(true, now);
        assert_eq!(guard.admit(now + SECOND), Ok(()));
        assert!(guard.admit(now + SECOND).is_err());
        assert_eq!(guard.admit(now + SECOND * 2), Ok(()));
    }

    #[test]
    fn pauses_double_and_have_an_end() {
        assert_eq!((pause(1, 1.0), pause(2, 1.0), pause(1, 0.0)), (RETRY_PAUSE, RETRY_PAUSE * 2, RETRY_PAUSE / 2));
        assert_eq!((pause(50, 1.0), pause(0, 1.0)), (RETRY_PAUSE_MAX, RETRY_PAUSE));
    }
}
