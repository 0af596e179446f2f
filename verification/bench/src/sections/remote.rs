//! Gets that another process answers.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};

use crate::{
    Result,
    contestants::{
        Contestant, Remote, keys,
        ours::{self, Ours},
        rival::Rival,
        text::{self, Connections, Pipelined, Protocol},
        unary::{self, Unary},
        value,
    },
    figures::Results,
    load::{self, Figures, Plan},
    processes::{self, CLIENT, SERVER},
};

/// How many are asked at once while the keys are filled in.
const FILLING: usize = 64;

/// What a server is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Serve {
    who: Remote,
    server: SocketAddr,
    client: SocketAddr,
    bytes: usize,
}

/// What a client is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ask {
    serve: Serve,
    process: u32,
    callers: Vec<usize>,
    seconds: f64,
    /// Then at half of the rate that was reached, one after the other as they come.
    and_paced: bool,
    sets_percent: usize,
}

/// What it answers, a line each.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Line {
    callers: usize,
    is_paced: bool,
    figures: Figures,
}

/// A table of remote gets.
#[derive(Clone, Debug)]
pub struct Section {
    /// Its name.
    pub name: &'static str,
    /// Who takes part.
    pub who: Vec<Remote>,
    /// Lengths of values, and how many callers ask.
    pub cells: Vec<(usize, Vec<usize>)>,
    /// Both processes on one core.
    pub one_core: bool,
    /// The tail at half of the load.
    pub and_paced: bool,
    /// Of 100 operations.
    pub sets_percent: usize,
}

/// How a cell is called.
pub fn cell(bytes: usize, callers: usize) -> String {
    let bytes = if bytes < 1024 { format!("{bytes} B") } else { format!("{} KiB", bytes / 1024) };
    format!("{bytes}, {callers} caller{}", if callers == 1 { "" } else { "s" })
}

/// As many as fit and are not asked for by two at once.
const fn key_count(bytes: usize) -> usize {
    match bytes {
        0..1024 => 40_000,
        1024..16384 => 20_000,
        _ => 1024,
    }
}

impl Section {
    /// One round of it, beginning with another contestant each time.
    ///
    /// # Errors
    /// When a process fails.
    pub fn round(&self, round: usize, seconds: f64, results: &mut Results) -> Result<()> {
        for (bytes, callers) in &self.cells {
            for n in 0..self.who.len() {
                let Some(who) = self.who.get((n + round) % self.who.len()).copied() else { continue };
                if who.program().is_some_and(|program| !processes::is_there(program)) {
                    continue;
                }
                let (server, client) = (processes::free_address()?, processes::free_address()?);
                let serve = Serve { who, server, client, bytes: *bytes };
                let core = if self.one_core { CLIENT } else { SERVER };
                let process = match who.program() {
                    Some(_) => processes::serve_foreign(who, server, core)?,
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
                    eprintln!("{}: {cell}: {}: {per_second:.0}/s, {p50:.0} µs, {p99:.0} µs", self.name, who.name());
                    results.add(self.name, &cell, who.name(), round, line.figures.named()?);
                }
            }
        }
        Ok(())
    }
}

/// The role of a server: ours, the rival, or a bare one.
///
/// # Errors
/// When it cannot listen.
pub async fn serve(settings: Serve) -> Result<()> {
    let Serve { who, server, client, bytes } = settings;
    let mut kept = None;
    match who {
        Remote::Ours => {
            let node = ours::node("server", 1, &[("server".into(), server), ("client".into(), client)]).await?;
            let group = ours::group(&node, bytes, false)?;
            kept = Some((node, group));
        }
        Remote::Rival => Rival::new(server, bytes, false).serve().await?,
        Remote::Unary => unary::serve(server, value(bytes)).await?,
        _ => text::serve_echo(server, value(bytes)).await?,
    }
    processes::ready_until_stdin_ends().await?;
    drop(kept);
    Ok(())
}

