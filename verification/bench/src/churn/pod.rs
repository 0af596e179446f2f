//! Pod: a process with a cache, a backend that takes 5 ms, and gets at a steady rate.
//!
//! The commands on standard input are `rate R`, `warming B`, and `warm I N`, which loads the process's share of the
//! keys. SIGTERM ends the process as a deploy does.

use std::{
    collections::BTreeSet,
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ::groupcache_rs::{Groupcache, GroupcachePeer, ServiceDiscovery, ValueLoader};
use bytes::Bytes;
use discovery_static::File;
use futures_util::StreamExt;
use groupcache_core::{Group, Identity, Load, LoadError, Loaded, Loader, Node};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use rand_distr::{Distribution, Zipf};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{CacheKind, LOOK, Pod, SAMPLE, Sample, Settings, Total};
use crate::{
    Result, machine,
    targets::groupcache_rs::{self, Blob},
};

/// Duration of a load.
const LOAD: Duration = Duration::from_millis(5);

/// Budget of the group, far above the bytes of all keys.
const CAPACITY: u64 = 4 << 30;

/// Interval at which gets are begun.
const TICK: Duration = Duration::from_millis(10);

/// Time for which the crate `groupcache` answers after SIGTERM, until all processes have read the file. Such a pause
/// before the end is recommended everywhere.
const PRE_STOP: Duration = Duration::from_secs(2);

/// Time limit for the shutdown with its hand-over, within the 30 s of Kubernetes.
const GRACE: Duration = Duration::from_secs(25);

/// Number of concurrent loads while the cluster is filled.
const WARMING: usize = 64;

/// Source of the values.
#[derive(Debug)]
struct Backend {
    value: Bytes,
    lasts: f64,
    loads: AtomicU64,
    /// Whether the cluster is being filled. Values then have a part of their time to live left, as if the cluster had
    /// run for a long time.
    is_warming: AtomicBool,
    random: Mutex<SmallRng>,
}

impl Backend {
    async fn value(&self) -> Bytes {
        self.loads.fetch_add(1, Relaxed);
        if !self.is_warming.load(Relaxed) {
            sleep(LOAD).await;
        }
        Bytes::copy_from_slice(&self.value) // each value has memory of its own, as if it had been read from a source
    }

    /// Returns a random number from 0 to 1.
    fn random(&self) -> f64 {
        lock(&self.random).random()
    }

    fn lasts(&self) -> Duration {
        let part = if self.is_warming.load(Relaxed) { self.random() } else { 1.0 };
        Duration::from_secs_f64(self.lasts * part)
    }
}

struct ThisCrateLoader(Arc<Backend>);

impl Loader<Bytes> for ThisCrateLoader {
    async fn load(&self, _: Load<'_, Bytes>) -> std::result::Result<Loaded<Bytes>, LoadError> {
        let value = self.0.value().await;
        Ok(Loaded::new(value).time_to_live(self.0.lasts()))
    }
}

struct GroupcacheRsLoader(Arc<Backend>);

#[groupcache_core::async_trait]
impl ValueLoader for GroupcacheRsLoader {
    type Value = Blob;

    async fn load(&self, _: &str) -> std::result::Result<Blob, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Blob(self.0.value().await))
    }
}

impl moka::Expiry<String, Blob> for GroupcacheRsLoader {
    fn expire_after_create(&self, _: &String, _: &Blob, _: std::time::Instant) -> Option<Duration> {
        Some(self.0.lasts())
    }
}

/// Peers in the file for the crate `groupcache`, which must not list the process itself.
struct Listed(Pod);

impl Listed {
    fn read(&self) -> Result<Vec<SocketAddr>> {
        let text = std::fs::read_to_string(&self.0.settings.peers)?;
        let addresses = text.lines().filter_map(|line| line.split_once('@')?.1.parse().ok());
        Ok(addresses.filter(|address| *address != self.0.listen).collect())
    }
}

#[groupcache_core::async_trait]
impl ServiceDiscovery for Listed {
    #[expect(clippy::disallowed_types, reason = "the set is in the interface of the crate `groupcache`")]
    async fn pull_instances(
        &self,
    ) -> std::result::Result<std::collections::HashSet<GroupcachePeer>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.read()?.into_iter().map(GroupcachePeer::from_socket).collect())
    }

    fn interval(&self) -> Duration {
        LOOK
    }
}

