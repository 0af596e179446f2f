//! Nesting: the loads that wait for each load, so that loads which wait for each other in a cycle fail at once.
//!
//! A loader may get other keys. The chain of the loads that need such a get goes with it: in a task-local within the
//! node, and in each request on the wire. A load also records the chains that join it later and the keys that its
//! loader gets, so that the load that closes a cycle finds it. A cycle that is not found ends by a deadline.

use std::sync::{
    Arc,
    atomic::{
        AtomicU8, AtomicU64, AtomicUsize,
        Ordering::{Relaxed, SeqCst},
    },
};

use tokio::sync::Notify;

use crate::{
    limits::MAX_CHAIN,
    protocol::chain::LoadChain,
    runtime::{clock::NEVER, sync::Mutex},
};

tokio::task_local! {
    /// Load that the current task works for.
    pub(crate) static CURRENT: Arc<LoadContext>;
}

/// Maximum number of hashes of joiners that a load records. A cycle through further joiners ends by its deadline.
const MAX_SERVED: usize = 64;

/// State of a running load: the chains that wait for it, and the keys that it waits for.
#[derive(Debug)]
pub(crate) struct LoadContext {
    /// The loads that this load began for, and this load.
    chain: LoadChain,
    joined: Mutex<Joiners>,
    /// Hashes of the keys that the loader is getting.
    waits: Mutex<Vec<u64>>,
    /// Depth of the deepest waiter, which selects the pool of permits.
    depth: AtomicUsize,
    deepened: Notify,
    /// Time before which every value that the loader has read contains every write.
    read_as_of_ms: AtomicU64,
    stage: AtomicU8,
    calling: Notify,
    /// Time from which on the deadline of the load runs; 0 for the beginning of the flight, and [`NEVER`] while the load
    /// waits for a slot, or as a suspect for its turn.
    begun_ms: AtomicU64,
}

/// How far a load has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// The load waits for a slot, for previous owners or for a permit.
    Waits,
    /// The key has strikes, and the load waits for its turn.
    WaitsForTurn,
    /// The loader is called, or was.
    Called,
}

#[derive(Debug, Default)]
struct Joiners {
    /// Hashes of the chains that joined while the load ran and still wait, each as often as it joined.
    hashes: Vec<u64>,
    /// First load of the batch, if this load is a later one, or the load that gives this one its outcome. The first load
    /// waits for the permit of the batch.
    leader: Option<Arc<LoadContext>>,
}

/// Error of a nested load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NestingError {
    /// Two loads wait for each other, or a load waits for itself.
    Cycle,
    /// The load is nested more than [`MAX_CHAIN`] loads deep.
    TooDeep,
}

impl LoadContext {
    /// Records that the loader has read a value that contains every write before `as_of_ms`.
    pub(crate) fn note_read(&self, as_of_ms: u64) {
        self.read_as_of_ms.fetch_min(as_of_ms, Relaxed);
    }

    /// Returns the time before which every value that the loader has read contains every write; never if it has read
    /// none.
    pub(crate) fn read_as_of_ms(&self) -> u64 {
        // A batch runs in the context of its first load, and a load without a slot follows a later one.
        let (mut oldest_ms, mut leader) = (self.read_as_of_ms.load(Relaxed), self.leader());
        while let Some(load) = leader {
            oldest_ms = oldest_ms.min(load.read_as_of_ms.load(Relaxed));
            leader = load.leader();
        }
        oldest_ms
    }

    fn leader(&self) -> Option<Arc<Self>> {
        self.joined.lock().leader.clone()
    }

    /// Makes the context of a load of `hash` that begins for `chain`.
    pub(crate) fn begin(chain: &LoadChain, hash: u64) -> Result<Arc<Self>, NestingError> {
        if chain.depth() >= MAX_CHAIN {
            return Err(NestingError::TooDeep);
        }
        Ok(Arc::new(Self {
            depth: AtomicUsize::new(chain.depth()),
            chain: chain.with_load(hash),
            joined: Mutex::default(),
            waits: Mutex::default(),
            deepened: Notify::new(),
            read_as_of_ms: AtomicU64::new(u64::MAX),
            stage: AtomicU8::new(Stage::Waits as u8),
            calling: Notify::new(),
            begun_ms: AtomicU64::new(0),
        }))
    }

    /// Records that the load waits for a slot.
    pub(crate) fn waits_for_slot(&self) {
        self.begun_ms.store(NEVER, SeqCst);
    }

    /// Records that the load of a suspect waits for its turn.
    pub(crate) fn waits_for_turn(&self) {
        self.begun_ms.store(NEVER, SeqCst);
        self.stage.store(Stage::WaitsForTurn as u8, SeqCst);
    }

    /// Records that the wait for a slot or for the turn is over.
    pub(crate) fn begins(&self, now_ms: u64) {
        self.begun_ms.store(now_ms, SeqCst);
    }

