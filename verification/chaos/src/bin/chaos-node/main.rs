//! Chaos node: makes gets of its own all the time, and reports the outcomes five times a second.
//!
//! Each line of standard input is a command. The process ends when standard input ends.

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

use groupcache_discovery::{BoxError, Group, Identity, Node, list::Static};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};
use tracing_subscriber::EnvFilter;

use crate::{backend::Backend, floors::Floors, tally::Tally};

/// Time to live of all values. Nothing expires while a fault lasts, so that a fault is the reason of each further load.
const TIME_TO_LIVE: Duration = Duration::from_secs(3600);

/// Budget of the group `read`, which large values fill soon.
const CAPACITY_BYTES: u64 = 8 << 20;

const SAMPLE_EVERY: Duration = Duration::from_millis(200);

/// State that all tasks of the process share.
struct World {
    node: Node,
    /// Number of the node, from 0.
    number: usize,
    /// Group that is only read.
    read: Group<String>,
    /// Group that is written key by key. A value is the time at which its load or its write began.
    written: Group<String>,
    /// Group that is cleared as a whole.
    cleared: Group<String>,
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

/// Runs the command in a line of standard input.
fn run_command(world: &World, line: &str) {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("rate", rate) => world.rate.store(rate.parse().unwrap(), Relaxed),
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
