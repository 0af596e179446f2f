//! What machines, loaders, providers and the driver share.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use groupcache_core::{Group, Incarnation, Node, PeerId, Signal};

use crate::{
    history::{Answer, Get, Log, Moment, Origin, Process, Source, Write},
    scenario::Scenario,
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
    seen: View,
    attempts: Attempts,
}

#[derive(Clone, Default)]
struct View {
    epoch: u64,
    fingerprint: u64,
    members: BTreeMap<PeerId, Incarnation>,
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
    agreed_since: Option<(Moment, u64)>,
    calm_since: Option<Duration>,
    /// Writes that have ended, and loads that have begun, within this tick.
    fresh_writes: Vec<usize>,
    fresh_loads: Vec<usize>,
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

/// How long everything must have been well until nothing that happens is put down to a fault.
const CALM: Duration = Duration::from_secs(3);

impl State {
    /// The machines whose node is up.
    pub(crate) fn live(&self) -> impl Iterator<Item = (usize, &Machine, &Node)> {
        self.machines.iter().enumerate().filter_map(|(at, it)| Some((at, it, it.node.as_ref()?)))
    }

    /// Looks at all nodes, after each tick.
    pub(crate) fn look(&mut self) {
        self.look_at_views();
        self.look_at_bounds();
        let now = self.log.now();
        let moment = Moment { n: self.log.number(), at: now };
        let agreed = if self.agree() { self.live().next().map(|(_, it, _)| it.seen.fingerprint) } else { None };
        // All may go from one view to another within one tick.
        self.agreed_since = match (self.agreed_since, agreed) {
            (Some((since, before)), Some(on)) if before == on => Some((since, on)),
            (_, agreed) => agreed.map(|on| (moment, on)),
        };
        let since = self.agreed_since.map(|(since, _)| since);
        let agreed_since = since.map(|since| since.n);
        let is_moving = self.live().any(|(_, it, _)| it.is_leaving);
        let well = agreed.is_some() && self.network_faults == 0 && !is_moving && self.all_reach_all();
        if well {
            self.calm_since.get_or_insert(now);
        } else {
            self.calm_since = None;
        }
        let is_calm = self.calm_since.is_some_and(|since| now >= since.max(self.last_fault) + CALM);
        for write in std::mem::take(&mut self.fresh_writes) {
            let write = &mut self.log.writes[write];
            write.is_of_all = write.is_complete && agreed_since.is_some_and(|since| since < write.begin.n);
        }
        for load in std::mem::take(&mut self.fresh_loads) {
            let load = &mut self.log.sources[load];
            (load.agreed_since, load.is_calm) = (agreed_since, is_calm);
            load.agreed_for = since.map_or(Duration::ZERO, |since| now - since.at);
        }
        if is_calm {
            self.log.count("calm ticks");
        }
        if self.agreed_since.is_some() {
            self.log.count("ticks in which all views agree");
        }
        self.log.count("ticks");
    }

    /// Whether all nodes have one view, and all of them are in it.
    pub(crate) fn agree(&self) -> bool {
        let here: BTreeMap<_, _> = self.live().map(|(at, _, node)| (id(at), node)).collect();
        let mut views = self.live().map(|(_, it, _)| &it.seen);
        let Some(first) = views.next() else { return true };
        first.members.len() >= here.len()
            && here.keys().all(|id| first.members.contains_key(id))
            && views.all(|view| view.fingerprint == first.fingerprint && view.members == first.members)
    }

    /// The views of all, for a person to read.
    pub(crate) fn views(&self) -> String {
        let view = |(at, it, node): (usize, &Machine, &Node)| {
            let members: Vec<_> = node
                .members()
                .iter()
                .map(|m| {
                    format!(
                        "{}@{}{}{}",
                        m.id,
                        m.incarnation.0,
                        if m.owns { "" } else { " owns nothing" },
                        if m.is_reachable { "" } else { " unreachable" }
                    )
                })
                .collect();
            format!("\n  {} (up since {:?}, {:?}): {members:?}", id(at), it.up_at, node.state())
        };
        self.live().map(view).collect()
    }

    pub(crate) fn begin_stage(&mut self, stage: u32) {
        self.stage = (stage, self.log.number());
        self.stage_done.clear();
    }

    /// P1 of a herd: while nothing is wrong every key is loaded once.
    pub(crate) fn judge_stage(&mut self, stage: u32) {
        if stage != crate::machine::HERD || !self.scenario.is_roomy {
            return;
        }
        let mut loads: BTreeMap<usize, u32> = BTreeMap::new();
        for source in self.log.sources.iter().filter(|source| source.begin.n > self.stage.1) {
            *loads.entry(source.key).or_default() += 1;
        }
        self.log.add("herds", loads.len() as u64);
        let wrong: Vec<_> = loads.into_iter().filter(|(_, n)| *n != 1).collect();
        if !wrong.is_empty() {
            self.log.broken(format!("P1: a herd has loaded keys more than once: {wrong:?}"));
        }
    }

