//! Cluster: measurements of several nodes, with many keys at once, keys by Zipf's law on three nodes, and the time from
//! the start to the first answer.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::join_all;
use rand::{SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, Zipf};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    Result,
    figures::Results,
    processes::{self, CLIENT, Process, SERVER},
    targets::{Target, groupcache_rs::GroupcacheRs, keys, this_crate},
};

/// Name of the table of many keys at once.
pub const MANY: &str = "many keys at once";
/// Name of the table of keys by Zipf's law.
pub const ZIPF: &str = "Zipf 1.0, three nodes";
/// Name of the table of starts.
pub const START: &str = "from start to the first remote get";

const VALUE_BYTES: usize = 100;
const MANY_KEYS: usize = 40_000;
const ZIPF_KEYS: u64 = 1_000_000;
const ZIPF_CALLERS: usize = 64;

/// Name of a node, and the address on which it listens.
type Named = (String, SocketAddr);

/// Settings of a process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    task: Task,
    is_groupcache_rs: bool,
    /// All nodes. The first one is the node of this process.
    nodes: Vec<Named>,
    seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Task {
    Serve,
    Many(usize),
    Zipf,
    Start,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    target: String,
    per_second: f64,
    /// Share of gets that the local node answers from memory, or number of exchanges for each call.
    share: f64,
    milliseconds: f64,
}

/// Returns the nodes of a measurement, and the processes of all nodes but the first.
fn started(count: usize, is_groupcache_rs: bool) -> Result<(Vec<Named>, Vec<Process>)> {
    let named = |n| Ok::<_, crate::Error>((format!("node-{n}"), processes::free_address()?));
    let nodes: Vec<_> = (0..count).map(named).collect::<Result<_>>()?;
    let mut others = Vec::new();
    for n in 1..count {
        let mut seen = nodes.clone();
        seen.swap(0, n);
        let settings = Settings { task: Task::Serve, is_groupcache_rs, nodes: seen, seconds: 0.0 };
        others.push(processes::serve("cluster", &settings, SERVER)?);
    }
    Ok((nodes, others))
}

/// Measures one round of a table.
///
/// # Errors
/// An error if a process fails.
pub fn round(name: &str, round: usize, seconds: f64, results: &mut Results) -> Result<()> {
    let mut measure = |task, is_groupcache_rs, count, cell: &str| {
        let (nodes, _others) = started(count, is_groupcache_rs)?;
        let settings = Settings { task, is_groupcache_rs, nodes, seconds };
        for line in processes::ask::<Line>("cluster", &settings, &CLIENT.to_string())? {
            let figures = [("per_second", line.per_second), ("share", line.share), ("ms", line.milliseconds)];
            eprintln!("{name}: {cell}: {}: {figures:?}", line.target);
            let figures = figures.into_iter().map(|(name, figure)| (name.to_owned(), figure)).collect();
            results.add(name, cell, &line.target, round, figures);
        }
        Ok::<_, crate::Error>(())
    };
    match name {
        MANY => [10, 100, 1000].into_iter().try_for_each(|n| measure(Task::Many(n), false, 2, &format!("{n} keys"))),
        ZIPF => [false, true]
            .into_iter()
            .try_for_each(|is_groupcache_rs| measure(Task::Zipf, is_groupcache_rs, 3, "64 callers")),
        _ => [false, true]
            .into_iter()
            .try_for_each(|is_groupcache_rs| measure(Task::Start, is_groupcache_rs, 2, "two nodes")),
    }
}

/// Runs the role of one of the nodes.
///
/// # Errors
/// An error if the node cannot listen, or a get fails.
pub async fn run(settings: Settings) -> Result<()> {
    match settings.task {
        Task::Serve => serve(&settings).await,
        Task::Many(n) => many(&settings, n).await,
        Task::Zipf => zipf(&settings).await,
        Task::Start => start(&settings).await,
    }
}

fn me(settings: &Settings) -> Result<&Named> {
    settings.nodes.first().ok_or_else(|| "there are no nodes".into())
}

async fn serve(settings: &Settings) -> Result<()> {
    let (id, address) = me(settings)?;
    if settings.is_groupcache_rs {
        let groupcache_rs = GroupcacheRs::new(*address, VALUE_BYTES, true);
        groupcache_rs.serve().await?;
        return processes::ready_until_stdin_ends().await;
    }
    let node = this_crate::node(id, 1, &settings.nodes).await?;
    let _group = this_crate::group(&node, VALUE_BYTES, true)?;
    processes::ready_until_stdin_ends().await
}

