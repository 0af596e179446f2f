//! Token bucket: a rate limit that allows a burst and, for some uses, a debt.

use std::time::Duration;

use tokio::time::Instant;

/// Maximum wait for a debt, so that a rate close to zero does not overflow an `Instant`.
const MAX_DEBT: Duration = Duration::from_secs(86_400);

/// Rate limit: tokens are earned at a rate, saved up to a burst, and may be spent in advance.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    per_second: f64,
    burst: f64,
    /// Number of tokens that are left. A negative number is a debt.
    tokens: f64,
    at: Option<Instant>,
}

impl TokenBucket {
    /// Makes a full bucket that earns `per_second` tokens and saves up to `burst` of them.
    pub(crate) fn new(per_second: f64, burst: f64) -> Self {
        Self { per_second, burst, tokens: burst, at: None }
    }

    fn earn(&mut self, now: Instant) {
        let earned = self.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64() * self.per_second);
        self.tokens = (self.tokens + earned).min(self.burst.max(self.tokens));
        self.at = Some(now);
    }

    /// Takes a token and returns whether there was one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.earn(now);
        let allowed = self.tokens >= 1.0;
        if allowed {
            self.tokens -= 1.0;
        }
        allowed
    }

    /// Adds tokens that were earned otherwise than by time. The sum is cut to the burst, or to `tokens` if that is
    /// more.
    pub(crate) fn add(&mut self, tokens: f64, now: Instant) {
        self.earn(now);
        self.tokens = (self.tokens + tokens).min(self.burst.max(tokens));
    }

    /// Spends tokens in advance and returns the time until the debt of earlier spending is paid.
    pub(crate) fn spend(&mut self, tokens: f64, now: Instant) -> Duration {
        self.earn(now);
        let wait = (-self.tokens / self.per_second).clamp(0.0, MAX_DEBT.as_secs_f64());
        self.tokens -= tokens.min(self.per_second * MAX_DEBT.as_secs_f64());
        Duration::from_secs_f64(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_yields_rate_and_no_more() {
        let (mut bucket, begun) = (TokenBucket::new(100.0, 100.0), Instant::now());
        let mut taken = |ms| (0..1000).filter(|_| bucket.take(begun + Duration::from_millis(ms))).count();
        assert_eq!((taken(0), taken(0), taken(500), taken(10_000)), (100, 0, 50, 100));
    }

    #[test]
    fn spending_waits_for_earlier_spending() {
        let (mut bucket, begun) = (TokenBucket::new(1000.0, 0.0), Instant::now());
        let mut spent = |tokens, ms| bucket.spend(tokens, begun + Duration::from_millis(ms)).as_millis();
        assert_eq!((spent(500.0, 0), spent(20.0, 0), spent(5.0, 520), spent(0.0, 530)), (0, 500, 0, 0));
        let mut slow = TokenBucket::new(1e-300, 0.0);
        assert_eq!(slow.spend(1e300, begun), Duration::ZERO);
        assert!(slow.spend(1.0, begun) <= MAX_DEBT);
    }
}
