//! A fake API server. The test sets its objects and its faults.

mod answers;
mod http;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

/// Time after its start in which the server answers 403, because it has not read the Roles.
pub(crate) const ROLES: Duration = Duration::from_secs(1);
/// Interval of bookmarks of a real server.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// Size from which a real server compresses a list, and never a watch.
const GZIP_FROM: usize = 128 << 10;
/// Body of the answer 504 to a version of the future.
pub(crate) const TOO_LARGE: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
"message":"Timeout: Too large resource version: 900, current: 7","reason":"Timeout","code":504,"details":
{"causes":[{"reason":"ResourceVersionTooLarge","message":"Too large resource version"}],"retryAfterSeconds":1}}"#;

/// Behaviour of the server.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Mode {
    /// Requests are answered.
    #[default]
    Normal,
    /// Connections are refused, and open ones are closed.
    Down,
    /// Requests are accepted and never answered.
    Hangs,
    /// Requests with this verb (`list`, `watch`, or empty for both) are answered with this code, and this body or a
    /// Status.
    Refuses { verb: &'static str, code: u16, body: Option<&'static str> },
    /// Requests are answered 429 in the way of a server in front of the API server: a text, and a header with a delay.
    Overloaded { seconds: u32 },
}

/// Fault of one watch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum WatchFault {
    /// The watch has a head and no events.
    Silent,
    /// The connection ends within the next event.
    BreaksWithinEvent,
    /// The connection ends after the next event.
    BreaksAfterEvent,
    /// The answer ends in order at once.
    EndsAtOnce,
    /// The watch begins with these lines.
    BeginsWith(Vec<String>),
    /// The connection ends after these lines.
    BreaksAfter(Vec<String>),
}

/// A fake API server; clones share their state.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Version of the last change.
    changed: watch::Sender<u64>,
    /// Counter that grows when all connections must end.
    epoch: watch::Sender<u64>,
}

impl Default for Inner {
    fn default() -> Self {
        Self { state: Mutex::default(), changed: watch::channel(0).0, epoch: watch::channel(0).0 }
    }
}

/// State of the server.
#[derive(Default)]
pub(crate) struct State {
    version: u64,
    /// Objects by resource, namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    log: Vec<Logged>,
    /// Version up to which all events are forgotten.
    pub(crate) compacted: u64,
    /// Whether an expired version is answered with a status. A real server opens the watch and sends an event.
    pub(crate) gone_is_a_status: bool,
    /// Whether a watch from a version of the future is answered 504. Otherwise the watch opens and is silent.
    pub(crate) refuses_future: bool,
    /// Whether the server permits requests from its first moment on. A real server answers 403 until it has read the
    /// Roles, [`ROLES`] after its start.
    pub(crate) knows_roles: bool,
    /// Time of the last start. `None` if the server has not been down.
    started_at: Option<Instant>,
    pub(crate) mode: Mode,
    pub(crate) watch_faults: VecDeque<WatchFault>,
    /// Lists with outstanding pages, by version.
    snapshots: BTreeMap<u64, Vec<Value>>,
    /// Number of continuations that will find their list forgotten.
    pub(crate) forgets_pages: u32,
    /// Pod that is deleted when a list is forgotten.
    pub(crate) deleted_with_pages: Option<String>,
    /// Whether `sendInitialEvents` is supported.
    pub(crate) supports_initial_events: bool,
    /// Interval of bookmarks, [`BOOKMARKS`] if `None`. A bookmark also precedes the end of a watch.
    pub(crate) bookmarks_every: Option<Duration>,
    pub(crate) sends_no_bookmarks: bool,
    /// Token that requests must have. `None` if none is needed.
    pub(crate) token: Option<String>,
    refused_namespace: Option<&'static str>,
    /// Delay of the answer to a list.
    pub(crate) list_delay: Duration,
    /// Bytes per piece of a list, and the pause before each piece.
    pub(crate) list_pace: Option<(usize, Duration)>,
    /// Whether every page announces another page.
    pub(crate) is_endless: bool,
    requests: Vec<(Instant, String)>,
    /// Bytes of all lists as they were sent.
    pub(crate) list_bytes: usize,
    /// Number of watches that accept compression.
    pub(crate) zipped_watches: usize,
    /// Header `User-Agent` of the last request.
    pub(crate) user_agent: Option<String>,
    open_watches: usize,
    most_watches: usize,
}

