//! Overdue deletions: pods on a dead machine stay in the API for days, because no kubelet ends them.

use std::{collections::BTreeMap, time::Duration};

use groupcache_core::PeerId;
use tokio::time::Instant;

/// Time beyond the grace period in which a pod is killed and its end is reported.
const MORE: Duration = Duration::from_secs(30);
/// Pause between two reports of one pod. A report is repeated because a pod that still answers at that time stays a
/// member.
const AGAIN: Duration = Duration::from_secs(300);

/// Time at which each terminating pod is reported as having left. The node verifies a report before it acts.
#[derive(Debug, Default)]
pub(crate) struct Ending(BTreeMap<PeerId, Instant>);

impl Ending {
    /// Replaces the terminating pods and their grace periods. A grace period begins when the provider first sees the
    /// deletion, so that no two clocks are compared.
    pub(crate) fn follow(&mut self, now: Instant, terminating: BTreeMap<PeerId, Duration>) {
        self.0.retain(|id, _| terminating.contains_key(id));
        for (id, grace) in terminating {
            self.0.entry(id).or_insert(now + grace + MORE);
        }
    }

    /// Returns the time of the next report.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.values().min().copied()
    }

    /// Returns the pods that are due, and schedules their next report.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<PeerId> {
        let mut due = Vec::new();
        for (id, at) in &mut self.0 {
            if *at <= now {
                *at = now + AGAIN;
                due.push(id.clone());
            }
        }
        due
    }
}
