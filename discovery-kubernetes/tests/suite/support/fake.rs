//! An API server that is not one: what it holds is set by the test, and so is how it fails.
//!
//! It speaks HTTP/1.1 by hand, over TCP or over pipes in memory (then time can be virtual): lists with pages,
//! watches with chunked events, bookmarks, versions that expire.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    sync::watch,
    time::{Instant, sleep_until},
};

/// How the server is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Mode {
    #[default]
    Well,
    /// Nobody listens, and whoever was connected no longer is.
    Down,
    /// It takes requests and answers none.
    Hangs,
    /// It answers so to requests of this verb (`list`, `watch`, or empty for both), with this body or a status.
    Refuses { verb: &'static str, code: u16, body: Option<&'static str> },
}

/// What happens to one watch, instead of what should.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Mishap {
    /// The head of an answer, and then nothing, whatever happens.
    Silent,
    /// Half of the next event, and the end of the connection.
    CutEvent,
    /// The connection ends after the next event.
    Closed,
    /// The answer ends in order, at once.
    Ends,
    /// These lines are sent first.
    Says(Vec<String>),
    /// These lines, and the end of the connection.
    Half(Vec<String>),
}

#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Inner>);

struct Inner {
    world: Mutex<World>,
    /// Grows with each change.
    changed: watch::Sender<u64>,
    /// Grows when all connections are to end.
    epoch: watch::Sender<u64>,
}

impl Default for Inner {
    fn default() -> Self {
        Self { world: Mutex::default(), changed: watch::channel(0).0, epoch: watch::channel(0).0 }
    }
}

#[derive(Default)]
pub(crate) struct World {
    version: u64,
    /// By resource, namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    log: Vec<Logged>,
    /// What happened up to this version is forgotten.
    pub(crate) compacted: u64,
    /// How a version that is too old is told: as an event of the watch, or as a status.
    pub(crate) gone_is_an_event: bool,
    pub(crate) mode: Mode,
    pub(crate) mishaps: VecDeque<Mishap>,
    /// The lists whose pages are being asked for.
    snapshots: BTreeMap<u64, Vec<Value>>,
    /// One page, and then what it is a page of is forgotten.
    pub(crate) forgets_pages: u32,
    /// This pod is gone with them.
    pub(crate) gone_with_pages: Option<String>,
    pub(crate) knows_initial_events: bool,
    pub(crate) bookmarks_every: Option<Duration>,
    pub(crate) token: Option<String>,
    refused_namespace: Option<&'static str>,
    pub(crate) requests: Vec<String>,
    open_watches: usize,
    most_watches: usize,
}

#[derive(Clone)]
struct Logged {
    version: u64,
    kind: &'static str,
    resource: String,
    namespace: String,
    object: Value,
    /// Its labels before, so that who no longer matches is deleted for a watch with a selector.
    before: Option<Value>,
}

struct Request {
    resource: String,
    namespace: String,
    name: String,
    query: BTreeMap<String, String>,
    token: Option<String>,
    line: String,
}

