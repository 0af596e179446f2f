//! An API server that is not one: what it holds is set by the test, and so is how it fails.

mod answers;
mod http;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

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
    /// It answers 429, as a server in front of it does: a text, and a header that says for how long.
    Overloaded { seconds: u32 },
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
    /// How long it takes to answer to a list.
    pub(crate) list_takes: Duration,
    /// The body of a list comes in pieces of so many bytes, so far apart.
    pub(crate) list_pace: Option<(usize, Duration)>,
    /// Every page says that there is one more.
    pub(crate) is_endless: bool,
    requests: Vec<(Instant, String)>,
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

impl Fake {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.0.world.lock().unwrap()
    }

    pub(crate) fn set(&self, mode: Mode) {
        let ends = !matches!(mode, Mode::Well);
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
        self.asked_at(what).len()
    }

    /// And when.
    pub(crate) fn asked_at(&self, what: &str) -> Vec<Instant> {
        let world = self.world();
        world.requests.iter().filter(|(_, line)| line.contains(what)).map(|(at, _)| *at).collect()
    }

    /// How many watches are open, and how many were at most.
    pub(crate) fn watches(&self) -> (usize, usize) {
        let world = self.world();
        (world.open_watches, world.most_watches)
    }
}
