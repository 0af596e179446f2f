//! Driver: plays a scenario. The driver advances time, applies due faults to machines, network and discovery, and
//! observes the cluster after each tick.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fastrand::Rng;
use turmoil::{Builder, Sim};

use crate::{
    garbage_client,
    history::Log,
    judge::judge,
    machine,
    network::Network,
    provider::{host, meant},
    scenario::{DiscoveryFault, Fault, RECOVERY, SAFETY, Scenario, TICK},
    world::{Belief, Order, Phase, Update, World, name},
};

const SECOND: Duration = Duration::from_secs(1);

/// Time limit for all machines to start after the last fault, and to stop at the end.
const RESTART: Duration = Duration::from_secs(20);

/// Time limit for each stage of the liveness check.
const STAGE: Duration = Duration::from_secs(10);

/// Outcome of a seed.
pub(crate) struct Played {
    pub(crate) log: Log,
    pub(crate) hash: u64,
    pub(crate) simulated: Duration,
}

/// Plays a seed.
///
/// A process plays a single seed, because ids of tasks are counted per process and order the tasks that a crash drops.
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
        assert_eq!(sim.lookup(name(at)).to_string(), host(at), "the simulated network assigns addresses in order");
    }
    let unlisted_client = world.clone();
    sim.host("unlisted-client", move || garbage_client::run(unlisted_client.clone()));
    let mut driver = Driver {
        rng: Rng::with_seed(!seed),
        world: world.clone(),
        network: Network::new(&scenario),
        scenario,
        status: Vec::new(),
        discovery_faults: BTreeMap::new(),
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
    // The handles are dropped while the simulated network exists, because their sockets must end in it.
    drop(handles);
    std::mem::forget(sim);
    Played { log, hash, simulated }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Runs,
    Crashed,
    /// Stopped, or about to stop.
    Stopped,
    /// Stopped or about to stop, and to be started once the node is down.
    Restarts,
}

struct Driver {
    rng: Rng,
    world: World,
    scenario: Scenario,
    status: Vec<Status>,
    network: Network,
    /// Discovery faults in force, by machine.
    discovery_faults: BTreeMap<usize, DiscoveryFault>,
    /// Crashed machines, each with the time at which discovery notices the crash.
    withdrawals: Vec<(Duration, usize)>,
}

type Simulated = Result<(), String>;

