//! Report: the figures of each fault, and the broken promises among them.

use std::{collections::BTreeMap, fmt, fs, io, path::Path};

use serde::Serialize;
use serde_json::Value;

use crate::{Fault, Histogram, NODES, Sample, Settling, cluster::Resources, run::is_healthy};

/// Shortest time in milliseconds for which a node keeps the value of a fallback load. The time grows with the time for
/// which the owner has been unreachable.
const FALLBACK_MS: u64 = 5000;

/// Maximum number of slow gets in the figures of a fault.
const SLOW_SHOWN: usize = 12;

/// Outcome of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// Figures of each fault, in the order of the run.
    pub faults: Vec<Figures>,
}

/// A broken promise.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Name of the promise.
    pub what: &'static str,
    /// Observation that breaks the promise.
    pub seen: String,
}

/// Figures of one fault. Times of gets are in microseconds, all other times in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Name of the fault.
    pub fault: &'static str,
    /// Node that the fault was applied to.
    pub victim: String,
    /// Reason why the fault was not applied, if it was not.
    pub left_out: Option<String>,
    /// Further fact about the fault.
    pub note: Option<String>,
    rate: u64,
    /// Number of gets that ended at all nodes, in all phases of the fault.
    pub gets: u64,
    /// Number of these gets at each node.
    gets_of_each: [u64; NODES],
    /// Gets that failed at nodes other than the victim, by reason and owner of the key.
    pub failed_elsewhere: BTreeMap<String, u64>,
    /// Gets that failed at the victim, by reason and owner of the key.
    pub failed_at_victim: BTreeMap<String, u64>,
    /// Writes and related calls at all nodes, by outcome.
    pub writes: BTreeMap<String, u64>,
    /// Writes that were followed until they had settled.
    pub settling: Settling,
    before: Latency,
    during: Latency,
    recovering: Latency,
    after: Latency,
    /// Examples of slow gets at nodes other than the victim.
    pub slow: Vec<String>,
    /// Time from the end of the fault to the last sample of a node that was not healthy.
    pub recovery_ms: u64,
    /// Number of keys by their number of loads, counted from the beginning of the fault to the end of its last phase.
    pub loads_of_a_key: BTreeMap<u64, u64>,
    /// Resources of the processes before the first fault.
    pub(crate) held_before: Vec<Resources>,
    /// Resources of the processes after this fault.
    pub(crate) held_after: Vec<Resources>,
    /// Promises that were broken under this fault.
    pub findings: Vec<Finding>,
}

/// Latencies of gets at the nodes without a fault, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Latency {
    p50: u64,
    p99: u64,
    longest: u64,
}

/// Beginnings and ends of the phases of a fault, in milliseconds of the machine's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) begin: u64,
    pub(crate) fault_begins: u64,
    pub(crate) fault_ends: u64,
    pub(crate) well: u64,
    pub(crate) end: u64,
}

impl From<&Histogram> for Latency {
    fn from(all: &Histogram) -> Self {
        Self { p50: all.micros(500), p99: all.micros(990), longest: all.micros(1000) }
    }
}

impl Figures {
    pub(crate) fn new(fault: Fault, victim: &str, rate: u64) -> Self {
        Self {
            fault: fault.name(),
            victim: victim.to_owned(),
            left_out: None,
            note: None,
            rate,
            gets: 0,
            gets_of_each: [0; NODES],
            failed_elsewhere: BTreeMap::new(),
            failed_at_victim: BTreeMap::new(),
            writes: BTreeMap::new(),
            settling: Settling::default(),
            before: Latency::default(),
            during: Latency::default(),
            recovering: Latency::default(),
            after: Latency::default(),
            slow: Vec::new(),
            recovery_ms: 0,
            loads_of_a_key: BTreeMap::new(),
            held_before: Vec::new(),
            held_after: Vec::new(),
            findings: Vec::new(),
        }
    }

    pub(crate) fn add_finding(&mut self, what: &'static str, seen: String) {
        self.findings.push(Finding { what, seen });
    }

