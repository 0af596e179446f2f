//! Record of one key: the processes that ended while they loaded the key, and what follows from them.
//!
//! Records of several nodes are merged in any order with one result: the later epoch wins, and within one epoch the
//! later change of each strike. An epoch ends when a load of the key ends well.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    identity::{Instance, PeerId},
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

/// Highest epoch and number of changes that are taken from another node, so that this node can always go beyond it.
const MAX_COUNT: u32 = 1 << 30;

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

/// Strike against a process, or its withdrawal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    /// Number of changes: odd = the process has ended, even = it turned out to be alive.
    count: u32,
    /// Time of the end of the process.
    at_ms: u64,
}

impl Mark {
    fn is_strike(self) -> bool {
        self.count % 2 == 1
    }
}

/// Strikes against a key. Times are those of the local clock, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    epoch: u32,
    marks: BTreeMap<Instance, Mark>,
    /// Time at which the last trial began.
    trial_ms: Option<u64>,
    /// Time of the last change on any node, after which a record without a strike is kept for a while.
    changed_ms: u64,
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// Returns the end of the quarantine after these strikes; `None` below two.
fn until_ms(strikes: &[u64]) -> Option<u64> {
    let (last_ms, doublings) = (strikes.last()?, strikes.len().checked_sub(2)?);
    let length = millis(QUARANTINE).saturating_mul(1 << doublings.min(8)).min(millis(QUARANTINE_MAX));
    Some(last_ms.saturating_add(length))
}

impl Record {
    /// Adds a strike.
    pub(super) fn strike(&mut self, process: Instance, now_ms: u64) {
        let mark = self.marks.entry(process).or_insert(Mark { count: 0, at_ms: now_ms });
        if !mark.is_strike() {
            *mark = Mark { count: mark.count + 1, at_ms: now_ms };
        }
        self.limit();
        self.changed_ms = now_ms;
    }

    fn limit(&mut self) {
        while self.marks.len() > MAX_STRIKES {
            let oldest = self.marks.iter().min_by_key(|(_, mark)| (mark.is_strike(), mark.at_ms));
            let Some(oldest) = oldest.map(|(process, _)| process.clone()) else { return };
            self.marks.remove(&oldest);
        }
    }

    /// Begins a new epoch without strikes, because a load of the key has ended well.
    pub(super) fn clear(&mut self, now_ms: u64) {
        *self = Self { epoch: self.epoch.saturating_add(1), changed_ms: now_ms, ..Self::default() };
    }

    /// Takes the strike of a process back that is alive. Returns whether there was one.
    pub(super) fn pardon(&mut self, process: &Instance, now_ms: u64) -> bool {
        let Some(mark) = self.marks.get_mut(process).filter(|mark| mark.is_strike()) else { return false };
        mark.count += 1;
        self.changed_ms = now_ms;
        true
    }

    /// Records that a trial begins.
    pub(super) fn begin_trial(&mut self, now_ms: u64) {
        (self.trial_ms, self.changed_ms) = (Some(now_ms), now_ms);
    }

    /// Takes in the record of another node. Returns whether this record has changed.
    pub(super) fn merge(&mut self, other: &Self, now_ms: u64) -> bool {
        // Otherwise two nodes would show each other a record for ever that each of them has forgotten before.
        if other.epoch < self.epoch || other.is_over(now_ms) {
            return false;
        }
        let before = self.clone();
        if other.epoch > self.epoch {
            *self = other.clone();
        } else {
            for (process, theirs) in &other.marks {
                let ours = self.marks.entry(process.clone()).or_insert(*theirs);
                if ours.count < theirs.count {
                    *ours = *theirs;
                }
            }
            self.limit();
            self.trial_ms = self.trial_ms.max(other.trial_ms);
            self.changed_ms = self.changed_ms.max(other.changed_ms);
        }
        let counts = |record: &Self| record.marks.iter().map(|(p, mark)| (p.clone(), mark.count)).collect::<Vec<_>>();
        // An age loses some milliseconds on its way, and is no news.
        let is_new_trial = self.trial_ms.unwrap_or(0) > before.trial_ms.unwrap_or(0) + millis(TRIAL) / 2;
        self.epoch != before.epoch || counts(self) != counts(&before) || is_new_trial
    }

    /// Returns the times of the strikes that count, in order. A single strike counts for ten minutes, and more of them
    /// until the key was not asked for long after their quarantine.
    fn counting(&self) -> Vec<u64> {
        let mut strikes: Vec<u64> =
            self.marks.values().filter(|mark| mark.is_strike()).map(|mark| mark.at_ms).collect();
        strikes.sort_unstable();
        let mut counting: Vec<u64> = Vec::with_capacity(strikes.len());
        for at_ms in strikes {
            if Self::has_expired(&counting, at_ms) {
                counting.clear();
            }
            counting.push(at_ms);
        }
        counting
    }

    fn has_expired(strikes: &[u64], now_ms: u64) -> bool {
        match (until_ms(strikes), strikes.first()) {
            (Some(until_ms), _) => now_ms >= until_ms.saturating_add(millis(TRIAL) + millis(TRIAL_WITHIN)),
            (None, Some(at_ms)) => now_ms.saturating_sub(*at_ms) >= millis(STRIKE_COUNTS),
            (None, None) => true,
        }
    }

