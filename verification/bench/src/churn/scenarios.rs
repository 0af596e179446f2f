//! Scenarios: the steps of each kind of deploy.

use std::{path::Path, time::Duration};

use super::{
    CacheKind, Settings,
    cluster::{Cluster, pause},
    record::Run,
};
use crate::Result;

/// Time for which the steady state is measured.
const STEADY: Duration = Duration::from_secs(20);

/// Time after the last step that counts as part of the deploy. Keys that the deploy made cold are loaded meanwhile.
const AFTER: Duration = Duration::from_secs(15);

/// Time to wait after the deploy for values that a node sends only once the ring has been the same for a while.
const LATER: Duration = Duration::from_secs(30);

/// Pause between two steps. Kubernetes takes longer.
const STEP: Duration = Duration::from_secs(1);

/// Time that a platform takes to notice a dead process.
const NOTICED: Duration = Duration::from_secs(2);

/// Removes per second, in the scenario with removes.
const REMOVES: f64 = 50.0;

/// Number of processes of the cluster.
const SIZE: usize = 10;
/// Number of processes of the small cluster that grows to [`SIZE`].
const SMALL: usize = 3;

/// A kind of deploy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// (a) Ten new names replace ten old ones, with one process more than ten at a time.
    Deployment,
    /// (b) All ten names restart, one after another.
    StatefulSet,
    /// (b) with removes all the time.
    StatefulSetWrites,
    /// (c) The cluster grows from three to ten and shrinks back, all processes at once.
    Scale,
    /// (d) A single process of the ten is killed.
    Kill,
}

impl Scenario {
    /// All kinds of deploys.
    pub const ALL: [Self; 5] = [Self::Deployment, Self::StatefulSet, Self::StatefulSetWrites, Self::Scale, Self::Kill];

    /// Returns the name in the tables.
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

    /// Runs the deploy on a cluster of this cache.
    ///
    /// # Errors
    /// An error if a process does not start or end.
    pub fn run(self, kind: CacheKind, settings: &Settings, scratch: &Path) -> Result<Run> {
        let removes = if self == Self::StatefulSetWrites { REMOVES } else { 0.0 };
        let settings = Settings { kind, peers: scratch.join("peers"), removes, ..settings.clone() };
        let value_bytes = settings.value_bytes as u64;
        let mut cluster = Cluster::start(settings, self.size())?;
        pause(STEP); // the gets of the filling have ended
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
        if kind == CacheKind::ThisCrate {
            pause(LATER);
        }
        Ok(Run {
            scenario: self.name(),
            kind,
            steady: record.between(begin, from),
            deploy: record.between(from, end),
            from: from - begin,
            to: to - begin,
            moved_bytes: after.moved_bytes - before.moved_bytes,
            moved_later_bytes: record.total().moved_bytes - after.moved_bytes,
            previous_owner_reads: after.previous_owner_reads - before.previous_owner_reads,
            previous_owner_hits: after.previous_owner_hits - before.previous_owner_hits,
            handover_received: after.handover_received - before.handover_received,
            left_bytes: left * value_bytes,
            used_seconds: (after.nanoseconds - before.nanoseconds) as f64 / 1e9,
            why: record.why(),
            series: record.series(end).split_off(begin as usize),
        })
    }

    /// Runs the steps, and returns the number of entries that the ended processes owned.
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
                left += cluster.kill(names.first().ok_or("the cluster has no process")?, NOTICED)?;
            }
        }
        Ok(left)
    }
}
