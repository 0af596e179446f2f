//! Quarantine: keys with loads that have ended processes, so that one poisonous key does not end them all.
//!
//! A load may end its process: by an abort, a stack overflow or too much memory. The callers of other nodes see the
//! connection break, and record a *strike* against each key that they waited for. The key of a single strike is
//! *suspected*: the next candidate loads it for another node, one such load at a time, and says so before it begins, so
//! that a second strike falls on the load that ran. Two strikes begin a *quarantine*, in which no node loads the key. A
//! load that ends well clears its key.
//!
//! [`record`] judges one key. [`Quarantine`] has the records of a node, which nodes show each other with their Hellos and
//! pings, so that a process that was restarted has them before it is Ready.

pub(crate) mod record;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::{Notify, Semaphore};

use self::record::{Record, Verdict};
use crate::{
    identity::Instance,
    protocol::message::Suspect,
    runtime::{
        key_hash::{KeyHash, key_hash},
        sync::Mutex,
    },
};

/// Maximum number of records of one group that a node shows to others.
const MAX_SHOWN: usize = 64;

/// Maximum number of records that a node takes from one frame.
const MAX_TAKEN: usize = 1_024;

/// Maximum number of records of a node: as many gets as may wait for one peer, which may all be suspected at its end.
const MAX_RECORDS: usize = 8_192;

/// Time between the notice that a load of a suspected key begins and its beginning, in which the notice leaves.
pub(crate) const NOTICE: Duration = Duration::from_millis(10);

/// Time after which the next suspected key is loaded although the load before still runs. A load that ends its process
/// does so at once in most cases.
pub(crate) const APART: Duration = Duration::from_millis(25);

/// A key that no node loads at present, because its loads have ended processes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuarantinedKey {
    /// Name of the group.
    pub group: Arc<str>,
    /// Key in the group.
    pub key: Arc<str>,
    /// Number of processes that ended while they loaded the key, at least 2.
    pub deaths: usize,
    /// Time until one node tries the key again. Zero: the next get does.
    pub remaining: Duration,
}

