//! Hit ratio: the share of gets that find their value in memory, in a group and in a plain LRU with the same bytes and
//! the same requests.
//!
//! Keys are requested by Zipf's law. With scans, one request in ten on average is the next one of a walk through keys
//! that are not requested again. An entry of the LRU is charged with the weight that an entry has in the group, so that
//! only the order of eviction differs. The workload has one node and one caller. The requests are equal in each run.
//! The ratio of the group varies a little, because the store draws a seed.
//!
//! With the folder of the traces as the argument, the requests are those of [`mod@traces`], with room for 1 % and 10 % of
//! their distinct keys, and the contestants are other policies too.

mod contestants;
mod traces;

use std::{convert::Infallible, error::Error, io, num::NonZeroUsize, path::Path};

use bytes::Bytes;
use groupcache_core::{Group, Limits, Node};
use lru::LruCache;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, Zipf};

use crate::{
    contestants::{Lru, QuickCache, S3Fifo, Sieve},
    traces::{CHOSEN_BY, SOURCES, Trace},
};

/// Number of keys.
const KEYS: u64 = 1_000_000;

/// Number of requests before counting begins, after which both caches are full and have seen the frequent keys.
const WARM_UP: u32 = 1_000_000;

const REQUESTS: u32 = 3_000_000;

const VALUE_BYTES: usize = 100;

/// Maximum size of a value of the traces that have sizes: the largest is of some megabytes.
const MAX_VALUE_BYTES: usize = 64 << 20;

/// Share of the keys that fit into memory, in percent.
const SHARES: [u64; 3] = [1, 5, 20];

const SEED: u64 = 1;

struct Workload {
    name: &'static str,
    exponent: f64,
    /// Number of requests of which one, on average, belongs to a scan. `None` is a workload without scans.
    scans: Option<u32>,
}

const WORKLOADS: [Workload; 6] = [
    Workload { name: "Zipf 0.9", exponent: 0.9, scans: None },
    Workload { name: "Zipf 1.0", exponent: 1.0, scans: None },
    Workload { name: "Zipf 1.2", exponent: 1.2, scans: None },
    Workload { name: "Zipf 0.9 and scans", exponent: 0.9, scans: Some(10) },
    Workload { name: "Zipf 1.0 and scans", exponent: 1.0, scans: Some(10) },
    Workload { name: "Zipf 1.2 and scans", exponent: 1.2, scans: Some(10) },
];

/// Requests of a workload, equal in each run.
struct Requests<'a> {
    workload: &'a Workload,
    law: Zipf<f64>,
    rng: SmallRng,
    scanned: u64,
}

impl<'a> Requests<'a> {
    fn new(workload: &'a Workload) -> Result<Self, Box<dyn Error>> {
        let law = Zipf::new(KEYS as f64, workload.exponent)?;
        Ok(Self { workload, law, rng: SmallRng::seed_from_u64(SEED), scanned: 0 })
    }

    fn next(&mut self) -> String {
        if self.workload.scans.is_some_and(|every| self.rng.random_ratio(1, every)) {
            self.scanned += 1;
            return format!("scan-{:07}", self.scanned);
        }
        format!("key--{:07}", self.law.sample(&mut self.rng) as u64)
    }
}

/// Share of the counted requests that found their value.
#[derive(Default)]
struct Found {
    found: u32,
    asked: u32,
}

impl Found {
    fn count(&mut self, at: u32, is_found: bool) {
        if at >= WARM_UP {
            self.asked += 1;
            self.found += u32::from(is_found);
        }
    }

    fn percent(&self) -> f64 {
        100.0 * f64::from(self.found) / f64::from(self.asked)
    }
}

async fn group(node: &Node, name: &str, bytes: u64) -> Result<Group<Bytes>, Box<dyn Error>> {
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let group = node.group::<Bytes>(name).capacity_bytes(bytes);
    Ok(group.loader_with(value, async |value: &Bytes, _: &str| Ok::<_, Infallible>(value.clone())).build()?)
}

/// Returns the weight of an entry.
async fn weight(node: &Node) -> Result<u64, Box<dyn Error>> {
    let group = group(node, "weight", 1 << 20).await?;
    group.get("key--0000001").await?;
    Ok(group.inspect().local_entries(1).first().ok_or("the group keeps no entry")?.bytes)
}

async fn group_percent(group: &Group<Bytes>, workload: &Workload) -> Result<f64, Box<dyn Error>> {
    let (mut requests, mut found) = (Requests::new(workload)?, Found::default());
    let mut loads = 0;
    for at in 0..WARM_UP + REQUESTS {
        group.get(&requests.next()).await?;
        let now = group.stats().loads;
        found.count(at, now == loads);
        loads = now;
    }
    Ok(found.percent())
}

fn lru_percent(entries: u64, workload: &Workload) -> Result<f64, Box<dyn Error>> {
    let (mut requests, mut found) = (Requests::new(workload)?, Found::default());
    let mut lru = LruCache::new(NonZeroUsize::try_from(usize::try_from(entries)?)?);
    for at in 0..WARM_UP + REQUESTS {
        let key = requests.next();
        let is_found = lru.get(&key).is_some();
        found.count(at, is_found);
        if !is_found {
            lru.put(key, ());
        }
    }
    Ok(found.percent())
}

/// Result of a group with the requests of a trace.
struct OfGroup {
    /// Share of requests, in percent, that memory answered.
    hits: f64,
    /// Share of the budget, in percent, that is used at the end.
    used: f64,
}

