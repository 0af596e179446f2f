//! Histogram: counts of durations in buckets that grow with the duration.

use std::{
    fmt,
    ops::RangeInclusive,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::runtime::measurement::Distribution;

/// Binary logarithm of the number of buckets in each doubling. With 4 buckets, a duration is known to 25 %.
const FINENESS: u32 = 2;
const PER_DOUBLING: usize = 1 << FINENESS;

/// Number of buckets. The last bucket ends at 2^37 µs, which is 38 hours.
const BUCKETS: usize = 36 * PER_DOUBLING;

/// Live counts of durations in microseconds. Adding a duration takes two atomic additions.
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum_us: AtomicU64::new(0) }
    }

    pub(crate) fn add(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get(bucket_of(us)) {
            bucket.fetch_add(1, Relaxed);
        }
        self.sum_us.fetch_add(us, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Latencies {
        let counts = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        Latencies { counts, sum_us: self.sum_us.load(Relaxed) }
    }
}

/// Returns the bucket of a duration. Below 4 µs, each microsecond has its own bucket.
fn bucket_of(us: u64) -> usize {
    let Some(doubling) = us.checked_ilog2().filter(|doubling| *doubling >= FINENESS) else { return us as usize };
    let within = (us >> (doubling - FINENESS)) as usize % PER_DOUBLING;
    ((doubling - FINENESS + 1) as usize * PER_DOUBLING + within).min(BUCKETS - 1)
}

/// Returns the end of a bucket in microseconds. The durations in the bucket are shorter.
fn end_of(bucket: usize) -> u64 {
    match bucket / PER_DOUBLING {
        0 => bucket as u64 + 1,
        doubling => ((PER_DOUBLING + bucket % PER_DOUBLING + 1) as u64) << (doubling - 1),
    }
}

/// Distribution of durations from 1 µs to 38 hours, with an error of at most 25 %.
///
/// ```
/// # fn f(users: groupcache_core::Group<String>) {
/// let loads = users.inspect().load_latencies();
/// println!("{} loads, half within {:?}, 99 of 100 within {:?}", loads.count(), loads.quantile(0.5), loads.quantile(0.99));
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Latencies {
    counts: Box<[u64]>,
    sum_us: u64,
}

impl Latencies {
    /// Returns the number of durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the sum of all durations.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_us)
    }

    /// Returns the duration that a share of all durations does not exceed: the end of the bucket of that quantile.
    ///
    /// Range of `share`: 0 to 1; other numbers are cut to this range. Without any duration the result is zero.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = (self.count() as f64 * share.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut counted = 0;
        let within = self.iter().find(|(_, count)| {
            counted += count;
            counted >= rank
        });
        within.map_or(Duration::ZERO, |(end, _)| end)
    }

    /// Returns the durations in buckets that end at powers of two microseconds, each `step`-th of `powers`. The fold is
    /// exact, because each such end is the end of a bucket here. Range of a power: 2 to 36.
    pub(crate) fn folded(&self, powers: RangeInclusive<u32>, step: usize) -> Distribution {
        let mut below = 0;
        let buckets = powers.step_by(step).map(|power| {
            let shorter: u64 = self.counts.iter().take(bucket_of(1 << power)).sum();
            let within = shorter - std::mem::replace(&mut below, shorter);
            (Duration::from_micros(1 << power), within)
        });
        Distribution { buckets: buckets.collect(), sum: self.sum(), count: self.count() }
    }

    /// Returns the end of each bucket that is not empty, and the number of durations in that bucket alone.
    ///
    /// Two nodes have different buckets. For an exporter, [`Node::measure`](crate::Node::measure) has fixed ones.
    pub fn iter(&self) -> impl Iterator<Item = (Duration, u64)> {
        let buckets = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        buckets.map(|(bucket, count)| (Duration::from_micros(end_of(bucket)), *count))
    }
}

impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut latencies = f.debug_struct("Latencies");
        latencies.field("count", &self.count()).field("p50", &self.quantile(0.5)).field("p99", &self.quantile(0.99));
        latencies.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_contiguous_and_exclude_their_end() {
        for bucket in 0..BUCKETS - 1 {
            assert_eq!(bucket_of(end_of(bucket) - 1), bucket);
            assert_eq!(bucket_of(end_of(bucket)), bucket + 1);
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert!(Duration::from_micros(end_of(BUCKETS - 1)) > Duration::from_secs(86_400));
    }

    #[test]
    fn quantile_is_at_most_25_percent_too_long() {
        let live = Histogram::new();
        assert_eq!(live.snapshot().quantile(0.5), Duration::ZERO);
        (1..=1000).for_each(|ms| live.add(Duration::from_millis(ms)));
        let latencies = live.snapshot();
        assert_eq!(latencies.count(), 1000);
        assert_eq!(latencies.sum(), Duration::from_millis(500_500));
        for (share, ms) in [(0.001, 1), (0.5, 500), (0.99, 990), (1.0, 1000)] {
            let (exact, reported) = (Duration::from_millis(ms), latencies.quantile(share));
            assert!(reported > exact && reported <= exact * 5 / 4 + Duration::from_micros(1), "{share}: {reported:?}");
        }
        live.add(Duration::MAX);
        assert_eq!(live.snapshot().quantile(1.0), Duration::from_micros(end_of(BUCKETS - 1)));
    }

    /// Checks that each duration is in the bucket that ends after it, and that none is lost beyond the last end.
    #[test]
    fn folded_buckets_end_at_powers_of_two() {
        let live = Histogram::new();
        for us in [1, 63, 64, 127, 128, 1 << 25, (1 << 26) - 1, 1 << 26, 1 << 40] {
            live.add(Duration::from_micros(us));
        }
        let folded = live.snapshot().folded(6..=26, 1);
        assert_eq!((folded.buckets.len(), folded.count), (21, 9));
        let filled: Vec<_> =
            folded.buckets.iter().filter(|(_, n)| *n > 0).map(|(end, n)| (end.as_micros(), *n)).collect();
        assert_eq!(filled, [(64, 2), (128, 2), (256, 1), (1 << 26, 2)]);
        let folded = live.snapshot().folded(15..=35, 4);
        let ends: Vec<_> = folded.buckets.iter().map(|(end, n)| (end.as_micros().ilog2(), *n)).collect();
        assert_eq!(ends, [(15, 5), (19, 0), (23, 0), (27, 3), (31, 0), (35, 0)]);
    }
}
