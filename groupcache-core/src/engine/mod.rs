//! Engine of a group: answers gets, runs loads and carries out writes on this node.
//!
//! To follow a get, read [`get`] for its steps, then [`fetch`] for the request to the owner, then [`load`] and
//! [`load_task`] for the call of the loader. Writes are in [`write`], requests of peers in [`peer_api`], and the
//! hand-over in [`send`], [`receive`] and [`previous_owner`].
//!
//! The cache, the control of loads, the ownership of keys and the hand-over each keep their own state and locks. Locks
//! nest in one order only: the shard of a flight first, and under it the store, the log of changes or the overwritten
//! keys.

mod apply;
mod batch;
mod decode;
mod entry;
mod errors;
mod fetch;
mod fetch_answer;
mod get;
pub(crate) mod get_many;
mod info;
#[cfg(all(test, shuttle))]
mod interleavings;
mod load;
mod load_control;
mod load_slots;
mod load_task;
mod lookup;
mod misses;
pub(crate) mod owner_only;
mod ownership;
pub(crate) mod peek;
mod peer_api;
mod pending;
mod previous_owner;
mod receive;
mod send;
mod settings;
mod suspect;
pub(crate) mod write;

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering::Relaxed},
};

pub(crate) use self::{
    batch::Batches,
    load_control::{LoadControl, LoadPolicy},
    ownership::Ownership,
    settings::Settings,
};
use self::{errors::GroupErrors, fetch::Fetch, load_slots::LoadSlots};
use crate::{
    cache::{
        Cache,
        payload::{Payload, Slot},
        store::Inserted,
    },
    context::NodeContext,
    error::{Error, Result},
    flight::{Flight, Flights, nesting::LoadContext},
    handover::GroupHandover,
    identity::PeerId,
    loader::{SharedBatchLoader, SharedLoader},
    runtime::{histogram::Histogram, stats::GroupCounters, sync::Keyed},
    telemetry::RecentLoads,
    value::Value,
    write::delete_hold::DeleteHolds,
};

/// Group on this node: its components, and the flights that connect them.
pub(crate) struct Engine<V: Value> {
    pub(crate) settings: Settings,
    /// Index of the group in this node's Hello.
    index: OnceLock<u32>,
    pub(crate) context: Arc<NodeContext>,
    pub(crate) cache: Cache<V>,
    pub(crate) flights: Flights<Outcome<V>, Work<V>>,
    pub(crate) load_slots: Arc<LoadSlots<V>>,
    pub(crate) loads: LoadControl<V>,
    pub(crate) ownership: Ownership,
    pub(crate) handover: GroupHandover,
    pub(crate) holds: DeleteHolds,
    pub(crate) counters: Arc<GroupCounters>,
    pub(crate) peer_latencies: Histogram,
    pub(crate) recent_loads: RecentLoads,
    pub(crate) errors: Arc<GroupErrors>,
    /// Whether the group was removed from its node while the node runs.
    pub(crate) is_removed: AtomicBool,
}

/// Milliseconds that a value may take to a peer before it is too old there.
const ON_ITS_WAY_MS: u64 = 100;

/// Returns an age rounded up by one fiftieth, because clocks differ.
fn rounded_up(age_ms: u64) -> u64 {
    age_ms.saturating_add(age_ms.div_ceil(50))
}

/// Outcome of a flight.
pub(crate) type Outcome<V> = std::result::Result<Slot<V>, Failure>;

/// Flight of a group.
pub(crate) type GroupFlight<V> = Arc<Flight<Outcome<V>, Work<V>>>;

/// Work of a flight.
pub(crate) enum Work<V: Value> {
    /// A request to a peer.
    Fetch(Fetch<V>),
    /// A call of the loader.
    Load(Arc<LoadContext>),
}

impl<V: Value> Work<V> {
    fn load_context(&self) -> Option<&Arc<LoadContext>> {
        if let Self::Load(context) = self { Some(context) } else { None }
    }

    /// Returns whether the outcome may lack a write that this node has heard of, so that no later get shares it.
    fn is_doubtful(&self) -> bool {
        matches!(self, Self::Fetch(fetch) if fetch.is_doubtful())
    }

    /// Returns the depth of the deepest nested load that is known to wait for this work.
    fn depth(&self) -> usize {
        match self {
            Self::Fetch(fetch) => fetch.depth(),
            Self::Load(context) => context.depth(),
        }
    }
}

/// Reason why a flight ended without a value.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The error of every waiter.
    Final(Error),
    /// The flight's own deadline passed while this peer had the request, or while this node loaded (`None`). A caller
    /// with a later deadline begins again.
    Expired(Option<PeerId>),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Loaders of a group, as the builder received them.
pub(crate) struct Loaders<V: Value> {
    pub(crate) single: SharedLoader<V>,
    /// Batch loader, if the group has one, and the maximum number of keys of one call.
    pub(crate) batch: Option<(SharedBatchLoader<V>, usize)>,
}

