//! Pods that should have ended and have not: nobody ends those of a machine that is dead, for days.

use std::{collections::BTreeMap, time::Duration};

use groupcache_core::PeerId;
use tokio::time::Instant;

/// What a pod may take beyond its grace period: to be killed, and to be reported.
const MORE: Duration = Duration::from_secs(30);
/// It is told again, since a pod that still answers when it is told stays a member.
const AGAIN: Duration = Duration::from_secs(300);

/// When who is said to have left. The node asks itself before it believes it.
#[derive(Debug, Default)]
pub(crate) struct Ending(BTreeMap<PeerId, Instant>);

impl Ending {
    /// These are being deleted now, each with its grace period. It begins when we first hear of it, so that no two
    /// clocks are compared.
    pub(crate) fn follow(&mut self, now: Instant, terminating: BTreeMap<PeerId, Duration>) {
        self.0.retain(|id, _| terminating.contains_key(id));
        for (id, grace) in terminating {
            self.0.entry(id).or_insert(now + grace + MORE);
        }
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.values().min().copied()
    }

    /// Those that are due.
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
