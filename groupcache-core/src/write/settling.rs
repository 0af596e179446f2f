//! Settling: the writes of this node that some node has not acknowledged yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Weak,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    identity::{Instance, PeerId},
    write::peers::Peer,
};

/// Write of this node, from its number to the moment at which nothing is pending.
#[derive(Debug)]
pub(crate) struct Settling {
    pub(crate) number: u64,
    group: Arc<str>,
    written_ms: u64,
    begun: Instant,
    is_settled: AtomicBool,
    is_counted: AtomicBool,
    settled: Notify,
}

impl Settling {
    fn new(number: u64, group: &Arc<str>, written_ms: u64) -> Arc<Self> {
        Arc::new(Self {
            number,
            group: Arc::clone(group),
            written_ms,
            begun: Instant::now(),
            is_settled: AtomicBool::new(false),
            is_counted: AtomicBool::new(false),
            settled: Notify::new(),
        })
    }

    /// Returns the time since the write.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Returns whether the write is to be counted: the first time.
    pub(crate) fn count_once(&self) -> bool {
        !self.is_counted.swap(true, Relaxed)
    }

    /// Returns whether nothing is pending.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_settled.load(Acquire)
    }

    /// Waits until nothing is pending. Dropping the future leaves nothing behind.
    pub(crate) async fn settled(&self) {
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if self.is_settled() {
                return;
            }
            settled.await;
        }
    }

    fn settle(&self) {
        self.is_settled.store(true, Release);
        self.settled.notify_waiters();
    }

    /// Returns whether nothing that a peer holds from before the write can be served any longer, by the bounds that the
    /// Hello of the peer has shown. Clocks may differ by one fiftieth.
    ///
    /// `max_staleness` ends the write only if the discovery of the peer listed this node when the peer was last heard,
    /// because only then does the peer's horizon wait for this node.
    fn is_over_at(&self, peer: Option<&Peer>, now_ms: u64) -> bool {
        let Some(peer) = peer else { return false };
        let Some(bounds) = peer.bounds.get(&self.group) else { return false };
        let has_passed = |bound_ms: u64| {
            let end_ms = self.written_ms.saturating_add(bound_ms).saturating_add(bound_ms / 50);
            now_ms > end_ms
        };
        let is_heard = peer.lists_us || mutant!(SettledByUnlistedPeer);
        bounds.longest_ms.is_some_and(has_passed) || is_heard && bounds.max_staleness_ms.is_some_and(has_passed)
    }
}

/// The writes that have not settled, by number. A write without a waiter is forgotten.
#[derive(Debug, Default)]
pub(super) struct Unsettled(BTreeMap<u64, Weak<Settling>>);

impl Unsettled {
    pub(super) fn add(&mut self, number: u64, group: &Arc<str>, written_ms: u64) -> Arc<Settling> {
        let settling = Settling::new(number, group, written_ms);
        self.0.insert(number, Arc::downgrade(&settling));
        settling
    }

    /// Returns a write that is in no log, and whose number is 0.
    pub(super) fn unlogged() -> Arc<Settling> {
        Settling::new(0, &"".into(), 0)
    }

    /// Settles every write up to `number`.
    pub(super) fn settle_until(&mut self, number: u64) {
        while let Some(first) = self.0.first_entry().filter(|first| *first.key() <= number) {
            if let Some(settling) = first.remove().upgrade() {
                settling.settle();
            }
        }
    }

    /// Settles the writes of which no pending node can serve an older value any longer, and forgets those without a
    /// waiter.
    pub(super) fn settle_by_time(
        &mut self,
        now_ms: u64,
        pending: impl Fn(u64) -> Vec<PeerId>,
        peers: &BTreeMap<PeerId, Peer>,
    ) {
        // Later writes of a group wait for at least the same nodes until at least the same time.
        let mut waiting: BTreeSet<Arc<str>> = BTreeSet::new();
        self.0.retain(|number, settling| {
            let Some(settling) = settling.upgrade() else { return false };
            if waiting.contains(&settling.group) {
                return true;
            }
            let is_over = pending(*number).iter().all(|id| settling.is_over_at(peers.get(id), now_ms));
            if is_over {
                settling.settle();
            } else {
                waiting.insert(Arc::clone(&settling.group));
            }
            !is_over
        });
    }

    /// Returns the last write that was made at `before_ms` or earlier and has not settled.
    pub(super) fn last_before(&self, before_ms: u64) -> Option<u64> {
        let is_old = |settling: &Weak<Settling>| settling.upgrade().is_some_and(|s| s.written_ms <= before_ms);
        self.0.iter().rev().find(|(_, settling)| is_old(settling)).map(|(number, _)| *number)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Returns the nodes of a closure that have not acknowledged a write.
pub(super) fn pending(closure: &[Instance], number: u64, acknowledged: impl Fn(&Instance) -> u64) -> BTreeSet<PeerId> {
    closure.iter().filter(|node| acknowledged(node) < number).map(|node| node.id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::protocol::message::Bounds;

    /// Checks that each group settles by its own bound, and that one write of a group that waits is judged for all
    /// later ones, so that the check of many writes may run often.
    #[test]
    fn one_write_of_a_waiting_group_is_judged_for_later_ones() {
        let id = PeerId::new("x").unwrap();
        let bounds = |ms| Bounds { longest_ms: Some(ms), max_staleness_ms: None };
        let (short, long): (Arc<str>, Arc<str>) = ("short".into(), "long".into());
        let mut peer = Peer::default();
        peer.bounds.extend([(Arc::clone(&short), bounds(1000)), (Arc::clone(&long), bounds(5000))]);
        let (peers, mut unsettled) = (BTreeMap::from([(id.clone(), peer)]), Unsettled::default());
        let mut write = |number| unsettled.add(number, if number % 2 == 0 { &short } else { &long }, number * 10);
        let writes: Vec<_> = (1..=100).map(&mut write).collect();
        let judged = RefCell::new(Vec::new());
        let pending = |number| {
            judged.borrow_mut().push(number);
            vec![id.clone()]
        };
        unsettled.settle_by_time(1100, pending, &peers);
        // A write of the short group settles 1,020 ms after its time.
        let settled: Vec<_> = writes.iter().filter(|write| write.is_settled()).map(|write| write.number).collect();
        assert_eq!(settled, [2, 4, 6]);
        assert_eq!(*judged.borrow(), [1, 2, 4, 6, 8]);
    }
}
