//! HTTP: routes and answers of the service.
use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    Router,
    extract::{Path, State, rejection::PathRejection},
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use groupcache_discovery::{BoxError, Error, Group, Json, Node, discovery::NodeState};
use groupcache_metrics::{
    NodeCollector,
    prometheus_client::{encoding::text, registry::Registry},
};
use serde::Serialize;
use tokio::net::TcpListener;

use crate::database::Data;

/// Content type of the metrics.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Shared state of the handlers.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) node: Node,
    pub(crate) data: Group<Json<Data>>,
    /// Metrics of the node and of its group, for Prometheus.
    pub(crate) metrics: Arc<Registry>,
}

impl Service {
    pub(crate) fn new(node: Node, data: Group<Json<Data>>) -> Self {
        let mut metrics = Registry::default();
        metrics.register_collector(Box::new(NodeCollector::new(&node)));
        Self { node, data, metrics: Arc::new(metrics) }
    }
}

/// Listens on an address. `[::]` is every address of both families, and of IPv4 alone where there is no IPv6.
#[expect(clippy::disallowed_methods, reason = "this is the service's own port, not the cache's")]
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, BoxError> {
    let mut bound = TcpListener::bind(address).await;
    if let Some(plain) = bound.as_ref().err().and_then(|e| without_ipv6(address, e.kind())) {
        bound = TcpListener::bind(plain).await;
    }
    bound.map_err(|e| format!("cannot listen for HTTP on {address}, set HTTP_ADDR to a free port: {e}").into())
}

/// Returns the address that stands for `[::]` after an error that does not concern the port.
fn without_ipv6(address: SocketAddr, error: ErrorKind) -> Option<SocketAddr> {
    let is_of_port = matches!(error, ErrorKind::AddrInUse | ErrorKind::PermissionDenied);
    let is_any = address.ip() == Ipv6Addr::UNSPECIFIED;
    (is_any && !is_of_port).then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
}

pub(crate) fn router(service: Service) -> Router {
    Router::new()
        .route("/data/{guid}", get(data))
        .route("/data/", get(no_guid))
        .route("/stats", get(stats))
        .route("/stats/{cache}", get(cache_stats))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .fallback(async || failure(StatusCode::NOT_FOUND, "there is no such page, ask for /data/{guid} or /stats"))
        .with_state(service)
}

async fn data(State(service): State<Service>, guid: Result<Path<String>, PathRejection>) -> Response {
    match guid {
        Ok(Path(guid)) => answer(&service, &guid).await,
        Err(e) => failure(StatusCode::BAD_REQUEST, &e.body_text()),
    }
}

async fn no_guid(State(service): State<Service>) -> Response {
    answer(&service, "").await
}

async fn answer(service: &Service, guid: &str) -> Response {
    match service.data.get(guid).await {
        Ok(data) => axum::Json(&*data).into_response(),
        Err(e) => refusal(&e),
    }
}

async fn metrics(State(service): State<Service>) -> Response {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = text::encode(&mut text, &service.metrics);
    ([(CONTENT_TYPE, OPENMETRICS)], text).into_response()
}

/// Answers 200 while the node owns its share of the keys, and 503 while it joins or drains.
async fn ready(State(service): State<Service>) -> Response {
    match service.node.state() {
        NodeState::Ready => "ready\n".into_response(),
        state => failure(StatusCode::SERVICE_UNAVAILABLE, &format!("this node is {state}")),
    }
}

/// Returns the HTTP response for an error of the cache.
fn refusal(error: &Error) -> Response {
    let status = match () {
        () if error.is_not_found() => StatusCode::NOT_FOUND,
        () if error.is_bad_key() => StatusCode::BAD_REQUEST,
        () if error.is_timeout() => StatusCode::GATEWAY_TIMEOUT,
        () if error.is_overloaded() || error.is_closed() => StatusCode::SERVICE_UNAVAILABLE,
        () => StatusCode::BAD_GATEWAY,
    };
    if status.is_server_error() {
        tracing::warn!(%status, error = %crate::sentence(error), "a request failed");
    }
    failure(status, &error.to_string())
}