enum Cache {
    ThisCrate(Node, Group<Bytes>),
    GroupcacheRs(Groupcache<Blob>),
}

impl Cache {
    async fn start(pod: &Pod, backend: &Arc<Backend>) -> Result<Self> {
        let listed = Listed(pod.clone());
        if pod.settings.kind == CacheKind::GroupcacheRs {
            let main = moka::future::Cache::builder().expire_after(GroupcacheRsLoader(Arc::clone(backend))).build();
            let builder =
                Groupcache::builder(pod.listen.into(), GroupcacheRsLoader(Arc::clone(backend))).main_cache(main);
            let cache = builder.service_discovery(Listed(pod.clone())).build();
            groupcache_rs::listen(&cache, pod.listen).await?;
            // Before all peers are connected, the cache would load keys that others own.
            for peer in listed.read()? {
                while cache.add_peer(peer.into()).await.is_err() {
                    sleep(LOOK).await;
                }
            }
            return Ok(Self::GroupcacheRs(cache));
        }
        let identity = Identity::new(pod.listen).with_id(&*pod.id)?;
        let provider = File::new(&pod.settings.peers).every(LOOK);
        let hands_over = pod.settings.kind == CacheKind::ThisCrate;
        let node = Node::builder().identity(identity).provider(provider).handover(hands_over).start().await?;
        let group = node
            .group::<Bytes>("data")
            .capacity_bytes(CAPACITY)
            .loader(ThisCrateLoader(Arc::clone(backend)))
            .build()?;
        let peers: BTreeSet<_> = listed.read()?.into_iter().collect();
        while node.peers_with_group("data") < peers.len() {
            sleep(TICK).await;
        }
        Ok(Self::ThisCrate(node, group))
    }

    async fn get(&self, key: &str) -> Result<usize> {
        match self {
            Self::ThisCrate(_, group) => Ok(group.get(key).await?.len()),
            Self::GroupcacheRs(cache) => Ok(cache.get(key).await?.0.len()),
        }
    }

    /// Removes a key, and returns whether the remove has reached every known node.
    async fn remove(&self, key: &str) -> bool {
        match self {
            Self::ThisCrate(_, group) => group.remove(key).await.is_ok_and(|removed| removed.is_complete()),
            Self::GroupcacheRs(cache) => cache.remove(key).await.is_ok(),
        }
    }

    async fn end(&self) -> Result<()> {
        match self {
            Self::ThisCrate(node, _) => node.shutdown_within(GRACE).await?,
            Self::GroupcacheRs(_) => sleep(PRE_STOP).await,
        }
        Ok(())
    }

    fn total(&self) -> Total {
        let nanoseconds = machine::Used::of_this_process().map_or(0, |used| used.nanoseconds);
        let Self::ThisCrate(_, group) = self else { return Total { nanoseconds, ..Total::default() } };
        let stats = group.stats();
        Total {
            entries: (group.inspect().entries() - group.inspect().replicas()) as u64,
            moved_bytes: stats.handover_sent_bytes,
            previous_owner_reads: stats.previous_owner_reads,
            previous_owner_hits: stats.previous_owner_hits,
            handover_received: stats.handover_received,
            nanoseconds,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct World {
    cache: Cache,
    backend: Arc<Backend>,
    settings: Settings,
    /// Gets per second of this process.
    rate: Mutex<f64>,
    sample: Mutex<Sample>,
    begun: AtomicU64,
    ended: AtomicU64,
}

/// Runs a process until SIGTERM.
///
/// # Errors
/// An error if the process cannot listen.
pub async fn run(pod: Pod) -> Result<()> {
    let mut ends = signal(SignalKind::terminate())?;
    let settings = pod.settings.clone();
    let backend = Arc::new(Backend {
        value: vec![b'v'; settings.value_bytes].into(),
        lasts: settings.lasts,
        loads: AtomicU64::new(0),
        is_warming: AtomicBool::new(false),
        random: Mutex::new(SmallRng::seed_from_u64(pod.listen.port().into())),
    });
    let cache = Cache::start(&pod, &backend).await?;
    let world = Arc::new(World {
        cache,
        backend,
        settings,
        rate: Mutex::new(0.0),
        sample: Mutex::default(),
        begun: AtomicU64::new(0),
        ended: AtomicU64::new(0),
    });
    print_line("ready");
    tokio::spawn(gets(Arc::clone(&world)));
    tokio::spawn(print_samples(Arc::clone(&world)));
    tokio::spawn(run_commands(Arc::clone(&world)));
    ends.recv().await;
    // The order is that of a service, which stops new requests, waits for the requests that run, and then ends its
    // cache.
    set_rate(&world, 0.0);
    while world.ended.load(Relaxed) < world.begun.load(Relaxed) {
        sleep(TICK).await;
    }
    world.cache.end().await?;
    print_sample(&world);
    Ok(())
}

/// Prints a line, and ends the process when its reader is gone.
fn print_line(line: &str) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(1);
    }
}

fn set_rate(world: &World, rate: f64) {
    *lock(&world.rate) = rate;
}

/// Runs the commands on standard input, and ends the process at their end.
async fn run_commands(world: Arc<World>) {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["rate", rate] => set_rate(&world, rate.parse().unwrap_or_default()),
            ["warming", is_warming] => world.backend.is_warming.store(*is_warming == "true", Relaxed),
            ["warm", first, step] => {
                let (first, step) = (first.parse().unwrap_or(0), step.parse().unwrap_or(1));
                warm(&world, first, step).await;
                print_line("warm");
            }
            _ => eprintln!("unknown command: {line}"),
        }
    }
    std::process::exit(1); // the parent process has ended
}

