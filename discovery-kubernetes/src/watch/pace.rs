//! Pace of requests: the earliest time of the next list and watch, with back-off and random spread over the nodes.

use std::time::Duration;

use tokio::time::Instant;

use crate::api::Trouble;

/// Pause after the first failure.
const PAUSE: Duration = Duration::from_millis(250);
/// Longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Maximum random delay of a new watch. All nodes lose their watches at the same time when an API server ends, and a
/// new watch is cheap.
const SPREAD: Duration = Duration::from_millis(200);
/// Maximum random delay of a list after a 410 or a silent watch. All nodes lose the versions of their watches at the
/// same time, too, and a list is not cheap.
const LIST_SPREAD: Duration = Duration::from_secs(3);
/// Interval of periodic lists, ± 20 %. A watch that has lost an event does not notice the loss.
const RELIST: Duration = Duration::from_secs(600);
/// Minimum time from the end of a list, good or failed, to the next one that the node requests. If a good list took
/// longer than this, the time is that of the list.
const ASK: Duration = Duration::from_secs(1);
/// Number of consecutive silent watches after which watches are not trusted. A silent watch sends nothing and is not
/// ended by the API server.
const SILENT: u32 = 2;

/// Pace of one namespace.
#[derive(Debug)]
pub(super) struct Pace {
    rng: fastrand::Rng,
    /// Number of failed lists since the last good one.
    list_failures: u32,
    /// Number of failed watches since the last good one.
    watch_failures: u32,
    /// Number of answers 410 since the last good watch.
    expired: u32,
    /// Number of silent watches since the last good one.
    silent: u32,
    list_not_before: Instant,
    watch_not_before: Instant,
    relist_at: Instant,
    /// Earliest time of the next list that the node requests.
    ask_at: Instant,
    /// Earliest time of such a list after a failed one, regardless of the back-off.
    hurry_at: Instant,
    /// Time until which the API server wants no requests.
    wait_until: Instant,
}

