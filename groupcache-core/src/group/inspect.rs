//! Inspection of a group: the owners of keys, the entries of this node, and its latencies.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use crate::{
    cache::{EvictionEvents, payload::Slot, store::Key},
    engine::Engine,
    identity::{NodeState, PeerId},
    membership::stabilizer::Member,
    runtime::{clock::NEVER, histogram::Latencies},
    value::Value,
};

/// Maximum number of candidates that are reported, because requests go no further than the first few.
const MAX_CANDIDATES: usize = 8;

/// Placement of a key by the view of one node: its owner and its successors. Made by [`Inspect::explain`]; its
/// `Display` is a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyPlacement {
    /// Point of the key on the ring, which follows from the group and the key and is equal on every node.
    pub point: u64,
    /// Fingerprint of the ring. Nodes with different rings may give a key different owners.
    pub fingerprint: u64,
    /// Number of the view of this node.
    pub epoch: u64,
    /// Number of members that own keys of this group.
    pub owners: usize,
    /// Owner and successors, in the order in which they are asked; at most eight.
    pub candidates: Vec<Candidate>,
}

/// Node that may answer for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Candidate {
    /// Id of the node.
    pub id: PeerId,
    /// State that the node reports of itself.
    pub state: NodeState,
    /// Whether the candidate is this node.
    pub local: bool,
    /// Whether requests can be sent to the candidate now.
    pub reachable: bool,
    /// Whether the candidate has the group, in the format of this node.
    pub has_group: bool,
}

impl KeyPlacement {
    /// Returns the candidate that answers a get which misses on this node, perhaps this node itself. Returns `None` if
    /// a get skips all candidates and loads the key on this node.
    pub fn asked(&self) -> Option<&Candidate> {
        self.candidates.iter().find(|candidate| candidate.reachable && candidate.has_group)
    }
}

/// Entry in this node's memory, made by [`Inspect::local_entries`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntryInfo {
    /// Key of the entry.
    pub key: String,
    /// Bytes that the entry takes of the budget: key, encoded and decoded value, and overhead.
    pub bytes: u64,
    /// Time since the value was loaded or set, on any node.
    pub age: Duration,
    /// Remaining time for which the entry is fresh. `None` means until it is evicted or written, and zero means that it
    /// is stale or expired. A replica or an orphaned entry counts as fresh while it may be served.
    pub fresh_for: Option<Duration>,
    /// Whether the entry is a replica of a hot value that another node owns.
    pub replica: bool,
    /// Whether the entry records that the loader found nothing.
    pub negative: bool,
}

/// Inspection of one group on this node, for tools and tests; made by [`Group::inspect`](crate::Group::inspect).
pub struct Inspect<V: Value>(pub(super) Arc<Engine<V>>);

impl<V: Value> fmt::Debug for Inspect<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspect").field("group", &self.0.settings.name).finish_non_exhaustive()
    }
}

impl<V: Value> Inspect<V> {
    /// Returns the owner and the successors of a key, with the reasons why a get would or would not ask them. Sends
    /// nothing.
    ///
    /// ```
    /// # fn f(users: groupcache_core::Group<String>) {
    /// println!("{}", users.inspect().explain("12345"));
    /// // n2 owns it: the first of 3 owners from point 9d2c55f6e1a0b437 of ring 51ff0e0a9c6d1b22 on (view 4);
    /// // a get that misses asks n2; then n3, n1 (here)
    /// # }
    /// ```
    pub fn explain(&self, key: &str) -> KeyPlacement {
        let (engine, context) = (&self.0, &self.0.context);
        let (point, scope, view) = (engine.ownership.hash(key), engine.ownership.scope, context.view());
        let candidate = |member: &Member| {
            let (link, local) = (context.link(member), member.is_local());
            let has_group =
                link.as_ref().is_some_and(|link| link.offers(&engine.settings.name, engine.settings.format));
            Candidate {
                id: member.id.clone(),
                state: member.state,
                local,
                reachable: local || link.is_some_and(|link| link.admits()),
                has_group: local || has_group,
            }
        };
        KeyPlacement {
            point,
            fingerprint: view.ring_of(scope),
            epoch: view.epoch,
            owners: view.owners(scope),
            candidates: view.candidates(scope, point).take(MAX_CANDIDATES).map(candidate).collect(),
        }
    }