    /// Computes the figures from the samples of the nodes, and adds the findings.
    pub(crate) fn judge(&mut self, samples: &[Vec<Sample>], victim: usize, times: Times) {
        let Times { begin, fault_begins, fault_ends, well, end } = times;
        let all = |from: u64, to: u64| {
            let within = move |sample: &&Sample| (from..to).contains(&sample.at);
            samples.iter().enumerate().flat_map(move |(n, of)| of.iter().filter(within).map(move |sample| (n, sample)))
        };
        let latency = |from, to| {
            let mut merged = Histogram::default();
            all(from, to).filter(|(n, _)| *n != victim).for_each(|(_, sample)| merged.merge(&sample.gets));
            Latency::from(&merged)
        };
        self.before = latency(begin, fault_begins);
        self.during = latency(fault_begins, fault_ends);
        self.recovering = latency(fault_ends, well);
        self.after = latency(well, end);
        let unhealthy = all(fault_ends, end).filter(|(_, sample)| !is_healthy(sample)).map(|(_, sample)| sample.at);
        self.recovery_ms = unhealthy.max().map_or(0, |at| at - fault_ends);
        let slow = all(begin, end).filter(|(n, _)| *n != victim).flat_map(|(n, sample)| {
            sample
                .slow
                .iter()
                .map(move |get| format!("n{} at {} ms: {get}", n + 1, sample.at.saturating_sub(fault_begins)))
        });
        self.slow = slow.take(SLOW_SHOWN).collect();
        for (n, sample) in all(begin, end) {
            self.gets += sample.gets.count();
            self.gets_of_each[n] += sample.gets.count();
            let failed = if n == victim { &mut self.failed_at_victim } else { &mut self.failed_elsewhere };
            add(failed, &sample.failed);
            add(&mut self.writes, &sample.writes);
        }
        // The writers have not met a process that lists nobody and is listed, and it can ask nobody for their writes.
        let is_unmet = |n: usize| self.fault == Fault::EarlyDiscovery.name() && n == victim;
        let judged = all(begin, end).filter(|(n, _)| !is_unmet(*n));
        let stale: Vec<_> = judged.flat_map(|(n, s)| s.stale.iter().map(move |s| format!("n{}: {s}", n + 1))).collect();
        if !stale.is_empty() {
            let first = stale.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
            self.add_finding(
                "P9, no get returns a value older than a completed write",
                format!("{} times: {first}", stale.len()),
            );
        }
        let over = all(begin, end).filter(|(_, sample)| sample.bytes > sample.capacity).count();
        if over > 0 {
            self.add_finding("P6, bytes are bounded", format!("{over} samples above the budget"));
        }
        self.judge_failures();
        self.judge_loads(&loads(all(begin, fault_begins)), &loads(all(fault_begins, end)), end - fault_begins);
    }

    fn judge_failures(&mut self) {
        // Gets of a key time out if the loader of its owner does not end. All other gets must succeed.
        let stalled = format!("timeout of {}", self.victim);
        let is_expected = |what: &str| self.fault == Fault::LoaderStalls.name() && what.ends_with(&stalled);
        let failed: Vec<_> = self.failed_elsewhere.iter().filter(|(what, _)| !is_expected(what)).collect();
        if !failed.is_empty() {
            self.add_finding("P4, no get fails at a node without a fault", format!("{failed:?}"));
        }
        // A get may begin before its process is stopped and pass its deadline while the process is stopped.
        let may_fail = [Fault::Stop, Fault::LoaderStalls].map(Fault::name).contains(&self.fault);
        if !may_fail && !self.failed_at_victim.is_empty() {
            let failed = format!("{:?}", self.failed_at_victim);
            self.add_finding("P4, no get fails because a peer is missing", failed);
        }
    }

    fn judge_loads(&mut self, calm: &BTreeMap<String, u64>, faulty: &BTreeMap<String, u64>, lasted_ms: u64) {
        let twice: Vec<_> = calm.iter().filter(|(_, count)| **count > 1).collect();
        if !twice.is_empty() {
            self.add_finding("P1, one load", format!("before the fault: {twice:?}"));
        }
        for count in faulty.values() {
            *self.loads_of_a_key.entry(*count).or_default() += 1;
        }
        let most = NODES as u64 * (1 + lasted_ms.div_ceil(FALLBACK_MS));
        if let Some((key, count)) = faulty.iter().find(|(_, count)| **count > most) {
            self.add_finding("P2, bounded loads", format!("{key} was loaded {count} times in {lasted_ms} ms"));
        }
    }

