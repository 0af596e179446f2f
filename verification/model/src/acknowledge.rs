//! Acknowledgements of the judged write, and the moment at which nothing is pending.

use crate::{
    Protocol, Rule,
    state::{Acknowledgement, Members, NODES, Nodes, State, W},
};

impl Protocol {
    /// Returns whether `by` can tell the writer that a node has applied the write, and whether the writer learns
    /// something.
    pub(crate) fn can_acknowledge(&self, state: &State, node: usize, by: usize) -> bool {
        let outcome = &state.outcome;
        let is_way = if by == W {
            self.is_connected(state, node, W)
        } else {
            self.keeps(Rule::RelayedAck) && self.is_connected(state, node, by) && self.is_connected(state, by, W)
        };
        let is_news = !outcome.acknowledged.has(self.member(state, node))
            || outcome.shown[node] != self.shown_company(state, node, by);
        node != W && is_way && state.nodes[node].position.has(W) && is_news
    }

    /// Sends the acknowledgement of a node, directly or by way of `by`.
    pub(crate) fn acknowledge(&self, state: &mut State, node: usize, by: usize) {
        let member = self.member(state, node);
        let (shown, truly) = (self.shown_company(state, node, by), self.members(state, node));
        state.acknowledgement = Some(Acknowledgement { node, member, shown, truly });
        if !self.scene.slow_acknowledgements {
            self.take_acknowledgement(state);
        }
    }

    /// Takes the acknowledgement at the writer.
    pub(crate) fn take_acknowledgement(&self, state: &mut State) {
        let Some(Acknowledgement { node, member, shown, truly }) = state.acknowledgement.take() else { return };
        let outcome = &mut state.outcome;
        outcome.acknowledged.insert(member);
        outcome.shown[node] = shown;
        outcome.truly[node] = truly;
    }

    fn shown_company(&self, state: &State, node: usize, by: usize) -> Members {
        if by == W || self.keeps(Rule::RelayedCompany) { self.members(state, node) } else { Members::EMPTY }
    }

    /// Returns the members that the companies of the writer and of the acknowledging nodes name.
    fn closure(&self, state: &State, shown: &[Members; NODES], is_closed: bool) -> Members {
        let mut closure = self.members(state, W);
        loop {
            let known = closure & state.outcome.acknowledged;
            let more = known.iter().fold(closure, |more, member| more | shown[member % NODES]) - Members::one(W);
            if more == closure || !is_closed {
                break;
            }
            closure = more;
        }
        // A node that was met again is another process, and the earlier process is gone.
        for node in 0..NODES {
            if closure.has(node + NODES) {
                closure.remove(node);
            }
        }
        closure
    }

    /// Returns the nodes for which the write waits.
    pub(crate) fn pending(&self, state: &State) -> Nodes {
        let acknowledged = state.outcome.acknowledged;
        let closure = self.closure(state, &state.outcome.shown, self.keeps(Rule::Closure));
        let is_pending = |member: &usize| {
            let is_any = acknowledged.has(member % NODES) || acknowledged.has(member % NODES + NODES);
            if self.keeps(Rule::PresentIncarnation) { !acknowledged.has(*member) } else { !is_any }
        };
        let pending: Nodes = closure.iter().filter(is_pending).map(|member| member % NODES).collect();
        if self.is_aged(state, W) { pending - state.outcome.listers } else { pending }
    }

    /// Returns whether the writer may call the write settled.
    pub(crate) fn may_settle(&self, state: &State) -> bool {
        let writer = &state.nodes[W];
        state.made[W].is_some()
            && !state.outcome.is_settled
            && writer.is_up
            && writer.incarnation == 0
            && !writer.is_unapplied
            && self.pending(state).is_empty()
    }

    /// Calls the write settled. The promise holds for the companies that the nodes truly had.
    pub(crate) fn settle(&self, state: &mut State) {
        let closure = self.closure(state, &state.outcome.truly, true);
        let counted = closure.iter().filter(|&member| self.member(state, member % NODES) == member);
        state.outcome.counted = counted.map(|member| member % NODES).collect::<Nodes>() | Nodes::one(W);
        state.outcome.is_settled = true;
    }

    /// Notes at which peers discovery lists the writer while they are heard.
    pub(crate) fn note_listers(&self, state: &mut State) {
        if !self.scene.settles_by_age {
            return;
        }
        for peer in 0..NODES {
            if self.is_connected(state, W, peer) {
                if state.nodes[peer].listed.has(W) || !self.keeps(Rule::ListedSettle) {
                    state.outcome.listers.insert(peer);
                } else {
                    state.outcome.listers.remove(peer);
                }
            }
        }
    }
}
