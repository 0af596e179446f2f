//! Ownership: which node owns a key, and whether an entry may still be served after a change of the view.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use crate::{
    cache::{payload::Slot, revalidation::ChangesSince},
    context::NodeContext,
    engine::settings::Settings,
    membership::{
        stabilizer::Member,
        view::{Scope, View},
    },
    ring::KeyHasher,
    runtime::{clock::later, sync::Mutex},
    write::peers::REMEMBERED,
};

/// View with the number of the last change, read before the view was taken.
#[derive(Clone)]
pub(crate) struct ViewSnapshot {
    pub(crate) changes: u32,
    pub(crate) view: Arc<View>,
}

/// Number of candidates that are found at first, because most keys need no more.
const FIRST_CANDIDATES: usize = 8;

/// Candidates of one key in one view, found as far as they were needed. A group that few nodes have passes over many
/// candidates, and the walk around the ring begins at the owner each time, so that each walk finds twice as many.
#[derive(Debug, Default)]
pub(crate) struct Candidates(Mutex<Vec<usize>>);

impl Candidates {
    /// Returns the `rank`-th candidate of a key; rank 0 is the owner. The view, the scope and the key are the same in
    /// each call.
    pub(crate) fn get<'v>(&self, view: &'v View, scope: Scope, hash: u64, rank: usize) -> Option<&'v Member> {
        if rank == 0 {
            return view.owner(scope, hash); // needs no walk
        }
        let mut found = self.0.lock();
        if found.len() <= rank && found.len() < view.owners(scope) {
            *found = view.candidate_places(scope, hash, (2 * (rank + 1)).max(FIRST_CANDIDATES));
        }
        view.members().get(*found.get(rank)?)
    }
}

/// Owners of a group's keys by the view of this node.
pub(crate) struct Ownership {
    context: Arc<NodeContext>,
    /// Name and format of the group.
    group: Arc<str>,
    format: u32,
    /// Whether a key has one owner in the cluster or one in each zone.
    pub(crate) scope: Scope,
    place: KeyHasher,
    replica_time_to_live: Duration,
}

impl Ownership {
    pub(crate) fn new(context: Arc<NodeContext>, settings: &Settings) -> Self {
        Self {
            context,
            group: Arc::clone(&settings.name),
            format: settings.format,
            scope: settings.scope,
            place: KeyHasher::new(&settings.name),
            replica_time_to_live: settings.freshness.replica_time_to_live,
        }
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
        let owner = self.peer_owner(&view, hash).and_then(|owner| self.serving_peer(&view, hash, owner));
        owner.map(|owner| self.context.fallback_cap(owner))
    }

    /// Returns the first candidate that may have the group; `None` if this node comes before. Each get of the cluster
    /// passes over connected nodes without the group, so that the next candidate serves their keys as an owner does.
    fn serving_peer<'v>(&self, view: &'v View, hash: u64, owner: &'v Member) -> Option<&'v Member> {
        if !self.lacks_group(owner) {
            return Some(owner);
        }
        let serving = view.candidates(self.scope, hash).find(|member| !self.lacks_group(member)).unwrap_or(owner);
        (!serving.is_local()).then_some(serving)
    }

    /// Returns whether a peer is connected and has shown that it does not have the group.
    fn lacks_group(&self, member: &Member) -> bool {
        let link = self.context.link(member);
        link.is_some_and(|link| link.admits() && !link.offers(&self.group, self.format))
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
                if self.keep_limit(self.hash(key)).is_some() {
                    slot.orphan(later(first_ms, self.replica_time_to_live));
                }
            }
        }
        slot.checked.store(number, Relaxed);
        !slot.is_expired(now_ms)
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use super::*;
    use crate::{handover::tests::view, ring::WALKED};

    /// Checks that all ranks together cost a few walks around the ring, and name the candidates in their order.
    #[test]
    fn candidates_of_all_ranks_cost_a_few_walks() {
        let ids: Vec<_> = (0..1000).map(|n| format!("n{n}")).collect();
        let view = view(1, &ids.iter().map(|id| (id.as_str(), 1)).collect::<Vec<_>>());
        let hash = 7 << 57;
        let points = |walk: &dyn Fn() -> usize| {
            let before = WALKED.get();
            assert_eq!(walk(), 1000);
            WALKED.get() - before
        };
        let one_walk = points(&|| view.candidates(Scope::Cluster, hash).count());
        let all_ranks = points(&|| {
            let candidates = Candidates::default();
            (0..).map_while(|rank| candidates.get(&view, Scope::Cluster, hash, rank)).count()
        });
        assert!(all_ranks < one_walk * 4, "{one_walk} points of the ring for one walk, and {all_ranks} for all ranks");
        let candidates = Candidates::default();
        let ranks = (0..).map_while(|rank| candidates.get(&view, Scope::Cluster, hash, rank));
        assert!(ranks.map(|member| &member.id).eq(view.candidates(Scope::Cluster, hash).map(|member| &member.id)));
    }
}
