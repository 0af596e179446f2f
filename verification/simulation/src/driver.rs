//! Plays a scenario: moves time on, does to machines, network and discovery what is due, and looks after each tick.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fastrand::Rng;
use turmoil::{Builder, Sim};

use crate::{
    history::Log,
    judge::judge,
    machine,
    network::Network,
    nonsense,
    provider::{host, meant},
    scenario::{Fault, Lie, RECOVERY, SAFETY, Scenario, TICK},
    world::{Belief, Order, Phase, Update, World, name},
};

const SECOND: Duration = Duration::from_secs(1);

/// How long machines may take to stop and start when all is to be well.
const RESTART: Duration = Duration::from_secs(20);

/// How long each stage of the proof may take.
const STAGE: Duration = Duration::from_secs(10);

/// What came of a seed.
pub(crate) struct Played {
    pub(crate) log: Log,
    pub(crate) hash: u64,
    pub(crate) simulated: Duration,
}

/// Plays one seed. Once in a process: ids of tasks are counted in all of it, and order what a crash drops.
pub(crate) fn play(seed: u64, is_verbose: bool) -> Played {
    let scenario = Scenario::of(seed);
    let world = World::new(scenario.clone());
    world.lock().log.is_verbose = is_verbose;
    groupcache_core::simulation::set_wall_clock(machine::wall_clock_ms);
    let mut sim = Builder::new()
        .tick_duration(TICK)
        .min_message_latency(scenario.latency.0)
        .max_message_latency(scenario.latency.1)
        .simulation_duration(SECOND * 3600)
        .tcp_capacity(1 << 14)
        .rng_seed(seed)
        .enable_random_order()
        .build();
    for at in 0..scenario.nodes {
        let world = world.clone();
        sim.host(name(at), move || machine::run(world.clone(), at));
        assert_eq!(sim.lookup(name(at)).to_string(), host(at), "addresses are given in order");
    }
    let stranger = world.clone();
    sim.host("stranger", move || nonsense::talk(stranger.clone()));
    let mut driver = Driver {
        rng: Rng::with_seed(!seed),
        world: world.clone(),
        network: Network::new(&scenario),
        scenario,
        status: Vec::new(),
        lies: BTreeMap::new(),
        withdrawals: Vec::new(),
    };
    driver.status = vec![Status::Runs; driver.scenario.nodes];
    let ended = driver.run(&mut sim);
    let simulated = sim.elapsed();
    let mut state = world.lock();
    if let Err(error) = ended {
        state.log.broken(error);
    }
    let handles: Vec<_> = state.machines.iter_mut().map(|it| (it.node.take(), it.group.take())).collect();
    let mut log = std::mem::take(&mut state.log);
    let scenario = state.scenario.clone();
    drop(state);
    judge(&mut log, &scenario);
    let hash = log.hash();
    // With the machines, whose sockets must end in the simulated network.
    drop(handles);
    std::mem::forget(sim);
    Played { log, hash, simulated }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Runs,
    Crashed,
    /// Stopped, or about to be.
    Stopped,
    /// The same, and to be started again.
    Restarts,
}

struct Driver {
    rng: Rng,
    world: World,
    scenario: Scenario,
    status: Vec<Status>,
    network: Network,
    /// Whom a machine's discovery leaves out as long as it lies.
    lies: BTreeMap<usize, Lie>,
    /// Who crashed, and when discovery finds out.
    withdrawals: Vec<(Duration, usize)>,
}

type Simulated = Result<(), String>;

