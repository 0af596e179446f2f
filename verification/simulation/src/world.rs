//! What machines, loaders, providers and the driver share.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use groupcache_core::{Group, Incarnation, Node, PeerId, Signal};

use crate::{
    history::{Answer, Get, Log, Moment, Origin, Process, Source, Write},
    scenario::Scenario,
    watch::{Attempts, View},
};

/// The port on which all nodes listen.
pub(crate) const PORT: u16 = 7946;

/// Where the simulation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Faults,
    /// Everything is whole, and everybody goes on.
    Recovery,
    /// Nobody calls but those who look whether all is well.
    Proof,
}

/// What a machine is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Run,
    Drain,
    Stop,
}

/// What a provider is to say.
#[derive(Clone, Debug)]
pub(crate) enum Update {
    /// These machines, for whatever reason.
    Set(BTreeSet<usize>, Belief),
    Ghosts,
    Left(usize),
    Fail,
}

/// Whether a set may be acted upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Belief {
    /// It is the truth, or a lie that is insisted on.
    Meant,
    /// A lie that is taken back as soon as somebody asks.
    Doubtful,
}

/// One machine, and the process on it.
pub(crate) struct Machine {
    pub(crate) life: u32,
    pub(crate) order: Order,
    pub(crate) node: Option<Node>,
    pub(crate) group: Option<Group<String>>,
    /// When it came up, and when it was last told to leave.
    pub(crate) up_at: Duration,
    /// It has begun to leave: what it owns is others'.
    pub(crate) is_leaving: bool,
    pub(crate) wall_clock_ms: u64,
    pub(crate) script: VecDeque<(Duration, Update)>,
    /// What its provider says when it is asked.
    pub(crate) insisted: BTreeSet<usize>,
    pub(crate) last_set: Option<(BTreeSet<usize>, Belief)>,
    pub(crate) seen: View,
    pub(crate) attempts: Attempts,
}

pub(crate) struct State {
    pub(crate) scenario: Scenario,
    pub(crate) log: Log,
    pub(crate) machines: Vec<Machine>,
    pub(crate) phase: Phase,
    /// Who is announced to discovery.
    pub(crate) announced: BTreeSet<usize>,
    /// Faults of the network that last; and when the last one of any kind was over.
    pub(crate) network_faults: u32,
    pub(crate) last_fault: Duration,
    /// Since when all views have agreed, and on which ring.
    pub(crate) agreed_since: Option<(Moment, u64)>,
    pub(crate) calm_since: Option<Duration>,
    /// Writes that have ended, and loads that have begun, within this tick.
    pub(crate) fresh_writes: Vec<usize>,
    pub(crate) fresh_loads: Vec<usize>,
    /// Who has said goodbye: when, and that it was heard is to be seen.
    pub(crate) goodbyes: Vec<(Duration, PeerId, Incarnation)>,
    /// What a stranger is to say to whom: so many bytes.
    pub(crate) nonsense: Vec<(usize, usize)>,
    /// Gets that have begun and not ended, of processes that are there.
    pub(crate) open_gets: usize,
    /// Which stage of the proof it is, since which number, and who is done with it.
    pub(crate) stage: (u32, u64),
    pub(crate) stage_done: BTreeSet<usize>,
}

/// A handle to all of it. There is one thread.
#[derive(Clone)]
pub(crate) struct World(Arc<Mutex<State>>);

pub(crate) fn id(machine: usize) -> PeerId {
    PeerId::new(name(machine)).expect("a good name")
}

pub(crate) fn name(machine: usize) -> String {
    format!("node-{machine}")
}

