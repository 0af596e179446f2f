//! Allocations: the number of allocations and of allocated bytes for each get, with both nodes in one process.

use std::alloc::System;

use bench::{
    Result, processes,
    targets::{keys, this_crate},
};
use groupcache_core::{Group, Node};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const GETS: usize = 20_000;

/// Number of concurrent gets, as at a busy node.
const AT_ONCE: usize = 100;

fn print_row(what: &str, region: &Region<'_, System>) {
    let stats = region.change();
    let each = |n: usize| n as f64 / GETS as f64;
    println!("| {what} | {:.2} | {:.0} B |", each(stats.allocations), each(stats.bytes_allocated));
}

async fn nodes() -> Result<(Node, Node)> {
    let listed = [("server".to_owned(), processes::free_address()?), ("client".to_owned(), processes::free_address()?)];
    let server = this_crate::node("server", 1, &listed).await?;
    Ok((server, this_crate::node("client", 0, &listed).await?))
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
    let (at_server, at_client) = (this_crate::group(&server, 100, false)?, this_crate::group(&client, 100, false)?);
    client.ready(2).await?;
    let keys = keys(GETS);
    println!("| 20 bytes of key, 100 of value | allocations each | in all |");
    println!("|---|---|---|");
    let region = Region::new(COUNTED);
    all(&at_server, &keys).await?;
    print_row("a miss at the owner, with a loader that answers at once", &region);
    let region = Region::new(COUNTED);
    for key in &keys {
        at_server.get(key).await?;
    }
    print_row("a hit", &region);
    all(&at_client, &keys).await?; // buffers grow only once
    let region = Region::new(COUNTED);
    all(&at_client, &keys).await?;
    print_row("a get from a peer, both sides", &region);
    client.shutdown().await?;
    server.shutdown().await?;
    Ok(())
}
