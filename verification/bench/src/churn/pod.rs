//! One process: a cache, a backend that takes 5 ms, and gets at a steady rate.
//!
//! Its standard input says `warm I N`, for its share of the keys, and `rate R`; SIGTERM ends it as a deploy does.

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

use ::rival::{Groupcache, GroupcachePeer, ServiceDiscovery, ValueLoader};
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

use super::{LOOK, Pod, SAMPLE, Sample, Settings, Total, Who};
use crate::{
    Result,
    contestants::rival::{self, Blob},
    machine,
};

/// What a load costs the backend.
const LOAD: Duration = Duration::from_millis(5);

/// Far more than all keys take.
const CAPACITY: u64 = 4 << 30;

/// Gets are begun in steps.
const TICK: Duration = Duration::from_millis(10);

/// How long the rival answers after SIGTERM: the pause before the end that is recommended everywhere, until all have
/// looked at the file.
const PRE_STOP: Duration = Duration::from_secs(2);

/// Within 30 s of Kubernetes.
const GRACE: Duration = Duration::from_secs(25);

/// Keys that are loaded at once while the cluster is filled.
const WARMING: usize = 64;

/// Where values come from.
#[derive(Debug)]
struct Backend {
    value: Bytes,
    lasts: f64,
    loads: AtomicU64,
    /// The cluster is being filled: as if it had run for a long time, values have lived a part of their time.
    is_warming: AtomicBool,
    random: Mutex<SmallRng>,
}

impl Backend {
    async fn value(&self) -> Bytes {
        self.loads.fetch_add(1, Relaxed);
        if !self.is_warming.load(Relaxed) {
            sleep(LOAD).await;
        }
        Bytes::copy_from_slice(&self.value) // each value has memory of its own, as if it had been read from somewhere
    }

    /// From 0 to 1.
    fn random(&self) -> f64 {
        lock(&self.random).random()
    }

    fn lasts(&self) -> Duration {
        let part = if self.is_warming.load(Relaxed) { self.random() } else { 1.0 };
        Duration::from_secs_f64(self.lasts * part)
    }
}

struct OfOurs(Arc<Backend>);

impl Loader<Bytes> for OfOurs {
    async fn load(&self, _: Load<'_, Bytes>) -> std::result::Result<Loaded<Bytes>, LoadError> {
        let value = self.0.value().await;
        Ok(Loaded::new(value).time_to_live(self.0.lasts()))
    }
}

struct OfRival(Arc<Backend>);

#[groupcache_core::async_trait]
impl ValueLoader for OfRival {
    type Value = Blob;

    async fn load(&self, _: &str) -> std::result::Result<Blob, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Blob(self.0.value().await))
    }
}

impl moka::Expiry<String, Blob> for OfRival {
    fn expire_after_create(&self, _: &String, _: &Blob, _: std::time::Instant) -> Option<Duration> {
        Some(self.0.lasts())
    }
}

/// The peers of a file, for the rival: it does not want to be among them.
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
    #[expect(clippy::disallowed_types, reason = "the set is the rival's")]
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
    Ours(Node, Group<Bytes>),
    Rival(Groupcache<Blob>),
}

impl Cache {
    async fn start(pod: &Pod, backend: &Arc<Backend>) -> Result<Self> {
        let listed = Listed(pod.clone());
        if pod.settings.who == Who::Rival {
            let main = moka::future::Cache::builder().expire_after(OfRival(Arc::clone(backend))).build();
            let builder = Groupcache::builder(pod.listen.into(), OfRival(Arc::clone(backend))).main_cache(main);
            let cache = builder.service_discovery(Listed(pod.clone())).build();
            rival::listen(&cache, pod.listen).await?;
            // Until then it would load what others own.
            for peer in listed.read()? {
                while cache.add_peer(peer.into()).await.is_err() {
                    sleep(LOOK).await;
                }
            }
            return Ok(Self::Rival(cache));
        }
        let identity = Identity::new(pod.listen).with_id(&*pod.id)?;
        let provider = File::new(&pod.settings.peers).every(LOOK);
        let hands_over = pod.settings.who == Who::Ours;
        let node = Node::builder().identity(identity).provider(provider).hand_over(hands_over).start().await?;
        let group = node.group::<Bytes>("data").capacity_bytes(CAPACITY).loader(OfOurs(Arc::clone(backend))).build()?;
        let peers: BTreeSet<_> = listed.read()?.into_iter().collect();
        while node.peers_with_group("data") < peers.len() {
            sleep(TICK).await;
        }
        Ok(Self::Ours(node, group))
    }

