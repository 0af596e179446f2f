//! What this node has and others own now: handed to them a page at a time, the most used first.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::Inner;
use crate::{
    clock::later,
    identity::PeerId,
    message::{Answer, Handed, NO_MORE, Page},
    served::Progress,
    store::Key,
    sync::Mutex,
    value::Value,
    wire,
};

/// Bytes of a page, or one value: what comes behind it on the connection does not wait for long.
const PAGE_BYTES: usize = 192 << 10;

/// Values of a page, whatever their size: taking them over takes a few milliseconds.
const PAGE_ENTRIES: usize = 2048;

/// Entries that are looked at before others get their turn.
const LOOKED_AT_ONCE: usize = 256;

/// How long the lists are kept for somebody who may ask again.
const FORGOTTEN_AFTER_MS: u64 = 60_000;

/// What is to be handed over, as of one ring.
#[derive(Debug, Default)]
pub(super) struct Lists(Mutex<Option<Arc<OfRing>>>);

#[derive(Debug)]
struct OfRing {
    /// Of the newest former view: a ring may come back, when a node starts again under its name, and what there was for
    /// it then is not what there is now.
    number: u64,
    ring: u64,
    /// Of everything, and not only of what was used lately.
    is_whole: bool,
    /// By the new owner; made by the first who needs them.
    lists: OnceCell<BTreeMap<PeerId, List>>,
    used_ms: AtomicU64,
}

impl OfRing {
    /// Where in the lists of this ring a page ends. Another ring has other lists.
    fn cursor(&self, at: usize) -> u64 {
        self.tag() << 32 | at as u64
    }

    fn tag(&self) -> u64 {
        let number = self.number << 1 | u64::from(self.is_whole);
        (self.ring ^ self.ring >> 32).wrapping_add(number) & 0x7fff_ffff
    }

    /// Where to go on: at the beginning, if the cursor is one of another ring.
    fn place(&self, cursor: u64) -> usize {
        if cursor >> 32 == self.tag() { (cursor & 0xffff_ffff) as usize } else { 0 }
    }
}

/// The keys of one new owner, the most used first.
#[derive(Debug, Default)]
struct List {
    keys: Vec<Key>,
    /// How many of them are known to have arrived, or were not there any more.
    arrived: AtomicUsize,
    is_done: AtomicBool,
}

impl<V: Value> Inner<V> {
    /// The lists of the ring as it is now.
    fn of_ring(&self) -> Arc<OfRing> {
        let (number, ring) = (self.shared.handover.number(), self.shared.view_ref().ring_of(self.settings.scope));
        let now_ms = self.shared.now_ms();
        // Who leaves has no other time to hand it over.
        let is_whole = self.shared.is_draining() || self.shared.handover.is_quiet(now_ms);
        let mut current = self.lists.0.lock();
        let is_same =
            |of_ring: &&Arc<OfRing>| (of_ring.number, of_ring.ring, of_ring.is_whole) == (number, ring, is_whole);
        let found = current.as_ref().filter(is_same).cloned();
        let of_ring = found.unwrap_or_else(|| {
            let used_ms = AtomicU64::new(now_ms);
            Arc::clone(current.insert(Arc::new(OfRing { number, ring, is_whole, lists: OnceCell::new(), used_ms })))
        });
        of_ring.used_ms.store(now_ms, Relaxed);
        of_ring
    }

    /// Makes the lists of the ring as it is now, unless they are made.
    pub(super) async fn list(&self) {
        let of_ring = self.of_ring();
        of_ring.lists.get_or_init(|| self.look_through(of_ring.is_whole)).await;
    }

    /// Forgets lists that nobody has asked for lately.
    pub(super) fn sweep_lists(&self) {
        let mut current = self.lists.0.lock();
        let is_old = |of_ring: &Arc<OfRing>| {
            self.shared.now_ms().saturating_sub(of_ring.used_ms.load(Relaxed)) >= FORGOTTEN_AFTER_MS
        };
        let forgotten = current.take_if(|of_ring| is_old(of_ring));
        drop(current);
        drop(forgotten);
    }

