//! What is done to a cluster, step by step.

use std::{path::Path, time::Duration};

use super::{
    Settings, Who,
    cluster::{Cluster, pause},
    record::Run,
};
use crate::Result;

/// How long it is measured what is steady.
const STEADY: Duration = Duration::from_secs(20);

/// How long after the last step the deploy is counted: what it made cold is loaded in the meantime.
const AFTER: Duration = Duration::from_secs(15);

/// How long after all that is counted it is waited for what moves when the ring is quiet, where anything does.
const LATER: Duration = Duration::from_secs(30);

/// Between two steps; Kubernetes takes longer.
const STEP: Duration = Duration::from_secs(1);

/// How long a platform takes to notice that a process is dead.
const NOTICED: Duration = Duration::from_secs(2);

/// Keys that are removed in a second, where any are.
const REMOVES: f64 = 50.0;

/// The size of the cluster, and of the small one that grows to it.
const SIZE: usize = 10;
const SMALL: usize = 3;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// (a) Ten new names, one more than ten at a time.
    Deployment,
    /// (b) The same names start again, one after the other.
    StatefulSet,
    /// (b) While keys are removed all the time.
    StatefulSetWrites,
    /// (c) From three to ten and back, all at once.
    Scale,
    /// (d) One of ten is killed.
    Kill,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Deployment, Self::StatefulSet, Self::StatefulSetWrites, Self::Scale, Self::Kill];

    /// As it is written in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deployment => "(a) ten new names, surge 1",
            Self::StatefulSet => "(b) the same names restart",
            Self::StatefulSetWrites => "(b) with 50 removes a second",
            Self::Scale => "(c) 3 to 10 to 3",
            Self::Kill => "(d) kill -9 of one of ten",
        }
    }

    fn size(self) -> usize {
        if self == Self::Scale { SMALL } else { SIZE }
    }

    /// Does it to a cluster of that contestant.
    ///
    /// # Errors
    /// When a process does not start or end.
    pub fn run(self, who: Who, settings: &Settings, scratch: &Path) -> Result<Run> {
        let removes = if self == Self::StatefulSetWrites { REMOVES } else { 0.0 };
        let settings = Settings { who, peers: scratch.join("peers"), removes, ..settings.clone() };
        let value_bytes = settings.value_bytes as u64;
        let mut cluster = Cluster::start(settings, self.size())?;
        pause(STEP); // what was begun while it was filled has ended
        let begin = cluster.record.now().ceil();
        pause(STEADY);
        let from = cluster.record.now().ceil();
        let before = cluster.record.total();
        let left = self.steps(&mut cluster)?;
        let to = cluster.record.now();
        pause(AFTER);
        let end = cluster.record.now().floor();
        let record = &cluster.record;
        let after = record.total();
        if who == Who::Ours {
            pause(LATER);
        }
        Ok(Run {
            scenario: self.name(),
            who,
            steady: record.between(begin, from),
            deploy: record.between(from, end),
            from: from - begin,
            to: to - begin,
            moved_bytes: after.moved_bytes - before.moved_bytes,
            moved_later_bytes: record.total().moved_bytes - after.moved_bytes,
            peeks: after.peeks - before.peeks,
            peeked: after.peeked - before.peeked,
            taken_over: after.taken_over - before.taken_over,
            left_bytes: left * value_bytes,
            used_seconds: (after.nanoseconds - before.nanoseconds) as f64 / 1e9,
            why: record.why(),
            series: record.series(end).split_off(begin as usize),
        })
    }

    /// Returns how many entries were on those that ended.
    fn steps(self, cluster: &mut Cluster) -> Result<u64> {
        let mut left = 0;
        match self {
            Self::Deployment => {
                for (n, old) in cluster.names().into_iter().enumerate() {
                    cluster.add(&[format!("new-{n}")])?;
                    pause(STEP);
                    left += cluster.end(&[old])?;
                    pause(STEP);
                }
            }
            Self::StatefulSet | Self::StatefulSetWrites => {
                for name in cluster.names() {
                    left += cluster.end(std::slice::from_ref(&name))?;
                    cluster.add(&[name])?;
                    pause(STEP);
                }
            }
            Self::Scale => {
                let more: Vec<_> = (SMALL..SIZE).map(|n| format!("pod-{n}")).collect();
                cluster.add(&more)?;
                pause(STEADY / 2);
                left += cluster.end(&more)?;
            }
            Self::Kill => {
                let names = cluster.names();
                left += cluster.kill(names.first().ok_or("nobody is there")?, NOTICED)?;
            }
        }
        Ok(left)
    }
}
