//! Steps: what may happen next in a state, and what then changes.

use std::fmt;

use stateright::{Model, Property};

use crate::{
    Protocol, Rule,
    state::{ALL_LINKS, Age, FetchStage, Links, NODES, Node, Outcome, State, Value, W, Writes},
    verdict::{SETTLED, SETTLES, SETTLING, STALENESS},
};

/// Step of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the text of each step is in its `Display`")]
pub enum Step {
    Tick,
    Start(usize),
    Restart(usize),
    Crash(usize),
    Cut(Links),
    Repair(Links),
    Learn(usize),
    Forget(usize, usize),
    Write(usize),
    ApplyOwn(usize),
    Deliver(usize, usize, usize),
    Begin(usize, usize, usize),
    Show(usize, usize),
    Acknowledge(usize, usize),
    TakeAcknowledgement,
    Settle,
    DeliverSet,
    Load(usize),
    CompleteLoad(usize),
    Ask(usize, usize),
    Join(usize),
    AdvanceFetch(usize),
    BeginPage(usize, usize),
    AdvancePage,
    BeginLookup(usize),
    CompleteLookup,
    Ping(usize, usize),
    Pong,
    ReadPong,
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let mut state = State {
            nodes: [self.absent(); NODES],
            links: ALL_LINKS - self.scene.broken,
            faults: 0,
            made: [None; NODES],
            ping: None,
            page: None,
            set: None,
            lookup: None,
            acknowledgement: None,
            outcome: Outcome::default(),
            has_lost_settled: false,
            has_lost_aged: false,
        };
        for at in self.scene.up.iter() {
            let value = Value { contains: Writes::EMPTY, as_of: Age::NOW, taken: self.oldest(), exempt: Writes::EMPTY };
            state.nodes[at] = Node {
                is_up: true,
                listed: self.scene.lists[at],
                value: self.scene.holders.has(at).then_some(value),
                ..self.started()
            };
        }
        self.meet(&mut state);
        for at in self.scene.up.iter() {
            state.nodes[at].company = self.company(&state, at);
            for other in self.company(&state, at).iter() {
                state.nodes[at].heard[other] = Age::NOW;
            }
        }
        vec![self.normal(state)]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if self.is_over(state) || !self.keeps_settled(state) || !self.keeps_staleness(state) {
            return;
        }
        if self.may_tick(state) {
            steps.push(Step::Tick);
        }
        for at in 0..NODES {
            if state.nodes[at].is_up {
                self.steps_of_node(state, at, steps);
            } else if self.scene.late.has(at) && state.nodes[at].incarnation == 0 {
                steps.push(Step::Start(at));
            }
        }
        self.steps_of_messages(state, steps);
        self.steps_of_faults(state, steps);
        if self.may_settle(state) {
            steps.push(Step::Settle);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        self.take(&mut state, step);
        Some(self.normal(state))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(SETTLED, |model: &Self, state: &State| model.keeps_settled(state)),
            Property::always(STALENESS, |model: &Self, state: &State| model.keeps_staleness(state)),
            Property::always(SETTLING, |model: &Self, state: &State| model.settles(state)),
            Property::sometimes(SETTLES, |_: &Self, state: &State| state.outcome.is_settled),
        ]
    }
}

impl Protocol {
    fn steps_of_node(&self, state: &State, at: usize, steps: &mut Vec<Step>) {
        let (scene, node) = (&self.scene, &state.nodes[at]);
        if node.listed != self.final_list(state, at) {
            steps.push(Step::Learn(at));
        }
        let may_forget = |&other: &usize| self.may_forget(state, at, other);
        steps.extend((node.listed | node.met).iter().filter(may_forget).map(|other| Step::Forget(at, other)));
        if scene.writers.has(at) && state.made[at].is_none() && node.incarnation == 0 {
            steps.push(Step::Write(at));
        }
        if node.is_unapplied {
            steps.push(Step::ApplyOwn(at));
        }
        let is_wanting = node.value.is_none_or(|value| !self.may_serve(state, at, value));
        if node.load.is_some() {
            steps.push(Step::CompleteLoad(at));
        } else if scene.loaders.has(at) && is_wanting {
            steps.push(Step::Load(at));
        }
        if let Some(fetch) = node.fetch {
            steps.push(Step::AdvanceFetch(at));
            let is_attached = !fetch.is_detached && fetch.stage != FetchStage::Named;
            if scene.joins && is_attached && (fetch.start != Age::NOW || fetch.due != self.due(state, at)) {
                steps.push(Step::Join(at));
            }
        }
        for other in 0..NODES {
            if !self.is_connected(state, at, other) {
                continue;
            }
            let answerer = &state.nodes[other];
            for write in (answerer.position - node.position).iter() {
                steps.push(Step::Deliver(other, at, write));
                let is_told_apart =
                    !self.keeps(Rule::BaseIsAll) || !self.keeps(Rule::BaseDetaches) || !self.keeps(Rule::WholeLog);
                if is_told_apart && node.value.is_none() {
                    steps.push(Step::Begin(other, at, write));
                }
            }
            if scene.asks(at) && !(answerer.position - node.known[other]).is_empty() {
                steps.push(Step::Show(other, at));
            }
            let is_free = state.made[W].is_some() && !state.outcome.is_settled && state.acknowledgement.is_none();
            if is_free && self.can_acknowledge(state, at, other) {
                steps.push(Step::Acknowledge(at, other));
            }
            if scene.fetches.contains(&(at, other)) && node.fetch.is_none() && is_wanting {
                steps.push(Step::Ask(at, other));
            }
            if scene.pages.contains(&(at, other)) && state.page.is_none() && node.value.is_some() {
                steps.push(Step::BeginPage(at, other));
            }
            if scene.staleness.is_some() && scene.pingers.has(at) && state.ping.is_none() {
                steps.push(Step::Ping(at, other));
            }
        }
        if scene.lookups.has(at) && state.lookup.is_none() && node.value.is_some() {
            steps.push(Step::BeginLookup(at));
        }
    }

