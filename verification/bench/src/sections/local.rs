//! Local: gets without a peer, which are hits, and misses with a loader that answers at once.

use std::{
    convert::Infallible,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use groupcache_core::{Json, Node};
use quick_cache::sync::Cache;
use rand::{SeedableRng, rngs::SmallRng, seq::SliceRandom};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    Result,
    figures::Results,
    machine::Used,
    processes::{self, CLIENT},
    targets::{Target, groupcache_rs::GroupcacheRs, keys, this_crate, value},
};

/// Name of the table of hits.
pub const HITS: &str = "local hits";
/// Name of the table of misses.
pub const MISSES: &str = "local misses";

const KEYS: usize = 10_000;
const VALUE_BYTES: usize = 100;

/// Number of gets between two checks of the clock.
const AT_ONCE: usize = 1000;

/// Number of misses in a round, each of another key.
const COLD_KEYS: usize = 200_000;

/// A value as services have it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct User {
    id: u64,
    name: String,
    mail: String,
    roles: Vec<String>,
}

fn user() -> User {
    let roles = vec!["reader".to_owned(), "writer".to_owned()];
    User { id: 12345, name: "Ada Lovelace".to_owned(), mail: "ada@example.org".to_owned(), roles }
}

/// A target that answers from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Local {
    /// A group of bytes.
    ThisCrate,
    /// A group of decoded values.
    ThisCrateDecoded,
    /// The bare map that a group is built on.
    QuickCache,
    /// The crate `groupcache` 0.3.
    GroupcacheRs,
}

impl Local {
    /// All targets.
    pub const ALL: [Self; 4] = [Self::ThisCrate, Self::ThisCrateDecoded, Self::QuickCache, Self::GroupcacheRs];

    /// Returns the name in the tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ThisCrate => "ours",
            Self::ThisCrateDecoded => "ours, a struct",
            Self::QuickCache => "bare quick_cache",
            Self::GroupcacheRs => "groupcache 0.3",
        }
    }
}

/// Settings of a process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ask {
    target: Local,
    threads: usize,
    seconds: f64,
    is_cold: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    nanoseconds: f64,
}

/// Measures one round of both tables, with another target first in each round.
///
/// # Errors
/// An error if a process fails.
pub fn round(round: usize, seconds: f64, results: &mut Results) -> Result<()> {
    for n in 0..Local::ALL.len() {
        let Some(target) = Local::ALL.get((n + round) % Local::ALL.len()).copied() else { continue };
        for threads in [1, 2] {
            let ask = Ask { target, threads, seconds, is_cold: false };
            let cores = if threads == 1 { CLIENT.to_string() } else { "0,1".to_owned() };
            let lines: Vec<Line> = processes::ask("local", &ask, &cores)?;
            let cell = if threads == 1 { "1 thread" } else { "2 threads" };
            add_lines(HITS, cell, target, round, &lines, results);
        }
        if matches!(target, Local::ThisCrate | Local::GroupcacheRs) {
            let ask = Ask { target, threads: 1, seconds, is_cold: true };
            let lines: Vec<Line> = processes::ask("cold", &ask, &CLIENT.to_string())?;
            add_lines(MISSES, "loader answers at once", target, round, &lines, results);
        }
    }
    Ok(())
}

fn add_lines(section: &str, cell: &str, target: Local, round: usize, lines: &[Line], results: &mut Results) {
    for line in lines {
        eprintln!("{section}: {cell}: {}: {:.0} ns", target.name(), line.nanoseconds);
        results.add(section, cell, target.name(), round, [("ns".to_owned(), line.nanoseconds)].into());
    }
}