    async fn get(&self, key: &str) -> Result<usize> {
        match self {
            Self::Ours(_, group) => Ok(group.get(key).await?.len()),
            Self::Rival(cache) => Ok(cache.get(key).await?.0.len()),
        }
    }

    /// Whether it was heard by everyone it knows of.
    async fn remove(&self, key: &str) -> bool {
        match self {
            Self::Ours(_, group) => group.remove(key).await.is_ok_and(|told| told.is_complete()),
            Self::Rival(cache) => cache.remove(key).await.is_ok(),
        }
    }

    async fn end(&self) -> Result<()> {
        match self {
            Self::Ours(node, _) => node.drain_and_shutdown(GRACE).await?,
            Self::Rival(_) => sleep(PRE_STOP).await,
        }
        Ok(())
    }

    fn total(&self) -> Total {
        let nanoseconds = machine::Used::of_this_process().map_or(0, |used| used.nanoseconds);
        let Self::Ours(_, group) = self else { return Total { nanoseconds, ..Total::default() } };
        let stats = group.stats();
        Total {
            entries: (group.entries() - group.borrowed_entries()) as u64,
            moved_bytes: stats.handed_over_bytes,
            peeks: stats.peeks,
            peeked: stats.peeked,
            taken_over: stats.taken_over,
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

/// Runs one process to its end.
///
/// # Errors
/// When it cannot listen.
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
    tell("ready");
    tokio::spawn(gets(Arc::clone(&world)));
    tokio::spawn(say(Arc::clone(&world)));
    tokio::spawn(obey(Arc::clone(&world)));
    ends.recv().await;
    // A service stops taking requests, ends those that it has, and then its cache.
    set_rate(&world, 0.0);
    while world.ended.load(Relaxed) < world.begun.load(Relaxed) {
        sleep(TICK).await;
    }
    world.cache.end().await?;
    say_once(&world);
    Ok(())
}

/// Says it, and ends when nobody listens any more.
fn tell(line: &str) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(1);
    }
}

fn set_rate(world: &World, rate: f64) {
    *lock(&world.rate) = rate;
}

/// Does what the lines of its standard input say, and ends when there are no more.
async fn obey(world: Arc<World>) {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["rate", rate] => set_rate(&world, rate.parse().unwrap_or_default()),
            ["warming", is_warming] => world.backend.is_warming.store(*is_warming == "true", Relaxed),
            ["warm", first, step] => {
                let (first, step) = (first.parse().unwrap_or(0), step.parse().unwrap_or(1));
                warm(&world, first, step).await;
                tell("warm");
            }
            _ => eprintln!("not understood: {line}"),
        }
    }
    std::process::exit(1); // who started it is gone
}

/// Fills the cluster with what would be there, had it run for a long time.
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

/// Begins gets at its rate, whether those before have ended or not.
async fn gets(world: Arc<World>) {
    let (keys, exponent) = (world.settings.keys as f64, world.settings.exponent);
    let Ok(zipf) = Zipf::new(keys, exponent) else { return };
    let mut tick = interval(TICK);
    // What a process missed while it stood still, it does not make up for.
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
    let is_heard = world.cache.remove(&key).await;
    let mut sample = lock(&world.sample);
    sample.removes += 1;
    sample.unheard += u64::from(!is_heard);
}

/// Says what was done, at a steady pace.
async fn say(world: Arc<World>) {
    let mut tick = interval(SAMPLE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tick.tick().await;
        say_once(&world);
    }
}

fn say_once(world: &World) {
    let mut sample = std::mem::take(&mut *lock(&world.sample));
    sample.loads = world.backend.loads.swap(0, Relaxed);
    sample.total = world.cache.total();
    if let Ok(line) = serde_json::to_string(&sample) {
        tell(&line);
    }
}
