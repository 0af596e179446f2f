//! Freshness: how long an entry is fresh, served and kept, by the group's policy and the loader's answer.

use std::time::Duration;

use crate::{
    cache::store::Times,
    loader::Keep,
    runtime::clock::{NEVER, later},
};

/// Settings of a group about the ages of its entries.
#[derive(Clone, Debug)]
pub(crate) struct FreshnessPolicy {
    /// Time for which a value is fresh; `None` means until it is evicted.
    pub(crate) time_to_live: Option<Duration>,
    /// Maximum of every time to live, those of a loader included; `None` means `time_to_live`.
    pub(crate) max_time_to_live: Option<Duration>,
    /// Maximum share of a time to live that is taken off at random, so that entries that were loaded together do not
    /// expire together.
    pub(crate) jitter: f64,
    /// Time for which a negative entry is kept; `None` means not at all.
    pub(crate) negative: Option<Duration>,
    pub(crate) stale_while_revalidate: Duration,
    pub(crate) refresh_ahead: Duration,
    pub(crate) stale_if_error: Duration,
    /// Maximum time for which a replica is served, and an orphaned entry.
    pub(crate) replica_time_to_live: Duration,
}

impl Default for FreshnessPolicy {
    fn default() -> Self {
        Self {
            time_to_live: None,
            max_time_to_live: None,
            jitter: 0.1,
            negative: None,
            stale_while_revalidate: Duration::ZERO,
            refresh_ahead: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            replica_time_to_live: Duration::from_secs(10),
        }
    }
}

impl FreshnessPolicy {
    /// Returns how long the answer of a loader is fresh: `None` if it is not kept, `Some(None)` if for ever. `random`
    /// is from 0 to 1.
    fn fresh_for(&self, keep: Keep, is_value: bool, random: f64) -> Option<Option<Duration>> {
        let wanted = match keep {
            Keep::Not => return None,
            Keep::For(time_to_live) => Some(time_to_live),
            Keep::Forever => None,
            Keep::AsTheGroup if is_value => self.time_to_live,
            Keep::AsTheGroup => Some(self.negative?),
        };
        let capped = match (wanted, self.longest()) {
            (Some(wanted), Some(max)) => Some(wanted.min(max)),
            (wanted, max) => wanted.or(max),
        };
        // A time that is too long for a float of seconds needs no jitter.
        let jittered = |fresh: Duration| {
            Duration::try_from_secs_f64(fresh.as_secs_f64() * (1.0 - self.jitter * random)).unwrap_or(fresh)
        };
        Some(capped.map(|fresh| jittered(fresh).min(fresh)))
    }

    /// Returns all times of an entry that is loaded now, or `None` if it is not kept. An entry with a `limit`, because
    /// another node owns its key, is kept no longer than that and is never stale.
    pub(crate) fn times(
        &self,
        keep: Keep,
        is_value: bool,
        now_ms: u64,
        random: f64,
        limit: Option<Duration>,
    ) -> Option<Times> {
        let fresh_for = self.fresh_for(keep, is_value, random)?;
        if let Some(limit) = limit {
            let served = fresh_for.map_or(limit, |fresh| fresh.min(limit));
            return Some(Times::until(now_ms, later(now_ms, served)));
        }
        let Some(fresh_for) = fresh_for else { return Some(Times::until(now_ms, NEVER)) };
        let fresh_until_ms = later(now_ms, fresh_for);
        if !is_value {
            return Some(Times::until(now_ms, fresh_until_ms));
        }
        Some(self.of_a_value(now_ms, fresh_for))
    }

    /// Returns the times of a value that another node loaded and this node owns now, or `None` if it is stale.
    pub(crate) fn of_handover(
        &self,
        age_ms: u64,
        remaining_ms: Option<u64>,
        now_ms: u64,
        limit: Option<Duration>,
    ) -> Option<Times> {
        let loaded_at_ms = now_ms.saturating_sub(age_ms);
        let remaining_ms = remaining_ms.filter(|_| !mutant!(HandedValueLivesAnew));
        let sent_ms = remaining_ms.map_or(NEVER, |remaining_ms| now_ms.saturating_add(remaining_ms));
        // The other node may be configured with another maximum.
        let fresh_until_ms = self.longest().map_or(sent_ms, |max| sent_ms.min(later(loaded_at_ms, max)));
        if fresh_until_ms <= now_ms {
            return None;
        }
        if let Some(limit) = limit {
            return Some(Times::until(loaded_at_ms, fresh_until_ms.min(later(now_ms, limit))));
        }
        if fresh_until_ms == NEVER {
            return Some(Times::until(loaded_at_ms, NEVER));
        }
        Some(self.of_a_value(loaded_at_ms, Duration::from_millis(fresh_until_ms - loaded_at_ms)))
    }

