//! Which loads a load serves, so that loads which wait for each other in a circle are told so at once.
//!
//! A loader may get other keys. The hashes of the loads on whose behalf it does so travel with it: in a
//! task-local here, in each request on the wire. A load that is joined later serves the newcomers too, and it
//! knows which keys it waits for itself, so a circle is seen by whoever closes it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::Notify;

use crate::{limits::MAX_CHAIN, protocol::chain::LoadChain, runtime::sync::Mutex};

tokio::task_local! {
    /// The load that the current task works for.
    pub(crate) static CURRENT: Arc<LoadContext>;
}

/// Joiners beyond this many are not remembered; a circle through them ends by its deadline instead.
const MAX_SERVED: usize = 64;

/// What one running load serves and waits for.
#[derive(Debug)]
pub(crate) struct LoadContext {
    /// The loads it was begun for, and itself.
    chain: LoadChain,
    joined: Mutex<Joiners>,
    /// Keys that its loader is getting now.
    waits: Mutex<Vec<u64>>,
    /// The deepest who waits for it: while it waits for a permit, that pool is its own.
    depth: AtomicUsize,
    deepened: Notify,
}

#[derive(Debug, Default)]
struct Joiners {
    /// Whom a load serves beyond those that it was begun for: chains that joined while it ran and still wait, each as often
    /// as it joined.
    hashes: Vec<u64>,
    /// The first load of its batch, if it is a later one: that one waits for the permit of all of them.
    leader: Option<Arc<LoadContext>>,
}

/// Two loads wait for each other, or one for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NestingError {
    Cycle,
    TooDeep,
}

impl LoadContext {
    /// The lineage of a load of `hash` begun for `chain`.
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
        }))
    }

    /// Of the load that the current task works for, if any.
    pub(crate) fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Everyone it serves, as far as it fits: this is what a request made by its loader carries.
    pub(crate) fn chain(&self) -> LoadChain {
        let mut chain = self.chain.clone().at_depth(self.depth() + 1);
        self.joined.lock().hashes.iter().for_each(|hash| chain.add(*hash));
        chain
    }

    /// Its loader is about to get `hash`; the guard ends when it has it.
    pub(crate) fn wait_for(self: &Arc<Self>, hash: u64) -> Result<WaitGuard, NestingError> {
        if self.chain.contains(hash) || self.joined.lock().hashes.contains(&hash) {
            return Err(NestingError::Cycle);
        }
        self.waits.lock().push(hash);
        Ok(WaitGuard { lineage: Arc::clone(self), hash })
    }

    /// Someone who serves `chain` waits for this load, until the guard ends.
    ///
    /// The joiner has entered what it waits for before it asks, so of two loads that join each other at the
    /// same moment at least one is told. A circle of four or more loads that was closed by joining in the middle
    /// is not seen here; it ends by its deadline.
    pub(crate) fn join(self: &Arc<Self>, chain: &LoadChain) -> Result<Option<JoinGuard>, NestingError> {
        if chain.as_slice().is_empty() {
            return Ok(None);
        }
        if self.waits.lock().iter().any(|hash| chain.contains(*hash)) {
            return Err(NestingError::Cycle);
        }
        let mut joined = self.joined.lock();
        let mut entered = LoadChain::EMPTY;
        for hash in chain.as_slice() {
            if joined.hashes.len() < MAX_SERVED && !self.chain.contains(*hash) {
                joined.hashes.push(*hash);
                entered.add(*hash);
            }
        }
        self.deepen(chain.depth());
        let leader = joined.leader.clone();
        drop(joined);
        if let Some(leader) = leader {
            leader.deepen(chain.depth());
        }
        Ok(Some(JoinGuard { lineage: Arc::clone(self), entered }))
    }

    /// It is loaded in one batch with another load: whoever waits for it waits for that one too.
    pub(crate) fn follow(&self, leader: &Arc<Self>) {
        // Who joins at this moment finds the leader, or is found here.
        let mut joined = self.joined.lock();
        joined.leader = Some(Arc::clone(leader));
        leader.deepen(self.depth());
    }

    fn deepen(&self, depth: usize) {
        if self.depth.fetch_max(depth, Relaxed) < depth {
            self.deepened.notify_one();
        }
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth.load(Relaxed)
    }

    /// Returns when someone deeper than `depth` waits.
    pub(crate) async fn deeper_than(&self, depth: usize) {
        while self.depth() <= depth {
            self.deepened.notified().await;
        }
    }
}

