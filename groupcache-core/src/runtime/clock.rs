//! Coarse time: milliseconds of the node's life, stored by a task every 10 ms.
//!
//! A read of the real clock costs as much as a hit; a relaxed load of an atomic costs nothing. All times of
//! entries, deadlines and silence are of this clock, which is monotonic and, on Linux, goes on while the machine is
//! suspended; the wall clock is read once, for the incarnation.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use crate::limits::{LATE_TICK, TICK};

/// A time that never comes.
pub(crate) const NEVER: u64 = u64::MAX;

/// Where coarse time begins: what was loaded elsewhere, before this node was started, has a time too. About 49 days, the
/// most that an entry's times can be apart.
pub(crate) const BEGINNING_MS: u64 = 1 << 32;

/// The two clocks that tell a suspension are read one after the other: less than this is no suspension.
const SUSPENDED_MS: u64 = 1000;

/// What cannot be told from for ever, and can be added to any instant.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    now_ms: AtomicU64,
    last_tick_ms: AtomicU64,
    /// How long the machine was suspended since the start: the clock of tokio stands still meanwhile.
    suspended_ms: AtomicU64,
    /// The same since the machine was started, and that as of our start.
    since_boot: fn() -> Duration,
    at_start: Duration,
}

/// What a tick found out about ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Punctuality {
    OnTime,
    /// The runtime stood still: a blocked thread, a stopped process, a suspended machine.
    Late(Duration),
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self::with(suspended_since_boot)
    }

    fn with(since_boot: fn() -> Duration) -> Self {
        Self {
            start: Instant::now(),
            now_ms: AtomicU64::new(BEGINNING_MS),
            last_tick_ms: AtomicU64::new(BEGINNING_MS),
            suspended_ms: AtomicU64::new(0),
            since_boot,
            at_start: since_boot(),
        }
    }

    /// Milliseconds, at most about 10 ms old while the runtime keeps up.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms.load(Relaxed)
    }

    /// Milliseconds, read from the real clock: for what begins a deadline, since coarse time is
    /// old when this process has just stood still.
    pub(crate) fn read_ms(&self) -> u64 {
        self.at_ms(Instant::now())
    }

    /// As [`read_ms`](Self::read_ms), of a clock that was read just now.
    pub(crate) fn at_ms(&self, now: Instant) -> u64 {
        let since_start = now.saturating_duration_since(self.start).as_millis();
        let since_start = u64::try_from(since_start).unwrap_or(NEVER).saturating_add(self.suspended_ms.load(Relaxed));
        let now = since_start.saturating_add(BEGINNING_MS);
        if now > self.now_ms.load(Relaxed) {
            self.now_ms.fetch_max(now, Relaxed);
        }
        now
    }

    /// Moves coarse time on.
    pub(crate) fn tick(&self) -> Punctuality {
        let suspended = (self.since_boot)().saturating_sub(self.at_start).as_millis() as u64;
        if suspended >= self.suspended_ms.load(Relaxed).saturating_add(SUSPENDED_MS) {
            self.suspended_ms.store(suspended, Relaxed);
        }
        let now = self.read_ms();
        let before = self.last_tick_ms.swap(now, Relaxed);
        let gap = Duration::from_millis(now.saturating_sub(before));
        if gap > TICK + LATE_TICK { Punctuality::Late(gap) } else { Punctuality::OnTime }
    }

    /// Exact time since the start without what the machine was suspended: for how long something took, or others had to
    /// speak.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The instant that a coarse time stands for.
    pub(crate) fn instant(&self, ms: u64) -> Instant {
        self.start
            + Duration::from_millis(ms.saturating_sub(BEGINNING_MS).saturating_sub(self.suspended_ms.load(Relaxed)))
    }
}

/// How long this machine was suspended since it was started, never told too long.
#[cfg(all(target_os = "linux", not(simulation)))]
fn suspended_since_boot() -> Duration {
    use rustix::time::{ClockId, Timespec, clock_gettime};
    let duration = |time: Timespec| Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32);
    // In this order: what passes between the two reads makes it shorter.
    let with_suspensions = duration(clock_gettime(ClockId::Boottime));
    with_suspensions.saturating_sub(duration(clock_gettime(ClockId::Monotonic)))
}

/// Elsewhere it is not known: entries age while the process runs. And simulated time is not that of a machine.
#[cfg(any(not(target_os = "linux"), simulation))]
fn suspended_since_boot() -> Duration {
    Duration::ZERO
}

/// Orders the lives of an id, and is used for nothing else.
#[cfg(not(simulation))]
#[expect(clippy::disallowed_types, reason = "the one use of the wall clock")]
pub(crate) fn wall_clock_ms() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64)
}

#[cfg(simulation)]
pub(crate) use crate::testing::simulation::wall_clock_ms;

/// The end of what may take this long from now on.
pub(crate) fn deadline(limit: Duration) -> Instant {
    after(Instant::now(), limit)
}

/// The end of what may take this long from `begun` on.
pub(crate) fn after(begun: Instant, limit: Duration) -> Instant {
    begun.checked_add(limit).unwrap_or(begun + FOREVER)
}

/// The coarse time `after` from `now_ms`.
pub(crate) fn later(now_ms: u64, after: Duration) -> u64 {
    now_ms.saturating_add(u64::try_from(after.as_millis()).unwrap_or(NEVER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_late_tick_is_noticed() {
        let clock = Clock::start();
        tokio::time::advance(TICK).await;
        assert_eq!(clock.tick(), Punctuality::OnTime);
        assert_eq!(clock.now_ms(), BEGINNING_MS + 10);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(clock.tick(), Punctuality::Late(Duration::from_secs(2)));
        assert_eq!(clock.now_ms(), BEGINNING_MS + 2010);
    }
    #[tokio::test(start_paused = true)]
    async fn while_the_machine_is_suspended_time_goes_on() {
        static SUSPENDED_MS: AtomicU64 = AtomicU64::new(70_000);
        let clock = Clock::with(|| Duration::from_millis(SUSPENDED_MS.load(Relaxed)));
        tokio::time::advance(TICK).await;
        assert_eq!(
            (clock.tick(), clock.now_ms()),
            (Punctuality::OnTime, BEGINNING_MS + 10),
            "what was before our start is not ours"
        );

        SUSPENDED_MS.fetch_add(600_000, Relaxed);
        tokio::time::advance(TICK).await;
        assert_eq!(clock.tick(), Punctuality::Late(Duration::from_millis(600_010)));
        assert_eq!(clock.now_ms(), BEGINNING_MS + 600_020);
        assert_eq!(clock.elapsed(), 2 * TICK, "nothing has run, and nobody could speak");
        assert_eq!(clock.instant(BEGINNING_MS + 600_030), Instant::now() + TICK, "a deadline is as far away as it was");

        SUSPENDED_MS.fetch_sub(60_000, Relaxed);
        tokio::time::advance(TICK).await;
        assert_eq!(
            (clock.tick(), clock.now_ms()),
            (Punctuality::OnTime, BEGINNING_MS + 600_030),
            "it never steps back"
        );
    }

    #[test]
    fn this_machine_was_not_suspended_between_two_looks() {
        let before = suspended_since_boot();
        assert!(suspended_since_boot().saturating_sub(before) < Duration::from_secs(1));
    }
}
