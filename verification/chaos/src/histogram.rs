//! Latencies in buckets that a quarter of their value separates at most.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

/// Buckets for each doubling.
const STEPS: u32 = 4;

/// How many gets took how long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram(BTreeMap<u32, u64>);

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(STEPS.into());
        let doubling = micros.ilog2();
        let step = u32::try_from((micros >> (doubling - STEPS.ilog2())) & u64::from(STEPS - 1)).unwrap_or(0);
        *self.0.entry(doubling * STEPS + step).or_default() += 1;
    }

    /// Adds all of another one.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.0 {
            *self.0.entry(*bucket).or_default() += count;
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// What so many of a thousand did not exceed, in microseconds, rounded up to the end of a bucket; 0 of none.
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

    #[test]
    fn a_quantile_is_at_most_a_quarter_above_what_was_counted() {
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