impl Fake {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.0.world.lock().unwrap()
    }

    pub(crate) fn set(&self, mode: Mode) {
        let ends = matches!(mode, Mode::Down | Mode::Hangs | Mode::Refuses { .. });
        self.world().mode = mode;
        if ends {
            self.disconnect();
        }
    }

    /// Ends all connections.
    pub(crate) fn disconnect(&self) {
        self.0.epoch.send_modify(|epoch| *epoch += 1);
    }

    /// Forgets what has happened, as etcd does every five minutes.
    pub(crate) fn compact(&self) {
        let mut world = self.world();
        world.version += 1;
        world.compacted = world.version;
        world.log.clear();
    }

    pub(crate) fn put(&self, resource: &str, mut object: Value) {
        let mut world = self.world();
        world.version += 1;
        let version = world.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        let key = (resource.to_owned(), namespace.clone(), name);
        let before = world.objects.insert(key, object.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        world.log.push(Logged { version, kind, resource: resource.to_owned(), namespace, object, before });
        drop(world);
        self.0.changed.send_replace(version);
    }

    pub(crate) fn delete(&self, resource: &str, namespace: &str, name: &str) {
        let mut world = self.world();
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let Some(mut object) = world.objects.remove(&key) else { return };
        world.version += 1;
        let version = world.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let (resource, namespace) = (resource.to_owned(), namespace.to_owned());
        world.log.push(Logged { version, kind: "DELETED", resource, namespace, object, before: None });
        drop(world);
        self.0.changed.send_replace(version);
    }

    /// Forgets all but the last of what has happened, and tells up to which version.
    pub(crate) fn compact_but(&self, versions: u64) -> u64 {
        let mut world = self.world();
        let compacted = world.version.saturating_sub(versions);
        world.compacted = compacted;
        world.log.retain(|logged| logged.version > compacted);
        compacted
    }

    /// An object is gone and no watch is told: the bug for which there are lists.
    pub(crate) fn lose(&self, resource: &str, namespace: &str, name: &str) {
        self.world().objects.remove(&(resource.to_owned(), namespace.to_owned(), name.to_owned()));
    }

    /// Requests for this namespace are refused.
    pub(crate) fn refuse_namespace(&self, namespace: Option<&'static str>) {
        self.world().refused_namespace = namespace;
    }

    pub(crate) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        self.world().objects.get(&key).cloned()
    }

    pub(crate) fn names(&self, resource: &str) -> Vec<(String, String)> {
        let world = self.world();
        world.objects.keys().filter(|key| key.0 == resource).map(|key| (key.1.clone(), key.2.clone())).collect()
    }

    /// Forgets what it remembers for tests alone.
    pub(crate) fn forget_requests(&self) {
        let mut world = self.world();
        world.requests = Vec::new();
        world.snapshots = BTreeMap::new();
        world.log = Vec::new();
    }

    /// How many requests there have been whose line has this in it.
    pub(crate) fn asked(&self, what: &str) -> usize {
        self.world().requests.iter().filter(|line| line.contains(what)).count()
    }

    /// How many watches are open, and how many were at most.
    pub(crate) fn watches(&self) -> (usize, usize) {
        let world = self.world();
        (world.open_watches, world.most_watches)
    }

    /// Serves a connection until it ends.
    pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(self, stream: S) {
        let mut epoch = self.0.epoch.subscribe();
        epoch.mark_unchanged();
        if self.world().mode == Mode::Down {
            return;
        }
        let mut stream = BufReader::new(stream);
        tokio::select! {
            _ = epoch.changed() => {}
            _ = self.answer_all(&mut stream) => {}
        }
    }

    async fn answer_all<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut BufReader<S>) -> io::Result<()> {
        while let Some(request) = read(stream).await? {
            let is_watch = request.query.contains_key("watch");
            let verb = if is_watch { "watch" } else { "list" };
            let mode = {
                let mut world = self.world();
                world.requests.push(request.line.clone());
                let is_refused = world.refused_namespace == Some(request.namespace.as_str());
                if is_refused { Mode::Refuses { verb: "", code: 403, body: None } } else { world.mode.clone() }
            };
            if mode == Mode::Hangs {
                return std::future::pending().await;
            }
            let (token, wanted) = (request.token.clone(), self.world().token.clone());
            if wanted.is_some() && token != wanted {
                let body = status(401, "Unauthorized").to_string();
                whole(stream, 401, &body).await?;
                continue;
            }
            if let Mode::Refuses { verb: refused, code, body } = mode
                && (refused.is_empty() || refused == verb)
            {
                let (resource, namespace) = (&request.resource, &request.namespace);
                let message = format!(
                    "{resource} is forbidden: User \"system:serviceaccount:{namespace}:users-sa\" cannot {verb} \
                     resource \"{resource}\" in the namespace \"{namespace}\""
                );
                let body = body.map_or_else(|| status(code, &message).to_string(), str::to_owned);
                whole(stream, code, &body).await?;
                continue;
            }
            match (is_watch, request.name.is_empty()) {
                (true, _) => self.watch(stream, &request).await?,
                (false, true) => {
                    let (code, body) = self.list(&request);
                    whole(stream, code, &body).await?;
                }
                (false, false) => {
                    let found = self.get(&request.resource, &request.namespace, &request.name);
                    let (code, body) = found.map_or((404, status(404, "not found")), |object| (200, object));
                    whole(stream, code, &body.to_string()).await?;
                }
            }
        }
        Ok(())
    }

    fn list(&self, request: &Request) -> (u16, String) {
        let mut world = self.world();
        let limit = request.query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        let (version, from) = match request.query.get("continue").and_then(|token| token.split_once(':')) {
            Some((version, from)) => (version.parse().unwrap(), from.parse().unwrap()),
            None => {
                let version = world.version.max(1);
                let here = |key: &(String, String, String)| key.0 == request.resource && key.1 == request.namespace;
                let matching = world.objects.iter().filter(|(key, value)| here(key) && request.selects(value));
                let all = matching.map(|(_, value)| value.clone()).collect();
                world.snapshots.insert(version, all);
                (version, 0_usize)
            }
        };
        if from > 0 && world.forgets_pages > 0 {
            world.forgets_pages -= 1;
            // Why a list must not be put together from two: what was on the first page may be gone by now.
            let last = world.gone_with_pages.take();
            world.objects.retain(|key, _| Some(&key.2) != last.as_ref());
            return (410, status(410, "the provided continue parameter is too old").to_string());
        }
        let all = world.snapshots.get(&version).cloned().unwrap_or_default();
        let page: Vec<_> = all.iter().skip(from).take(limit).cloned().collect();
        let to = from + page.len();
        let mut metadata = json!({ "resourceVersion": version.to_string() });
        if to < all.len() {
            metadata["continue"] = json!(format!("{version}:{to}"));
            metadata["remainingItemCount"] = json!(all.len() - to);
        }
        let kind = if request.resource == "pods" { "PodList" } else { "EndpointSliceList" };
        // As Go writes an empty list.
        let items = if page.is_empty() { Value::Null } else { Value::Array(page) };
        (200, json!({ "kind": kind, "apiVersion": "v1", "metadata": metadata, "items": items }).to_string())
    }

    async fn watch<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut BufReader<S>,
        request: &Request,
    ) -> io::Result<()> {
        let mut changed = self.0.changed.subscribe();
        let asked = |name: &str| request.query.get(name).map(String::as_str).unwrap_or_default();
        let is_initial = asked("sendInitialEvents") == "true" && self.world().knows_initial_events;
        if asked("sendInitialEvents") == "true" && !is_initial {
            let body =
                status(422, "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled");
            return whole(stream, 422, &body.to_string()).await;
        }
        let mut version: u64 = asked("resourceVersion").parse().unwrap_or(0);
        let (is_gone, as_event, mishap) = {
            let mut world = self.world();
            let is_gone = !is_initial && version < world.compacted;
            (is_gone, world.gone_is_an_event, world.mishaps.pop_front())
        };
        if is_gone && !as_event {
            return whole(stream, 410, &status(410, "too old resource version").to_string()).await;
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await?;
        stream.flush().await?;
        let _open = Open::new(self);
        if is_gone {
            chunk(stream, &json!({ "type": "ERROR", "object": status(410, "too old") }).to_string()).await?;
            return stream.write_all(b"0\r\n\r\n").await;
        }
        match &mishap {
            Some(Mishap::Silent) => {
                stream.fill_buf().await?;
                return Ok(());
            }
            Some(Mishap::Ends) => return stream.write_all(b"0\r\n\r\n").await,
            Some(Mishap::Says(lines) | Mishap::Half(lines)) => {
                for line in lines {
                    chunk(stream, line).await?;
                }
                if matches!(mishap, Some(Mishap::Half(_))) {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
            }
            _ => {}
        }
        if is_initial {
            let (all, now) = self.initial(request);
            for object in all {
                chunk(stream, &json!({ "type": "ADDED", "object": object }).to_string()).await?;
            }
            chunk(stream, &bookmark(&request.resource, now, true)).await?;
            version = now;
        }
        let seconds = asked("timeoutSeconds").parse().unwrap_or(300);
        let end_at = Instant::now() + Duration::from_secs(seconds);
        let every = self.world().bookmarks_every.unwrap_or(Duration::from_secs(1_000_000));
        let mut bookmark_at = Instant::now() + every;
        loop {
            let (events, now) = self.events(request, version);
            version = now;
            for line in events {
                match mishap {
                    Some(Mishap::CutEvent) => {
                        let half = &line[..line.len() / 2];
                        stream.write_all(format!("{:x}\r\n{half}", line.len() + 1).as_bytes()).await?;
                        stream.flush().await?;
                        return Err(io::ErrorKind::ConnectionReset.into());
                    }
                    Some(Mishap::Closed) => {
                        chunk(stream, &line).await?;
                        return Err(io::ErrorKind::ConnectionReset.into());
                    }
                    _ => chunk(stream, &line).await?,
                }
            }
            tokio::select! {
                _ = changed.changed() => {}
                // Nothing is said during a watch: it is the end of the connection.
                _ = stream.fill_buf() => return Ok(()),
                () = sleep_until(end_at) => return stream.write_all(b"0\r\n\r\n").await,
                () = sleep_until(bookmark_at) => {
                    bookmark_at += every;
                    version = self.world().version;
                    chunk(stream, &bookmark(&request.resource, version, false)).await?;
                }
            }
        }
    }

    fn initial(&self, request: &Request) -> (Vec<Value>, u64) {
        let world = self.world();
        let here = |key: &(String, String, String)| key.0 == request.resource && key.1 == request.namespace;
        let all = world.objects.iter().filter(|(key, value)| here(key) && request.selects(value));
        (all.map(|(_, value)| value.clone()).collect(), world.version)
    }

    /// The lines for what has happened since a version, and the version of now.
    fn events(&self, request: &Request, since: u64) -> (Vec<String>, u64) {
        let world = self.world();
        let new = world.log.iter().filter(|logged| {
            logged.version > since && logged.resource == request.resource && logged.namespace == request.namespace
        });
        let line = |logged: &Logged| {
            let (is_in, was_in) =
                (request.selects(&logged.object), logged.before.as_ref().is_some_and(|b| request.selects(b)));
            let kind = match (is_in, was_in) {
                (true, _) => logged.kind,
                (false, true) => "DELETED",
                (false, false) => return None,
            };
            Some(json!({ "type": kind, "object": logged.object }).to_string())
        };
        (new.filter_map(line).collect(), world.version)
    }
}

/// Counts the watches that are open.
struct Open(Fake);

impl Open {
    fn new(fake: &Fake) -> Self {
        let mut world = fake.world();
        world.open_watches += 1;
        world.most_watches = world.most_watches.max(world.open_watches);
        drop(world);
        Self(fake.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.world().open_watches -= 1;
    }
}

impl Request {
    /// Equality alone: `a=b,c=d`.
    fn selects(&self, object: &Value) -> bool {
        let selector = self.query.get("labelSelector").map(String::as_str).unwrap_or_default();
        selector
            .split(',')
            .filter_map(|term| term.split_once('='))
            .all(|(label, value)| object["metadata"]["labels"][label].as_str() == Some(value))
    }
}

/// Reads the head of a request; none when the connection ends.
async fn read<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut BufReader<S>) -> io::Result<Option<Request>> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        head.push(line);
    }
    let line = head.first().cloned().unwrap_or_default();
    let target = line.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), decode(v)));
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (namespace, resource, name) = match parts.as_slice() {
        ["api", "v1", "namespaces", ns, resource, rest @ ..] => (*ns, *resource, rest.first()),
        ["apis", _, _, "namespaces", ns, resource, rest @ ..] => (*ns, *resource, rest.first()),
        ["api", "v1", resource, rest @ ..] => ("", *resource, rest.first()),
        _ => ("", "", None),
    };
    let token =
        head.iter().find_map(|line| line.to_ascii_lowercase().starts_with("authorization:").then(|| line.clone()));
    Ok(Some(Request {
        resource: resource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.map(|name| (*name).to_owned()).unwrap_or_default(),
        query: query.collect(),
        token: token.and_then(|line| line.split_once("Bearer ").map(|(_, token)| token.to_owned())),
        line,
    }))
}

fn decode(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let hex: String = bytes.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&hex, 16).unwrap()
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(decoded).unwrap()
}

fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        410 => "Expired",
        _ => "Unknown",
    };
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": reason, "code": code })
}

fn bookmark(resource: &str, version: u64, ends_initial: bool) -> String {
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if ends_initial {
        metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
    }
    // As a pod, it has lists that are null.
    let spec = json!({ "containers": null });
    json!({ "type": "BOOKMARK", "object": { "kind": resource, "metadata": metadata, "spec": spec } }).to_string()
}

async fn whole<S: AsyncWrite + Unpin>(stream: &mut S, code: u16, body: &str) -> io::Result<()> {
    let head = format!("HTTP/1.1 {code} x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.flush().await
}

async fn chunk<S: AsyncWrite + Unpin>(stream: &mut S, line: &str) -> io::Result<()> {
    stream.write_all(format!("{:x}\r\n{line}\n\r\n", line.len() + 1).as_bytes()).await?;
    stream.flush().await
}
