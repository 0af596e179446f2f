//! Deploys: what it costs the backend, and those who ask, when the processes of a cluster are replaced under load.
//!
//! Ten processes get keys of themselves at a steady rate. Who is there stands in a file, as a platform would publish it:
//! all contestants look at it equally often.

pub mod cluster;
pub mod floor;
pub mod plot;
pub mod pod;
pub mod record;
pub mod scenarios;
pub mod throughput;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

/// How often all contestants look at the file of peers.
pub const LOOK: Duration = Duration::from_millis(200);

/// How often a process says what it did.
pub const SAMPLE: Duration = Duration::from_millis(250);

/// The contestants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Who {
    /// This project, as users get it.
    Ours,
    /// The same without hand-over, and without asking former owners: what every groupcache does.
    Classic,
    /// The crate `groupcache`, 0.3.
    Rival,
}

impl Who {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ours, Self::Classic, Self::Rival];

    /// As it is written in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Classic => "ours, hand-over off",
            Self::Rival => "groupcache 0.3",
        }
    }
}

/// What all processes of a cluster are told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Whose cache it is.
    pub who: Who,
    /// The file of peers.
    pub peers: PathBuf,
    /// All keys.
    pub keys: usize,
    /// Of Zipf's law.
    pub exponent: f64,
    /// Of each value.
    pub value_bytes: usize,
    /// How long a value lives, in seconds.
    pub lasts: f64,
    /// Gets per second of all processes together.
    pub rate: f64,
    /// Keys that are removed per second, by all together.
    pub removes: f64,
}

/// One process of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pod {
    /// What all are told.
    pub settings: Settings,
    /// Its name.
    pub id: String,
    /// Where it listens.
    pub listen: SocketAddr,
}

impl Settings {
    /// How often the key of each rank is asked for in a second.
    pub fn rates(&self) -> impl Iterator<Item = f64> {
        let weight = |rank: usize| (rank as f64).powf(-self.exponent);
        let all: f64 = (1..=self.keys).map(weight).sum();
        (1..=self.keys).map(move |rank| self.rate * weight(rank) / all)
    }

    /// The part of its time that a key is in memory, when it is asked for so often.
    pub fn resident(&self, rate: f64) -> f64 {
        self.lasts / (self.lasts + 1.0 / rate)
    }

    /// Loads per second when nothing happens: each key is loaded once in the time that its value lives and its next get
    /// is waited for.
    pub fn expected_loads(&self) -> f64 {
        self.rates().map(|rate| 1.0 / (self.lasts + 1.0 / rate)).sum()
    }
}

/// What a process did since it said so last, where nothing else is written.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Calls of its loader.
    pub loads: u64,
    /// Gets that failed.
    pub failed: u64,
    /// Why the first get failed.
    pub why: Option<String>,
    /// Keys that were removed.
    pub removes: u64,
    /// Removes that did not reach everyone.
    pub unheard: u64,
    /// Of each get that ended, microseconds.
    pub micros: Vec<u32>,
    /// What it has, and did since it began.
    pub total: Total,
}

/// What a process has, and did since it began. The rival tells only its processor time.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Total {
    /// Entries that it has, as owner.
    pub entries: u64,
    /// Bytes of values that it handed to others.
    pub moved_bytes: u64,
    /// Former owners that it asked for a key before it was loaded.
    pub peeks: u64,
    /// Of those that had it.
    pub peeked: u64,
    /// Entries that it took over in pages.
    pub taken_over: u64,
    /// Processor time.
    pub nanoseconds: u64,
}

impl std::ops::AddAssign for Total {
    fn add_assign(&mut self, other: Self) {
        self.entries += other.entries;
        self.moved_bytes += other.moved_bytes;
        self.peeks += other.peeks;
        self.peeked += other.peeked;
        self.taken_over += other.taken_over;
        self.nanoseconds += other.nanoseconds;
    }
}
