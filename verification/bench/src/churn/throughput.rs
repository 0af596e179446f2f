//! Throughput: the rate of hand-overs and their cost in processor time, when one of two full processes leaves.

use std::path::Path;

use super::{
    CacheKind, Settings,
    cluster::{Cluster, pause},
};
use crate::Result;

/// Time for which the processor time of gets alone is measured.
const STEADY: std::time::Duration = std::time::Duration::from_secs(5);

/// Sizes of values, in bytes.
pub const SIZES: [usize; 3] = [1 << 10, 16 << 10, 64 << 10];

/// Bytes of values on the process that leaves, approximately.
pub const LEFT_BYTES: usize = 500_000_000;

/// Bytes of values on both processes.
const ALL_BYTES: usize = 2 * LEFT_BYTES;

/// Time to live in seconds, so long that nothing expires.
const LASTS: f64 = 1e7;

/// Result of a hand-over.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Throughput {
    /// Bytes of each value.
    pub value_bytes: usize,
    /// Bytes of values on the process that left.
    pub left_bytes: u64,
    /// Bytes of values that were sent in the hand-over.
    pub moved_bytes: u64,
    /// Seconds from SIGTERM to the end of the process.
    pub seconds: f64,
    /// Processor time of both processes in that time beyond the processor time of gets, in seconds.
    pub used_seconds: f64,
}

/// Measures once with values of one size. Gets read the same number of bytes per second for all sizes.
///
/// # Errors
/// An error if a process does not start or end.
pub fn measure(settings: &Settings, value_bytes: usize, scratch: &Path) -> Result<Throughput> {
    let settings = Settings {
        kind: CacheKind::ThisCrate,
        peers: scratch.join("peers"),
        keys: ALL_BYTES / value_bytes,
        value_bytes,
        rate: settings.rate * settings.value_bytes as f64 / value_bytes as f64,
        exponent: 0.0, // all keys are equally likely, so that all are in memory
        lasts: LASTS,
        ..settings.clone()
    };
    let mut cluster = Cluster::start(settings, 2)?;
    pause(STEADY / 5);
    let begun = (cluster.record.now(), cluster.record.total());
    pause(STEADY);
    let from = (cluster.record.now(), cluster.record.total());
    let names = cluster.names();
    let left = cluster.end(names.get(1..).unwrap_or_default())?;
    let seconds = cluster.record.now() - from.0;
    pause(STEADY / 10); // the last sample of the other process for that time
    let after = cluster.record.total();
    let steady = (from.1.nanoseconds - begun.1.nanoseconds) as f64 / 1e9 / (from.0 - begun.0);
    Ok(Throughput {
        value_bytes,
        left_bytes: left * value_bytes as u64,
        moved_bytes: after.moved_bytes - from.1.moved_bytes,
        seconds,
        used_seconds: (after.nanoseconds - from.1.nanoseconds) as f64 / 1e9 - steady * (cluster.record.now() - from.0),
    })
}
