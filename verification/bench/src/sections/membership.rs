//! A change of the set of peers, with 3 to 1,000 of them: how long until the view has it, and what that costs.

use std::{net::SocketAddr, time::Duration};

use discovery_static::Static;
use groupcache_core::{Address, Identity, Node, Peer, PeerId};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use crate::{
    Result,
    contestants::ours,
    figures::Results,
    machine::Used,
    processes::{self, CLIENT, SERVER},
};

/// The table.
pub const NAME: &str = "a peer joins";

/// How many are there before.
const SIZES: [usize; 4] = [3, 10, 100, 1000];

/// The same change, so often in one round.
const CHANGES: usize = 2;

/// Until then a change must have come to the view.
const LIMIT: Duration = Duration::from_secs(30);

/// What a process is told.
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

/// One round.
///
/// # Errors
/// When a process fails.
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

/// An address of its own for each on loopback: of a thousand ports that were free one is not free any more.
fn address(n: usize, port: u16) -> SocketAddr {
    SocketAddr::from(([127, 1, (n / 250) as u8, (n % 250) as u8 + 1], port))
}

fn id(n: usize) -> String {
    format!("peer-{n:04}")
}

/// The role of all peers, or of the node that meets them.
///
/// # Errors
/// When one cannot listen, or a change does not come.
pub async fn run(settings: Settings) -> Result<()> {
    let Settings { addresses, is_serving } = settings;
    if is_serving {
        // At once: each takes a moment to find out that it is alone.
        let nodes =
            addresses.iter().enumerate().map(async |(n, address)| ours::node(&id(n), 1, &[(id(n), *address)]).await);
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

/// Until so many own keys, this node among them. A view is looked through once: at 1,000 peers that takes a while.
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
    timeout(LIMIT, until).await.map_err(|_| format!("there were no {members} members within {LIMIT:?}").into())
}