    fn descriptors(held: &[Resources]) -> String {
        held.iter().map(|held| held.descriptors.to_string()).collect::<Vec<_>>().join(" ")
    }

    fn mebibytes(held: &[Resources]) -> String {
        held.iter().map(|held| (held.resident_kib >> 10).to_string()).collect::<Vec<_>>().join(" ")
    }
}

fn add(to: &mut BTreeMap<String, u64>, more: &BTreeMap<String, u64>) {
    more.iter().for_each(|(name, count)| *to.entry(name.clone()).or_default() += count);
}

fn loads<'a>(samples: impl Iterator<Item = (usize, &'a Sample)>) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    samples.for_each(|(_, sample)| add(&mut all, &sample.loaded));
    all
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.fault, self.victim)?;
        if let Some(why) = &self.left_out {
            return writeln!(f, ": not applied, {why}");
        }
        let failed = |all: &BTreeMap<String, u64>| all.values().sum::<u64>();
        writeln!(
            f,
            ": {} gets, {} failed elsewhere, {} failed at the victim",
            self.gets,
            failed(&self.failed_elsewhere),
            failed(&self.failed_at_victim)
        )?;
        writeln!(f, "  gets at each node {:?}", self.gets_of_each)?;
        for (what, count) in &self.failed_at_victim {
            writeln!(f, "  failed at the victim: {count} × {what}")?;
        }
        let phases =
            [("before", self.before), ("during", self.during), ("recovering", self.recovering), ("after", self.after)];
        for (name, Latency { p50, p99, longest }) in phases {
            writeln!(f, "  {name:10} p50 {p50} µs, p99 {p99} µs, longest {} ms", longest / 1000)?;
        }
        for slow in &self.slow {
            writeln!(f, "  slow get: {slow}")?;
        }
        writeln!(f, "  all nodes healthy {} ms after the end of the fault", self.recovery_ms)?;
        let loads = self.loads_of_a_key.iter().map(|(loads, keys)| format!("{loads} for {keys} keys"));
        writeln!(f, "  loads of a key since the fault began: {}", loads.collect::<Vec<_>>().join(", "))?;
        let writes = self.writes.iter().map(|(what, count)| format!("{what} {count}"));
        writeln!(f, "  {}", writes.collect::<Vec<_>>().join(", "))?;
        write!(f, "{}", self.settling)?;
        writeln!(
            f,
            "  descriptors {} → {}",
            Self::descriptors(&self.held_before),
            Self::descriptors(&self.held_after)
        )?;
        writeln!(f, "  MiB {} → {}", Self::mebibytes(&self.held_before), Self::mebibytes(&self.held_after))?;
        if let Some(note) = &self.note {
            writeln!(f, "  {note}")?;
        }
        for Finding { what, seen } in &self.findings {
            writeln!(f, "  FINDING {what}: {seen}")?;
        }
        Ok(())
    }
}

impl Report {
    /// Returns all findings, each with its fault.
    pub fn findings(&self) -> Vec<String> {
        let of = |figures: &Figures| {
            let found =
                figures.findings.iter().map(|Finding { what, seen }| format!("{}: {what}: {seen}", figures.fault));
            found.collect::<Vec<_>>()
        };
        self.faults.iter().flat_map(of).collect()
    }

