//! Fallback budget: a bound on second attempts within gets, so that a fault which makes every request fail does not
//! double the load on the nodes that are left.

use tokio::time::Instant;

use crate::{
    limits::{FALLBACK_PER_SECOND, FALLBACK_SHARE},
    runtime::{sync::Mutex, token_bucket::TokenBucket},
};

/// A budget of second attempts: some per second, and a share of all requests.
#[derive(Debug)]
pub(crate) struct FallbackBudget(Mutex<Budget>);

#[derive(Debug)]
struct Budget {
    bucket: TokenBucket,
    /// Number of requests that have added their share.
    requests: u64,
}

impl Default for FallbackBudget {
    fn default() -> Self {
        let per_second = f64::from(FALLBACK_PER_SECOND);
        Self(Mutex::new(Budget { bucket: TokenBucket::new(per_second, per_second), requests: 0 }))
    }
}

impl FallbackBudget {
    /// Takes one attempt and returns whether it is allowed; `requests` is the number of requests sent so far.
    pub(crate) fn take(&self, now: Instant, requests: u64) -> bool {
        let mut budget = self.0.lock();
        let new_requests = requests.saturating_sub(budget.requests);
        // `add` does not cut the share of a busy second to the burst.
        budget.bucket.add(new_requests as f64 / f64::from(FALLBACK_SHARE), now);
        // The sum of a counter's cells may step back, because other threads add while it is read.
        budget.requests = budget.requests.max(requests);
        budget.bucket.take(now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Checks that ten second attempts are allowed per second, and one more for each ten requests.
    #[test]
    fn second_attempts_are_a_tenth_and_ten_a_second() {
        let (budget, begun) = (FallbackBudget::default(), Instant::now());
        let mut taken = (0..100).filter(|_| budget.take(begun, 0)).count();
        assert_eq!(taken, 10);
        let later = begun + Duration::from_millis(500);
        taken = (0..100).filter(|_| budget.take(later, 0)).count();
        assert_eq!(taken, 5);
        taken = (0..10_000).filter(|n| budget.take(later, n * 2)).count();
        assert!((1900..=2100).contains(&taken), "{taken} of 20,000 requests");
    }
}
