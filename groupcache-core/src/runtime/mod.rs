//! What the rest runs on: clock, locks, counters, limits of rates.

pub(crate) mod backoff;
pub(crate) mod clock;
pub(crate) mod histogram;
pub(crate) mod log_limit;
pub(crate) mod small_bytes;
pub mod stats;
pub(crate) mod sync;
pub(crate) mod token_bucket;
