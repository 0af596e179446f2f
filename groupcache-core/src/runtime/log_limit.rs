//! Limits of log lines that anyone outside can cause any number of times.

use tokio::time::Instant;

use crate::runtime::{sync::Mutex, token_bucket::TokenBucket};

/// Lines of one kind per second, so that the log stays readable.
const PER_SECOND: f64 = 10.0;

/// A limit of the log lines of one kind.
#[derive(Debug)]
pub(crate) struct LogRateLimit(Mutex<(TokenBucket, u64)>);

impl Default for LogRateLimit {
    fn default() -> Self {
        Self(Mutex::new((TokenBucket::new(PER_SECOND, PER_SECOND), 0)))
    }
}

impl LogRateLimit {
    /// Writes a line, unless there were enough in this second. `line` receives the number of lines that were left out
    /// before it.
    pub(crate) fn write(&self, line: impl FnOnce(u64)) {
        if let Some(suppressed) = self.take(Instant::now()) {
            line(suppressed);
        }
    }

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
    fn ten_lines_a_second_then_a_count_of_the_rest() {
        let (lines, begun) = (LogRateLimit::default(), Instant::now());
        let written = |at: Instant| (0..25).filter_map(|_| lines.take(at)).collect::<Vec<_>>();
        assert_eq!(written(begun), [0; 10]);
        assert_eq!(written(begun + Duration::from_secs(1))[0], 15);
    }
}
