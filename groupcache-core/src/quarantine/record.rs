//! Record of one key: the processes that ended while they loaded the key, and what follows from them.
//!
//! Records of several nodes are merged in any order with one result: the later epoch wins, and within one epoch the
//! strikes of both count. An epoch ends when a load of the key ends well, or when a process turns out to be alive.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    identity::Instance,
    protocol::message::{Strike, Strikes},
};

/// Time for which a single strike counts.
const STRIKE_COUNTS: Duration = Duration::from_secs(600);

/// Length of the first quarantine. Each further strike doubles the length.
const QUARANTINE: Duration = Duration::from_secs(600);

/// Length of the longest quarantine.
const QUARANTINE_MAX: Duration = Duration::from_secs(3600);

/// Time after the beginning of a trial for which no other trial begins: longer than most loads.
const TRIAL: Duration = Duration::from_secs(60);

/// Time after a quarantine in which a trial may begin. A key that nobody asked for meanwhile is forgotten.
const TRIAL_WITHIN: Duration = Duration::from_secs(3600);

/// Maximum number of strikes of a key. Further ones replace the oldest, and the longest quarantine is reached before.
const MAX_STRIKES: usize = 8;

/// Rule for the loads of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The key is loaded like any other.
    Clean,
    /// A single process has ended while it loaded the key. Another node than the asker loads the key, one such load at a
    /// time.
    Suspected,
    /// The quarantine is over, and one load of the key may begin, as for a suspected key.
    Trial,
    /// No load begins before this time.
    Quarantined { until_ms: u64 },
}

/// Strikes against a key. Times are those of the local clock, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    epoch: u32,
    /// Processes that ended while they loaded the key, each with the time of its end.
    strikes: BTreeMap<Instance, u64>,
    /// Time at which the last trial began.
    trial_ms: Option<u64>,
    /// Time of the last change, after which an epoch without a strike is kept for a while.
    changed_ms: u64,
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

impl Record {
    /// Adds a strike, and forgets the strikes that do not count any more.
    pub(super) fn strike(&mut self, process: Instance, now_ms: u64) {
        self.forget_old(now_ms);
        self.strikes.entry(process).or_insert(now_ms);
        self.limit();
        self.changed_ms = now_ms;
    }

    fn limit(&mut self) {
        while self.strikes.len() > MAX_STRIKES {
            let oldest = self.strikes.iter().min_by_key(|(_, at_ms)| **at_ms).map(|(process, _)| process.clone());
            oldest.iter().for_each(|oldest| {
                self.strikes.remove(oldest);
            });
        }
    }

    /// Begins a new epoch without strikes, because a load of the key has ended well.
    pub(super) fn clear(&mut self, now_ms: u64) {
        *self = Self { epoch: self.epoch.saturating_add(1), changed_ms: now_ms, ..Self::default() };
    }

    /// Begins a new epoch without the strike of a process that is alive. Returns whether there was one.
    pub(super) fn pardon(&mut self, process: &Instance, now_ms: u64) -> bool {
        let was_struck = self.strikes.remove(process).is_some();
        if was_struck {
            self.epoch = self.epoch.saturating_add(1);
            self.changed_ms = now_ms;
        }
        was_struck
    }

    /// Records that a trial begins.
    pub(super) fn begin_trial(&mut self, now_ms: u64) {
        (self.trial_ms, self.changed_ms) = (Some(now_ms), now_ms);
    }

    /// Takes in the record of another node. Returns whether this record has changed.
    pub(super) fn merge(&mut self, other: &Self, now_ms: u64) -> bool {
        if other.epoch < self.epoch {
            return false;
        }
        let before = self.clone();
        if other.epoch > self.epoch {
            *self = other.clone();
        } else {
            for (process, at_ms) in &other.strikes {
                self.strikes.entry(process.clone()).or_insert(*at_ms);
            }
            self.limit();
            self.trial_ms = self.trial_ms.max(other.trial_ms);
        }
        self.changed_ms = before.changed_ms;
        // An age loses some milliseconds on its way, and is no news.
        let is_new_trial = self.trial_ms.unwrap_or(0) > before.trial_ms.unwrap_or(0) + millis(TRIAL) / 2;
        let has_changed = self.epoch != before.epoch || !self.strikes.keys().eq(before.strikes.keys()) || is_new_trial;
        if has_changed {
            self.changed_ms = now_ms;
        }
        has_changed
    }

