//! Inspection of a group: who owns a key and why, and which entries this node has.

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

/// Maximum number of candidates that are reported: nobody asks further than the first few.
const MAX_CANDIDATES: usize = 8;

/// Who owns a key and why, as one node sees it; made by [`Inspect::explain`]. Its `Display` is a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyPlacement {
    /// Where the key is on the ring. Group and key decide it, on every node alike.
    pub point: u64,
    /// The ring that was asked; nodes whose rings differ may give a key different owners.
    pub fingerprint: u64,
    /// Which view of this node that is.
    pub epoch: u64,
    /// How many members own keys of this group.
    pub owners: usize,
    /// The owner and then its successors, in the order in which they are asked; at most eight.
    pub candidates: Vec<Candidate>,
}

/// A node that may answer for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Candidate {
    /// Its id.
    pub id: PeerId,
    /// What it says of itself.
    pub state: NodeState,
    /// Whether it is this node.
    pub local: bool,
    /// Whether requests can be sent to it now.
    pub reachable: bool,
    /// Whether it has the group, in our format.
    pub has_group: bool,
}

impl KeyPlacement {
    /// Whom a get that misses here asks first; `None` when all candidates are passed over, and it is loaded here.
    pub fn asked(&self) -> Option<&Candidate> {
        self.candidates.iter().find(|candidate| candidate.reachable && candidate.has_group)
    }
}

/// An entry in this node's memory; made by [`Inspect::local_entries`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntryInfo {
    /// Its key.
    pub key: String,
    /// What it takes of the budget: key, encoded and decoded value, and overhead.
    pub bytes: u64,
    /// Since it was loaded or set, wherever that was.
    pub age: Duration,
    /// How much longer it is fresh; `None` = until it is evicted or changed, zero = it is stale or has expired. A copy
    /// counts as fresh for as long as it was lent.
    pub fresh_for: Option<Duration>,
    /// It is a copy of a hot value of another node.
    pub replica: bool,
    /// It says that the loader found nothing.
    pub negative: bool,
}

/// A look into one group on this node, for tools and tests; made by [`Group::inspect`].
pub struct Inspect<V: Value>(pub(super) Arc<Engine<V>>);

impl<V: Value> fmt::Debug for Inspect<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspect").field("group", &self.0.settings.name).finish_non_exhaustive()
    }
}

impl<V: Value> Inspect<V> {
    /// Returns who owns a key, who would answer for it, and why. Sends nothing.
    ///
    /// ```
    /// # fn f(users: groupcache_core::Group<String>) {
    /// println!("{}", users.inspect().explain("12345"));
    /// // n2 owns it: the first of 3 owners from point 9d2c55f6e1a0b437 of ring 51ff0e0a9c6d1b22 on (view 4); a get that misses asks n2; then n3, n1 (here)
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

    /// Returns the node that owns a key, by this node's view; whether it can be reached is another question.
    pub fn owner_of(&self, key: &str) -> PeerId {
        let (engine, context) = (&self.0, &self.0.context);
        let view = context.view_ref();
        let owner = view.owner(engine.ownership.scope, engine.ownership.hash(key));
        owner.map_or_else(|| context.local.hello().id.clone(), |owner| owner.id.clone())
    }

    /// Returns up to `most` entries of this node's memory, in no order: owned ones and replicas, expired ones included
    /// until they are swept.
    ///
    /// For tools: the call looks at one entry after the other, and may miss entries that come or go meanwhile. Its thread
    /// does nothing else meanwhile, which is a fraction of a second for a million entries.
    pub fn local_entries(&self, most: usize) -> Vec<EntryInfo> {
        let now_ms = self.0.context.now_ms();
        let info = |(key, slot, replica): (Key, Slot<V>, bool)| EntryInfo {
            bytes: slot.weight(&key),
            key: key.as_str().into(),
            age: Duration::from_millis(now_ms.saturating_sub(slot.loaded_at_ms)),
            fresh_for: (slot.fresh_until_ms() != NEVER)
                .then(|| Duration::from_millis(slot.fresh_until_ms().saturating_sub(now_ms))),
            replica,
            negative: slot.payload.encoded().is_none(),
        };
        self.0.cache.iter().map(info).take(most).collect()
    }

    /// Returns the events of entries that leave this node's memory by themselves, from now on: for want of room, or
    /// because of their age.
    ///
    /// Values that nobody asks for any more leave because of their age within about 10 s. A slow reader loses events and
    /// holds up nobody.
    pub fn evictions(&self) -> EvictionEvents {
        let engine = &self.0;
        engine.cache.events.subscribe(|| engine.is_removed.load(Relaxed) || engine.context.is_closed())
    }

    /// Returns how long the calls of the loader took on this node, failed ones included.
    pub fn load_latencies(&self) -> Latencies {
        self.0.loads.latencies.snapshot()
    }

    /// Returns how long other nodes took to answer gets of this node, their loads included.
    pub fn peer_latencies(&self) -> Latencies {
        self.0.peer_latencies.snapshot()
    }

    /// Returns the bytes that the entries take on this node, as accounted: keys, encoded and decoded values, and overhead.
    pub fn bytes(&self) -> u64 {
        self.0.cache.bytes()
    }

    /// Returns the number of entries on this node, expired ones included until they are looked at or evicted.
    pub fn entries(&self) -> usize {
        self.0.cache.len()
    }

    /// Returns the number of entries on this node that are replicas of hot values of other nodes.
    pub fn replicas(&self) -> usize {
        self.0.cache.replicas_len()
    }

    /// Returns the budget on this node, as given to the builder, rounded down to whole shards. An eighth of it is for
    /// replicas of hot values of other nodes.
    pub fn capacity_bytes(&self) -> u64 {
        self.0.cache.capacity()
    }

    /// Returns the weight of the heaviest entry that is kept; a heavier one is returned to callers, counted, and not kept.
    pub fn max_entry_bytes(&self) -> u64 {
        self.0.cache.owned.max_entry_bytes()
    }
}

impl fmt::Display for KeyPlacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { point, fingerprint, epoch, owners, candidates } = self;
        let Some((owner, successors)) = candidates.split_first() else { return f.write_str("nobody owns it yet") };
        write!(f, "{owner} owns it: the first of {owners} owners from point {point:016x} ")?;
        write!(f, "of ring {fingerprint:016x} on (view {epoch}); ")?;
        match self.asked() {
            Some(asked) if asked.local => f.write_str("a get that misses loads it here")?,
            Some(asked) => write!(f, "a get that misses asks {}", asked.id)?,
            None => f.write_str("no candidate can be asked, a get that misses loads it here")?,
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
