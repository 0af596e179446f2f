//! Log limit: a bound on the log lines that a remote client can cause any number of times.

use tokio::time::Instant;

use crate::runtime::{sync::Mutex, token_bucket::TokenBucket};

/// Maximum number of lines of one kind per second, so that the log stays readable.
const PER_SECOND: f64 = 10.0;

/// Rate limit of the log lines of one kind, with the number of suppressed lines.
#[derive(Debug)]
pub(crate) struct LogRateLimit(Mutex<(TokenBucket, u64)>);

impl Default for LogRateLimit {
    fn default() -> Self {
        Self(Mutex::new((TokenBucket::new(PER_SECOND, PER_SECOND), 0)))
    }
}

impl LogRateLimit {
    /// Calls `line` to write a line, unless the limit is reached. `line` receives the number of lines that were
    /// suppressed since the previous line.
    pub(crate) fn write(&self, line: impl FnOnce(u64)) {
        if let Some(suppressed) = self.take(Instant::now()) {
            line(suppressed);
        }
    }

    /// Returns the number of suppressed lines if a line may be written.
    fn take(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        let (bucket, suppressed) = &mut *state;
        if !bucket.take(now) {
            *suppressed += 1;
            return None;
        }
        Some(std::mem::take(suppressed))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn lines_beyond_ten_per_second_are_counted() {
        let (lines, begun) = (LogRateLimit::default(), Instant::now());
        let written = |at: Instant| (0..25).filter_map(|_| lines.take(at)).collect::<Vec<_>>();
        assert_eq!(written(begun), [0; 10]);
        assert_eq!(written(begun + Duration::from_secs(1))[0], 15);
    }
}
