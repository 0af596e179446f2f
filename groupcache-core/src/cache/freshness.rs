//! How long what was loaded is fresh, served and kept.

use std::time::Duration;

use crate::{
    cache::store::Times,
    loader::Keep,
    runtime::clock::{NEVER, later},
};

/// What a group says about the ages of its entries.
#[derive(Clone, Debug)]
pub(crate) struct FreshnessPolicy {
    /// `None` = until evicted.
    pub(crate) time_to_live: Option<Duration>,
    /// What a loader says is cut to this.
    pub(crate) max_time_to_live: Option<Duration>,
    /// The most that is taken off at random, as a share: entries that were loaded together should not expire together.
    pub(crate) jitter: f64,
    /// How long it is remembered that there is nothing; `None` = not at all.
    pub(crate) negative: Option<Duration>,
    pub(crate) stale_while_revalidate: Duration,
    pub(crate) refresh_ahead: Duration,
    pub(crate) stale_if_error: Duration,
    /// How long a copy of what another node owns is served, and what this node no longer owns.
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
    /// How long it is fresh: `None` = not kept, `Some(None)` = for ever. `random` is from 0 to 1.
    fn fresh_for(&self, keep: Keep, is_value: bool, random: f64) -> Option<Option<Duration>> {
        let wanted = match keep {
            Keep::Not => return None,
            Keep::For(time_to_live) => Some(time_to_live),
            Keep::Forever => None,
            Keep::AsTheGroup if is_value => self.time_to_live,
            Keep::AsTheGroup => Some(self.negative?),
        };
        let capped = match (wanted, self.max_time_to_live) {
            (Some(wanted), Some(max)) => Some(wanted.min(max)),
            (wanted, max) => wanted.or(max),
        };
        // What is too long for seconds as a float is long enough without jitter.
        let jittered = |fresh: Duration| {
            Duration::try_from_secs_f64(fresh.as_secs_f64() * (1.0 - self.jitter * random)).unwrap_or(fresh)
        };
        Some(capped.map(|fresh| jittered(fresh).min(fresh)))
    }

    /// All times of an entry that is loaded now. `limit` is for what another node owns: it is kept no longer, and never
    /// stale.
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

