//! Several nodes at work: many keys at once, keys by Zipf's law on three nodes, and from nothing to the first answer.

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
    contestants::{Contestant, keys, ours, rival::Rival},
    figures::Results,
    processes::{self, CLIENT, Process, SERVER},
};

/// The tables.
pub const MANY: &str = "many keys at once";
/// See [`MANY`].
pub const ZIPF: &str = "Zipf 1.0, three nodes";
/// See [`MANY`].
pub const START: &str = "from start to the first remote get";

const VALUE_BYTES: usize = 100;
const MANY_KEYS: usize = 40_000;
const ZIPF_KEYS: u64 = 1_000_000;
const ZIPF_CALLERS: usize = 64;

/// A node, and where it listens.
type Named = (String, SocketAddr);

/// What a process is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    task: Task,
    is_rival: bool,
    /// All nodes; the first is the one that is told.
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
    who: String,
    per_second: f64,
    /// Of all gets, how many this node answered itself; or how many exchanges a call took.
    share: f64,
    milliseconds: f64,
}

/// The nodes of a measurement; all but the first are started.
fn started(count: usize, is_rival: bool) -> Result<(Vec<Named>, Vec<Process>)> {
    let named = |n| Ok::<_, crate::Error>((format!("node-{n}"), processes::free_address()?));
    let nodes: Vec<_> = (0..count).map(named).collect::<Result<_>>()?;
    let mut others = Vec::new();
    for n in 1..count {
        let mut seen = nodes.clone();
        seen.swap(0, n);
        let settings = Settings { task: Task::Serve, is_rival, nodes: seen, seconds: 0.0 };
        others.push(processes::serve("cluster", &settings, SERVER)?);
    }
    Ok((nodes, others))
}

/// One round of all three.
///
/// # Errors
/// When a process fails.
pub fn round(name: &str, round: usize, seconds: f64, results: &mut Results) -> Result<()> {
    let mut measure = |task, is_rival, count, cell: &str| {
        let (nodes, _others) = started(count, is_rival)?;
        let settings = Settings { task, is_rival, nodes, seconds };
        for line in processes::ask::<Line>("cluster", &settings, &CLIENT.to_string())? {
            let figures = [("per_second", line.per_second), ("share", line.share), ("ms", line.milliseconds)];
            eprintln!("{name}: {cell}: {}: {figures:?}", line.who);
            let figures = figures.into_iter().map(|(name, figure)| (name.to_owned(), figure)).collect();
            results.add(name, cell, &line.who, round, figures);
        }
        Ok::<_, crate::Error>(())
    };
    match name {
        MANY => [10, 100, 1000].into_iter().try_for_each(|n| measure(Task::Many(n), false, 2, &format!("{n} keys"))),
        ZIPF => [false, true].into_iter().try_for_each(|rival| measure(Task::Zipf, rival, 3, "64 callers")),
        _ => [false, true].into_iter().try_for_each(|rival| measure(Task::Start, rival, 2, "two nodes")),
    }
}

/// The role of one of the nodes.
///
/// # Errors
/// When it cannot listen, or a get fails.
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
    if settings.is_rival {
        let rival = Rival::new(*address, VALUE_BYTES, true);
        rival.serve().await?;
        return processes::ready_until_stdin_ends().await;
    }
    let node = ours::node(id, 1, &settings.nodes).await?;
    let _group = ours::group(&node, VALUE_BYTES, true)?;
    processes::ready_until_stdin_ends().await
}

async fn many(settings: &Settings, n: usize) -> Result<()> {
    let node = ours::node(&me(settings)?.0, 0, &settings.nodes).await?;
    let group = ours::group(&node, VALUE_BYTES, false)?;
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
            who: if is_many { "get_many" } else { "gets at once" }.to_owned(),
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
    if settings.is_rival {
        let rival = Rival::new(*address, VALUE_BYTES, true);
        rival.serve().await?;
        for (_, peer) in settings.nodes.iter().skip(1) {
            rival.add(*peer).await?;
        }
        let per_second = ask_by_zipf(rival, settings.seconds).await?;
        let line = Line { who: "groupcache 0.3".to_owned(), per_second, share: 0.0, milliseconds: 0.0 };
        println!("{}", serde_json::to_string(&line)?);
        return Ok(());
    }
    let node = ours::node(id, 1, &settings.nodes).await?;
    let group = ours::group(&node, VALUE_BYTES, true)?;
    node.ready(settings.nodes.len()).await?;
    let per_second = ask_by_zipf(ours::Ours { node, group: group.clone() }, settings.seconds).await?;
    let stats = group.stats();
    let share = stats.hits as f64 / stats.gets as f64;
    let line = Line { who: "ours".to_owned(), per_second, share, milliseconds: 0.0 };
    println!("{}", serde_json::to_string(&line)?);
    Ok(())
}

/// Gets a second, after as long again that is not counted.
async fn ask_by_zipf<C: Contestant>(contestant: C, seconds: f64) -> Result<f64> {
    let (contestant, total) = (Arc::new(contestant), Arc::<AtomicU64>::default());
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..ZIPF_CALLERS {
        let (contestant, total) = (Arc::clone(&contestant), Arc::clone(&total));
        let (law, mut rng) = (Zipf::new(ZIPF_KEYS as f64, 1.0)?, SmallRng::seed_from_u64(caller as u64));
        callers.spawn(async move {
            for n in 0_u32.. {
                contestant.get(caller, &format!("key-{:016}", law.sample(&mut rng) as u64)).await?;
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
    let who = if settings.is_rival {
        let rival = Rival::new(*address, 0, true);
        rival.serve().await?;
        for (_, peer) in settings.nodes.iter().skip(1) {
            rival.add(*peer).await?;
        }
        let mut keys = keys(1000).into_iter();
        while rival.get(0, &keys.next().ok_or("no key is the other's")?).await? == 0 {}
        "groupcache 0.3"
    } else {
        let node = ours::node(id, 1, &settings.nodes).await?;
        let group = ours::group(&node, VALUE_BYTES, true)?;
        node.ready(2).await?;
        let mut keys = keys(1000).into_iter();
        while group.stats().fetches == 0 {
            group.get(&keys.next().ok_or("no key is the other's")?).await?;
        }
        "ours"
    };
    let milliseconds = begun.elapsed().as_secs_f64() * 1000.0;
    println!("{}", serde_json::to_string(&Line { who: who.to_owned(), per_second: 0.0, share: 0.0, milliseconds })?);
    Ok(())
}