/// Number of bytes of a value of a trace.
fn value_bytes(sizes: Option<&Vec<u64>>, key: u32) -> u64 {
    sizes.map_or(VALUE_BYTES as u64, |sizes| sizes.get(key as usize).copied().unwrap_or(0))
}

/// Returns the hits of a group with room for `percent` of the keys, or of the bytes of all values of a trace with sizes.
/// `overhead` is the weight of an entry without its value.
async fn of_group(
    node: &Node,
    name: &str,
    trace: &Trace,
    overhead: u64,
    percent: u64,
) -> Result<OfGroup, Box<dyn Error>> {
    let sizes = trace.sizes.clone();
    let distinct = u32::try_from(trace.distinct)?;
    let bytes = match &trace.sizes {
        None => trace.distinct as u64 * percent / 100 * (overhead + VALUE_BYTES as u64),
        sizes => (0..distinct).map(|key| overhead + value_bytes(sizes.as_ref(), key)).sum::<u64>() * percent / 100,
    };
    let load = async |sizes: &Option<Vec<u64>>, key: &str| {
        let number = key.trim_start_matches("key--").parse().map_err(io::Error::other)?;
        let bytes = usize::try_from(value_bytes(sizes.as_ref(), number)).map_err(io::Error::other)?;
        Ok::<_, io::Error>(Bytes::from(vec![b'v'; bytes]))
    };
    let group = node.group::<Bytes>(name).capacity_bytes(bytes).loader_with(sizes, load).build()?;
    for key in &trace.keys {
        group.get(&format!("key--{key:07}")).await?;
    }
    let hits = 100.0 - 100.0 * group.stats().loads as f64 / trace.keys.len() as f64;
    let used = 100.0 * group.inspect().bytes() as f64 / group.inspect().capacity_bytes() as f64;
    Ok(OfGroup { hits, used })
}

async fn of_moka(keys: &[u32], room: usize) -> f64 {
    let cache = moka::future::Cache::new(room as u64);
    let mut hits = 0_u32;
    for key in keys {
        if cache.get(key).await.is_some() {
            hits += 1;
        } else {
            cache.insert(*key, ()).await;
        }
    }
    100.0 * f64::from(hits) / keys.len() as f64
}

/// Prints the hits of all contestants with the traces of a folder.
async fn traces(node: &Node, folder: &Path) -> Result<(), Box<dyn Error>> {
    println!("| trace | room for | group | of the budget | quick_cache | moka | LRU | SIEVE | S3-FIFO | optimum |");
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let overhead = weight(node).await? - VALUE_BYTES as u64;
    let mut sums = [0.0; 2];
    let mut limits = Limits::default();
    limits.max_value_bytes = MAX_VALUE_BYTES;
    let of_large_values = Node::builder().limits(limits).start().await?;
    for (n, source) in SOURCES.iter().enumerate() {
        let Some(trace) = source.read(folder)? else {
            println!("| {} | its file is missing | | | | | | | | |", source.name);
            continue;
        };
        let node = if trace.sizes.is_some() { &of_large_values } else { node };
        for percent in [1, 10] {
            let ours = of_group(node, &format!("{}-{percent}", source.name), &trace, overhead, percent).await?;
            let OfGroup { hits, used } = ours;
            print!("| {} | {percent} % | {hits:.1} | {used:.1} % |", source.name);
            if trace.sizes.is_some() {
                println!(" | | | | | |");
                continue;
            }
            let (keys, room) = (&trace.keys, trace.distinct * usize::try_from(percent)? / 100);
            let s3_fifo = contestants::percent(keys, S3Fifo::new(room));
            if n < CHOSEN_BY {
                sums = [sums[0] + hits, sums[1] + s3_fifo];
            }
            println!(
                " {:.1} | {:.1} | {:.1} | {:.1} | {s3_fifo:.1} | {:.1} |",
                contestants::percent(keys, QuickCache::new(room)),
                of_moka(keys, room).await,
                contestants::percent(keys, Lru::new(room)),
                contestants::percent(keys, Sieve::new(room)),
                contestants::optimum(keys, room)
            );
        }
    }
    let [ours, s3_fifo] = sums.map(|sum| sum / (2 * CHOSEN_BY) as f64);
    println!("mean of the first {CHOSEN_BY} traces: {ours:.2}, S3-FIFO {s3_fifo:.2}, {:+.2}", ours - s3_fifo);
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let node = Node::builder().start().await?;
    if let Some(folder) = std::env::args_os().nth(1) {
        traces(&node, Path::new(&folder)).await?;
        return Ok(node.shutdown().await?);
    }
    let weight = weight(&node).await?;
    println!(
        "{KEYS} keys, {VALUE_BYTES} bytes each, {weight} with key and overhead; {REQUESTS} requests after {WARM_UP}"
    );
    println!("| requests | room for | group | LRU | difference |");
    println!("|---|---|---|---|---|");
    for (n, workload) in WORKLOADS.iter().enumerate() {
        for share in SHARES {
            let entries = KEYS * share / 100;
            let group = group(&node, &format!("data-{n}-{share}"), entries * weight).await?;
            let (of_group, of_lru) = (group_percent(&group, workload).await?, lru_percent(entries, workload)?);
            let name = workload.name;
            println!(
                "| {name} | {share} % of the keys | {of_group:.1} % | {of_lru:.1} % | {:+.1} |",
                of_group - of_lru
            );
        }
    }
    node.shutdown().await?;
    Ok(())
}