/// Runs the role of a process without a peer.
///
/// # Errors
/// Any error of the target.
pub async fn ask(ask: Ask) -> Result<()> {
    let nanoseconds = match ask.target {
        Local::QuickCache => {
            let cache = Cache::<Arc<str>, Bytes>::new(KEYS * 4);
            hits(ask, QuickHit(Arc::new(cache))).await?
        }
        Local::ThisCrate => {
            let node = Node::builder().start().await?;
            let group = this_crate::group(&node, VALUE_BYTES, true)?;
            if ask.is_cold {
                misses(async |key: &str| group.get(key).await.map(drop).map_err(Into::into)).await?
            } else {
                hits(ask, ThisCrateHit(group)).await?
            }
        }
        Local::ThisCrateDecoded => {
            let node = Node::builder().start().await?;
            let group = node.group::<Json<User>>("users").capacity_bytes(64 << 20);
            let group = group.loader(async |_: &str| Ok::<_, Infallible>(user())).build()?;
            hits(ask, ThisCrateHit(group)).await?
        }
        Local::GroupcacheRs => {
            let groupcache_rs = GroupcacheRs::new(processes::free_address()?, VALUE_BYTES, true);
            if ask.is_cold {
                misses(async |key: &str| groupcache_rs.get(0, key).await.map(|_| ())).await?
            } else {
                hits(ask, GroupcacheRsHit(groupcache_rs)).await?
            }
        }
    };
    println!("{}", serde_json::to_string(&Line { nanoseconds })?);
    Ok(())
}

/// A target with all keys in memory.
trait Hit: Clone + Send + Sync + 'static {
    fn get(&self, key: &Arc<str>) -> impl Future<Output = Result<()>> + Send;
}

#[derive(Clone)]
struct QuickHit(Arc<Cache<Arc<str>, Bytes>>);

impl Hit for QuickHit {
    async fn get(&self, key: &Arc<str>) -> Result<()> {
        if std::hint::black_box(self.0.get(&**key)).is_none() {
            self.0.insert(Arc::clone(key), value(VALUE_BYTES));
        }
        Ok(())
    }
}

#[derive(Clone)]
struct ThisCrateHit<V: groupcache_core::Value>(groupcache_core::Group<V>);

impl<V: groupcache_core::Value> Hit for ThisCrateHit<V> {
    async fn get(&self, key: &Arc<str>) -> Result<()> {
        std::hint::black_box(self.0.get(key).await?);
        Ok(())
    }
}

#[derive(Clone)]
struct GroupcacheRsHit(GroupcacheRs);

impl Hit for GroupcacheRsHit {
    async fn get(&self, key: &Arc<str>) -> Result<()> {
        std::hint::black_box(self.0.get(0, key).await?);
        Ok(())
    }
}

/// Returns the nanoseconds of a thread for each hit.
async fn hits<H: Hit>(ask: Ask, on: H) -> Result<f64> {
    let keys: Vec<_> = keys(KEYS);
    for key in &keys {
        on.get(key).await?;
    }
    let ends = Arc::new(AtomicBool::new(false));
    let total = Arc::<AtomicU64>::default();
    let begun = Instant::now();
    let mut threads = tokio::task::JoinSet::new();
    for thread in 0..ask.threads {
        let (on, ends, total, mut keys) = (on.clone(), Arc::clone(&ends), Arc::clone(&total), keys.clone());
        // Each thread has an order of its own, because otherwise the second thread would find the keys that the first
        // has just brought into the cache of the processor.
        keys.shuffle(&mut SmallRng::seed_from_u64(thread as u64));
        threads.spawn(async move {
            loop {
                for keys in keys.chunks(AT_ONCE) {
                    for key in keys {
                        on.get(key).await?;
                    }
                    total.fetch_add(keys.len() as u64, Relaxed);
                    if ends.load(Relaxed) {
                        return Ok::<_, crate::Error>(());
                    }
                    if begun.elapsed() >= Duration::from_secs_f64(ask.seconds) {
                        ends.store(true, Relaxed);
                    }
                }
                tokio::task::yield_now().await;
            }
        });
    }
    for thread in threads.join_all().await {
        thread?;
    }
    Ok(begun.elapsed().as_nanos() as f64 * ask.threads as f64 / total.load(Relaxed) as f64)
}

/// Returns the nanoseconds of processor for each miss.
async fn misses(get: impl AsyncFn(&str) -> Result<()>) -> Result<f64> {
    let keys = keys(COLD_KEYS);
    let before = Used::of_this_process()?;
    for key in &keys {
        get(key).await?;
    }
    Ok((Used::of_this_process()? - before).nanoseconds as f64 / keys.len() as f64)
}
