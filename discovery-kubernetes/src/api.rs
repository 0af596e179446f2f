//! Requests to the API server for one resource in one namespace: pages of a list, lines of a watch, and the meaning of
//! errors.

use std::{error::Error, fmt, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use http::header::{ACCEPT_ENCODING, HeaderValue};
use http_body_util::BodyExt;
use kube::{
    Client,
    api::{ListParams, WatchParams},
    client::Body,
    core::{Request, Status},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use crate::{
    object::{Content, Kind, Object, Port, name_and_version},
    role,
    stats::Counters,
};

/// Maximum time for the head of an answer, and for each further piece of a list.
const ANSWER: Duration = Duration::from_secs(15);
/// Maximum time for a page of a list. A slow link is no failure; a link without progress is one, after [`ANSWER`].
const PAGE: Duration = Duration::from_secs(120);
/// Maximum bytes of a page. A pod has 10 to 20 KiB, and at most 1.5 MiB in the storage of the API server.
const MAX_PAGE: usize = 32 << 20;
/// Maximum bytes of an event.
const MAX_LINE: usize = 8 << 20;
/// Maximum delay that the API server may request.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Minimum delay after a 403: the time in which an API server that has just started reads the Roles.
const ROLES: Duration = Duration::from_secs(1);
/// Maximum bytes of the body of an error. A longer body is not reported.
const MAX_ERROR: usize = 64 << 10;
/// Maximum characters of an error that are repeated in health and logs.
const MAX_TEXT: usize = 400;

/// A resource in one namespace, and the client that requests it.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) client: Client,
    pub(crate) kind: Kind,
    pub(crate) namespace: String,
    pub(crate) selector: String,
    pub(crate) port: Port,
    pub(crate) page: u32,
    pub(crate) counters: Counters,
}

/// A failed request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The requested version is too old (410), or one of the future (504), so a list is due.
    Gone,
    /// The credentials are refused (401).
    Unknown(String),
    /// A right is missing, or is not known yet to an API server that has just started (403).
    Forbidden {
        why: String,
        /// Commands that grant the right.
        remedy: String,
    },
    /// The API server does not understand the request (400, 422).
    Invalid(String),
    /// Any other failure, and the delay that the API server requests.
    Other(String, Duration),
}

impl Trouble {
    fn other(text: impl Into<String>) -> Self {
        Self::Other(text.into(), Duration::ZERO)
    }

    /// Returns the delay that the API server requests, or that gives it time to read the Roles.
    pub(crate) fn wait(&self) -> Duration {
        match self {
            Self::Other(_, wait) => *wait,
            Self::Forbidden { .. } => ROLES,
            _ => Duration::ZERO,
        }
    }

    /// Raises the delay to `wait`, because a server in front of the API server may send a delay in a header only.
    fn at_least(self, wait: Duration) -> Self {
        match self {
            Self::Other(text, said) => Self::Other(text, said.max(wait)),
            other => other,
        }
    }
}

/// A page of a list.
pub(crate) struct Page {
    pub(crate) objects: Vec<Object>,
    /// Token for the next page. `None` on the last page.
    pub(crate) next: Option<String>,
    /// Version from which a watch continues after the list.
    pub(crate) version: String,
}

impl Api {
    /// Requests the page that begins with `next`, without a resource version, which means the newest state. With the
    /// version "any" (`match_any` in kube), an API server may answer with a past state without some peers.
    pub(crate) async fn page(&self, next: Option<String>) -> Result<Page, Trouble> {
        let mut params = ListParams::default().labels(&self.selector).limit(self.page);
        params.continue_token = next;
        let request = Request::new(self.path()).list(&params);
        let read = async {
            let sent = timeout(ANSWER, self.send("list", request)).await;
            let mut lines = sent.map_err(|_| self.cannot("list", &late("no answer", ANSWER)))??;
            lines.all().await.map_err(|why| self.cannot("list", &why))
        };
        let body = timeout(PAGE, read).await.map_err(|_| self.cannot("list", &late("no complete page", PAGE)))??;
        self.read_page(&body)
    }

