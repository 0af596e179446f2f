//! How fast values change hands, and what that takes from gets: one of two processes leaves that have much.

use std::path::Path;

use super::{
    Settings, Who,
    cluster::{Cluster, pause},
};
use crate::Result;

/// Long enough for a steady figure of what gets take.
const STEADY: std::time::Duration = std::time::Duration::from_secs(5);

/// Half a gigabyte on each of the two.
const KEYS: usize = 1_000_000;

/// Nothing expires.
const LASTS: f64 = 1e7;

/// What a hand-over came to.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Throughput {
    /// Of values, on the process that left.
    pub left_bytes: u64,
    /// Of values, that others took over.
    pub moved_bytes: u64,
    /// From SIGTERM to its end.
    pub seconds: f64,
    /// Of processor, in that time, of both, beyond what gets take.
    pub used_seconds: f64,
}

/// Measures it once.
///
/// # Errors
/// When a process does not start or end.
pub fn measure(settings: &Settings, scratch: &Path) -> Result<Throughput> {
    let settings = Settings {
        who: Who::Ours,
        peers: scratch.join("peers"),
        keys: KEYS,
        exponent: 0.0, // all alike, so that all are there
        lasts: LASTS,
        ..settings.clone()
    };
    let value_bytes = settings.value_bytes as u64;
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
        left_bytes: left * value_bytes,
        moved_bytes: after.moved_bytes - from.1.moved_bytes,
        seconds,
        used_seconds: (after.nanoseconds - from.1.nanoseconds) as f64 / 1e9 - steady * (cluster.record.now() - from.0),
    })
}
