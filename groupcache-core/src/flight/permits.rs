//! Permits for loads: so many at once, so many waiting, and a pool for each depth of nesting.
//!
//! With one pool, loads that hold all permits could wait for nested loads that get none. With one pool for
//! each depth, a load only ever waits for deeper ones, and the deepest wait for none. A load that was begun
//! by a shallow caller and is joined by a deeper one while it waits moves to the deeper pool.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{flight::nesting::LoadContext, limits::MAX_CHAIN};

#[derive(Debug)]
pub(crate) struct Permits {
    pools: Vec<Pool>,
    max_waiting: usize,
}

#[derive(Debug)]
struct Pool {
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// The queue of the pool is full.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct QueueFull;

impl Permits {
    pub(crate) fn new(at_once: usize, max_waiting: usize) -> Self {
        // tokio's semaphore has room for fewer permits than a usize counts.
        let at_once = at_once.min(Semaphore::MAX_PERMITS);
        let pool = |_| Pool { permits: Arc::new(Semaphore::new(at_once)), waiting: AtomicUsize::new(0) };
        Self { pools: (0..=MAX_CHAIN).map(pool).collect(), max_waiting }
    }

    /// Waits for a permit of the depth of `lineage`, which may grow meanwhile. Dropping the future frees its place.
    pub(crate) async fn acquire(&self, lineage: &LoadContext) -> Result<OwnedSemaphorePermit, QueueFull> {
        loop {
            let depth = lineage.depth();
            let pool = self.pools.get(depth).or(self.pools.last()).ok_or(QueueFull)?;
            if let Ok(permit) = Arc::clone(&pool.permits).try_acquire_owned() {
                return Ok(permit);
            }
            let _place = pool.queue(self.max_waiting)?;
            tokio::select! {
                biased;
                permit = Arc::clone(&pool.permits).acquire_owned() => return permit.map_err(|_| QueueFull),
                () = lineage.deeper_than(depth) => {} // promoted: wait in that pool instead
            }
        }
    }

    /// Loads that run now, and loads that wait.
    pub(crate) fn in_use(&self, at_once: usize) -> (usize, usize) {
        self.pools.iter().fold((0, 0), |(running, waiting), pool| {
            (running + (at_once.saturating_sub(pool.permits.available_permits())), waiting + pool.waiting.load(Relaxed))
        })
    }
}

impl Pool {
    fn queue(&self, max: usize) -> Result<QueueSlot<'_>, QueueFull> {
        if self.waiting.fetch_add(1, Relaxed) >= max {
            self.waiting.fetch_sub(1, Relaxed);
            return Err(QueueFull);
        }
        Ok(QueueSlot(self))
    }
}

/// A place in the queue of a pool.
struct QueueSlot<'a>(&'a Pool);

impl Drop for QueueSlot<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::chain::LoadChain;

    fn load(chain: &[u64], hash: u64) -> Arc<LoadContext> {
        LoadContext::begin(&LoadChain::of(chain.len() as u32, chain.iter().copied()), hash).unwrap()
    }

    #[tokio::test]
    async fn a_full_queue_is_said_at_once_and_a_dropped_waiter_frees_its_place() {
        let permits = Permits::new(1, 1);
        let (a, b, c) = (load(&[], 1), load(&[], 2), load(&[], 3));
        let held = permits.acquire(&a).await.unwrap();
        let mut waits = Box::pin(permits.acquire(&b));
        assert!(futures_util::poll!(waits.as_mut()).is_pending());
        assert_eq!(permits.acquire(&c).await.unwrap_err(), QueueFull);
        drop(waits);
        let mut waits = Box::pin(permits.acquire(&c));
        assert!(futures_util::poll!(waits.as_mut()).is_pending());
        assert_eq!(permits.in_use(1), (1, 1));
        drop(held);
        drop(waits.await.unwrap());
        assert_eq!(permits.in_use(1), (0, 0));
    }

    #[tokio::test]
    async fn a_deeper_load_does_not_wait_for_the_shallow_ones() {
        let permits = Permits::new(1, 8);
        let outer = load(&[], 1);
        let _held = permits.acquire(&outer).await.unwrap();
        let _nested = permits.acquire(&load(&[1], 2)).await.unwrap();
    }

    #[tokio::test]
    async fn a_waiting_load_that_a_deeper_one_joins_is_promoted() {
        let permits = Permits::new(1, 8);
        let outer = load(&[], 1);
        let held = permits.acquire(&outer).await.unwrap();
        let shallow = load(&[], 2);
        let mut waits = Box::pin(permits.acquire(&shallow));
        assert!(futures_util::poll!(waits.as_mut()).is_pending());
        let _joined = shallow.join(&outer.chain()).unwrap(); // the outer load needs it now
        drop(waits.await.unwrap());
        drop(held);
    }
}
