//! What a peer may ask of a group, and the registry of a node's groups.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use dashmap::{DashMap, Entry};

use crate::{
    error::{Error, Result},
    identity::PeerId,
    limits::MAX_GROUPS,
    protocol::{
        chain::LoadChain,
        message::{GroupName, Page, Response},
    },
    runtime::sync::{Keyed, sharded},
};

/// A load that a peer asks for, because memory could not answer it.
#[derive(Debug)]
pub(crate) struct LoadRequest<'a> {
    pub(crate) key: &'a str,
    /// Time that the peer waits from now on.
    pub(crate) wait: Duration,
    pub(crate) chain: LoadChain,
}

/// Future of a response.
pub(crate) type ResponseFuture = Pin<Box<dyn Future<Output = Response> + Send>>;

/// Progress of the transfers to new owners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Number of entries that have arrived.
    pub(crate) arrived: usize,
    /// Number of entries in all.
    pub(crate) all: usize,
    /// Number of queues, each of one group for one node, that are not done.
    pub(crate) waits_for: usize,
}

impl Progress {
    pub(crate) fn add(&mut self, other: &Self) {
        self.arrived += other.arrived;
        self.all += other.all;
        self.waits_for += other.waits_for;
    }
}

/// A request for a page, as it was when the request was sent.
#[derive(Clone, Debug)]
pub(crate) struct PageRequest {
    /// Peer that was asked.
    pub(crate) peer: PeerId,
    /// Coarse time of the request, read from the clock.
    pub(crate) asked_ms: u64,
    /// Number of the last change then.
    pub(crate) changes: u32,
    /// Coarse time of the first request of the transfer.
    pub(crate) since_ms: u64,
}

/// Outcome of storing a page.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PageResult {
    /// Number of entries that were kept.
    pub(crate) kept: u64,
    /// Bytes of the budget that those take.
    pub(crate) bytes: u64,
    /// Whether no more pages are wanted.
    pub(crate) is_over: bool,
}

