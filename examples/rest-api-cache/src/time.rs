//! Wall clock: for ages that clients receive and times that the upstream sends, and for nothing else.

/// Returns the microseconds since 1970. Processes of a cluster compare these times, so an age is as accurate as their
/// clocks.
pub(crate) fn now_us() -> u64 {
    #[expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "an age that crosses processes")]
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
