//! Settling: the writes that each node follows until nothing is pending, and what gets of their keys lacked meanwhile.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Fault, Finding, Sample, report::Times};

/// Names of the groups with followed writes: one without a bound on staleness, and one with it.
pub const GROUPS: [&str; 2] = ["unbounded", "bounded"];

/// Index of the group with a bound.
const BOUNDED: usize = 1;

/// Stage of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The source has changed, and the write is called.
    Called,
    /// The write was complete when its call returned.
    Complete,
    /// The write was pending when its call returned, and has settled.
    Settled,
    /// The call has returned an error.
    Failed,
}

/// A write that has reached a stage.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct WriteEvent {
    /// Id of the writing process.
    pub process: u32,
    /// Number of the write among those of its process.
    pub number: usize,
    /// Index of the group in [`GROUPS`].
    pub group: usize,
    /// Time in milliseconds of the machine's clock.
    pub at: u64,
    /// Stage that the write has reached.
    pub stage: Stage,
}

/// Ages of the first returned write that a value lacked when its get began, in milliseconds, or zeros if the value
/// lacked none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// Time since the call of the write.
    pub called_ms: u64,
    /// Time since its return. A promise that is counted from the write holds from here on at the latest.
    pub returned_ms: u64,
}

/// Time within which a call of a write returns.
const CALL_MS: u64 = 1000;
/// Time within which a write settles if a living node connects its writer to every other one.
const SOON_MS: u64 = 4000;
/// Time after the end of a fault within which its writes settle.
const AFTER_END_MS: u64 = 3000;
/// Time beyond the bound within which a write to a group with a bound settles.
const AFTER_BOUND_MS: u64 = 1000;
/// Room for a busy machine in the times of a write, before a longer one is a finding.
const ROOM_MS: u64 = 4000;
/// Time under load, after all nodes were healthy for a second, at the end of which no write of a fault is pending.
const WELL_MS: u64 = 4000;
/// Age from which a value is a finding that lacks a returned write while each node is connected to a living one: about
/// a second per hop, with room for a busy machine.
const OLD_MS: u64 = 4000;

/// Writes of one group that were called while a fault lasted. Counts include those of the fields before them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Settled {
    /// All writes, without those of processes that ended before them.
    pub writes: u64,
    /// Writes that were complete when their call returned, after 1 s at most.
    pub complete: u64,
    /// Writes that had settled 1 s after their call, complete at its return or not.
    pub at_once: u64,
    /// Writes that had settled 4 s after their call.
    pub soon: u64,
    /// Writes that had settled 1 s after the bound of the group with a bound, counted from their call.
    pub by_bound: u64,
    /// Writes that had settled 3 s after the end of the fault, or soon.
    pub by_end: u64,
    /// Writes that had settled when the last phase of the fault ended.
    pub ever: u64,
    /// Writes that have failed.
    pub failed: u64,
    /// Writes of processes that ended before the writes had settled.
    pub ended: u64,
    /// Longest time from a call until its write had settled, in milliseconds.
    pub longest_ms: u64,
    /// Longest time from a call to the end of the last phase among the writes that had not settled.
    pub unsettled_ms: u64,
    /// Largest ages of what a get lacked.
    pub lacks: Lack,
}

/// Figures of both groups under one fault.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Settling {
    /// Bound of the group with a bound, in milliseconds.
    pub bound_ms: u64,
    /// Figures of each group, as [`GROUPS`] names them.
    pub groups: [Settled; GROUPS.len()],
}

/// Events of one write.
#[derive(Clone, Copy, Debug)]
struct Write {
    group: usize,
    called: u64,
    last: (u64, Stage),
}

impl Settling {
    /// Computes the figures from the samples of each node.
    pub(crate) fn new(samples: &[Vec<Sample>], times: Times, bound: Duration) -> Self {
        let bound_ms = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
        let mut this = Self { bound_ms, ..Self::default() };
        for of_node in samples {
            let present = of_node.iter().flat_map(|sample| &sample.settling).next_back().map(|event| event.process);
            for (process, write) in writes(of_node) {
                if (times.fault_begins..times.fault_ends).contains(&write.called) {
                    this.groups[write.group].add(write, present == Some(process), times, bound_ms);
                }
            }
            for sample in of_node.iter().filter(|sample| (times.fault_begins..times.end).contains(&sample.at)) {
                for (group, lack) in this.groups.iter_mut().zip(sample.lacks) {
                    group.lacks.called_ms = group.lacks.called_ms.max(lack.called_ms);
                    group.lacks.returned_ms = group.lacks.returned_ms.max(lack.returned_ms);
                }
            }
        }
        this
    }

