//! Upstream: sends requests to GitHub, or to the host that the configuration names, and obeys its rate limit.
use std::{fmt, sync::Arc, time::Duration};

use axum::http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode, Uri,
    header::{ACCEPT, AUTHORIZATION, LINK, USER_AGENT},
    uri::Authority,
};
use bytes::Bytes;
use groupcache_discovery::BoxError;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};

use crate::{
    config::{Scheme, Target},
    metrics::Metrics,
    pauses::{Pauses, number},
};

/// Maximum size of an answer. A page of 100 repositories has less than 1 MiB.
const MAX_BYTES: usize = 8 << 20;

/// Answer of the upstream.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Reason for a missing answer.
#[derive(Debug)]
pub(crate) enum Failure {
    Unreachable(BoxError),
    /// The rate limit is spent for this time.
    Spent(Duration),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(_) => f.write_str("the upstream cannot be reached, or its answer broke off"),
            Self::Spent(pause) => write!(f, "the rate limit of the upstream is spent for {} s more", pause.as_secs()),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreachable(cause) => Some(&**cause),
            Self::Spent(_) => None,
        }
    }
}

pub(crate) struct Upstream {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    scheme: &'static str,
    authority: Authority,
    authorization: Option<HeaderValue>,
    pauses: Pauses,
    metrics: Arc<Metrics>,
}

impl Upstream {
    pub(crate) fn new(target: &Target, metrics: Arc<Metrics>) -> Result<Self, BoxError> {
        let connector = HttpsConnectorBuilder::new();
        let (scheme, connector) = match target.scheme {
            Scheme::Https => {
                let connector = connector.with_provider_and_native_roots(ring::default_provider());
                (
                    "https",
                    connector
                        .map_err(|e| format!("the system has no trusted authorities, install ca-certificates: {e}"))?,
                )
            }
            Scheme::Http => {
                let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
                let config = config.with_safe_default_protocol_versions()?;
                let no_roots = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
                ("http", connector.with_tls_config(no_roots))
            }
        };
        let client = Client::builder(TokioExecutor::new()).build(connector.https_or_http().enable_http1().build());
        let authorization = Some(&target.token.0).filter(|token| !token.is_empty()).map(|token| {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| "GITHUB_API_TOKEN, or target.token, has characters that a header cannot carry")?;
            value.set_sensitive(true);
            Ok::<_, BoxError>(value)
        });
        let (authorization, authority) = (authorization.transpose()?, target.url.clone());
        Ok(Self { client, scheme, authority, authorization, pauses: Pauses::default(), metrics })
    }

    /// Sends a request and returns the answer. The request has no time-out of its own, so the caller must have one.
    ///
    /// # Errors
    /// [`Failure::Spent`] without a request while the rate limit of the path is spent, otherwise [`Failure::Unreachable`].
    pub(crate) async fn ask(&self, method: Method, path: &str, headers: HeaderMap) -> Result<Answer, Failure> {
        if let Some(pause) = self.pauses.of(path) {
            return Err(Failure::Spent(pause));
        }
        let asked = self.metrics.upstream();
        let answer = self.exchange(method, path, headers).await.map_err(Failure::Unreachable)?;
        asked.ends(answer.status, number(&answer.headers, "x-ratelimit-remaining"));
        self.pauses.heed(path, answer.status, &answer.headers);
        Ok(answer)
    }

    async fn exchange(&self, method: Method, path: &str, headers: HeaderMap) -> Result<Answer, BoxError> {
        let uri = Uri::builder().scheme(self.scheme).authority(self.authority.clone()).path_and_query(path).build()?;
        let mut request = Request::builder().method(method).uri(uri).body(Empty::new())?;
        *request.headers_mut() = headers;
        let own = request.headers_mut();
        own.insert(USER_AGENT, HeaderValue::from_static("groupcache-rest-api-cache"));
        own.entry(ACCEPT).or_insert(HeaderValue::from_static("application/vnd.github+json"));
        if let Some(authorization) = &self.authorization {
            own.insert(AUTHORIZATION, authorization.clone());
        }
        let (head, body) = self.client.request(request).await?.into_parts();
        let body = Limited::new(body, MAX_BYTES).collect().await?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    /// Returns the path of the next page, if there is one.
    ///
    /// # Errors
    /// When the next page is at another host, because the token is for this upstream only.
    pub(crate) fn next_page(&self, headers: &HeaderMap) -> Result<Option<String>, BoxError> {
        let links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
        let mut links = links.flat_map(|value| value.split(',')).filter_map(|link| link.trim().split_once('>'));
        let next = links.find(|(_, rest)| rest.split(';').any(|part| part.trim() == "rel=\"next\""));
        let Some((url, _)) = next else { return Ok(None) };
        let path = url.strip_prefix('<').and_then(|url| self.relative(url));
        path.map(Some).ok_or_else(|| "the next page is not a page of the upstream".into())
    }

    /// Returns the path of a URL of the upstream, or `None` for another URL.
    pub(crate) fn relative(&self, url: &str) -> Option<String> {
        let rest = url.strip_prefix(self.scheme)?.strip_prefix("://")?.strip_prefix(self.authority.as_str())?;
        rest.starts_with('/').then(|| rest.to_owned())
    }

    /// Returns a text of the upstream with its own URLs made relative, so that they refer to this service.
    pub(crate) fn make_relative(&self, text: &str) -> String {
        text.replace(&format!("{}://{}/", self.scheme, self.authority), "/")
    }
}
