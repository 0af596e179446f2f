//! Service of several processes with one cache. Each row of the database is loaded once, whichever process receives the
//! request.
//!
//! The service is a library, so that other examples run it with other providers.
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

/// Budget of a process for entries.
const CAPACITY_BYTES: u64 = 3 << 20;
/// Time to live of an entry.
const TIME_TO_LIVE: Duration = Duration::from_secs(60);

/// Maximum time for running requests, after the node has drained.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// Maximum time to drain the node and to send its values to the other nodes, from SIGTERM on.
const LAST_VALUES: Duration = Duration::from_secs(12);

/// Maximum time for running loads, after the requests.
const LAST_LOADS: Duration = Duration::from_secs(5);

/// Runs one process of the service: reads the variables of the environment, serves until a signal arrives, and leaves.
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
    let router = http::router(Service::new(node.clone(), data)).merge(checks);
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
    // The drain makes /readyz answer 503. The other nodes become owners of the keys of this node and receive its values
    // before this process refuses requests.
    health.is_ready(false).await;
    node.drain(LAST_VALUES).await?;
    health.close().await;
    let _ = close.send(());
    if timeout(LAST_REQUESTS, serving).await.is_err() {
        tracing::warn!("cutting off requests that still run");
    }
    node.shutdown_within(LAST_LOADS).await?;
    Ok(())
}

fn log() -> Result<(), BoxError> {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env();
    let filter = filter.map_err(|e| format!("RUST_LOG cannot be read, set it to a level such as info: {e}"))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(std::io::stdout().is_terminal()).init();
    Ok(())
}

/// Returns an error and its causes on one line.
fn sentence(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    let text = causes.fold(error.to_string(), |text, cause| format!("{text} ({cause})"));
    text.replace('\n', " ")
}
