//! Histogram: latencies in buckets that are at most a quarter of their lower bound wide.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

/// Number of buckets for each doubling.
const STEPS: u32 = 4;

/// Numbers of gets by latency.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram(BTreeMap<u32, u64>);

impl Histogram {
    /// Counts one latency.
    pub fn add(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(STEPS.into());
        let doubling = micros.ilog2();
        let step = u32::try_from((micros >> (doubling - STEPS.ilog2())) & u64::from(STEPS - 1)).unwrap_or(0);
        *self.0.entry(doubling * STEPS + step).or_default() += 1;
    }

    /// Adds all counts of another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.0 {
            *self.0.entry(*bucket).or_default() += count;
        }
    }

    /// Returns the number of latencies.
    pub fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// Returns the latency in microseconds that `of_thousand` of 1,000 gets did not exceed, rounded up to the end of a
    /// bucket. An empty histogram returns 0.
    pub fn micros(&self, of_thousand: u64) -> u64 {
        let rank = (self.count() * of_thousand).div_ceil(1000);
        let mut seen = 0;
        let mut buckets = self.0.iter();
        let found = buckets.find(|(_, count)| {
            seen += **count;
            seen >= rank
        });
        found.map_or(0, |(bucket, _)| {
            let (doubling, step) = (bucket / STEPS, bucket % STEPS);
            u64::from(STEPS + step + 1) << (doubling - STEPS.ilog2())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Histogram;

    /// Counts 1 to 1,000 µs once and twice, and compares the quantiles with the exact ones.
    #[test]
    fn quantile_is_at_most_a_quarter_above_the_exact_value() {
        let mut all = Histogram::default();
        assert_eq!(all.micros(500), 0);
        for micros in 1..=1000 {
            all.add(Duration::from_micros(micros));
        }
        for (of_thousand, exact) in [(500, 500), (990, 990), (1000, 1000)] {
            let found = all.micros(of_thousand);
            assert!((exact..=exact + exact / 4).contains(&found), "{of_thousand}: {found}");
        }
        let mut twice = all.clone();
        twice.merge(&all);
        assert_eq!((twice.count(), twice.micros(500)), (2000, all.micros(500)));
    }
}
