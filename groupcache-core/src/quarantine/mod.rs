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
    protocol::{message::Suspect, wire::suspect_bytes},
    runtime::sync::Mutex,
};

/// Maximum number of records in one frame, of keys with two strikes and of other keys each. The rest follows with the
/// next frames.
const MAX_SHOWN: usize = 32;

/// Number of bytes of these records, after which the rest follows with the next frames.
const MAX_SHOWN_BYTES: usize = 32 << 10;

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
    /// Process of the local node, which is alive.
    own: Instance,
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
    by_group: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Kept>>,
    /// Number of records of all groups.
    count: usize,
    changes: u64,
}

impl Records {
    fn all(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>, &Kept)> {
        self.by_group.iter().flat_map(|(group, keys)| keys.iter().map(move |(key, kept)| (group, key, kept)))
    }

    fn retain(&mut self, keep: impl Fn(&Record) -> bool) {
        for keys in self.by_group.values_mut() {
            keys.retain(|_, kept| keep(&kept.record));
        }
        self.by_group.retain(|_, keys| !keys.is_empty());
        self.count = self.by_group.values().map(BTreeMap::len).sum();
    }

    /// Forgets at least a quarter of the records, because each time all of them are looked at: the earliest of those with
    /// fewest strikes.
    fn make_room(&mut self) {
        let mut weights: Vec<_> = self.all().map(|(_, _, kept)| kept.record.weight()).collect();
        let (_, limit, _) = weights.select_nth_unstable(MAX_RECORDS / 4);
        let limit = *limit;
        self.retain(|record| record.weight() > limit);
    }
}

#[derive(Debug, Default)]
struct Kept {
    record: Record,
    /// Number of the last change of this record.
    changed: u64,
}

