//! What a fault did, in figures, and what of it must not be.

use std::{collections::BTreeMap, fmt, fs, io, path::Path};

use serde::Serialize;
use serde_json::Value;

use crate::{Fault, Histogram, NODES, Sample, cluster::Held, run::is_well};

/// A node that loads what another one owns keeps it this long at first, and longer each time.
const FALLBACK_MS: u64 = 5000;

/// More would not tell more.
const SLOW_TOLD: usize = 12;

/// What a run found.
#[derive(Debug, Default)]
pub struct Report {
    /// Fault by fault.
    pub faults: Vec<Figures>,
}

/// Something that must not be.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Which promise.
    pub what: &'static str,
    /// What was seen instead.
    pub seen: String,
}

/// What came of one fault. Times are in microseconds where they are of gets, else in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Which one.
    pub fault: &'static str,
    /// The node that it was done to.
    pub victim: String,
    /// Why it was not done.
    pub left_out: Option<String>,
    /// What else is worth to be known.
    pub note: Option<String>,
    rate: u64,
    /// Gets that ended at all nodes, from before the fault until all were well after it.
    pub gets: u64,
    /// The same, node by node.
    gets_of_each: [u64; NODES],
    /// Gets that failed at the other nodes, by why and whose key it was.
    pub failed_elsewhere: BTreeMap<String, u64>,
    /// Gets that failed at the node itself.
    pub failed_at_victim: BTreeMap<String, u64>,
    /// Writes and their kin at all nodes, by what came of them.
    pub writes: BTreeMap<String, u64>,
    before: Latency,
    during: Latency,
    settling: Latency,
    after: Latency,
    /// Some of the slow gets at the other nodes.
    pub slow: Vec<String>,
    /// From its end until all nodes had been well.
    pub recovery_ms: u64,
    /// Loads from its beginning until all were well, by how many of one key there were.
    pub loads_of_a_key: BTreeMap<u64, u64>,
    /// What the processes had before the first fault.
    pub(crate) held_before: Vec<Held>,
    /// What they have now.
    pub(crate) held_after: Vec<Held>,
    /// What must not be.
    pub findings: Vec<Finding>,
}

/// How long gets took at the nodes that nothing was done to.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Latency {
    p50: u64,
    p99: u64,
    longest: u64,
}

