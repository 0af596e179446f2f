//! Blocked: latencies of hits at an owner with workers that are blocked for 50 ms of each 100, with the node on the
//! runtime of the user and on threads of its own. Requires a release build.
//!
//! `blocked` prints the table in about a minute. The owner is a process of its own on one core.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use bench::{
    Error, Result,
    processes::{SERVER, free_address, ready_until_stdin_ends, serve},
};
use groupcache_core::{
    Group, Identity, Node, PeerId,
    discovery::{Address, Peer, Provider, poll},
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

/// Number of workers of the owner's user.
const WORKERS: usize = 2;
/// Time for which each worker is blocked, and for which it then is free.
const BLOCKED: Duration = Duration::from_millis(50);
/// Time for which each combination is measured.
const MEASURED: Duration = Duration::from_secs(8);
/// Number of keys, which the owner has in memory.
const KEYS: usize = 1000;
/// Pause between two gets of the only caller, so that the gets meet all moments of the owner.
const PAUSE: Duration = Duration::from_micros(500);

/// Settings of the owner.
#[derive(Serialize, Deserialize)]
struct Owner {
    owner: SocketAddr,
    client: SocketAddr,
    serve_threads: usize,
    is_blocked: bool,
}

fn main() -> Result<()> {
    let workers = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    match std::env::args().nth(2) {
        Some(settings) => workers.block_on(own(&serde_json::from_str(&settings)?)),
        None => workers.block_on(compare()),
    }
}

/// Prints the latencies of all combinations.
async fn compare() -> Result<()> {
    println!("| serve_threads | user | gets | p50 | p99 | p99.9 |\n|---|---|---|---|---|---|");
    for serve_threads in [0, 1] {
        for is_blocked in [false, true] {
            let settings = Owner { owner: free_address()?, client: free_address()?, serve_threads, is_blocked };
            let mut latencies = measure(&settings).await?;
            latencies.sort_unstable();
            let share = |of: f64| latencies.get((latencies.len() as f64 * of) as usize).copied().unwrap_or_default();
            let user = if is_blocked { "blocked" } else { "quiet" };
            let count = latencies.len();
            println!(
                "| {serve_threads} | {user} | {count} | {:?} | {:?} | {:?} |",
                share(0.5),
                share(0.99),
                share(0.999)
            );
        }
    }
    Ok(())
}

/// Starts an owner, and returns the latencies of hits in its memory.
async fn measure(settings: &Owner) -> Result<Vec<Duration>> {
    let _owner = serve("owner", settings, SERVER)?;
    let (node, group) = start("client", settings.client, settings, 0).await?;
    node.ready(2).await?;
    let is_remote = |key: &String| group.inspect().owner_of(key) != node.id();
    let keys: Vec<_> = (0..).map(|n| format!("key-{n}")).filter(is_remote).take(KEYS).collect();
    for key in &keys {
        group.get(key).await?;
    }
    let (mut latencies, end) = (Vec::new(), Instant::now() + MEASURED);
    for key in keys.iter().cycle() {
        let begun = Instant::now();
        if begun > end {
            break;
        }
        group.get(key).await?;
        latencies.push(begun.elapsed());
        sleep(PAUSE).await;
    }
    let loads = group.stats().loads;
    node.shutdown().await?;
    if loads > 0 { Err(format!("{loads} gets were not answered by the owner").into()) } else { Ok(latencies) }
}

/// Runs the owner until its parent has ended.
async fn own(settings: &Owner) -> Result<()> {
    let (_node, _group) = start("owner", settings.owner, settings, settings.serve_threads).await?;
    for _ in 0..if settings.is_blocked { WORKERS } else { 0 } {
        tokio::spawn(async {
            loop {
                #[expect(clippy::disallowed_methods, reason = "the fault that is measured")]
                std::thread::sleep(BLOCKED);
                sleep(BLOCKED).await;
            }
        });
    }
    ready_until_stdin_ends().await
}

async fn start(id: &str, listen: SocketAddr, all: &Owner, serve_threads: usize) -> Result<(Node, Group<String>)> {
    let identity = Identity::new(listen).with_id(id)?;
    let provider = listed(&BTreeMap::from([("owner", all.owner), ("client", all.client)]))?;
    let node = Node::builder().identity(identity).provider(provider).serve_threads(serve_threads).start().await?;
    let load = async |key: &str| Ok::<_, std::io::Error>(key.to_owned());
    let group = node.group::<String>("data").capacity_bytes(64 << 20).replicas(false).loader(load).build()?;
    Ok((node, group))
}

fn listed(nodes: &BTreeMap<&str, SocketAddr>) -> Result<impl Provider> {
    let peer = |(id, address): (&&str, &SocketAddr)| {
        Ok::<_, Error>(Peer::member(PeerId::new(*id)?, [Address::from(*address)]))
    };
    let peers = nodes.iter().map(peer).collect::<Result<Vec<_>>>()?;
    Ok(poll("list", Duration::from_secs(1), move || std::future::ready(Ok(peers.clone()))))
}
