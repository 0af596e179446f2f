//! Proxy: sends requests for paths that are not cached to the upstream, with the token of this service.
use axum::{
    body::Body,
    extract::Request,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH,
            LAST_MODIFIED, LINK, LOCATION, REFERRER_POLICY, RETRY_AFTER, VARY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
        },
    },
    response::Response,
};
use tokio::time::timeout;

use crate::{
    http::{Service, failure},
    upstream::{Answer, Failure},
};

/// Headers of a client that the upstream receives. Cookies and credentials are not among them.
const HEARD: [HeaderName; 3] = [ACCEPT, IF_NONE_MATCH, IF_MODIFIED_SINCE];

/// Headers of the upstream that the client receives.
const TOLD: [HeaderName; 11] = [
    CONTENT_TYPE,
    ETAG,
    LAST_MODIFIED,
    CACHE_CONTROL,
    VARY,
    RETRY_AFTER,
    LOCATION,
    // Browsers must treat an answer here as they would treat it there.
    X_CONTENT_TYPE_OPTIONS,
    CONTENT_SECURITY_POLICY,
    X_FRAME_OPTIONS,
    REFERRER_POLICY,
];
/// Prefix of the headers about the rate limit, which the client receives too.
const LIMITS: &str = "x-ratelimit-";

pub(crate) async fn proxy(service: &Service, request: Request) -> Response {
    let mut headers = HeaderMap::new();
    for name in HEARD {
        if let Some(value) = request.headers().get(&name) {
            headers.insert(name, value.clone());
        }
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let asked = timeout(service.timeout, service.upstream.ask(request.method().clone(), path, headers)).await;
    match asked {
        Ok(Ok(answer)) => told(service, answer),
        Ok(Err(Failure::Spent(pause))) => {
            let mut response = failure(StatusCode::SERVICE_UNAVAILABLE, &Failure::Spent(pause).to_string());
            response.headers_mut().insert(RETRY_AFTER, (pause.as_secs() + 1).into());
            response
        }
        Ok(Err(e)) => failure(StatusCode::BAD_GATEWAY, &crate::sentence(&e)),
        Err(_) => failure(StatusCode::GATEWAY_TIMEOUT, "the upstream does not answer in time"),
    }
}

fn told(service: &Service, answer: Answer) -> Response {
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = answer.status;
    for (name, value) in &answer.headers {
        if TOLD.contains(name) || name.as_str().starts_with(LIMITS) {
            response.headers_mut().append(name, value.clone());
        }
    }
    // Links to the upstream become links to this service.
    for name in [LINK, LOCATION] {
        let text = answer.headers.get(&name).and_then(|value| value.to_str().ok());
        let text = text.map(|text| service.upstream.make_relative(text));
        if let Some(value) = text.and_then(|text| HeaderValue::try_from(text).ok()) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
