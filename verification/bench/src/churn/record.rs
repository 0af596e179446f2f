//! What all processes did, second by second.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use serde::Serialize;

use super::{Sample, Total, Who};

/// What happened in one second.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Second {
    /// Calls of loaders.
    pub loads: u64,
    /// Gets that failed.
    pub failed: u64,
    /// Keys that were removed.
    pub removes: u64,
    /// Removes that did not reach everyone.
    pub unheard: u64,
    /// How long gets took.
    #[serde(skip)]
    pub micros: Vec<u32>,
}

#[derive(Debug, Default)]
struct Inner {
    seconds: Vec<Second>,
    /// By their names, with how often they were started.
    last: BTreeMap<(String, u32), Total>,
    why: Option<String>,
}

/// A record that is written while the processes run; a clone is the same.
#[derive(Clone, Debug)]
pub struct Record {
    begun: Instant,
    inner: Arc<Mutex<Inner>>,
}

impl Default for Record {
    fn default() -> Self {
        #[expect(clippy::disallowed_methods, reason = "looks at processes from outside, in real time")]
        Self { begun: Instant::now(), inner: Arc::default() }
    }
}

impl Record {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds since it began.
    pub fn now(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// Takes a line of a process; false = it is no sample.
    pub fn take(&self, id: &str, life: u32, line: &str) -> bool {
        let Ok(sample) = serde_json::from_str::<Sample>(line) else { return false };
        let at = self.now() as usize;
        let mut inner = self.lock();
        if inner.seconds.len() <= at {
            inner.seconds.resize_with(at + 1, Second::default);
        }
        if let Some(second) = inner.seconds.get_mut(at) {
            second.loads += sample.loads;
            second.failed += sample.failed;
            second.removes += sample.removes;
            second.unheard += sample.unheard;
            second.micros.extend(sample.micros);
        }
        inner.last.insert((id.to_owned(), life), sample.total);
        inner.why = inner.why.take().or(sample.why);
        true
    }

    /// What all have done until now, those that have ended included.
    pub fn total(&self) -> Total {
        let mut all = Total::default();
        self.lock().last.values().for_each(|total| all += *total);
        all
    }

    /// Entries that a process had when it spoke last.
    pub fn entries(&self, id: &str, life: u32) -> u64 {
        self.lock().last.get(&(id.to_owned(), life)).map_or(0, |last| last.entries)
    }

    /// What went on from then to then, in seconds.
    pub fn between(&self, from: f64, to: f64) -> Phase {
        let inner = self.lock();
        let seconds = || inner.seconds.iter().take(to as usize).skip(from as usize);
        let mut micros: Vec<_> = seconds().flat_map(|second| &second.micros).copied().collect();
        micros.sort_unstable();
        let quantile = |of: f64| {
            micros.get(((micros.len() as f64 * of) as usize).min(micros.len().saturating_sub(1))).map_or(0, |m| *m)
        };
        Phase {
            seconds: seconds().count() as f64,
            gets: micros.len() as u64,
            loads: seconds().map(|second| second.loads).sum(),
            failed: seconds().map(|second| second.failed).sum(),
            removes: seconds().map(|second| second.removes).sum(),
            unheard: seconds().map(|second| second.unheard).sum(),
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
        }
    }

    /// The first reason of a get that failed.
    pub fn why(&self) -> Option<String> {
        self.lock().why.clone()
    }

    /// Of every second until then: loads, failed gets, and the p50 and p99 of gets in microseconds.
    pub fn series(&self, to: f64) -> Vec<Phase> {
        (0..to as usize).map(|at| self.between(at as f64, (at + 1) as f64)).collect()
    }
}

/// What all did in some seconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Phase {
    /// How many.
    pub seconds: f64,
    /// Gets that ended.
    pub gets: u64,
    /// Calls of loaders.
    pub loads: u64,
    /// Gets that failed.
    pub failed: u64,
    /// Keys that were removed.
    pub removes: u64,
    /// Removes that did not reach everyone.
    pub unheard: u64,
    /// Microseconds until the answer, of half of the gets.
    pub p50_us: u32,
    /// Of 99 in 100.
    pub p99_us: u32,
    /// Of 999 in 1,000.
    pub p999_us: u32,
}

/// One deploy of one contestant.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// What was done.
    pub scenario: &'static str,
    /// By whom.
    pub who: Who,
    /// Before it.
    pub steady: Phase,
    /// From its first step until some seconds after its last.
    pub deploy: Phase,
    /// When it began and when its last step was over, in seconds.
    pub from: f64,
    /// See `from`.
    pub to: f64,
    /// Bytes of values that changed hands.
    pub moved_bytes: u64,
    /// Former owners that were asked for a key before it was loaded.
    pub peeks: u64,
    /// Of those that had it.
    pub peeked: u64,
    /// Entries that were taken over in pages.
    pub taken_over: u64,
    /// Bytes of values that changed hands after all that was counted, when the ring had been the same for a while.
    pub moved_later_bytes: u64,
    /// Bytes of values on the processes that ended, when they were told to.
    pub left_bytes: u64,
    /// Processor time that all used during the deploy, in seconds.
    pub used_seconds: f64,
    /// Why the first get failed, if one did.
    pub why: Option<String>,
    /// Of every second.
    pub series: Vec<Phase>,
}

impl Run {
    /// Loads during the deploy, over those of as many steady seconds.
    pub fn loads_ratio(&self) -> f64 {
        let steady = self.steady.loads as f64 / self.steady.seconds;
        self.deploy.loads as f64 / (steady * self.deploy.seconds)
    }

    /// Loads beyond those of as many steady seconds.
    pub fn extra_loads(&self) -> f64 {
        self.deploy.loads as f64 - self.steady.loads as f64 / self.steady.seconds * self.deploy.seconds
    }
}