impl Driver {
    fn run(&mut self, sim: &mut Sim<'_>) -> Simulated {
        for at in 0..self.scenario.nodes {
            self.new_wall_clock(at);
            let lag = self.lag();
            self.tell(at, lag);
        }
        let mut faults = std::mem::take(&mut self.scenario.faults).into_iter().peekable();
        while sim.elapsed() < SAFETY {
            while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= sim.elapsed()) {
                self.apply(sim, fault);
            }
            self.step(sim)?;
        }
        self.heal(sim);
        self.recover(sim)?;
        self.prove(sim)?;
        self.close(sim)
    }

    fn now(&self) -> Duration {
        self.world.lock().log.now()
    }

    /// One tick.
    fn step(&mut self, sim: &mut Sim<'_>) -> Simulated {
        self.world.lock().log.tick(sim.elapsed());
        let now = sim.elapsed();
        for at in 0..self.status.len() {
            let is_down = self.world.lock().machines[at].node.is_none();
            if self.status[at] == Status::Restarts && is_down {
                self.status[at] = Status::Runs;
                self.new_wall_clock(at);
                self.world.lock().machines[at].order = Order::Run;
                self.announce(at, true);
            }
        }
        let due: Vec<_> = self.withdrawals.extract_if(.., |(at, _)| *at <= now).map(|(_, who)| who).collect();
        for at in due {
            if self.status[at] == Status::Crashed {
                self.announce(at, false);
            }
        }
        // A machine whose task panics panics here.
        let stepped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sim.step()));
        match stepped {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(format!("P7: a machine failed: {error}")),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                return Err(format!("P7: a machine panicked: {}", text.unwrap_or_default()));
            }
        }
        self.world.lock().look();
        Ok(())
    }

    fn apply(&mut self, sim: &mut Sim<'_>, fault: Fault) {
        {
            let mut state = self.world.lock();
            state.log.count(fault.kind());
            state.log.tell(|| format!("{fault:?}"));
            if !matches!(fault, Fault::Lie(..) | Fault::Truth(_) | Fault::Nonsense(..)) {
                state.last_fault = sim.elapsed();
            }
        }
        match fault {
            Fault::Crash(at) => self.crash(sim, at),
            Fault::Start(at) => self.start(sim, at),
            Fault::Stop(at) | Fault::Drain(at) if self.status[at] != Status::Runs => {}
            Fault::Stop(at) => {
                self.status[at] = Status::Stopped;
                self.world.lock().machines[at].order = Order::Stop;
                self.announce(at, false);
            }
            Fault::Drain(at) => self.world.lock().machines[at].order = Order::Drain,
            Fault::Lie(at, lie) => self.lie(at, lie),
            Fault::Truth(at) => {
                self.lies.remove(&at);
                self.tell(at, Duration::ZERO);
            }
            Fault::Nonsense(at, bytes) => self.world.lock().nonsense.push((at, bytes)),
            network => self.network.change(sim, &network),
        }
        self.world.lock().network_faults = self.network.faults();
    }

    fn crash(&mut self, sim: &mut Sim<'_>, at: usize) {
        if self.status[at] == Status::Crashed {
            return;
        }
        self.status[at] = Status::Crashed;
        // Our handles first: a process has none outside.
        let handles = self.world.down(at);
        sim.crash(name(at));
        drop(handles);
        let lag = Duration::from_millis(self.rng.u64(500..8_000));
        self.withdrawals.push((self.now() + lag, at));
    }

    fn start(&mut self, sim: &mut Sim<'_>, at: usize) {
        match self.status[at] {
            Status::Runs | Status::Restarts => {}
            Status::Stopped => self.status[at] = Status::Restarts,
            Status::Crashed => {
                self.status[at] = Status::Runs;
                self.world.lock().machines[at].order = Order::Run;
                self.new_wall_clock(at);
                self.announce(at, true);
                sim.bounce(name(at));
            }
        }
    }

    /// P10: the wall clocks of machines have nothing to do with each other, nor with what they were before.
    fn new_wall_clock(&mut self, at: usize) {
        // Near to the beginning of time, today, anywhere, or far in the future; never twice the same millisecond.
        let any = [0, 1_700_000_000_000, self.rng.u64(..1 << 41), 1 << 42, u64::MAX / 2];
        self.world.lock().machines[at].wall_clock_ms = any[self.rng.usize(..any.len())] + self.rng.u64(..1 << 30);
    }

    fn lag(&mut self) -> Duration {
        Duration::from_millis(if self.rng.bool() { self.rng.u64(..50) } else { self.rng.u64(..2_000) })
    }

    /// Discovery learns that a machine is there, or is gone, and tells all others some time.
    fn announce(&mut self, at: usize, is_there: bool) {
        {
            let announced = &mut self.world.lock().announced;
            if is_there {
                announced.insert(at)
            } else {
                announced.remove(&at)
            };
        }
        for to in 0..self.status.len() {
            let lag = self.lag();
            self.tell(to, lag);
        }
    }

    /// Tells a machine who is there, as far as its discovery tells the truth.
    fn tell(&mut self, to: usize, lag: Duration) {
        let mut set = self.world.lock().announced.clone();
        if let Some(Lie::Without(one)) = self.lies.get(&to) {
            set.remove(one);
        }
        self.world.lock().machines[to].insisted = set.clone();
        self.say(to, lag, meant(set));
    }

    fn say(&mut self, to: usize, lag: Duration, update: Update) {
        let at = self.now() + lag;
        let script = &mut self.world.lock().machines[to].script;
        let place = script.partition_point(|(other, _)| *other <= at);
        script.insert(place, (at, update));
    }

    fn lie(&mut self, to: usize, lie: Lie) {
        self.lies.insert(to, lie.clone());
        match lie {
            Lie::Empty => self.say(to, Duration::ZERO, Update::Set(BTreeSet::new(), Belief::Doubtful)),
            Lie::Alone => self.say(to, Duration::ZERO, Update::Set(BTreeSet::from([to]), Belief::Doubtful)),
            Lie::Without(_) => self.tell(to, Duration::ZERO),
            Lie::Ghosts => self.say(to, Duration::ZERO, Update::Ghosts),
            Lie::Fails => self.say(to, Duration::ZERO, Update::Fail),
            Lie::Left(peer) => self.say(to, Duration::ZERO, Update::Left(peer)),
        }
    }

    /// All faults end.
    fn heal(&mut self, sim: &mut Sim<'_>) {
        self.network.heal(sim);
        self.lies.clear();
        for at in 0..self.status.len() {
            let is_draining = self.world.lock().machines[at].order == Order::Drain;
            if self.status[at] == Status::Runs && is_draining {
                self.status[at] = Status::Restarts;
                self.world.lock().machines[at].order = Order::Stop;
            }
            self.start(sim, at);
            self.world.lock().announced.insert(at);
        }
        self.withdrawals.clear();
        for at in 0..self.status.len() {
            // What is late comes no more.
            self.world.lock().machines[at].script.clear();
            self.tell(at, SECOND / 2);
        }
        let mut state = self.world.lock();
        state.network_faults = 0;
        state.last_fault = sim.elapsed();
        state.phase = Phase::Recovery;
    }

    fn all_are_up(&self) -> bool {
        let state = self.world.lock();
        state.machines.iter().all(|it| it.node.is_some() && !it.is_leaving)
    }

    /// Everybody starts, and after a while all is well.
    fn recover(&mut self, sim: &mut Sim<'_>) -> Simulated {
        let end = sim.elapsed() + RESTART;
        while !self.all_are_up() {
            if sim.elapsed() > end {
                return Err("liveness: not all machines have started".to_owned());
            }
            self.step(sim)?;
        }
        let (begin, mut well_since) = (sim.elapsed(), None);
        while sim.elapsed() < begin + RECOVERY {
            self.step(sim)?;
            let is_well = self.world.lock().is_well();
            well_since = if is_well { well_since.or(Some(sim.elapsed())) } else { None };
        }
        let mut state = self.world.lock();
        match well_since {
            Some(since) => {
                state.log.add("ms to recover", (since.saturating_sub(begin)).as_millis() as u64);
                Ok(())
            }
            None => Err(format!("liveness: {RECOVERY:?} after the last fault not all is well: {}", state.views())),
        }
    }

    /// Each get succeeds, and a herd of them loads each key once.
    fn prove(&mut self, sim: &mut Sim<'_>) -> Simulated {
        // Whatever was begun before ends first.
        self.world.lock().phase = Phase::Proof;
        for _ in 0..(12 * SECOND).div_duration_f64(TICK) as u32 {
            if self.world.lock().open_gets == 0 {
                break;
            }
            self.step(sim)?;
        }
        for stage in 1..=machine::STAGES {
            self.world.lock().begin_stage(stage);
            let end = sim.elapsed() + STAGE;
            while self.world.lock().stage_done.len() < self.status.len() {
                if sim.elapsed() > end {
                    return Err(format!("liveness: stage {stage} of the proof does not end"));
                }
                self.step(sim)?;
            }
            self.world.lock().judge_stage(stage);
        }
        for _ in 0..400 {
            self.step(sim)?;
        }
        // A page of a hand-over may be under way in this moment.
        for _ in 0..SECOND.div_duration_f64(TICK) as u32 {
            if self.left().is_empty() {
                return Ok(());
            }
            self.step(sim)?;
        }
        let left = self.left();
        self.world.lock().log.broken(format!("P7: loads or requests are left: {left:?}"));
        Ok(())
    }

    /// The nodes with loads or requests that have not ended.
    fn left(&self) -> Vec<String> {
        let state = self.world.lock();
        let left = state.live().filter(|(_, _, node)| (node.loads(), node.in_flight()) != ((0, 0), 0));
        left.map(|(_, _, node)| format!("{}: {:?}, {}", node.id(), node.loads(), node.in_flight())).collect()
    }

    /// All leave; nothing may be left of them.
    fn close(&mut self, sim: &mut Sim<'_>) -> Simulated {
        for at in 0..self.status.len() {
            self.world.lock().machines[at].order = Order::Stop;
        }
        let end = sim.elapsed() + RESTART;
        while self.world.lock().live().count() > 0 {
            if sim.elapsed() > end {
                return Err("liveness: not all machines have stopped".to_owned());
            }
            self.step(sim)?;
        }
        // Each looks for its tasks two seconds after its end.
        for _ in 0..(3 * SECOND).div_duration_f64(TICK) as u32 {
            self.step(sim)?;
        }
        Ok(())
    }
}