impl<V: Value> Engine<V> {
    /// Creates the engine of a group that is not announced yet.
    pub(crate) fn new(context: Arc<NodeContext>, settings: Settings, capacity: u64, loaders: Loaders<V>) -> Arc<Self> {
        // An entry may hold both forms of a value. The encoded form is the heavier one of most types, so that twice the
        // limit of the encoded form is enough.
        let forms = if V::DECODES_LIKE_A_CLONE { 1 } else { 2 };
        let largest = forms * context.local.limits.max_value_bytes as u64 + Payload::<V>::BESIDE_BYTES as u64;
        let counters = Arc::<GroupCounters>::default();
        let errors = Arc::new(GroupErrors::new(Arc::clone(&settings.name), Arc::clone(&counters)));
        Arc::new(Self {
            index: OnceLock::new(),
            cache: Cache::new(capacity, largest, settings.has_replicas, context.random(), Arc::clone(&counters)),
            flights: Flights::new(Arc::clone(&context.stripes), context.random()),
            load_slots: LoadSlots::new(Keyed(context.random())),
            loads: LoadControl::new(&context, &settings, loaders, &errors, &counters),
            ownership: Ownership::new(Arc::clone(&context), &settings),
            handover: GroupHandover::default(),
            holds: DeleteHolds::default(),
            counters,
            peer_latencies: Histogram::new(),
            recent_loads: RecentLoads::default(),
            errors,
            is_removed: AtomicBool::new(false),
            settings,
            context,
        })
    }

    /// Returns the index of the group in this node's Hello, or 0, which names no group, before the group is announced.
    pub(crate) fn index(&self) -> u32 {
        self.index.get().copied().unwrap_or(0)
    }

    pub(crate) fn set_index(&self, index: u32) {
        let _ = self.index.set(index);
    }

    /// Returns the time until which this node has applied every write. Read before an entry, because a write that is
    /// applied between the two reads removes the entry.
    pub(crate) fn horizon_ms(&self) -> u64 {
        self.context.local.writes.horizon_ms()
    }

    /// Returns whether a value that contains every write until `as_of_ms` may be given to a get that began at `now_ms`.
    #[inline]
    pub(crate) fn is_recent(&self, as_of_ms: u64, now_ms: u64) -> bool {
        self.settings.max_staleness_ms.is_none_or(|bound_ms| now_ms.saturating_sub(as_of_ms) <= bound_ms)
    }

    /// Returns whether a value of another node may be kept. In a group with a bound, a kept value is as recent as the
    /// horizon, which must cover the writers that the other node knows of.
    pub(crate) fn may_keep_taken(&self) -> bool {
        self.settings.max_staleness_ms.is_none() || self.context.local.writes.vouches_for_others()
    }

    /// Returns the horizon for the outcome of a fetch; 0 if the horizon does not count for values of other nodes.
    pub(crate) fn horizon_of_taken_ms(&self) -> u64 {
        if self.may_keep_taken() { self.horizon_ms() } else { 0 }
    }

    /// Returns the age, at the arrival of a request, until which a value contains every write, for a peer; `None` in a
    /// group without a bound.
    pub(crate) fn as_of_age_ms(&self, as_of_ms: u64, arrived_ms: u64) -> Option<u64> {
        self.settings.max_staleness_ms.map(|_| arrived_ms.saturating_sub(as_of_ms))
    }

    /// Returns whether a value of this age suits a peer, which rounds the age up. Otherwise the peer would ask again and
    /// again until the value is too old here too.
    pub(crate) fn suits_a_peer(&self, age_ms: u64) -> bool {
        let bound_ms = self.settings.max_staleness_ms.unwrap_or(u64::MAX);
        rounded_up(age_ms).saturating_add(ON_ITS_WAY_MS) <= bound_ms
    }

    /// Returns the time before which a value of a peer contains every write. `age_ms` is the age that the peer sent, as
    /// of the arrival of a request that left at `left_ms`. The age is rounded up by one fiftieth, because clocks differ.
    pub(crate) fn as_of_peer(&self, age_ms: Option<u64>, left_ms: u64) -> Option<u64> {
        let age_ms = age_ms.filter(|_| self.settings.max_staleness_ms.is_some())?;
        if mutant!(AgeNotPassedOn) {
            return Some(left_ms);
        }
        Some(left_ms.saturating_sub(rounded_up(age_ms)))
    }

    /// Drops an entry, in a task of its own if this is the last reference and the `Drop` of the value may take long: it is
    /// user code, and the caller may be the task that reads a connection.
    pub(crate) fn drop_elsewhere(&self, slot: Option<Slot<V>>) {
        // Of two holders that drop the entry at once, exactly one gets it.
        if let Some(last) = slot.filter(|_| Self::DROP_MAY_TAKE_LONG).and_then(triomphe::Arc::into_unique) {
            self.context.tasks.run_user_code(async move { drop(last) });
        }
    }

    /// Drops the entries that an insertion has displaced, in a task of its own if the `Drop` of their values may take long.
    fn drop_displaced(&self, inserted: Inserted<Payload<V>>) {
        if Self::DROP_MAY_TAKE_LONG && inserted.has_displaced() {
            self.context.tasks.run_user_code(async move { drop(inserted) });
        }
    }

    /// Whether the `Drop` of a value may take long.
    const DROP_MAY_TAKE_LONG: bool = !V::DECODES_LIKE_A_CLONE && std::mem::needs_drop::<V>();

    /// Returns an error if the length of `key` is not allowed, or if the group has ended.
    pub(crate) fn check(&self, key: &str) -> Result<()> {
        GroupErrors::check_key(key)?;
        self.check_open()
    }

    /// Returns an error if the group has ended.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_removed.load(Relaxed) {
            Err(self.errors.removed())
        } else if self.context.is_closed() {
            Err(self.errors.closed())
        } else {
            Ok(())
        }
    }
}