    /// Records that the loader is about to be called.
    pub(crate) fn calls(&self) {
        self.stage.store(Stage::Called as u8, SeqCst);
        self.calling.notify_waiters();
    }

    pub(crate) fn stage(&self) -> Stage {
        match self.stage.load(SeqCst) {
            stage if stage == Stage::Called as u8 => Stage::Called,
            stage if stage == Stage::WaitsForTurn as u8 => Stage::WaitsForTurn,
            _ => Stage::Waits,
        }
    }

    /// Returns the time from which on the deadline of the load runs; 0 for the beginning of the flight, [`NEVER`] for no
    /// time yet.
    pub(crate) fn begun_ms(&self) -> u64 {
        self.begun_ms.load(SeqCst)
    }

    /// Waits until the loader is called.
    pub(crate) async fn called(&self) {
        let calling = self.calling.notified();
        tokio::pin!(calling);
        calling.as_mut().enable();
        if self.stage() != Stage::Called {
            calling.await;
        }
    }

    /// Returns the context of the load that the current task works for, if there is one.
    pub(crate) fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Returns the chain of a get of the loader: this load and all loads that wait for it, as many as fit.
    pub(crate) fn chain(&self) -> LoadChain {
        let mut chain = self.chain.clone().at_depth(self.depth() + 1);
        self.joined.lock().hashes.iter().for_each(|hash| chain.add(*hash));
        chain
    }

    /// Records that the loader gets `hash`, until the guard is dropped.
    ///
    /// An error means that `hash` waits for this load.
    pub(crate) fn wait_for(self: &Arc<Self>, hash: u64) -> Result<WaitGuard, NestingError> {
        if self.chain.contains(hash) || self.joined.lock().hashes.contains(&hash) {
            return Err(NestingError::Cycle);
        }
        self.waits.lock().push(hash);
        Ok(WaitGuard { load: Arc::clone(self), hash })
    }

    /// Records that `chain` waits for this load, until the guard is dropped.
    ///
    /// A joiner records its own wait before it joins, so that of two loads that join each other at the same moment at
    /// least one finds the cycle. A cycle of four or more loads that a join in the middle closes is not found here and
    /// ends by its deadline.
    pub(crate) fn join(self: &Arc<Self>, chain: &LoadChain) -> Result<Option<JoinGuard>, NestingError> {
        if chain.as_slice().is_empty() {
            return Ok(None);
        }
        if self.waits.lock().iter().any(|hash| chain.contains(*hash)) {
            return Err(NestingError::Cycle);
        }
        let mut joined = self.joined.lock();
        let mut recorded = LoadChain::EMPTY;
        for hash in chain.as_slice() {
            if joined.hashes.len() < MAX_SERVED && !self.chain.contains(*hash) {
                joined.hashes.push(*hash);
                recorded.add(*hash);
            }
        }
        self.deepen(chain.depth());
        let leader = joined.leader.clone();
        drop(joined);
        deepen_all(leader, chain.depth());
        Ok(Some(JoinGuard { load: Arc::clone(self), recorded }))
    }

    /// Records that this load is in one batch with `leader` or gets its outcome, so that the waiters of this load wait for
    /// `leader` too.
    pub(crate) fn follow(&self, leader: &Arc<Self>) {
        // A load that joins at this moment finds the leader, or has raised the depth before.
        self.joined.lock().leader = Some(Arc::clone(leader));
        deepen_all(Some(Arc::clone(leader)), self.depth());
    }

    fn deepen(&self, depth: usize) {
        if self.depth.fetch_max(depth, Relaxed) < depth {
            self.deepened.notify_one();
        }
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth.load(Relaxed)
    }

    /// Waits until a load deeper than `depth` waits for this load.
    pub(crate) async fn deeper_than(&self, depth: usize) {
        while self.depth() <= depth {
            self.deepened.notified().await;
        }
    }
}

/// Raises the depth of a load and of all loads that it follows.
fn deepen_all(mut load: Option<Arc<LoadContext>>, depth: usize) {
    while let Some(deepened) = load {
        deepened.deepen(depth);
        load = deepened.leader();
    }
}

impl Drop for Joiners {
    /// Drops the loads that are followed one after the other, because each of thousands may follow the next.
    fn drop(&mut self) {
        let mut leader = self.leader.take();
        while let Some(load) = leader.and_then(Arc::into_inner) {
            leader = load.joined.lock().leader.take();
        }
    }
}

/// Removes each of `hashes` from a list once.
fn take_out(list: &mut Vec<u64>, hashes: &[u64]) {
    for hash in hashes {
        if let Some(at) = list.iter().position(|h| h == hash) {
            list.swap_remove(at);
        }
    }
}

/// Chain that waits for a load, until the guard is dropped.
#[derive(Debug)]
pub(crate) struct JoinGuard {
    load: Arc<LoadContext>,
    recorded: LoadChain,
}