    pub(crate) fn verdict(&self, now_ms: u64) -> Verdict {
        let strikes = self.counting();
        if Self::has_expired(&strikes, now_ms) {
            return Verdict::Clean;
        }
        let Some(until_ms) = until_ms(&strikes) else { return Verdict::Suspected };
        // A trial that has not ended the quarantine keeps others from one for a while.
        let trial_until_ms = self.trial_ms.filter(|at_ms| *at_ms >= until_ms).map(|at_ms| at_ms + millis(TRIAL));
        match until_ms.max(trial_until_ms.unwrap_or(0)) {
            until_ms if now_ms < until_ms => Verdict::Quarantined { until_ms },
            _ => Verdict::Trial,
        }
    }

    /// Returns whether the record says nothing any more. A record without a strike is kept as long as another node may
    /// still show earlier strikes.
    pub(super) fn is_over(&self, now_ms: u64) -> bool {
        let is_old = now_ms.saturating_sub(self.changed_ms) >= millis(STRIKE_COUNTS);
        self.verdict(now_ms) == Verdict::Clean && is_old
    }

    /// Returns whether this process has a strike.
    pub(crate) fn names(&self, process: &Instance) -> bool {
        self.marks.get(process).is_some_and(|mark| mark.is_strike())
    }

    /// Returns whether a process of this node has a strike.
    pub(crate) fn names_node(&self, id: &PeerId) -> bool {
        self.marks.iter().any(|(process, mark)| process.id == *id && mark.is_strike())
    }

    /// Returns the number of strikes that count.
    pub(crate) fn strikes(&self) -> usize {
        self.counting().len()
    }

    /// Returns the order in which records are kept: those with more strikes first, and later ones before earlier ones.
    pub(super) fn weight(&self) -> (usize, u64) {
        (self.strikes(), self.changed_ms)
    }

    pub(crate) fn to_wire(&self, now_ms: u64) -> Strikes {
        let age = |at_ms: u64| now_ms.saturating_sub(at_ms);
        let strike = |(process, mark): (&Instance, &Mark)| Strike {
            process: process.clone(),
            age_ms: age(mark.at_ms),
            count: mark.count,
        };
        Strikes {
            epoch: self.epoch,
            strikes: self.marks.iter().map(strike).collect(),
            trial_age_ms: self.trial_ms.map(age),
            changed_age_ms: age(self.changed_ms),
        }
    }

    pub(crate) fn of_wire(strikes: &Strikes, now_ms: u64) -> Self {
        let at = |age_ms: u64| now_ms.saturating_sub(age_ms);
        let mark = |strike: &Strike| {
            (strike.process.clone(), Mark { count: strike.count.min(MAX_COUNT - 1), at_ms: at(strike.age_ms) })
        };
        Self {
            epoch: strikes.epoch.min(MAX_COUNT),
            marks: strikes.strikes.iter().take(MAX_STRIKES).map(mark).collect(),
            trial_ms: strikes.trial_age_ms.map(at),
            changed_ms: at(strikes.changed_age_ms),
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

    fn last(record: &Record) -> u64 {
        record.counting().last().copied().unwrap()
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
            let now = last(&many) + 61 * MINUTE;
            many.strike(process(&format!("c{strikes}"), 1), now);
            assert_eq!(many.verdict(now), Verdict::Quarantined { until_ms: now + length * MINUTE }, "{strikes}");
        }
        assert_eq!(many.verdict(last(&many) + 122 * MINUTE), Verdict::Clean, "nobody asked for an hour");
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
        assert!(ab.merge(&b, 9) && ba.merge(&a, 9) && ab.marks == ba.marks);
        assert!(!ab.merge(&b, 9), "nothing new");
        assert_eq!(ab.verdict(9), Verdict::Quarantined { until_ms: 7 + 10 * MINUTE });
    }

    /// Checks that strikes are pardoned on any node and stay pardoned everywhere, that pardons of two nodes at once agree,
    /// and that a pardon takes no other strike back.
    #[test]
    fn living_process_is_pardoned_everywhere() {
        let both = record(&[("a", 0), ("b", 0)]);
        let (mut here, mut there) = (both.clone(), both.clone());
        assert!(here.pardon(&process("a", 1), 1) && !here.pardon(&process("a", 2), 1));
        assert!(!here.merge(&both, 2), "the strike does not return");
        there.pardon(&process("b", 1), 1);
        there.strike(process("c", 1), 2);
        let mut merged = here.clone();
        merged.merge(&there, 3);
        there.merge(&here, 3);
        assert_eq!((&merged.marks, merged.strikes()), (&there.marks, 1), "c is left");
        merged.strike(process("a", 1), 4);
        assert_eq!(merged.strikes(), 2, "it has ended after all");
    }

    /// Checks that two strikes more than ten minutes apart are no quarantine on whichever nodes they were seen, and that a
    /// record that is over is not taken from a node that has kept it.
    #[test]
    fn old_strike_of_another_node_counts_no_more() {
        let (mut here, there) = (record(&[("b", 12 * MINUTE)]), record(&[("a", 0)]));
        assert!(!here.merge(&there, 12 * MINUTE) && here.verdict(12 * MINUTE) == Verdict::Suspected);
        let mut late = record(&[("a", 0)]);
        late.strike(process("c", 1), 11 * MINUTE);
        here.merge(&late, 12 * MINUTE);
        assert_eq!(here.strikes(), 2, "of c and b");
        let mut new = Record::default();
        assert!(!new.merge(&Record::of_wire(&there.to_wire(20 * MINUTE), 20 * MINUTE), 20 * MINUTE));
        assert!(!there.is_over(9 * MINUTE) && there.is_over(10 * MINUTE));
    }
}
