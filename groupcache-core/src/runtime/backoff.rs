//! Backoff: the growing pauses between failing attempts.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// Returns pauses that double from `min` on, with jitter, and never exceed `max`.
///
/// The first pause is `min` to 2 × `min`, and the longest ones are `max` ÷ 2 to `max`. The seed makes the jitter
/// repeatable in a simulation; otherwise the jitter would come from a generator of the thread.
pub(crate) fn pauses(min: Duration, max: Duration, seed: u64) -> impl Iterator<Item = Duration> {
    // The jitter is added to a pause and is at most as long as the pause, so that `max / 2` bounds the pause without
    // it.
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
