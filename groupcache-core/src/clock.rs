//! Coarse time: milliseconds since the node's start, stored by a task every 10 ms.
//!
//! A read of the real clock costs as much as a hit; a relaxed load of an atomic costs nothing. All times of
//! entries, deadlines and silence are of this clock, which is monotonic; the wall clock is read once, for the
//! incarnation.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use crate::config::{LATE_TICK, TICK};

/// A time that never comes.
pub(crate) const NEVER: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    now_ms: AtomicU64,
    last_tick_ms: AtomicU64,
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
        Self { start: Instant::now(), now_ms: AtomicU64::new(0), last_tick_ms: AtomicU64::new(0) }
    }

    /// Milliseconds since the start, at most about 10 ms old while the runtime keeps up.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms.load(Relaxed)
    }

    /// Milliseconds since the start, read from the real clock: for what begins a deadline, since coarse time is
    /// old when this process has just stood still.
    pub(crate) fn read_ms(&self) -> u64 {
        let now = u64::try_from(self.elapsed().as_millis()).unwrap_or(NEVER);
        self.now_ms.fetch_max(now, Relaxed);
        now
    }

    /// Moves coarse time on.
    pub(crate) fn tick(&self) -> Punctuality {
        let now = self.read_ms();
        let before = self.last_tick_ms.swap(now, Relaxed);
        let gap = Duration::from_millis(now.saturating_sub(before));
        if gap > TICK + LATE_TICK { Punctuality::Late(gap) } else { Punctuality::OnTime }
    }

    /// Exact time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The instant that a coarse time stands for.
    pub(crate) fn instant(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }
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
        assert_eq!(clock.now_ms(), 10);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(clock.tick(), Punctuality::Late(Duration::from_secs(2)));
        assert_eq!(clock.now_ms(), 2010);
    }
}
