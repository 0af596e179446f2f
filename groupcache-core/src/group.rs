//! A group: the values of one kind, with their loader. A hit is here; the other steps of a get are in `miss`, in order.

mod batch;
mod builder;
mod clear;
mod entries;
mod errors;
mod explain;
mod fetch;
mod former;
mod hand_over;
mod held;
mod hold;
#[cfg(all(test, shuttle))]
mod interleavings;
mod load;
mod look;
mod many;
mod mirror;
mod miss;
mod protect;
mod serve;
mod take_over;
mod times;
mod write;

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::broadcast;

pub(crate) use self::builder::Settings;
pub use self::{
    builder::GroupBuilder,
    entries::{EntryInfo, Evicted, Eviction, Evictions},
    explain::{Candidate, Explained},
    write::Invalidated,
};

use self::{
    batch::Batches,
    fetch::Fetch,
    former::Formers,
    hand_over::Lists,
    held::{Held, NoValue, Slot},
    hold::Holds,
    mirror::{Heat, Mirror},
    protect::Guard,
};
use crate::{
    chain::Lineage,
    error::{Error, Result},
    flight::{Flight, Flights},
    identity::PeerId,
    latency::{Histogram, Latencies},
    loader::SharedLoader,
    ring::KeyHasher,
    shared::Shared,
    stats::{GroupCounters, GroupStats},
    store::Store,
    value::Value,
};

/// A named set of values of one type, shared by all nodes that have a group of the same name.
///
/// A cheap handle: clones are the same group. It works as long as its [`Node`](crate::Node) runs; afterwards
/// everything but a hit is an error with [`is_closed`](Error::is_closed).
pub struct Group<V: Value> {
    inner: Arc<Inner<V>>,
    deadline: Duration,
}

/// What a group is on this node.
pub(crate) struct Inner<V: Value> {
    settings: Settings,
    /// Its index in our Hello.
    index: OnceLock<u32>,
    shared: Arc<Shared>,
    store: Store<Held<V>>,
    /// Copies of hot values of other nodes, unless the group wants none.
    mirror: Option<Mirror<V>>,
    /// How often peers ask for keys here.
    asked: Heat,
    flights: Flights<Outcome<V>, Work<V>>,
    holds: Holds,
    formers: Formers,
    lists: Lists,
    loader: SharedLoader<V>,
    /// In a group with a batch loader: all loads go through it.
    batches: Option<Arc<Batches<V>>>,
    guard: Guard,
    place: KeyHasher,
    counters: GroupCounters,
    load_latencies: Histogram,
    peer_latencies: Histogram,
    /// Made for the first reader.
    /// `None` is the last that is told.
    evictions: OnceLock<broadcast::Sender<Option<Evicted>>>,
    /// It was taken out of its node.
    is_removed: AtomicBool,
}

/// How a flight ends.
type Outcome<V> = Result<Slot<V>, Failure>;

type Flying<V> = Arc<Flight<Outcome<V>, Work<V>>>;

/// What a flight does.
enum Work<V: Value> {
    /// It asks a peer.
    Fetch(Fetch<V>),
    /// It runs the loader.
    Load(Arc<Lineage>),
}

impl<V: Value> Work<V> {
    fn lineage(&self) -> Option<&Arc<Lineage>> {
        if let Self::Load(lineage) = self { Some(lineage) } else { None }
    }

    /// How deep the loads are nested that it is known to be done for.
    fn depth(&self) -> usize {
        match self {
            Self::Fetch(fetch) => fetch.depth(),
            Self::Load(lineage) => lineage.depth(),
        }
    }
}

/// Why a flight ended without a value.
#[derive(Clone, Debug)]
enum Failure {
    /// The error of everyone who waited.
    Said(Error),
    /// The flight's own deadline passed while this peer, or this node, was at work; who may wait longer asks again.
    Expired(Option<PeerId>),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Said(error)
    }
}

impl<V: Value> Group<V> {
    /// The value of a key: from memory, from the node that owns the key, or from the loader.
    ///
    /// Keys are 1 to 1,024 bytes. At most one load of a key runs in the whole cluster, however many callers on
    /// however many nodes ask for it, and it goes on when a caller gives up: dropping the future is safe at any
    /// time. It ends within the group's deadline (default 10 s).
    ///
    /// # Errors
    /// Ask them by their predicates: [`is_not_found`](Error::is_not_found),
    /// [`is_load_failed`](Error::is_load_failed), [`is_timeout`](Error::is_timeout),
    /// [`is_overloaded`](Error::is_overloaded), [`is_too_large`](Error::is_too_large),
    /// [`is_bad_key`](Error::is_bad_key), [`is_closed`](Error::is_closed). An unreachable peer is none of them:
    /// its keys are asked of its successor, or loaded here.
    ///
    /// ```
    /// # use groupcache_core::Node;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), groupcache_core::Error> {
    /// let node = Node::builder().start().await?;
    /// let names = node
    ///     .group::<String>("names")
    ///     .capacity_bytes(1 << 20)
    ///     .loader(async |key: &str| Ok::<_, std::io::Error>(format!("name of {key}")))
    ///     .build()?;
    /// assert_eq!(names.get("12345").await?, "name of 12345");
    /// # node.shutdown().await?; Ok(()) }
    /// ```
    pub async fn get(&self, key: &str) -> Result<V> {
        match self.hit(key) {
            Some(known) => known,
            // Boxed: a hit does not pay for the state of a miss.
            None => Box::pin(self.inner.miss(key, self.deadline)).await,
        }
    }

