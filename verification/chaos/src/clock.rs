//! The monotonic clock of the machine, which all processes on it share.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since some moment that is the same for every process.
pub fn nanoseconds() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// The same in milliseconds.
pub fn milliseconds() -> u64 {
    nanoseconds() / 1_000_000
}
