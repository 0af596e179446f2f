//! When the next request may be sent: what has failed is asked for less and less, and never by all nodes at once.

use std::time::Duration;

use tokio::time::Instant;

/// The first pause after a failure, and the longest.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// All nodes lose their watches at the same time, when an API server ends; a new watch is cheap.
const SPREAD: Duration = Duration::from_millis(200);
/// All nodes lose what their watches were to go on from at the same time, too; a list is not cheap.
const LIST_SPREAD: Duration = Duration::from_secs(3);
/// How often everything is listed again, ± 20 %: a watch that has lost an event does not know.
const RELIST: Duration = Duration::from_secs(600);
/// Least time between two lists that a node asks for. Where a list takes longer than that, as much as it takes.
const ASK: Duration = Duration::from_secs(1);
/// So many watches in a row that say nothing, and are not ended either, are no source.
const SILENT: u32 = 2;

/// The back-off of one namespace.
#[derive(Debug)]
pub(super) struct Pace {
    rng: fastrand::Rng,
    /// Lists that have failed since one was good.
    list_failures: u32,
    /// Watches that have failed since one was good.
    watch_failures: u32,
    /// Versions that were too old, and watches that said nothing, since one was good.
    expired: u32,
    silent: u32,
    list_not_before: Instant,
    watch_not_before: Instant,
    relist_at: Instant,
    /// When the next list may come that a node asks for.
    ask_at: Instant,
}

impl Pace {
    /// `listed_at` is when there was a list before, if there was one.
    pub(super) fn new(seed: u64, listed_at: Option<Instant>) -> Self {
        let now = Instant::now();
        let mut pace = Self {
            rng: fastrand::Rng::with_seed(seed),
            list_failures: 0,
            watch_failures: 0,
            expired: 0,
            silent: 0,
            list_not_before: now,
            watch_not_before: now,
            relist_at: now,
            ask_at: now,
        };
        pace.relist_at = listed_at.map_or(now, |at| at + pace.relist());
        pace
    }

    fn relist(&mut self) -> Duration {
        RELIST.mul_f64(0.8 + 0.4 * self.rng.f64())
    }

    pub(super) fn rng(&mut self) -> &mut fastrand::Rng {
        &mut self.rng
    }

    /// When a watch may be opened.
    pub(super) fn watch_at(&self) -> Instant {
        self.watch_not_before
    }

    /// When there may be a list, where there is no watch that would tell of changes.
    pub(super) fn list_at(&self) -> Instant {
        self.list_not_before.max(self.watch_not_before)
    }

    /// When there is to be a list although there is a watch.
    pub(super) fn relist_at(&self, is_asked: bool) -> Instant {
        let due = if is_asked { self.ask_at.min(self.relist_at) } else { self.relist_at };
        due.max(self.list_not_before)
    }

    /// A list was good, and took so long.
    pub(super) fn listed(&mut self, took: Duration) {
        let now = Instant::now();
        self.list_failures = 0;
        self.ask_at = now + took.max(ASK);
        self.relist_at = now + self.relist();
    }

    /// The last list was good.
    pub(super) fn is_listed(&self) -> bool {
        self.list_failures == 0
    }

    /// A watch is good: it has said something, or has lived and ended in order.
    pub(super) fn watched(&mut self) {
        (self.watch_failures, self.expired, self.silent) = (0, 0, 0);
    }

    /// One that is good goes on in a new watch.
    pub(super) fn again(&mut self) {
        self.watch_failures = 0;
        self.watch_not_before = Instant::now() + SPREAD.mul_f64(self.rng.f64());
    }

    /// A watch has said nothing and was not ended; tells whether that is no longer to be believed.
    pub(super) fn hung(&mut self) -> bool {
        self.silent = self.silent.saturating_add(1);
        self.is_doubted()
    }

    /// A watch that opens is not one that speaks: the last ones did not.
    pub(super) fn is_doubted(&self) -> bool {
        self.silent >= SILENT
    }

    /// A version was too old; tells whether it was not the first in a row.
    pub(super) fn expired(&mut self) -> bool {
        self.expired = self.expired.saturating_add(1);
        let spread = LIST_SPREAD.mul_f64(self.rng.f64());
        self.list_not_before = Instant::now() + self.pause(self.expired - 1).max(spread);
        self.expired > 1
    }

    /// A list failed. `wait` is how long the API server asks us to.
    pub(super) fn list_failed(&mut self, wait: Duration) {
        self.list_failures = self.list_failures.saturating_add(1);
        let pause = self.pause(self.list_failures);
        self.list_not_before = Instant::now() + pause;
        self.wait(wait);
    }

    /// A watch failed.
    pub(super) fn watch_failed(&mut self, wait: Duration) {
        self.watch_failures = self.watch_failures.saturating_add(1);
        let pause = self.pause(self.watch_failures);
        self.watch_not_before = Instant::now() + pause;
        self.wait(wait);
    }

    /// How often a watch has failed in a row.
    pub(super) fn watch_failures(&self) -> u32 {
        self.watch_failures
    }

    /// At least as long as the API server said, and not as long as it said to all the others.
    fn wait(&mut self, wait: Duration) {
        if wait > Duration::ZERO {
            let until = Instant::now() + wait.mul_f64(1.0 + self.rng.f64() / 2.0);
            self.list_not_before = self.list_not_before.max(until);
            self.watch_not_before = self.watch_not_before.max(until);
        }
    }

    /// Longer and longer.
    fn pause(&mut self, failures: u32) -> Duration {
        if failures == 0 {
            return Duration::ZERO;
        }
        let full = PAUSE.saturating_mul(2_u32.saturating_pow((failures - 1).min(16))).min(LONGEST_PAUSE);
        full.mul_f64(0.5 + self.rng.f64() / 2.0)
    }
}
