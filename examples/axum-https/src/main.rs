//! A service in axum that embeds a node: one port, HTTPS for users, mutual TLS between peers.
mod config;
mod metrics;
mod pages;
mod places;
mod primes;
mod server;
mod tls;

use std::{io::IsTerminal, process::ExitCode, sync::Arc, time::Duration};

use axum::Router;
use groupcache_discovery::{BoxError, Json, Node, mount::PeerService};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::timeout,
};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::{
    config::Config,
    metrics::Metrics,
    pages::{Prime, Service, compute},
    server::Server,
};

/// Maximum time to drain the node and to send its values to the other nodes, from SIGTERM on.
const LAST_VALUES: Duration = Duration::from_secs(10);
/// Maximum time for running requests of users, after the values.
const LAST_REQUESTS: Duration = Duration::from_secs(20);
/// Maximum time for running loads, after the requests.
const LAST_LOADS: Duration = Duration::from_secs(1);
/// Maximum time for connections to close, after the loads.
const LAST_CONNECTIONS: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let causes = std::iter::successors(e.source(), |cause| (*cause).source());
            let text = causes.fold(e.to_string(), |text, cause| format!("{text} ({cause})"));
            eprintln!("axum-https: {}", text.replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), BoxError> {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env()?;
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(std::io::stdout().is_terminal()).init();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let config = Config::from_env()?;
    let (address, name) = (config.address(), config.identity.id().to_string());
    let mutual_tls = config.files.mutual()?;
    let server_tls = config.files.follow().await?;
    let listener = server::listen(address).await?;

    // The node opens no port of its own, because the router also receives the requests of peers.
    let peers = PeerService::default();
    let node = Node::builder().identity(config.identity).provider(config.peers);
    let node = node.mutual_tls(mutual_tls).mount(&peers).start().await?;
    let primes = node
        .group::<Json<Prime>>("primes")
        .capacity_bytes(16 << 20)
        .loader_with(name, async |name: &String, n: &str| compute(name, n).await)
        .build()?;

    let running = watch::Sender::new(());
    let metrics = Arc::new(Metrics::new(&node));
    let pages = pages::router(Service { node: node.clone(), primes, metrics, running: running.clone() });
    let app = Router::new().merge(pages).route_service(PeerService::PATH, peers);
    let server = Server::start(listener, server_tls, app, config.max_connections);
    tracing::info!(%address, "serving HTTPS");

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("leaving");
    // The drain makes /readyz answer 503. The other nodes become owners of the keys of this node and receive its values
    // through this server, so the server stops accepting connections only afterwards. Running requests are answered.
    node.drain(LAST_VALUES).await?;
    let connections = server.close().await;
    if timeout(LAST_REQUESTS, running.closed()).await.is_err() {
        tracing::warn!("cutting off requests that still run");
    }
    node.shutdown_within(LAST_LOADS).await?;
    let _ = timeout(LAST_CONNECTIONS, connections).await;
    Ok(())
}
