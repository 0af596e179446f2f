//! The wall clock, for what is said to clients and by the upstream: ages and times of day. It decides nothing else.

/// Microseconds since 1970. Processes of a cluster compare them: an age is as right as their clocks are.
pub(crate) fn now_us() -> u64 {
    #[expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "an age that crosses processes")]
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
