//! One fault after the other.

use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use process::{PATIENCE, eventually, within};

use crate::{Cluster, Fault, Figures, NODES, Report, Sample, clock::milliseconds, cluster::Held, report::Times};

/// Which faults, and how long each.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is done, in this order.
    pub faults: Vec<Fault>,
    /// Gets per second of each node.
    pub rate: u64,
    /// How long all are well before each fault.
    pub before: Duration,
    /// How long it lasts.
    pub during: Duration,
    /// How long all are well again before the next one.
    pub after: Duration,
}

/// All are well when they say so this often without a break, which takes a second.
const WELL_SAMPLES: usize = 5;

/// So much later than expected, a process is not heard: on a busy machine.
const RECENT_MS: u64 = 1000;

/// Starts five processes of that program and does all that is planned; tells each fault's figures when it is over.
pub fn run(program: &Path, directory: &Path, plan: &Plan, mut tell: impl FnMut(&Figures)) -> Report {
    let mut cluster = Cluster::start(program, directory, plan.rate);
    let begun = milliseconds();
    eventually("all five are one cluster", || {
        let ended = cluster.ended();
        assert!(ended.is_empty(), "{ended:#?}");
        are_well(&cluster, begun)
    });
    let mut report = Report::default();
    let held = match quiet(&mut cluster, None) {
        Ok(held) => held,
        Err(left) => panic!("before any fault: {left}"),
    };
    for (n, fault) in plan.faults.iter().enumerate() {
        let figures = one(&mut cluster, *fault, n % NODES, plan, &held);
        tell(&figures);
        report.faults.push(figures);
    }
    report
}

fn one(cluster: &mut Cluster, fault: Fault, victim: usize, plan: &Plan, held: &[Held]) -> Figures {
    let mut figures = Figures::new(fault, &cluster.nodes[victim].name, plan.rate);
    cluster.has_load(true);
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
    if !within(PATIENCE, || are_well(cluster, fault_ends)) {
        figures.finds("recovery", format!("not all are well {PATIENCE:?} after it was over: {}", ills(cluster)));
    }
    let well = milliseconds();
    sleep(plan.after);
    let end = milliseconds();
    let times = Times { begin, fault_begins, fault_ends, well, end };
    let samples: Vec<_> = (0..NODES).map(|n| cluster.samples(n)).collect();
    figures.judge(&samples, victim, times);
    figures.held_before = held.to_vec();
    match quiet(cluster, Some(held)) {
        Ok(held) => figures.held_after = held,
        Err(left) => figures.finds("left behind", left),
    }
    cluster.ended().into_iter().for_each(|ended| figures.finds("ended", ended));
    figures
}

/// Stops the load and waits until nothing of it is left; what the processes have then.
fn quiet(cluster: &mut Cluster, before: Option<&[Held]>) -> Result<Vec<Held>, String> {
    cluster.has_load(false);
    let stopped = milliseconds();
    let of_all = |cluster: &Cluster| (0..NODES).map(|n| cluster.held(n)).collect::<Vec<_>>();
    let is_idle = |sample: &Sample| sample.waiting == 0 && sample.requests == 0 && sample.loads == 0;
    let are_closed = |held: &[Held]| {
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
                let descriptors = cluster.held(n).descriptors;
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

/// Whether all have been well for a while, and are heard.
fn are_well(cluster: &Cluster, since: u64) -> bool {
    let now = milliseconds();
    let mut rings = Vec::new();
    let all = (0..NODES).all(|n| {
        let last = cluster.recent(n, since, WELL_SAMPLES);
        rings.extend(last.first().map(|sample| sample.fingerprint));
        last.len() == WELL_SAMPLES && last[0].at + RECENT_MS > now && last.iter().all(is_well)
    });
    all && rings.iter().all(|ring| *ring == rings[0])
}

pub(crate) fn is_well(sample: &Sample) -> bool {
    sample.reachable == NODES && sample.failed.is_empty()
}

fn ills(cluster: &Cluster) -> String {
    let of = |n: usize| {
        let sample = cluster.last(n, 0).unwrap_or_default();
        format!("{} reaches {}, failed {:?}", cluster.nodes[n].name, sample.reachable, sample.failed)
    };
    (0..NODES).map(of).collect::<Vec<_>>().join("; ")
}
