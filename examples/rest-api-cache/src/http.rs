//! HTTP: routes and answers of the service.
use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Path, Request, State},
    http::{
        HeaderName, HeaderValue, Method, StatusCode,
        header::{AGE, ALLOW, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::{from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use groupcache_discovery::{Error, Group, Json, Node, Prost, discovery::NodeState};
use serde_json::json;

use crate::{
    around::{Clients, Hosts, count, limit, name, only_known_hosts},
    documents::Document,
    metrics::Metrics,
    proxy::proxy,
    time::now_us,
    upstream::Upstream,
    views::{Ranking, View},
};

const X_CACHE: HeaderName = HeaderName::from_static("x-cache");
const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// Shared state of the handlers.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) node: Node,
    pub(crate) documents: Group<Prost<Document>>,
    pub(crate) views: Group<Json<Ranking>>,
    /// Paths that are cached.
    pub(crate) cached: Arc<BTreeSet<String>>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) hosts: Arc<Hosts>,
    /// Maximum time for an answer of the upstream.
    pub(crate) timeout: Duration,
    /// Age above which a cached answer is reported as stale.
    pub(crate) fresh: Duration,
}

/// Name of the endpoint that has answered, for the metrics.
#[derive(Clone)]
pub(crate) struct Endpoint(pub(crate) String);

pub(crate) fn router(service: Service) -> Router {
    let limited = Router::new()
        .route("/view/top/{count}/{view}", get(view))
        .fallback(any(rest))
        .layer(from_fn_with_state(Arc::clone(&service.clients), limit));
    let probes = Router::new().route("/healthcheck", get(async || "ok\n")).route("/readyz", get(ready));
    Router::new()
        .route("/metrics", get(metrics))
        .merge(limited)
        .layer(from_fn_with_state(Arc::clone(&service.hosts), only_known_hosts))
        // Probes name the address of a pod, and the answers say nothing of the upstream.
        .merge(probes)
        .layer(from_fn_with_state(Arc::clone(&service.metrics), count))
        .layer(from_fn(name))
        .with_state(service)
}

/// Answers 200 while the node owns its share of the keys, and 503 while it joins or drains.
async fn ready(State(service): State<Service>) -> Response {
    match service.node.state() {
        NodeState::Ready => "ready\n".into_response(),
        state => failure(StatusCode::SERVICE_UNAVAILABLE, &format!("this node is {state}")),
    }
}

async fn metrics(State(service): State<Service>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], service.metrics.text()).into_response()
}

async fn view(State(service): State<Service>, Path((count, view)): Path<(String, String)>) -> Response {
    let Some(view) = View::named(&view) else {
        let names = View::ALL.map(View::name).join(", ");
        return failure(StatusCode::NOT_FOUND, &format!("there is no such view, ask for one of {names}"));
    };
    let Some(count) = count.parse().ok().filter(|count| *count > 0) else {
        return (StatusCode::BAD_REQUEST, "count incorrect in request").into_response();
    };
    let began = now_us();
    match service.views.get(view.name()).await {
        Ok(ranking) => match ranking.top(count) {
            Ok(rows) => answer(&service, rows, began, ranking.checked_us, ranking.made_us),
            Err(e) => failure(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
        },
        Err(e) => refusal(&e),
    }
}

/// Answers a path from the cache if it is a cached one, otherwise from the upstream.
async fn rest(State(service): State<Service>, request: Request) -> Response {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        // Other methods would let every client write with the token of this service.
        let text = "a cache accepts no writes: use GET or HEAD";
        return ([(ALLOW, "GET, HEAD")], failure(StatusCode::METHOD_NOT_ALLOWED, text)).into_response();
    }
    let uri = request.uri();
    let path = uri.path();
    if uri.query().is_none() && service.cached.contains(path) {
        let began = now_us();
        let mut response = match service.documents.get(path).await {
            Ok(document) => answer(&service, document.body(), began, document.checked_us, document.checked_us),
            Err(e) => refusal(&e),
        };
        response.extensions_mut().insert(Endpoint(path.to_owned()));
        return response;
    }
    let mut response = proxy(&service, request).await;
    response.extensions_mut().insert(Endpoint("proxy".to_owned()));
    response
}

/// Builds an answer with a JSON document, its age and the state of the cache.
///
/// `checked_us` is the time of the last answer of the upstream, perhaps to another process. `made_us` is the time at
/// which the cached value was made, and `began_us` the time at which the request began: a value made later is a miss.
fn answer(
    service: &Service,
    body: impl Into<axum::body::Body>,
    began_us: u64,
    checked_us: u64,
    made_us: u64,
) -> Response {
    let age = Duration::from_micros(now_us().saturating_sub(checked_us));
    let from = match () {
        () if made_us >= began_us => "miss",
        () if age > service.fresh => "stale",
        () => "hit",
    };
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(AGE, age.as_secs().into());
    headers.insert(X_CACHE, HeaderValue::from_static(from));
    response
}

/// Returns the HTTP response for an error of the cache.
fn refusal(error: &Error) -> Response {
    let status = match () {
        () if error.is_not_found() => StatusCode::NOT_FOUND,
        () if error.is_timeout() => StatusCode::GATEWAY_TIMEOUT,
        () if error.is_overloaded() || error.is_closed() => StatusCode::SERVICE_UNAVAILABLE,
        () => StatusCode::BAD_GATEWAY,
    };
    failure(status, &crate::sentence(error))
}

pub(crate) fn failure(status: StatusCode, error: &str) -> Response {
    let mut response = (status, axum::Json(json!({ "error": error }))).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
