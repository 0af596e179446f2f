//! Tally: outcomes of gets and writes since the last sample.

use std::{
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use chaos::{Lack, Sample, WriteEvent, clock};
use groupcache_discovery::{Error, Group};

/// Time after which a get is slow. A silent peer becomes unreachable after 1 s.
const SLOW: Duration = Duration::from_millis(1500);
/// Maximum number of slow gets in a sample.
const SLOW_PER_SAMPLE: usize = 3;

#[derive(Default)]
pub(crate) struct Tally {
    since: Mutex<Sample>,
    waiting: AtomicU64,
}

impl Tally {
    fn since(&self) -> MutexGuard<'_, Sample> {
        self.since.lock().unwrap()
    }

    pub(crate) fn take(&self) -> Sample {
        let sample = std::mem::take(&mut *self.since());
        Sample { at: clock::milliseconds(), waiting: self.waiting(), ..sample }
    }

    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Relaxed)
    }

    pub(crate) fn begins(&self) {
        self.waiting.fetch_add(1, Relaxed);
    }

    /// Records the end of a get.
    pub(crate) fn ends(&self, group: &Group<String>, key: &str, took: Duration, error: Option<Error>) {
        let is_slow = took > SLOW;
        let slow = is_slow.then(|| format!("{} ms: {}", took.as_millis(), group.inspect().explain(key)));
        let mut since = self.since();
        since.gets.add(took);
        if let Some(slow) = slow
            && since.slow.len() < SLOW_PER_SAMPLE
        {
            since.slow.push(slow);
        }
        drop(since);
        if let Some(error) = error {
            self.failed(group, key, &error);
        }
        self.ended();
    }

    /// Records that the get of one key failed.
    pub(crate) fn failed(&self, group: &Group<String>, key: &str, error: &Error) {
        let what = format!("{} {} of {}", group.name(), kind(error), group.inspect().owner_of(key));
        *self.since().failed.entry(what).or_default() += 1;
    }

    /// Records that a get or another call has ended.
    pub(crate) fn ended(&self) {
        self.waiting.fetch_sub(1, Relaxed);
    }

    pub(crate) fn wrote(&self, what: String) {
        *self.since().writes.entry(what).or_default() += 1;
    }

    /// Records a stage of a write that is followed until it settles.
    pub(crate) fn settling(&self, event: WriteEvent) {
        self.since().settling.push(event);
    }

    /// Records what a get of a group lacked. The sample keeps the largest ages.
    pub(crate) fn lacks(&self, group: usize, lack: Lack) {
        let mut since = self.since();
        let most = &mut since.lacks[group];
        most.called_ms = most.called_ms.max(lack.called_ms);
        most.returned_ms = most.returned_ms.max(lack.returned_ms);
    }

    pub(crate) fn is_stale(&self, what: String) {
        self.since().stale.push(what);
    }
}

pub(crate) fn kind(error: &Error) -> &'static str {
    let kinds = [
        (error.is_timeout(), "timeout"),
        (error.is_overloaded(), "overloaded"),
        (error.is_unreachable(), "unreachable"),
        (error.is_load_failed(), "load failed"),
        (error.is_closed(), "closed"),
    ];
    kinds.iter().find(|(is, _)| *is).map_or("other", |(_, kind)| kind)
}
