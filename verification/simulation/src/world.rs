//! World: the state that machines, loaders, providers and the driver share.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use groupcache_core::{
    Group, Node, PeerId,
    discovery::{Incarnation, Signal},
};

use crate::{
    history::{Answer, Get, Log, Moment, Origin, Process, Source, Write},
    scenario::Scenario,
    watch::{Attempts, View},
};

/// Port on which all nodes listen.
pub(crate) const PORT: u16 = 7946;

/// Phase of the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Faults,
    /// All faults have ended, and the callers go on.
    Recovery,
    /// Only the liveness check makes calls.
    LivenessCheck,
}

/// Order of the driver to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Run,
    Drain,
    Stop,
}

/// Report that a provider is to publish.
#[derive(Clone, Debug)]
pub(crate) enum Update {
    /// A set of machines, true or not.
    Set(BTreeSet<usize>, Belief),
    Ghosts,
    Left(usize),
    Fail,
}

/// Reliability of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Belief {
    /// True, or wrong and repeated when the node asks again.
    Meant,
    /// Wrong, and corrected as soon as the node asks again.
    Doubtful,
}

/// A machine, and the process on it.
pub(crate) struct Machine {
    /// Number of starts of the node so far.
    pub(crate) starts: u32,
    pub(crate) order: Order,
    pub(crate) node: Option<Node>,
    pub(crate) group: Option<Group<String>>,
    /// Time of the last start of the node.
    pub(crate) up_at: Duration,
    /// Whether the node has begun to leave, so that its keys are owned by others.
    pub(crate) is_leaving: bool,
    pub(crate) wall_clock_ms: u64,
    pub(crate) script: VecDeque<(Duration, Update)>,
    /// Set that the provider publishes when the node asks.
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
    /// Machines that are announced to discovery.
    pub(crate) announced: BTreeSet<usize>,
    /// Number of faults of the network in force.
    pub(crate) network_faults: u32,
    /// Time of the last beginning or end of a fault, other than a fault of discovery and garbage.
    pub(crate) last_fault: Duration,
    /// Moment since which all views have agreed, and the fingerprint of their ring.
    pub(crate) agreed_since: Option<(Moment, u64)>,
    pub(crate) calm_since: Option<Duration>,
    /// Loads that have begun within this tick.
    pub(crate) fresh_loads: Vec<usize>,
    /// Goodbyes that are still to be judged, each with its time.
    pub(crate) goodbyes: Vec<(Duration, PeerId, Incarnation)>,
    /// Garbage that the unlisted client is still to send: machine and number of bytes.
    pub(crate) garbage_orders: Vec<(usize, usize)>,
    /// Number of gets that have begun and not ended, at processes that are up.
    pub(crate) open_gets: usize,
    /// Stage of the liveness check, and the number at its beginning.
    pub(crate) stage: (u32, u64),
    /// Machines that are done with the stage.
    pub(crate) stage_done: BTreeSet<usize>,
}

/// Handle to the shared state. A simulation has a single thread.
#[derive(Clone)]
pub(crate) struct World(Arc<Mutex<State>>);