impl Drop for JoinGuard {
    fn drop(&mut self) {
        take_out(&mut self.load.joined.lock().hashes, self.recorded.as_slice());
    }
}

/// Key that a loader is getting, until the guard is dropped.
#[derive(Debug)]
pub(crate) struct WaitGuard {
    load: Arc<LoadContext>,
    hash: u64,
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        take_out(&mut self.load.waits.lock(), &[self.hash]);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn load(chain: &[u64], hash: u64) -> Arc<LoadContext> {
        LoadContext::begin(&LoadChain::of(chain.len() as u32, chain.iter().copied()), hash).unwrap()
    }

    #[test]
    fn load_that_waits_for_its_chain_is_cycle() {
        let inner = load(&[1, 2], 3);
        for own in [1, 2, 3] {
            assert_eq!(inner.wait_for(own).unwrap_err(), NestingError::Cycle);
        }
        assert!(inner.wait_for(4).is_ok());
    }

    /// The load that closes a cycle gets an error, whether by a get of its loader or by a join.
    #[test]
    fn load_that_closes_cycle_gets_error() {
        let (a, b) = (load(&[], 1), load(&[], 2));
        let _a_waits = a.wait_for(2).unwrap();
        let _joined = b.join(&a.chain()).unwrap();
        assert_eq!(b.wait_for(1).unwrap_err(), NestingError::Cycle, "a waits for b");

        // The two loads record their wait before a join, so that the second to join gets the error.
        let (c, d) = (load(&[], 3), load(&[], 4));
        let (c_chain, d_chain) = (c.chain(), d.chain());
        let (_c_waits, _d_waits) = (c.wait_for(4).unwrap(), d.wait_for(3).unwrap());
        assert!(d.join(&c_chain).is_err() || c.join(&d_chain).is_err());
    }

    #[test]
    fn ended_wait_closes_no_cycle() {
        let (a, b) = (load(&[], 1), load(&[], 2));
        drop(a.wait_for(2).unwrap());
        assert!(a.join(&b.chain()).is_ok());
        let (c, d) = (load(&[], 3), load(&[], 4));
        drop(d.join(&c.chain()).unwrap());
        assert!(d.wait_for(3).is_ok(), "c does not wait any more");
    }

    #[test]
    fn nesting_is_bounded_and_joins_do_not_count() {
        assert_eq!(LoadContext::begin(&LoadChain::of(MAX_CHAIN as u32, 1..=8), 99).unwrap_err(), NestingError::TooDeep);
        let config = load(&[], 1);
        let _joined: Vec<_> = (100..200).map(|user| config.join(&LoadChain::of(1, [user])).unwrap()).collect();
        let base = LoadContext::begin(&config.chain(), 2).expect("a load of depth 2, with any number of waiters");
        assert!(base.wait_for(1).is_err() && base.wait_for(2).is_err() && base.wait_for(100).is_err());
    }

    #[tokio::test]
    async fn joiner_of_batched_load_raises_depth_of_first() {
        let (first, second) = (load(&[], 1), load(&[], 2));
        let _before = second.join(&LoadChain::of(1, [7])).unwrap();
        second.follow(&first);
        assert_eq!(first.depth(), 1);
        let _after = second.join(&LoadChain::of(2, [8])).unwrap();
        timeout(Duration::from_secs(5), first.deeper_than(1)).await.unwrap();
        assert_eq!((first.depth(), first.chain().depth()), (2, 3));
    }

    /// Checks that a load which follows another one, which follows a third, passes on the depth of its joiners and the age
    /// of what the last one reads, and that the end of a long row needs no deep stack.
    #[test]
    fn row_of_followers_has_depth_and_age_of_all() {
        let loads: Vec<_> = (0..100_000).map(|hash| load(&[], hash)).collect();
        loads.windows(2).for_each(|pair| pair[0].follow(&pair[1]));
        let (first, last) = (Arc::clone(&loads[0]), Arc::downgrade(&loads[99_999]));
        drop(loads);
        let _joined = first.join(&LoadChain::of(2, [200_000])).unwrap();
        let last = last.upgrade().unwrap();
        assert_eq!(last.depth(), 2);
        last.note_read(7);
        assert_eq!(first.read_as_of_ms(), 7);
        drop(last);
        drop(_joined);
        drop(first);
    }

    #[tokio::test]
    async fn deeper_joiner_raises_depth() {
        let a = load(&[], 1);
        let waiter = tokio::spawn({
            let a = Arc::clone(&a);
            async move { a.deeper_than(0).await }
        });
        tokio::task::yield_now().await;
        let _joined = a.join(&LoadChain::of(2, [7, 8])).unwrap();
        waiter.await.unwrap();
        assert_eq!((a.depth(), a.chain().depth()), (2, 3), "a load of its loader is one deeper");
    }
}