/// Records of a node.
#[derive(Debug)]
pub(crate) struct Quarantine {
    records: Mutex<Records>,
    /// Whether there is any record, so that a get costs nothing otherwise.
    has_records: AtomicBool,
    changes: AtomicU64,
    /// Signal that other nodes are to be told of a change.
    pub(crate) changed: Notify,
    /// Turn of the loads of suspected keys.
    pub(crate) turn: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Records {
    /// Of two keys with one hash only the first has a record.
    by_key: BTreeMap<KeyHash, Kept>,
    changes: u64,
}

#[derive(Debug)]
struct Kept {
    group: Arc<str>,
    key: Arc<str>,
    record: Record,
    /// Number of the last change of this record.
    changed: u64,
}

impl Quarantine {
    pub(crate) fn new() -> Self {
        Self {
            records: Mutex::default(),
            has_records: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            changed: Notify::new(),
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// Returns whether any key has a record.
    #[inline]
    pub(crate) fn has_records(&self) -> bool {
        self.has_records.load(Relaxed)
    }

    /// Returns what may be done with a key.
    pub(crate) fn verdict(&self, group: &Arc<str>, key: &str, now_ms: u64) -> Verdict {
        self.record(group, key).map_or(Verdict::Clean, |record| record.verdict(now_ms))
    }

    /// Returns the record of a key.
    pub(crate) fn record(&self, group: &Arc<str>, key: &str) -> Option<Record> {
        if !self.has_records() {
            return None;
        }
        let records = self.records.lock();
        let kept = records.by_key.get(&key_hash(group, key))?;
        (*kept.key == *key && kept.group == *group).then(|| kept.record.clone())
    }

    /// Changes the record of a key, or makes one, and returns its verdict.
    fn change(
        &self,
        group: &Arc<str>,
        key: &Arc<str>,
        now_ms: u64,
        change: impl FnOnce(&mut Record) -> bool,
    ) -> Verdict {
        let mut records = self.records.lock();
        let Records { by_key, changes } = &mut *records;
        let kept = by_key.entry(key_hash(group, key)).or_insert_with(|| Kept {
            group: Arc::clone(group),
            key: Arc::clone(key),
            record: Record::default(),
            changed: 0,
        });
        if kept.key != *key || kept.group != *group {
            return Verdict::Clean;
        }
        let has_changed = change(&mut kept.record);
        if has_changed {
            *changes += 1;
            kept.changed = *changes;
            self.changes.store(*changes, Relaxed);
        }
        let verdict = kept.record.verdict(now_ms);
        if by_key.len() > MAX_RECORDS {
            // A quarter at once, because each time all of them are looked at.
            let mut weights: Vec<_> = by_key.values().map(|kept| kept.record.weight()).collect();
            let (_, limit, _) = weights.select_nth_unstable(MAX_RECORDS / 4);
            let limit = *limit;
            by_key.retain(|_, kept| kept.record.weight() > limit);
        }
        self.has_records.store(true, Relaxed);
        drop(records);
        if has_changed {
            self.changed.notify_one();
        }
        verdict
    }

    /// Records that a process ended while it loaded a key, and returns what follows.
    pub(crate) fn strike(&self, group: &Arc<str>, key: &Arc<str>, process: Instance, now_ms: u64) -> Verdict {
        let mut is_first = false;
        let verdict = self.change(group, key, now_ms, |record| {
            is_first = !record.names(&process) && record.strikes() > 0;
            record.strike(process, now_ms);
            true
        });
        if let (true, Verdict::Quarantined { until_ms }) = (is_first, verdict) {
            let minutes = until_ms.saturating_sub(now_ms) / 60_000;
            tracing::warn!(
                %group, minutes,
                "a key is in quarantine, because processes ended while they loaded it; Node::quarantined() names the key"
            );
        }
        verdict
    }

    /// Records that a load of a key has ended, and that its process lives.
    pub(crate) fn ended_well(&self, group: &Arc<str>, key: &Arc<str>, now_ms: u64) {
        if self.record(group, key).is_some_and(|record| record.strikes() > 0) {
            self.change(group, key, now_ms, |record| {
                record.clear(now_ms);
                true
            });
        }
    }

    /// Takes in a record that another node has sent, and returns the verdict.
    pub(crate) fn merge(&self, group: &Arc<str>, key: &Arc<str>, other: &Record, now_ms: u64) -> Verdict {
        self.change(group, key, now_ms, |record| record.merge(other, now_ms))
    }

    /// Takes in the records that another node has shown, at most [`MAX_TAKEN`] of them.
    pub(crate) fn take(&self, suspects: &[Suspect], now_ms: u64) {
        for Suspect { group, key, strikes } in suspects.iter().take(MAX_TAKEN) {
            self.merge(group, key, &Record::of_wire(strikes, now_ms), now_ms);
        }
    }

    /// Records that the trial of a key begins on this node.
    pub(crate) fn begin_trial(&self, group: &Arc<str>, key: &Arc<str>, now_ms: u64) {
        self.change(group, key, now_ms, |record| {
            record.begin_trial(now_ms);
            true
        });
    }

    /// Takes the strikes of a process back, because the process is alive: only a connection to it had broken.
    pub(crate) fn is_alive(&self, process: &Instance, now_ms: u64) {
        if !self.has_records() {
            return;
        }
        let struck: Vec<_> = {
            let records = self.records.lock();
            let struck = records.by_key.values().filter(|kept| kept.record.names(process));
            struck.map(|kept| (Arc::clone(&kept.group), Arc::clone(&kept.key))).collect()
        };
        for (group, key) in struck {
            self.change(&group, &key, now_ms, |record| record.pardon(process, now_ms));
        }
    }

    /// Returns the records that have changed since change `since`, at most [`MAX_SHOWN`] of a group, and the number of
    /// the last change.
    pub(crate) fn news(&self, since: &mut u64, now_ms: u64) -> Vec<Suspect> {
        if self.changes.load(Relaxed) == *since {
            return Vec::new();
        }
        let records = self.records.lock();
        let mut changed: Vec<_> = records.by_key.values().filter(|kept| kept.changed > *since).collect();
        *since = records.changes;
        changed.sort_by_key(|kept| std::cmp::Reverse(kept.record.weight()));
        let mut shown: BTreeMap<&str, usize> = BTreeMap::new();
        changed.retain(|kept| {
            let of_group = shown.entry(&kept.group).or_default();
            *of_group += 1;
            *of_group <= MAX_SHOWN
        });
        let suspect = |kept: &Kept| Suspect {
            group: Arc::clone(&kept.group),
            key: Arc::clone(&kept.key),
            strikes: kept.record.to_wire(now_ms),
        };
        changed.into_iter().map(suspect).collect()
    }

    /// Forgets the records that say nothing any more. Runs about once a second.
    pub(crate) fn sweep(&self, now_ms: u64) {
        if !self.has_records() {
            return;
        }
        let mut records = self.records.lock();
        records.by_key.retain(|_, kept| !kept.record.is_over(now_ms));
        self.has_records.store(!records.by_key.is_empty(), Relaxed);
    }

    /// Returns the keys that are in quarantine, or wait for their trial.
    pub(crate) fn list(&self, now_ms: u64) -> Vec<QuarantinedKey> {
        let records = self.records.lock();
        let quarantined = |kept: &Kept| {
            let remaining_ms = match kept.record.verdict(now_ms) {
                Verdict::Quarantined { until_ms } => until_ms.saturating_sub(now_ms),
                Verdict::Trial => 0,
                Verdict::Clean | Verdict::Suspected => return None,
            };
            Some(QuarantinedKey {
                group: Arc::clone(&kept.group),
                key: Arc::clone(&kept.key),
                deaths: kept.record.strikes(),
                remaining: Duration::from_millis(remaining_ms),
            })
        };
        records.by_key.values().filter_map(quarantined).collect()
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use super::*;
    use crate::identity::{Incarnation, PeerId};

    fn process(n: u64) -> Instance {
        Instance { id: PeerId::new(format!("n{n}")).unwrap(), incarnation: Incarnation(1) }
    }

    /// Checks that records travel once per change, that those with more strikes come first, and that at most 64 of a
    /// group are shown.
    #[test]
    fn changed_records_are_shown_once() {
        let (here, group) = (Quarantine::new(), Arc::<str>::from("users"));
        for n in 0..100 {
            here.strike(&group, &format!("k{n}").into(), process(1), n);
        }
        let poison = Arc::<str>::from("poison");
        here.strike(&group, &poison, process(1), 0);
        assert!(matches!(here.strike(&group, &poison, process(2), 0), Verdict::Quarantined { .. }));
        let mut since = 0;
        let news = here.news(&mut since, 100);
        assert_eq!((news.len(), &news[0].key), (MAX_SHOWN, &poison));
        assert!(here.news(&mut since, 100).is_empty());
        let there = Quarantine::new();
        there.take(&news, 7);
        there.take(&news, 7);
        assert_eq!(there.list(7).iter().map(|known| (&*known.key, known.deaths)).collect::<Vec<_>>(), [("poison", 2)]);
        here.ended_well(&group, &poison, 200);
        there.take(&here.news(&mut since, 200), 107);
        assert!(there.list(107).is_empty() && here.list(200).is_empty());
        assert_eq!(there.verdict(&group, "k99", 107), Verdict::Suspected);
        there.is_alive(&process(1), 107);
        assert_eq!(there.verdict(&group, "k99", 107), Verdict::Clean);
        there.sweep(107 + 600_000);
        assert!(!there.has_records() && here.has_records());
    }

    /// Checks that the number of records is bounded, and that quarantined keys stay.
    #[test]
    fn records_are_bounded_and_quarantines_stay() {
        let (here, group) = (Quarantine::new(), Arc::<str>::from("users"));
        let poison = Arc::<str>::from("poison");
        [1, 2].iter().for_each(|n| _ = here.strike(&group, &poison, process(*n), 0));
        for n in 0..MAX_RECORDS as u64 + 10 {
            here.strike(&group, &format!("k{n}").into(), process(1), n);
        }
        assert!(here.records.lock().by_key.len() <= MAX_RECORDS && here.list(9).len() == 1);
        assert_eq!(here.verdict(&group, &format!("k{}", MAX_RECORDS + 9), 9), Verdict::Suspected, "the last one");
    }
}
