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
    chain::Chain,
    config::MAX_GROUPS,
    error::{Error, Result},
    identity::PeerId,
    message::{Answer, GroupName, Page},
    sync::{Keyed, sharded},
};

/// A peer's question that memory could not answer.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) key: &'a str,
    pub(crate) wait: Duration,
    pub(crate) chain: Chain,
}

pub(crate) type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// How far a hand-over is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Entries that have arrived, of all that there were.
    pub(crate) arrived: usize,
    pub(crate) all: usize,
    /// Lists, each of one group for one node, that have not arrived as a whole.
    pub(crate) waits_for: usize,
}

impl Progress {
    pub(crate) fn add(&mut self, other: &Self) {
        self.arrived += other.arrived;
        self.all += other.all;
        self.waits_for += other.waits_for;
    }
}

/// A page that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Pulled {
    /// Of whom.
    pub(crate) peer: PeerId,
    /// When it was, in coarse time that was read.
    pub(crate) asked_ms: u64,
    /// The last change then.
    pub(crate) changes: u32,
    /// When the first of them was.
    pub(crate) since_ms: u64,
}

/// What became of a page.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taken {
    pub(crate) kept: u64,
    /// What those take of the budget.
    pub(crate) bytes: u64,
    /// No more is wanted.
    pub(crate) is_over: bool,
}

/// A group, as the peer server sees it: without its type of values, and without a way to ask further peers.
pub(crate) trait Served: Send + Sync {
    /// Version of the encoding of its values.
    fn format(&self) -> u32;
    /// What is in memory.
    fn hit(self: Arc<Self>, key: &str) -> Option<Answer>;
    /// What is in memory of a key that the asker owns now, with all that is left of its time.
    fn former(&self, key: &str) -> Answer;
    /// A page of what this peer owns now. The cursor says that all before it has arrived there.
    fn hand_over(self: Arc<Self>, to: PeerId, cursor: u64) -> Answering;
    /// Makes the lists of what others own now.
    fn list(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
    /// How far the hand-over to those is that can be reached; `None` = the lists are not made.
    fn progress(&self, is_reached: &dyn Fn(&PeerId) -> bool) -> Option<Progress>;
    /// Bytes that may be taken over now.
    fn room(&self) -> u64;
    /// Stores what it can of a page of a former owner.
    fn take_over(self: Arc<Self>, page: Page, pulled: Pulled) -> Pin<Box<dyn Future<Output = Taken> + Send>>;
    /// Joins the load of a key or begins it. Dropping the future leaves the load running.
    fn load(self: Arc<Self>, ask: Ask<'_>) -> Answering;
    /// Drops what is held, and lets nothing be stored that is under way or is loaded within `hold`: another node writes.
    fn invalidate_and_hold(&self, key: &str, hold: Duration);
    /// The same, holding nothing.
    fn invalidate(&self, key: &str) {
        self.invalidate_and_hold(key, Duration::ZERO);
    }
    /// The same for all keys.
    fn clear(&self);
    /// How long a request may wait for a load: longer than that may take, which says itself when its time is over.
    fn longest_wait(&self) -> Duration;
    /// Stores a value as the acting owner, unless a later write passes it. What was held is dropped at once.
    fn set(self: Arc<Self>, key: &str, value: Bytes) -> Answering;
    /// Gives back the memory of what is of no use any more, a few entries at a time.
    fn sweep(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
    /// Counts the loads that run past their deadline.
    fn watch(&self);
    /// The group is no longer part of the node: who waits is told. The memory of many entries is given back a moment later.
    fn close(self: Arc<Self>);
}

/// See [`Registry::takes_many`].
pub(crate) struct Taking<'a>(&'a AtomicUsize);

impl Drop for Taking<'_> {
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
    group: Arc<dyn Served>,
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
    pub(crate) fn takes_many(&self) -> Taking<'_> {
        self.taking.fetch_add(1, Relaxed);
        Taking(&self.taking)
    }

    /// Whether more requests may come in this moment.
    pub(crate) fn is_taking(&self) -> bool {
        self.taking.load(Relaxed) > 0
    }

    /// Adds a group and returns its index.
    pub(crate) fn add(&self, name: &Arc<str>, group: Arc<dyn Served>) -> Result<u32> {
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
    pub(crate) fn remove(&self, name: &str) -> Option<Arc<dyn Served>> {
        let (_, registered) = self.groups.remove(name)?;
        self.version.fetch_add(1, AcqRel);
        Some(registered.group)
    }

    /// Takes all groups out.
    pub(crate) fn take_all(&self) -> Vec<Arc<dyn Served>> {
        let names: Vec<_> = self.groups.iter().map(|registered| Arc::clone(registered.key())).collect();
        names.iter().filter_map(|name| self.remove(name)).collect()
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<dyn Served>> {
        self.groups.get(name).map(|registered| Arc::clone(&registered.group))
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Acquire)
    }

    pub(crate) fn all(&self) -> Vec<Arc<dyn Served>> {
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
