//! Membership: a change of the set of peers, with 3 to 1,000 peers. The figures are the time until the view has the
//! change, and its processor time.

use std::{net::SocketAddr, time::Duration};

use discovery_static::Static;
use groupcache_core::{
    Identity, Node, PeerId,
    discovery::{Address, Peer},
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use crate::{
    Result,
    figures::Results,
    machine::Used,
    processes::{self, CLIENT, SERVER},
    targets::this_crate,
};

/// Name of the table.
pub const NAME: &str = "a peer joins";

/// Numbers of peers before the change.
const SIZES: [usize; 4] = [3, 10, 100, 1000];

/// Number of equal changes in one round.
const CHANGES: usize = 2;

/// Time limit for a change to reach the view.
const LIMIT: Duration = Duration::from_secs(30);

/// Settings of a process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    addresses: Vec<SocketAddr>,
    is_serving: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    ms: f64,
    cpu_ms: f64,
}

/// Measures one round.
///
/// # Errors
/// An error if a process fails.
pub fn round(round: usize, results: &mut Results) -> Result<()> {
    for size in SIZES {
        let port = processes::free_address()?.port();
        let addresses: Vec<_> = (0..=size).map(|n| address(n, port)).collect();
        let peers = Settings { addresses: addresses.clone(), is_serving: true };
        let _peers = processes::serve("membership", &peers, SERVER)?;
        let settings = Settings { addresses, is_serving: false };
        for line in processes::ask::<Line>("membership", &settings, &CLIENT.to_string())? {
            eprintln!("{NAME}: {size} peers: {:.1} ms, {:.2} ms of processor", line.ms, line.cpu_ms);
            let figures = [("ms".to_owned(), line.ms), ("cpu_ms".to_owned(), line.cpu_ms)];
            results.add(NAME, &format!("{size} peers"), "ours", round, figures.into());
        }
    }
    Ok(())
}

/// Returns an address of loopback for peer `n`. All peers share one port, because of a thousand free ports some would
/// soon be taken.
fn address(n: usize, port: u16) -> SocketAddr {
    SocketAddr::from(([127, 1, (n / 250) as u8, (n % 250) as u8 + 1], port))
}

fn id(n: usize) -> String {
    format!("peer-{n:04}")
}

/// Runs the role of all peers, or of the node that observes them.
///
/// # Errors
/// An error if a node cannot listen, or a change does not reach the view.
pub async fn run(settings: Settings) -> Result<()> {
    let Settings { addresses, is_serving } = settings;
    if is_serving {
        // All nodes start at once, because each takes a moment to find that it is alone.
        let nodes = addresses
            .iter()
            .enumerate()
            .map(async |(n, address)| this_crate::node(&id(n), 1, &[(id(n), *address)]).await);
        let _nodes = futures_util::future::try_join_all(nodes).await?;
        return processes::ready_until_stdin_ends().await;
    }
    let named = |n: usize, address: &SocketAddr| {
        Ok::<_, crate::Error>(Peer::member(PeerId::new(id(n))?, [Address::new(address.to_string())?]))
    };
    let mut peers = addresses.iter().enumerate().map(|(n, a)| named(n, a)).collect::<Result<Vec<_>>>()?;
    let last = peers.pop().ok_or("there are no peers")?;
    let here = Static::new(peers.clone());
    let handle = here.handle();
    let identity = Identity::new(processes::free_address()?).with_id("observer")?;
    let node = Node::builder().identity(identity).provider(here).start().await?;
    wait(&node, addresses.len()).await?;
    for _ in 0..CHANGES {
        let before = (Instant::now(), Used::of_this_process()?);
        handle.add(last.clone());
        wait(&node, addresses.len() + 1).await?;
        let (ms, used) = (before.0.elapsed().as_secs_f64() * 1000.0, Used::of_this_process()? - before.1);
        println!("{}", serde_json::to_string(&Line { ms, cpu_ms: used.nanoseconds as f64 / 1e6 })?);
        handle.set(peers.iter().cloned());
        wait(&node, addresses.len()).await?;
    }
    Ok(())
}

/// Waits until this many members own keys, this node included. Each view is read once, because reading a view of 1,000
/// peers takes a while.
async fn wait(node: &Node, members: usize) -> Result<()> {
    let until = async {
        let mut seen = None;
        loop {
            let epoch = node.epoch();
            if seen != Some(epoch) && node.members().iter().filter(|member| member.owns).count() == members {
                return;
            }
            seen = Some(epoch);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LIMIT, until).await.map_err(|_| format!("the view had no {members} members within {LIMIT:?}").into())
}
