//! Transfer plans: which entries are to be sent to which new owner, and how far each transfer is.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::sync::OnceCell;

use crate::{cache::store::Key, identity::PeerId, peer::group_service::Progress, runtime::sync::Mutex};

/// Time after which a plan that no peer asks for is forgotten.
const FORGOTTEN_AFTER_MS: u64 = 60_000;

/// The transfer plan of the current ring.
#[derive(Debug, Default)]
pub(crate) struct TransferPlans(Mutex<Option<Arc<PlanForRing>>>);

/// The entries that other nodes own in one ring.
#[derive(Debug)]
pub(crate) struct PlanForRing {
    /// Number of the newest previous view. A ring may return, for example when a node restarts with its id, while the
    /// entries to send are other ones.
    number: u64,
    /// Hash of the ring.
    ring: u64,
    /// Whether the plan has all entries, and not only those that were used lately.
    pub(crate) is_whole: bool,
    /// Queues by new owner, made by the first task that needs them.
    pub(crate) queues: OnceCell<BTreeMap<PeerId, PeerQueue>>,
    /// Coarse time of the last request.
    used_ms: AtomicU64,
}

/// The keys of one new owner, the most used first.
#[derive(Debug, Default)]
pub(crate) struct PeerQueue {
    pub(crate) keys: Vec<Key>,
    /// Number of keys with entries that are known to have arrived, or that have left memory since.
    arrived: AtomicUsize,
    /// Whether the new owner requests no more.
    is_done: AtomicBool,
}

impl TransferPlans {
    /// Returns the plan of this ring, or begins one.
    pub(crate) fn of_ring(&self, number: u64, ring: u64, is_whole: bool, now_ms: u64) -> Arc<PlanForRing> {
        let mut current = self.0.lock();
        let is_same = |plan: &&Arc<PlanForRing>| (plan.number, plan.ring, plan.is_whole) == (number, ring, is_whole);
        let found = current.as_ref().filter(is_same).cloned();
        let plan = found.unwrap_or_else(|| {
            let (queues, used_ms) = (OnceCell::new(), AtomicU64::new(now_ms));
            Arc::clone(current.insert(Arc::new(PlanForRing { number, ring, is_whole, queues, used_ms })))
        });
        plan.used_ms.store(now_ms, Relaxed);
        plan
    }

    /// Forgets a plan that no peer has asked for lately.
    pub(crate) fn sweep(&self, now_ms: u64) {
        let mut current = self.0.lock();
        let is_old = |plan: &Arc<PlanForRing>| now_ms.saturating_sub(plan.used_ms.load(Relaxed)) >= FORGOTTEN_AFTER_MS;
        let forgotten = current.take_if(|plan| is_old(plan));
        drop(current);
        drop(forgotten);
    }
}

impl PlanForRing {
    /// Returns the cursor of a page that ends at `at`. The cursors of two rings differ, because their queues do.
    pub(crate) fn cursor(&self, at: usize) -> u64 {
        self.tag() << 32 | at as u64
    }

    /// Returns the upper 31 bits of the plan's cursors.
    fn tag(&self) -> u64 {
        let number = self.number << 1 | u64::from(self.is_whole);
        (self.ring ^ self.ring >> 32).wrapping_add(number) & 0x7fff_ffff
    }

    /// Returns where a cursor continues: at the beginning, if the cursor is one of another ring.
    pub(crate) fn position(&self, cursor: u64) -> usize {
        if cursor >> 32 == self.tag() { (cursor & 0xffff_ffff) as usize } else { 0 }
    }

    /// Returns the progress of the transfers to the reachable peers; `None` while there are no queues.
    pub(crate) fn progress(&self, is_reached: &dyn Fn(&PeerId) -> bool) -> Option<Progress> {
        let mut progress = Progress::default();
        for (_, queue) in self.queues.get()?.iter().filter(|(owner, _)| is_reached(owner)) {
            progress.all += queue.keys.len();
            progress.arrived += queue.arrived.load(Relaxed);
            progress.waits_for += usize::from(!queue.is_done.load(Relaxed));
        }
        Some(progress)
    }
}

impl PeerQueue {
    /// Makes a queue of keys in this order, none of which has arrived.
    pub(crate) fn new(keys: Vec<Key>) -> Self {
        Self { keys, ..Self::default() }
    }

    /// Records that the new owner requests no more.
    pub(crate) fn finish(&self) {
        self.is_done.store(true, Relaxed);
    }

    /// Records that the entries before `until` have arrived, and returns the keys for which that is new.
    pub(crate) fn advance(&self, until: usize) -> &[Key] {
        let before = self.arrived.fetch_max(until, Relaxed);
        self.keys.get(before..until).unwrap_or_default()
    }
}
