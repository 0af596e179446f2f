//! Companies: which nodes must be told of a write.

use crate::{
    Protocol, Rule,
    state::{Age, Members, NODES, Nodes, State, Writes, link},
};

impl Protocol {
    /// Returns whether two nodes have a connection: both run, the link works, and one lists the other.
    pub(crate) fn is_connected(&self, state: &State, a: usize, b: usize) -> bool {
        let (first, second) = (&state.nodes[a], &state.nodes[b]);
        a != b
            && first.is_up
            && second.is_up
            && state.links.has(link(a, b))
            && (first.listed.has(b) || second.listed.has(a))
    }

    /// Returns the company of a node.
    pub(crate) fn company(&self, state: &State, at: usize) -> Nodes {
        let node = &state.nodes[at];
        let mut company = node.met;
        if !self.keeps(Rule::StickyCompany) {
            company -= (0..NODES).filter(|&v| !node.listed.has(v) && !self.is_connected(state, at, v)).collect();
        }
        if !self.keeps(Rule::MetCompany) {
            company |= node.listed;
        }
        company.remove(at);
        company
    }

    /// Returns the company of a node with the incarnations that the node has met.
    pub(crate) fn members(&self, state: &State, at: usize) -> Members {
        let node = &state.nodes[at];
        self.company(state, at).iter().map(|v| if node.met_again.has(v) { v + NODES } else { v }).collect()
    }

    /// Returns a node in its present incarnation.
    pub(crate) fn member(&self, state: &State, node: usize) -> usize {
        node + NODES * usize::from(state.nodes[node].incarnation)
    }

    /// Returns the nodes that a node knows directly or by way of others, and the node itself.
    pub(crate) fn reach(&self, state: &State, at: usize) -> Nodes {
        let mut reach = Nodes::one(at);
        loop {
            let more = reach.iter().fold(reach, |more, node| more | self.company(state, node));
            if more == reach {
                return reach;
            }
            reach = more;
        }
    }

    /// Lets each node that is connected for the first time since a start enter the company.
    pub(crate) fn meet(&self, state: &mut State) {
        for at in 0..NODES {
            for other in 0..NODES {
                if !self.is_connected(state, at, other) {
                    continue;
                }
                let is_again = state.nodes[other].incarnation > 0;
                let node = &mut state.nodes[at];
                if is_again && !node.met_again.has(other) {
                    node.met_again.insert(other);
                    if node.met.has(other) && self.keeps(Rule::HeldAtReturn) {
                        node.left_at = Age::NOW;
                    }
                    if self.keeps(Rule::KnowledgeEnds) {
                        node.known[other] = Writes::EMPTY;
                    }
                    node.heard[other] = self.oldest();
                }
                if !node.met.has(other) && !self.keeps(Rule::NewMember) {
                    node.heard[other] = Age::NOW;
                }
                node.met.insert(other);
            }
        }
    }
}