impl Driver {
    fn run(&mut self, sim: &mut Sim<'_>) -> Simulated {
        for at in 0..self.scenario.nodes {
            self.new_wall_clock(at);
            let lag = self.lag();
            self.schedule_announced(at, lag);
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
        self.check_liveness(sim)?;
        self.close(sim)
    }

    fn now(&self) -> Duration {
        self.world.lock().log.now()
    }

    /// Advances the simulation by one tick, and observes the cluster afterwards.
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
        let due: Vec<_> = self.withdrawals.extract_if(.., |(at, _)| *at <= now).map(|(_, at)| at).collect();
        for at in due {
            if self.status[at] == Status::Crashed {
                self.announce(at, false);
            }
        }
        // A panic in the task of a machine becomes a panic of this call.
        let stepped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sim.step()));
        match stepped {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(format!("P7: a machine returned an error: {error}")),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                return Err(format!("P7: a machine panicked: {}", text.unwrap_or_default()));
            }
        }
        self.world.lock().observe();
        Ok(())
    }

    fn apply(&mut self, sim: &mut Sim<'_>, fault: Fault) {
        {
            let mut state = self.world.lock();
            state.log.count(fault.kind());
            state.log.print(|| format!("{fault:?}"));
            if !matches!(fault, Fault::Discovery(..) | Fault::DiscoveryRepair(_) | Fault::Garbage(..)) {
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
            Fault::Discovery(at, fault) => self.begin_discovery_fault(at, fault),
            Fault::DiscoveryRepair(at) => {
                self.discovery_faults.remove(&at);
                self.schedule_announced(at, Duration::ZERO);
            }
            Fault::Garbage(at, bytes) => self.world.lock().garbage_orders.push((at, bytes)),
            network => self.network.change(sim, &network),
        }
        self.world.lock().network_faults = self.network.faults();
    }

    fn crash(&mut self, sim: &mut Sim<'_>, at: usize) {
        if self.status[at] == Status::Crashed {
            return;
        }
        self.status[at] = Status::Crashed;
        // The driver takes its handles out of the world before the crash, because no handle of a crashed process is
        // left outside.
        let handles = self.world.node_stopped(at);
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

    /// Gives a machine a new wall clock (P10), unrelated to the clocks of other machines and to its own earlier clock.
    fn new_wall_clock(&mut self, at: usize) {
        // The clock is near 1970, in 2023, anywhere up to 2^41 ms, or far in the future. A random part of up to 2^30 ms
        // keeps clocks apart.
        let any = [0, 1_700_000_000_000, self.rng.u64(..1 << 41), 1 << 42, u64::MAX / 2];
        self.world.lock().machines[at].wall_clock_ms = any[self.rng.usize(..any.len())] + self.rng.u64(..1 << 30);
    }

    fn lag(&mut self) -> Duration {
        Duration::from_millis(if self.rng.bool() { self.rng.u64(..50) } else { self.rng.u64(..2_000) })
    }

    /// Adds a machine to discovery or removes a machine from it, and schedules the new set for all providers, each with
    /// a delay of its own.
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
            self.schedule_announced(to, lag);
        }
    }

    /// Schedules the announced set for the provider of a machine. A discovery fault may hide a peer from the set.
    fn schedule_announced(&mut self, to: usize, lag: Duration) {
        let mut set = self.world.lock().announced.clone();
        if let Some(DiscoveryFault::Without(peer)) = self.discovery_faults.get(&to) {
            set.remove(peer);
        }
        self.world.lock().machines[to].insisted = set.clone();
        self.schedule(to, lag, meant(set));
    }

    fn schedule(&mut self, to: usize, lag: Duration, update: Update) {
        let at = self.now() + lag;
        let script = &mut self.world.lock().machines[to].script;
        let place = script.partition_point(|(other, _)| *other <= at);
        script.insert(place, (at, update));
    }

    fn begin_discovery_fault(&mut self, to: usize, fault: DiscoveryFault) {
        self.discovery_faults.insert(to, fault.clone());
        match fault {
            DiscoveryFault::Empty => self.schedule(to, Duration::ZERO, Update::Set(BTreeSet::new(), Belief::Doubtful)),
            DiscoveryFault::Alone => {
                self.schedule(to, Duration::ZERO, Update::Set(BTreeSet::from([to]), Belief::Doubtful))
            }
            DiscoveryFault::Without(_) => self.schedule_announced(to, Duration::ZERO),
            DiscoveryFault::Ghosts => self.schedule(to, Duration::ZERO, Update::Ghosts),
            DiscoveryFault::Fails => self.schedule(to, Duration::ZERO, Update::Fail),
            DiscoveryFault::Left(peer) => self.schedule(to, Duration::ZERO, Update::Left(peer)),
        }
    }

    /// Ends all faults.
    fn heal(&mut self, sim: &mut Sim<'_>) {
        self.network.heal(sim);
        self.discovery_faults.clear();
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
            // Updates that are still scheduled are dropped.
            self.world.lock().machines[at].script.clear();
            self.schedule_announced(at, SECOND / 2);
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

    /// Waits until all nodes have started, and checks that the cluster is well at the end of [`RECOVERY`].
    fn recover(&mut self, sim: &mut Sim<'_>) -> Simulated {
        let end = sim.elapsed() + RESTART;
        while !self.all_are_up() {
            if sim.elapsed() > end {
                return Err(format!("liveness: not all machines have started within {RESTART:?}"));
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
            None => {
                Err(format!("liveness: the cluster is not well {RECOVERY:?} after the last fault: {}", state.views()))
            }
        }
    }

    /// Checks that each get succeeds and that a stampede loads each key once.
    fn check_liveness(&mut self, sim: &mut Sim<'_>) -> Simulated {
        // Earlier gets end first.
        self.world.lock().phase = Phase::LivenessCheck;
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
                    return Err(format!("liveness: stage {stage} of the liveness check does not end"));
                }
                self.step(sim)?;
            }
            self.world.lock().judge_stage(stage);
        }
        for _ in 0..400 {
            self.step(sim)?;
        }
        // A page of a hand-over may still be on its way.
        for _ in 0..SECOND.div_duration_f64(TICK) as u32 {
            if self.unfinished().is_empty() {
                return Ok(());
            }
            self.step(sim)?;
        }
        let left = self.unfinished();
        self.world.lock().log.broken(format!("P7: loads or requests have not ended: {left:?}"));
        Ok(())
    }

    /// Returns the nodes with loads or requests that have not ended.
    fn unfinished(&self) -> Vec<String> {
        let state = self.world.lock();
        let left = state
            .live()
            .filter(|(_, _, node)| (node.loads().running, node.loads().queued, node.in_flight()) != (0, 0, 0));
        left.map(|(_, _, node)| format!("{}: {:?}, {}", node.id(), node.loads(), node.in_flight())).collect()
    }

    /// Shuts all nodes down, and waits until their machines have looked for tasks that are left.
    fn close(&mut self, sim: &mut Sim<'_>) -> Simulated {
        for at in 0..self.status.len() {
            self.world.lock().machines[at].order = Order::Stop;
        }
        let end = sim.elapsed() + RESTART;
        while self.world.lock().live().count() > 0 {
            if sim.elapsed() > end {
                return Err(format!("liveness: not all machines have stopped within {RESTART:?}"));
            }
            self.step(sim)?;
        }
        // Each machine looks for tasks that are left 2 s after the end of its node.
        for _ in 0..(3 * SECOND).div_duration_f64(TICK) as u32 {
            self.step(sim)?;
        }
        Ok(())
    }
}
