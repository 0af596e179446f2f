//! Machine: a node with its callers, as often as the driver starts it, until the driver stops or crashes the machine.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Mutex,
    time::Duration,
};

use fastrand::Rng;
use groupcache_core::{Error, Group, Identity, Limits, Node, WriteOutcome, discovery::Address};
use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    history::{Answer, Process},
    loader::{Source, number, text},
    provider::{Scripted, host},
    world::{Order, PORT, Phase, World, id, key, name},
};

/// Maximum time for a drain.
const DRAIN: Duration = Duration::from_secs(3);

/// Maximum time for a shutdown.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// Pause between two checks of the orders.
const LOOK: Duration = Duration::from_millis(20);

/// Time after the end of a node until none of its tasks may be left.
const GONE: Duration = Duration::from_secs(2);

/// Deadline of patient gets, longer than any load and longer than the detection of any dead peer.
pub(crate) const PATIENT: Duration = Duration::from_secs(10);

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Runs a machine until the simulation ends.
pub(crate) async fn run(world: World, machine: usize) -> Outcome<()> {
    loop {
        while world.lock().machines[machine].order != Order::Run {
            sleep(LOOK).await;
        }
        run_node(&world, machine).await?;
        // Tasks, connections and timers of the node end meanwhile.
        sleep(GONE).await;
        let left = Handle::current().metrics().num_alive_tasks();
        if left > 0 {
            world.lock().log.broken(format!("tasks: {left} tasks are left of {} after its shutdown", id(machine)));
        }
    }
}

async fn run_node(world: &World, machine: usize) -> Outcome<()> {
    let (seed, wall) = {
        let state = world.lock();
        let it = &state.machines[machine];
        (state.scenario.seed ^ (machine as u64) << 32 ^ u64::from(it.starts) << 40, it.wall_clock_ms)
    };
    let mut rng = Rng::with_seed(seed);
    // Nodes start at different moments, because otherwise their clocks would always tick together.
    sleep(Duration::from_millis(rng.u64(..300))).await;
    WALL_CLOCK.set(wall);
    let node = start(world, machine, &mut rng).await?;
    let group = group(world, machine, &node, &mut rng)?;
    let by = world.node_started(machine, &node, &group);
    let mut callers = JoinSet::new();
    let count = {
        let scenario = &world.lock().scenario;
        if scenario.quiet == Some(machine) { 0 } else { scenario.callers }
    };
    for _ in 0..count {
        let caller =
            Caller { world: world.clone(), group: group.clone(), by, rng: rng.fork(), settling: JoinSet::new() };
        callers.spawn(caller.run());
    }
    let (mut is_draining, mut stage) = (false, 0);
    loop {
        let asked = world.lock().stage.0;
        if stage != asked {
            stage = asked;
            check_liveness(world, &group, by, stage).await?;
            world.lock().stage_done.insert(machine);
        }
        let order = world.lock().machines[machine].order;
        match order {
            Order::Run => {}
            Order::Drain if is_draining => {}
            Order::Drain => {
                world.lock().machines[machine].is_leaving = true;
                node.drain(DRAIN).await?;
                is_draining = true;
            }
            Order::Stop => break,
        }
        sleep(LOOK).await;
        while let Some(ended) = callers.try_join_next() {
            ended?;
        }
    }
    world.lock().machines[machine].is_leaving = true;
    let incarnation = node.members().into_iter().find(|member| member.local).map(|me| me.incarnation);
    node.shutdown_within(SHUTDOWN).await?;
    {
        let mut state = world.lock();
        let now = state.log.now();
        state.log.count("shutdowns");
        state.goodbyes.extend(incarnation.map(|incarnation| (now, id(machine), incarnation)));
    }
    // A caller ends by itself when a call reports that the node is closed.
    while let Some(ended) = callers.join_next().await {
        ended?;
    }
    drop(world.node_stopped(machine));
    Ok(())
}

/// Number of stages of the liveness check: all nodes get all keys, one node clears, and a stampede gets all keys at
/// once.
pub(crate) const STAGES: u32 = 3;
const EVERYTHING: u32 = 1;
const CLEAR: u32 = 2;
/// Stage of the stampede; see [`STAGES`].
pub(crate) const STAMPEDE: u32 = 3;

/// Number of callers at each node that get one key in a stampede.
const STAMPEDE_CALLERS: usize = 3;

