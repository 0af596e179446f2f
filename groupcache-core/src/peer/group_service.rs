//! The object-safe service of a group, through which the server answers peers, and the registry of a node's groups.

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
    identity::{Instance, PeerId},
    limits::MAX_GROUPS,
    protocol::{
        chain::LoadChain,
        message::{Bounds, GroupName, Page, Response, Strikes, WriteName},
    },
    runtime::{
        byte_budget::ByteShare,
        sync::{Keyed, sharded},
    },
    telemetry::{GroupInfo, GroupLoads},
};

/// Notice to a peer that the load of a key with strikes waits for its turn, or begins.
pub(crate) type Notice = Box<dyn Fn(Response) + Send>;

/// Bytes of the value of a set, in the budgets of its peer and of all peers.
pub(crate) type ValueRoom = [ByteShare; 2];

/// Load for a request of a peer that memory could not answer.
pub(crate) struct LoadRequest<'a> {
    pub(crate) key: &'a str,
    /// Time that the peer waits, from the arrival of the request.
    pub(crate) wait: Duration,
    pub(crate) chain: LoadChain,
    /// Strikes against the key, as the request carries them.
    pub(crate) strikes: Option<Strikes>,
    /// Present in a request that carries strikes, or while any key has strikes here, if the peer understands notices.
    pub(crate) notice: Option<Notice>,
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
    /// Number of the last change in the node's change log at that time.
    pub(crate) changes: u32,
    /// Coarse time of the first request of the transfer.
    pub(crate) since_ms: u64,
    /// Whether the peer keeps logs of writes, so that the page shows its positions.
    pub(crate) has_log: bool,
}

/// Outcome of storing a page.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PageResult {
    /// Number of entries that were kept.
    pub(crate) kept: u64,
    /// Bytes of the budget that the kept entries take.
    pub(crate) bytes: u64,
    /// Whether no more pages are wanted.
    pub(crate) is_over: bool,
}

