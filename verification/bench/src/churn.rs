//! Churn: the cost of deploys to the backend and to callers, when the processes of a cluster are replaced under load.
//!
//! Ten processes make gets of their own at a steady rate. The list of processes is a file, as a platform would publish
//! it, which all caches read equally often.

pub mod cluster;
pub mod floor;
pub mod plot;
pub mod pod;
pub mod record;
pub mod scenarios;
pub mod throughput;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

/// Interval at which all caches read the file of peers.
pub const LOOK: Duration = Duration::from_millis(200);

/// Interval between two samples of a process.
pub const SAMPLE: Duration = Duration::from_millis(250);

/// A cache that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CacheKind {
    /// Nodes of this project, as users get them.
    ThisCrate,
    /// Nodes of this project without hand-over and previous-owner reads, as every other groupcache works.
    Classic,
    /// The crate `groupcache` 0.3.
    GroupcacheRs,
}

impl CacheKind {
    /// All caches.
    pub const ALL: [Self; 3] = [Self::ThisCrate, Self::Classic, Self::GroupcacheRs];

    /// Returns the name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::ThisCrate => "ours",
            Self::Classic => "ours, hand-over off",
            Self::GroupcacheRs => "groupcache 0.3",
        }
    }
}

/// Settings that all processes of a cluster share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Cache of the processes.
    pub kind: CacheKind,
    /// Path of the file of peers.
    pub peers: PathBuf,
    /// Number of keys.
    pub keys: usize,
    /// Exponent of Zipf's law.
    pub exponent: f64,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// Time to live of a value, in seconds.
    pub lasts: f64,
    /// Gets per second of all processes together.
    pub rate: f64,
    /// Removes per second of all processes together.
    pub removes: f64,
}

/// A process of the cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pod {
    /// Settings of the cluster.
    pub settings: Settings,
    /// Name of the process.
    pub id: String,
    /// Address on which the process listens.
    pub listen: SocketAddr,
}

impl Settings {
    /// Returns the gets per second of the key of each rank.
    pub fn rates(&self) -> impl Iterator<Item = f64> {
        let weight = |rank: usize| (rank as f64).powf(-self.exponent);
        let all: f64 = (1..=self.keys).map(weight).sum();
        (1..=self.keys).map(move |rank| self.rate * weight(rank) / all)
    }

    /// Returns the share of time for which a key is in memory at this rate of gets.
    pub fn resident(&self, rate: f64) -> f64 {
        self.lasts / (self.lasts + 1.0 / rate)
    }

    /// Returns the loads per second without a deploy. Each key is loaded once per time to live of its value and the
    /// time until its next get.
    pub fn expected_loads(&self) -> f64 {
        self.rates().map(|rate| 1.0 / (self.lasts + 1.0 / rate)).sum()
    }
}

/// Events of a process since its previous sample, and its totals.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Number of calls of the loader.
    pub loads: u64,
    /// Number of gets that failed.
    pub failed: u64,
    /// Error of the first get that failed.
    pub why: Option<String>,
    /// Number of removes.
    pub removes: u64,
    /// Number of removes that did not reach every node.
    pub unheard: u64,
    /// Latency of each get that ended, in microseconds.
    pub micros: Vec<u32>,
    /// Totals since the start of the process.
    pub total: Total,
}

/// Totals of a process since its start. The crate `groupcache` reports only its processor time.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Total {
    /// Number of entries that the process owns.
    pub entries: u64,
    /// Bytes of values that the process sent in hand-overs.
    pub moved_bytes: u64,
    /// Number of previous-owner reads before loads.
    pub previous_owner_reads: u64,
    /// Number of previous-owner reads that found the value.
    pub previous_owner_hits: u64,
    /// Number of entries that the process received in pages.
    pub handover_received: u64,
    /// Processor time in nanoseconds.
    pub nanoseconds: u64,
}

impl std::ops::AddAssign for Total {
    fn add_assign(&mut self, other: Self) {
        self.entries += other.entries;
        self.moved_bytes += other.moved_bytes;
        self.previous_owner_reads += other.previous_owner_reads;
        self.previous_owner_hits += other.previous_owner_hits;
        self.handover_received += other.handover_received;
        self.nanoseconds += other.nanoseconds;
    }
}
