//! The pauses between attempts that fail one after the other.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// From `min`, or up to twice as long, to `max`: twice as long each time, and never longer than that.
///
/// Without a seed the jitter comes from a generator of the thread, which no simulation could repeat.
pub(crate) fn pauses(min: Duration, max: Duration, seed: u64) -> impl Iterator<Item = Duration> {
    // The jitter comes on top, and is as long at most.
    let builder = ExponentialBuilder::default().with_min_delay(min).with_max_delay(max / 2);
    builder.without_max_times().with_jitter().with_jitter_seed(seed).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_not_beyond() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(30));
        for seed in 0..100 {
            let pauses: Vec<_> = pauses(min, max, seed).take(40).collect();
            assert!((min..=2 * min).contains(&pauses[0]), "{pauses:?}");
            assert!(pauses.iter().all(|pause| *pause <= max), "{pauses:?}");
            assert!(pauses[20..].iter().all(|pause| *pause >= max / 2), "{pauses:?}");
        }
    }
}