fn failure(status: StatusCode, error: &str) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        error: &'a str,
    }
    let mut response = (status, axum::Json(Body { error })).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

type Counters = BTreeMap<&'static str, u64>;

#[derive(Serialize)]
struct Stats {
    node: NodeStats,
    members: Vec<Member>,
    groups: BTreeMap<String, GroupStats>,
}

#[derive(Serialize)]
struct NodeStats {
    id: String,
    address: SocketAddr,
    state: String,
    counters: Counters,
}

#[derive(Serialize)]
struct Member {
    id: String,
    state: String,
    owns: bool,
    is_reachable: bool,
    is_me: bool,
}

#[derive(Serialize)]
struct GroupStats {
    /// Number of connected peers that have the group.
    peers: usize,
    entries: usize,
    bytes: u64,
    capacity_bytes: u64,
    counters: Counters,
}

async fn stats(State(Service { node, data, .. }): State<Service>) -> Response {
    let members = node.members().into_iter().map(|member| Member {
        id: member.id.to_string(),
        state: member.state.to_string(),
        owns: member.owns,
        is_reachable: member.reachable,
        is_me: member.local,
    });
    let group = GroupStats {
        peers: node.peers_with_group(data.name()),
        entries: data.inspect().entries(),
        bytes: data.inspect().bytes(),
        capacity_bytes: data.inspect().capacity_bytes(),
        counters: data.stats().iter().collect(),
    };
    let stats = Stats {
        members: members.collect(),
        groups: BTreeMap::from([(data.name().to_owned(), group)]),
        node: NodeStats {
            id: node.id().to_string(),
            address: node.address(),
            state: node.state().to_string(),
            counters: node.stats().iter().collect(),
        },
    };
    axum::Json(stats).into_response()
}

/// Counters of one part of a process's cache: the entries that it owns, or its replicas.
#[derive(Serialize)]
struct CacheStats {
    /// Number of entries in memory.
    items: usize,
    /// Weight of the entries in memory.
    bytes: u64,
    /// Number of gets that looked into this part.
    gets: u64,
    /// Number of gets that this part answered.
    hits: u64,
}

/// Answers with the counters of the entries that this process owns (`main`), or of its replicas of hot values (`hot`).
async fn cache_stats(
    State(Service { data, .. }): State<Service>,
    cache: Result<Path<String>, PathRejection>,
) -> Response {
    let is_hot = match cache.as_ref().map(|Path(name)| name.as_str()) {
        Ok("main") => false,
        Ok("hot") => true,
        _ => return failure(StatusCode::BAD_REQUEST, "there is no such cache, ask for /stats/main or /stats/hot"),
    };
    let held: Vec<_> =
        data.inspect().local_entries(usize::MAX).into_iter().filter(|entry| entry.replica == is_hot).collect();
    let stats = data.stats();
    let main_hits = stats.hits.saturating_sub(stats.replica_hits);
    let (gets, hits) =
        if is_hot { (stats.gets.saturating_sub(main_hits), stats.replica_hits) } else { (stats.gets, main_hits) };
    let bytes = held.iter().map(|entry| entry.bytes).sum();
    axum::Json(CacheStats { items: held.len(), bytes, gets, hits }).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that only `[::]` is replaced, and only where IPv6 is missing.
    #[test]
    fn any_address_is_of_ipv4_where_ipv6_is_missing() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(without_ipv6(at("[::]:3000"), ErrorKind::Unsupported), Some(at("0.0.0.0:3000")));
        assert_eq!(without_ipv6(at("[::]:3000"), ErrorKind::AddrInUse), None);
        assert_eq!(without_ipv6(at("[::1]:3000"), ErrorKind::Unsupported), None);
        assert_eq!(without_ipv6(at("0.0.0.0:3000"), ErrorKind::AddrNotAvailable), None);
    }

    /// Checks that `[::]` is reached over IPv4, and over IPv6 where there is IPv6.
    #[expect(clippy::disallowed_methods, reason = "users connect to the port of the service")]
    #[tokio::test]
    async fn any_address_is_reached_in_both_families() {
        let listener = listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        if listener.local_addr().unwrap().is_ipv6() {
            tokio::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
        }
    }
}
