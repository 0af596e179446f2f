//! Program: GitHub's REST API of one organisation behind a cache, as a single process or as a cluster.
mod around;
mod config;
mod documents;
mod http;
mod metrics;
mod pauses;
mod proxy;
mod refresh;
mod time;
mod upstream;
mod views;

use std::{error::Error, io::IsTerminal, net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use groupcache_discovery::{BoxError, DiscoveryConfig, Group, Identity, Json, Limits, Node, Prost};
use groupcache_metrics::NodeCollector;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::timeout,
};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::{
    around::{Clients, Hosts},
    config::Config,
    documents::{Document, Documents},
    http::Service,
    metrics::{Cache, Metrics},
    upstream::Upstream,
    views::{Ranking, Repositories},
};

/// Budget of a process for documents.
const CAPACITY_BYTES: u64 = 128 << 20;
/// Maximum size of one value. GitHub describes a repository in 6 KB.
const MAX_VALUE_BYTES: usize = 16 << 20;

/// Time by which a deadline exceeds that of the step that it waits for.
const MARGIN: Duration = Duration::from_secs(1);

/// Maximum time for running requests, after the node has drained.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// Maximum time to drain the node and to send its values to the other nodes, from SIGTERM on.
const LAST_VALUES: Duration = Duration::from_secs(12);

/// Maximum time for running loads, after the requests.
const LAST_LOADS: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("rest-api-cache: {}", sentence(&*e));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), BoxError> {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env()?;
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(std::io::stdout().is_terminal()).init();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let config = Config::read()?;
    let listener = listen(config.address()).await?;
    let cache = Cache::default();
    let collector = Arc::clone(&cache.0);
    let metrics = Arc::new(Metrics::new(cache));
    let upstream = Arc::new(Upstream::new(&config.target, Arc::clone(&metrics))?);

    // Without a provider in the environment, the node is the only member of its cluster.
    let node = Node::builder().identity(Identity::from_env()?).provider(DiscoveryConfig::from_env()?.provider()?);
    let start = node.limits(limits(&config)).start();
    let node = tokio::select! {
        node = start => node?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let service = service(&config, &node, upstream, metrics)?;
    let documents = service.documents.clone();
    let _ = collector.set(NodeCollector::new(&node));
    let refresher = refresh::keep(node.clone(), documents, Arc::clone(&service.cached), config.refresh());
    let refresher = tokio::spawn(refresher);
    let router = http::router(service).into_make_service_with_connect_info::<SocketAddr>();
    let (close, closed) = oneshot::channel();
    let serving = axum::serve(listener, router).with_graceful_shutdown(async { drop(closed.await) });
    let serving = tokio::spawn(serving.into_future());
    tracing::info!(address = %config.address(), target = ?config.target, "serving HTTP");

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("leaving");
    refresher.abort();
    // The drain makes /readyz answer 503. The other nodes become owners of the keys of this node and receive its values
    // before this process refuses requests.
    node.drain(LAST_VALUES).await?;
    let _ = close.send(());
    if timeout(LAST_REQUESTS, serving).await.is_err() {
        tracing::warn!("cutting off requests that still run");
    }
    node.shutdown_within(LAST_LOADS).await?;
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener, BoxError> {
    #[expect(clippy::disallowed_methods, reason = "this is the service's own port, not the cache's")]
    let bound = TcpListener::bind(address).await;
    bound.map_err(|e| format!("cannot listen on {address}, set SERVER_PORT to a free port: {e}").into())
}

/// Builds the groups and the rest of the state that the handlers share.
fn service(config: &Config, node: &Node, upstream: Arc<Upstream>, metrics: Arc<Metrics>) -> Result<Service, BoxError> {
    let documents = documents(node, config, Arc::clone(&upstream))?;
    Ok(Service {
        node: node.clone(),
        views: views(node, config, documents.clone())?,
        documents,
        cached: Arc::new(config.cached()),
        upstream,
        metrics,
        clients: Clients::new(&config.limit),
        hosts: Arc::new(Hosts::new(&config.server)),
        timeout: config.timeout(),
        // A refresh is due after one interval, and may take as long as another.
        fresh: config.refresh() * 2,
    })
}

fn limits(config: &Config) -> Limits {
    let mut limits = Limits::default();
    limits.get_deadline = config.timeout() + 2 * MARGIN;
    limits.max_value_bytes = MAX_VALUE_BYTES;
    limits
}

/// Builds the group of documents, which caches the answers of the upstream.
fn documents(node: &Node, config: &Config, upstream: Arc<Upstream>) -> Result<Group<Prost<Document>>, BoxError> {
    let refresh = config.refresh();
    let documents = node
        .group::<Prost<Document>>("documents")
        .capacity_bytes(CAPACITY_BYTES)
        // The first get in the second half of the time to live starts a refresh.
        .time_to_live(refresh * 2)
        .refresh_ahead(refresh)
        .jitter(0.0)
        // A stale document is served at once while a load is tried, whether the upstream is down, answers with garbage
        // or does not answer.
        .stale_while_revalidate(config.stale())
        .stale_if_error(config.stale())
        // A replica, or an orphaned document, lives no longer than one interval, because the owner refreshes the
        // document.
        .replica_time_to_live(refresh)
        .load_deadline(config.timeout())
        .loader(Documents(upstream));
    Ok(documents.build()?)
}

/// Builds the group of rankings, which are computed from the cached repositories.
fn views(node: &Node, config: &Config, documents: Group<Prost<Document>>) -> Result<Group<Json<Ranking>>, BoxError> {
    let repositories = Repositories { documents, path: config.repositories() };
    let views = node
        .group::<Json<Ranking>>("views")
        .capacity_bytes(CAPACITY_BYTES / 8)
        .time_to_live(config.refresh())
        .stale_if_error(config.stale())
        .replica_time_to_live(config.refresh())
        .load_deadline(config.timeout() + MARGIN)
        .loader_with(repositories, async |repositories: &Repositories, view: &str| repositories.ranked(view).await);
    Ok(views.build()?)
}

/// Returns an error and its causes on one line.
fn sentence(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    let text = causes.fold(error.to_string(), |text, cause| format!("{text} ({cause})"));
    text.replace('\n', " ")
}
