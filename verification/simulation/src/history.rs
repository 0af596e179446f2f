//! History: all events of a run in one order. Each event takes the next number when it begins and when it ends.
//!
//! Machines take turns within a tick, so that the order of the numbers agrees with what was sent and received. The
//! order does not always agree with the clocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
    time::Duration,
};

use groupcache_core::loader::LoadReason;

/// Place in the order, and the time of its tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) n: u64,
    pub(crate) at: Duration,
}

/// Outcome of a load or of a get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    /// A value with its number, which is that of the moment in which its load or its set began.
    Value(u64),
    Nothing,
    Failed,
    TimedOut,
    /// A process has ended while it loaded the key.
    Quarantined,
    /// The node is leaving.
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Load(LoadReason),
    Set,
}

/// A process: a machine, and the number of the start of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Process {
    pub(crate) machine: usize,
    pub(crate) start: u32,
}

/// A load or a set, from which outcomes of gets come.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) key: usize,
    pub(crate) by: Process,
    pub(crate) origin: Origin,
    pub(crate) begin: Moment,
    /// Number before which the flight of the load cannot have begun, unless it waited for a slot of its key.
    pub(crate) since: u64,
    pub(crate) end: Option<Moment>,
    pub(crate) answer: Answer,
    pub(crate) is_kept: bool,
    /// Epoch of the process's view at the beginning.
    pub(crate) epoch: u64,
    /// Number since which all views had agreed at the beginning.
    pub(crate) agreed_since: Option<u64>,
    /// Time for which all views had agreed at the beginning.
    pub(crate) agreed_for: Duration,
    /// Whether the whole cluster had been well for a while at the beginning.
    pub(crate) is_calm: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Get {
    pub(crate) key: usize,
    pub(crate) by: Process,
    pub(crate) begin: Moment,
    pub(crate) deadline: Duration,
    pub(crate) end: Option<(Moment, Answer)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) by: Process,
    /// Keys of the write, or `None` for all keys.
    pub(crate) keys: Option<Vec<usize>>,
    pub(crate) begin: Moment,
    pub(crate) end: Option<Moment>,
    /// Moment at which nothing was pending: the end of a complete write, or a later one. With whether the writer had met
    /// all processes then.
    pub(crate) settled: Option<(Moment, bool)>,
    /// Processes that must return nothing older from then on.
    pub(crate) met: BTreeSet<Process>,
}

impl Write {
    pub(crate) fn is_of(&self, key: usize) -> bool {
        self.keys.as_ref().is_none_or(|keys| keys.contains(&key))
    }
}

/// Everything that was observed.
#[derive(Default)]
pub(crate) struct Log {
    last: u64,
    now: Duration,
    /// First numbers of the previous tick and of this tick.
    ticks: (u64, u64),
    pub(crate) sources: Vec<Source>,
    pub(crate) gets: Vec<Get>,
    pub(crate) writes: Vec<Write>,
    /// Numbers at which processes started.
    pub(crate) starts: BTreeMap<Process, u64>,
    /// Times at which processes ended.
    pub(crate) ended: BTreeMap<Process, Duration>,
    /// Number of events by kind, which shows whether a simulation was idle.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// Broken promises, in the order in which they were found.
    pub(crate) broken: Vec<String>,
    pub(crate) is_verbose: bool,
    trace: Trace,
}

impl Log {
    /// Begins the next tick.
    pub(crate) fn tick(&mut self, now: Duration) {
        self.now = now;
        self.ticks = (self.ticks.1, self.last + 1);
    }

    pub(crate) fn now(&self) -> Duration {
        self.now
    }

    pub(crate) fn number(&self) -> u64 {
        self.last
    }

    /// Returns the number before which no flight that is observed in this tick can have begun.
    pub(crate) fn since(&self) -> u64 {
        self.ticks.0
    }

    pub(crate) fn next(&mut self) -> Moment {
        self.last += 1;
        Moment { n: self.last, at: self.now }
    }

    /// Adds an event to the trace that two runs of one seed must share.
    pub(crate) fn trace(&mut self, what: &impl Hash) {
        (self.last, self.now, what).hash(&mut self.trace);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.trace.0
    }

    /// Prints an event if the run is verbose.
    pub(crate) fn print(&self, what: impl FnOnce() -> String) {
        if self.is_verbose {
            println!("{:?} {}", self.now, what());
        }
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    pub(crate) fn add(&mut self, what: &'static str, n: u64) {
        *self.counts.entry(what).or_default() += n;
    }

    pub(crate) fn broken(&mut self, promise: impl Into<String>) {
        let text = format!("at {:?}: {}", self.now, promise.into());
        self.broken.push(text);
    }
}

/// FNV-1a, which is stable across versions, unlike the hasher of the standard library.
struct Trace(u64);

impl Default for Trace {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Trace {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
