//! What happened, in one order: everything takes the next number when it begins and when it ends.
//!
//! Machines take turns within a tick, so the order of the numbers is one that agrees with what was sent and received,
//! and not always that of the clocks.

use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
    time::Duration,
};

use groupcache_core::LoadReason;

/// A place in the order, and the time of its tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) n: u64,
    pub(crate) at: Duration,
}

/// What a load said, and what a get was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    /// A value tells its own number: that of the moment in which its load, or its set, began.
    Value(u64),
    Nothing,
    Failed,
    TimedOut,
    /// The node is leaving.
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Load(LoadReason),
    Set,
}

/// Which process: a machine, and which of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Process {
    pub(crate) machine: usize,
    pub(crate) life: u32,
}

/// Whence an answer can come: a load or a set.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) key: usize,
    pub(crate) by: Process,
    pub(crate) origin: Origin,
    pub(crate) begin: Moment,
    /// Its flight cannot have begun before this number.
    pub(crate) since: u64,
    pub(crate) end: Option<Moment>,
    pub(crate) answer: Answer,
    pub(crate) is_kept: bool,
    /// The view and the cuts of the process when it began.
    pub(crate) epoch: u64,
    pub(crate) cut_off: u64,
    /// All views have agreed since this number, as of its beginning.
    pub(crate) agreed_since: Option<u64>,
    /// And for how long.
    pub(crate) agreed_for: Duration,
    /// The whole cluster has been well for a while.
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
    /// `None` = all.
    pub(crate) keys: Option<Vec<usize>>,
    pub(crate) begin: Moment,
    pub(crate) end: Option<Moment>,
    /// It named nobody as unreached and saw no other view.
    pub(crate) is_complete: bool,
    /// And the views of all nodes agreed meanwhile, so that it was told to all there are.
    pub(crate) is_of_all: bool,
}

impl Write {
    pub(crate) fn is_of(&self, key: usize) -> bool {
        self.keys.as_ref().is_none_or(|keys| keys.contains(&key))
    }
}

/// Everything that was seen.
#[derive(Default)]
pub(crate) struct Log {
    last: u64,
    now: Duration,
    /// The first numbers of the tick before this one, and of this one.
    ticks: (u64, u64),
    pub(crate) sources: Vec<Source>,
    pub(crate) gets: Vec<Get>,
    pub(crate) writes: Vec<Write>,
    /// When processes ended.
    pub(crate) ended: BTreeMap<Process, Duration>,
    /// How often what happened, so that nobody takes an idle simulation for a good one.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// What should not be, as it was seen.
    pub(crate) broken: Vec<String>,
    pub(crate) is_verbose: bool,
    trace: Trace,
}

impl Log {
    /// The next tick has begun.
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

    /// No flight of which something is heard now can have begun before this.
    pub(crate) fn since(&self) -> u64 {
        self.ticks.0
    }

    pub(crate) fn next(&mut self) -> Moment {
        self.last += 1;
        Moment { n: self.last, at: self.now }
    }

    /// Notes what happened in the trace that two runs of one seed must share.
    pub(crate) fn trace(&mut self, what: &impl Hash) {
        (self.last, self.now, what).hash(&mut self.trace);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.trace.0
    }

    /// Says what happens to a person who wants to see it.
    pub(crate) fn tell(&self, what: impl FnOnce() -> String) {
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

/// FNV-1a: the same for ever, unlike the hasher of the standard library.
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
