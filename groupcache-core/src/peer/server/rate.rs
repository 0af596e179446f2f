//! So many a second, and as many at once as a second allows.

use tokio::time::Instant;

/// What is left of the allowance of a second.
#[derive(Debug)]
pub(crate) struct Rate {
    left: f64,
    at: Option<Instant>,
}

impl Rate {
    pub(crate) fn new() -> Self {
        Self { left: 0.0, at: None }
    }

    /// Whether one more is allowed now.
    pub(crate) fn take(&mut self, per_second: u32, now: Instant) -> bool {
        let max = f64::from(per_second);
        let earned = self.at.map_or(max, |at| now.duration_since(at).as_secs_f64() * max);
        self.left = (self.left + earned).min(max);
        self.at = Some(now);
        let allowed = self.left >= 1.0;
        if allowed {
            self.left -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_second_has_its_allowance_and_no_more() {
        let (mut rate, begun) = (Rate::new(), Instant::now());
        let mut taken = |ms| (0..1000).filter(|_| rate.take(100, begun + Duration::from_millis(ms))).count();
        assert_eq!((taken(0), taken(0), taken(500), taken(10_000)), (100, 0, 50, 100));
    }
}
