//! Clock: coarse time in milliseconds since the node's start, which a task stores every 10 ms.
//!
//! A read of the real clock costs as much as a hit, and a relaxed load of an atomic costs almost nothing. All times of
//! entries, deadlines and silence are coarse times. Coarse time is monotonic and, on Linux, continues while the machine
//! is suspended. The wall clock is read for the incarnation only.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    runtime::{Handle, Id},
    time::Instant,
};

use crate::limits::{LATE_TICK, TICK};

/// Coarse time that is never reached.
pub(crate) const NEVER: u64 = u64::MAX;

/// Coarse time of the node's start: 2^32 ms or about 49 days, so that a value that another node loaded before this
/// start has a coarse time too. The times of one entry can be at most 49 days apart.
pub(crate) const BEGINNING_MS: u64 = 1 << 32;

/// Minimum difference in milliseconds that counts as a suspension, because the two clocks that show a suspension are
/// read one after the other.
const SUSPENDED_MS: u64 = 1000;

/// Duration of 100 years: effectively infinite, and still small enough to be added to any instant.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Coarse clock of a node.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    now_ms: AtomicU64,
    last_tick_ms: AtomicU64,
    /// Time that the machine was suspended since the node's start, during which the clock of tokio stands still.
    suspended_ms: AtomicU64,
    /// Reads the time that the machine was suspended since it was booted.
    since_boot: fn() -> Duration,
    /// Result of `since_boot` at the node's start.
    at_start: Duration,
    /// Runtime of the node, if it started on one. The clock of a caller's runtime may be paused or ahead.
    home: Option<Id>,
}

/// Result of a tick: whether this process kept up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Punctuality {
    OnTime,
    /// The runtime stood still for this long: a blocked thread, a stopped process, a suspended machine.
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
            home: Handle::try_current().ok().map(|runtime| runtime.id()),
        }
    }

    /// Returns whether no runtime but that of the node may have another clock here.
    fn is_trusted(&self) -> bool {
        Handle::try_current().map_or(true, |current| self.home.is_none_or(|home| home == current.id()))
    }

    /// Returns the coarse time, which is at most about 10 ms old while the runtime keeps up.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms.load(Relaxed)
    }

    /// Returns the coarse time of this moment from the real clock. The start of a deadline needs it, because the stored
    /// time is old when this process has just stood still.
    pub(crate) fn read_ms(&self) -> u64 {
        self.at_ms(Instant::now())
    }

    /// Returns the coarse time of this moment, with the time of a suspension that no tick has seen yet.
    pub(crate) fn exact_ms(&self) -> u64 {
        let suspended = self.suspended_ms();
        if suspended >= self.suspended_ms.load(Relaxed).saturating_add(SUSPENDED_MS) {
            self.suspended_ms.fetch_max(suspended, Relaxed);
        }
        self.read_ms()
    }

    fn suspended_ms(&self) -> u64 {
        (self.since_boot)().saturating_sub(self.at_start).as_millis() as u64
    }

    /// Returns the same as [`read_ms`](Self::read_ms), for a real clock that the caller has just read.
    pub(crate) fn at_ms(&self, now: Instant) -> u64 {
        let since_start = now.saturating_duration_since(self.start).as_millis();
        let since_start = u64::try_from(since_start).unwrap_or(NEVER).saturating_add(self.suspended_ms.load(Relaxed));
        let now = since_start.saturating_add(BEGINNING_MS);
        // Asked only when the time has moved, because the question writes to a counter of the runtime.
        if now > self.now_ms.load(Relaxed) && self.is_trusted() {
            self.now_ms.fetch_max(now, Relaxed);
        }
        now
    }

    /// Advances coarse time and returns whether the tick is late.
    pub(crate) fn tick(&self) -> Punctuality {
        let now = self.exact_ms();
        let before = self.last_tick_ms.swap(now, Relaxed);
        let gap = Duration::from_millis(now.saturating_sub(before));
        if gap > TICK + LATE_TICK { Punctuality::Late(gap) } else { Punctuality::OnTime }
    }

    /// Returns the exact time since the start without the time of suspensions, for durations of work and of silence.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Returns the instant of a coarse time.
    pub(crate) fn instant(&self, ms: u64) -> Instant {
        self.start
            + Duration::from_millis(ms.saturating_sub(BEGINNING_MS).saturating_sub(self.suspended_ms.load(Relaxed)))
    }
}