    /// Requests all events after `version`, for the given number of seconds. With an empty version and `initial`, the
    /// watch begins with all objects.
    pub(crate) async fn watch(&self, version: &str, seconds: u32, initial: bool) -> Result<Lines, Trouble> {
        let mut params = WatchParams::default().labels(&self.selector).timeout(seconds);
        params.send_initial_events = initial;
        let mut request = Request::new(self.path()).watch(&params, version);
        if let Ok(request) = &mut request {
            // Lists are compressed. A proxy that compresses a watch would keep events back.
            request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        let sent = timeout(ANSWER, self.send("watch", request)).await;
        sent.map_err(|_| self.cannot("watch", &late("no answer", ANSWER)))?
    }

    fn path(&self) -> String {
        self.kind.path(&self.namespace)
    }

    /// Sends a request and converts an error status into a failure.
    async fn send(
        &self,
        verb: &str,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Lines, Trouble> {
        let request = request.map_err(|e| self.cannot(verb, &e.to_string()))?;
        // `Client::request_*` is not used, because it detects a 403 by its body only, and the body of a proxy differs.
        let sent = self.client.send(request.map(Body::from)).await;
        let response = sent.map_err(|e| self.cannot(verb, &causes(&e)))?;
        let code = response.status().as_u16();
        let is_good = response.status().is_success();
        let wait = retry_after(response.headers());
        let mut lines = Lines { body: response.into_body(), buffer: BytesMut::new() };
        if is_good {
            return Ok(lines);
        }
        let text = lines.up_to(MAX_ERROR).await.unwrap_or_default();
        let status = serde_json::from_slice::<Status>(&text).ok().filter(|status| !status.message.is_empty());
        let status =
            status.unwrap_or_else(|| Status { message: String::from_utf8_lossy(&text).into(), ..Status::default() });
        Err(self.refusal(verb, code, &status).at_least(wait))
    }

    /// Converts an error status into a failure.
    pub(crate) fn refusal(&self, verb: &str, code: u16, status: &Status) -> Trouble {
        let (resource, namespace) = (self.kind.resource(), &self.namespace);
        let said = short(&status.message);
        match code {
            401 => Trouble::Unknown(format!(
                "the API server refuses the credentials of this node (401: {said}) to {verb} {resource} in the \
                 namespace {namespace}; check the token of the service account, or the kubeconfig"
            )),
            403 => Trouble::Forbidden {
                why: format!("this node may not {verb} {resource} in the namespace {namespace} (403: {said})"),
                remedy: role::commands(self.kind, namespace, &status.message),
            },
            400 | 422 => Trouble::Invalid(format!(
                "the API server refuses to {verb} {resource} in the namespace {namespace} as an invalid request \
                 ({code}: {said}); check the selector"
            )),
            410 => Trouble::Gone,
            504 if is_too_large(status) => Trouble::Gone,
            _ => {
                let wait = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
                let text = self.text(verb, &format!("{code}: {said}"));
                Trouble::Other(text, Duration::from_secs(wait.into()).min(LONGEST_WAIT))
            }
        }
    }

    /// Returns a failure with the text of [`text`](Self::text).
    pub(crate) fn cannot(&self, verb: &str, why: &str) -> Trouble {
        Trouble::other(self.text(verb, why))
    }

    /// Returns an error text that names the verb, the resource, the namespace and the reason.
    pub(crate) fn text(&self, verb: &str, why: &str) -> String {
        let (resource, namespace) = (self.kind.resource(), &self.namespace);
        format!("cannot {verb} {resource} in the namespace {namespace} ({why}); the last set of peers stays")
    }

    fn read_page(&self, body: &[u8]) -> Result<Page, Trouble> {
        #[derive(Deserialize)]
        struct List<'a> {
            #[serde(default)]
            kind: String,
            metadata: ListMetadata,
            #[serde(borrow, default)]
            items: Option<Vec<&'a RawValue>>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct ListMetadata {
            #[serde(default)]
            resource_version: String,
            #[serde(rename = "continue", default)]
            next: Option<String>,
        }
        let list: List<'_> =
            serde_json::from_slice(body).map_err(|e| self.cannot("list", &format!("the answer is no list: {e}")))?;
        // An answer 200 that is no list (`{}` of a proxy) must not be read as an empty list.
        if !list.kind.ends_with("List") || list.metadata.resource_version.is_empty() {
            return Err(self.cannot("list", "the answer is no list"));
        }
        let objects = list.items.into_iter().flatten().filter_map(|item| self.read(item.get())).collect();
        let next = list.metadata.next.filter(|next| !next.is_empty());
        Ok(Page { objects, next, version: list.metadata.resource_version })
    }

    /// Reads an object and counts an unreadable one. `None` if even the name is unreadable.
    pub(crate) fn read(&self, json: &str) -> Option<Object> {
        match self.kind.read(json, &self.port) {
            Ok(object) => Some(object),
            Err(e) => {
                self.counters.garbage(self.kind.resource(), &e);
                let (name, version) = name_and_version(json)?;
                Some(Object { name, version, content: Content::Garbage })
            }
        }
    }
}

/// Reader of an answer, line by line.
///
/// `Client::request_events` is not used, because its lines have no limit, an unreadable event hides the name of its
/// object, and a body that ends within an event looks like a body that ends after the event.
pub(crate) struct Lines {
    body: Body,
    buffer: BytesMut,
}

/// End of a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The body ended after a line.
    Between,
    /// The body ended within a line, or with an error.
    Within(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Between => f.write_str("the answer has ended"),
            Self::Within(why) => f.write_str(why),
        }
    }
}