/// Group as the server sees it: without its type of values, and without a way to send requests to other peers.
pub(crate) trait GroupService: Send + Sync {
    /// Returns the version of the encoding of the group's values.
    fn format(&self) -> u32;
    /// Returns the facts of the group at this moment, for tools.
    fn info(&self) -> GroupInfo;
    /// Returns the loads that run and the last ones that have ended, for tools.
    fn loads(&self) -> GroupLoads;
    /// Returns the response to a get from memory, if memory can answer it.
    fn cached_response(self: Arc<Self>, key: &str) -> Option<Response>;
    /// Returns the response to a peek, if memory can answer it. Begins no load and counts as no get.
    fn peeked_response(&self, key: &str) -> Option<Response>;
    /// Returns the cached value of a key that the requesting peer owns, with its remaining time to live. Never loads.
    fn read_as_previous_owner(&self, key: &str) -> Response;
    /// Returns a page of the entries that a peer owns. The cursor says that all entries before it have arrived there.
    fn page(self: Arc<Self>, to: PeerId, cursor: u64) -> ResponseFuture;
    /// Fills the transfer plan of the entries that other nodes own.
    fn build_plan(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
    /// Returns the progress of the transfers to the peers that can be reached; `None` while there is no plan.
    fn progress(&self, is_reached: &dyn Fn(&PeerId) -> bool) -> Option<Progress>;
    /// Returns how many bytes a hand-over may bring at this moment.
    fn room(&self) -> u64;
    /// Stores the entries of a page that are still wanted.
    fn store_page(
        self: Arc<Self>,
        page: Page,
        request: PageRequest,
    ) -> Pin<Box<dyn Future<Output = PageResult> + Send>>;
    /// Joins the load of a key or begins it. Dropping the future leaves the load running.
    fn load(self: Arc<Self>, request: LoadRequest<'_>) -> ResponseFuture;
    /// Drops the value of a key that another node writes. Loads that run, and loads within `hold`, are not cached.
    fn invalidate_and_hold(&self, key: &str, hold: Duration);
    /// Drops the value of a key. Loads that run are not cached.
    fn invalidate(&self, key: &str) {
        self.invalidate_and_hold(key, Duration::ZERO);
    }
    /// Drops all values. Loads that run are not cached.
    fn clear(&self);
    /// Returns how long a request may wait for a load. The time is longer than the deadline of a load, because the load
    /// reports its own time-out.
    fn longest_wait(&self) -> Duration;
    /// Drops the value of a key at once, and stores the new value as the owner or acting owner, unless a later write
    /// discards it.
    ///
    /// `room` holds the bytes of the value until it is decoded. `known` is the writer, with the writes of the key that it knew of; `None` for a writer without a log. If this node has
    /// heard of another write, the value is only dropped.
    fn set(
        self: Arc<Self>,
        key: &str,
        value: Bytes,
        room: Option<ValueRoom>,
        known: Option<(&Instance, &[WriteName])>,
    ) -> ResponseFuture;
    /// Returns whether the group holds no value on this node.
    fn is_empty(&self) -> bool;
    /// Drops all values and detaches all flights, because this node lacks the writes of the time before.
    fn forget(&self);
    /// Returns the times after which this node serves no value of the group that lacks a write.
    fn bounds(&self) -> Bounds;
    /// Removes entries that cannot be served any more, a few at a time.
    fn sweep(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
    /// Counts and logs the loads that run past their deadline.
    fn watch(&self);
    /// Closes a group that was removed from its node. Waiters receive an error. The memory of many entries is freed in
    /// the background.
    fn close(self: Arc<Self>);
}

/// Guard of a window of [`Registry::takes_many`]. Dropping it closes the window.
pub(crate) struct BatchWindow<'a>(&'a AtomicUsize);

impl Drop for BatchWindow<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The groups of a node.
pub(crate) struct Registry {
    groups: DashMap<Arc<str>, Registered, Keyed>,
    /// Index of the next group. No index is reused, so that a late request cannot reach another group.
    next_index: AtomicU32,
    /// Number that grows with each change.
    version: AtomicU64,
    /// Number of frames, and of calls for many keys, that are being dispatched at this moment.
    taking: AtomicUsize,
}

/// Group of the registry with its index.
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

    /// Opens a window in which the requests of one frame, or of one call for many keys, are dispatched. Loads that can
    /// share a call of a batch loader wait for its end, but no longer than a few milliseconds.
    pub(crate) fn takes_many(&self) -> BatchWindow<'_> {
        self.taking.fetch_add(1, Relaxed);
        BatchWindow(&self.taking)
    }

    /// Returns whether a window is open, so that more requests may follow at once.
    pub(crate) fn is_taking(&self) -> bool {
        self.taking.load(Relaxed) > 0
    }

    /// Adds a group and returns its index.
    pub(crate) fn add(&self, name: &Arc<str>, group: Arc<dyn GroupService>) -> Result<u32> {
        if self.groups.len() >= MAX_GROUPS {
            return Err(Error::config(format!(
                "this node has {MAX_GROUPS} groups, and its Hello has no room for more; make one group for each kind of \
                 values, not for each value"
            )));
        }
        let index = match self.groups.entry(Arc::clone(name)) {
            Entry::Occupied(_) => {
                return Err(Error::config(format!(
                    "this node has a group {name:?} already; keep the one that was built, or choose another name"
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

    /// Removes a group and returns it. The caller closes the group, outside of the registry's locks.
    pub(crate) fn remove(&self, name: &str) -> Option<Arc<dyn GroupService>> {
        let (_, registered) = self.groups.remove(name)?;
        self.version.fetch_add(1, AcqRel);
        Some(registered.group)
    }

    /// Removes all groups and returns them. The caller closes them.
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

    /// Returns the groups as a Hello lists them, in the order of their indices.
    pub(crate) fn names(&self) -> Vec<GroupName> {
        let name = |r: dashmap::mapref::multiple::RefMulti<'_, Arc<str>, Registered>| GroupName {
            index: r.index,
            name: Arc::clone(r.key()),
            format: r.group.format(),
            bounds: r.group.bounds(),
        };
        let mut names: Vec<_> = self.groups.iter().map(name).collect();
        names.sort_by_key(|group| group.index);
        names
    }
}
