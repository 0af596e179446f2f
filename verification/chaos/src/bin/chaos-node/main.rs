//! One of the five: a node that gets keys of itself all the time, and says five times a second what came of it.
//!
//! It does what the lines of its standard input say, and ends with that.

mod backend;
mod floors;
mod gets;
mod tally;
mod writes;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use groupcache_discovery::{BoxError, Group, Identity, Node, fixed::Static};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};
use tracing_subscriber::EnvFilter;

use crate::{backend::Backend, floors::Floors, tally::Tally};

/// Nothing expires while a fault lasts: what is loaded again is loaded because of the fault.
const TIME_TO_LIVE: Duration = Duration::from_secs(3600);

/// Small enough to be full soon when values are large.
const CAPACITY_BYTES: u64 = 8 << 20;

const SAMPLE_EVERY: Duration = Duration::from_millis(200);

/// What all tasks of the process share.
struct World {
    node: Node,
    /// Which of the nodes this is, from 0 on.
    number: usize,
    /// Read only.
    read: Group<String>,
    /// Written key by key; what a value says is when its load, or its write, began.
    written: Group<String>,
    /// Cleared as a whole.
    cleared: Group<String>,
    backend: Arc<Backend>,
    floors: Floors,
    tally: Tally,
    /// Gets per second.
    rate: AtomicU64,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    tracing_subscriber::fmt().with_env_filter(EnvFilter::new("warn")).with_writer(std::io::stderr).init();
    let var = |name: &str| std::env::var(name).map_err(|e| format!("{name}: {e}"));
    let mut ends = signal(SignalKind::terminate())?;
    let node = Node::builder().identity(Identity::from_env()?).provider(var("PEERS")?.parse::<Static>()?);
    let node = node.start().await?;
    let backend = Arc::new(Backend::default());
    let read = node.group("read").capacity_bytes(CAPACITY_BYTES).time_to_live(TIME_TO_LIVE);
    let read = read.loader_with(Arc::clone(&backend), async |b: &Arc<Backend>, key: &str| b.load(key).await).build()?;
    let stamped = |name: &str| {
        let group = node.group(name).capacity_bytes(1 << 20).time_to_live(TIME_TO_LIVE);
        group.loader_with(Arc::clone(&backend), async |b: &Arc<Backend>, key: &str| b.stamp(key).await).build()
    };
    let (written, cleared) = (stamped("written")?, stamped("cleared")?);
    let world = Arc::new(World {
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
    tokio::spawn(say(Arc::clone(&world)));
    let obeys = Arc::clone(&world);
    #[expect(clippy::disallowed_methods, reason = "reading a line blocks its thread, and no simulation runs this")]
    std::thread::spawn(move || {
        std::io::stdin().lines().map_while(Result::ok).for_each(|line| obey(&obeys, &line));
        std::process::exit(1); // who started it is gone
    });
    ends.recv().await;
    world.rate.store(0, Relaxed);
    while world.tally.waiting() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.node.shutdown().await?;
    Ok(())
}

/// Does what a line says.
fn obey(world: &World, line: &str) {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("rate", rate) => world.rate.store(rate.parse().unwrap(), Relaxed),
        ("loader", "stalls") => world.backend.works(false),
        ("loader", "works") => world.backend.works(true),
        ("values", "large") => world.backend.are_large.store(true, Relaxed),
        ("values", "small") => world.backend.are_large.store(false, Relaxed),
        _ => eprintln!("not understood: {line}"),
    }
}

async fn say(world: Arc<World>) {
    let mut tick = interval(SAMPLE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tick.tick().await;
        let mut sample = world.tally.take();
        sample.loaded = world.backend.take();
        let (running, queued) = world.node.loads();
        sample.loads = running + queued;
        sample.requests = world.node.in_flight();
        sample.reachable = world.node.members().iter().filter(|member| member.owns && member.is_reachable).count();
        sample.fingerprint = world.node.fingerprint();
        sample.bytes = world.read.bytes();
        sample.capacity = world.read.capacity_bytes();
        sample.counters = world.node.stats().iter().map(|(name, n)| (name.to_owned(), n)).collect();
        println!("{}", serde_json::to_string(&sample).unwrap());
    }
}