    /// The first step of a get: what memory knows.
    fn hit(&self, key: &str) -> Option<Result<V>> {
        let group = &self.inner;
        // 1. Memory.
        let now_ms = group.shared.now_ms();
        if let Some(slot) = group.store.get(key, now_ms)
            && group.may_serve(key, &slot, now_ms)
            && !group.is_removed.load(Relaxed)
        {
            match slot.payload.value() {
                Ok(value) => {
                    group.counters.hits.up();
                    slot.touch(now_ms);
                    group.freshen(key, &slot, now_ms);
                    return Some(Ok(value));
                }
                Err(NoValue::NotFound) => {
                    group.counters.hits.up();
                    return Some(Err(group.not_found()));
                }
                Err(NoValue::Undecodable(_)) => {}
            }
        }
        // A copy of what another node owns.
        if let Some(mirror) = &group.mirror
            && let Some(slot) = mirror.get(key, now_ms)
            && group.may_serve(key, &slot, now_ms)
            && !group.is_removed.load(Relaxed)
            && let Ok(value) = slot.payload.value()
        {
            group.counters.hits.up();
            group.counters.borrowed_hits.up();
            return Some(Ok(value));
        }
        group.counters.misses.up();
        None
    }

    /// As [`get`](Self::get), with `None` for what the loader does not find.
    ///
    /// # Errors
    /// Those of `get`, except not found.
    pub async fn get_opt(&self, key: &str) -> Result<Option<V>> {
        match self.get(key).await {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The same group with another deadline for its gets and writes.
    ///
    /// It bounds how long *this* caller waits; loads and exchanges keep the node's own deadlines, since others may
    /// wait for them too.
    ///
    /// ```
    /// # fn f(users: groupcache_core::Group<String>) {
    /// let quick = users.with_deadline(std::time::Duration::from_millis(200));
    /// # }
    /// ```
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { inner: Arc::clone(&self.inner), deadline }
    }

    /// The node that owns a key, by this node's view; whether it can be reached is another question.
    pub fn owner_of(&self, key: &str) -> PeerId {
        let shared = &self.inner.shared;
        let view = shared.view_ref();
        let owner = view.owner(self.inner.settings.scope, self.inner.place.hash(key.as_bytes()));
        owner.map_or_else(|| shared.local.hello().id.clone(), |owner| owner.id.clone())
    }

    /// The name of the group.
    pub fn name(&self) -> &str {
        &self.inner.settings.name
    }

    /// What has been counted on this node since the group was built.
    pub fn stats(&self) -> GroupStats {
        self.inner.counters.snapshot()
    }

    /// How long the calls of its loader took on this node, those that failed included.
    pub fn load_latencies(&self) -> Latencies {
        self.inner.load_latencies.snapshot()
    }

    /// How long it took until other nodes had answered gets of this one, their loads included.
    pub fn peer_latencies(&self) -> Latencies {
        self.inner.peer_latencies.snapshot()
    }

    /// Bytes that its entries take on this node, as accounted: keys, encoded and decoded values, and overhead.
    pub fn bytes(&self) -> u64 {
        self.inner.store.bytes() + self.inner.mirror.as_ref().map_or(0, Mirror::bytes)
    }

    /// Entries on this node, expired ones included until they are looked at or evicted.
    pub fn entries(&self) -> usize {
        self.inner.store.len() + self.borrowed_entries()
    }

    /// Entries on this node that are copies of hot values of other nodes.
    pub fn borrowed_entries(&self) -> usize {
        self.inner.mirror.as_ref().map_or(0, Mirror::len)
    }

    /// The budget on this node, as given to the builder, rounded down to whole shards. An eighth of it is for copies of
    /// hot values of other nodes.
    pub fn capacity_bytes(&self) -> u64 {
        self.inner.store.capacity() + self.inner.mirror.as_ref().map_or(0, Mirror::capacity)
    }

    /// Heaviest entry that is kept; a heavier one is returned to callers, counted, and not kept.
    pub fn max_entry_bytes(&self) -> u64 {
        self.inner.store.max_entry_bytes()
    }

    /// How many milliseconds longer a key is kept here.
    #[cfg(test)]
    pub(crate) fn kept_for_ms(&self, key: &str) -> Option<u64> {
        let now_ms = self.inner.shared.now_ms();
        self.inner.store.peek(key).map(|slot| slot.hit_until_ms().saturating_sub(now_ms))
    }

    pub(crate) fn of(inner: Arc<Inner<V>>) -> Self {
        let deadline = inner.shared.local.limits.get_deadline;
        Self { inner, deadline }
    }
}

impl<V: Value> Clone for Group<V> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), deadline: self.deadline }
    }
}

impl<V: Value> fmt::Debug for Group<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("name", &self.name()).field("entries", &self.entries()).finish_non_exhaustive()
    }
}
