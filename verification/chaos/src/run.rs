//! Run: applies one fault after another.

use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use process::{PATIENCE, eventually, within};

use crate::{
    Cluster, Fault, Figures, NODES, Report, Sample, Settling, clock::milliseconds, cluster::Resources, report::Times,
};

/// The faults of a run, and the duration of each phase.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Faults, in the order of the run.
    pub faults: Vec<Fault>,
    /// Gets per second of each node.
    pub rate: u64,
    /// Time under load before each fault.
    pub before: Duration,
    /// Duration of each fault.
    pub during: Duration,
    /// Time under load after each recovery.
    pub after: Duration,
    /// Bound on staleness of the group that has one.
    pub bound: Duration,
}

/// Number of consecutive healthy samples that make a node healthy. Five samples take 1 s.
const HEALTHY_SAMPLES: usize = 5;

/// Maximum age in milliseconds of the last sample of a healthy node, long enough for a busy machine.
const RECENT_MS: u64 = 1000;

/// Starts five processes of `program`, runs the plan, and passes the figures of each fault to `report_fault`.
pub fn run(program: &Path, directory: &Path, plan: &Plan, mut report_fault: impl FnMut(&Figures)) -> Report {
    let mut cluster = Cluster::start(program, directory, plan.rate, plan.bound);
    let begun = milliseconds();
    eventually("all five nodes are one cluster", || {
        let ended = cluster.ended_processes();
        assert!(ended.is_empty(), "{ended:#?}");
        are_healthy(&cluster, begun)
    });
    let mut report = Report::default();
    let held = match wait_until_idle(&mut cluster, None) {
        Ok(held) => held,
        Err(left) => panic!("the load does not end before the first fault: {left}"),
    };
    for (n, fault) in plan.faults.iter().enumerate() {
        let figures = one(&mut cluster, *fault, n % NODES, plan, &held);
        report_fault(&figures);
        report.faults.push(figures);
    }
    report
}

fn one(cluster: &mut Cluster, fault: Fault, victim: usize, plan: &Plan, held: &[Resources]) -> Figures {
    let mut figures = Figures::new(fault, &cluster.nodes[victim].name, plan.rate);
    cluster.set_load(true);
    let begin = milliseconds();
    sleep(plan.before);
    let (fault_begins, clock) = (milliseconds(), Instant::now());
    let effect = match fault.begin(cluster, victim) {
        Ok(effect) => effect,
        Err(why) => {
            figures.left_out = Some(why);
            return figures;
        }
    };
    sleep(plan.during.saturating_sub(clock.elapsed()));
    let fault_ends = milliseconds();
    figures.note = fault.end(cluster, victim, effect);
    if !within(PATIENCE, || are_healthy(cluster, fault_ends)) {
        figures.add_finding(
            "all nodes recover",
            format!("not all nodes are healthy {PATIENCE:?} after the end of the fault: {}", health(cluster)),
        );
    }
    let well = milliseconds();
    sleep(plan.after);
    let end = milliseconds();
    let times = Times { begin, fault_begins, fault_ends, well, end };
    let samples: Vec<_> = (0..NODES).map(|n| cluster.samples(n)).collect();
    figures.judge(&samples, victim, times);
    figures.settling = Settling::new(&samples, times, plan.bound);
    figures.findings.extend(figures.settling.findings(fault, times));
    figures.held_before = held.to_vec();
    match wait_until_idle(cluster, Some(held)) {
        Ok(held) => figures.held_after = held,
        Err(left) => figures.add_finding("nothing of the load is left", left),
    }
    cluster.ended_processes().into_iter().for_each(|ended| figures.add_finding("no process ends", ended));
    figures
}

/// Stops the load, waits until nothing of it is left, and returns the resources that the processes then have.
fn wait_until_idle(cluster: &mut Cluster, before: Option<&[Resources]>) -> Result<Vec<Resources>, String> {
    cluster.set_load(false);
    let stopped = milliseconds();
    let of_all = |cluster: &Cluster| (0..NODES).map(|n| cluster.resources(n)).collect::<Vec<_>>();
    let is_idle = |sample: &Sample| sample.waiting == 0 && sample.requests == 0 && sample.loads == 0;
    let are_closed = |held: &[Resources]| {
        before.is_none_or(|before| held.iter().zip(before).all(|(now, then)| now.descriptors <= then.descriptors))
    };
    let is_quiet = within(PATIENCE, || {
        let are_idle = (0..NODES).all(|n| cluster.last(n, stopped).as_ref().is_some_and(is_idle));
        are_idle && are_closed(&of_all(cluster))
    });
    match is_quiet {
        true => Ok(of_all(cluster)),
        false => {
            let left = |n| {
                let Sample { waiting, requests, loads, .. } = cluster.last(n, stopped).unwrap_or_default();
                let descriptors = cluster.resources(n).descriptors;
                let had = before.map_or(0, |before| before[n].descriptors);
                let name = &cluster.nodes[n].name;
                format!(
                    "{name}: {waiting} gets, {requests} requests, {loads} loads, {descriptors} descriptors of {had}"
                )
            };
            Err((0..NODES).map(left).collect::<Vec<_>>().join("; "))
        }
    }
}

/// Returns whether every node has reported [`HEALTHY_SAMPLES`] healthy samples in a row, the last one within
/// [`RECENT_MS`], and all nodes have one ring.
fn are_healthy(cluster: &Cluster, since: u64) -> bool {
    let now = milliseconds();
    let mut rings = Vec::new();
    let all = (0..NODES).all(|n| {
        let last = cluster.recent(n, since, HEALTHY_SAMPLES);
        rings.extend(last.first().map(|sample| sample.fingerprint));
        last.len() == HEALTHY_SAMPLES && last[0].at + RECENT_MS > now && last.iter().all(is_healthy)
    });
    all && rings.iter().all(|ring| *ring == rings[0])
}

pub(crate) fn is_healthy(sample: &Sample) -> bool {
    sample.reachable == NODES && sample.failed.is_empty()
}

fn health(cluster: &Cluster) -> String {
    let of = |n: usize| {
        let sample = cluster.last(n, 0).unwrap_or_default();
        format!("{} reaches {}, failed {:?}", cluster.nodes[n].name, sample.reachable, sample.failed)
    };
    (0..NODES).map(of).collect::<Vec<_>>().join("; ")
}