    /// Saves the figures as JSON. The file keeps the figures of faults that are not in this run.
    ///
    /// # Errors
    /// An I/O error if the file cannot be written.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let kept = fs::read_to_string(path).ok().and_then(|text| serde_json::from_str(&text).ok());
        let mut all: BTreeMap<String, Value> = kept.unwrap_or_default();
        for figures in &self.faults {
            all.insert(figures.fault.to_owned(), serde_json::to_value(figures)?);
        }
        fs::write(path, serde_json::to_string_pretty(&all)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times { begin: 0, fault_begins: 1000, fault_ends: 2000, well: 3000, end: 4000 };

    /// Returns the findings when `node` reports one more sample, which `change` has changed, and all others are
    /// healthy. Node 0 is the victim.
    fn found(fault: Fault, node: usize, at: u64, change: impl FnOnce(&mut Sample)) -> Vec<&'static str> {
        let well = |at| Sample { at, reachable: NODES, ..Sample::default() };
        let mut samples = vec![vec![well(500), well(1500), well(2500), well(3500)]; NODES];
        let mut sample = well(at);
        change(&mut sample);
        samples[node].push(sample);
        let mut figures = Figures::new(fault, "n1", 0);
        figures.judge(&samples, 0, TIMES);
        figures.findings.iter().map(|finding| finding.what).collect()
    }

    fn one(what: &str, count: u64) -> BTreeMap<String, u64> {
        BTreeMap::from([(what.to_owned(), count)])
    }

    /// Changes one sample at a time. A value that is allowed under the fault, or at the victim, must not be a finding.
    #[test]
    fn broken_promises_are_findings_and_nothing_else_is() {
        let nothing: [&str; 0] = [];
        assert_eq!(found(Fault::Kill, 1, 1500, |_| ()), nothing);

        let p4 = ["P4, no get fails at a node without a fault"];
        let fails = |what: &str| one(what, 1);
        assert_eq!(found(Fault::Kill, 1, 3900, |s| s.failed = fails("read timeout of n1")), p4);
        assert_eq!(
            found(Fault::Stop, 0, 1500, |s| s.failed = fails("read timeout of n1")),
            nothing,
            "the victim was stopped"
        );
        let alone = ["P4, no get fails because a peer is missing"];
        assert_eq!(
            found(Fault::Cut, 0, 1500, |s| s.failed = fails("read timeout of n2")),
            alone,
            "the loader of the victim works"
        );
        assert_eq!(
            found(Fault::Kill, 1, 5000, |s| s.failed = fails("read timeout of n1")),
            nothing,
            "the sample is of another fault"
        );
        assert_eq!(found(Fault::LoaderStalls, 1, 1500, |s| s.failed = fails("read timeout of n1")), nothing);
        assert_eq!(found(Fault::LoaderStalls, 1, 1500, |s| s.failed = fails("read timeout of n2")), p4);
        assert_eq!(found(Fault::LoaderStalls, 1, 1500, |s| s.failed = fails("read unreachable of n1")), p4);

        let p9 = ["P9, no get returns a value older than a completed write"];
        assert_eq!(
            found(Fault::Kill, 0, 1500, |s| s.stale.push("old".into())),
            p9,
            "a stale value at the victim counts too"
        );
        assert_eq!(found(Fault::EarlyDiscovery, 0, 1500, |s| s.stale.push("old".into())), nothing, "not met yet");
        assert_eq!(found(Fault::EarlyDiscovery, 1, 1500, |s| s.stale.push("old".into())), p9);
        assert_eq!(found(Fault::Kill, 1, 500, |s| s.bytes = 1), ["P6, bytes are bounded"]);

        assert_eq!(found(Fault::Kill, 1, 500, |s| s.loaded = one("key", 1)), nothing);
        assert_eq!(found(Fault::Kill, 1, 500, |s| s.loaded = one("key", 2)), ["P1, one load"]);
        assert_eq!(found(Fault::Kill, 1, 1500, |s| s.loaded = one("key", 10)), nothing);
        assert_eq!(found(Fault::Kill, 1, 1500, |s| s.loaded = one("key", 11)), ["P2, bounded loads"]);
    }

    /// The recovery takes as long as any node does not reach all others.
    #[test]
    fn recovery_ends_with_the_last_unhealthy_sample() {
        let mut figures = Figures::new(Fault::Cut, "n1", 0);
        let unhealthy = Sample { at: 2700, reachable: 4, ..Sample::default() };
        figures.judge(&[vec![], vec![unhealthy]], 0, TIMES);
        assert_eq!(figures.recovery_ms, 700);
    }
}