    pub(crate) fn all_reach_all(&self) -> bool {
        self.live().all(|(_, _, node)| node.members().iter().all(|member| member.is_reachable))
    }

    fn look_at_views(&mut self) {
        for at in 0..self.machines.len() {
            let Some(node) = self.machines[at].node.clone() else { continue };
            if node.epoch() == self.machines[at].seen.epoch {
                continue;
            }
            let members = node.members().into_iter().map(|member| (member.id, member.incarnation)).collect();
            let seen = View { epoch: node.epoch(), fingerprint: node.fingerprint(), members };
            self.log.trace(&(7, at, seen.epoch, seen.fingerprint));
            self.log.count("views");
            self.log
                .tell(|| format!("{} has view {} {:016x}: {:?}", id(at), seen.epoch, seen.fingerprint, seen.members));
            let before = std::mem::replace(&mut self.machines[at].seen, seen);
            self.judge_removals(at, &before);
        }
        self.judge_goodbyes();
    }

    /// Nobody who lives and is listed is taken out of a view.
    fn judge_removals(&mut self, at: usize, before: &View) {
        let now = self.log.now();
        let quiet = self.network_faults == 0 && now >= self.last_fault + 2 * CALM;
        let mut wrong = Vec::new();
        for (other, machine, node) in self.live() {
            let is_gone =
                before.members.contains_key(&id(other)) && !self.machines[at].seen.members.contains_key(&id(other));
            let is_listed = match &self.machines[at].last_set {
                Some((set, Belief::Meant)) => set.contains(&other),
                Some((_, Belief::Doubtful)) => true,
                None => false,
            };
            if is_gone && is_listed && quiet && !machine.is_leaving && now >= machine.up_at + 3 * CALM {
                wrong.push(format!("membership: {} has dropped {}, which lives and is listed", id(at), node.id()));
            }
        }
        wrong.into_iter().for_each(|wrong| self.log.broken(wrong));
    }

    /// Who said goodbye is out of every view within a second, while the network is whole.
    fn judge_goodbyes(&mut self) {
        const HEARD: Duration = Duration::from_secs(1);
        let now = self.log.now();
        if self.network_faults > 0 || now < self.last_fault + CALM {
            self.goodbyes.clear();
        }
        let due: Vec<_> = self.goodbyes.extract_if(.., |(at, ..)| now >= *at + HEARD).collect();
        for (_, gone, incarnation) in due {
            self.log.count("goodbyes judged");
            let who = self.live().find(|(_, it, _)| it.seen.members.get(&gone) == Some(&incarnation));
            if let Some((at, ..)) = who {
                let broken = format!("goodbye: {gone} has left in good order, and {} still counts on it", id(at));
                self.log.broken(broken);
            }
        }
    }

    /// P6, one hop, and the budget of second attempts.
    fn look_at_bounds(&mut self) {
        let (mut wrong, now) = (Vec::new(), self.log.now());
        let is_before_the_proof = self.phase < Phase::Proof;
        for (at, it) in self.machines.iter_mut().enumerate() {
            let (Some(node), Some(group)) = (&it.node, &it.group) else { continue };
            if group.bytes() > self.scenario.capacity {
                wrong.push(format!("P6: {} holds {} bytes of {}", id(at), group.bytes(), self.scenario.capacity));
            }
            if self.scenario.quiet == Some(at) && is_before_the_proof && group.stats().fetches > 0 {
                wrong.push(format!("one hop: nobody calls at {}, and it has asked another node", id(at)));
            }
            let stats = node.stats();
            if let Some(excess) = it.attempts.take(now, stats.fallback_attempts, stats.requests_sent) {
                wrong.push(format!("budget: {excess} second attempts of {} were too many", id(at)));
            }
        }
        wrong.into_iter().for_each(|wrong| self.log.broken(wrong));
    }
}

/// Second attempts: ten a second, of which those of one second may be saved up, and a tenth of the requests.
#[derive(Default)]
struct Attempts {
    seen: u64,
    tokens: f64,
    /// When there were some last, and the requests until then.
    last: Option<(Duration, u64)>,
}

/// Attempts of a second.
const SAVED_UP: f64 = 10.0;
/// Within a tick, whose parts are not seen.
const UNSEEN: f64 = 2.0;

impl Attempts {
    /// More than there may be.
    fn take(&mut self, now: Duration, attempts: u64, requests: u64) -> Option<f64> {
        let new = (attempts - self.seen) as f64;
        self.seen = attempts;
        if new == 0.0 {
            return None;
        }
        let available = match self.last {
            None => SAVED_UP.max(requests as f64 / 10.0),
            Some((at, before)) => {
                let by_requests = (requests - before) as f64 / 10.0;
                (self.tokens + (now - at).as_secs_f64() * 10.0 + by_requests).min(SAVED_UP.max(by_requests))
            }
        };
        self.last = Some((now, requests));
        self.tokens = (available - new).max(0.0);
        (new > available + UNSEEN).then_some(new - available)
    }
}