    /// Returns the owner of a key by this node's view. The owner may be unreachable.
    pub fn owner_of(&self, key: &str) -> PeerId {
        let (engine, context) = (&self.0, &self.0.context);
        let view = context.view_ref();
        let owner = view.owner(engine.ownership.scope, engine.ownership.hash(key));
        owner.map_or_else(|| context.local.hello().id.clone(), |owner| owner.id.clone())
    }

    /// Returns up to `most` entries of this node's memory, in no order: owned entries and replicas, including expired
    /// ones that were not swept yet.
    ///
    /// The call is for tools. The result may miss entries that are inserted or removed meanwhile, and the call keeps
    /// its thread busy for a fraction of a second per million entries.
    pub fn local_entries(&self, most: usize) -> Vec<EntryInfo> {
        let now_ms = self.0.context.now_ms();
        let info = |(key, slot, replica): (Key, Slot<V>, bool)| EntryInfo {
            bytes: slot.weight(&key),
            key: key.as_str().into(),
            age: Duration::from_millis(now_ms.saturating_sub(slot.as_of_ms)),
            fresh_for: (slot.fresh_until_ms() != NEVER)
                .then(|| Duration::from_millis(slot.fresh_until_ms().saturating_sub(now_ms))),
            replica,
            negative: slot.payload.encoded().is_none(),
        };
        self.0.cache.iter().map(info).take(most).collect()
    }

    /// Returns the evictions on this node from now on: of entries that made room for others, and of entries that were
    /// too old.
    ///
    /// An entry that is too old to be of any use leaves with the next sweep, which begins 10 s after the one before
    /// ends. A slow reader loses events and delays no other task.
    pub fn evictions(&self) -> EvictionEvents {
        let engine = &self.0;
        engine.cache.events.subscribe(|| engine.is_removed.load(Relaxed) || engine.context.is_closed())
    }

    /// Returns the latencies of the calls of the loader on this node, including failed calls.
    pub fn load_latencies(&self) -> Latencies {
        self.0.loads.latencies.snapshot()
    }

    /// Returns the latencies of the responses of other nodes to gets of this node, including their loads.
    pub fn peer_latencies(&self) -> Latencies {
        self.0.peer_latencies.snapshot()
    }

    /// Returns the accounted bytes of the entries on this node: keys, encoded and decoded values, and overhead.
    pub fn bytes(&self) -> u64 {
        self.0.cache.bytes()
    }

    /// Returns the number of entries on this node, including expired ones that were not replaced, evicted or swept yet.
    pub fn entries(&self) -> usize {
        self.0.cache.len()
    }

    /// Returns the number of entries on this node that are replicas of hot values of other nodes.
    pub fn replicas(&self) -> usize {
        self.0.cache.replicas_len()
    }

    /// Returns the budget on this node, as given to the builder, rounded down to whole shards. Replicas take an
    /// eighth of it at most, and owned entries the rest.
    pub fn capacity_bytes(&self) -> u64 {
        self.0.cache.capacity()
    }

    /// Returns the weight of the heaviest entry that is kept. A heavier value is returned to callers, counted, and not
    /// kept.
    pub fn max_entry_bytes(&self) -> u64 {
        self.0.cache.owned.max_entry_bytes()
    }
}

impl fmt::Display for KeyPlacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { point, fingerprint, epoch, owners, candidates } = self;
        let Some((owner, successors)) = candidates.split_first() else {
            return f.write_str("no node owns the key yet");
        };
        write!(f, "{owner} owns it: the first of {owners} owners from point {point:016x} ")?;
        write!(f, "of ring {fingerprint:016x} on (view {epoch}); ")?;
        match self.asked() {
            Some(asked) if asked.local => f.write_str("a get that misses loads it here")?,
            Some(asked) => write!(f, "a get that misses asks {}", asked.id)?,
            None => f.write_str("no candidate can be asked, so that a get that misses loads it here")?,
        }
        for (n, successor) in successors.iter().enumerate() {
            write!(f, "{} {successor}", if n == 0 { "; then" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)?;
        match self {
            Self { local: true, .. } => f.write_str(" (here)"),
            Self { reachable: false, .. } => f.write_str(" (unreachable)"),
            Self { has_group: false, .. } => f.write_str(" (without the group)"),
            _ => Ok(()),
        }
    }
}
