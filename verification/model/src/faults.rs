//! Faults and discovery: starts, restarts, deaths, cuts, late lists.

use crate::{
    Protocol, Rule,
    state::{Age, FetchStage, Links, NODES, Node, Nodes, Outcome, PageStage, State, Writes, link},
    steps::Step,
};

impl Protocol {
    /// Returns a node that does not run.
    pub(crate) fn absent(&self) -> Node {
        Node {
            is_up: false,
            incarnation: 0,
            listed: Nodes::EMPTY,
            met: Nodes::EMPTY,
            met_again: Nodes::EMPTY,
            position: Writes::EMPTY,
            received: Writes::EMPTY,
            remembered: Writes::EMPTY,
            newest: Writes::EMPTY,
            is_unapplied: false,
            known: [Writes::EMPTY; NODES],
            value: None,
            load: None,
            fetch: None,
            heard: [self.oldest(); NODES],
            horizon: self.oldest(),
            left_at: self.oldest(),
            company: Nodes::EMPTY,
        }
    }

    /// Returns a node that has just started: its horizon is the moment of the start.
    pub(crate) fn started(&self) -> Node {
        Node { is_up: true, horizon: Age::NOW, ..self.absent() }
    }

    pub(crate) fn start(&self, state: &mut State, at: usize) {
        state.nodes[at] = Node { listed: self.scene.lists[at], ..self.started() };
    }

    pub(crate) fn restart(&self, state: &mut State, at: usize) {
        self.lose_messages(state, at);
        state.nodes[at] = Node { incarnation: 1, listed: self.scene.final_lists[at], ..self.started() };
        state.outcome.counted.remove(at);
        state.outcome.listers.remove(at);
    }

    pub(crate) fn crash(&self, state: &mut State, at: usize) {
        self.lose_messages(state, at);
        state.nodes[at] = Node { incarnation: 1, ..self.absent() };
        state.outcome.counted.remove(at);
    }

    fn lose_messages(&self, state: &mut State, at: usize) {
        for node in &mut state.nodes {
            let is_answered = |stage| matches!(stage, FetchStage::Answered(_));
            if node.fetch.is_some_and(|fetch| fetch.to == at && !is_answered(fetch.stage)) {
                node.fetch = None;
            }
        }
        if state.page.is_some_and(|page| {
            page.to == at || page.from == at && matches!(page.stage, PageStage::Positions(_) | PageStage::Value(_))
        }) {
            state.page = None;
        }
        if state.ping.is_some_and(|ping| ping.from == at || ping.to == at && ping.shown.is_none()) {
            state.ping = None;
        }
        if state.set.is_some_and(|set| set.to == at) {
            state.set = None;
        }
        if state.lookup.is_some_and(|lookup| lookup.at == at) {
            state.lookup = None;
        }
    }

    /// Cuts links. An earlier answer still arrives.
    pub(crate) fn cut(&self, state: &mut State, links: Links) {
        state.faults += 1;
        state.links -= links;
        for (at, node) in state.nodes.iter_mut().enumerate() {
            let is_lost = |stage| !matches!(stage, FetchStage::Answered(_) | FetchStage::Named);
            if node.fetch.is_some_and(|fetch| links.has(link(at, fetch.to)) && is_lost(fetch.stage)) {
                node.fetch = None;
            }
        }
        if state.ping.is_some_and(|ping| links.has(link(ping.from, ping.to)) && ping.shown.is_none()) {
            state.ping = None;
        }
    }

    pub(crate) fn repair(&self, state: &mut State, links: Links) {
        state.faults += 1;
        state.links |= links;
    }

    /// Returns what discovery lists for a node in the end: all nodes of its last list that have not died.
    pub(crate) fn final_list(&self, state: &State, at: usize) -> Nodes {
        self.scene.final_lists[at] - self.dead(state)
    }

    /// Returns the nodes that have died for good.
    pub(crate) fn dead(&self, state: &State) -> Nodes {
        (0..NODES).filter(|&node| !state.nodes[node].is_up && state.nodes[node].incarnation > 0).collect()
    }

    /// Returns whether a node may forget another: discovery has removed a dead node, or a minute has passed since the
    /// connection to a node that discovery never listed.
    pub(crate) fn may_forget(&self, state: &State, at: usize, other: usize) -> bool {
        let node = &state.nodes[at];
        let is_over = !node.listed.has(other) && !self.is_connected(state, at, other);
        let is_known = (node.met | node.listed).has(other);
        is_known && (self.dead(state).has(other) || self.scene.minute_passes && is_over)
    }

    pub(crate) fn forget(&self, state: &mut State, at: usize, other: usize) {
        let is_living = state.nodes[other].is_up;
        let node = &mut state.nodes[at];
        node.listed.remove(other);
        node.met.remove(other);
        node.met_again.remove(other);
        // Nothing is promised about a living writer that was never listed and cut off for a minute.
        if is_living {
            node.exempt(other);
        }
    }

    /// Adds the faults that may happen next.
    pub(crate) fn steps_of_faults(&self, state: &State, steps: &mut Vec<Step>) {
        for at in state.living().iter().filter(|&at| state.nodes[at].incarnation == 0) {
            if self.scene.restarts.has(at) {
                steps.push(Step::Restart(at));
            }
            if self.scene.crashes.has(at) {
                steps.push(Step::Crash(at));
            }
        }
        if state.faults < self.scene.faults {
            for &links in self.scene.cuts {
                let is_cut = (state.links & links).is_empty();
                steps.push(if is_cut { Step::Repair(links) } else { Step::Cut(links) });
            }
        }
    }

    /// Brings a state into the form in which equal states are equal bytes: forgets what no rule reads any more.
    pub(crate) fn normal(&self, mut state: State) -> State {
        self.meet(&mut state);
        self.note_listers(&mut state);
        self.move_horizons(&mut state);
        let bases = [Rule::BaseIsAll, Rule::BaseDetaches, Rule::WholeLog];
        let has_bases = bases.iter().any(|&rule| !self.keeps(rule));
        for at in 0..NODES {
            let node = &mut state.nodes[at];
            if !has_bases {
                node.received = node.position;
            }
            if self.keeps(Rule::NamedWrites) {
                node.newest = Writes::EMPTY;
            }
            if self.scene.staleness.is_none() || !self.scene.pingers.has(at) {
                node.horizon = self.oldest();
                node.heard = [self.oldest(); NODES];
                node.left_at = self.oldest();
                node.company = Nodes::EMPTY;
            }
        }
        if state.outcome.is_settled || state.made[crate::state::W].is_none() {
            let Outcome { is_settled, counted, listers, .. } = state.outcome;
            let listers = if is_settled { Nodes::EMPTY } else { listers };
            state.acknowledgement = None;
            state.outcome = Outcome { is_settled, counted, listers, ..Outcome::default() };
        }
        state
    }
}
