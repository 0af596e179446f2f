//! Values: loads, fetches, pages of a hand-over, and lookups in two reads.

use crate::{
    Protocol, Rule,
    state::{Age, Due, Fetch, FetchStage, Lookup, NODES, Page, PageStage, Seen, State, Value, Writes},
};

impl Protocol {
    /// Begins a load. The source may be read at once, so that the value contains nothing that is written later.
    pub(crate) fn load(&self, state: &mut State, at: usize) {
        let value = Value { contains: state.written(), as_of: Age::NOW, taken: self.oldest(), exempt: Writes::EMPTY };
        state.nodes[at].load = Some(value);
    }

    /// Completes a load and caches its value.
    pub(crate) fn complete_load(&self, state: &mut State, at: usize) {
        let node = &mut state.nodes[at];
        node.value = node.load.take();
    }

    /// Registers a flight and sends its request; without the rule, reads the names and registers nothing yet.
    pub(crate) fn ask(&self, state: &mut State, at: usize, to: usize) {
        let stage = if self.keeps(Rule::FlightBeforeNames) { FetchStage::Sent } else { FetchStage::Named };
        let names = self.names(state, at, to);
        let due = if self.scene.joins { self.due(state, at) } else { Due::default() };
        let fetch = Fetch { to, stage, names, left: Age::NOW, start: Age::NOW, due, is_detached: false };
        state.nodes[at].fetch = Some(fetch);
    }

    /// Lets a get join the flight of a node.
    pub(crate) fn join(&self, state: &mut State, at: usize) {
        let due = self.due(state, at);
        if let Some(fetch) = &mut state.nodes[at].fetch {
            fetch.start = Age::NOW;
            fetch.due = due;
        }
    }

    /// Moves the request of a node on by one stage.
    pub(crate) fn advance_fetch(&self, state: &mut State, at: usize) {
        let Some(mut fetch) = state.nodes[at].fetch else { return };
        let answerer = state.nodes[fetch.to];
        let next = match fetch.stage {
            FetchStage::Named => Some(FetchStage::Sent),
            FetchStage::Sent if self.keeps(Rule::ComparedBeforeRead) => {
                self.compare(state, &fetch);
                Some(FetchStage::Compared { horizon: answerer.horizon, arrived: Age::NOW })
            }
            FetchStage::Sent => self.answer(state, &fetch, answerer.horizon, Age::NOW).map(FetchStage::Held),
            FetchStage::Held(value) => self.compare(state, &fetch).then_some(FetchStage::Answered(value)),
            FetchStage::Compared { horizon, arrived } => {
                self.answer(state, &fetch, horizon, arrived).map(FetchStage::Answered)
            }
            FetchStage::Answered(value) => {
                self.receive(state, at, &fetch, value);
                None
            }
        };
        state.nodes[at].fetch = next.map(|stage| {
            fetch.stage = stage;
            fetch
        });
    }

    /// Compares the names of a request with the positions of the answerer, and returns whether none is missing there.
    fn compare(&self, state: &mut State, fetch: &Fetch) -> bool {
        let answerer = &mut state.nodes[fetch.to];
        let missing = fetch.names - answerer.position - answerer.remembered;
        if missing.is_empty() {
            return true;
        }
        answerer.remembered |= missing;
        self.drop_value(state, fetch.to);
        false
    }

    /// Returns the value of the answerer with the label that it has at the asker: from memory, or from a load.
    fn answer(&self, state: &State, fetch: &Fetch, horizon: Age, arrived: Age) -> Option<Value> {
        let answerer = &state.nodes[fetch.to];
        let fresh = |value: &Value| self.is_fresh(self.good_until(horizon, *value), arrived);
        let mut value = answerer.value.filter(fresh).or(answerer.load.filter(fresh))?;
        let age = self.good_until(horizon, value).0.saturating_sub(arrived.0);
        value.taken = fetch.left;
        value.as_of = fetch.left;
        if self.keeps(Rule::PassedAge) {
            value.as_of.0 = (fetch.left.0 + age).min(self.oldest().0);
        }
        Some(value)
    }

