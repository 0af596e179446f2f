//! History of a run: each operation takes the next number when it begins and when it ends, so that all events have one
//! order.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use groupcache_core::loader::LoadReason;
use tokio::time::Instant;

/// Number of an event, and the time since the history began, which is virtual in virtual time.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub n: u64,
    pub at: Duration,
}

/// Outcome of a load or of a get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Value with its own number: the number of the moment in which its load or its set began.
    Value(u64),
    Nothing,
    Failed,
    /// Abort of a load by its deadline, or end of a get by its own deadline.
    TimedOut,
}

/// Time for which an outcome is fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fresh {
    NotKept,
    For(Duration),
    Forever,
}

/// Operation that produced an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Load(LoadReason),
    Set,
}

/// Load or set from which a get may have its outcome.
#[derive(Clone, Debug)]
pub struct Source {
    pub key: String,
    pub node: usize,
    pub origin: Origin,
    pub begin: Moment,
    /// Number before which its flight cannot have begun, because a get begins a flight before the loader is called.
    pub since: u64,
    pub end: Option<Moment>,
    pub outcome: Outcome,
    pub fresh: Fresh,
}

/// Get that has ended.
#[derive(Clone, Debug)]
pub struct Get {
    pub key: String,
    pub begin: Moment,
    pub end: Moment,
    pub deadline: Duration,
    pub seen: Outcome,
}

/// Set, remove or clear.
#[derive(Clone, Debug)]
pub struct Write {
    /// Keys that are written; `None` means all.
    pub keys: Option<Vec<String>>,
    pub begin: Moment,
    /// End of a complete write. `None` if the write has not returned or is not complete, so that nothing may be
    /// concluded from it.
    pub end: Option<Moment>,
}

impl Write {
    /// Returns whether this writes the key.
    pub fn is_of(&self, key: &str) -> bool {
        self.keys.as_ref().is_none_or(|keys| keys.iter().any(|k| k == key))
    }
}

/// Shared record of all events of one group.
#[derive(Clone)]
pub struct History {
    start: Instant,
    log: Arc<Mutex<Log>>,
}

/// Events so far.
#[derive(Default)]
pub struct Log {
    last: u64,
    /// Current millisecond, and the first number in it.
    now: (u128, u64),
    /// Numbers of the gets that have begun and not ended, by key.
    waiting: BTreeMap<String, BTreeSet<u64>>,
    pub sources: Vec<Source>,
    pub gets: Vec<Get>,
    pub writes: Vec<Write>,
}

impl Log {
    fn next(&mut self, at: Duration) -> Moment {
        self.last += 1;
        if at.as_millis() != self.now.0 {
            self.now = (at.as_millis(), self.last);
        }
        Moment { n: self.last, at }
    }
}

impl Default for History {
    fn default() -> Self {
        Self { start: Instant::now(), log: Arc::default() }
    }
}

impl History {
    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    /// Returns the next moment. The time is read under the lock, so that numbers and times have one order.
    fn next(&self) -> (MutexGuard<'_, Log>, Moment) {
        let mut log = self.log();
        let moment = log.next(self.start.elapsed());
        (log, moment)
    }

    /// Records a call of a loader. The call ends when the returned guard is dropped.
    pub fn load(&self, key: &str, node: usize, reason: LoadReason) -> Running {
        let (mut log, begin) = self.next();
        // The load was begun by a get that still waits or, for a refresh, by a get that did not wait and was called
        // just now.
        let oldest = log.waiting.get(key).and_then(|gets| gets.first()).copied();
        let since = oldest.unwrap_or(begin.n).min(log.now.1);
        let (key, origin) = (key.to_owned(), Origin::Load(reason));
        let (outcome, fresh) = (Outcome::Failed, Fresh::NotKept);
        log.sources.push(Source { key, node, origin, begin, since, end: None, outcome, fresh });
        Running { history: self.clone(), at: log.sources.len() - 1, number: begin.n }
    }

    /// Records that gets of these keys are about to be called.
    pub fn begin_gets(&self, keys: &[String]) -> Moment {
        let (mut log, begin) = self.next();
        for key in keys {
            log.waiting.entry(key.clone()).or_default().insert(begin.n);
        }
        begin
    }

    /// Records the end of gets and their outcomes; `None` is not judged.
    pub fn end_gets(&self, begin: Moment, deadline: Duration, keys: &[String], seen: &[Option<Outcome>]) {
        assert_eq!(keys.len(), seen.len(), "an outcome for each key");
        let (mut log, end) = self.next();
        for (key, seen) in keys.iter().zip(seen) {
            log.waiting.entry(key.clone()).or_default().remove(&begin.n);
            if let Some(seen) = *seen {
                log.gets.push(Get { key: key.clone(), begin, end, deadline, seen });
            }
        }
    }

    /// Records that a write of these keys is about to be called, or a clear if there are none. Returns the index of the
    /// write.
    pub fn begin_write(&self, keys: &[String]) -> usize {
        let (mut log, begin) = self.next();
        let keys = (!keys.is_empty()).then(|| keys.to_vec());
        log.writes.push(Write { keys, begin, end: None });
        log.writes.len() - 1
    }

    /// Records that a set is about to be called. Returns the indices of its write and of its source, and its number,
    /// which is its value.
    pub fn begin_set(&self, key: &str, node: usize, fresh: Fresh) -> (usize, usize, u64) {
        let (mut log, begin) = self.next();
        log.writes.push(Write { keys: Some(vec![key.to_owned()]), begin, end: None });
        let (outcome, origin) = (Outcome::Value(begin.n), Origin::Set);
        log.sources.push(Source { key: key.into(), node, origin, begin, since: begin.n, end: None, outcome, fresh });
        (log.writes.len() - 1, log.sources.len() - 1, begin.n)
    }

    /// Records that a write has returned and is complete.
    pub fn end_write(&self, write: usize, set: Option<usize>) {
        let (mut log, end) = self.next();
        log.writes[write].end = Some(end);
        if let Some(set) = set {
            log.sources[set].end = Some(end);
        }
    }
}

/// Guard of a running call of a loader. The recorded outcome is a failure unless `record` changes it.
pub struct Running {
    history: History,
    at: usize,
    /// Number of the moment in which the call began.
    pub number: u64,
}

impl Running {
    /// Records the outcome that the loader is about to return.
    pub fn record(&self, outcome: Outcome, fresh: Fresh) {
        let source = &mut self.history.log().sources[self.at];
        (source.outcome, source.fresh) = (outcome, fresh);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let (mut log, end) = self.history.next();
        log.sources[self.at].end = Some(end);
    }
}