/// Takes one of each of `hashes` out of a list.
fn take_out(list: &mut Vec<u64>, hashes: &[u64]) {
    for hash in hashes {
        if let Some(at) = list.iter().position(|h| h == hash) {
            list.swap_remove(at);
        }
    }
}

/// A chain that waits for a load.
#[derive(Debug)]
pub(crate) struct JoinGuard {
    lineage: Arc<LoadContext>,
    entered: LoadChain,
}

impl Drop for JoinGuard {
    fn drop(&mut self) {
        take_out(&mut self.lineage.joined.lock().hashes, self.entered.as_slice());
    }
}

/// A key that a loader is getting.
#[derive(Debug)]
pub(crate) struct WaitGuard {
    lineage: Arc<LoadContext>,
    hash: u64,
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        take_out(&mut self.lineage.waits.lock(), &[self.hash]);
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
    fn a_load_that_waits_for_itself_is_a_circle() {
        let inner = load(&[1, 2], 3);
        for own in [1, 2, 3] {
            assert_eq!(inner.wait_for(own).unwrap_err(), NestingError::Cycle);
        }
        assert!(inner.wait_for(4).is_ok());
    }

    #[test]
    fn whoever_closes_a_circle_is_told() {
        let (a, b) = (load(&[], 1), load(&[], 2));
        let _a_waits = a.wait_for(2).unwrap();
        let _joined = b.join(&a.chain()).unwrap();
        assert_eq!(b.wait_for(1).unwrap_err(), NestingError::Cycle, "b serves a by now");

        // Both entered their wait before either joined: the second to join is told.
        let (c, d) = (load(&[], 3), load(&[], 4));
        let (c_chain, d_chain) = (c.chain(), d.chain());
        let (_c_waits, _d_waits) = (c.wait_for(4).unwrap(), d.wait_for(3).unwrap());
        assert!(d.join(&c_chain).is_err() || c.join(&d_chain).is_err());
    }

    #[test]
    fn a_wait_that_ended_is_forgotten() {
        let (a, b) = (load(&[], 1), load(&[], 2));
        drop(a.wait_for(2).unwrap());
        assert!(a.join(&b.chain()).is_ok());
        let (c, d) = (load(&[], 3), load(&[], 4));
        drop(d.join(&c.chain()).unwrap());
        assert!(d.wait_for(3).is_ok(), "c has given up: there is no circle any more");
    }

    #[test]
    fn nesting_is_bounded_and_joining_does_not_count_as_nesting() {
        assert_eq!(LoadContext::begin(&LoadChain::of(MAX_CHAIN as u32, 1..=8), 99).unwrap_err(), NestingError::TooDeep);
        let config = load(&[], 1);
        let _joined: Vec<_> = (100..200).map(|user| config.join(&LoadChain::of(1, [user])).unwrap()).collect();
        let base = LoadContext::begin(&config.chain(), 2).expect("a load of depth 2, whoever waits for it");
        assert!(base.wait_for(1).is_err() && base.wait_for(2).is_err() && base.wait_for(100).is_err());
    }

    #[tokio::test]
    async fn who_joins_one_load_of_a_batch_raises_the_depth_of_its_first() {
        let (first, second) = (load(&[], 1), load(&[], 2));
        let _before = second.join(&LoadChain::of(1, [7])).unwrap();
        second.follow(&first);
        assert_eq!(first.depth(), 1);
        let _after = second.join(&LoadChain::of(2, [8])).unwrap();
        timeout(Duration::from_secs(5), first.deeper_than(1)).await.unwrap();
        assert_eq!((first.depth(), first.chain().depth()), (2, 3));
    }

    #[tokio::test]
    async fn a_deeper_joiner_raises_the_depth() {
        let a = load(&[], 1);
        let waiter = tokio::spawn({
            let a = Arc::clone(&a);
            async move { a.deeper_than(0).await }
        });
        tokio::task::yield_now().await;
        let _joined = a.join(&LoadChain::of(2, [7, 8])).unwrap();
        waiter.await.unwrap();
        assert_eq!((a.depth(), a.chain().depth()), (2, 3), "what it loads itself is one deeper");
    }
}
