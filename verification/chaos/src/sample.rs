//! Sample: the report of a node about itself, written as a line of JSON every 200 ms.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    GROUPS, Histogram,
    settling::{Lack, WriteEvent},
};

/// Events since the previous sample, and the present state.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Time of the sample, in milliseconds of the machine's clock.
    pub at: u64,
    /// Latencies of the gets that ended.
    pub gets: Histogram,
    /// Examples of gets that took longer than a silent peer can delay them, each with an explanation of its key.
    pub slow: Vec<String>,
    /// Gets that failed, by error and owner of the key.
    pub failed: BTreeMap<String, u64>,
    /// Calls of the loader, by key.
    pub loaded: BTreeMap<String, u64>,
    /// Writes and related calls, by outcome.
    pub writes: BTreeMap<String, u64>,
    /// Values that were older than a write that had reached every node.
    pub stale: Vec<String>,
    /// Stages of the writes that are followed until they settle.
    pub settling: Vec<WriteEvent>,
    /// Largest ages of what gets lacked, in each group of [`GROUPS`].
    pub lacks: [Lack; GROUPS.len()],
    /// Number of gets that have not ended.
    pub waiting: u64,
    /// Number of requests that peers have not answered.
    pub requests: usize,
    /// Number of loads that run or wait.
    pub loads: usize,
    /// Number of members that own keys and are reachable, including the node itself.
    pub reachable: usize,
    /// Fingerprint of the ring.
    pub fingerprint: u64,
    /// Accounted bytes of the largest group.
    pub bytes: u64,
    /// Budget of the largest group, in bytes.
    pub capacity: u64,
    /// Counters of the node since its start.
    pub counters: BTreeMap<String, u64>,
}