/// When what happened, in milliseconds of the machine's clock.
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
            before: Latency::default(),
            during: Latency::default(),
            settling: Latency::default(),
            after: Latency::default(),
            slow: Vec::new(),
            recovery_ms: 0,
            loads_of_a_key: BTreeMap::new(),
            held_before: Vec::new(),
            held_after: Vec::new(),
            findings: Vec::new(),
        }
    }

    pub(crate) fn finds(&mut self, what: &'static str, seen: String) {
        self.findings.push(Finding { what, seen });
    }

    /// Reads what the nodes said.
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
        self.settling = latency(fault_ends, well);
        self.after = latency(well, end);
        let ill = all(fault_ends, end).filter(|(_, sample)| !is_well(sample)).map(|(_, sample)| sample.at);
        self.recovery_ms = ill.max().map_or(0, |at| at - fault_ends);
        let slow = all(begin, end).filter(|(n, _)| *n != victim).flat_map(|(n, sample)| {
            sample
                .slow
                .iter()
                .map(move |get| format!("n{} at {} ms: {get}", n + 1, sample.at.saturating_sub(fault_begins)))
        });
        self.slow = slow.take(SLOW_TOLD).collect();
        for (n, sample) in all(begin, end) {
            self.gets += sample.gets.count();
            self.gets_of_each[n] += sample.gets.count();
            let failed = if n == victim { &mut self.failed_at_victim } else { &mut self.failed_elsewhere };
            add(failed, &sample.failed);
            add(&mut self.writes, &sample.writes);
        }
        let stale: Vec<_> =
            all(begin, end).flat_map(|(n, s)| s.stale.iter().map(move |s| format!("n{}: {s}", n + 1))).collect();
        if !stale.is_empty() {
            let first = stale.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
            self.finds("P9, no get yields what a write has passed", format!("{} times: {first}", stale.len()));
        }
        let over = all(begin, end).filter(|(_, sample)| sample.bytes > sample.capacity).count();
        if over > 0 {
            self.finds("P6, bytes are bounded", format!("{over} times over the capacity"));
        }
        self.judge_failures();
        self.judge_loads(&loads(all(begin, fault_begins)), &loads(all(fault_begins, end)), end - fault_begins);
    }

    fn judge_failures(&mut self) {
        // A key whose owner's loader does not end cannot be had; everything else can.
        let stalled = format!("timeout of {}", self.victim);
        let is_expected = |what: &str| self.fault == Fault::LoaderStalls.name() && what.ends_with(&stalled);
        let failed: Vec<_> = self.failed_elsewhere.iter().filter(|(what, _)| !is_expected(what)).collect();
        if !failed.is_empty() {
            self.finds("P4, no get fails where nothing was done", format!("{failed:?}"));
        }
        // A get may have begun before its process was stopped, and its deadline have passed meanwhile.
        let may_fail = [Fault::Stop, Fault::LoaderStalls].map(Fault::name).contains(&self.fault);
        if !may_fail && !self.failed_at_victim.is_empty() {
            let failed = format!("{:?}", self.failed_at_victim);
            self.finds("P4, no get fails for want of a peer", failed);
        }
    }

    fn judge_loads(&mut self, calm: &BTreeMap<String, u64>, faulty: &BTreeMap<String, u64>, lasted_ms: u64) {
        let twice: Vec<_> = calm.iter().filter(|(_, count)| **count > 1).collect();
        if !twice.is_empty() {
            self.finds("P1, one load", format!("before the fault: {twice:?}"));
        }
        for count in faulty.values() {
            *self.loads_of_a_key.entry(*count).or_default() += 1;
        }
        let most = NODES as u64 * (1 + lasted_ms.div_ceil(FALLBACK_MS));
        if let Some((key, count)) = faulty.iter().find(|(_, count)| **count > most) {
            self.finds("P2, bounded loads", format!("{key} was loaded {count} times, in {lasted_ms} ms"));
        }
    }

    fn descriptors(held: &[Held]) -> String {
        held.iter().map(|held| held.descriptors.to_string()).collect::<Vec<_>>().join(" ")
    }

    fn mebibytes(held: &[Held]) -> String {
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
            return writeln!(f, ": left out, {why}");
        }
        let failed = |all: &BTreeMap<String, u64>| all.values().sum::<u64>();
        writeln!(
            f,
            ": {} gets, {} failed elsewhere, {} at it",
            self.gets,
            failed(&self.failed_elsewhere),
            failed(&self.failed_at_victim)
        )?;
        writeln!(f, "  gets of each {:?}", self.gets_of_each)?;
        for (what, count) in &self.failed_at_victim {
            writeln!(f, "  at it: {count} × {what}")?;
        }
        let phases =
            [("before", self.before), ("during", self.during), ("settling", self.settling), ("after", self.after)];
        for (name, Latency { p50, p99, longest }) in phases {
            writeln!(f, "  {name:9} p50 {p50} µs, p99 {p99} µs, longest {} ms", longest / 1000)?;
        }
        for slow in &self.slow {
            writeln!(f, "  slow, {slow}")?;
        }
        writeln!(f, "  well again {} ms after it was over", self.recovery_ms)?;
        let loads = self.loads_of_a_key.iter().map(|(loads, keys)| format!("{keys} keys {loads} ×"));
        writeln!(f, "  loaded meanwhile: {}", loads.collect::<Vec<_>>().join(", "))?;
        let writes = self.writes.iter().map(|(what, count)| format!("{what} {count}"));
        writeln!(f, "  {}", writes.collect::<Vec<_>>().join(", "))?;
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
            writeln!(f, "  FOUND {what}: {seen}")?;
        }
        Ok(())
    }
}

