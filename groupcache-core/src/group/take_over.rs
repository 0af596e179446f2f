//! What former owners hand over: kept where nothing is, and where no write can have undone it.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{
    Inner,
    held::{Slot, release},
};
use crate::{
    handover::FormerView,
    message::{self, Handed, Page},
    served::{Pulled, Taken},
    value::Value,
};

/// Entries that are taken before others get their turn: some tens of microseconds.
const TAKEN_AT_ONCE: usize = 64;

/// What is taken over may push out this part of the budget, one over this: the most used comes first, and what comes
/// later must not push that out.
const SHARE: u64 = 4;

impl<V: Value> Inner<V> {
    /// Bytes that may be taken over now.
    pub(super) fn room(&self) -> u64 {
        let capacity = self.store.capacity();
        capacity.saturating_sub(self.store.bytes()) + capacity / SHARE
    }

    /// Stores what it can of a page.
    pub(super) async fn take(self: Arc<Self>, page: Page, pulled: Pulled) -> Taken {
        let mut taken = Taken::default();
        let former = self.shared.handover.former();
        for (n, handed) in page.entries.into_iter().enumerate() {
            // Before the first, too: the next page is asked for meanwhile.
            if n % TAKEN_AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
            // All keys were written since they have moved: nothing that others still have of them is wanted.
            if self.formers.is_cleared_since(pulled.since_ms) || self.is_removed.load(Relaxed) {
                taken.is_over = true;
                break;
            }
            if let Some(bytes) = self.take_one(&handed, &pulled, &former) {
                taken.kept += 1;
                taken.bytes += bytes;
                self.counters.taken_over.up();
                self.counters.taken_over_bytes.add(handed.bytes.len() as u64);
            }
        }
        taken
    }

    /// What it takes of the budget; `None` = it is not kept.
    fn take_one(&self, handed: &Handed, pulled: &Pulled, former: &[FormerView]) -> Option<u64> {
        let key = message::key(&handed.key).ok()?;
        let hash = self.place.hash(key.as_bytes());
        let now_ms = self.shared.now_ms();
        let is_wanted = self.owns(&self.shared.view_ref(), hash) && !self.holds.is_held(key, pulled.asked_ms);
        // What this node has handed over itself, and gets back, is about to end.
        let is_left_over = |slot: &Slot<V>| slot.is_expired(now_ms) || slot.is_lent();
        if !is_wanted || !self.store.peek(key).as_ref().is_none_or(is_left_over) {
            return None;
        }
        // It may be of a change long before the last one: what was loaded or written here since then is newer.
        let scope = self.settings.scope;
        let was_its = |former: &&FormerView| former.view.owner(scope, hash).is_some_and(|o| o.id == pulled.peer);
        let (number, since_ms) =
            former.iter().find(was_its).map_or((0, pulled.since_ms), |former| (former.number, former.since_ms));
        if self.formers.is_cleared_since(since_ms) {
            return None;
        }
        let slot = self.handed(hash, &handed.bytes, handed.age_ms, handed.remaining_ms, pulled.changes)?;
        let bytes = slot.weight(key);
        let mut slot = Some(slot);
        let fill = || {
            // What is there is handed out: it may be the last of it, and is let go of outside of the lock.
            let there = self.store.peek(key);
            let is_free = there.as_ref().is_none_or(is_left_over);
            let is_settled = self.formers.is_settled(number, hash) && !mutant!(PullIgnoresStripes);
            let kept = slot.take_if(|_| is_free && !is_settled);
            (there, kept.map(|slot| self.store.insert(key, slot)))
        };
        let filled = self.flights.fill(key, pulled.asked_ms, fill);
        release(slot); // not kept
        let (there, inserted) = filled?;
        release(there);
        self.stored(key, inserted?, false);
        Some(bytes)
    }
}
