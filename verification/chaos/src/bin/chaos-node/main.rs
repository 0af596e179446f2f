//! Chaos node: makes gets of its own all the time, and reports the outcomes five times a second.
//!
//! Each line of standard input is a command. The process ends when standard input ends.

mod backend;
mod floors;
mod gets;
mod settling;
mod tally;
mod versions;
mod writes;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use chaos::GROUPS;
use groupcache_discovery::{
    BoxError, Group, Identity, Node,
    list::{Handle, Static},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};
use tracing_subscriber::EnvFilter;

use crate::{backend::Backend, floors::Floors, tally::Tally, versions::Versions};

/// Time to live of all values. Nothing expires while a fault lasts, so that a fault is the reason of each further load.
const TIME_TO_LIVE: Duration = Duration::from_secs(3600);

/// Budget of the group `read`, which large values fill soon.
const CAPACITY_BYTES: u64 = 8 << 20;

const SAMPLE_EVERY: Duration = Duration::from_millis(200);

/// State that all tasks of the process share.
struct World {
    node: Node,
    /// List of peers of the node.
    peers: Handle,
    /// Number of the node, from 0.
    number: usize,
    /// Group that is only read.
    read: Group<String>,
    /// Group that is written key by key. A value is the time at which its load or its write began.
    written: Group<String>,
    /// Group that is cleared as a whole.
    cleared: Group<String>,
    /// Groups in which each write is followed until it settles, without and with a bound, as [`GROUPS`] names them.
    settling: [Group<String>; GROUPS.len()],
    /// Source of the groups `settling`.
    versions: Arc<Versions>,
    /// Whether the company of this process was heard, so that the promises hold for it.
    has_met: AtomicBool,
    backend: Arc<Backend>,
    floors: Floors,
    tally: Tally,
    /// Gets per second of this node.
    rate: AtomicU64,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    tracing_subscriber::fmt().with_env_filter(EnvFilter::new("warn")).with_writer(std::io::stderr).init();
    let var = |name: &str| std::env::var(name).map_err(|e| format!("{name}: {e}"));
    let mut ends = signal(SignalKind::terminate())?;
    let peers: Static = var("PEERS")?.parse()?;
    let handle = peers.handle();
    let node = Node::builder().identity(Identity::from_env()?).provider(peers).start().await?;
    let backend = Arc::new(Backend::default());
    let read = node.group("read").capacity_bytes(CAPACITY_BYTES).time_to_live(TIME_TO_LIVE);
    let read = read.loader_with(Arc::clone(&backend), async |b: &Arc<Backend>, key: &str| b.load(key).await).build()?;
    let stamped = |name: &str| {
        let group = node.group(name).capacity_bytes(1 << 20).time_to_live(TIME_TO_LIVE);
        group.loader_with(Arc::clone(&backend), async |b: &Arc<Backend>, key: &str| b.stamp(key).await).build()
    };
    let (written, cleared) = (stamped("written")?, stamped("cleared")?);
    let versions = Arc::new(Versions::open(&var("VERSIONS")?)?);
    let versioned = |name: &str, bound: Option<Duration>| {
        let group = node.group(name).capacity_bytes(1 << 20).time_to_live(TIME_TO_LIVE);
        let group = if let Some(bound) = bound { group.max_staleness(bound) } else { group };
        let source = (Arc::clone(&backend), Arc::clone(&versions));
        group.loader_with(source, load_version).build()
    };
    let bound = Duration::from_secs(var("BOUND")?.parse()?);
    let settling = [versioned(GROUPS[0], None)?, versioned(GROUPS[1], Some(bound))?];
    let world = Arc::new(World {
        peers: handle,
        settling,
        versions,
        has_met: AtomicBool::new(false),
        number: var("NUMBER")?.parse()?,
        read,
        written,
        cleared,
        backend,
        floors: Floors::open(&var("FLOORS")?)?,
        tally: Tally::default(),
        rate: AtomicU64::new(0),
        node,
    });
    tokio::spawn(gets::run(Arc::clone(&world)));
    tokio::spawn(writes::run(Arc::clone(&world)));
    tokio::spawn(settling::run(Arc::clone(&world)));
    tokio::spawn(report(Arc::clone(&world)));
    let commanded = Arc::clone(&world);
    #[expect(clippy::disallowed_methods, reason = "reading a line blocks its thread, and no simulation runs this")]
    std::thread::spawn(move || {
        std::io::stdin().lines().map_while(Result::ok).for_each(|line| run_command(&commanded, &line));
        std::process::exit(1); // the parent process has ended
    });
    ends.recv().await;
    world.rate.store(0, Relaxed);
    while world.tally.waiting() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.node.shutdown().await?;
    Ok(())
}

/// Returns the version of a key when the load began.
async fn load_version((backend, versions): &(Arc<Backend>, Arc<Versions>), key: &str) -> Result<String, BoxError> {
    let version = versions.current(key.parse()?);
    backend.take_time().await;
    Ok(version.to_string())
}

/// Runs the command in a line of standard input.
fn run_command(world: &World, line: &str) {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("rate", rate) => world.rate.store(rate.parse().unwrap(), Relaxed),
        ("peers", list) => world.peers.set(list.parse::<Static>().unwrap().handle().peers()),
        ("loader", "stalls") => world.backend.works(false),
        ("loader", "works") => world.backend.works(true),
        ("values", "large") => world.backend.are_large.store(true, Relaxed),
        ("values", "small") => world.backend.are_large.store(false, Relaxed),
        _ => eprintln!("unknown command: {line}"),
    }
}

async fn report(world: Arc<World>) {
    let mut tick = interval(SAMPLE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tick.tick().await;
        let mut sample = world.tally.take();
        sample.loaded = world.backend.take();
        let loads = world.node.loads();
        let (running, queued) = (loads.running, loads.queued);
        sample.loads = running + queued;
        sample.requests = world.node.in_flight();
        sample.reachable = world.node.members().iter().filter(|member| member.owns && member.reachable).count();
        sample.fingerprint = world.node.fingerprint();
        sample.bytes = world.read.inspect().bytes();
        sample.capacity = world.read.inspect().capacity_bytes();
        sample.counters = world.node.stats().iter().map(|(name, n)| (name.to_owned(), n)).collect();
        println!("{}", serde_json::to_string(&sample).unwrap());
    }
}
