//! Fake upstream: a server that answers as GitHub does, and fails on demand.
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, mpsc},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::sleep};

use super::recorded::documents;

/// Kind of answers of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Answers as GitHub does.
    Well,
    /// Answers after one second.
    Slow,
    /// Status 500, with a body that is a valid list.
    Failing,
    /// No answer at all.
    Silent,
    /// Status 200, with half a document.
    Garbled,
    /// Status 403, with a rate limit that is spent for this number of seconds.
    Spent(u64),
    /// Links to the next page that refer to another host, at this port.
    LeadsTo(u16),
}

/// Request to the upstream, and the status of its answer.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) status: u16,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

struct Recorded {
    mood: Mood,
    documents: BTreeMap<String, Value>,
    /// Paths of all requests, answered or not.
    received: Vec<String>,
    asked: Vec<Asked>,
    remaining: u64,
    /// Number of searches that are left, which GitHub counts apart.
    searches: u64,
}

#[derive(Clone)]
pub(crate) struct Upstream {
    recorded: Arc<Mutex<Recorded>>,
    pub(crate) address: SocketAddr,
}

impl Upstream {
    pub(crate) fn start(mood: Mood) -> Self {
        let recorded = Recorded {
            mood,
            documents: documents().into_iter().collect(),
            received: Vec::new(),
            asked: Vec::new(),
            remaining: 5_000,
            searches: 10,
        };
        let recorded = Arc::new(Mutex::new(recorded));
        let (sender, receiver) = mpsc::channel();
        let served = Arc::clone(&recorded);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap();
                sender.send(address).unwrap();
                let upstream = Self { recorded: served, address };
                axum::serve(listener, Router::new().fallback(answer).with_state(upstream)).await.unwrap();
            });
        });
        Self { recorded, address: receiver.recv().unwrap() }
    }

    /// Sets the kind of all later answers.
    pub(crate) fn set_mood(&self, mood: Mood) {
        self.recorded().mood = mood;
    }

    pub(crate) fn change(&self, path: &str, change: impl FnOnce(&mut Value)) {
        change(self.recorded().documents.get_mut(path).unwrap());
    }

    /// Returns the answered requests for a path, with any query, and those that never get an answer.
    pub(crate) fn asked(&self, path: &str) -> Vec<Asked> {
        let asked = self.recorded().asked.clone();
        asked.into_iter().filter(|asked| asked.path.split('?').next() == Some(path)).collect()
    }

    /// Returns whether a request for a path has arrived, answered or not.
    pub(crate) fn has_received(&self, path: &str) -> bool {
        self.recorded().received.iter().any(|received| received == path)
    }

    pub(crate) fn remaining(&self) -> u64 {
        self.recorded().remaining
    }

    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap()
    }
}

async fn answer(State(upstream): State<Upstream>, request: Request) -> Response {
    let path = request.uri().path_and_query().unwrap().as_str().to_owned();
    upstream.recorded().received.push(path.clone());
    let mood = upstream.recorded().mood;
    let headers = request.headers().iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
    let mut asked = Asked { path: path.clone(), headers: headers.collect(), status: 0 };
    let mut response = match mood {
        Mood::Silent => {
            upstream.recorded().asked.push(asked);
            return std::future::pending().await;
        }
        Mood::Failing => (StatusCode::INTERNAL_SERVER_ERROR, axum::Json(json!([]))).into_response(),
        Mood::Garbled => "[{\"full_name\": \"Netflix/Hys".into_response(),
        Mood::Spent(seconds) => {
            let seconds = seconds.to_string();
            let headers = [("x-ratelimit-remaining", "0"), ("retry-after", &seconds)];
            (StatusCode::FORBIDDEN, headers, "API rate limit exceeded").into_response()
        }
        Mood::Well if path.starts_with("/search/") => search(&mut upstream.recorded().searches),
        Mood::Well | Mood::Slow | Mood::LeadsTo(_) => document(&upstream, &request, mood),
    };
    if mood == Mood::Slow {
        sleep(Duration::from_secs(1)).await;
    }
    let mut recorded = upstream.recorded();
    if response.status() != StatusCode::NOT_MODIFIED {
        recorded.remaining -= 1;
    }
    let remaining = recorded.remaining.into();
    response.headers_mut().entry("x-ratelimit-remaining").or_insert(remaining);
    asked.status = response.status().as_u16();
    recorded.asked.push(asked);
    response
}

/// Answers a search, and refuses it for a minute when none is left.
fn search(left: &mut u64) -> Response {
    let status = if *left == 0 { StatusCode::FORBIDDEN } else { StatusCode::OK };
    *left = left.saturating_sub(1);
    let reset = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() + 60;
    let limits = [
        ("x-ratelimit-resource", "search".to_owned()),
        ("x-ratelimit-remaining", left.to_string()),
        ("x-ratelimit-reset", reset.to_string()),
    ];
    (status, limits, axum::Json(json!({ "items": [] }))).into_response()
}

fn document(upstream: &Upstream, request: &Request, mood: Mood) -> Response {
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    let Some(document) = upstream.recorded().documents.get(path).cloned() else {
        return (StatusCode::NOT_FOUND, axum::Json(json!({ "message": "Not Found" }))).into_response();
    };
    let number = |name: &str, default: usize| {
        let found = query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        found.map_or(default, |text| text.parse().unwrap())
    };
    let (size, page) = (number("per_page", 30), number("page", 1));
    let mut link = None;
    let body = match &document {
        Value::Array(all) => {
            if all.len() > page * size {
                let port = if let Mood::LeadsTo(port) = mood { port } else { upstream.address.port() };
                let url = |page| format!("http://127.0.0.1:{port}{path}?per_page={size}&page={page}");
                let (next, last) = (url(page + 1), url(all.len().div_ceil(size)));
                link = Some(format!("<{last}>; rel=\"last\", <{next}>; rel=\"next\""));
            }
            Value::Array(all.iter().skip((page - 1) * size).take(size).cloned().collect())
        }
        other => other.clone(),
    };
    let body = serde_json::to_string_pretty(&body).unwrap();
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    let etag = format!("W/\"{:016x}\"", hasher.finish());
    let is_known =
        request.headers().get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes());
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], Body::from(body)).into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, etag.parse().unwrap());
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, "nosniff".parse().unwrap());
    headers.insert(header::CONTENT_SECURITY_POLICY, "default-src 'none'".parse().unwrap());
    // An answer with status 304 has no link to the next page.
    if let Some(link) = link.filter(|_| !is_known) {
        headers.insert(header::LINK, link.parse().unwrap());
    }
    response
}