    /// Returns the broken promises. Times have room for a busy machine, and the bound needs none.
    pub(crate) fn findings(&self, fault: Fault, times: Times) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut find = |what, seen| findings.push(Finding { what, seen });
        let bounded = self.groups[BOUNDED].lacks;
        if bounded.returned_ms > self.bound_ms {
            let (Lack { called_ms, returned_ms }, bound_ms) = (bounded, self.bound_ms);
            find(
                "P9, no get lacks a write from longer ago than the bound",
                format!("a write of {called_ms} ms ago, returned {returned_ms} ms ago, with a bound of {bound_ms} ms"),
            );
        }
        let well_ms = times.end - times.well;
        for (name, (n, group)) in GROUPS.iter().zip(self.groups.iter().enumerate()) {
            if fault.keeps_common_neighbours() && group.lacks.returned_ms > OLD_MS {
                let seen = format!("{name}: a write that had returned {} ms ago", group.lacks.returned_ms);
                find("P9, a node in reach of a write serves nothing older", seen);
            }
            let limit_ms = match fault {
                // The bound ends no wait for a node with a list that lacks the writer.
                Fault::EarlyDiscovery => u64::MAX,
                _ if fault.keeps_common_neighbours() => SOON_MS + ROOM_MS,
                _ if n == BOUNDED => self.bound_ms + self.bound_ms / 50 + AFTER_BOUND_MS + ROOM_MS,
                _ => u64::MAX,
            };
            let longest_ms = group.longest_ms.max(group.unsettled_ms);
            if longest_ms > limit_ms {
                let seen = format!("{name}: a write was pending for {longest_ms} ms, and {limit_ms} ms is the limit");
                find("P9, each write settles in time", seen);
            }
            if group.ever < group.writes && well_ms >= WELL_MS {
                let (left, all) = (group.writes - group.ever, group.writes);
                let seen = format!("{name}: {left} of {all} writes are pending after {well_ms} ms without a fault");
                find("P9, each write settles once the fault has ended", seen);
            }
        }
        findings
    }
}

impl Settled {
    fn add(&mut self, write: Write, is_present: bool, times: Times, bound_ms: u64) {
        let (at, stage) = write.last;
        let took_ms = at.saturating_sub(write.called);
        match stage {
            Stage::Failed => {
                self.failed += 1;
                return;
            }
            Stage::Called if !is_present => {
                self.ended += 1;
                return;
            }
            Stage::Called => {
                self.writes += 1;
                self.unsettled_ms = self.unsettled_ms.max(times.end.saturating_sub(write.called));
                return;
            }
            Stage::Complete | Stage::Settled => {}
        }
        let is_soon = took_ms <= SOON_MS;
        self.writes += 1;
        self.complete += u64::from(stage == Stage::Complete);
        self.at_once += u64::from(stage == Stage::Complete || took_ms <= CALL_MS);
        self.soon += u64::from(is_soon);
        self.by_bound += u64::from(took_ms <= bound_ms + AFTER_BOUND_MS);
        self.by_end += u64::from(is_soon || at <= times.fault_ends + AFTER_END_MS);
        self.ever += 1;
        self.longest_ms = self.longest_ms.max(took_ms);
    }
}

/// Returns the writes of a node, each with its process.
fn writes(samples: &[Sample]) -> Vec<(u32, Write)> {
    let mut all = BTreeMap::new();
    for &WriteEvent { process, number, group, at, stage } in samples.iter().flat_map(|sample| &sample.settling) {
        all.entry((process, number)).or_insert(Write { group, called: at, last: (at, stage) }).last = (at, stage);
    }
    all.into_iter().map(|((process, _), write)| (process, write)).collect()
}