/// Returns the time that this machine was suspended since it was booted; rather too short than too long.
#[cfg(all(target_os = "linux", not(simulation)))]
fn suspended_since_boot() -> Duration {
    use rustix::time::{ClockId, Timespec, clock_gettime};
    let duration = |time: Timespec| Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32);
    // In this order, the time between the two reads makes the result shorter.
    let with_suspensions = duration(clock_gettime(ClockId::Boottime));
    with_suspensions.saturating_sub(duration(clock_gettime(ClockId::Monotonic)))
}

/// Returns zero. On other systems the time is not known, so that entries age while the process runs, and simulated time
/// is not that of a machine.
#[cfg(any(not(target_os = "linux"), simulation))]
fn suspended_since_boot() -> Duration {
    Duration::ZERO
}

/// Returns the wall clock in milliseconds, which orders the incarnations of an id and is used for nothing else.
#[cfg(not(simulation))]
#[expect(clippy::disallowed_types, reason = "the one use of the wall clock")]
pub(crate) fn wall_clock_ms() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64)
}

#[cfg(simulation)]
pub(crate) use crate::testing::simulation::wall_clock_ms;

/// Returns the instant that is `limit` after now.
pub(crate) fn deadline(limit: Duration) -> Instant {
    after(Instant::now(), limit)
}

/// Returns the instant that is `limit` after `begun`; a limit that overflows counts as 100 years.
pub(crate) fn after(begun: Instant, limit: Duration) -> Instant {
    begun.checked_add(limit).unwrap_or(begun + FOREVER)
}

/// Returns the coarse time that is `after` later than `now_ms`.
pub(crate) fn later(now_ms: u64, after: Duration) -> u64 {
    now_ms.saturating_add(u64::try_from(after.as_millis()).unwrap_or(NEVER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tick_after_gap_is_late() {
        let clock = Clock::start();
        tokio::time::advance(TICK).await;
        assert_eq!(clock.tick(), Punctuality::OnTime);
        assert_eq!(clock.now_ms(), BEGINNING_MS + 10);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(clock.tick(), Punctuality::Late(Duration::from_secs(2)));
        assert_eq!(clock.now_ms(), BEGINNING_MS + 2010);
    }

    /// Checks that a caller on a runtime with a clock that is ahead does not move the time of the node.
    #[test]
    fn clock_of_a_callers_runtime_moves_no_coarse_time() {
        let runtime =
            || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let (home, other) = (runtime(), runtime());
        let clock = home.block_on(async { Clock::start() });
        other.block_on(async {
            tokio::time::advance(Duration::from_secs(60)).await;
            assert!(clock.read_ms() >= BEGINNING_MS + 60_000);
        });
        assert!(clock.now_ms() < BEGINNING_MS + 60_000);
        home.block_on(async {
            tokio::time::advance(Duration::from_secs(1)).await;
            clock.read_ms();
        });
        assert!(clock.now_ms() >= BEGINNING_MS + 1_000);
    }

    /// Coarse time includes the time of a suspension, elapsed time excludes it, and deadlines stay as far away.
    #[tokio::test(start_paused = true)]
    async fn coarse_time_includes_suspension() {
        static SUSPENDED_MS: AtomicU64 = AtomicU64::new(70_000);
        let clock = Clock::with(|| Duration::from_millis(SUSPENDED_MS.load(Relaxed)));
        tokio::time::advance(TICK).await;
        assert_eq!(
            (clock.tick(), clock.now_ms()),
            (Punctuality::OnTime, BEGINNING_MS + 10),
            "a suspension before the start does not count"
        );

        SUSPENDED_MS.fetch_add(600_000, Relaxed);
        tokio::time::advance(TICK).await;
        assert_eq!(clock.tick(), Punctuality::Late(Duration::from_millis(600_010)));
        assert_eq!(clock.now_ms(), BEGINNING_MS + 600_020);
        assert_eq!(clock.elapsed(), 2 * TICK, "elapsed time excludes the suspension");
        assert_eq!(clock.instant(BEGINNING_MS + 600_030), Instant::now() + TICK, "a deadline is as far away as before");

        SUSPENDED_MS.fetch_sub(60_000, Relaxed);
        tokio::time::advance(TICK).await;
        assert_eq!(
            (clock.tick(), clock.now_ms()),
            (Punctuality::OnTime, BEGINNING_MS + 600_030),
            "coarse time never steps back"
        );
    }

    #[test]
    fn suspension_between_two_reads_is_short() {
        let before = suspended_since_boot();
        assert!(suspended_since_boot().saturating_sub(before) < Duration::from_secs(1));
    }
}