impl Pace {
    /// Creates a pace. `listed_at` is the time of the last list, if there was one.
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
            hurry_at: now,
            wait_until: now,
        };
        pace.relist_at = listed_at.map_or(now, |at| at + pace.relist());
        pace
    }

    /// Returns the random time until the next periodic list.
    fn relist(&mut self) -> Duration {
        RELIST.mul_f64(0.8 + 0.4 * self.rng.f64())
    }

    pub(super) fn rng(&mut self) -> &mut fastrand::Rng {
        &mut self.rng
    }

    /// Returns the earliest time of the next watch.
    pub(super) fn watch_at(&self) -> Instant {
        self.watch_not_before
    }

    /// Returns the earliest time of a list while no watch is open. `is_hurried`: whether the node has requested a list
    /// since the last try.
    pub(super) fn list_at(&self, is_hurried: bool) -> Instant {
        let at = self.list_not_before.max(self.watch_not_before);
        if is_hurried { at.min(self.ask_at.max(self.hurry_at)).max(self.wait_until) } else { at }
    }

    /// Returns the time of the next list while a watch is open. `is_asked`: whether the node has requested a list;
    /// `is_hurried`: since the last try.
    pub(super) fn relist_at(&self, is_asked: bool, is_hurried: bool) -> Instant {
        let due = if is_asked { self.ask_at.min(self.relist_at) } else { self.relist_at };
        let at = due.max(self.list_not_before);
        if is_hurried { at.min(due.max(self.hurry_at)).max(self.wait_until) } else { at }
    }

    /// Records a good list and its duration. After a hurried list the next watch is due, because the API server
    /// answers.
    pub(super) fn listed(&mut self, took: Duration, is_hurried: bool) {
        let now = Instant::now();
        self.list_failures = 0;
        self.ask_at = now + took.max(ASK);
        self.relist_at = now + self.relist();
        if is_hurried {
            self.watch_not_before = self.watch_not_before.min(now).max(self.wait_until);
        }
    }

    /// Returns whether no list has failed since the last good one.
    pub(super) fn is_listed(&self) -> bool {
        self.list_failures == 0
    }

    /// Records a good watch, which has sent an event, or has lived for a while and ended in order.
    pub(super) fn watched(&mut self) {
        (self.watch_failures, self.expired, self.silent) = (0, 0, 0);
    }

    /// Schedules the next watch after a good one has ended.
    pub(super) fn again(&mut self) {
        self.watch_failures = 0;
        self.watch_not_before = Instant::now() + SPREAD.mul_f64(self.rng.f64());
    }

    /// Records a silent watch. Returns whether watches are no longer trusted.
    pub(super) fn hung(&mut self) -> bool {
        self.silent = self.silent.saturating_add(1);
        self.is_doubted()
    }

    /// Returns whether the last watches were silent, so that an open watch proves nothing before it sends an event.
    pub(super) fn is_doubted(&self) -> bool {
        self.silent >= SILENT
    }

    /// Records an answer 410 and delays the next list. Returns whether this is not the first 410 in a row.
    pub(super) fn expired(&mut self) -> bool {
        self.expired = self.expired.saturating_add(1);
        let spread = LIST_SPREAD.mul_f64(self.rng.f64());
        self.list_not_before = Instant::now() + self.pause(self.expired - 1).max(spread);
        self.expired > 1
    }

    /// Delays the next list at random, because the watches of all nodes may have ended at the same time.
    pub(super) fn spread_list(&mut self) {
        let spread = LIST_SPREAD.mul_f64(self.rng.f64());
        self.list_not_before = self.list_not_before.max(Instant::now() + spread);
    }

    /// Records a failed list, which stays due. `wait` is the delay that the API server requests.
    pub(super) fn list_failed(&mut self, wait: Duration) {
        self.list_failures = self.list_failures.saturating_add(1);
        let (now, pause) = (Instant::now(), self.pause(self.list_failures));
        self.relist_at = self.relist_at.min(now);
        self.list_not_before = now + pause;
        self.hurry_at = now + ASK;
        self.wait(wait);
    }

    /// Records a failed watch. `wait` is the delay that the API server requests.
    pub(super) fn watch_failed(&mut self, wait: Duration) {
        self.watch_failures = self.watch_failures.saturating_add(1);
        let pause = self.pause(self.watch_failures);
        self.watch_not_before = Instant::now() + pause;
        self.wait(wait);
    }

    /// Returns the number of failed watches in a row.
    pub(super) fn watch_failures(&self) -> u32 {
        self.watch_failures
    }

    /// Delays all requests by the time that the API server requests, plus up to 50 % at random, so that not all nodes
    /// send requests at once.
    fn wait(&mut self, wait: Duration) {
        if wait > Duration::ZERO {
            let until = Instant::now() + wait.mul_f64(1.0 + self.rng.f64() / 2.0);
            self.wait_until = self.wait_until.max(until);
            self.list_not_before = self.list_not_before.max(until);
            self.watch_not_before = self.watch_not_before.max(until);
        }
    }

    /// Returns the pause after this number of failures. The pause doubles with each failure up to the longest one, and
    /// is shortened by up to 50 % at random.
    fn pause(&mut self, failures: u32) -> Duration {
        if failures == 0 {
            return Duration::ZERO;
        }
        let full = PAUSE.saturating_mul(2_u32.saturating_pow((failures - 1).min(16))).min(LONGEST_PAUSE);
        full.mul_f64(0.5 + self.rng.f64() / 2.0)
    }
}

/// Number of answers 403 in a row to one verb. An API server that has just started answers 403 for a moment, because it
/// has not read the Roles.
#[derive(Default)]
pub(super) struct InARow(u32);

impl InARow {
    /// Counts a failed request. Returns whether the right is missing.
    pub(super) fn is_missing(&mut self, trouble: &Trouble) -> bool {
        self.0 = if matches!(trouble, Trouble::Forbidden { .. }) { self.0.saturating_add(1) } else { 0 };
        self.0 > 1
    }
}