/// Fills the cluster with the entries that it would hold after a long time.
async fn warm(world: &Arc<World>, first: usize, step: usize) {
    let there: Vec<_> = world
        .settings
        .rates()
        .enumerate()
        .skip(first)
        .step_by(step)
        .filter(|(_, rate)| world.backend.random() < world.settings.resident(*rate))
        .map(|(at, _)| format!("key-{}", at + 1))
        .collect();
    let gets = futures_util::stream::iter(there).map(|key| {
        let world = Arc::clone(world);
        async move { drop(world.cache.get(&key).await) }
    });
    gets.buffer_unordered(WARMING).collect::<Vec<_>>().await;
}

/// Begins gets at the rate of the process, whether earlier gets have ended or not.
async fn gets(world: Arc<World>) {
    let (keys, exponent) = (world.settings.keys as f64, world.settings.exponent);
    let Ok(zipf) = Zipf::new(keys, exponent) else { return };
    let mut tick = interval(TICK);
    // A process that was stopped does not make up for the gets that it missed.
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut owed, mut removes) = (0.0, 0.0);
    let key = || format!("key-{}", zipf.sample(&mut *lock(&world.backend.random)) as usize);
    loop {
        tick.tick().await;
        let gets = *lock(&world.rate) * TICK.as_secs_f64();
        owed += gets;
        removes += gets * world.settings.removes / world.settings.rate;
        while owed >= 1.0 {
            owed -= 1.0;
            world.begun.fetch_add(1, Relaxed);
            tokio::spawn(get(Arc::clone(&world), key()));
        }
        while removes >= 1.0 {
            removes -= 1.0;
            tokio::spawn(remove(Arc::clone(&world), key()));
        }
    }
}

async fn get(world: Arc<World>, key: String) {
    let begun = Instant::now();
    let got = world.cache.get(&key).await;
    let micros = begun.elapsed().as_micros() as u32;
    {
        let mut sample = lock(&world.sample);
        sample.micros.push(micros);
        if let Err(error) = got {
            sample.failed += 1;
            sample.why.get_or_insert_with(|| error.to_string());
        }
    }
    world.ended.fetch_add(1, Relaxed);
}

async fn remove(world: Arc<World>, key: String) {
    let is_complete = world.cache.remove(&key).await;
    let mut sample = lock(&world.sample);
    sample.removes += 1;
    sample.unheard += u64::from(!is_complete);
}

/// Prints a sample at each interval.
async fn print_samples(world: Arc<World>) {
    let mut tick = interval(SAMPLE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tick.tick().await;
        print_sample(&world);
    }
}

fn print_sample(world: &World) {
    let mut sample = std::mem::take(&mut *lock(&world.sample));
    sample.loads = world.backend.loads.swap(0, Relaxed);
    sample.total = world.cache.total();
    if let Ok(line) = serde_json::to_string(&sample) {
        print_line(&line);
    }
}
