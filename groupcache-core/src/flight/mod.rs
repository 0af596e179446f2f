//! Flights: at most one fetch and one load per key at a time, and the stripes that keep results from before a write out
//! of the cache.
//!
//! A group has two tables of one shape: *fetches*, which ask a peer for local callers, and *loads*, which run the
//! loader. A request from a peer touches loads only, so that it cannot wait for a request of this node. Two nodes that
//! take each other for the owner of a key therefore cannot deadlock.
//!
//! A flight has three states: *attached* (in its table, and new callers join it), *detached* (out of its table after a
//! write, or because it did not suit a new caller: its waiters still receive its outcome, and new callers begin another
//! flight) and *complete* (it has its outcome).
//!
//! A stripe is a write counter that all keys of one hash share. A write advances it. A flight records its stripe when
//! it begins, and its value is cached only if the stripe has not moved since. The two steps happen under the lock of
//! the key's shard. No user code runs there, because values are cloned and dropped outside of the lock.
//!
//! Permits for loads are in [`permits`], load chains and their cycles in [`nesting`].

pub(crate) mod nesting;
pub(crate) mod permits;
mod waiting;

use std::{
    any::Any,
    sync::{Arc, OnceLock},
};

use hashbrown::{HashTable, hash_table::Entry};

use crate::flight::waiting::{Waiters, Waiting};
use crate::runtime::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

/// Number of stripes of a node. With 1,000 writes per second and loads of 100 ms, the write of another key keeps one
/// load in 650 out of the cache. Few stripes suffice for the interleaving checker, which creates them for each order.
const STRIPES: usize = if cfg!(shuttle) { 1 << 4 } else { 1 << 16 };

/// Number of shards of a group's tables. A lock is held for some hundred nanoseconds.
const SHARDS: usize = if cfg!(shuttle) { 2 } else { 64 };

/// The write counters of a node, shared by its groups.
///
/// The counters are atomic because two groups may use one stripe under different locks. For one key, every access
/// happens under the lock of its shard.
#[derive(Debug)]
pub(crate) struct InvalidationStripes(Box<[AtomicU64]>);

impl InvalidationStripes {
    pub(crate) fn new() -> Self {
        Self((0..STRIPES).map(|_| AtomicU64::new(0)).collect())
    }

    fn of(&self, hash: u64) -> &AtomicU64 {
        #[expect(clippy::indexing_slicing, reason = "the remainder is below the number of stripes")]
        &self.0[hash as usize % STRIPES]
    }

    fn read(&self, hash: u64) -> u64 {
        self.of(hash).load(Relaxed)
    }

    fn advance(&self, hash: u64) -> u64 {
        self.of(hash).fetch_add(1, Relaxed) + 1
    }
}

/// Kind of a flight, and table that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A request to a peer, for local callers.
    Fetch,
    /// A call of the loader, for local callers and peers.
    Load,
}

/// A fetch or a load with its waiters. Each waiter gets a clone of the outcome `O`; the context `C` belongs to the
/// owner of the table.
#[derive(Debug)]
pub(crate) struct Flight<O, C> {
    kind: Kind,
    key: Arc<str>,
    hash: u64,
    /// Write counter of the stripe when the flight began.
    stripe: u64,
    /// Counter of clears when the flight began.
    clears: u64,
    /// Coarse time at which the flight began.
    pub(crate) begun_ms: u64,
    /// Horizon of the node when the flight completed while it was attached; 0 = a write may have missed the outcome.
    horizon_ms: AtomicU64,
    is_overdue: AtomicBool,
    outcome: OnceLock<O>,
    waiters: Waiters,
    /// Guard that is dropped when the flight is complete.
    held: Mutex<Option<Box<dyn Any + Send>>>,
    pub(crate) context: C,
}

impl<O: Clone, C> Flight<O, C> {
    pub(crate) fn key(&self) -> &Arc<str> {
        &self.key
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.outcome.get().is_some()
    }

    /// Marks the flight as overdue, and returns whether this is the first time.
    pub(crate) fn first_time_overdue(&self) -> bool {
        !self.is_overdue.swap(true, Relaxed)
    }

    /// Returns the horizon of the node when the flight completed, up to which its outcome contains every write; 0 if a
    /// write came meanwhile.
    pub(crate) fn horizon_ms(&self) -> u64 {
        self.horizon_ms.load(Relaxed)
    }

    /// Keeps a guard until the flight is complete.
    pub(crate) fn hold(&self, guard: Box<dyn Any + Send>) {
        *self.held.lock() = Some(guard);
        if self.is_complete() {
            self.release();
        }
    }

