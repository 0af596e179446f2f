//! Loads of a group: those that run, and the last ones that have ended.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use crate::{
    error::{Error, Kind},
    loader::LoadReason,
    runtime::sync::Mutex,
};

/// Maximum number of ended loads that a group remembers: those of a quarter of a second at 1,000 loads per second, and of
/// many minutes in a group that loads rarely. A record takes about 100 bytes with its key.
const REMEMBERED: usize = 256;

/// Loads of a group on one node at one moment; see [`Node::group_loads`](crate::Node::group_loads).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GroupLoads {
    /// Loads that run or wait for a permit, the oldest first. A load that a write has passed is absent.
    pub running: Vec<RunningLoad>,
    /// Last loads that have ended, the latest first; at most 256.
    pub recent: Vec<RecentLoad>,
}

/// A load that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunningLoad {
    /// Key that is loaded.
    pub key: Arc<str>,
    /// Time since the load began, with the wait for a permit.
    pub age: Duration,
}

/// A load that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecentLoad {
    /// Key that was loaded.
    pub key: Arc<str>,
    /// Reason of the load.
    pub reason: LoadReason,
    /// Result of the load.
    pub result: LoadResult,
    /// Whether memory kept the value, or that there is none.
    pub is_kept: bool,
    /// Time from the beginning of the load to its end, with the wait for a permit and all attempts; exact to some
    /// milliseconds.
    pub took: Duration,
    /// Time since the end of the load.
    pub ago: Duration,
}

/// Result of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadResult {
    /// The loader returned a value.
    Value,
    /// The loader found nothing.
    NotFound,
    /// The loader failed or panicked, or its value cannot be encoded or is too large.
    Failed,
    /// The loader reached its deadline.
    TimedOut,
    /// The loader was not called, because a queue was full, the breaker was open, or processes ended while they loaded the
    /// key.
    Refused,
}

impl LoadResult {
    /// Returns the result that an error stands for.
    pub(crate) fn of(error: &Error) -> Self {
        match error.kind() {
            Kind::NotFound => Self::NotFound,
            Kind::Timeout => Self::TimedOut,
            Kind::Overloaded | Kind::Quarantined | Kind::Closed => Self::Refused,
            _ => Self::Failed,
        }
    }
}

/// Record of a load, with coarse times.
#[derive(Debug)]
pub(crate) struct LoadRecord {
    pub(crate) key: Arc<str>,
    pub(crate) reason: LoadReason,
    pub(crate) result: LoadResult,
    pub(crate) is_kept: bool,
    pub(crate) begun_ms: u64,
    pub(crate) ended_ms: u64,
}

/// The last loads of a group.
#[derive(Debug, Default)]
pub(crate) struct RecentLoads(Mutex<VecDeque<LoadRecord>>);

impl RecentLoads {
    /// Records a load that has ended, and forgets the one that ended longest ago.
    pub(crate) fn add(&self, record: LoadRecord) {
        let mut records = self.0.lock();
        let forgotten = if records.len() >= REMEMBERED { records.pop_front() } else { None };
        records.push_back(record);
        drop(records);
        drop(forgotten);
    }

    /// Returns the loads, the latest first.
    pub(crate) fn list(&self, now_ms: u64) -> Vec<RecentLoad> {
        let recent = |record: &LoadRecord| RecentLoad {
            key: Arc::clone(&record.key),
            reason: record.reason,
            result: record.result,
            is_kept: record.is_kept,
            took: Duration::from_millis(record.ended_ms.saturating_sub(record.begun_ms)),
            ago: Duration::from_millis(now_ms.saturating_sub(record.ended_ms)),
        };
        self.0.lock().iter().rev().map(recent).collect()
    }
}
