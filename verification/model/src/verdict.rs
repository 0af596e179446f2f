//! Verdict: the three properties, judged by what is true and not by what nodes believe.

use crate::{
    Protocol,
    state::{NODES, State, W, link},
};

/// After a write is settled, no later get lacks it, on any node that the companies name.
pub const SETTLED: &str = "settled writes are seen";
/// S after a write, no get lacks it, on any node in reach of a node that has heard the write.
pub const STALENESS: &str = "writes older than S are seen";
/// Nothing is pending for ever where every two nodes have a common neighbour.
pub const SETTLING: &str = "nothing is pending for ever";
/// Sanity: the write is settled in some run.
pub const SETTLES: &str = "the write settles";

/// Rounds of messages after which a write is settled among four nodes.
const ROUNDS: usize = 4;

impl Protocol {
    /// Returns whether no get lacks the settled write.
    pub(crate) fn keeps_settled(&self, state: &State) -> bool {
        let is_served = |at: usize| {
            let node = &state.nodes[at];
            let is_promised = state.outcome.counted.has(at) || node.position.has(W);
            let is_stale = node.value.is_some_and(|value| !value.contains.has(W) && self.may_serve(state, at, value));
            is_promised && is_stale
        };
        !(state.has_lost_settled || state.outcome.is_settled && state.living().iter().any(is_served))
    }

    /// Returns whether no get lacks a write that was made more than S before.
    pub(crate) fn keeps_staleness(&self, state: &State) -> bool {
        let is_served = |at: usize| {
            state.nodes[at].value.is_some_and(|value| {
                let missed = self.due(state, at).aged - value.contains - value.exempt;
                !missed.is_empty() && self.may_serve(state, at, value)
            })
        };
        let is_any_aged = (0..NODES).any(|write| self.is_aged(state, write));
        !(state.has_lost_aged || is_any_aged && state.living().iter().any(is_served))
    }

    /// Returns whether the write settles if no further fault comes and each pair of nodes exchanges its messages.
    pub(crate) fn settles(&self, state: &State) -> bool {
        let writer = &state.nodes[W];
        let is_judged = self.scene.judges_settling && writer.is_up && writer.incarnation == 0;
        if !is_judged || state.made[W].is_none() || state.outcome.is_settled || !self.has_common_neighbours(state) {
            return true;
        }
        let mut state = state.clone();
        let dead = self.dead(&state);
        for at in state.living().iter() {
            state.nodes[at].listed = self.final_list(&state, at);
            state.nodes[at].met -= dead;
        }
        self.meet(&mut state);
        self.take_acknowledgement(&mut state);
        for _ in 0..ROUNDS {
            self.exchange(&mut state);
        }
        state.nodes[W].is_unapplied = false;
        self.may_settle(&state)
    }

    /// Delivers and acknowledges whatever can be.
    fn exchange(&self, state: &mut State) {
        for at in 0..NODES {
            for other in 0..NODES {
                if self.is_connected(state, at, other) {
                    for write in (state.nodes[other].position - state.nodes[at].position).iter() {
                        self.deliver(state, other, at, write);
                    }
                }
                if self.can_acknowledge(state, at, other) {
                    self.acknowledge(state, at, other);
                    self.take_acknowledgement(state);
                }
            }
        }
    }

    /// Returns whether each two living nodes are linked, or linked to a common third.
    fn has_common_neighbours(&self, state: &State) -> bool {
        let living = state.living();
        let is_linked = |a: usize, b: usize| state.links.has(link(a, b));
        let is_near = |a: usize, b: usize| {
            a == b || is_linked(a, b) || living.iter().any(|c| c != a && c != b && is_linked(a, c) && is_linked(c, b))
        };
        living.iter().all(|a| living.iter().all(|b| is_near(a, b)))
    }

    /// Returns whether nothing that could break a property is left in the state.
    pub(crate) fn is_over(&self, state: &State) -> bool {
        if state.has_lost_settled || state.has_lost_aged {
            return true;
        }
        let written = state.written();
        let is_all_written = self.scene.writers.iter().all(|write| written.has(write));
        let is_timed = self.scene.staleness.is_some() && !self.scene.settles_by_age;
        if !is_all_written || !state.outcome.is_settled && !is_timed {
            return false;
        }
        let lacks = |contains: crate::state::Writes| !(written - contains).is_empty();
        let is_node_stale = |node: &crate::state::Node| {
            node.value.is_some_and(|value| lacks(value.contains))
                || node.load.is_some_and(|value| lacks(value.contains))
                || node.fetch.is_some_and(|fetch| match fetch.stage {
                    crate::state::FetchStage::Held(value) | crate::state::FetchStage::Answered(value) => {
                        lacks(value.contains)
                    }
                    _ => false,
                })
        };
        let is_page_stale = state.page.is_some_and(|page| match page.stage {
            crate::state::PageStage::Positions(_) => false,
            crate::state::PageStage::Value(value)
            | crate::state::PageStage::Sent(_, value)
            | crate::state::PageStage::Judged(value) => lacks(value.contains),
        });
        let is_lookup_stale = state.lookup.is_some_and(|lookup| match lookup.seen {
            crate::state::Seen::Entry(value) => lacks(value.contains),
            crate::state::Seen::Horizon(_) => false,
        });
        let is_set_stale = state.set.is_some_and(|set| lacks(set.value.contains));
        !(state.nodes.iter().any(is_node_stale) || is_page_stale || is_lookup_stale || is_set_stale)
    }
}
