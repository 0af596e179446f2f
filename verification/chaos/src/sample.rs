//! What a node says of itself, five times a second, as a line of JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Histogram;

/// What happened since the line before, and how things stand.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    /// When, in milliseconds of the machine's clock.
    pub at: u64,
    /// How long the gets took that ended.
    pub gets: Histogram,
    /// Some of the gets that took longer than a silent peer may keep them, and who was to answer.
    pub slow: Vec<String>,
    /// Gets that failed, by what the error is and who owns the key.
    pub failed: BTreeMap<String, u64>,
    /// Calls of the loader, by key.
    pub loaded: BTreeMap<String, u64>,
    /// Writes and their kin, by what came of them.
    pub writes: BTreeMap<String, u64>,
    /// Values that were older than a write that had reached everyone.
    pub stale: Vec<String>,
    /// Gets that have not ended.
    pub waiting: u64,
    /// Requests that peers have not answered.
    pub requests: usize,
    /// Loads that run or wait.
    pub loads: usize,
    /// Members that own keys and can be reached, itself included.
    pub reachable: usize,
    /// Of its ring.
    pub fingerprint: u64,
    /// Accounted bytes of its largest group.
    pub bytes: u64,
    /// What that may have.
    pub capacity: u64,
    /// Counters of the node since its start.
    pub counters: BTreeMap<String, u64>,
}
