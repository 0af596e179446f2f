//! A service whose processes share one cache: each row of the database is loaded once, whichever process is asked.
//!
//! A library, so that other examples run the same service with other providers.
mod config;
mod database;
mod health;
mod http;
mod stop;

use std::{error::Error, io::IsTerminal, process::ExitCode, time::Duration};

use groupcache_discovery::{BoxError, Json, Node};
use tokio::{sync::oneshot, time::timeout};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::{
    config::Config,
    database::{Data, Database},
    health::Health,
    http::Service,
    stop::Stop,
};

/// What the entries of a process may take, and how long they are served.
const CAPACITY_BYTES: u64 = 3 << 20;
const TIME_TO_LIVE: Duration = Duration::from_secs(60);

/// How long the requests that run may take once the process is asked to end.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// How long the others may take after that to take over what this process has in memory, and the last loads.
const LAST_VALUES: Duration = Duration::from_secs(15);

/// What each process does, from the variables of its environment until a signal ends it.
#[tokio::main]
pub async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cluster: {}", sentence(&*e));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), BoxError> {
    log()?;
    let mut stop = Stop::listen()?;
    let config = Config::from_env()?;
    let database = Database::open(&config.database).await?;
    let listener = http::listen(config.http).await?;
    let start = Node::builder().identity(config.identity).provider(config.provider).start();
    let node = tokio::select! {
        node = start => node?,
        () = stop.asked() => return Ok(()),
    };
    let data = node
        .group::<Json<Data>>("data")
        .capacity_bytes(CAPACITY_BYTES)
        .time_to_live(TIME_TO_LIVE)
        .load_deadline(config.backend_timeout)
        .loader_with(database, async |database: &Database, guid: &str| database.fetch(guid).await)
        .build()?;

    let (close, closed) = oneshot::channel();
    let (health, checks) = Health::new().await;
    let router = http::router(Service { node: node.clone(), data }).merge(checks);
    let serving = axum::serve(listener, router).with_graceful_shutdown(async { drop(closed.await) });
    let serving = tokio::spawn(serving.into_future());
    tracing::info!(address = %config.http, "serving HTTP");

    let is_ready = tokio::select! {
        ready = node.ready(1) => ready.is_ok(),
        () = stop.asked() => false,
    };
    if is_ready {
        health.is_ready(true).await;
        stop.asked().await;
    }
    tracing::info!("leaving");
    // From here on /readyz says 503. Others own our keys before we refuse requests, and begin to take over our values.
    health.is_ready(false).await;
    node.drain().await?;
    health.close().await;
    let _ = close.send(());
    if timeout(LAST_REQUESTS, serving).await.is_err() {
        tracing::warn!("cutting off requests that still run");
    }
    node.drain_and_shutdown(LAST_VALUES).await?;
    Ok(())
}

fn log() -> Result<(), BoxError> {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env();
    let filter = filter.map_err(|e| format!("RUST_LOG cannot be read, set it to a level such as info: {e}"))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(std::io::stdout().is_terminal()).init();
    Ok(())
}

/// An error and its causes on one line.
fn sentence(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    let text = causes.fold(error.to_string(), |text, cause| format!("{text} ({cause})"));
    text.replace('\n', " ")
}
