//! Lines of the log about what anyone outside can cause any number of times: a few per second, and a count of the rest.

use std::time::Duration;

use tokio::time::Instant;

use crate::runtime::sync::Mutex;

/// A reader of the log sees what goes on, and the log stays readable.
const PER_SECOND: u32 = 10;

#[derive(Debug, Default)]
pub(crate) struct LogRateLimit(Mutex<Second>);

#[derive(Debug, Default)]
struct Second {
    begun: Option<Instant>,
    written: u32,
    suppressed: u64,
}

impl LogRateLimit {
    /// Writes a line, unless there were enough in this second. It is told how many were left out before it.
    pub(crate) fn write(&self, line: impl FnOnce(u64)) {
        if let Some(suppressed) = self.take(Instant::now()) {
            line(suppressed);
        }
    }

    fn take(&self, now: Instant) -> Option<u64> {
        let mut second = self.0.lock();
        if second.begun.is_none_or(|begun| now.duration_since(begun) >= Duration::from_secs(1)) {
            (second.begun, second.written) = (Some(now), 0);
        }
        if second.written >= PER_SECOND {
            second.suppressed += 1;
            return None;
        }
        second.written += 1;
        Some(std::mem::take(&mut second.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_a_second_and_then_how_many_there_were() {
        let (lines, begun) = (LogRateLimit::default(), Instant::now());
        let written = |at: Instant| (0..25).filter_map(|_| lines.take(at)).collect::<Vec<_>>();
        assert_eq!(written(begun), [0; 10]);
        assert_eq!(written(begun + Duration::from_secs(1))[0], 15);
    }
}
