//! Logs: a write is made, delivered and applied.

use crate::{
    Protocol, Rule,
    state::{Age, FetchStage, NODES, Node, PageStage, SetMessage, State, Value, Writes},
};

impl Protocol {
    /// Makes the write of a node: the source has changed, and the call begins.
    pub(crate) fn write(&self, state: &mut State, writer: usize) {
        state.made[writer] = Some(Age::NOW);
        self.exempt_out_of_reach(state, writer);
        if let Some((from, to)) = self.scene.set
            && from == writer
            && self.is_connected(state, from, to)
        {
            let value = Value { contains: state.written(), as_of: Age::NOW, taken: Age::NOW, exempt: Writes::EMPTY };
            state.set = Some(SetMessage { from, to, positions: state.nodes[from].position, value });
        }
        if self.keeps(Rule::ApplyFirst) {
            self.apply(state, writer, writer);
        } else {
            let node = &mut state.nodes[writer];
            node.position.insert(writer);
            node.received.insert(writer);
            node.is_unapplied = true;
        }
    }

    /// Applies a node's own write that was appended before.
    pub(crate) fn apply_own(&self, state: &mut State, writer: usize) {
        state.nodes[writer].is_unapplied = false;
        self.drop_value(state, writer);
    }

    /// Applies a write at a node, once.
    pub(crate) fn apply(&self, state: &mut State, at: usize, write: usize) {
        let node = &mut state.nodes[at];
        if node.position.has(write) {
            return;
        }
        node.position.insert(write);
        node.received.insert(write);
        node.newest = Writes::one(write);
        if node.remembered.has(write) {
            node.remembered.remove(write);
        } else {
            self.drop_value(state, at);
        }
    }

    /// Drops the value of a node, advances its stripe and detaches its flights.
    pub(crate) fn drop_value(&self, state: &mut State, at: usize) {
        state.nodes[at].value = None;
        if self.keeps(Rule::DetachedFlights) {
            self.detach(state, at);
        }
        let is_judged = |page: &crate::state::Page| page.to == at && matches!(page.stage, PageStage::Judged(_));
        if self.keeps(Rule::PageStripe) && state.page.as_ref().is_some_and(is_judged) {
            state.page = None;
        }
    }

    /// Detaches the flights of a node. A detached flight is kept only while a get waits that the verdict judges.
    pub(crate) fn detach(&self, state: &mut State, at: usize) {
        let node = &mut state.nodes[at];
        node.load = None;
        if let Some(fetch) = &mut node.fetch
            && fetch.stage != FetchStage::Named
        {
            fetch.is_detached = true;
            if !self.scene.joins {
                node.fetch = None;
            }
        }
    }

    /// Delivers a write of a log that `from` holds: the writer's own, or a pull after a pong.
    pub(crate) fn deliver(&self, state: &mut State, from: usize, to: usize, write: usize) {
        let is_entry = state.nodes[from].received.has(write);
        if is_entry || self.keeps(Rule::WholeLog) {
            self.apply(state, to, write);
        } else {
            state.nodes[to].position.insert(write);
        }
        self.learn_positions(state, to, from);
    }

    /// Begins the log of a writer at the number that another node shows, while the node holds no value.
    pub(crate) fn begin(&self, state: &mut State, from: usize, at: usize, write: usize) {
        let node = &mut state.nodes[at];
        node.position.insert(write);
        node.newest = Writes::one(write);
        if self.keeps(Rule::BaseDetaches) {
            self.detach(state, at);
        }
        self.learn_positions(state, at, from);
    }

    /// Notes the positions that a pong of `from` shows.
    pub(crate) fn learn_positions(&self, state: &mut State, at: usize, from: usize) {
        if self.scene.asks(at) {
            let shown = state.nodes[from].position;
            state.nodes[at].known[from] |= shown;
        }
    }

    /// Returns the writes of which a node has an entry.
    pub(crate) fn entries(&self, node: &Node) -> Writes {
        if self.keeps(Rule::BaseIsAll) { node.position } else { node.received }
    }

    /// Returns the writes that a request of `at` to `to` names.
    pub(crate) fn names(&self, state: &State, at: usize, to: usize) -> Writes {
        let node = &state.nodes[at];
        let own = if self.keeps(Rule::NamedWrites) { self.entries(node) } else { node.newest };
        let on = if self.keeps(Rule::NamedOn) { node.remembered } else { Writes::EMPTY };
        (own | on) - node.known[to]
    }

    /// Delivers the value of a `set` to the owner.
    pub(crate) fn deliver_set(&self, state: &mut State) {
        let Some(set) = state.set.take() else { return };
        if state.nodes[set.to].position.has(set.from) {
            return;
        }
        self.apply(state, set.to, set.from);
        let owner = &mut state.nodes[set.to];
        let unknown = (self.entries(owner) | owner.remembered) - set.positions - Writes::one(set.from);
        if unknown.is_empty() || !self.keeps(Rule::SetPositions) {
            owner.value = Some(set.value);
        }
    }

    /// Marks the values of the nodes that cannot have heard of a writer, of which the protocol promises nothing.
    fn exempt_out_of_reach(&self, state: &mut State, writer: usize) {
        for at in 0..NODES {
            if !self.reach(state, at).has(writer) {
                state.nodes[at].exempt(writer);
            }
        }
    }
}

impl Node {
    /// Marks all values of the node as older than anybody could expect the write of `writer`.
    pub(crate) fn exempt(&mut self, writer: usize) {
        let in_flight = self.fetch.as_mut().and_then(|fetch| match &mut fetch.stage {
            FetchStage::Answered(value) | FetchStage::Held(value) => Some(value),
            _ => None,
        });
        for value in self.value.iter_mut().chain(&mut self.load).chain(in_flight) {
            value.exempt.insert(writer);
        }
    }
}