async fn many(settings: &Settings, n: usize) -> Result<()> {
    let node = this_crate::node(&me(settings)?.0, 0, &settings.nodes).await?;
    let group = this_crate::group(&node, VALUE_BYTES, false)?;
    node.ready(2).await?;
    let keys = keys(MANY_KEYS);
    for some in keys.chunks(1000) {
        group.get_many(some).await.into_iter().collect::<groupcache_core::Result<Vec<_>>>()?;
    }
    for is_many in [true, false] {
        let (begun, frames, mut calls) = (Instant::now(), node.stats().frames_sent, 0_u32);
        for some in keys.chunks(n).cycle() {
            match is_many {
                true => drop(group.get_many(some).await.into_iter().collect::<groupcache_core::Result<Vec<_>>>()?),
                false => drop(
                    join_all(some.iter().map(|key| group.get(key)))
                        .await
                        .into_iter()
                        .collect::<groupcache_core::Result<Vec<_>>>()?,
                ),
            }
            calls += 1;
            if begun.elapsed().as_secs_f64() >= settings.seconds {
                break;
            }
        }
        let line = Line {
            target: if is_many { "get_many" } else { "gets at once" }.to_owned(),
            per_second: f64::from(calls) * n as f64 / begun.elapsed().as_secs_f64(),
            share: (node.stats().frames_sent - frames) as f64 / f64::from(calls),
            milliseconds: 0.0,
        };
        println!("{}", serde_json::to_string(&line)?);
    }
    Ok(())
}

async fn zipf(settings: &Settings) -> Result<()> {
    let (id, address) = me(settings)?;
    if settings.is_groupcache_rs {
        let groupcache_rs = GroupcacheRs::new(*address, VALUE_BYTES, true);
        groupcache_rs.serve().await?;
        for (_, peer) in settings.nodes.iter().skip(1) {
            groupcache_rs.add(*peer).await?;
        }
        let per_second = ask_by_zipf(groupcache_rs, settings.seconds).await?;
        let line = Line { target: "groupcache 0.3".to_owned(), per_second, share: 0.0, milliseconds: 0.0 };
        println!("{}", serde_json::to_string(&line)?);
        return Ok(());
    }
    let node = this_crate::node(id, 1, &settings.nodes).await?;
    let group = this_crate::group(&node, VALUE_BYTES, true)?;
    node.ready(settings.nodes.len()).await?;
    let per_second = ask_by_zipf(this_crate::ThisCrate { node, group: group.clone() }, settings.seconds).await?;
    let stats = group.stats();
    let share = stats.hits as f64 / stats.gets as f64;
    let line = Line { target: "ours".to_owned(), per_second, share, milliseconds: 0.0 };
    println!("{}", serde_json::to_string(&line)?);
    Ok(())
}

/// Returns the gets per second. The measurement follows a warm-up of equal length.
async fn ask_by_zipf<C: Target>(target: C, seconds: f64) -> Result<f64> {
    let (target, total) = (Arc::new(target), Arc::<AtomicU64>::default());
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..ZIPF_CALLERS {
        let (target, total) = (Arc::clone(&target), Arc::clone(&total));
        let (law, mut rng) = (Zipf::new(ZIPF_KEYS as f64, 1.0)?, SmallRng::seed_from_u64(caller as u64));
        callers.spawn(async move {
            for n in 0_u32.. {
                target.get(caller, &format!("key-{:016}", law.sample(&mut rng) as u64)).await?;
                total.fetch_add(1, Relaxed);
                if n.is_multiple_of(16) {
                    tokio::task::yield_now().await; // a hit never waits
                }
            }
            Ok::<_, crate::Error>(())
        });
    }
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    let (begun, before) = (Instant::now(), total.load(Relaxed));
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    let per_second = (total.load(Relaxed) - before) as f64 / begun.elapsed().as_secs_f64();
    while let Some(ended) = callers.try_join_next() {
        ended??;
    }
    callers.shutdown().await;
    Ok(per_second)
}

async fn start(settings: &Settings) -> Result<()> {
    let begun = Instant::now();
    let (id, address) = me(settings)?;
    let target = if settings.is_groupcache_rs {
        let groupcache_rs = GroupcacheRs::new(*address, 0, true);
        groupcache_rs.serve().await?;
        for (_, peer) in settings.nodes.iter().skip(1) {
            groupcache_rs.add(*peer).await?;
        }
        let mut keys = keys(1000).into_iter();
        while groupcache_rs.get(0, &keys.next().ok_or("the other node owns none of the keys")?).await? == 0 {}
        "groupcache 0.3"
    } else {
        let node = this_crate::node(id, 1, &settings.nodes).await?;
        let group = this_crate::group(&node, VALUE_BYTES, true)?;
        node.ready(2).await?;
        let mut keys = keys(1000).into_iter();
        while group.stats().fetches == 0 {
            group.get(&keys.next().ok_or("the other node owns none of the keys")?).await?;
        }
        "ours"
    };
    let milliseconds = begun.elapsed().as_secs_f64() * 1000.0;
    println!(
        "{}",
        serde_json::to_string(&Line { target: target.to_owned(), per_second: 0.0, share: 0.0, milliseconds })?
    );
    Ok(())
}