    /// The times of a value that was loaded elsewhere, and is this node's own from now on.
    pub(crate) fn of_handover(
        &self,
        age_ms: u64,
        remaining_ms: Option<u64>,
        now_ms: u64,
        limit: Option<Duration>,
    ) -> Option<Times> {
        let loaded_at_ms = now_ms.saturating_sub(age_ms);
        let remaining_ms = remaining_ms.filter(|_| !mutant!(HandedValueLivesAnew));
        let said_ms = remaining_ms.map_or(NEVER, |remaining_ms| now_ms.saturating_add(remaining_ms));
        // The other node may have been told of another longest time.
        let fresh_until_ms = self.max_time_to_live.map_or(said_ms, |max| said_ms.min(later(loaded_at_ms, max)));
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

    /// The longest that values are fresh, as far as the group knows.
    pub(crate) fn longest(&self) -> Option<Duration> {
        // A loader may say longer for one value, up to the latter.
        self.max_time_to_live
    }

    fn of_a_value(&self, loaded_at_ms: u64, fresh_for: Duration) -> Times {
        let fresh_until_ms = later(loaded_at_ms, fresh_for);
        let serve_until_ms = later(fresh_until_ms, self.stale_while_revalidate);
        // Never in the first half of its life, whatever was asked for: that would be a load for each hit.
        let ahead = self.refresh_ahead.min(fresh_for / 2);
        let is_refreshed = !ahead.is_zero() || !self.stale_while_revalidate.is_zero();
        Times {
            loaded_at_ms,
            refresh_at_ms: if is_refreshed { later(loaded_at_ms, fresh_for - ahead) } else { NEVER },
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

    fn ages() -> FreshnessPolicy {
        FreshnessPolicy { time_to_live: Some(MINUTE), ..FreshnessPolicy::default() }
    }

    fn times(ages: &FreshnessPolicy, keep: Keep) -> Times {
        ages.times(keep, true, 1000, 0.0, None).expect("kept")
    }

    #[test]
    fn the_loader_says_how_long_and_the_group_where_it_does_not() {
        assert_eq!(times(&ages(), Keep::AsTheGroup), Times::until(1000, 61_000));
        assert_eq!(times(&ages(), Keep::For(MINUTE * 2)), Times::until(1000, 121_000));
        assert_eq!(times(&ages(), Keep::Forever), Times::until(1000, NEVER));
        assert_eq!(ages().times(Keep::Not, true, 1000, 0.0, None), None);
        let capped = FreshnessPolicy { max_time_to_live: Some(MINUTE / 2), ..ages() };
        for keep in [Keep::AsTheGroup, Keep::For(MINUTE * 2), Keep::Forever] {
            assert_eq!(times(&capped, keep), Times::until(1000, 31_000));
        }
        assert_eq!(times(&capped, Keep::For(MINUTE / 4)), Times::until(1000, 16_000));
    }

    #[test]
    fn jitter_shortens_and_never_lengthens() {
        for (random, until) in [(0.0, 61_000), (0.5, 58_000), (1.0, 55_000)] {
            assert_eq!(ages().times(Keep::AsTheGroup, true, 1000, random, None), Some(Times::until(1000, until)));
        }
    }

    #[test]
    fn that_there_is_nothing_is_remembered_when_it_is_asked_for() {
        let negative = |ages: FreshnessPolicy, keep| ages.times(keep, false, 1000, 0.0, None);
        assert_eq!(negative(ages(), Keep::AsTheGroup), None);
        assert_eq!(negative(ages(), Keep::For(MINUTE)), Some(Times::until(1000, 61_000)), "this loader wants it");
        let ages = FreshnessPolicy { negative: Some(MINUTE / 6), stale_while_revalidate: MINUTE, ..ages() };
        assert_eq!(negative(ages, Keep::AsTheGroup), Some(Times::until(1000, 11_000)), "and never stale");
    }

    #[test]
    fn stale_values_are_served_then_kept_for_errors_and_refreshed_before() {
        let swr = FreshnessPolicy { stale_while_revalidate: MINUTE, ..ages() };
        let all = |refresh_at_ms, serve_until_ms, keep_until_ms| Times {
            loaded_at_ms: 1000,
            refresh_at_ms,
            fresh_until_ms: 61_000,
            serve_until_ms,
            keep_until_ms,
            checked: 0,
        };
        assert_eq!(times(&swr, Keep::AsTheGroup), all(61_000, 121_000, 121_000));
        let all_of_it = FreshnessPolicy { refresh_ahead: MINUTE / 6, stale_if_error: MINUTE * 10, ..swr };
        assert_eq!(times(&all_of_it, Keep::AsTheGroup), all(51_000, 121_000, 661_000));
        let early = FreshnessPolicy { refresh_ahead: MINUTE * 5, ..ages() };
        assert_eq!(times(&early, Keep::AsTheGroup), all(31_000, 61_000, 61_000), "not for each hit");
        let error = FreshnessPolicy { stale_if_error: MINUTE, ..ages() };
        assert_eq!(times(&error, Keep::AsTheGroup), all(NEVER, 61_000, 121_000));
    }

    #[test]
    fn what_was_another_nodes_goes_on_where_it_was() {
        let ages = FreshnessPolicy {
            stale_while_revalidate: MINUTE,
            refresh_ahead: MINUTE / 6,
            max_time_to_live: Some(MINUTE * 3),
            ..ages()
        };
        let now_ms = 1_000_000;
        let handed = |age_ms, remaining_ms, limit| ages.of_handover(age_ms, remaining_ms, now_ms, limit);
        assert_eq!(
            handed(20_000, Some(40_000), None),
            Some(Times {
                loaded_at_ms: 980_000,
                refresh_at_ms: 1_030_000,
                fresh_until_ms: 1_040_000,
                serve_until_ms: 1_100_000,
                keep_until_ms: 1_100_000,
                checked: 0,
            })
        );
        assert_eq!(handed(20_000, Some(0), None), None, "it is stale");
        assert_eq!(
            handed(20_000, None, None).map(|times| times.fresh_until_ms),
            Some(1_160_000),
            "no longer than here"
        );
        assert_eq!(handed(180_000, None, None), None);
        let limit = Some(Duration::from_secs(5));
        assert_eq!(handed(20_000, Some(40_000), limit), Some(Times::until(980_000, 1_005_000)), "a third node's");
        assert_eq!(handed(20_000, Some(3_000), limit), Some(Times::until(980_000, 1_003_000)));
        let forever = FreshnessPolicy::default().of_handover(20_000, None, now_ms, None);
        assert_eq!(forever, Some(Times::until(980_000, NEVER)));
    }

    #[test]
    fn what_another_node_owns_is_kept_for_a_short_time_and_never_stale() {
        let ages = FreshnessPolicy {
            stale_while_revalidate: MINUTE,
            stale_if_error: MINUTE,
            refresh_ahead: MINUTE / 6,
            ..ages()
        };
        let limit = Some(Duration::from_secs(5));
        for keep in [Keep::AsTheGroup, Keep::Forever] {
            assert_eq!(ages.times(keep, true, 1000, 0.0, limit), Some(Times::until(1000, 6000)));
        }
    }
}