    fn last_ms(&self) -> u64 {
        self.strikes.values().copied().max().unwrap_or(0)
    }

    /// Returns the end of the quarantine; `None` below two strikes.
    fn until_ms(&self) -> Option<u64> {
        let doublings = self.strikes.len().checked_sub(2)?;
        let length = millis(QUARANTINE).saturating_mul(1 << doublings.min(8)).min(millis(QUARANTINE_MAX));
        Some(self.last_ms().saturating_add(length))
    }

    pub(crate) fn verdict(&self, now_ms: u64) -> Verdict {
        let Some(until_ms) = self.until_ms() else {
            let counts = now_ms.saturating_sub(self.last_ms()) < millis(STRIKE_COUNTS);
            return if counts && !self.strikes.is_empty() { Verdict::Suspected } else { Verdict::Clean };
        };
        // A trial that has not ended the quarantine keeps others from one for a while.
        let trial_until_ms = self.trial_ms.filter(|at_ms| *at_ms >= until_ms).map(|at_ms| at_ms + millis(TRIAL));
        match until_ms.max(trial_until_ms.unwrap_or(0)) {
            until_ms if now_ms < until_ms => Verdict::Quarantined { until_ms },
            _ if now_ms >= until_ms + millis(TRIAL_WITHIN) => Verdict::Clean,
            _ => Verdict::Trial,
        }
    }

    fn forget_old(&mut self, now_ms: u64) {
        if self.verdict(now_ms) == Verdict::Clean {
            self.strikes.clear();
            self.trial_ms = None;
        }
    }

    /// Returns whether the record says nothing any more. An epoch without a strike is kept as long as another node may
    /// still show the strikes of the epoch before.
    pub(super) fn is_over(&self, now_ms: u64) -> bool {
        let is_old = now_ms.saturating_sub(self.changed_ms) >= millis(STRIKE_COUNTS);
        self.verdict(now_ms) == Verdict::Clean && is_old
    }

    /// Returns whether this process has a strike.
    pub(crate) fn names(&self, process: &Instance) -> bool {
        self.strikes.contains_key(process)
    }

    /// Returns whether a process of this node has a strike.
    pub(crate) fn names_node(&self, id: &crate::identity::PeerId) -> bool {
        self.strikes.keys().any(|process| process.id == *id)
    }

    pub(crate) fn strikes(&self) -> usize {
        self.strikes.len()
    }

    /// Returns the order in which records are kept and shown: those with more strikes first, and later ones before
    /// earlier ones.
    pub(super) fn weight(&self) -> (usize, u64) {
        (self.strikes.len(), self.changed_ms)
    }

    pub(crate) fn to_wire(&self, now_ms: u64) -> Strikes {
        let age = |at_ms: u64| now_ms.saturating_sub(at_ms);
        let strike = |(process, at_ms): (&Instance, &u64)| Strike { process: process.clone(), age_ms: age(*at_ms) };
        Strikes {
            epoch: self.epoch,
            strikes: self.strikes.iter().map(strike).collect(),
            trial_age_ms: self.trial_ms.map(age),
        }
    }