pub(crate) fn id(machine: usize) -> PeerId {
    PeerId::new(name(machine)).expect("a valid id")
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
            starts: 0,
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
            fresh_loads: Vec::new(),
            goodbyes: Vec::new(),
            garbage_orders: Vec::new(),
            open_gets: 0,
            stage: (0, 0),
            stage_done: BTreeSet::new(),
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Records the beginning of a load, which ends when the returned value is dropped.
    pub(crate) fn begin_load(&self, key: usize, by: Process, reason: groupcache_core::loader::LoadReason) -> Running {
        let mut state = self.lock();
        let node = state.machines[by.machine].node.clone();
        let epoch = node.map_or(0, |node| node.epoch());
        let (since, begin) = (state.log.since(), state.log.next());
        state.log.trace(&(1, key, by, begin.n));
        state.log.count(match reason {
            groupcache_core::loader::LoadReason::Fallback => "fallback loads",
            groupcache_core::loader::LoadReason::Refresh => "refreshes",
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
            agreed_since: None,
            agreed_for: Duration::ZERO,
            is_calm: false,
        });
        let at = state.log.sources.len() - 1;
        state.fresh_loads.push(at);
        Running { world: self.clone(), at, number: begin.n }
    }

    /// Records the beginning of a get.
    pub(crate) fn begin_get(&self, key: usize, by: Process, deadline: Duration) -> usize {
        let mut state = self.lock();
        let begin = state.log.next();
        state.log.gets.push(Get { key, by, begin, deadline, end: None });
        state.open_gets += 1;
        state.log.gets.len() - 1
    }

    /// Records the end of a get.
    pub(crate) fn end_get(&self, get: usize, answer: Answer) {
        let mut state = self.lock();
        let end = state.log.next();
        state.log.trace(&(2, get, answer));
        state.log.count(match answer {
            Answer::Value(_) => "gets: values",
            Answer::Nothing => "gets: nothing found",
            Answer::Failed => "gets: load failed",
            Answer::TimedOut => "gets: timed out",
            Answer::Quarantined => "gets: quarantined",
            Answer::Closed => "gets: closed",
        });
        state.log.gets[get].end = Some((end, answer));
        state.open_gets = state.open_gets.saturating_sub(1);
    }

    /// Records the beginning of a write of these keys, or of all keys if there are none.
    pub(crate) fn begin_write(&self, keys: &[usize], by: Process) -> (usize, Moment) {
        let mut state = self.lock();
        let begin = state.log.next();
        let keys = (!keys.is_empty()).then(|| keys.to_vec());
        let met = state.met_by(by);
        state.log.writes.push(Write { keys, by, begin, end: None, settled: None, met });
        (state.log.writes.len() - 1, begin)
    }

    /// Records the beginning of a `set`. The number of its beginning is its value.
    pub(crate) fn begin_set(&self, key: usize, by: Process) -> (usize, usize, u64) {
        let (write, begin) = self.begin_write(&[key], by);
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
            agreed_since: None,
            agreed_for: Duration::ZERO,
            is_calm: false,
        });
        (write, state.log.sources.len() - 1, begin.n)
    }

    /// Records the end of a write. A set that did not reach every node may take effect at any time later.
    pub(crate) fn end_write(&self, write: usize, set: Option<usize>, is_complete: bool) {
        let mut state = self.lock();
        let end = state.log.next();
        state.log.trace(&(3, write, is_complete));
        state.log.count(if is_complete { "writes: complete" } else { "writes: not complete" });
        state.log.writes[write].end = Some(end);
        if is_complete {
            state.settled(write, end);
        }
        if let Some(set) = set.filter(|_| is_complete) {
            state.log.sources[set].end = Some(end);
        }
    }

    /// Records that a write has settled after its end.
    pub(crate) fn settled(&self, write: usize, set: Option<usize>) {
        let mut state = self.lock();
        let settled = state.log.next();
        state.log.trace(&(4, write));
        state.log.count("writes: settled later");
        state.settled(write, settled);
        if let Some(set) = set {
            state.log.sources[set].end = Some(settled);
        }
    }

    /// Records the start of a node, and returns its process.
    pub(crate) fn node_started(&self, machine: usize, node: &Node, group: &Group<String>) -> Process {
        let mut state = self.lock();
        let now = state.log.now();
        let it = &mut state.machines[machine];
        it.starts += 1;
        (it.node, it.group, it.up_at, it.is_leaving) = (Some(node.clone()), Some(group.clone()), now, false);
        (it.seen, it.attempts) = (View::default(), Attempts::default());
        let process = Process { machine, start: it.starts };
        let number = state.log.number();
        state.log.starts.insert(process, number);
        state.log.count("node starts");
        state.log.trace(&(4, process));
        process
    }

    /// Records the end of a node, however it came about, and returns its handles, which are dropped after the lock is
    /// free.
    pub(crate) fn node_stopped(&self, machine: usize) -> (Option<Node>, Option<Group<String>>) {
        let mut state = self.lock();
        state.log.trace(&(5, machine));
        if state.machines[machine].node.is_none() {
            return (None, None); // the node had not started
        }
        let now = state.log.now();
        let start = state.machines[machine].starts;
        let by = Process { machine, start };
        state.log.ended.insert(by, now);
        let open = state.log.gets.iter().filter(|get| get.by == by && get.end.is_none()).count();
        state.open_gets = state.open_gets.saturating_sub(open);
        let it = &mut state.machines[machine];
        it.last_set = None;
        (it.node.take(), it.group.take())
    }

    /// Returns the reports that the provider of a machine publishes at this moment.
    pub(crate) fn due_updates(&self, machine: usize) -> Vec<Update> {
        let mut state = self.lock();
        let now = state.log.now();
        let script = &mut state.machines[machine].script;
        let due = script.iter().take_while(|(at, _)| *at <= now).count();
        script.drain(..due).map(|(_, update)| update).collect()
    }

    /// Returns the report of a provider that the node has asked.
    pub(crate) fn resolve(&self, machine: usize, signal: &Signal) -> Option<Update> {
        let mut state = self.lock();
        let Signal::Resolve(_) = signal else { return None };
        state.log.count("questions to discovery");
        Some(Update::Set(state.machines[machine].insisted.clone(), Belief::Meant))
    }
}

/// A call of a loader, which has failed unless another outcome is set.
pub(crate) struct Running {
    world: World,
    at: usize,
    /// Number of the beginning.
    pub(crate) number: u64,
}

impl Running {
    pub(crate) fn set_outcome(&self, answer: Answer, is_kept: bool) {
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
    /// Returns the machines with a node that is up.
    /// Returns the processes that a process has met, that these have met, and so on: the members of their views.
    fn met_by(&self, by: Process) -> BTreeSet<Process> {
        let incarnation = |node: &Node| node.members().into_iter().find(|member| member.local).map(|me| me.incarnation);
        let live: Vec<_> = self
            .live()
            .map(|(at, it, node)| {
                (Process { machine: at, start: it.starts }, id(at), incarnation(node), node.members())
            })
            .collect();
        let (mut met, mut to_visit) = (BTreeSet::from([by]), vec![by]);
        while let Some(process) = to_visit.pop() {
            let Some((.., members)) = live.iter().find(|(other, ..)| *other == process) else { continue };
            for (other, id, incarnation, _) in &live {
                let is_member = members.iter().any(|m| m.id == *id && Some(m.incarnation) == *incarnation);
                if is_member && met.insert(*other) {
                    to_visit.push(*other);
                }
            }
        }
        met
    }

    /// Records that nothing is pending of a write. Only processes that its writer had met at its beginning and at this
    /// moment are judged, and those that start later, if the writer had met all others.
    fn settled(&mut self, write: usize, settled: Moment) {
        let met = self.met_by(self.log.writes[write].by);
        let has_met_all = self.live().all(|(at, it, _)| met.contains(&Process { machine: at, start: it.starts }));
        let write = &mut self.log.writes[write];
        write.met.retain(|process| met.contains(process));
        write.settled = Some((settled, has_met_all));
    }

    pub(crate) fn live(&self) -> impl Iterator<Item = (usize, &Machine, &Node)> {
        self.machines.iter().enumerate().filter_map(|(at, it)| Some((at, it, it.node.as_ref()?)))
    }
}
