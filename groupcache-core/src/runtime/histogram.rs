//! How long things took: a histogram whose buckets grow with what they hold.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Buckets in each doubling, as a power of two: a time is known to a quarter.
const FINENESS: u32 = 2;
const PER_DOUBLING: usize = 1 << FINENESS;

/// The last bucket ends at 2^37 microseconds, a day and a half.
const BUCKETS: usize = 36 * PER_DOUBLING;

/// Live times, in microseconds. Adding one is an atomic or two.
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

/// Below four microseconds each has a bucket of its own.
fn bucket_of(us: u64) -> usize {
    let Some(doubling) = us.checked_ilog2().filter(|doubling| *doubling >= FINENESS) else { return us as usize };
    let within = (us >> (doubling - FINENESS)) as usize % PER_DOUBLING;
    ((doubling - FINENESS + 1) as usize * PER_DOUBLING + within).min(BUCKETS - 1)
}

/// Where a bucket ends, in microseconds; what is in it is shorter.
fn end_of(bucket: usize) -> u64 {
    match bucket / PER_DOUBLING {
        0 => bucket as u64 + 1,
        doubling => ((PER_DOUBLING + bucket % PER_DOUBLING + 1) as u64) << (doubling - 1),
    }
}

/// How long things took, each known to a quarter; from microseconds to a day.
///
/// ```
/// # fn f(users: groupcache_core::Group<String>) {
/// let loads = users.load_latencies();
/// println!("{} loads, half within {:?}, 99 of 100 within {:?}", loads.count(), loads.quantile(0.5), loads.quantile(0.99));
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Latencies {
    counts: Box<[u64]>,
    sum_us: u64,
}

impl Latencies {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_us)
    }

    /// The time within which this share of them ended, from 0 to 1: the end of the bucket that it falls into. Zero when
    /// there were none.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = (self.count() as f64 * share.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        let within = self.iter().find(|(_, count)| {
            seen += count;
            seen >= rank
        });
        within.map_or(Duration::ZERO, |(end, _)| end)
    }

    /// The buckets that hold something: where each ends, and how many are in it and in none before. For exporters.
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
    fn buckets_follow_each_other_and_hold_what_is_shorter_than_their_end() {
        for bucket in 0..BUCKETS - 1 {
            assert_eq!(bucket_of(end_of(bucket) - 1), bucket);
            assert_eq!(bucket_of(end_of(bucket)), bucket + 1);
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert!(Duration::from_micros(end_of(BUCKETS - 1)) > Duration::from_secs(86_400));
    }

    #[test]
    fn quantiles_are_at_most_a_quarter_too_long() {
        let live = Histogram::new();
        assert_eq!(live.snapshot().quantile(0.5), Duration::ZERO);
        (1..=1000).for_each(|ms| live.add(Duration::from_millis(ms)));
        let latencies = live.snapshot();
        assert_eq!(latencies.count(), 1000);
        assert_eq!(latencies.sum(), Duration::from_millis(500_500));
        for (share, ms) in [(0.001, 1), (0.5, 500), (0.99, 990), (1.0, 1000)] {
            let (exact, told) = (Duration::from_millis(ms), latencies.quantile(share));
            assert!(told > exact && told <= exact * 5 / 4 + Duration::from_micros(1), "{share}: {told:?}");
        }
        live.add(Duration::MAX);
        assert_eq!(live.snapshot().quantile(1.0), Duration::from_micros(end_of(BUCKETS - 1)));
    }
}