impl Lines {
    /// Waits for the next line. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Bytes, End> {
        let mut seen = 0;
        loop {
            let unseen = self.buffer.get(seen..).unwrap_or_default();
            if let Some(at) = unseen.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(seen + at).freeze();
                self.buffer.advance(1);
                return Ok(line);
            }
            seen = self.buffer.len();
            if seen > MAX_LINE {
                return Err(End::Within(format!("an event of more than {MAX_LINE} bytes")));
            }
            match self.more().await {
                Ok(true) => {}
                Ok(false) if self.buffer.iter().all(u8::is_ascii_whitespace) => return Err(End::Between),
                Ok(false) => return Err(End::Within("the answer ended within an event".to_owned())),
                Err(why) => return Err(End::Within(why)),
            }
        }
    }

    /// Reads the rest of a page, up to [`MAX_PAGE`].
    async fn all(&mut self) -> Result<Bytes, String> {
        while timeout(ANSWER, self.more()).await.map_err(|_| late("no further data", ANSWER))?? {
            if self.buffer.len() > MAX_PAGE {
                return Err(format!("a page of more than {MAX_PAGE} bytes; set a smaller page_size"));
            }
        }
        Ok(self.buffer.split().freeze())
    }

    /// Reads the rest of the body, up to a limit.
    async fn up_to(&mut self, limit: usize) -> Result<Bytes, String> {
        while self.more().await? {
            if self.buffer.len() > limit {
                return Err(format!("an answer of more than {limit} bytes"));
            }
        }
        Ok(self.buffer.split().freeze())
    }

    /// Reads more of the body. Returns whether there was more.
    async fn more(&mut self) -> Result<bool, String> {
        loop {
            match self.body.frame().await {
                None => return Ok(false),
                Some(Err(e)) => return Err(format!("the connection failed within the answer: {}", causes(&e))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                        return Ok(true);
                    }
                }
            }
        }
    }
}

/// Returns whether the requested version is one of the future. Old API servers say so in the message only.
fn is_too_large(status: &Status) -> bool {
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    causes.any(|cause| cause.reason == "ResourceVersionTooLarge")
        || status.message.contains("Too large resource version")
}

/// Returns the delay of the header `Retry-After`, which is read in seconds, up to [`LONGEST_WAIT`]. A date is ignored,
/// because there is no shared clock.
fn retry_after(headers: &http::HeaderMap) -> Duration {
    let seconds = headers.get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(0)).min(LONGEST_WAIT)
}

/// Describes a timeout.
fn late(what: &str, limit: Duration) -> String {
    format!("{what} within {} s", limit.as_secs())
}

/// Returns the text of an error and of its causes, shortened.
pub(crate) fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    for cause in causes.map(ToString::to_string) {
        // Many errors repeat the text of their cause.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    short(&text)
}

/// Shortens a text to [`MAX_TEXT`] characters in one line.
pub(crate) fn short(text: &str) -> String {
    let text = text.trim();
    let end = text.char_indices().nth(MAX_TEXT).map_or(text.len(), |(at, _)| at);
    text.get(..end).unwrap_or_default().replace('\n', " ")
}
