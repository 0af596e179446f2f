//! Horizon: how old the knowledge of a node is.

use crate::{
    Protocol, Rule,
    state::{Age, FetchStage, NODES, Nodes, Ping, Seen, State, Value},
};

impl Protocol {
    /// Returns the age beyond which all ages are equal.
    pub(crate) fn oldest(&self) -> Age {
        // A get takes at most one tick, for which its beginning must be told from earlier times.
        let limit = if self.scene.joins || !self.scene.lookups.is_empty() { 2 } else { 1 };
        Age(self.scene.staleness.map_or(0, |staleness| staleness + limit))
    }

    /// Returns the time up to which a value is good: the later of its label and the horizon.
    pub(crate) fn good_until(&self, horizon: Age, value: Value) -> Age {
        if self.keeps(Rule::HorizonOfTaken) && !horizon.is_later_than(value.taken) {
            // A load has the oldest time there, so that the horizon and the label are both as old.
            return value.as_of;
        }
        horizon.later_of(value.as_of)
    }

    /// Returns whether a get that began at `start` may receive what is good until `good`.
    pub(crate) fn is_fresh(&self, good: Age, start: Age) -> bool {
        self.scene.staleness.is_none_or(|staleness| good.0 <= start.0 + staleness)
    }

    /// Returns whether a get that begins now may receive the entry of a node.
    pub(crate) fn may_serve(&self, state: &State, at: usize, value: Value) -> bool {
        self.is_fresh(self.good_until(state.nodes[at].horizon, value), Age::NOW)
    }

    /// Returns whether a write was made more than S before now.
    pub(crate) fn is_aged(&self, state: &State, write: usize) -> bool {
        self.scene.staleness.is_some_and(|staleness| state.made[write].is_some_and(|age| age.0 > staleness))
    }

    /// Lets a tick pass: each age grows up to the limit.
    pub(crate) fn tick(&self, state: &mut State) {
        let limit = self.oldest().0;
        let grow = |age: &mut Age| age.0 = (age.0 + 1).min(limit);
        let grow_value = |value: &mut Value| [&mut value.as_of, &mut value.taken].into_iter().for_each(grow);
        state.made.iter_mut().flatten().for_each(grow);
        for node in &mut state.nodes {
            node.heard.iter_mut().chain([&mut node.horizon, &mut node.left_at]).for_each(grow);
            node.value.iter_mut().chain(&mut node.load).for_each(grow_value);
            if let Some(fetch) = &mut node.fetch {
                grow(&mut fetch.left);
                grow(&mut fetch.start);
                match &mut fetch.stage {
                    FetchStage::Held(value) | FetchStage::Answered(value) => grow_value(value),
                    FetchStage::Compared { horizon, arrived } => [horizon, arrived].into_iter().for_each(grow),
                    FetchStage::Named | FetchStage::Sent => {}
                }
            }
        }
        if let Some(ping) = &mut state.ping {
            grow(&mut ping.left);
        }
        if let Some(lookup) = &mut state.lookup {
            grow(&mut lookup.start);
            match &mut lookup.seen {
                Seen::Horizon(horizon) => grow(horizon),
                Seen::Entry(value) => grow_value(value),
            }
        }
        if let Some(set) = &mut state.set {
            grow_value(&mut set.value);
        }
    }

    /// Returns whether time may pass: no get outlives its deadline of a tick.
    pub(crate) fn may_tick(&self, state: &State) -> bool {
        let is_young = |start: Age| start == Age::NOW;
        self.scene.staleness.is_some()
            && state.lookup.is_none_or(|lookup| is_young(lookup.start))
            && (!self.scene.joins || state.nodes.iter().flat_map(|node| node.fetch).all(|fetch| is_young(fetch.start)))
    }

    /// Sends a ping.
    pub(crate) fn ping(&self, state: &mut State, from: usize, to: usize) {
        state.ping = Some(Ping { from, to, left: Age::NOW, shown: None });
    }

    /// Answers the ping with the positions and the company of this moment.
    pub(crate) fn pong(&self, state: &mut State) {
        let Some(mut ping) = state.ping else { return };
        ping.shown = Some((state.nodes[ping.to].position, self.company(state, ping.to) | Nodes::one(ping.to)));
        state.ping = Some(ping);
    }

    /// Reads the pong, which counts if positions and company fit.
    pub(crate) fn read_pong(&self, state: &mut State) {
        let Some(Ping { from, to, left, shown: Some((positions, company)) }) = state.ping.take() else { return };
        let is_same = company == self.company(state, from) | Nodes::one(from);
        let node = &mut state.nodes[from];
        let is_reached = (positions - node.position).is_empty();
        if (is_same || !self.keeps(Rule::SameCompany)) && (is_reached || !self.keeps(Rule::PositionsReached)) {
            node.heard[to] = node.heard[to].later_of(left);
        }
    }

    /// Moves the horizons on after a step.
    pub(crate) fn move_horizons(&self, state: &mut State) {
        for at in self.scene.pingers.iter().filter(|_| self.scene.staleness.is_some()) {
            if !state.nodes[at].is_up {
                continue;
            }
            let company = self.company(state, at);
            let oldest = self.oldest();
            let node = &mut state.nodes[at];
            if !(node.company - company).is_empty() && self.keeps(Rule::HeldHorizon) {
                node.left_at = Age::NOW;
            }
            node.company = company;
            for other in (0..NODES).filter(|&other| !company.has(other)) {
                node.heard[other] = oldest;
            }
            let earliest = company.iter().map(|other| node.heard[other]).fold(Age::NOW, Age::earlier_of);
            let is_alone = company.is_empty();
            let may_move = if is_alone {
                (node.listed - Nodes::one(at)).is_empty()
            } else {
                earliest.is_later_than(node.left_at) || earliest == node.left_at && !self.keeps(Rule::StrictlyLater)
            };
            if may_move {
                node.horizon = node.horizon.later_of(earliest);
            }
            // A time of leaving that the horizon has passed says nothing more.
            if is_alone || node.horizon.is_later_than(node.left_at) {
                node.left_at = oldest;
            }
        }
    }
}
