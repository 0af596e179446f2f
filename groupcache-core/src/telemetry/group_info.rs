//! Facts of one group.

use std::{sync::Arc, time::Duration};

use crate::runtime::stats::{GroupStats, Latencies};

/// Facts of a group on one node at one moment; see [`Node::groups`](crate::Node::groups).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GroupInfo {
    /// Name of the group.
    pub name: Arc<str>,
    /// Version of the encoding of the group's values.
    pub format: u32,
    /// Counters since the group was built.
    pub stats: GroupStats,
    /// Accounted bytes of the entries: keys, encoded and decoded values, and overhead.
    pub bytes: u64,
    /// Budget in bytes.
    pub capacity_bytes: u64,
    /// Weight of the heaviest entry that is kept, in bytes.
    pub max_entry_bytes: u64,
    /// Number of entries that are no replicas, including expired ones that were not swept yet.
    pub owned_entries: usize,
    /// Number of replicas of hot values that other nodes own.
    pub replicas: usize,
    /// Latencies of the calls of the loader, including failed calls.
    pub load_latencies: Latencies,
    /// Latencies of the responses of other nodes to gets of this node, including their loads.
    pub peer_latencies: Latencies,
    /// Ages of the entries that were evicted for want of room, since the time up to which their values contain every
    /// write, which usually is that of their load.
    pub eviction_ages: Latencies,
    /// Maximum time of a load, with its retries.
    pub load_deadline: Duration,
    /// Time since the beginning of the oldest load that has not ended; `None` if nothing is loaded. The time includes the
    /// wait for a permit.
    pub oldest_load: Option<Duration>,
}
