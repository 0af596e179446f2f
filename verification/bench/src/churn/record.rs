//! Record: the samples of all processes, second by second.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use serde::Serialize;

use super::{CacheKind, Sample, Total};

/// Events in one second.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Second {
    /// Number of calls of loaders.
    pub loads: u64,
    /// Number of gets that failed.
    pub failed: u64,
    /// Number of removes.
    pub removes: u64,
    /// Number of removes that did not reach every node.
    pub unheard: u64,
    /// Latencies of gets in microseconds.
    #[serde(skip)]
    pub micros: Vec<u32>,
}

#[derive(Debug, Default)]
struct Inner {
    seconds: Vec<Second>,
    /// Last totals by name and number of the start.
    last: BTreeMap<(String, u32), Total>,
    why: Option<String>,
}

/// A record that is written while the processes run. Clones share one record.
#[derive(Clone, Debug)]
pub struct Record {
    begun: Instant,
    inner: Arc<Mutex<Inner>>,
}

impl Default for Record {
    fn default() -> Self {
        #[expect(clippy::disallowed_methods, reason = "observes processes from outside, in real time")]
        Self { begun: Instant::now(), inner: Arc::default() }
    }
}

impl Record {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the seconds since the beginning of the record.
    pub fn now(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// Adds a line of a process, and returns whether the line is a sample.
    pub fn take(&self, id: &str, start_number: u32, line: &str) -> bool {
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
        inner.last.insert((id.to_owned(), start_number), sample.total);
        inner.why = inner.why.take().or(sample.why);
        true
    }

    /// Returns the totals of all processes, including those that have ended.
    pub fn total(&self) -> Total {
        let mut all = Total::default();
        self.lock().last.values().for_each(|total| all += *total);
        all
    }

    /// Returns the number of entries that a process owned at its last sample.
    pub fn entries(&self, id: &str, start_number: u32) -> u64 {
        self.lock().last.get(&(id.to_owned(), start_number)).map_or(0, |last| last.entries)
    }

    /// Returns the events between two times, in seconds.
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

    /// Returns the error of the first get that failed.
    pub fn why(&self) -> Option<String> {
        self.lock().why.clone()
    }

    /// Returns the events of every second until `to`.
    pub fn series(&self, to: f64) -> Vec<Phase> {
        (0..to as usize).map(|at| self.between(at as f64, (at + 1) as f64)).collect()
    }
}

/// Events of all processes in some seconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Phase {
    /// Number of seconds.
    pub seconds: f64,
    /// Number of gets that ended.
    pub gets: u64,
    /// Number of calls of loaders.
    pub loads: u64,
    /// Number of gets that failed.
    pub failed: u64,
    /// Number of removes.
    pub removes: u64,
    /// Number of removes that did not reach every node.
    pub unheard: u64,
    /// Median latency of a get in microseconds.
    pub p50_us: u32,
    /// 99th percentile of the latency.
    pub p99_us: u32,
    /// 99.9th percentile of the latency.
    pub p999_us: u32,
}

/// A deploy of one cache.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Name of the scenario.
    pub scenario: &'static str,
    /// Cache of the cluster.
    pub kind: CacheKind,
    /// Events before the deploy.
    pub steady: Phase,
    /// Events from the first step of the deploy until some seconds after the last one.
    pub deploy: Phase,
    /// Beginning of the deploy, in seconds.
    pub from: f64,
    /// End of the last step of the deploy, in seconds.
    pub to: f64,
    /// Bytes of values that were sent in hand-overs.
    pub moved_bytes: u64,
    /// Number of previous-owner reads before loads.
    pub previous_owner_reads: u64,
    /// Number of previous-owner reads that found the value.
    pub previous_owner_hits: u64,
    /// Number of entries that were received in pages.
    pub handover_received: u64,
    /// Bytes of values that were sent after the deploy was counted, once the ring had been the same for a while.
    pub moved_later_bytes: u64,
    /// Bytes of values that the ended processes owned when they were told to end.
    pub left_bytes: u64,
    /// Processor time of all processes during the deploy, in seconds.
    pub used_seconds: f64,
    /// Error of the first get that failed, if there is one.
    pub why: Option<String>,
    /// Events of every second.
    pub series: Vec<Phase>,
}

impl Run {
    /// Returns the ratio of loads during the deploy to the loads of an equal time before it.
    pub fn loads_ratio(&self) -> f64 {
        let steady = self.steady.loads as f64 / self.steady.seconds;
        self.deploy.loads as f64 / (steady * self.deploy.seconds)
    }

    /// Returns the loads during the deploy beyond the loads of an equal time before it.
    pub fn extra_loads(&self) -> f64 {
        self.deploy.loads as f64 - self.steady.loads as f64 / self.steady.seconds * self.deploy.seconds
    }
}
