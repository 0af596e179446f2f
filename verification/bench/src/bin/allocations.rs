//! How often a get allocates, and how many bytes: counted, with both nodes in one process.

use std::alloc::System;

use bench::{
    Result,
    contestants::{keys, ours},
    processes,
};
use groupcache_core::{Group, Node};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const GETS: usize = 20_000;

/// Asked together, as callers of a busy node are.
const AT_ONCE: usize = 100;

fn tell(what: &str, region: &Region<'_, System>) {
    let stats = region.change();
    let each = |n: usize| n as f64 / GETS as f64;
    println!("| {what} | {:.2} | {:.0} B |", each(stats.allocations), each(stats.bytes_allocated));
}

async fn nodes() -> Result<(Node, Node)> {
    let listed = [("server".to_owned(), processes::free_address()?), ("client".to_owned(), processes::free_address()?)];
    let server = ours::node("server", 1, &listed).await?;
    Ok((server, ours::node("client", 0, &listed).await?))
}

async fn all(group: &Group<bytes::Bytes>, keys: &[std::sync::Arc<str>]) -> Result<()> {
    for some in keys.chunks(AT_ONCE) {
        for value in futures_util::future::join_all(some.iter().map(|key| group.get(key))).await {
            value?;
        }
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (server, client) = nodes().await?;
    let (at_server, at_client) = (ours::group(&server, 100, false)?, ours::group(&client, 100, false)?);
    client.ready(2).await?;
    let keys = keys(GETS);
    println!("| 20 bytes of key, 100 of value | allocations each | in all |");
    println!("|---|---|---|");
    let region = Region::new(COUNTED);
    all(&at_server, &keys).await?;
    tell("a miss at the owner, its loader answers at once", &region);
    let region = Region::new(COUNTED);
    for key in &keys {
        at_server.get(key).await?;
    }
    tell("a hit", &region);
    all(&at_client, &keys).await?; // whatever grows once
    let region = Region::new(COUNTED);
    all(&at_client, &keys).await?;
    tell("a get from a peer, both sides", &region);
    client.shutdown().await?;
    server.shutdown().await?;
    Ok(())
}
