//! Runs: a scene with a set of rules, through all of its states or for a limited time.

use std::time::Duration;

use stateright::{Checker, HasDiscoveries, Model};

use crate::{
    Protocol, Rules, Scene, Step,
    verdict::{SETTLED, SETTLES, SETTLING, STALENESS},
};

/// Outcome of a run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Number of different states.
    pub states: usize,
    /// Length of the longest run of steps.
    pub depth: usize,
    /// Time that the run took.
    pub took: Duration,
    /// Whether the run saw all states, or ended with a broken property.
    pub is_whole: bool,
    /// Whether some state has a settled write.
    pub settles: bool,
    /// Broken property, with steps that lead to a state that breaks it.
    pub broken: Option<(&'static str, Vec<Step>)>,
}

/// Runs a scene on `threads` threads, for `limit` at most.
#[expect(clippy::disallowed_methods, reason = "the report says how long a run took")]
pub fn run(scene: &Scene, rules: Rules, threads: usize, limit: Duration) -> Run {
    let start = std::time::Instant::now();
    let model = Protocol { scene: scene.clone(), rules };
    let checker = model.checker().threads(threads).timeout(limit).finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.spawn_bfs().join();
    let took = start.elapsed();
    let broken = [SETTLED, STALENESS, SETTLING].into_iter().find_map(|property| {
        let path = checker.discovery(property)?;
        Some((property, path.into_actions()))
    });
    Run {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        took,
        is_whole: broken.is_some() || took < limit,
        settles: checker.discovery(SETTLES).is_some(),
        broken,
    }
}
