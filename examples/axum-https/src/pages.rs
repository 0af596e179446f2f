//! Pages of the service, in axum.
//!
//! A service without a cache has the same pages. The cache adds a get in front of the computation, its counters in
//! `/metrics`, and the state of the node in `/readyz`.
use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use groupcache_discovery::{Error, Group, Json, Node, discovery::NodeState};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{metrics::Metrics, primes};

/// Largest `n` that a page accepts. A debug build computes it in some seconds.
const MAX: u32 = 300_000;

/// Answer of a page, which is also the value in the cache.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Prime {
    n: u32,
    prime: u32,
    /// Name of the node that computed the prime.
    computed_by: String,
}

/// Computes the n-th prime number. The group uses this function as its loader.
pub(crate) async fn compute(node: &str, n: &str) -> Result<Prime, Box<dyn std::error::Error + Send + Sync>> {
    let n = n.parse()?;
    #[expect(clippy::disallowed_methods, reason = "the computation blocks its thread, and no simulation runs it")]
    let prime = tokio::task::spawn_blocking(move || primes::nth(n)).await?;
    Ok(Prime { n, prime, computed_by: node.to_owned() })
}

/// Shared state of the handlers.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) node: Node,
    pub(crate) primes: Group<Json<Prime>>,
    pub(crate) metrics: Arc<Metrics>,
    /// Counter of running requests. Each request holds a receiver, and `closed` completes when no receiver is left.
    pub(crate) running: watch::Sender<()>,
}

/// Builds the router of the users' pages.
pub(crate) fn router(service: Service) -> Router {
    Router::new()
        .route("/", get(async || "ask for /primes/1000\n"))
        .route("/primes/{n}", get(prime))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .layer(middleware::from_fn_with_state(service.clone(), count))
        .with_state(service)
}

async fn prime(State(service): State<Service>, Path(n): Path<String>) -> Response {
    // The key is the parsed number, so that `7`, `07` and `+7` share one entry.
    let Some(n) = n.parse().ok().filter(|n| (1..=MAX).contains(n)) else {
        return (StatusCode::BAD_REQUEST, format!("ask for a number from 1 to {MAX}\n")).into_response();
    };
    match service.primes.get(&n.to_string()).await {
        Ok(prime) => axum::Json(&*prime).into_response(),
        Err(e) => (status(&e), format!("{e}\n")).into_response(),
    }
}

/// Returns the HTTP status for an error of the cache.
fn status(error: &Error) -> StatusCode {
    match () {
        () if error.is_timeout() => StatusCode::GATEWAY_TIMEOUT,
        () if error.is_overloaded() || error.is_closed() => StatusCode::SERVICE_UNAVAILABLE,
        () => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

async fn ready(State(service): State<Service>) -> Response {
    match service.node.state() {
        NodeState::Ready => "ready\n".into_response(),
        state => (StatusCode::SERVICE_UNAVAILABLE, format!("this node is {state}\n")).into_response(),
    }
}

async fn metrics(State(service): State<Service>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], service.metrics.text()).into_response()
}

/// Counts a request by page and status, and marks it as running until its page has made the response.
async fn count(State(service): State<Service>, request: Request, next: Next) -> Response {
    let _running = service.running.subscribe();
    let page = request.extensions().get().map_or("none", axum::extract::MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    service.metrics.count(page, response.status());
    response
}