async fn check_liveness(world: &World, group: &Group<String>, by: Process, stage: u32) -> Outcome<()> {
    let keys = world.lock().scenario.keys;
    let caller = |world: &World| Caller {
        world: world.clone(),
        group: group.clone(),
        by,
        rng: Rng::with_seed(0),
        settling: JoinSet::new(),
    };
    let mut gets = JoinSet::new();
    match stage {
        EVERYTHING => {
            for index in 0..keys {
                let caller = caller(world);
                gets.spawn(async move { caller.must_get(index).await });
            }
        }
        CLEAR if by.machine == 0 => {
            let write = world.begin_write(&[], by).0;
            let cleared = group.clear().await?;
            let is_complete = cleared.is_complete();
            world.end_write(write, None, is_complete);
            if !is_complete {
                world.lock().log.broken(format!("liveness: a clear does not reach every node: {cleared:?}"));
            }
        }
        STAMPEDE => {
            for index in (0..keys).flat_map(|index| [index; STAMPEDE_CALLERS]) {
                let caller = caller(world);
                gets.spawn(async move { caller.must_get(index).await });
            }
        }
        _ => {}
    }
    while let Some(ended) = gets.join_next().await {
        ended?;
    }
    Ok(())
}

thread_local! {
    /// Wall clock of the machine that is starting. The library reads the wall clock once, and nothing runs in between.
    static WALL_CLOCK: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Returns the milliseconds that the library reads as the wall clock.
pub(crate) fn wall_clock_ms() -> u64 {
    WALL_CLOCK.get()
}

async fn start(world: &World, machine: usize, rng: &mut Rng) -> Outcome<Node> {
    let me = Identity::new(SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)))
        .with_id(name(machine))?
        .with_advertised([Address::new(format!("{}:{PORT}", host(machine)))?])?;
    let mut limits = Limits::default();
    limits.get_deadline = PATIENT;
    limits.max_value_bytes = 16 << 10;
    let provider = Scripted { world: world.clone(), machine };
    Ok(Node::builder().identity(me).insecure().limits(limits).seed(rng.u64(..)).provider(provider).start().await?)
}

fn group(world: &World, machine: usize, node: &Node, rng: &mut Rng) -> Outcome<Group<String>> {
    let state = world.lock();
    let scenario = &state.scenario;
    let mut group = node
        .group::<String>("data")
        .capacity_bytes(scenario.capacity)
        .jitter(0.0)
        .stale_while_revalidate(scenario.stale_while_revalidate)
        .load_deadline(scenario.loads.deadline);
    if let Some(time_to_live) = scenario.time_to_live {
        group = group.time_to_live(time_to_live);
    }
    if let Some(bound) = scenario.max_staleness {
        group = group.max_staleness(bound);
    }
    if let Some(negative) = scenario.negative {
        group = group.negative_time_to_live(negative);
    }
    let loader = Source { world: world.clone(), machine, rng: Mutex::new(rng.fork()) };
    drop(state);
    Ok(group.loader(loader).build()?)
}

/// A caller at one node, until the node is closed.
struct Caller {
    world: World,
    group: Group<String>,
    by: Process,
    rng: Rng,
    /// Writes that some node had not acknowledged at their outcome.
    settling: JoinSet<()>,
}

enum Next {
    Continue,
    Stop,
}

impl Caller {
    async fn run(mut self) {
        loop {
            let think = self.world.lock().scenario.think;
            // The pause is mostly short, and now and then almost zero.
            sleep(think.mul_f64(self.rng.f64().powi(2) * 2.0)).await;
            if self.world.lock().phase == Phase::LivenessCheck {
                if self.world.lock().machines[self.by.machine].is_leaving {
                    return;
                }
                continue;
            }
            if let Next::Stop = self.call().await {
                return;
            }
        }
    }

    async fn call(&mut self) -> Next {
        let writes = self.world.lock().scenario.writes;
        match self.rng.u32(..1000) {
            n if n < writes => self.write().await,
            n if n < 880 => self.get().await,
            n if n < 990 => self.get_many().await,
            _ => self.bad_key().await,
        }
    }

    /// Returns a random key. Few keys are returned often, and many seldom.
    fn key(&mut self) -> usize {
        let keys = self.world.lock().scenario.keys;
        let zipf = (keys as f64 + 1.0).powf(self.rng.f64()) - 1.0;
        (zipf as usize).min(keys - 1)
    }

    async fn get(&mut self) -> Next {
        let index = self.key();
        let is_impatient = self.rng.u32(..10) == 0;
        let deadline = if is_impatient { Duration::from_millis(self.rng.u64(1..2_000)) } else { PATIENT };
        let is_dropped = is_impatient && self.rng.bool();
        let get = self.world.begin_get(index, self.by, deadline);
        let name = key(index);
        let got = match is_dropped {
            true => match timeout(deadline, self.group.get(&name)).await {
                Ok(got) => got,
                Err(_) => {
                    self.world.end_get(get, Answer::TimedOut);
                    return Next::Continue;
                }
            },
            false => self.group.with_deadline(deadline).get(&name).await,
        };
        self.record(get, index, got)
    }

