//! What happened, in one order: everything takes the next number when it begins and when it ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use groupcache_core::LoadReason;
use tokio::time::Instant;

/// A place in the order, and the time since the history began, which is virtual where time is.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub n: u64,
    pub at: Duration,
}

/// What a load said, and what a get was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A value tells its own number: that of the moment in which its load, or its set, began.
    Value(u64),
    Nothing,
    Failed,
    /// The load was aborted by its deadline; or the get ended by its own.
    TimedOut,
}

/// How long an answer is fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fresh {
    NotKept,
    For(Duration),
    Forever,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Load(LoadReason),
    Set,
}

/// Whence an answer can come: a load or a set.
#[derive(Clone, Debug)]
pub struct Source {
    pub key: String,
    pub node: usize,
    pub origin: Origin,
    pub begin: Moment,
    /// Its flight cannot have begun before this number: a get begins a flight, and then the loader is called.
    pub since: u64,
    pub end: Option<Moment>,
    pub answer: Answer,
    pub fresh: Fresh,
}

#[derive(Clone, Debug)]
pub struct Get {
    pub key: String,
    pub begin: Moment,
    pub end: Moment,
    pub deadline: Duration,
    pub seen: Answer,
}

#[derive(Clone, Debug)]
pub struct Write {
    /// `None` = all.
    pub keys: Option<Vec<String>>,
    pub begin: Moment,
    /// `None` = it did not return, or did not reach everyone: nothing may be concluded from it.
    pub end: Option<Moment>,
}

impl Write {
    pub fn is_of(&self, key: &str) -> bool {
        self.keys.as_ref().is_none_or(|keys| keys.iter().any(|k| k == key))
    }
}

#[derive(Clone)]
pub struct History {
    start: Instant,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
pub struct Log {
    last: u64,
    /// The millisecond that it is, and the first number in it.
    now: (u128, u64),
    /// The gets that have begun and not ended.
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

    /// The next moment; the time is read under the lock, so that both have one order.
    fn next(&self) -> (MutexGuard<'_, Log>, Moment) {
        let mut log = self.log();
        let moment = log.next(self.start.elapsed());
        (log, moment)
    }

    /// A loader was called. It ends when what this returns is dropped.
    pub fn load(&self, key: &str, node: usize, reason: LoadReason) -> Running {
        let (mut log, begin) = self.next();
        // It was begun by a get that still waits or, when it is a refresh, by one that did not; that was just now.
        let oldest = log.waiting.get(key).and_then(|gets| gets.first()).copied();
        let since = oldest.unwrap_or(begin.n).min(log.now.1);
        let (key, origin) = (key.to_owned(), Origin::Load(reason));
        let (answer, fresh) = (Answer::Failed, Fresh::NotKept);
        log.sources.push(Source { key, node, origin, begin, since, end: None, answer, fresh });
        Running { history: self.clone(), at: log.sources.len() - 1, number: begin.n }
    }

    /// Gets are about to be called.
    pub fn asks(&self, keys: &[String]) -> Moment {
        let (mut log, begin) = self.next();
        for key in keys {
            log.waiting.entry(key.clone()).or_default().insert(begin.n);
        }
        begin
    }

    /// They have ended; `None` = nothing to be judged.
    pub fn told(&self, begin: Moment, deadline: Duration, keys: &[String], seen: &[Option<Answer>]) {
        assert_eq!(keys.len(), seen.len(), "an answer for each key");
        let (mut log, end) = self.next();
        for (key, seen) in keys.iter().zip(seen) {
            log.waiting.entry(key.clone()).or_default().remove(&begin.n);
            if let Some(seen) = *seen {
                log.gets.push(Get { key: key.clone(), begin, end, deadline, seen });
            }
        }
    }

    /// A write of these keys is about to be called; of all when there are none.
    pub fn writes(&self, keys: &[String]) -> usize {
        let (mut log, begin) = self.next();
        let keys = (!keys.is_empty()).then(|| keys.to_vec());
        log.writes.push(Write { keys, begin, end: None });
        log.writes.len() - 1
    }

    /// The same for a `set`; its number is its value.
    pub fn sets(&self, key: &str, node: usize, fresh: Fresh) -> (usize, usize, u64) {
        let (mut log, begin) = self.next();
        log.writes.push(Write { keys: Some(vec![key.to_owned()]), begin, end: None });
        let (answer, origin) = (Answer::Value(begin.n), Origin::Set);
        log.sources.push(Source { key: key.into(), node, origin, begin, since: begin.n, end: None, answer, fresh });
        (log.writes.len() - 1, log.sources.len() - 1, begin.n)
    }

    /// A write has returned and reached everyone.
    pub fn wrote(&self, write: usize, set: Option<usize>) {
        let (mut log, end) = self.next();
        log.writes[write].end = Some(end);
        if let Some(set) = set {
            log.sources[set].end = Some(end);
        }
    }
}

/// A call of a loader. Unless it says otherwise it fails.
pub struct Running {
    history: History,
    at: usize,
    /// Of its beginning.
    pub number: u64,
}

impl Running {
    pub fn says(&self, answer: Answer, fresh: Fresh) {
        let source = &mut self.history.log().sources[self.at];
        (source.answer, source.fresh) = (answer, fresh);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let (mut log, end) = self.history.next();
        log.sources[self.at].end = Some(end);
    }
}
