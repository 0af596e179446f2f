//! Horizon: the time until which this node has applied every write that its company could tell it of.
//!
//! For each peer the node knows the time by which it has applied everything that the peer had written or heard. The
//! horizon is the earliest of these times, and never decreases. A peer that leaves, or that returns in another
//! incarnation, holds the horizon until every other peer has been heard since.

use std::time::Duration;

use crate::identity::PeerId;

/// Horizon of a node. Times are those of its clock, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Horizon {
    reached_ms: u64,
    /// Last time at which a node left the company, or returned in another incarnation.
    lost_ms: Option<u64>,
}

impl Horizon {
    /// Creates the horizon of a node that starts now.
    pub(super) fn new(now_ms: u64) -> Self {
        Self { reached_ms: now_ms, lost_ms: None }
    }

    pub(super) fn reached_ms(&self) -> u64 {
        self.reached_ms
    }

    /// Records that a node left the company, or returned in another incarnation.
    pub(super) fn lost_a_node(&mut self, now_ms: u64) {
        self.lost_ms = Some(now_ms);
    }

    /// Moves the horizon to the earliest of the times of the company. A peer that has not been heard has none.
    pub(super) fn advance(&mut self, mut times: impl Iterator<Item = Option<u64>>) {
        let earliest = times.try_fold(u64::MAX, |earliest, time| Some(earliest.min(time?)));
        let Some(earliest) = earliest.filter(|earliest| *earliest != u64::MAX) else { return };
        if self.lost_ms.is_none_or(|lost_ms| earliest > lost_ms) || mutant!(LeavingNodeReleasesHorizon) {
            self.lost_ms = None;
            self.reached_ms = self.reached_ms.max(earliest);
        }
    }

    /// Moves the horizon of a node that is alone, by its discovery, to now.
    pub(super) fn alone(&mut self, now_ms: u64) {
        self.lost_ms = None;
        self.reached_ms = self.reached_ms.max(now_ms);
    }
}

/// The age of a node's knowledge of writes, and the peer that holds it back; see
/// [`Node::horizon`](crate::Node::horizon).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HorizonInfo {
    /// Age of the oldest knowledge: the node has applied every write that was made longer ago. About a second while all
    /// peers are heard.
    pub age: Duration,
    /// Peer that was heard least recently; `None` for a node that is alone.
    pub held_back_by: Option<PeerId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that the horizon is the earliest time, never decreases, and waits for a peer that was not heard yet.
    #[test]
    fn horizon_is_the_earliest_time_and_never_decreases() {
        let mut horizon = Horizon::new(100);
        let mut advance = |times: &[Option<u64>]| {
            horizon.advance(times.iter().copied());
            horizon.reached_ms()
        };
        assert_eq!(advance(&[Some(200), Some(150)]), 150);
        assert_eq!(advance(&[Some(120), Some(300)]), 150);
        assert_eq!(advance(&[Some(300), None]), 150);
        assert_eq!(advance(&[]), 150, "no peers: the horizon stands still until discovery says so");
        assert_eq!(advance(&[Some(300), Some(400)]), 300);
    }

    /// Checks that the horizon stands still after a loss until every other peer was heard since.
    #[test]
    fn lost_node_holds_the_horizon() {
        let mut horizon = Horizon::new(0);
        horizon.lost_a_node(500);
        for (times, reached_ms) in [([499, 600], 0), ([500, 600], 0), ([501, 600], 501), ([502, 503], 502)] {
            horizon.advance(times.into_iter().map(Some));
            assert_eq!(horizon.reached_ms(), reached_ms, "{times:?}");
        }
        horizon.lost_a_node(700);
        horizon.alone(800);
        assert_eq!(horizon.reached_ms(), 800);
    }
}
