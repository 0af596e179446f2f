//! How fast values change hands, and what that takes from gets: one of two processes leaves that have much.

use std::path::Path;

use super::{
    Settings, Who,
    cluster::{Cluster, pause},
};
use crate::Result;

/// Long enough for a steady figure of what gets take.
const STEADY: std::time::Duration = std::time::Duration::from_secs(5);

/// Sizes of values that it is measured with.
pub const SIZES: [usize; 3] = [1 << 10, 16 << 10, 64 << 10];

/// Of values on the one that leaves, about.
pub const LEFT_BYTES: usize = 500_000_000;

/// Of values on the two together.
const ALL_BYTES: usize = 2 * LEFT_BYTES;

/// Nothing expires.
const LASTS: f64 = 1e7;

/// What a hand-over came to.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Throughput {
    /// Of each value.
    pub value_bytes: usize,
    /// Of values, on the process that left.
    pub left_bytes: u64,
    /// Of values, that others took over.
    pub moved_bytes: u64,
    /// From SIGTERM to its end.
    pub seconds: f64,
    /// Of processor, in that time, of both, beyond what gets take.
    pub used_seconds: f64,
}

/// Measures it once, with values of one size. Gets bring as many bytes a second whatever that is.
///
/// # Errors
/// When a process does not start or end.
pub fn measure(settings: &Settings, value_bytes: usize, scratch: &Path) -> Result<Throughput> {
    let settings = Settings {
        who: Who::Ours,
        peers: scratch.join("peers"),
        keys: ALL_BYTES / value_bytes,
        value_bytes,
        rate: settings.rate * settings.value_bytes as f64 / value_bytes as f64,
        exponent: 0.0, // all alike, so that all are there
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
    pause(STEADY / 10); // the last that the other one says of that time
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