    pub(crate) fn of_wire(strikes: &Strikes, now_ms: u64) -> Self {
        let at = |age_ms: u64| now_ms.saturating_sub(age_ms);
        let strike = |strike: &Strike| (strike.process.clone(), at(strike.age_ms));
        Self {
            epoch: strikes.epoch,
            strikes: strikes.strikes.iter().take(MAX_STRIKES).map(strike).collect(),
            trial_ms: strikes.trial_age_ms.map(at),
            changed_ms: now_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Incarnation, PeerId};

    const MINUTE: u64 = 60_000;

    fn process(id: &str, incarnation: u64) -> Instance {
        Instance { id: PeerId::new(id).unwrap(), incarnation: Incarnation(incarnation) }
    }

    fn record(strikes: &[(&str, u64)]) -> Record {
        let mut record = Record::default();
        strikes.iter().for_each(|(id, at_ms)| record.strike(process(id, 1), *at_ms));
        record
    }

    /// Checks that one strike makes a suspect for ten minutes, that a second one begins a quarantine of ten minutes, and
    /// that each further one doubles its length up to an hour.
    #[test]
    fn strikes_lengthen_the_quarantine() {
        let one = record(&[("a", 0)]);
        assert_eq!([0, 10 * MINUTE - 1, 10 * MINUTE].map(|now| one.verdict(now)), {
            [Verdict::Suspected, Verdict::Suspected, Verdict::Clean]
        });
        let mut many = record(&[("a", 0), ("b", MINUTE)]);
        assert_eq!(many.verdict(2 * MINUTE), Verdict::Quarantined { until_ms: 11 * MINUTE });
        assert_eq!(many.verdict(11 * MINUTE), Verdict::Trial);
        for (strikes, length) in [(3, 20), (4, 40), (5, 60), (6, 60)] {
            let now = many.last_ms() + 61 * MINUTE;
            many.strike(process(&format!("c{strikes}"), 1), now);
            assert_eq!(many.verdict(now), Verdict::Quarantined { until_ms: now + length * MINUTE }, "{strikes}");
        }
        assert_eq!(many.verdict(many.last_ms() + 121 * MINUTE), Verdict::Clean, "nobody asked for an hour");
        assert_eq!(
            record(&[("a", 0), ("b", 10 * MINUTE)]).verdict(10 * MINUTE),
            Verdict::Suspected,
            "the first is old"
        );
    }

    /// Checks that one trial begins after a quarantine, and another one once the first has had its time.
    #[test]
    fn one_trial_runs_at_a_time() {
        let mut record = record(&[("a", 0), ("b", 0)]);
        assert_eq!(record.verdict(10 * MINUTE), Verdict::Trial);
        record.begin_trial(10 * MINUTE);
        assert_eq!(record.verdict(10 * MINUTE), Verdict::Quarantined { until_ms: 11 * MINUTE });
        assert_eq!(record.verdict(11 * MINUTE), Verdict::Trial);
        record.clear(11 * MINUTE);
        assert_eq!(record.verdict(11 * MINUTE), Verdict::Clean);
    }

    /// Checks that merges in any order have one result, and that a load that ended well outweighs earlier strikes.
    #[test]
    fn merges_in_any_order_agree() {
        let (a, b) = (record(&[("a", 5)]), record(&[("b", 7)]));
        let mut cleared = a.clone();
        cleared.clear(9);
        for order in [[&a, &b, &cleared], [&cleared, &b, &a], [&b, &cleared, &a]] {
            let mut merged = Record::default();
            order.iter().for_each(|other| _ = merged.merge(other, 9));
            assert_eq!((merged.verdict(9), merged.epoch), (Verdict::Clean, 1));
        }
        let (mut ab, mut ba) = (a.clone(), b.clone());
        assert!(ab.merge(&b, 9) && ba.merge(&a, 9) && ab.strikes == ba.strikes);
        assert!(!ab.merge(&b, 9), "nothing new");
        assert_eq!(ab.verdict(9), Verdict::Quarantined { until_ms: 7 + 10 * MINUTE });
    }

    /// Checks that the strike of a process that is alive is taken back, and does not return from another node.
    #[test]
    fn living_process_is_pardoned() {
        let (mut here, there) = (record(&[("a", 0), ("b", 0)]), record(&[("a", 0)]));
        assert!(here.pardon(&process("a", 1), 1) && !here.pardon(&process("a", 2), 1));
        assert!(!here.merge(&there, 2));
        assert_eq!((here.verdict(2), here.strikes()), (Verdict::Suspected, 1));
        assert!(!here.is_over(10 * MINUTE) && here.is_over(11 * MINUTE));
    }
}
