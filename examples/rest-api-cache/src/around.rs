//! Middleware: gives each request an id, counts and logs it, and limits the rate of each client.
use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::{ConnectInfo, MatchedPath, Request, State},
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{HOST, RETRY_AFTER},
        uri::Authority,
    },
    middleware::Next,
    response::Response,
};
use governor::{
    DefaultKeyedRateLimiter, Quota,
    clock::{Clock, DefaultClock},
};
use tokio::time::{Instant, interval};

use crate::{
    config::{Limit, Server},
    http::{Endpoint, failure},
    metrics::Metrics,
};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Maximum length of a request id that a client may set.
const MAX_ID_BYTES: usize = 64;

/// Interval between two removals of clients that have their full burst again.
const FORGET: Duration = Duration::from_secs(10);

/// Id of a request, which is also in the log and in the answer.
#[derive(Clone)]
struct RequestId(HeaderValue);

/// Gives a request an id, or keeps the id that the client has set if it is plain and short.
pub(crate) async fn name(mut request: Request, next: Next) -> Response {
    let given = request.headers().get(&X_REQUEST_ID).filter(|id| {
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        (1..=MAX_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(is_plain)
    });
    let made = || HeaderValue::try_from(format!("{:016x}", fastrand::u64(..)));
    let id = given.cloned().map_or_else(made, Ok).unwrap_or(HeaderValue::from_static("none"));
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    response.headers_mut().insert(X_REQUEST_ID, id);
    response
}

/// Counts a request and logs it without its path, because the path is a key of the cache.
pub(crate) async fn count(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route = request.extensions().get().map(|route: &MatchedPath| route.as_str().to_owned());
    let id = request.extensions().get().map(|RequestId(id)| id.clone());
    let response = next.run(request).await;
    let (took, status) = (began.elapsed(), response.status());
    let answered = response.extensions().get().map(|Endpoint(endpoint)| endpoint.clone());
    let kind = match (&route, &answered) {
        (Some(route), _) => route.as_str(),
        (None, Some(endpoint)) if endpoint == "proxy" => "proxy",
        (None, Some(_)) => "cached",
        (None, None) => "none",
    };
    let (id, ms) = (id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default(), took.as_millis());
    if status.is_server_error() {
        tracing::warn!(id, kind, status = status.as_u16(), ms, "a request failed");
    } else {
        tracing::debug!(id, kind, status = status.as_u16(), ms, "answered");
    }
    metrics.request(answered.or(route).unwrap_or_else(|| "none".to_owned()), status, took);
    response
}

/// Names by which the service may be asked.
///
/// A page of a foreign site can make a browser on this machine ask a service on a loopback address under the name of that
/// site, and read the answers (DNS rebinding). The answers come with the token of this service.
pub(crate) struct Hosts {
    is_loopback: bool,
    names: Vec<String>,
}

impl Hosts {
    pub(crate) fn new(server: &Server) -> Self {
        Self { is_loopback: server.address.is_loopback(), names: server.hosts.clone() }
    }

    /// Returns whether a request for this host is answered. Without names, only a service on a loopback address refuses any.
    fn knows(&self, host: &str) -> bool {
        let is_local = || {
            let address = host.trim_start_matches('[').trim_end_matches(']').parse();
            let name = host.to_ascii_lowercase();
            name == "localhost" || name.ends_with(".localhost") || address.is_ok_and(|ip: IpAddr| ip.is_loopback())
        };
        let is_named = self.names.iter().any(|name| name.eq_ignore_ascii_case(host));
        is_named || if self.is_loopback { is_local() } else { self.names.is_empty() }
    }
}

/// Refuses a request for a host that is not a name of the service.
pub(crate) async fn only_known_hosts(State(hosts): State<Arc<Hosts>>, request: Request, next: Next) -> Response {
    let named = request.headers().get(HOST).and_then(|host| host.to_str().ok()?.parse().ok());
    let host = request.uri().authority().cloned().or(named);
    let takes_any = !hosts.is_loopback && hosts.names.is_empty();
    if host.map_or(takes_any, |host: Authority| hosts.knows(host.host())) {
        return next.run(request).await;
    }
    failure(
        StatusCode::MISDIRECTED_REQUEST,
        "this service has another name: ask for localhost, or name the host in SERVER_HOSTS",
    )
}

/// Recent request rates of clients.
pub(crate) struct Clients(DefaultKeyedRateLimiter<IpAddr>);

impl Clients {
    pub(crate) fn new(limit: &Limit) -> Arc<Self> {
        let clients = Arc::new(Self(DefaultKeyedRateLimiter::keyed(
            Quota::per_second(limit.per_second).allow_burst(limit.burst),
        )));
        let weak = Arc::downgrade(&clients);
        tokio::spawn(async move {
            let mut turn = interval(FORGET);
            while let Some(Self(clients)) = weak.upgrade().as_deref() {
                clients.retain_recent();
                clients.shrink_to_fit();
                turn.tick().await;
            }
        });
        clients
    }
}

/// Returns the client of an address, to which a limit applies: the address itself, or in IPv6 its network of 64 bits,
/// because a household has a whole network.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

/// Refuses a request of a client that exceeds the limit.
pub(crate) async fn limit(State(clients): State<Arc<Clients>>, request: Request, next: Next) -> Response {
    let address = request.extensions().get().map(|ConnectInfo(address): &ConnectInfo<SocketAddr>| address.ip());
    let Some(address) = address else { return next.run(request).await };
    match clients.0.check_key(&client(address)) {
        Ok(()) => next.run(request).await,
        Err(until) => {
            let pause = until.wait_time_from(DefaultClock::default().now());
            let mut response =
                failure(StatusCode::TOO_MANY_REQUESTS, "too many requests: try again after the time in Retry-After");
            response.headers_mut().insert(RETRY_AFTER, (pause.as_secs() + 1).into());
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Hosts, client};

    #[test]
    fn addresses_of_one_ipv6_network_are_one_client() {
        let of = |text: &str| client(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("192.0.2.1"), "192.0.2.1");
        assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.1");
    }

    #[test]
    fn foreign_host_is_known_only_by_name_or_beyond_loopback() {
        let knows = |is_loopback, names: &[&str], host| {
            Hosts { is_loopback, names: names.iter().map(ToString::to_string).collect() }.knows(host)
        };
        for host in ["localhost", "LocalHost", "a.localhost", "127.0.0.1", "127.9.9.9", "[::1]"] {
            assert!(knows(true, &[], host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "192.0.2.1", "[2001:db8::1]", "notlocalhost"] {
            assert!(!knows(true, &[], host) && knows(false, &[], host) && knows(true, &[host], host), "{host}");
            assert!(!knows(false, &["cache.example"], host), "{host}");
        }
    }
}
