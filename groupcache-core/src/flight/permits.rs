//! Permits: a bound on concurrent loads and on loads that wait, with a pool for each depth of nesting.
//!
//! With a single pool, loads that hold all permits could wait for nested loads that get none. With a pool for each
//! depth, a load waits for deeper loads only, and the deepest loads wait for none. A load that waits for a permit moves
//! to a deeper pool when a deeper load joins it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{flight::nesting::LoadContext, limits::MAX_CHAIN};

/// Pools of permits, one for each depth.
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

/// Error of a pool with a full queue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct QueueFull;

impl Permits {
    /// Makes pools of `at_once` permits, each with a queue of `max_waiting` places.
    pub(crate) fn new(at_once: usize, max_waiting: usize) -> Self {
        // tokio's semaphore panics above a maximum that is below that of a usize.
        let at_once = at_once.min(Semaphore::MAX_PERMITS);
        let pool = |_| Pool { permits: Arc::new(Semaphore::new(at_once)), waiting: AtomicUsize::new(0) };
        Self { pools: (0..=MAX_CHAIN).map(pool).collect(), max_waiting }
    }

    /// Waits for a permit of the load's depth, which may grow meanwhile. Dropping the future frees its place in the
    /// queue.
    pub(crate) async fn acquire(&self, load: &LoadContext) -> Result<OwnedSemaphorePermit, QueueFull> {
        loop {
            let depth = load.depth();
            let pool = self.pools.get(depth).or(self.pools.last()).ok_or(QueueFull)?;
            if let Ok(permit) = Arc::clone(&pool.permits).try_acquire_owned() {
                return Ok(permit);
            }
            let _slot = pool.queue(self.max_waiting)?;
            tokio::select! {
                biased;
                permit = Arc::clone(&pool.permits).acquire_owned() => return permit.map_err(|_| QueueFull),
                () = load.deeper_than(depth) => {} // promoted to a deeper pool, in which it waits instead
            }
        }
    }

    /// Returns the numbers of running and of waiting loads, for pools of `at_once` permits.
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

/// Place in the queue of a pool.
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
    async fn full_queue_refuses_and_dropped_waiter_frees_place() {
        let permits = Permits::new(1, 1);
        let (a, b, c) = (load(&[], 1), load(&[], 2), load(&[], 3));
        let held = permits.acquire(&a).await.unwrap();
        let mut waiting = Box::pin(permits.acquire(&b));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        assert_eq!(permits.acquire(&c).await.unwrap_err(), QueueFull);
        drop(waiting);
        let mut waiting = Box::pin(permits.acquire(&c));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        assert_eq!(permits.in_use(1), (1, 1));
        drop(held);
        drop(waiting.await.unwrap());
        assert_eq!(permits.in_use(1), (0, 0));
    }

    #[tokio::test]
    async fn deeper_load_does_not_wait_for_shallow_loads() {
        let permits = Permits::new(1, 8);
        let outer = load(&[], 1);
        let _held = permits.acquire(&outer).await.unwrap();
        let _nested = permits.acquire(&load(&[1], 2)).await.unwrap();
    }

    /// A load that waits for a permit moves to the deeper pool when a deeper load joins it.
    #[tokio::test]
    async fn waiting_load_joined_by_deeper_load_is_promoted() {
        let permits = Permits::new(1, 8);
        let outer = load(&[], 1);
        let held = permits.acquire(&outer).await.unwrap();
        let shallow = load(&[], 2);
        let mut waiting = Box::pin(permits.acquire(&shallow));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        let _joined = shallow.join(&outer.chain()).unwrap(); // from now on the outer load waits for it
        drop(waiting.await.unwrap());
        drop(held);
    }
}
