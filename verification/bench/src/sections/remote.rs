//! Remote: gets that another process answers.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};

use crate::{
    Result,
    figures::Results,
    load::{self, Figures, Plan},
    processes::{self, CLIENT, SERVER},
    targets::{
        Remote, Target,
        groupcache_rs::GroupcacheRs,
        keys,
        memcached_redis::{self, Connections, Pipelined, Protocol},
        this_crate::{self, ThisCrate},
        unary::{self, Unary},
        value,
    },
};

/// Number of concurrent requests while the keys are filled in.
const FILLING: usize = 64;

/// Settings of a server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Serve {
    target: Remote,
    server: SocketAddr,
    client: SocketAddr,
    bytes: usize,
}

/// Settings of a client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ask {
    serve: Serve,
    process: u32,
    callers: Vec<usize>,
    seconds: f64,
    /// Whether a paced stream at half of the reached rate follows.
    and_paced: bool,
    sets_percent: usize,
}

/// A result of the client, printed as a line.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Line {
    callers: usize,
    is_paced: bool,
    figures: Figures,
}

/// A table of remote gets.
#[derive(Clone, Debug)]
pub struct Section {
    /// Name of the table.
    pub name: &'static str,
    /// Targets in the table.
    pub targets: Vec<Remote>,
    /// Lengths of values, each with the numbers of callers.
    pub cells: Vec<(usize, Vec<usize>)>,
    /// Whether both processes run on one core.
    pub one_core: bool,
    /// Whether latencies at half of the load are measured too.
    pub and_paced: bool,
    /// Number of sets in 100 operations.
    pub sets_percent: usize,
}

/// Returns the name of a cell.
pub fn cell(bytes: usize, callers: usize) -> String {
    let bytes = if bytes < 1024 { format!("{bytes} B") } else { format!("{} KiB", bytes / 1024) };
    format!("{bytes}, {callers} caller{}", if callers == 1 { "" } else { "s" })
}

/// Returns the number of keys, so that all values fit in memory and no two callers share a key.
const fn key_count(bytes: usize) -> usize {
    match bytes {
        0..1024 => 40_000,
        1024..16384 => 20_000,
        _ => 1024,
    }
}

impl Section {
    /// Measures one round of the table, with another target first in each round.
    ///
    /// # Errors
    /// An error if a process fails.
    pub fn round(&self, round: usize, seconds: f64, results: &mut Results) -> Result<()> {
        for (bytes, callers) in &self.cells {
            for n in 0..self.targets.len() {
                let Some(target) = self.targets.get((n + round) % self.targets.len()).copied() else { continue };
                if target.program().is_some_and(|program| !processes::is_there(program)) {
                    continue;
                }
                let (server, client) = (processes::free_address()?, processes::free_address()?);
                let serve = Serve { target, server, client, bytes: *bytes };
                let core = if self.one_core { CLIENT } else { SERVER };
                let process = match target.program() {
                    Some(_) => processes::serve_foreign(target, server, core)?,
                    None => processes::serve("serve", &serve, core)?,
                };
                let ask = Ask {
                    serve,
                    process: process.id(),
                    callers: callers.clone(),
                    seconds,
                    and_paced: self.and_paced,
                    sets_percent: self.sets_percent,
                };
                let lines: Vec<Line> = processes::ask("ask", &ask, &CLIENT.to_string())?;
                for line in lines {
                    let paced = if line.is_paced { ", half of its load" } else { "" };
                    let cell = format!("{}{paced}", cell(*bytes, line.callers));
                    let per_second = line.figures.per_second;
                    let (p50, p99) = (line.figures.p50_us, line.figures.p99_us);
                    eprintln!("{}: {cell}: {}: {per_second:.0}/s, {p50:.0} µs, {p99:.0} µs", self.name, target.name());
                    results.add(self.name, &cell, target.name(), round, line.figures.named()?);
                }
            }
        }
        Ok(())
    }
}

/// Runs the role of a server: a node of this project, the crate `groupcache`, or a bare server.
///
/// # Errors
/// An error if the server cannot listen.
pub async fn serve(settings: Serve) -> Result<()> {
    let Serve { target, server, client, bytes } = settings;
    let mut running = None;
    match target {
        Remote::ThisCrate => {
            let node = this_crate::node("server", 1, &[("server".into(), server), ("client".into(), client)]).await?;
            let group = this_crate::group(&node, bytes, false)?;
            running = Some((node, group));
        }
        Remote::GroupcacheRs => GroupcacheRs::new(server, bytes, false).serve().await?,
        Remote::Unary => unary::serve(server, value(bytes)).await?,
        _ => memcached_redis::serve_echo(server, value(bytes)).await?,
    }
    processes::ready_until_stdin_ends().await?;
    drop(running);
    Ok(())
}

