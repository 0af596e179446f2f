//! Ownership: which node owns a key, and whether an entry may still be served after a change of the view.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use crate::{
    cache::{payload::Slot, revalidation::ChangesSince},
    context::NodeContext,
    membership::{
        stabilizer::Member,
        view::{Scope, View},
    },
    ring::KeyHasher,
    runtime::clock::later,
    write::peers::REMEMBERED,
};

/// View with the number of the last change, read before the view was taken.
#[derive(Clone)]
pub(crate) struct ViewSnapshot {
    pub(crate) changes: u32,
    pub(crate) view: Arc<View>,
}

/// Owners of a group's keys by the view of this node.
pub(crate) struct Ownership {
    context: Arc<NodeContext>,
    /// Whether a key has one owner in the cluster or one in each zone.
    pub(crate) scope: Scope,
    place: KeyHasher,
    replica_time_to_live: Duration,
}

impl Ownership {
    pub(crate) fn new(context: Arc<NodeContext>, scope: Scope, group: &str, replica_time_to_live: Duration) -> Self {
        Self { context, scope, place: KeyHasher::new(group), replica_time_to_live }
    }

    /// Returns the point of a key on the ring.
    pub(crate) fn hash(&self, key: &str) -> u64 {
        self.place.hash(key.as_bytes())
    }

    /// Reads the number of the last change and then takes the view, because an entry with a number that is too old is
    /// only checked once more.
    pub(crate) fn snapshot(&self) -> ViewSnapshot {
        let changes = self.context.changes.number();
        ViewSnapshot { changes, view: self.context.view() }
    }

    /// Returns the owner of a key if another node owns it.
    pub(crate) fn peer_owner<'v>(&self, view: &'v View, hash: u64) -> Option<&'v Member> {
        view.owner(self.scope, hash).filter(|owner| !owner.is_local())
    }

    /// Returns the `rank`-th candidate of a key; rank 0 is the owner.
    pub(crate) fn candidate<'v>(&self, view: &'v View, hash: u64, rank: usize) -> Option<&'v Member> {
        match rank {
            0 => view.owner(self.scope, hash), // needs no allocation
            _ => view.candidates(self.scope, hash).nth(rank),
        }
    }

    /// Returns whether this node owns a key in `view`.
    pub(crate) fn owns(&self, view: &View, hash: u64) -> bool {
        self.peer_owner(view, hash).is_none()
    }

    /// Returns whether this node owns a key now.
    pub(crate) fn is_mine(&self, hash: u64) -> bool {
        self.owns(&self.context.view_ref(), hash)
    }

    /// Returns the maximum time for which a value may be kept, or `None` for no limit. Keys of other nodes have a limit.
    pub(crate) fn keep_limit(&self, hash: u64) -> Option<Duration> {
        let view = self.context.view_ref();
        self.peer_owner(&view, hash).map(|owner| self.context.fallback_cap(owner))
    }

    /// Returns whether an entry may be served after the changes so far. In quiet times
    /// the call compares two numbers.
    #[inline]
    pub(crate) fn may_serve<V>(&self, key: &str, slot: &Slot<V>, now_ms: u64) -> bool {
        let number = self.context.changes.number();
        slot.checked.load(Relaxed) == number || self.revalidate(key, slot, now_ms, number)
    }

    /// Checks an entry against the changes since its last check. If another node owns the key now, the entry is
    /// orphaned: it is served for the time of a replica, counted from the first change. After an absence an entry ends if
    /// writes from after its load may be forgotten.
    fn revalidate<V>(&self, key: &str, slot: &Slot<V>, now_ms: u64, number: u32) -> bool {
        match self.context.changes.since(slot.checked.load(Relaxed)) {
            ChangesSince::Nothing => {} // another caller has checked the entry meanwhile
            ChangesSince::TooMuch => slot.cap(0),
            ChangesSince::Changes { first_ms, absence_ms } => {
                if absence_ms.is_some_and(|absence_ms| later(slot.as_of_ms, REMEMBERED) < absence_ms) {
                    slot.cap(0);
                }
                if !self.is_mine(self.hash(key)) {
                    slot.orphan(later(first_ms, self.replica_time_to_live));
                }
            }
        }
        slot.checked.store(number, Relaxed);
        !slot.is_expired(now_ms)
    }
}