    /// Drops the guard, outside of its lock.
    fn release(&self) {
        let held = self.held.lock().take();
        drop(held);
    }

    /// Waits for the outcome. Dropping the future leaves nothing behind.
    pub(crate) fn outcome(&self) -> Waiting<'_, O, C> {
        Waiting::new(self)
    }

    /// Returns the outcome of a flight to which nobody else refers.
    pub(crate) fn into_outcome(self) -> Option<O> {
        self.outcome.into_inner()
    }

    fn complete(&self, outcome: O) {
        if self.outcome.set(outcome).is_ok() {
            self.waiters.wake();
            self.release();
        }
    }
}

/// Table of flights by key. A flight stores the hash of its key, because a map would hash each key again at every step
/// of a get.
#[derive(Debug)]
struct Table<O, C>(HashTable<Arc<Flight<O, C>>>);

impl<O, C> Table<O, C> {
    const fn new() -> Self {
        Self(HashTable::new())
    }

    fn get(&self, hash: u64, key: &str) -> Option<&Arc<Flight<O, C>>> {
        self.0.find(hash, |flight| &*flight.key == key)
    }

    /// Inserts a flight and returns the one that it replaces.
    fn insert(&mut self, flight: Arc<Flight<O, C>>) -> Option<Arc<Flight<O, C>>> {
        match self.0.entry(flight.hash, |known| known.key == flight.key, |known| known.hash) {
            Entry::Occupied(mut known) => Some(std::mem::replace(known.get_mut(), flight)),
            Entry::Vacant(place) => {
                place.insert(flight);
                None
            }
        }
    }

    fn remove(&mut self, hash: u64, is_wanted: impl Fn(&Arc<Flight<O, C>>) -> bool) -> Option<Arc<Flight<O, C>>> {
        Some(self.0.find_entry(hash, is_wanted).ok()?.remove().0)
    }
}

#[derive(Debug)]
struct Shard<O, C> {
    fetches: Table<O, C>,
    loads: Table<O, C>,
}

impl<O, C> Shard<O, C> {
    fn table(&mut self, kind: Kind) -> &mut Table<O, C> {
        match kind {
            Kind::Fetch => &mut self.fetches,
            Kind::Load => &mut self.loads,
        }
    }
}

/// The flights of one group.
#[derive(Debug)]
pub(crate) struct Flights<O, C> {
    shards: Box<[Mutex<Shard<O, C>>]>,
    stripes: Arc<InvalidationStripes>,
    /// Number of steps of clears that have begun; a clear, which is a write of all keys, has two steps.
    clears: AtomicU64,
    /// Number of steps of clears that are over.
    clears_over: AtomicU64,
    seed: u64,
}

/// State of the counters at a write, for [`finish_write`](Flights::finish_write).
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteToken {
    hash: u64,
    writes: u64,
    clears: u64,
}

/// Result of [`Flights::join`].
#[derive(Debug)]
pub(crate) enum Join<O, C, F> {
    /// The recheck has found a value.
    Found(F),
    /// A flight was running.
    Shared(Arc<Flight<O, C>>),
    /// A new flight has begun, and the caller must ensure that it is completed.
    Started(Arc<Flight<O, C>>),
}

impl<O: Clone, C> Flights<O, C> {
    /// Makes the tables of a group. `seed` must differ between groups, so that equal keys of two groups do not share
    /// stripes.
    pub(crate) fn new(stripes: Arc<InvalidationStripes>, seed: u64) -> Self {
        let shard = |_| Mutex::new(Shard { fetches: Table::new(), loads: Table::new() });
        let shards = (0..SHARDS).map(shard).collect();
        Self { shards, stripes, clears: AtomicU64::new(0), clears_over: AtomicU64::new(0), seed }
    }