    /// Every entry that another node owns now, by that node; or those of them that were used lately.
    async fn look_through(&self, is_whole: bool) -> BTreeMap<PeerId, List> {
        let (now_ms, view) = (self.shared.now_ms(), self.shared.view());
        // By how often they are used: to sort a million of them would keep others waiting for a tenth of a second.
        let mut found: BTreeMap<PeerId, BTreeMap<Reverse<u32>, Vec<Key>>> = BTreeMap::new();
        for (looked_at, (key, slot)) in self.store.iter().enumerate() {
            let owner = view.owner(self.settings.scope, self.place.hash(key.as_bytes()));
            if let Some(owner) = owner.filter(|owner| owner.dial.is_some())
                && let Some(uses) = slot.uses(now_ms).filter(|uses| is_whole || *uses > 0)
                && self.handed_over_until(&slot, now_ms).is_some()
            {
                if !found.contains_key(&owner.id) {
                    found.insert(owner.id.clone(), BTreeMap::new());
                }
                if let Some(by_uses) = found.get_mut(&owner.id) {
                    by_uses.entry(Reverse(uses)).or_default().push(key);
                }
            }
            if looked_at % LOOKED_AT_ONCE == LOOKED_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
        }
        let list = |by_uses: BTreeMap<_, Vec<Key>>| List {
            keys: by_uses.into_values().flatten().collect(),
            ..List::default()
        };
        found.into_iter().map(|(owner, by_uses)| (owner, list(by_uses))).collect()
    }

    /// A page for the node that owns it now. The cursor says that all before it has arrived there.
    pub(super) async fn page(self: Arc<Self>, to: PeerId, cursor: u64) -> Answer {
        let is_usable = !self.is_removed.load(Relaxed) && !self.shared.is_cut_off.load(Relaxed);
        if !self.shared.handover.is_on || !is_usable {
            return Answer::Unsupported;
        }
        let of_ring = self.of_ring();
        let lists = of_ring.lists.get_or_init(|| self.look_through(of_ring.is_whole)).await;
        let Some(list) = lists.get(&to) else { return Answer::Page(Page::default()) };
        if cursor == NO_MORE {
            list.is_done.store(true, Relaxed);
            return Answer::Page(Page::default());
        }
        let start = of_ring.place(cursor).min(list.keys.len());
        self.have_arrived(list, start);
        let (mut entries, mut bytes, mut at) = (Vec::new(), 0, start);
        while let Some(key) = list.keys.get(at).filter(|_| entries.len() < PAGE_ENTRIES) {
            if let Some(handed) = self.hand(key) {
                let size = wire::handed_bytes(&handed);
                if !entries.is_empty() && bytes + size > PAGE_BYTES {
                    break;
                }
                bytes += size;
                entries.push(handed);
            }
            at += 1;
            // Those that are gone by now cost no room in the page.
            if (at - start).is_multiple_of(LOOKED_AT_ONCE) {
                tokio::task::yield_now().await;
            }
        }
        if entries.is_empty() {
            list.is_done.store(true, Relaxed);
        }
        self.counters.handed_over.add(entries.len() as u64);
        self.counters.handed_over_bytes.add(entries.iter().map(|handed| handed.bytes.len() as u64).sum());
        let read_ms = self.shared.local.clock.read_ms();
        self.shared.handover.gives.spend(bytes as u64).await;
        // They have grown older in the queue.
        let waited_ms = self.shared.local.clock.read_ms().saturating_sub(read_ms);
        for handed in &mut entries {
            handed.age_ms = handed.age_ms.saturating_add(waited_ms);
            handed.remaining_ms = handed.remaining_ms.map(|left_ms| left_ms.saturating_sub(waited_ms));
        }
        let next = if entries.is_empty() { 0 } else { of_ring.cursor(at) };
        Answer::Page(Page { entries, next, left: (list.keys.len() - at) as u64 })
    }

    fn hand(&self, key: &str) -> Option<Handed> {
        let slot = self.store.peek(key)?;
        slot.uses(0)?; // or its owner has it
        let (bytes, age_ms, remaining_ms) = self.to_hand_over(&slot, self.shared.now_ms())?;
        Some(Handed { key: Bytes::copy_from_slice(key.as_bytes()), bytes, age_ms, remaining_ms })
    }

    /// The first of a list have arrived: they are served here as borrowed ones are, and then their memory is free.
    fn have_arrived(&self, list: &List, until: usize) {
        let before = list.arrived.fetch_max(until, Relaxed);
        let end_ms = later(self.shared.now_ms(), self.settings.ages.borrowed);
        for key in list.keys.get(before..until).unwrap_or_default() {
            // It may have come back meanwhile.
            if let Some(slot) = self.store.peek(key).filter(|_| !self.is_mine(key)) {
                slot.handed_over(end_ms);
            }
        }
    }

    /// How far the hand-over is; `None` = there are no lists of the ring as it is now.
    pub(super) fn progress(&self, is_reached: &dyn Fn(&PeerId) -> bool) -> Option<Progress> {
        let of_ring = self.of_ring();
        let mut progress = Progress::default();
        for (_, list) in of_ring.lists.get()?.iter().filter(|(owner, _)| is_reached(owner)) {
            progress.all += list.keys.len();
            progress.arrived += list.arrived.load(Relaxed);
            progress.waits_for += usize::from(!list.is_done.load(Relaxed));
        }
        Some(progress)
    }
}