/// Runs the role of a client.
///
/// # Errors
/// An error if the server does not answer, or a value has the wrong length.
pub async fn ask(settings: Ask) -> Result<()> {
    let Serve { target, server, client, bytes } = settings.serve;
    let keys: Arc<[Arc<str>]> = keys(key_count(bytes)).into();
    let protocol = match target {
        Remote::Redis | Remote::RedisPipelined => Protocol::Redis,
        _ => Protocol::Memcached,
    };
    match target {
        Remote::ThisCrate => {
            let node = this_crate::node("client", 0, &[("server".into(), server), ("client".into(), client)]).await?;
            let group = this_crate::group(&node, bytes, false)?;
            node.ready(2).await?;
            let this_crate = Arc::new(ThisCrate { node, group });
            fill(&this_crate, &keys, bytes).await?;
            run(&this_crate, &keys, &settings).await
        }
        Remote::GroupcacheRs => {
            // Values that the client loads itself are empty, so that their keys can be left out.
            let groupcache_rs = Arc::new(GroupcacheRs::new(client, 0, false));
            groupcache_rs.add(server).await?;
            let lengths = stream::iter(keys.iter()).map(|key| groupcache_rs.get(0, key)).buffered(FILLING);
            let lengths: Vec<_> = lengths.collect::<Vec<_>>().await.into_iter().collect::<Result<_>>()?;
            let others = keys.iter().zip(lengths).filter(|(_, length)| *length == bytes);
            let keys: Arc<[Arc<str>]> = others.map(|(key, _)| Arc::clone(key)).collect();
            run(&groupcache_rs, &keys, &settings).await
        }
        Remote::Unary => run(&Arc::new(Unary::connect(server).await?), &keys, &settings).await,
        Remote::MemcachedPipelined | Remote::RedisPipelined | Remote::EchoPipelined => {
            let pipelined = Arc::new(Pipelined::new(protocol, server).await?);
            if target != Remote::EchoPipelined {
                set(&pipelined, &keys, bytes).await?;
            }
            run(&pipelined, &keys, &settings).await
        }
        Remote::Memcached | Remote::Redis | Remote::Echo => {
            if target != Remote::Echo {
                set(&Pipelined::new(protocol, server).await?, &keys, bytes).await?;
            }
            let most = settings.callers.iter().copied().max().unwrap_or(1);
            run(&Arc::new(Connections::new(protocol, server, most).await?), &keys, &settings).await
        }
    }
}

/// Gets each key once, so that the server has loaded all of them.
async fn fill(this_crate: &Arc<ThisCrate>, keys: &[Arc<str>], bytes: usize) -> Result<()> {
    let mut lengths = stream::iter(keys).map(|key| this_crate.get(0, key)).buffer_unordered(FILLING);
    while let Some(length) = lengths.next().await {
        let length = length?;
        if length != bytes {
            return Err(format!("the server returned a value of {length} bytes instead of {bytes}").into());
        }
    }
    let loads = this_crate.group.stats().loads;
    if loads == 0 {
        Ok(())
    } else {
        Err(format!("the client loaded {loads} values, which only the server may load").into())
    }
}

async fn set(server: &Pipelined, keys: &[Arc<str>], bytes: usize) -> Result<()> {
    let value = value(bytes);
    let mut done = stream::iter(keys).map(|key| server.set(0, key, &value)).buffer_unordered(FILLING);
    while let Some(done) = done.next().await {
        done?;
    }
    Ok(())
}

async fn run<C: Target>(target: &Arc<C>, keys: &Arc<[Arc<str>]>, ask: &Ask) -> Result<()> {
    for callers in ask.callers.iter().copied() {
        let plan = Plan {
            callers,
            warm_up: Duration::from_secs_f64(ask.seconds / 4.0),
            time: Duration::from_secs_f64(ask.seconds),
            sets_percent: ask.sets_percent,
            set_bytes: ask.serve.bytes,
            server: ask.process,
        };
        let figures = load::closed(target, keys, plan).await?;
        let half = figures.per_second / 2.0;
        print_figures(callers, false, figures)?;
        if ask.and_paced && callers > 1 {
            print_figures(callers, true, load::paced(target, keys, plan, half).await?)?;
        }
    }
    Ok(())
}

fn print_figures(callers: usize, is_paced: bool, figures: Figures) -> Result<()> {
    println!("{}", serde_json::to_string(&Line { callers, is_paced, figures })?);
    Ok(())
}