    /// Returns the hash that selects the shard and the stripe of a key within this process.
    fn hash(&self, key: &str) -> u64 {
        xxhash_rust::xxh3::xxh3_64_with_seed(key.as_bytes(), self.seed)
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard<O, C>> {
        // The low bits select the stripe, so the high ones select the shard.
        let at = (hash >> 32) as usize % SHARDS;
        #[expect(clippy::indexing_slicing, reason = "the remainder is below the number of shards")]
        self.shards[at].lock()
    }

    /// Joins the running flight of `key`, or begins one.
    ///
    /// A running flight that `suits` rejects is detached: its waiters still receive its outcome, and the caller begins
    /// another flight. `recheck` runs under the lock, because a flight that was completed just before may have cached
    /// the value.
    pub(crate) fn join<F>(
        &self,
        kind: Kind,
        key: &str,
        now_ms: u64,
        suits: impl FnOnce(&C) -> bool,
        recheck: impl FnOnce() -> Option<F>,
        context: impl FnOnce() -> C,
    ) -> Join<O, C, F> {
        let hash = self.hash(key);
        let mut shard = self.shard(hash);
        if let Some(flight) = shard.table(kind).get(hash, key).filter(|flight| suits(&flight.context)) {
            return Join::Shared(Arc::clone(flight));
        }
        if let Some(found) = recheck().filter(|_| !mutant!(NoSecondLook)) {
            return Join::Found(found);
        }
        let flight = Arc::new(Flight {
            kind,
            key: key.into(),
            hash,
            stripe: self.stripes.read(hash),
            clears: self.clears.load(Relaxed),
            begun_ms: now_ms,
            horizon_ms: AtomicU64::new(0),
            is_overdue: AtomicBool::new(false),
            outcome: OnceLock::new(),
            waiters: Waiters::default(),
            held: Mutex::default(),
            context: context(),
        });
        let detached = shard.table(kind).insert(Arc::clone(&flight));
        drop(shard);
        drop(detached);
        Join::Started(flight)
    }

    /// Returns the attached flight of `key`, if there is one.
    pub(crate) fn running(&self, kind: Kind, key: &str) -> Option<Arc<Flight<O, C>>> {
        let hash = self.hash(key);
        self.shard(hash).table(kind).get(hash, key).cloned()
    }

    /// Completes a flight: takes it out of its table, runs `keep` unless a write forbids that, and gives all waiters
    /// the outcome.
    ///
    /// `keep` runs under the lock, and its result is returned, so that the caller drops replaced values outside of the
    /// lock. Returns `None` when `keep` did not run, because of a write since the flight began. `horizon_ms` is the
    /// horizon of the node, read before the outcome was known.
    pub(crate) fn complete<R>(
        &self,
        flight: &Arc<Flight<O, C>>,
        outcome: O,
        horizon_ms: u64,
        keep: impl FnOnce() -> R,
    ) -> Option<R> {
        let (kept, unused, _attached) = {
            let mut shard = self.shard(flight.hash);
            // A detached flight must not remove the flight that began after it.
            let attached = shard.table(flight.kind).remove(flight.hash, |attached| Arc::ptr_eq(attached, flight));
            let was_written =
                self.stripes.read(flight.hash) != flight.stripe || self.clears.load(Relaxed) != flight.clears;
            let was_written = was_written && !mutant!(StaleInsertAfterRemove);
            if was_written {
                (None, Some(keep), attached)
            } else {
                // A detached flight without a write was replaced, and a later write does not reach it.
                flight.horizon_ms.store(if attached.is_some() { horizon_ms } else { 0 }, Relaxed);
                (Some(keep()), None, attached)
            }
        };
        drop(unused); // outside of the lock, because `keep` may hold the last reference to a value
        flight.complete(outcome);
        kept
    }

    /// Writes one key: no flight that began before caches a value from now on, and no caller joins one.
    ///
    /// `change` runs under the lock and applies the write to the store. Also returns a token for
    /// [`finish_write`](Self::finish_write).
    pub(crate) fn write<R>(&self, key: &str, change: impl FnOnce() -> R) -> (R, WriteToken) {
        let hash = self.hash(key);
        let (changed, token, detached) = {
            let mut shard = self.shard(hash);
            let token = WriteToken { hash, writes: self.stripes.advance(hash), clears: self.clears.load(Relaxed) };
            let detached =
                [Kind::Fetch, Kind::Load].map(|kind| shard.table(kind).remove(hash, |flight| &*flight.key == key));
            (change(), token, detached)
        };
        drop(detached); // outside of the lock, because a flight may hold the last reference to an outcome
        (changed, token)
    }

    /// Returns the state of the counters of a key, for [`finish_write`](Self::finish_write).
    pub(crate) fn token(&self, key: &str) -> WriteToken {
        let hash = self.hash(key);
        let _shard = self.shard(hash);
        WriteToken { hash, writes: self.stripes.read(hash), clears: self.clears.load(Relaxed) }
    }

    /// Stores a value that was not there when `token` was taken: that of a write, or that of another node. Runs `change`
    /// unless a write came meanwhile. Its result is returned, so that the caller drops values outside of the lock.
    pub(crate) fn finish_write<R>(&self, token: WriteToken, change: impl FnOnce() -> R) -> Option<R> {
        let shard = self.shard(token.hash);
        let was_written = self.stripes.read(token.hash) != token.writes || self.clears.load(Relaxed) != token.clears;
        if was_written && !mutant!(PullIgnoresStripes) || self.is_clearing() {
            drop(shard); // before the values that `change` holds
            return None;
        }
        Some(change())
    }

    /// Writes all keys: no flight that began before caches a value from now on, and no caller joins one.
    ///
    /// `drain` takes the entries out of the store. [`is_clearing`](Self::is_clearing) is true meanwhile. A flight that
    /// begins meanwhile is detached too, because it may have seen an entry that was not taken out yet.
    pub(crate) fn clear<R>(&self, drain: impl FnOnce() -> R) -> R {
        self.clears.fetch_add(1, Relaxed);
        self.detach_all();
        let drained = drain();
        self.clears.fetch_add(1, Relaxed);
        self.detach_all();
        self.clears_over.fetch_add(2, Relaxed);
        drained
    }

    /// Returns whether a clear runs, so that any entry may be about to be dropped.
    pub(crate) fn is_clearing(&self) -> bool {
        self.clears_over.load(Relaxed) != self.clears.load(Relaxed)
    }

    fn detach_all(&self) {
        for shard in &self.shards {
            // Under the lock of the shard: a flight that stores a value now has seen the clear, or stored it before.
            let detached = {
                let mut shard = shard.lock();
                [Kind::Fetch, Kind::Load].map(|kind| std::mem::replace(shard.table(kind), Table::new()))
            };
            drop(detached);
        }
    }

    /// Returns the coarse time at which the oldest attached flight began.
    pub(crate) fn oldest_ms(&self, kind: Kind) -> Option<u64> {
        let oldest = |shard: &Mutex<Shard<O, C>>| shard.lock().table(kind).0.iter().map(|flight| flight.begun_ms).min();
        self.shards.iter().filter_map(oldest).min()
    }

    /// Returns all attached flights, for the shutdown and for the watch over overdue loads.
    pub(crate) fn all(&self, kind: Kind) -> Vec<Arc<Flight<O, C>>> {
        self.shards.iter().flat_map(|shard| shard.lock().table(kind).0.iter().cloned().collect::<Vec<_>>()).collect()
    }
}

/// Guard that runs `complete` when it is dropped, unless it was defused, so that a task which is aborted or panics
/// still completes its flight.
pub(crate) struct CompleteOnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> CompleteOnDrop<F> {
    pub(crate) fn new(complete: F) -> Self {
        Self(Some(complete))
    }