    /// Returns the maximum time for which any value of the group is fresh, or `None` if there is none.
    pub(crate) fn longest(&self) -> Option<Duration> {
        self.max_time_to_live.or(self.time_to_live)
    }

    /// Returns the maximum time for which any value of the group is served, or `None` if there is none.
    pub(crate) fn longest_kept(&self) -> Option<Duration> {
        // A value that is set is as old as the call, and may be served on by a failed refresh or load.
        let longest = self.longest()?.max(self.negative.unwrap_or_default());
        Some(longest.saturating_add(self.stale_while_revalidate.max(self.stale_if_error)))
    }

    fn of_a_value(&self, as_of_ms: u64, fresh_for: Duration) -> Times {
        let fresh_until_ms = later(as_of_ms, fresh_for);
        let serve_until_ms = later(fresh_until_ms, self.stale_while_revalidate);
        // Never in the first half of the time to live, whatever the group asks for. Otherwise each hit could begin a
        // load.
        let ahead = self.refresh_ahead.min(fresh_for / 2);
        let is_refreshed = !ahead.is_zero() || !self.stale_while_revalidate.is_zero();
        Times {
            as_of_ms,
            refresh_at_ms: if is_refreshed { later(as_of_ms, fresh_for - ahead) } else { NEVER },
            fresh_until_ms,
            serve_until_ms,
            keep_until_ms: serve_until_ms.max(later(fresh_until_ms, self.stale_if_error)),
            checked: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn policy() -> FreshnessPolicy {
        FreshnessPolicy { time_to_live: Some(MINUTE), ..FreshnessPolicy::default() }
    }

    fn times(policy: &FreshnessPolicy, keep: Keep) -> Times {
        policy.times(keep, true, 1000, 0.0, None).expect("kept")
    }

    /// Checks that the loader's time to live precedes the group's, up to the maximum, which is the group's unless it has
    /// one of its own.
    #[test]
    fn loader_overrides_time_to_live_up_to_the_maximum() {
        let until = |policy: &FreshnessPolicy, keep| times(policy, keep).fresh_until_ms;
        for (keep, bounded_ms) in [
            (Keep::AsTheGroup, 61_000),
            (Keep::For(MINUTE / 4), 16_000),
            (Keep::For(MINUTE * 2), 61_000),
            (Keep::Forever, 61_000),
        ] {
            assert_eq!(until(&policy(), keep), bounded_ms, "{keep:?}");
        }
        assert_eq!(policy().times(Keep::Not, true, 1000, 0.0, None), None);
        let longer = FreshnessPolicy { max_time_to_live: Some(MINUTE * 3), ..policy() };
        assert_eq!((until(&longer, Keep::For(MINUTE * 2)), until(&longer, Keep::Forever)), (121_000, 181_000));
        let unlimited = FreshnessPolicy { time_to_live: None, ..policy() };
        assert_eq!(until(&unlimited, Keep::Forever), NEVER);
        let capped = FreshnessPolicy { max_time_to_live: Some(MINUTE / 2), ..policy() };
        for keep in [Keep::AsTheGroup, Keep::For(MINUTE * 2), Keep::Forever] {
            assert_eq!(times(&capped, keep), Times::until(1000, 31_000));
        }
    }

    #[test]
    fn jitter_shortens_and_never_lengthens() {
        for (random, until) in [(0.0, 61_000), (0.5, 58_000), (1.0, 55_000)] {
            assert_eq!(policy().times(Keep::AsTheGroup, true, 1000, random, None), Some(Times::until(1000, until)));
        }
    }

    /// Checks that a negative entry is kept only if the group or the loader asks for it, and is never stale.
    #[test]
    fn negative_entry_is_kept_on_request_only() {
        let negative = |policy: FreshnessPolicy, keep| policy.times(keep, false, 1000, 0.0, None);
        assert_eq!(negative(policy(), Keep::AsTheGroup), None);
        assert_eq!(negative(policy(), Keep::For(MINUTE)), Some(Times::until(1000, 61_000)), "as the loader asks");
        let negative_policy =
            FreshnessPolicy { negative: Some(MINUTE / 6), stale_while_revalidate: MINUTE, ..policy() };
        assert_eq!(negative(negative_policy, Keep::AsTheGroup), Some(Times::until(1000, 11_000)), "never stale");
    }

    /// Checks the times that `stale_while_revalidate`, `refresh_ahead` and `stale_if_error` give, alone and together.
    #[test]
    fn stale_windows_set_refresh_serve_and_keep_times() {
        let swr = FreshnessPolicy { stale_while_revalidate: MINUTE, ..policy() };
        let all = |refresh_at_ms, serve_until_ms, keep_until_ms| Times {
            as_of_ms: 1000,
            refresh_at_ms,
            fresh_until_ms: 61_000,
            serve_until_ms,
            keep_until_ms,
            checked: 0,
        };
        assert_eq!(times(&swr, Keep::AsTheGroup), all(61_000, 121_000, 121_000));
        let all_windows = FreshnessPolicy { refresh_ahead: MINUTE / 6, stale_if_error: MINUTE * 10, ..swr };
        assert_eq!(times(&all_windows, Keep::AsTheGroup), all(51_000, 121_000, 661_000));
        let early = FreshnessPolicy { refresh_ahead: MINUTE * 5, ..policy() };
        assert_eq!(times(&early, Keep::AsTheGroup), all(31_000, 61_000, 61_000), "not in the first half");
        let error = FreshnessPolicy { stale_if_error: MINUTE, ..policy() };
        assert_eq!(times(&error, Keep::AsTheGroup), all(NEVER, 61_000, 121_000));
    }

    /// Checks that a value of another node keeps its age and its remaining time, within the limits of this node.
    #[test]
    fn handed_over_value_keeps_age_and_remaining_time() {
        let policy = FreshnessPolicy {
            stale_while_revalidate: MINUTE,
            refresh_ahead: MINUTE / 6,
            max_time_to_live: Some(MINUTE * 3),
            ..policy()
        };
        let now_ms = 1_000_000;
        let handed = |age_ms, remaining_ms, limit| policy.of_handover(age_ms, remaining_ms, now_ms, limit);
        assert_eq!(
            handed(20_000, Some(40_000), None),
            Some(Times {
                as_of_ms: 980_000,
                refresh_at_ms: 1_030_000,
                fresh_until_ms: 1_040_000,
                serve_until_ms: 1_100_000,
                keep_until_ms: 1_100_000,
                checked: 0,
            })
        );
        assert_eq!(handed(20_000, Some(0), None), None, "stale");
        assert_eq!(
            handed(20_000, None, None).map(|times| times.fresh_until_ms),
            Some(1_160_000),
            "the maximum of this node"
        );
        assert_eq!(handed(180_000, None, None), None);
        let limit = Some(Duration::from_secs(5));
        assert_eq!(
            handed(20_000, Some(40_000), limit),
            Some(Times::until(980_000, 1_005_000)),
            "a third node owns the key"
        );
        assert_eq!(handed(20_000, Some(3_000), limit), Some(Times::until(980_000, 1_003_000)));
        let forever = FreshnessPolicy::default().of_handover(20_000, None, now_ms, None);
        assert_eq!(forever, Some(Times::until(980_000, NEVER)));
    }

    /// Checks that the limit for a key of another node overrides all windows of the group.
    #[test]
    fn value_of_another_owner_is_kept_short_and_never_stale() {
        let policy = FreshnessPolicy {
            stale_while_revalidate: MINUTE,
            stale_if_error: MINUTE,
            refresh_ahead: MINUTE / 6,
            ..policy()
        };
        let limit = Some(Duration::from_secs(5));
        for keep in [Keep::AsTheGroup, Keep::Forever] {
            assert_eq!(policy.times(keep, true, 1000, 0.0, limit), Some(Times::until(1000, 6000)));
        }
    }
}
