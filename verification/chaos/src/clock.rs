//! Clock: the monotonic clock of the machine, which all its processes share.

use rustix::time::{ClockId, clock_gettime};

/// Returns the nanoseconds since a moment that is equal for all processes.
pub fn nanoseconds() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Returns the milliseconds since the moment of [`nanoseconds`].
pub fn milliseconds() -> u64 {
    nanoseconds() / 1_000_000
}