    pub(crate) fn defuse(mut self) {
        self.0 = None;
    }
}

impl<F: FnOnce()> Drop for CompleteOnDrop<F> {
    fn drop(&mut self) {
        if let Some(complete) = self.0.take().filter(|_| !mutant!(FlightStaysWhenDropped)) {
            complete();
        }
    }
}

#[cfg(test)]
#[cfg(shuttle)]
mod interleavings;

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use super::*;

    type Numbers = Flights<u32, ()>;

    fn flights() -> Numbers {
        Flights::new(Arc::new(InvalidationStripes::new()), 7)
    }

    fn begin(flights: &Numbers, kind: Kind, key: &str) -> Arc<Flight<u32, ()>> {
        match flights.join(kind, key, 0, |()| true, || None::<()>, || ()) {
            Join::Started(flight) => flight,
            other => panic!("expected a new flight, got {other:?}"),
        }
    }

    #[tokio::test]
    async fn caller_that_joins_gets_outcome_of_first() {
        let flights = flights();
        let first = begin(&flights, Kind::Load, "k");
        let Join::Shared(second) = flights.join(Kind::Load, "k", 0, |()| true, || None::<()>, || ()) else {
            panic!("expected to join the running flight")
        };
        let waiting = tokio::spawn(async move { second.outcome().await });
        assert_eq!(flights.complete(&first, 7, 0, || "kept"), Some("kept"));
        assert_eq!(waiting.await.unwrap(), 7);
        assert_eq!(first.outcome().await, 7, "a later waiter gets the outcome too");
        assert!(flights.running(Kind::Load, "k").is_none());
    }

    #[test]
    fn fetch_and_load_of_one_key_are_two_flights() {
        let flights = flights();
        begin(&flights, Kind::Fetch, "k");
        begin(&flights, Kind::Load, "k");
    }

    #[test]
    fn write_detaches_flight_and_discards_its_value() {
        let flights = flights();
        let old = begin(&flights, Kind::Load, "k");
        flights.write("k", || ());
        let new = begin(&flights, Kind::Load, "k");
        assert_eq!(flights.complete(&old, 1, 0, || "kept"), None, "a write came after it began");
        assert!(Arc::ptr_eq(&flights.running(Kind::Load, "k").unwrap(), &new), "the newer flight stays attached");
        assert_eq!(flights.complete(&new, 2, 0, || "kept"), Some("kept"));
    }