    async fn get_many(&mut self) -> Next {
        let most = if self.rng.u32(..10) == 0 { 200 } else { 8 };
        let keys: Vec<_> = (0..self.rng.usize(1..most)).map(|_| self.key()).collect();
        let gets: Vec<_> = keys.iter().map(|index| self.world.begin_get(*index, self.by, PATIENT)).collect();
        let got = self.group.get_many(keys.iter().map(|index| key(*index))).await;
        let mut next = Next::Continue;
        if got.len() != keys.len() {
            self.world.lock().log.broken("P8: get_many has not returned one outcome for each key");
        }
        for ((get, index), got) in gets.into_iter().zip(keys).zip(got) {
            if let Next::Stop = self.record(get, index, got) {
                next = Next::Stop;
            }
        }
        next
    }

    async fn must_get(&self, index: usize) {
        let get = self.world.begin_get(index, self.by, PATIENT);
        let got = self.group.get(&key(index)).await;
        if let Some(error) = got.as_ref().err().filter(|error| !error.is_quarantined()) {
            self.world.lock().log.broken(format!("liveness: {:?} cannot get key {index}: {error:?}", self.by));
        }
        self.record(get, index, got);
    }

    /// Checks P8: a get of an invalid key is an error of that get.
    async fn bad_key(&mut self) -> Next {
        let bad = if self.rng.bool() { String::new() } else { "x".repeat(1025) };
        match self.group.get(&bad).await {
            Err(error) if error.is_bad_key() => Next::Continue,
            Err(error) if error.is_closed() => Next::Stop,
            other => {
                self.world.lock().log.broken(format!("P8: a get of an invalid key returned {other:?}"));
                Next::Continue
            }
        }
    }

    fn record(&self, get: usize, index: usize, got: Result<String, Error>) -> Next {
        let answer = match got {
            Ok(value) => match number(&key(index), &value) {
                Some(number) => Answer::Value(number),
                None => {
                    let shown = value.get(..40).unwrap_or(&value);
                    self.world
                        .lock()
                        .log
                        .broken(format!("P9: a get of key {index} returned a value of another key: {shown}"));
                    return Next::Continue;
                }
            },
            Err(error) if error.is_not_found() => Answer::Nothing,
            Err(error) if error.is_load_failed() => Answer::Failed,
            Err(error) if error.is_timeout() => Answer::TimedOut,
            Err(error) if error.is_quarantined() => Answer::Quarantined,
            Err(error) if error.is_closed() => Answer::Closed,
            // P4 and P5: no other error may come of a loader that works and of limits that are not reached.
            Err(error) => {
                self.world.lock().log.broken(format!("P4: key {index} at {:?}: {error:?}", self.by));
                Answer::Failed
            }
        };
        self.world.end_get(get, answer);
        if answer == Answer::Closed { Next::Stop } else { Next::Continue }
    }

    async fn write(&mut self) -> Next {
        let is_clear = self.rng.u32(..30) == 0;
        let (write, set, written) = match self.rng.u32(..100) {
            _ if is_clear => {
                let write = self.world.begin_write(&[], self.by).0;
                (write, None, self.group.clear().await)
            }
            0..35 => {
                let index = self.key();
                let (write, set, number) = self.world.begin_set(index, self.by);
                let most = self.world.lock().scenario.largest_value;
                let value = text(&key(index), number, self.rng.usize(..most));
                (write, Some(set), self.group.set(&key(index), value).await)
            }
            35..80 => {
                let index = self.key();
                let write = self.world.begin_write(&[index], self.by).0;
                (write, None, self.group.remove(&key(index)).await)
            }
            _ => {
                let keys: Vec<_> = (0..self.rng.usize(1..6)).map(|_| self.key()).collect();
                let write = self.world.begin_write(&keys, self.by).0;
                (write, None, self.group.remove_many(keys.iter().map(|index| key(*index))).await)
            }
        };
        self.world.end_write(write, set, written.as_ref().is_ok_and(WriteOutcome::is_complete));
        while self.settling.try_join_next().is_some() {}
        match written {
            Ok(written) if !written.is_complete() => {
                let world = self.world.clone();
                self.settling.spawn(async move {
                    written.settled().await;
                    world.settled(write, set);
                });
                Next::Continue
            }
            Ok(_) => Next::Continue,
            Err(error) if error.is_closed() => Next::Stop,
            Err(error) if error.is_unreachable() => Next::Continue,
            Err(error) => {
                self.world.lock().log.broken(format!("a write failed: {error:?}"));
                Next::Continue
            }
        }
    }
}