pub(crate) fn key(number: usize) -> String {
    format!("key-{number}")
}

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let machine = |_| Machine {
            life: 0,
            order: Order::Run,
            node: None,
            group: None,
            up_at: Duration::ZERO,
            is_leaving: false,
            wall_clock_ms: 0,
            script: VecDeque::new(),
            insisted: BTreeSet::new(),
            last_set: None,
            seen: View::default(),
            attempts: Attempts::default(),
        };
        let machines: Vec<_> = (0..scenario.nodes).map(machine).collect();
        Self(Arc::new(Mutex::new(State {
            announced: (0..scenario.nodes).collect(),
            scenario,
            log: Log::default(),
            machines,
            phase: Phase::Faults,
            network_faults: 0,
            last_fault: Duration::ZERO,
            agreed_since: None,
            calm_since: None,
            fresh_writes: Vec::new(),
            fresh_loads: Vec::new(),
            goodbyes: Vec::new(),
            nonsense: Vec::new(),
            open_gets: 0,
            stage: (0, 0),
            stage_done: BTreeSet::new(),
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A loader was called. It ends when what this returns is dropped.
    pub(crate) fn load(&self, key: usize, by: Process, reason: groupcache_core::LoadReason) -> Running {
        let mut state = self.lock();
        let node = state.machines[by.machine].node.clone();
        let (epoch, cut_off) = node.map_or((0, 0), |node| (node.epoch(), node.stats().cut_off));
        let (since, begin) = (state.log.since(), state.log.next());
        state.log.trace(&(1, key, by, begin.n));
        state.log.count(match reason {
            groupcache_core::LoadReason::Fallback => "fallback loads",
            groupcache_core::LoadReason::Refresh => "refreshes",
            _ => "owner loads",
        });
        state.log.sources.push(Source {
            key,
            by,
            origin: Origin::Load(reason),
            begin,
            since,
            end: None,
            answer: Answer::Failed,
            is_kept: false,
            epoch,
            cut_off,
            agreed_since: None,
            agreed_for: Duration::ZERO,
            is_calm: false,
        });
        let at = state.log.sources.len() - 1;
        state.fresh_loads.push(at);
        Running { world: self.clone(), at, number: begin.n }
    }

    /// A get is about to be called.
    pub(crate) fn asks(&self, key: usize, by: Process, deadline: Duration) -> usize {
        let mut state = self.lock();
        let begin = state.log.next();
        state.log.gets.push(Get { key, by, begin, deadline, end: None });
        state.open_gets += 1;
        state.log.gets.len() - 1
    }

    /// It has ended.
    pub(crate) fn told(&self, get: usize, answer: Answer) {
        let mut state = self.lock();
        let end = state.log.next();
        state.log.trace(&(2, get, answer));
        state.log.count(match answer {
            Answer::Value(_) => "gets: values",
            Answer::Nothing => "gets: nothing there",
            Answer::Failed => "gets: load failed",
            Answer::TimedOut => "gets: timed out",
            Answer::Closed => "gets: closed",
        });
        state.log.gets[get].end = Some((end, answer));
        state.open_gets = state.open_gets.saturating_sub(1);
    }

    /// A write of these keys is about to be called; of all when there are none.
    pub(crate) fn writes(&self, keys: &[usize]) -> (usize, Moment) {
        let mut state = self.lock();
        let begin = state.log.next();
        let keys = (!keys.is_empty()).then(|| keys.to_vec());
        state.log.writes.push(Write { keys, begin, end: None, is_complete: false, is_of_all: false });
        (state.log.writes.len() - 1, begin)
    }

    /// The same for a `set`, whose number is its value.
    pub(crate) fn sets(&self, key: usize, by: Process) -> (usize, usize, u64) {
        let (write, begin) = self.writes(&[key]);
        let mut state = self.lock();
        state.log.sources.push(Source {
            key,
            by,
            origin: Origin::Set,
            begin,
            since: begin.n,
            end: None,
            answer: Answer::Value(begin.n),
            is_kept: true,
            epoch: 0,
            cut_off: 0,
            agreed_since: None,
            agreed_for: Duration::ZERO,
            is_calm: false,
        });
        (write, state.log.sources.len() - 1, begin.n)
    }

    /// A write has returned. What did not reach everyone may take effect at any time later.
    pub(crate) fn wrote(&self, write: usize, set: Option<usize>, is_complete: bool) {
        let mut state = self.lock();
        let end = state.log.next();
        state.log.trace(&(3, write, is_complete));
        state.log.count(if is_complete { "writes: complete" } else { "writes: not complete" });
        state.log.writes[write].end = Some(end);
        state.log.writes[write].is_complete = is_complete;
        state.fresh_writes.push(write);
        if let Some(set) = set.filter(|_| is_complete) {
            state.log.sources[set].end = Some(end);
        }
    }

    /// A node has started; the number of its life.
    pub(crate) fn up(&self, machine: usize, node: &Node, group: &Group<String>) -> Process {
        let mut state = self.lock();
        let now = state.log.now();
        let it = &mut state.machines[machine];
        it.life += 1;
        (it.node, it.group, it.up_at, it.is_leaving) = (Some(node.clone()), Some(group.clone()), now, false);
        (it.seen, it.attempts) = (View::default(), Attempts::default());
        let process = Process { machine, life: it.life };
        state.log.count("lives");
        state.log.trace(&(4, process));
        process
    }

    /// It has ended, one way or another. The handles are dropped after the lock is free.
    pub(crate) fn down(&self, machine: usize) -> (Option<Node>, Option<Group<String>>) {
        let mut state = self.lock();
        state.log.trace(&(5, machine));
        if state.machines[machine].node.is_none() {
            return (None, None); // it had not come up
        }
        let now = state.log.now();
        let life = state.machines[machine].life;
        let by = Process { machine, life };
        state.log.ended.insert(by, now);
        let open = state.log.gets.iter().filter(|get| get.by == by && get.end.is_none()).count();
        state.open_gets = state.open_gets.saturating_sub(open);
        let it = &mut state.machines[machine];
        it.last_set = None;
        (it.node.take(), it.group.take())
    }

    /// What the provider of a machine is to do now.
    pub(crate) fn updates(&self, machine: usize) -> Vec<Update> {
        let mut state = self.lock();
        let now = state.log.now();
        let script = &mut state.machines[machine].script;
        let due = script.iter().take_while(|(at, _)| *at <= now).count();
        script.drain(..due).map(|(_, update)| update).collect()
    }

    /// What it says to a question.
    pub(crate) fn asked(&self, machine: usize, signal: &Signal) -> Option<Update> {
        let mut state = self.lock();
        let Signal::Resolve(_) = signal else { return None };
        state.log.count("questions to discovery");
        Some(Update::Set(state.machines[machine].insisted.clone(), Belief::Meant))
    }
}

/// A call of a loader. Unless it says otherwise it fails.
pub(crate) struct Running {
    world: World,
    at: usize,
    /// Of its beginning.
    pub(crate) number: u64,
}

impl Running {
    pub(crate) fn says(&self, answer: Answer, is_kept: bool) {
        let source = &mut self.world.lock().log.sources[self.at];
        (source.answer, source.is_kept) = (answer, is_kept);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.world.lock();
        let end = state.log.next();
        let answer = state.log.sources[self.at].answer;
        state.log.trace(&(6, self.at, answer));
        state.log.sources[self.at].end = Some(end);
    }
}

impl State {
    /// The machines whose node is up.
    pub(crate) fn live(&self) -> impl Iterator<Item = (usize, &Machine, &Node)> {
        self.machines.iter().enumerate().filter_map(|(at, it)| Some((at, it, it.node.as_ref()?)))
    }
}