/// The role of a client.
///
/// # Errors
/// When the server is not there, or what is asked for is not what it has.
pub async fn ask(settings: Ask) -> Result<()> {
    let Serve { who, server, client, bytes } = settings.serve;
    let keys: Arc<[Arc<str>]> = keys(key_count(bytes)).into();
    let protocol = match who {
        Remote::Redis | Remote::RedisPipelined => Protocol::Redis,
        _ => Protocol::Memcached,
    };
    match who {
        Remote::Ours => {
            let node = ours::node("client", 0, &[("server".into(), server), ("client".into(), client)]).await?;
            let group = ours::group(&node, bytes, false)?;
            node.ready(2).await?;
            let ours = Arc::new(Ours { node, group });
            fill(&ours, &keys, bytes).await?;
            run(&ours, &keys, &settings).await
        }
        Remote::Rival => {
            // Values of its own are empty: so they are known.
            let rival = Arc::new(Rival::new(client, 0, false));
            rival.add(server).await?;
            let lengths = stream::iter(keys.iter()).map(|key| rival.get(0, key)).buffered(FILLING);
            let lengths: Vec<_> = lengths.collect::<Vec<_>>().await.into_iter().collect::<Result<_>>()?;
            let others = keys.iter().zip(lengths).filter(|(_, length)| *length == bytes);
            let keys: Arc<[Arc<str>]> = others.map(|(key, _)| Arc::clone(key)).collect();
            run(&rival, &keys, &settings).await
        }
        Remote::Unary => run(&Arc::new(Unary::connect(server).await?), &keys, &settings).await,
        Remote::MemcachedPipelined | Remote::RedisPipelined | Remote::EchoPipelined => {
            let pipelined = Arc::new(Pipelined::new(protocol, server).await?);
            if who != Remote::EchoPipelined {
                set(&pipelined, &keys, bytes).await?;
            }
            run(&pipelined, &keys, &settings).await
        }
        Remote::Memcached | Remote::Redis | Remote::Echo => {
            if who != Remote::Echo {
                set(&Pipelined::new(protocol, server).await?, &keys, bytes).await?;
            }
            let most = settings.callers.iter().copied().max().unwrap_or(1);
            run(&Arc::new(Connections::new(protocol, server, most).await?), &keys, &settings).await
        }
    }
}

/// Each key is loaded by the server once.
async fn fill(ours: &Arc<Ours>, keys: &[Arc<str>], bytes: usize) -> Result<()> {
    let mut lengths = stream::iter(keys).map(|key| ours.get(0, key)).buffer_unordered(FILLING);
    while let Some(length) = lengths.next().await {
        let length = length?;
        if length != bytes {
            return Err(format!("a value of {bytes} bytes was to come, and {length} did").into());
        }
    }
    let loads = ours.group.stats().loads;
    if loads == 0 { Ok(()) } else { Err(format!("{loads} values were loaded by the client").into()) }
}

async fn set(server: &Pipelined, keys: &[Arc<str>], bytes: usize) -> Result<()> {
    let value = value(bytes);
    let mut done = stream::iter(keys).map(|key| server.set(0, key, &value)).buffer_unordered(FILLING);
    while let Some(done) = done.next().await {
        done?;
    }
    Ok(())
}

async fn run<C: Contestant>(contestant: &Arc<C>, keys: &Arc<[Arc<str>]>, ask: &Ask) -> Result<()> {
    for callers in ask.callers.iter().copied() {
        let plan = Plan {
            callers,
            warm_up: Duration::from_secs_f64(ask.seconds / 4.0),
            time: Duration::from_secs_f64(ask.seconds),
            sets_percent: ask.sets_percent,
            set_bytes: ask.serve.bytes,
            server: ask.process,
        };
        let figures = load::closed(contestant, keys, plan).await?;
        let half = figures.per_second / 2.0;
        say(callers, false, figures)?;
        if ask.and_paced && callers > 1 {
            say(callers, true, load::paced(contestant, keys, plan, half).await?)?;
        }
    }
    Ok(())
}

fn say(callers: usize, is_paced: bool, figures: Figures) -> Result<()> {
    println!("{}", serde_json::to_string(&Line { callers, is_paced, figures })?);
    Ok(())
}