impl Quarantine {
    pub(crate) fn new(own: Instance) -> Self {
        Self {
            own,
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

    /// Returns the record of a key.
    pub(crate) fn record(&self, group: &str, key: &str) -> Option<Record> {
        if !self.has_records() {
            return None;
        }
        Some(self.records.lock().by_group.get(group)?.get(key)?.record.clone())
    }

    /// Changes the record of a key, or makes one, and returns its verdict. `change` returns whether other nodes are to be
    /// told.
    fn change(
        &self,
        group: &Arc<str>,
        key: &Arc<str>,
        now_ms: u64,
        change: impl FnOnce(&mut Record) -> bool,
    ) -> Verdict {
        let mut records = self.records.lock();
        let Records { by_group, count, changes } = &mut *records;
        let keys = by_group.entry(Arc::clone(group)).or_default();
        let before = keys.len();
        let kept = keys.entry(Arc::clone(key)).or_default();
        let has_changed = change(&mut kept.record);
        if has_changed {
            *changes += 1;
            kept.changed = *changes;
            self.changes.store(*changes, Relaxed);
        }
        let verdict = kept.record.verdict(now_ms);
        if !has_changed && kept.record.is_over(now_ms) {
            keys.remove(key);
        }
        *count = *count + keys.len() - before;
        if keys.is_empty() {
            by_group.remove(group);
        }
        if *count > MAX_RECORDS {
            records.make_room();
        }
        self.has_records.store(records.count > 0, Relaxed);
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
        self.change(group, key, now_ms, |record| {
            let is_news = record.merge(other, now_ms);
            record.pardon(&self.own, now_ms) || is_news
        })
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
            let struck = records.all().filter(|(_, _, kept)| kept.record.names(process));
            struck.map(|(group, key, _)| (Arc::clone(group), Arc::clone(key))).collect()
        };
        for (group, key) in struck {
            self.change(&group, &key, now_ms, |record| record.pardon(process, now_ms));
        }
    }

    /// Returns the records that have changed since change `since`, as many as one frame takes, and moves `since` to the
    /// last change before those that are left. Earlier changes come first, of keys with two strikes and of others.
    pub(crate) fn news(&self, since: &mut u64, now_ms: u64) -> Vec<Suspect> {
        if self.changes.load(Relaxed) == *since {
            return Vec::new();
        }
        let records = self.records.lock();
        let mut changed: Vec<_> = records.all().filter(|(_, _, kept)| kept.changed > *since).collect();
        changed.sort_unstable_by_key(|(_, _, kept)| kept.changed);
        let (twice, others): (Vec<_>, Vec<_>) = changed.into_iter().partition(|(_, _, kept)| kept.record.strikes() > 1);
        let (mut shown, mut first_left) = (Vec::new(), None);
        for kind in [twice, others] {
            let (mut count, mut bytes) = (0, 0);
            for (group, key, kept) in kind {
                if count == MAX_SHOWN || bytes >= MAX_SHOWN_BYTES {
                    first_left = Some(first_left.map_or(kept.changed, |left: u64| left.min(kept.changed)));
                    break;
                }
                let strikes = kept.record.to_wire(now_ms);
                let suspect = Suspect { group: Arc::clone(group), key: Arc::clone(key), strikes };
                count += 1;
                bytes += suspect_bytes(&suspect);
                shown.push(suspect);
            }
        }
        *since = first_left.map_or(records.changes, |change| change - 1);
        drop(records);
        if first_left.is_some() {
            self.changed.notify_one();
        }
        shown
    }

    /// Forgets the records that say nothing any more. Runs about once a second.
    pub(crate) fn sweep(&self, now_ms: u64) {
        if !self.has_records() {
            return;
        }
        let mut records = self.records.lock();
        records.retain(|record| !record.is_over(now_ms));
        self.has_records.store(records.count > 0, Relaxed);
    }

    /// Returns the keys that are in quarantine, or wait for their trial.
    pub(crate) fn list(&self, now_ms: u64) -> Vec<QuarantinedKey> {
        let records = self.records.lock();
        let quarantined = |(group, key, kept): (&Arc<str>, &Arc<str>, &Kept)| {
            let remaining_ms = match kept.record.verdict(now_ms) {
                Verdict::Quarantined { until_ms } => until_ms.saturating_sub(now_ms),
                Verdict::Trial => 0,
                Verdict::Clean | Verdict::Suspected => return None,
            };
            Some(QuarantinedKey {
                group: Arc::clone(group),
                key: Arc::clone(key),
                deaths: kept.record.strikes(),
                remaining: Duration::from_millis(remaining_ms),
            })
        };
        records.all().filter_map(quarantined).collect()
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

    fn quarantine() -> (Quarantine, Arc<str>) {
        (Quarantine::new(process(100)), "users".into())
    }

    fn keys(quarantine: &Quarantine, now_ms: u64) -> Vec<(Arc<str>, usize)> {
        quarantine.list(now_ms).into_iter().map(|known| (known.key, known.deaths)).collect()
    }

    fn verdict(quarantine: &Quarantine, key: &str, now_ms: u64) -> Verdict {
        quarantine.record("users", key).map_or(Verdict::Clean, |record| record.verdict(now_ms))
    }

    /// Checks that each record travels once per change, in frames of 32, and that keys with two strikes wait for no others.
    #[test]
    fn changed_records_are_shown_once() {
        let ((here, group), (there, _)) = (quarantine(), quarantine());
        for n in 0..64 {
            here.strike(&group, &format!("k{n}").into(), process(1), n);
        }
        let poison = Arc::<str>::from("poison");
        here.strike(&group, &poison, process(1), 0);
        assert!(matches!(here.strike(&group, &poison, process(2), 0), Verdict::Quarantined { .. }));
        let mut since = 0;
        let frames: Vec<_> = std::iter::repeat_with(|| here.news(&mut since, 100)).take(3).collect();
        assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [33, 33, 0], "the quarantined key is in both");
        [0, 0, 1].iter().for_each(|frame| there.take(&frames[*frame], 7));
        assert_eq!(keys(&there, 7), [(Arc::clone(&poison), 2)]);
        assert!((0..64).all(|n| verdict(&there, &format!("k{n}"), 107) == Verdict::Suspected));
        here.ended_well(&group, &poison, 200);
        there.take(&here.news(&mut since, 200), 107);
        assert!(there.list(107).is_empty() && here.list(200).is_empty());
        there.is_alive(&process(1), 107);
        assert_eq!(verdict(&there, "k63", 107), Verdict::Clean);
        there.sweep(107 + 600_000);
        assert!(!there.has_records() && here.has_records());
    }

    /// Checks that long keys are shown in several frames.
    #[test]
    fn shown_bytes_are_bounded() {
        let (here, group) = quarantine();
        (0..5).for_each(|n| _ = here.strike(&group, &format!("{n}{}", "k".repeat(20_000)).into(), process(1), n));
        let mut since = 0;
        let frames: Vec<_> = std::iter::repeat_with(|| here.news(&mut since, 9).len()).take(4).collect();
        assert_eq!(frames, [2, 2, 1, 0]);
    }

    /// Checks that the number of records is bounded, and that quarantined keys stay.
    #[test]
    fn records_are_bounded_and_quarantines_stay() {
        let (here, group) = quarantine();
        let poison = Arc::<str>::from("poison");
        [1, 2].iter().for_each(|n| _ = here.strike(&group, &poison, process(*n), 0));
        for n in 0..MAX_RECORDS as u64 + 10 {
            here.strike(&group, &format!("k{n}").into(), process(1), n);
        }
        let count = here.records.lock().count;
        assert!(count <= MAX_RECORDS && count == here.records.lock().all().count() && here.list(9).len() == 1);
        assert_eq!(verdict(&here, &format!("k{}", MAX_RECORDS + 9), 9), Verdict::Suspected, "the last one");
    }

    /// Checks that a node takes back the strikes of others against its own process, and that a record which is over leaves
    /// nothing behind.
    #[test]
    fn own_process_is_alive() {
        let ((here, group), (there, _)) = (quarantine(), quarantine());
        let key = Arc::<str>::from("k");
        there.strike(&group, &key, process(100), 5);
        let (mut since, mut back) = (0, 0);
        here.take(&there.news(&mut since, 5), 5);
        assert_eq!(verdict(&here, "k", 5), Verdict::Clean);
        there.take(&here.news(&mut back, 5), 5);
        assert_eq!(verdict(&there, "k", 5), Verdict::Clean);
        here.sweep(600_005);
        here.merge(&group, &key, &Record::default(), 700_000);
        assert!(!here.has_records());
    }
}
