//! Runtime: the clock, locks, maps, counters, buffers and rate limits that the other modules use.

pub(crate) mod backoff;
pub(crate) mod byte_budget;
pub(crate) mod clock;
pub(crate) mod histogram;
pub(crate) mod log_limit;
pub(crate) mod measurement;
pub(crate) mod memory_limit;
pub(crate) mod off_thread;
pub(crate) mod seed;
pub(crate) mod small_bytes;
pub mod stats;
pub(crate) mod sync;
pub(crate) mod timers;
pub(crate) mod token_bucket;