impl fmt::Display for Settling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, group) in GROUPS.iter().zip(&self.groups) {
            let Settled { writes, failed, ended, longest_ms, lacks, .. } = group;
            let share = |count: u64| 100.0 * count as f64 / (*writes).max(1) as f64;
            let (complete, at_once) = (share(group.complete), share(group.at_once));
            let (soon, by_bound) = (share(group.soon), share(group.by_bound));
            let (by_end, never) = (share(group.by_end), share(writes - group.ever));
            writeln!(
                f,
                "  {name}: {writes} writes, complete {complete:.1} %, within 1 s {at_once:.1} %, within 4 s {soon:.1} %, within the bound and 1 s \
                 {by_bound:.1} %, 3 s after the end {by_end:.1} %, never {never:.1} %, longest {longest_ms} ms, failed \
                 {failed}, writer ended {ended}; oldest value {} ms",
                lacks.called_ms
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times { begin: 0, fault_begins: 1000, fault_ends: 16_000, well: 18_000, end: 28_000 };
    const BOUND: Duration = Duration::from_secs(10);

    /// Returns the samples of a node with one write of each group and its last stage, if it has reached one.
    fn node(group: usize, called: u64, last: Option<(u64, Stage)>) -> Vec<Sample> {
        let event = |at, stage| WriteEvent { process: 1, number: 0, group, at, stage };
        let mut settling = vec![event(called, Stage::Called)];
        settling.extend(last.map(|(at, stage)| event(at, stage)));
        vec![Sample { at: called, settling, ..Sample::default() }]
    }

    fn of(group: usize, called: u64, last: Option<(u64, Stage)>) -> Settled {
        Settling::new(&[node(group, called, last)], TIMES, BOUND).groups[group]
    }

    #[test]
    fn write_is_counted_by_the_time_until_it_settles() {
        let counts = |s: Settled| [s.writes, s.complete, s.at_once, s.soon, s.by_bound, s.by_end, s.ever];
        assert_eq!(counts(of(0, 2000, Some((2003, Stage::Complete)))), [1, 1, 1, 1, 1, 1, 1]);
        assert_eq!(counts(of(0, 2000, Some((3000, Stage::Settled)))), [1, 0, 1, 1, 1, 1, 1]);
        assert_eq!(counts(of(0, 2000, Some((6000, Stage::Settled)))), [1, 0, 0, 1, 1, 1, 1]);
        assert_eq!(counts(of(1, 2000, Some((13_000, Stage::Settled)))), [1, 0, 0, 0, 1, 1, 1]);
        assert_eq!(counts(of(0, 2000, Some((19_000, Stage::Settled)))), [1, 0, 0, 0, 0, 1, 1]);
        assert_eq!(counts(of(0, 2000, Some((19_001, Stage::Settled)))), [1, 0, 0, 0, 0, 0, 1]);
        assert_eq!(counts(of(0, 2000, None)), [1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(of(0, 2000, None).unsettled_ms, 26_000);
        assert_eq!(of(0, 999, None), Settled::default(), "the write was called before the fault");
        let failed = of(0, 2000, Some((3000, Stage::Failed)));
        assert_eq!((failed.writes, failed.failed), (0, 1));
    }

    #[test]
    fn write_of_an_ended_process_is_counted_apart() {
        let mut samples = node(0, 2000, None);
        let mut later = node(0, 3000, Some((3001, Stage::Complete)));
        later[0].settling.iter_mut().for_each(|event| event.process = 2);
        samples.extend(later);
        let settled = Settling::new(&[samples], TIMES, BOUND).groups[0];
        assert_eq!((settled.writes, settled.ended), (1, 1));
    }

    fn found(fault: Fault, samples: Vec<Sample>) -> Vec<&'static str> {
        let settling = Settling::new(&[samples], TIMES, BOUND);
        settling.findings(fault, TIMES).iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn late_writes_are_findings_by_their_fault() {
        let late = "P9, each write settles in time";
        let settles = |group, ms: u64| node(group, 2000, Some((2000 + ms, Stage::Settled)));
        assert_eq!(found(Fault::CutLink, settles(0, 8000)), [""; 0]);
        assert_eq!(found(Fault::CutLink, settles(0, 8001)), [late]);
        assert_eq!(found(Fault::Cut, settles(0, 20_000)), [""; 0]);
        assert_eq!(found(Fault::Cut, settles(1, 15_201)), [late]);
        assert_eq!(found(Fault::EarlyDiscovery, settles(1, 20_000)), [""; 0]);
        let never = "P9, each write settles once the fault has ended";
        assert_eq!(found(Fault::Cut, node(0, 2000, None)), [never]);
    }

    #[test]
    fn old_values_are_findings_by_their_group() {
        let lacks = |group: usize, returned_ms| {
            let mut sample = Sample { at: 2000, ..Sample::default() };
            sample.lacks[group] = Lack { called_ms: returned_ms + 500, returned_ms };
            vec![sample]
        };
        let bound = "P9, no get lacks a write from longer ago than the bound";
        let reach = "P9, a node in reach of a write serves nothing older";
        assert_eq!(found(Fault::Cut, lacks(1, 10_000)), [""; 0]);
        assert_eq!(found(Fault::Cut, lacks(1, 10_001)), [bound]);
        assert_eq!(found(Fault::Cut, lacks(0, 15_000)), [""; 0]);
        assert_eq!(found(Fault::CutLink, lacks(0, 4001)), [reach]);
    }
}
