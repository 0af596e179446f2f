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

use crate::{config::MAX_CHAIN, sync::Mutex};

tokio::task_local! {
    /// The load that the current task works for.
    pub(crate) static CURRENT: Arc<Lineage>;
}

/// Hashes of loads, outermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    len: u8,
    hashes: [u64; MAX_CHAIN],
}

impl Chain {
    pub(crate) const EMPTY: Self = Self { len: 0, hashes: [0; MAX_CHAIN] };

    /// The first [`MAX_CHAIN`] of them.
    pub(crate) fn of(hashes: impl IntoIterator<Item = u64>) -> Self {
        hashes.into_iter().fold(Self::EMPTY, |chain, hash| chain.with(hash).unwrap_or(chain))
    }

    /// With one more at the inner end; `None` when it is full.
    pub(crate) fn with(mut self, hash: u64) -> Option<Self> {
        *self.hashes.get_mut(usize::from(self.len))? = hash;
        self.len += 1;
        Some(self)
    }

    pub(crate) fn as_slice(&self) -> &[u64] {
        self.hashes.get(..usize::from(self.len)).unwrap_or_default()
    }

    pub(crate) fn contains(&self, hash: u64) -> bool {
        self.as_slice().contains(&hash)
    }

    /// How deep a load begun for this chain is nested; 0 = asked for by a caller.
    pub(crate) fn depth(&self) -> usize {
        usize::from(self.len)
    }
}

/// Joiners beyond this many are not remembered; a circle through them ends by its deadline instead.
const MAX_SERVED: usize = 64;

/// What one running load serves and waits for.
#[derive(Debug)]
pub(crate) struct Lineage {
    /// The loads it was begun for, and itself.
    chain: Chain,
    /// Whom it serves beyond those: chains that joined while it ran.
    joined: Mutex<Vec<u64>>,
    /// Keys that its loader is getting now.
    waits: Mutex<Vec<u64>>,
    /// The deepest who waits for it: while it waits for a permit, that pool is its own.
    depth: AtomicUsize,
    deepened: Notify,
}

/// Two loads wait for each other, or one for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Knot {
    Circle,
    TooDeep,
}

impl Lineage {
    /// The lineage of a load of `hash` begun for `chain`.
    pub(crate) fn begin(chain: Chain, hash: u64) -> Result<Arc<Self>, Knot> {
        Ok(Arc::new(Self {
            depth: AtomicUsize::new(chain.depth()),
            chain: chain.with(hash).ok_or(Knot::TooDeep)?,
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
    pub(crate) fn chain(&self) -> Chain {
        let joined = self.joined.lock();
        joined.iter().fold(self.chain, |chain, hash| chain.with(*hash).unwrap_or(chain))
    }

    /// Its loader is about to get `hash`; the guard ends when it has it.
    pub(crate) fn wait_for(self: &Arc<Self>, hash: u64) -> Result<Waiting, Knot> {
        if self.chain.contains(hash) || self.joined.lock().contains(&hash) {
            return Err(Knot::Circle);
        }
        if self.chain.depth() >= MAX_CHAIN {
            return Err(Knot::TooDeep);
        }
        self.waits.lock().push(hash);
        Ok(Waiting { lineage: Arc::clone(self), hash })
    }

    /// Someone who serves `chain` waits for this load from now on.
    ///
    /// The joiner has entered what it waits for before it asks, so of two loads that join each other at the
    /// same moment at least one is told.
    pub(crate) fn join(&self, chain: &Chain) -> Result<(), Knot> {
        if chain.as_slice().is_empty() {
            return Ok(());
        }
        if self.waits.lock().iter().any(|hash| chain.contains(*hash)) {
            return Err(Knot::Circle);
        }
        let mut joined = self.joined.lock();
        for hash in chain.as_slice() {
            if joined.len() < MAX_SERVED && !self.chain.contains(*hash) && !joined.contains(hash) {
                joined.push(*hash);
            }
        }
        drop(joined);
        if self.depth.fetch_max(chain.depth(), Relaxed) < chain.depth() {
            self.deepened.notify_one();
        }
        Ok(())
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

/// A key that a loader is getting.
#[derive(Debug)]
pub(crate) struct Waiting {
    lineage: Arc<Lineage>,
    hash: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waits = self.lineage.waits.lock();
        if let Some(at) = waits.iter().position(|hash| *hash == self.hash) {
            waits.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(chain: &[u64], hash: u64) -> Arc<Lineage> {
        Lineage::begin(Chain::of(chain.iter().copied()), hash).unwrap()
    }

    #[test]
    fn a_load_that_waits_for_itself_is_a_circle() {
        let inner = load(&[1, 2], 3);
        for own in [1, 2, 3] {
            assert_eq!(inner.wait_for(own).unwrap_err(), Knot::Circle);
        }
        assert!(inner.wait_for(4).is_ok());
    }

    #[test]
    fn whoever_closes_a_circle_is_told() {
        let (a, b) = (load(&[], 1), load(&[], 2));
        let _a_waits = a.wait_for(2).unwrap();
        b.join(&a.chain()).unwrap();
        assert_eq!(b.wait_for(1).unwrap_err(), Knot::Circle, "b serves a by now");

        // Both entered their wait before either joined: the second to join is told.
        let (c, d) = (load(&[], 3), load(&[], 4));
        let (c_chain, d_chain) = (c.chain(), d.chain());
        let (_c_waits, _d_waits) = (c.wait_for(4).unwrap(), d.wait_for(3).unwrap());
        assert_eq!(d.join(&c_chain).and(c.join(&d_chain)).unwrap_err(), Knot::Circle);
    }

    #[test]
    fn a_wait_that_ended_is_forgotten() {
        let (a, b) = (load(&[], 1), load(&[], 2));
        drop(a.wait_for(2).unwrap());
        assert!(a.join(&b.chain()).is_ok());
    }

    #[test]
    fn a_chain_is_bounded() {
        let full = Chain::of(1..=20);
        assert_eq!(full.depth(), MAX_CHAIN);
        assert_eq!(Lineage::begin(full, 99).unwrap_err(), Knot::TooDeep);
    }

    #[tokio::test]
    async fn a_deeper_joiner_raises_the_depth() {
        let a = load(&[], 1);
        let waiter = tokio::spawn({
            let a = Arc::clone(&a);
            async move { a.deeper_than(0).await }
        });
        tokio::task::yield_now().await;
        a.join(&Chain::of([7, 8])).unwrap();
        waiter.await.unwrap();
        assert_eq!(a.depth(), 2);
    }
}