/// A group as the peer server sees it: without its type of values, and without a way to ask further peers.
pub(crate) trait GroupService: Send + Sync {
    /// Returns the version of the encoding of the group's values.
    fn format(&self) -> u32;
    /// Returns the response to a get from memory, if memory can answer it.
    fn cached_response(self: Arc<Self>, key: &str) -> Option<Response>;
    /// Returns the cached value of a key that the asker owns now, with its remaining time to live. Never loads.
    fn read_as_previous_owner(&self, key: &str) -> Response;
    /// Returns a page of the entries that a peer owns now. The cursor says that all entries before it have arrived there.
    fn page(self: Arc<Self>, to: PeerId, cursor: u64) -> ResponseFuture;
    /// Fills the transfer plan of the entries that other nodes own now.
    fn build_plan(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
    /// Returns how far the transfers to the peers are that can be reached; `None` when there is no plan.
    fn progress(&self, is_reached: &dyn Fn(&PeerId) -> bool) -> Option<Progress>;
    /// Returns how many bytes may be received now.
    fn room(&self) -> u64;
    /// Stores the entries of a page that are still wanted.
    fn store_page(
        self: Arc<Self>,
        page: Page,
        request: PageRequest,
    ) -> Pin<Box<dyn Future<Output = PageResult> + Send>>;
    /// Joins the load of a key or begins it. Dropping the future leaves the load running.
    fn load(self: Arc<Self>, request: LoadRequest<'_>) -> ResponseFuture;
    /// Drops the value of a key, and caches no value that is being loaded or is loaded within `hold`: another node writes.
    fn invalidate_and_hold(&self, key: &str, hold: Duration);
    /// Drops the value of a key, and caches no value that is being loaded.
    fn invalidate(&self, key: &str) {
        self.invalidate_and_hold(key, Duration::ZERO);
    }
    /// Drops all values, and caches no value that is being loaded.
    fn clear(&self);
    /// Returns how long a request may wait for a load: longer than a load takes, which reports its own time-out.
    fn longest_wait(&self) -> Duration;
    /// Drops the value of a key at once, and stores another as the acting owner, unless a later write passes it.
    fn set(self: Arc<Self>, key: &str, value: Bytes) -> ResponseFuture;
    /// Frees the memory of entries that are of no use any more, a few entries at a time.
    fn sweep(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
    /// Counts the loads that run past their deadline.
    fn watch(&self);
    /// Ends the group, which was taken out of its node: waiters get an error. The memory of many entries is freed a moment
    /// later.
    fn close(self: Arc<Self>);
}

/// See [`Registry::takes_many`].
pub(crate) struct BatchWindow<'a>(&'a AtomicUsize);

impl Drop for BatchWindow<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The groups of a node.
pub(crate) struct Registry {
    groups: DashMap<Arc<str>, Registered, Keyed>,
    /// Indices are never given again, so that a late request cannot meet another group.
    next_index: AtomicU32,
    /// Grows with each change.
    version: AtomicU64,
    /// Frames, or calls for many keys, that are being taken at this moment.
    taking: AtomicUsize,
}

#[derive(Clone)]
struct Registered {
    index: u32,
    group: Arc<dyn GroupService>,
}

impl Registry {
    pub(crate) fn new(hasher: Keyed) -> Self {
        Self {
            groups: sharded(hasher),
            next_index: AtomicU32::new(1),
            version: AtomicU64::new(0),
            taking: AtomicUsize::new(0),
        }
    }

    /// Many requests are about to be taken, without an await between them: loads that want company wait for the end.
    pub(crate) fn takes_many(&self) -> BatchWindow<'_> {
        self.taking.fetch_add(1, Relaxed);
        BatchWindow(&self.taking)
    }

    /// Whether more requests may come in this moment.
    pub(crate) fn is_taking(&self) -> bool {
        self.taking.load(Relaxed) > 0
    }

    /// Adds a group and returns its index.
    pub(crate) fn add(&self, name: &Arc<str>, group: Arc<dyn GroupService>) -> Result<u32> {
        if self.groups.len() >= MAX_GROUPS {
            return Err(Error::config(format!(
                "this node has {MAX_GROUPS} groups, and more do not fit into what it says of itself; a group is a kind of \
                 values, not one value"
            )));
        }
        let index = match self.groups.entry(Arc::clone(name)) {
            Entry::Occupied(_) => {
                return Err(Error::config(format!(
                    "there is a group {name:?} on this node already; keep the one that was built, or choose another name"
                )));
            }
            Entry::Vacant(vacant) => {
                let index = self.next_index.fetch_add(1, Relaxed);
                vacant.insert(Registered { index, group });
                index
            }
        };
        self.version.fetch_add(1, AcqRel);
        Ok(index)
    }

    /// Takes a group out; it is closed by the caller, outside of the registry's locks.
    pub(crate) fn remove(&self, name: &str) -> Option<Arc<dyn GroupService>> {
        let (_, registered) = self.groups.remove(name)?;
        self.version.fetch_add(1, AcqRel);
        Some(registered.group)
    }

    /// Takes all groups out.
    pub(crate) fn take_all(&self) -> Vec<Arc<dyn GroupService>> {
        let names: Vec<_> = self.groups.iter().map(|registered| Arc::clone(registered.key())).collect();
        names.iter().filter_map(|name| self.remove(name)).collect()
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<dyn GroupService>> {
        self.groups.get(name).map(|registered| Arc::clone(&registered.group))
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Acquire)
    }

    pub(crate) fn all(&self) -> Vec<Arc<dyn GroupService>> {
        self.groups.iter().map(|registered| Arc::clone(&registered.group)).collect()
    }

    /// The groups as a Hello lists them, in the order of their indices.
    pub(crate) fn names(&self) -> Vec<GroupName> {
        let name = |r: dashmap::mapref::multiple::RefMulti<'_, Arc<str>, Registered>| GroupName {
            index: r.index,
            name: Arc::clone(r.key()),
            format: r.group.format(),
        };
        let mut names: Vec<_> = self.groups.iter().map(name).collect();
        names.sort_by_key(|group| group.index);
        names
    }
}