    /// Judges an answer, gives it to the gets of the flight, and caches it if the flight is attached.
    fn receive(&self, state: &mut State, at: usize, fetch: &Fetch, value: Value) {
        let is_covered = !fetch.is_detached || !self.keeps(Rule::HorizonOfAttached);
        let good = if is_covered { self.good_until(state.nodes[at].horizon, value) } else { value.as_of };
        let is_judged = self.scene.joins && self.keeps(Rule::JudgedAtEnd);
        if is_judged && !self.is_fresh(good, fetch.start) {
            return;
        }
        self.judge(state, value, fetch.due);
        if !fetch.is_detached {
            state.nodes[at].value = Some(value);
        }
    }

    /// Begins a page of a hand-over.
    pub(crate) fn begin_page(&self, state: &mut State, from: usize, to: usize) {
        let sender = &state.nodes[from];
        let stage = match sender.value {
            Some(value) if !self.keeps(Rule::PageOrder) => PageStage::Value(value),
            _ => PageStage::Positions(sender.position),
        };
        state.page = Some(Page { from, to, stage });
    }

    /// Moves the page on by one stage.
    pub(crate) fn advance_page(&self, state: &mut State) {
        let Some(mut page) = state.page.take() else { return };
        let (sender, receiver) = (state.nodes[page.from], &mut state.nodes[page.to]);
        page.stage = match page.stage {
            PageStage::Positions(positions) => match sender.value {
                Some(value) => PageStage::Sent(positions, value),
                None => return,
            },
            PageStage::Value(value) => PageStage::Sent(sender.position, value),
            PageStage::Sent(positions, value) => {
                let shown = if self.keeps(Rule::PagePositions) { positions } else { receiver.known[page.from] };
                if !((self.entries(receiver) | receiver.remembered) - shown).is_empty() {
                    return;
                }
                PageStage::Judged(value)
            }
            PageStage::Judged(value) => {
                if receiver.value.is_none() {
                    receiver.value = Some(value);
                }
                return;
            }
        };
        state.page = Some(page);
    }

    /// Reads the first of the two values of a lookup.
    pub(crate) fn begin_lookup(&self, state: &mut State, at: usize) {
        let node = &state.nodes[at];
        let seen = match node.value {
            Some(value) if !self.keeps(Rule::HorizonFirst) => Seen::Entry(value),
            _ => Seen::Horizon(node.horizon),
        };
        state.lookup = Some(Lookup { at, seen, start: Age::NOW, due: self.due(state, at) });
    }

    /// Reads the second value of a lookup, judges and returns the entry.
    pub(crate) fn complete_lookup(&self, state: &mut State) {
        let Some(Lookup { at, seen, start, due }) = state.lookup.take() else { return };
        let (horizon, value) = match seen {
            Seen::Horizon(horizon) => (horizon, state.nodes[at].value),
            Seen::Entry(value) => (state.nodes[at].horizon, Some(value)),
        };
        if let Some(value) = value.filter(|value| self.is_fresh(self.good_until(horizon, *value), start)) {
            self.judge(state, value, due);
        }
    }

    /// Returns what a get that begins now must see.
    pub(crate) fn due(&self, state: &State, at: usize) -> Due {
        let reach = self.reach(state, at) & state.living();
        let heard: Writes = reach.iter().fold(Writes::EMPTY, |heard, node| heard | state.nodes[node].position);
        let aged = heard & (0..NODES).filter(|&write| self.is_aged(state, write)).collect();
        let is_promised = state.outcome.is_settled && state.outcome.counted.has(at);
        let settled = if is_promised { Writes::one(crate::state::W) } else { Writes::EMPTY };
        Due { settled, aged }
    }

    /// Notes what a get misses in the value that it receives.
    fn judge(&self, state: &mut State, value: Value, due: Due) {
        state.has_lost_settled |= !(due.settled - value.contains).is_empty();
        state.has_lost_aged |= !(due.aged - value.contains - value.exempt).is_empty();
    }
}