    /// Checks that callers share a fetch that began after a write, however soon, and that a write detaches it.
    #[test]
    fn fetch_after_write_is_shared_until_next_write() {
        let flights = flights();
        let joins = || matches!(flights.join(Kind::Fetch, "k", 0, |()| true, || None::<()>, || ()), Join::Shared(_));
        flights.write("k", || ());
        let fetch = begin(&flights, Kind::Fetch, "k");
        assert!(joins());
        flights.write("k", || ());
        assert!(!joins());
        assert_eq!(flights.complete(&fetch, 1, 7, || "kept"), None);
        assert_eq!(fetch.horizon_ms(), 0, "the write has not reached the outcome");
    }

    /// Checks that the value of another node is stored unless a write came after it was judged.
    #[test]
    fn value_of_other_node_is_kept_unless_written() {
        let flights = flights();
        let token = flights.token("k");
        assert_eq!(flights.finish_write(token, || "kept"), Some("kept"), "there was no write");
        flights.write("another", || ());
        assert_eq!(flights.finish_write(token, || "kept"), Some("kept"));
        flights.write("k", || ());
        assert_eq!(flights.finish_write(token, || "kept"), None);
        let token = flights.token("k");
        flights.clear(|| assert_eq!(flights.finish_write(flights.token("k"), || ()), None, "a clear may drop it"));
        assert_eq!(flights.finish_write(token, || ()), None);
    }

    #[test]
    fn flight_is_listed_until_complete_and_overdue_once() {
        let flights = flights();
        let (fetch, load) = (begin(&flights, Kind::Fetch, "k"), begin(&flights, Kind::Load, "k"));
        assert!(Arc::ptr_eq(&flights.all(Kind::Load)[0], &load) && Arc::ptr_eq(&flights.all(Kind::Fetch)[0], &fetch));
        assert!(load.first_time_overdue() && !load.first_time_overdue());
        assert!(!load.is_complete());
        flights.complete(&load, 1, 0, || ());
        assert_eq!((flights.all(Kind::Load).len(), flights.all(Kind::Fetch).len()), (0, 1));
    }

    #[test]
    fn write_finished_late_yields_to_newer_write() {
        let flights = flights();
        let ((), first) = flights.write("k", || ());
        let ((), second) = flights.write("k", || ());
        assert_eq!(flights.finish_write(first, || "stored"), None);
        assert_eq!(flights.finish_write(second, || "stored"), Some("stored"));
    }

    #[test]
    fn recheck_that_finds_value_begins_no_flight() {
        let flights = flights();
        assert!(matches!(flights.join(Kind::Load, "k", 0, |()| true, || Some(3), || ()), Join::Found(3)));
        assert!(flights.running(Kind::Load, "k").is_none());
    }

    #[test]
    fn flight_begun_during_clear_is_discarded() {
        let flights = flights();
        let before = begin(&flights, Kind::Load, "k");
        let during = flights.clear(|| {
            assert!(flights.is_clearing());
            begin(&flights, Kind::Load, "k")
        });
        assert!(!flights.is_clearing());
        let after = begin(&flights, Kind::Load, "k");
        assert_eq!((flights.complete(&before, 1, 0, || ()), flights.complete(&during, 2, 0, || ())), (None, None));
        assert_eq!(flights.complete(&after, 3, 0, || "kept"), Some("kept"));
    }

    #[tokio::test]
    async fn dropped_waiter_leaves_other_waiters() {
        let flights = flights();
        let flight = begin(&flights, Kind::Load, "k");
        let mut dropped = Box::pin(flight.outcome());
        let mut waiting = Box::pin(flight.outcome());
        assert!(futures_util::poll!(dropped.as_mut()).is_pending());
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        drop(dropped);
        flights.complete(&flight, 5, 0, || ());
        assert_eq!(waiting.await, 5);
    }

    #[test]
    fn task_that_panics_completes_its_flight() {
        let flights = flights();
        let flight = begin(&flights, Kind::Load, "k");
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _complete = CompleteOnDrop::new(|| {
                flights.complete(&flight, 0, 0, || ());
            });
            panic!("the loader");
        }));
        assert!(result.is_err() && flight.is_complete());
        assert!(flights.running(Kind::Load, "k").is_none());
        CompleteOnDrop::new(|| panic!("a defused guard has run")).defuse();
    }
}
