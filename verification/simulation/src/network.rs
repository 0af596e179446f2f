//! Network: the links between machines, and the faults of links.

use std::{collections::BTreeSet, time::Duration};

use turmoil::Sim;

use crate::{
    scenario::{Fault, Scenario},
    world::name,
};

/// Faults of links in force, by pairs of machines.
pub(crate) struct Network {
    machines: usize,
    /// Latency of a link without a fault.
    latency: Duration,
    held: BTreeSet<(usize, usize)>,
    cut: BTreeSet<(usize, usize)>,
    slow: BTreeSet<(usize, usize)>,
}

impl Network {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let (machines, latency) = (scenario.nodes, scenario.latency.0);
        Self { machines, latency, held: BTreeSet::new(), cut: BTreeSet::new(), slow: BTreeSet::new() }
    }

    pub(crate) fn faults(&self) -> u32 {
        (self.held.len() + self.cut.len() + self.slow.len()) as u32
    }

    /// Returns the link of a pair, or all links of a machine that is paired with itself.
    fn links(&self, a: usize, b: usize) -> Vec<(usize, usize)> {
        let others = if a == b { (0..self.machines).collect() } else { vec![b] };
        others.into_iter().filter(|other| *other != a).map(|other| (a.min(other), a.max(other))).collect()
    }

    pub(crate) fn change(&mut self, sim: &Sim<'_>, fault: &Fault) {
        match *fault {
            Fault::Hold(a, b) => {
                sim.hold(name(a), name(b));
                self.held.insert((a.min(b), a.max(b)));
            }
            Fault::Release(a, b) => {
                sim.release(name(a), name(b));
                self.held.remove(&(a.min(b), a.max(b)));
            }
            Fault::CutOneWay(a, b) => {
                sim.partition_oneway(name(a), name(b));
                self.cut.insert((a.min(b), a.max(b)));
            }
            Fault::Cut(a, b) => {
                for (a, b) in self.links(a, b) {
                    sim.partition(name(a), name(b));
                    self.cut.insert((a, b));
                }
            }
            Fault::Repair(a, b) => {
                for (a, b) in self.links(a, b) {
                    sim.repair(name(a), name(b));
                    self.cut.remove(&(a, b));
                }
            }
            Fault::Slow(a, b, latency) => {
                sim.set_link_latency(name(a), name(b), latency);
                self.slow.insert((a.min(b), a.max(b)));
            }
            Fault::Fast(a, b) => {
                sim.set_link_latency(name(a), name(b), self.latency);
                self.slow.remove(&(a.min(b), a.max(b)));
            }
            _ => {}
        }
    }

    /// Repairs all links.
    pub(crate) fn heal(&mut self, sim: &Sim<'_>) {
        for a in 0..self.machines {
            for b in 0..a {
                sim.release(name(a), name(b));
                sim.repair(name(a), name(b));
                sim.set_link_latency(name(a), name(b), self.latency);
            }
        }
        self.held.clear();
        self.cut.clear();
        self.slow.clear();
    }
}