    fn steps_of_messages(&self, state: &State, steps: &mut Vec<Step>) {
        if let Some(ping) = state.ping {
            steps.push(if ping.shown.is_some() { Step::ReadPong } else { Step::Pong });
        }
        if state.page.is_some() {
            steps.push(Step::AdvancePage);
        }
        if state.set.is_some_and(|set| state.nodes[set.to].is_up) {
            steps.push(Step::DeliverSet);
        }
        if state.acknowledgement.is_some() {
            steps.push(Step::TakeAcknowledgement);
        }
        if state.lookup.is_some() {
            steps.push(Step::CompleteLookup);
        }
    }

    fn take(&self, state: &mut State, step: Step) {
        match step {
            Step::Tick => self.tick(state),
            Step::Start(at) => self.start(state, at),
            Step::Restart(at) => self.restart(state, at),
            Step::Crash(at) => self.crash(state, at),
            Step::Cut(links) => self.cut(state, links),
            Step::Repair(links) => self.repair(state, links),
            Step::Learn(at) => state.nodes[at].listed = self.final_list(state, at),
            Step::Forget(at, other) => self.forget(state, at, other),
            Step::Write(writer) => self.write(state, writer),
            Step::ApplyOwn(writer) => self.apply_own(state, writer),
            Step::Deliver(from, to, write) => self.deliver(state, from, to, write),
            Step::Begin(from, at, write) => self.begin(state, from, at, write),
            Step::Show(from, at) => self.learn_positions(state, at, from),
            Step::Acknowledge(node, by) => self.acknowledge(state, node, by),
            Step::TakeAcknowledgement => self.take_acknowledgement(state),
            Step::Settle => self.settle(state),
            Step::DeliverSet => self.deliver_set(state),
            Step::Load(at) => self.load(state, at),
            Step::CompleteLoad(at) => self.complete_load(state, at),
            Step::Ask(at, to) => self.ask(state, at, to),
            Step::Join(at) => self.join(state, at),
            Step::AdvanceFetch(at) => self.advance_fetch(state, at),
            Step::BeginPage(from, to) => self.begin_page(state, from, to),
            Step::AdvancePage => self.advance_page(state),
            Step::BeginLookup(at) => self.begin_lookup(state, at),
            Step::CompleteLookup => self.complete_lookup(state),
            Step::Ping(from, to) => self.ping(state, from, to),
            Step::Pong => self.pong(state),
            Step::ReadPong => self.read_pong(state),
        }
    }
}

/// Node for a text.
struct Name(usize);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["W", "Q", "X", "V"].get(self.0).unwrap_or(&"?"))
    }
}

/// Links for a text.
struct Ends(Links);

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["W-Q", "W-X", "W-V", "Q-X", "Q-V", "X-V"];
        let ends: Vec<&str> = self.0.iter().filter_map(|link| names.get(link).copied()).collect();
        f.write_str(&ends.join(" and "))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Tick => write!(f, "a tick passes"),
            Self::Start(at) => write!(f, "{} starts", Name(at)),
            Self::Restart(at) => write!(f, "{} restarts", Name(at)),
            Self::Crash(at) => write!(f, "{} dies", Name(at)),
            Self::Cut(links) => write!(f, "{} is cut", Ends(links)),
            Self::Repair(links) => write!(f, "{} is repaired", Ends(links)),
            Self::Learn(at) => write!(f, "discovery of {} catches up", Name(at)),
            Self::Forget(at, other) => write!(f, "{} forgets {}", Name(at), Name(other)),
            Self::Write(writer) => write!(f, "{} writes", Name(writer)),
            Self::ApplyOwn(writer) => write!(f, "{} applies its own write", Name(writer)),
            Self::Deliver(from, to, write) => {
                write!(f, "{} delivers the write of {} to {}", Name(from), Name(write), Name(to))
            }
            Self::Begin(from, at, write) => {
                write!(f, "{} begins the log of {} at the number that {} shows", Name(at), Name(write), Name(from))
            }
            Self::Show(from, at) => write!(f, "{} shows its positions to {}", Name(from), Name(at)),
            Self::Acknowledge(node, W) => write!(f, "{} acknowledges", Name(node)),
            Self::Acknowledge(node, by) => write!(f, "{} acknowledges by way of {}", Name(node), Name(by)),
            Self::TakeAcknowledgement => write!(f, "the acknowledgement arrives"),
            Self::Settle => write!(f, "the write is settled"),
            Self::DeliverSet => write!(f, "the value of the set arrives"),
            Self::Load(at) => write!(f, "{} begins a load", Name(at)),
            Self::CompleteLoad(at) => write!(f, "the load of {} is complete", Name(at)),
            Self::Ask(at, to) => write!(f, "{} asks {}", Name(at), Name(to)),
            Self::Join(at) => write!(f, "a get joins the flight of {}", Name(at)),
            Self::AdvanceFetch(at) => write!(f, "the request of {} moves on", Name(at)),
            Self::BeginPage(from, to) => write!(f, "{} begins a page for {}", Name(from), Name(to)),
            Self::AdvancePage => write!(f, "the page moves on"),
            Self::BeginLookup(at) => write!(f, "a get of {} begins", Name(at)),
            Self::CompleteLookup => write!(f, "the get receives its value"),
            Self::Ping(from, to) => write!(f, "{} pings {}", Name(from), Name(to)),
            Self::Pong => write!(f, "the ping is answered"),
            Self::ReadPong => write!(f, "the pong is read"),
        }
    }
}
