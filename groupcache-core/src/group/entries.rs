//! What is in this node's memory, and what leaves it: for tools.

use std::{
    sync::{
        Arc,
        atomic::{Ordering::Relaxed, Ordering::SeqCst, fence},
    },
    time::Duration,
};

use tokio::sync::broadcast::{self, error::RecvError};

use super::{
    Group, Inner,
    held::{Held, Slot, release, release_all},
    mirror::Mirror,
};
use crate::{
    clock::NEVER,
    store::{Admission, Inserted, Key},
    value::Value,
};

/// Evictions that wait for a reader who is slow; the oldest are lost beyond.
const WAITING_EVICTIONS: usize = 4096;

/// Entries that are looked at before others get their turn: some tens of microseconds.
const SWEPT_AT_ONCE: usize = 256;

/// An entry in this node's memory; made by [`Group::local_entries`].
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
    pub is_borrowed: bool,
    /// It says that the loader found nothing.
    pub is_nothing: bool,
}

/// Why an entry left by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Eviction {
    /// Others needed its room.
    Room,
    /// It was too old to be of any use.
    Age,
}

/// An entry that left by itself; neither a write nor a younger value took its place.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Evicted {
    /// Its key.
    pub key: Arc<str>,
    /// What it took of the budget.
    pub bytes: u64,
    /// Why it left.
    pub why: Eviction,
    /// It was a copy of a hot value of another node.
    pub is_borrowed: bool,
}

/// Entries that leave this node's memory by themselves, from now on; made by [`Group::evictions`].
#[derive(Debug)]
pub struct Evictions {
    events: broadcast::Receiver<Option<Evicted>>,
    is_over: bool,
    lost: u64,
}

impl Evictions {
    /// The next one; `None` once the group was removed or its node shut down. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Evicted> {
        while !self.is_over {
            match self.events.recv().await {
                Ok(Some(evicted)) => return Some(evicted),
                Ok(None) | Err(RecvError::Closed) => self.is_over = true,
                Err(RecvError::Lagged(lost)) => self.lost += lost,
            }
        }
        None
    }

    /// How many were lost because more than 4,096 waited to be read.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

impl<V: Value> Group<V> {
    /// Up to `most` entries of this node's memory, in no order: its own and copies, those included that have expired and
    /// were not yet swept. For tools: it looks at one after the other, and what comes or goes meanwhile may be missed.
    /// Its thread does nothing else meanwhile, which is a fraction of a second for a million entries.
    pub fn local_entries(&self, most: usize) -> Vec<EntryInfo> {
        let group = &self.inner;
        let now_ms = group.shared.now_ms();
        let info = |key: Key, slot: &Slot<V>, is_borrowed| EntryInfo {
            bytes: slot.weight(&key),
            key: key.as_str().into(),
            age: Duration::from_millis(now_ms.saturating_sub(slot.loaded_at_ms)),
            fresh_for: (slot.fresh_until_ms() != NEVER)
                .then(|| Duration::from_millis(slot.fresh_until_ms().saturating_sub(now_ms))),
            is_borrowed,
            is_nothing: slot.payload.encoded().is_none(),
        };
        let own = group.store.iter().map(|(key, slot)| info(key, &slot, false));
        let copies = group.mirror.iter().flat_map(|mirror| mirror.store().iter());
        own.chain(copies.map(|(key, slot)| info(key, &slot, true))).take(most).collect()
    }

    /// Tells of entries that leave this node's memory by themselves, from now on: for want of room, or by age.
    ///
    /// Values that nobody asks for any more leave by age within about 10 s. A reader who is slow loses events and holds
    /// up nobody.
    pub fn evictions(&self) -> Evictions {
        let group = &self.inner;
        let events = group.evictions.get_or_init(|| broadcast::Sender::new(WAITING_EVICTIONS)).subscribe();
        // The end may have been told before. With the fence of who tells it, one of the two sees the other.
        fence(SeqCst);
        if group.is_removed.load(Relaxed) || group.shared.is_closed() {
            group.tell_no_more();
        }
        Evictions { events, is_over: false, lost: 0 }
    }
}

impl<V: Value> Inner<V> {
    /// An entry was stored: what had to leave for it is counted and told of, and dropped here. Not under a lock.
    pub(super) fn stored(&self, key: &str, inserted: Inserted<Held<V>>, is_borrowed: bool) {
        if inserted.admission == Admission::TooLarge && !is_borrowed {
            self.counters.too_large_to_keep.up();
        }
        let mut count = 0;
        for (key, slot) in inserted.evicted(key) {
            count += 1;
            self.left(key, slot, Eviction::Room, is_borrowed);
        }
        self.counters.evictions.add(count);
        release_all(inserted.into_items());
    }

    /// An entry has left by itself.
    pub(super) fn left(&self, key: &str, slot: &Slot<V>, why: Eviction, is_borrowed: bool) {
        if let Some(events) = self.evictions.get().filter(|events| events.receiver_count() > 0) {
            // Fails only when the last reader has left meanwhile.
            let _ = events.send(Some(Evicted { key: key.into(), bytes: slot.weight(key), why, is_borrowed }));
        }
    }

    /// The group has come to its end.
    pub(super) fn tell_no_more(&self) {
        fence(SeqCst);
        if let Some(events) = self.evictions.get() {
            let _ = events.send(None);
        }
    }

    /// Takes out of a store what is of no use any more, and lets others have their turn in between.
    pub(super) async fn sweep_store(&self, mirror: Option<&Mirror<V>>) {
        let store = mirror.map_or(&self.store, Mirror::store);
        for (looked_at, (key, slot)) in store.iter().enumerate() {
            if slot.is_spent(self.shared.now_ms()) && store.remove_same(&key, &slot).is_some() {
                self.counters.expired.up();
                self.left(&key, &slot, Eviction::Age, mirror.is_some());
            }
            release(slot); // taken out by somebody else meanwhile, it is the last of it here too
            if looked_at % SWEPT_AT_ONCE == SWEPT_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
        }
    }
}