impl Report {
    /// Everything that must not be.
    pub fn findings(&self) -> Vec<String> {
        let of = |figures: &Figures| {
            let found =
                figures.findings.iter().map(|Finding { what, seen }| format!("{}: {what}: {seen}", figures.fault));
            found.collect::<Vec<_>>()
        };
        self.faults.iter().flat_map(of).collect()
    }

    /// Keeps the figures as JSON; those of faults that this run did not have stay as they are.
    ///
    /// # Errors
    /// When the file cannot be written.
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

    /// What is found when one node, of which the first is the victim, says this beside what all say who are well.
    fn found(fault: Fault, node: usize, at: u64, said: impl FnOnce(&mut Sample)) -> Vec<&'static str> {
        let well = |at| Sample { at, reachable: NODES, ..Sample::default() };
        let mut samples = vec![vec![well(500), well(1500), well(2500), well(3500)]; NODES];
        let mut sample = well(at);
        said(&mut sample);
        samples[node].push(sample);
        let mut figures = Figures::new(fault, "n1", 0);
        figures.judge(&samples, 0, TIMES);
        figures.findings.iter().map(|finding| finding.what).collect()
    }

    fn one(what: &str, count: u64) -> BTreeMap<String, u64> {
        BTreeMap::from([(what.to_owned(), count)])
    }

    #[test]
    fn all_that_must_not_be_is_found_and_nothing_else() {
        let nothing: [&str; 0] = [];
        assert_eq!(found(Fault::Kill, 1, 1500, |_| ()), nothing);

        let p4 = ["P4, no get fails where nothing was done"];
        let fails = |what: &str| one(what, 1);
        assert_eq!(found(Fault::Kill, 1, 3900, |s| s.failed = fails("read timeout of n1")), p4);
        assert_eq!(found(Fault::Stop, 0, 1500, |s| s.failed = fails("read timeout of n1")), nothing, "it was stopped");
        let alone = ["P4, no get fails for want of a peer"];
        assert_eq!(found(Fault::Cut, 0, 1500, |s| s.failed = fails("read timeout of n2")), alone, "its loader works");
        assert_eq!(found(Fault::Kill, 1, 5000, |s| s.failed = fails("read timeout of n1")), nothing, "another fault's");
        assert_eq!(found(Fault::LoaderStalls, 1, 1500, |s| s.failed = fails("read timeout of n1")), nothing);
        assert_eq!(found(Fault::LoaderStalls, 1, 1500, |s| s.failed = fails("read timeout of n2")), p4);
        assert_eq!(found(Fault::LoaderStalls, 1, 1500, |s| s.failed = fails("read unreachable of n1")), p4);

        let p9 = ["P9, no get yields what a write has passed"];
        assert_eq!(found(Fault::Kill, 0, 1500, |s| s.stale.push("old".into())), p9, "at the victim too");
        assert_eq!(found(Fault::Kill, 1, 500, |s| s.bytes = 1), ["P6, bytes are bounded"]);

        assert_eq!(found(Fault::Kill, 1, 500, |s| s.loaded = one("key", 1)), nothing);
        assert_eq!(found(Fault::Kill, 1, 500, |s| s.loaded = one("key", 2)), ["P1, one load"]);
        assert_eq!(found(Fault::Kill, 1, 1500, |s| s.loaded = one("key", 10)), nothing);
        assert_eq!(found(Fault::Kill, 1, 1500, |s| s.loaded = one("key", 11)), ["P2, bounded loads"]);
    }

    #[test]
    fn recovery_lasts_until_the_last_node_is_well() {
        let mut figures = Figures::new(Fault::Cut, "n1", 0);
        let ill = Sample { at: 2700, reachable: 4, ..Sample::default() };
        figures.judge(&[vec![], vec![ill]], 0, TIMES);
        assert_eq!(figures.recovery_ms, 700);
    }
}
