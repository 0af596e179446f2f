#![doc = include_str!("../README.md")]

mod acknowledge;
pub mod bits;
mod company;
mod faults;
mod horizon;
mod log;
mod mutants;
mod rules;
mod run;
pub mod scene;
pub mod scenes;
pub mod state;
mod steps;
#[cfg(test)]
mod tests;
mod values;
pub mod verdict;

pub use mutants::finder;
pub use rules::{Rule, Rules};
pub use run::{Run, run};
pub use scene::Scene;
pub use steps::Step;

/// Protocol under test: a scene, and the rules that the nodes keep.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// Cluster and events.
    pub scene: Scene,
    /// Rules that the nodes keep.
    pub rules: Rules,
}

impl Protocol {
    /// Returns whether the nodes keep `rule`.
    pub(crate) fn keeps(&self, rule: Rule) -> bool {
        self.rules.keep(rule)
    }
}