/// An event in the log.
#[derive(Clone)]
struct Logged {
    version: u64,
    kind: &'static str,
    resource: String,
    namespace: String,
    object: Value,
    /// Previous object, because an object that no longer matches a selector is deleted for a watch with that selector.
    before: Option<Value>,
}

impl Fake {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// Sets the behaviour. All connections end unless the server becomes normal.
    pub(crate) fn set(&self, mode: Mode) {
        let ends = !matches!(mode, Mode::Normal);
        {
            let mut state = self.state();
            if state.mode == Mode::Down && mode != Mode::Down {
                state.started_at = Some(Instant::now());
            }
            state.mode = mode;
        }
        if ends {
            self.disconnect();
        }
    }

    /// Ends all connections.
    pub(crate) fn disconnect(&self) {
        self.0.epoch.send_modify(|epoch| *epoch += 1);
    }

    /// Forgets all events, as etcd does every five minutes.
    pub(crate) fn compact(&self) {
        let mut state = self.state();
        state.version += 1;
        state.compacted = state.version;
        state.log.clear();
    }

    /// Restores etcd from a backup: versions continue far below those that clients know, and all connections end.
    pub(crate) fn restore(&self) {
        let mut state = self.state();
        state.version = 1;
        state.compacted = 0;
        state.log.clear();
        drop(state);
        self.disconnect();
    }

    /// Creates or changes an object.
    pub(crate) fn put(&self, resource: &str, mut object: Value) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        let key = (resource.to_owned(), namespace.clone(), name);
        let before = state.objects.insert(key, object.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        state.log.push(Logged { version, kind, resource: resource.to_owned(), namespace, object, before });
        drop(state);
        self.0.changed.send_replace(version);
    }

    /// Deletes an object, if it exists.
    pub(crate) fn delete(&self, resource: &str, namespace: &str, name: &str) {
        let mut state = self.state();
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let Some(mut object) = state.objects.remove(&key) else { return };
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let (resource, namespace) = (resource.to_owned(), namespace.to_owned());
        state.log.push(Logged { version, kind: "DELETED", resource, namespace, object, before: None });
        drop(state);
        self.0.changed.send_replace(version);
    }

    /// Forgets all events except those of the last `versions` versions. Returns the last forgotten version.
    pub(crate) fn compact_except_last(&self, versions: u64) -> u64 {
        let mut state = self.state();
        let compacted = state.version.saturating_sub(versions);
        state.compacted = compacted;
        state.log.retain(|logged| logged.version > compacted);
        compacted
    }

    /// Deletes an object without an event: the fault that periodic lists repair.
    pub(crate) fn delete_silently(&self, resource: &str, namespace: &str, name: &str) {
        self.state().objects.remove(&(resource.to_owned(), namespace.to_owned(), name.to_owned()));
    }

    /// Refuses requests for this namespace, or for none.
    pub(crate) fn refuse_namespace(&self, namespace: Option<&'static str>) {
        self.state().refused_namespace = namespace;
    }

    /// Returns an object.
    pub(crate) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        self.state().objects.get(&key).cloned()
    }

    /// Returns the namespaces and names of all objects of a resource.
    pub(crate) fn names(&self, resource: &str) -> Vec<(String, String)> {
        let state = self.state();
        state.objects.keys().filter(|key| key.0 == resource).map(|key| (key.1.clone(), key.2.clone())).collect()
    }

    /// Frees the data that only tests need.
    pub(crate) fn forget_requests(&self) {
        let mut state = self.state();
        state.requests = Vec::new();
        state.snapshots = BTreeMap::new();
        state.log = Vec::new();
    }

    /// Returns the number of requests with this text in their line.
    pub(crate) fn count_requests(&self, what: &str) -> usize {
        self.request_times(what).len()
    }

    /// Returns the times of the requests with this text in their line.
    pub(crate) fn request_times(&self, what: &str) -> Vec<Instant> {
        let state = self.state();
        state.requests.iter().filter(|(_, line)| line.contains(what)).map(|(at, _)| *at).collect()
    }

    /// Returns the current and the largest number of open watches.
    pub(crate) fn watches(&self) -> (usize, usize) {
        let state = self.state();
        (state.open_watches, state.most_watches)
    }
}
