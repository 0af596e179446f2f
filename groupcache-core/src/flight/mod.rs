//! Single flight, and the stripes by which a write undoes what older flights would do.
//!
//! Two tables of one shape: *fetches*, begun by local callers to ask a peer, and *loads*, which run the loader.
//! A request that came from a peer only ever touches the second, so it cannot wait for a request of our own:
//! the deadlock of two nodes that take each other for the owner is impossible by construction.
//!
//! A flight has three states: *attached* (in its table: who comes, joins), *detached* (a write has passed it:
//! who waits keeps waiting, who comes begins anew, its value is not stored) and *landed* (it has its outcome).
//!
//! A stripe is a counter shared by all keys with one hash. A write bumps it; a flight remembers it from its
//! beginning, and its value is stored only if it has not moved. Both are done under the lock of the key's
//! shard. No user code runs there: values are cloned and dropped outside.

pub(crate) mod nesting;
pub(crate) mod permits;
mod waiting;

use std::{
    future::Future,
    sync::{Arc, OnceLock},
};

use hashbrown::{HashTable, hash_table::Entry};

use crate::flight::waiting::{Waiters, Waiting};
use crate::{
    limits::INVALIDATION,
    runtime::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

/// Stripes of a node. With 1,000 writes a second and loads of 100 ms, one load in 650 is not stored because of
/// another key's write. A checker of interleavings makes them anew for each order.
const STRIPES: usize = if cfg!(shuttle) { 1 << 4 } else { 1 << 16 };

/// Shards of a group's tables; a lock is held for some hundred nanoseconds.
const SHARDS: usize = if cfg!(shuttle) { 2 } else { 64 };

/// How long after a write a fetch may still bring what was there before: as long as the write may take to reach
/// the node that is asked.
const UNSETTLED_MS: u64 = INVALIDATION.as_millis() as u64;

/// The write counters of a node, shared by its groups.
///
/// They are atomics because two groups may meet on a stripe under different locks; for one key every access
/// happens under the lock of its shard.
#[derive(Debug)]
pub(crate) struct InvalidationStripes(Box<[Stripe]>);

#[derive(Debug, Default)]
struct Stripe {
    writes: AtomicU64,
    /// Coarse time of the last one.
    written_ms: AtomicU64,
}

impl InvalidationStripes {
    pub(crate) fn new() -> Self {
        Self((0..STRIPES).map(|_| Stripe::default()).collect())
    }

    fn of(&self, hash: u64) -> &Stripe {
        #[expect(clippy::indexing_slicing, reason = "the remainder is below the number of stripes")]
        &self.0[hash as usize % STRIPES]
    }

    fn read(&self, hash: u64) -> u64 {
        self.of(hash).writes.load(Relaxed)
    }

    fn advance(&self, hash: u64, now_ms: u64) -> u64 {
        let stripe = self.of(hash);
        stripe.written_ms.store(now_ms, Relaxed);
        stripe.writes.fetch_add(1, Relaxed) + 1
    }

    /// Whether a fetch that began then may have asked a node which the last write had not reached.
    fn is_unsettled(&self, hash: u64, begun_ms: u64) -> bool {
        let stripe = self.of(hash);
        stripe.writes.load(Relaxed) > 0 && begun_ms <= stripe.written_ms.load(Relaxed).saturating_add(UNSETTLED_MS)
    }
}

/// Which table a flight is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Asks a peer, for local callers.
    Fetch,
    /// Runs the loader, for anybody.
    Load,
}

/// One piece of work and everyone who waits for it. `O` is what they all get a clone of; `C` is what the
/// table's owner keeps beside it.
#[derive(Debug)]
pub(crate) struct Flight<O, C> {
    kind: Kind,
    key: Arc<str>,
    hash: u64,
    /// The stripe when it began, and the clears.
    stripe: u64,
    clears: u64,
    /// When it began, in coarse time.
    pub(crate) begun_ms: u64,
    is_overdue: AtomicBool,
    outcome: OnceLock<O>,
    waiters: Waiters,
    pub(crate) context: C,
}

impl<O: Clone, C> Flight<O, C> {
    pub(crate) fn key(&self) -> &Arc<str> {
        &self.key
    }

    #[cfg(all(test, not(shuttle)))]
    pub(crate) fn is_complete(&self) -> bool {
        self.outcome.get().is_some()
    }

    /// Whether nobody has noticed yet that it runs too long.
    pub(crate) fn first_time_overdue(&self) -> bool {
        !self.is_overdue.swap(true, Relaxed)
    }

    /// Waits for the outcome. Dropping the future leaves nothing behind.
    pub(crate) fn outcome(&self) -> Waiting<'_, O, C> {
        Waiting::new(self)
    }

    fn complete(&self, outcome: O) {
        if self.outcome.set(outcome).is_ok() {
            self.waiters.wake();
        }
    }
}

/// Found by the hash that the flight knows: a map would hash each key again at every step of a get.
#[derive(Debug)]
struct Table<O, C>(HashTable<Arc<Flight<O, C>>>);

impl<O, C> Table<O, C> {
    const fn new() -> Self {
        Self(HashTable::new())
    }

    fn get(&self, hash: u64, key: &str) -> Option<&Arc<Flight<O, C>>> {
        self.0.find(hash, |flight| &*flight.key == key)
    }

    /// Returns the flight whose place it took.
    fn insert(&mut self, flight: Arc<Flight<O, C>>) -> Option<Arc<Flight<O, C>>> {
        match self.0.entry(flight.hash, |known| known.key == flight.key, |known| known.hash) {
            Entry::Occupied(mut known) => Some(std::mem::replace(known.get_mut(), flight)),
            Entry::Vacant(place) => {
                place.insert(flight);
                None
            }
        }
    }

    fn remove(&mut self, hash: u64, is_it: impl Fn(&Arc<Flight<O, C>>) -> bool) -> Option<Arc<Flight<O, C>>> {
        Some(self.0.find_entry(hash, is_it).ok()?.remove().0)
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
    /// Writes of all keys at once: how many have begun and how many of them are over, and when the last one was.
    clears: AtomicU64,
    clears_over: AtomicU64,
    cleared_ms: AtomicU64,
    seed: u64,
}

/// A write that has begun.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteToken {
    hash: u64,
    writes: u64,
    clears: u64,
}

/// How a caller came into a flight.
#[derive(Debug)]
pub(crate) enum Join<O, C, F> {
    /// What it wanted has arrived meanwhile.
    Found(F),
    /// Others have begun it.
    Shared(Arc<Flight<O, C>>),
    /// It is the first: whoever gets this must see to it that the flight lands.
    Started(Arc<Flight<O, C>>),
}

impl<O: Clone, C> Flights<O, C> {
    /// `seed` must differ between groups, so that they do not share stripes for keys of one name.
    pub(crate) fn new(stripes: Arc<InvalidationStripes>, seed: u64) -> Self {
        let shard = |_| Mutex::new(Shard { fetches: Table::new(), loads: Table::new() });
        let shards = (0..SHARDS).map(shard).collect();
        Self {
            shards,
            stripes,
            clears: AtomicU64::new(0),
            clears_over: AtomicU64::new(0),
            cleared_ms: AtomicU64::new(0),
            seed,
        }
    }

    /// In-process hash of a key: its shard and its stripe.
    fn hash(&self, key: &str) -> u64 {
        xxhash_rust::xxh3::xxh3_64_with_seed(key.as_bytes(), self.seed)
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard<O, C>> {
        // The stripe is chosen by the low bits, the shard by the high ones.
        let at = (hash >> 32) as usize % SHARDS;
        #[expect(clippy::indexing_slicing, reason = "the remainder is below the number of shards")]
        self.shards[at].lock()
    }

    /// Joins the flight of `key`, or begins one.
    ///
    /// One that does not suit who comes is detached, and goes on for those who wait for it. `look_again` runs under the
    /// lock: the flight that ended just before may have left what is wanted.
    pub(crate) fn join<F>(
        &self,
        kind: Kind,
        key: &str,
        now_ms: u64,
        suits: impl FnOnce(&C) -> bool,
        look_again: impl FnOnce() -> Option<F>,
        context: impl FnOnce() -> C,
    ) -> Join<O, C, F> {
        let hash = self.hash(key);
        let mut shard = self.shard(hash);
        if let Some(flight) = shard.table(kind).get(hash, key) {
            // A fetch of the second after a write may carry the older value to those who were there before the
            // write returned; who comes afterwards must not share it.
            if (kind == Kind::Load || !self.is_unsettled(hash, flight.begun_ms)) && suits(&flight.context) {
                return Join::Shared(Arc::clone(flight));
            }
        }
        if let Some(found) = look_again().filter(|_| !mutant!(NoSecondLook)) {
            return Join::Found(found);
        }
        let flight = Arc::new(Flight {
            kind,
            key: key.into(),
            hash,
            stripe: self.stripes.read(hash),
            clears: self.clears.load(Relaxed),
            begun_ms: now_ms,
            is_overdue: AtomicBool::new(false),
            outcome: OnceLock::new(),
            waiters: Waiters::default(),
            context: context(),
        });
        let detached = shard.table(kind).insert(Arc::clone(&flight));
        drop(shard);
        drop(detached);
        Join::Started(flight)
    }

    /// The flight of `key`, if one runs.
    pub(crate) fn running(&self, kind: Kind, key: &str) -> Option<Arc<Flight<O, C>>> {
        let hash = self.hash(key);
        self.shard(hash).table(kind).get(hash, key).cloned()
    }

    /// Ends a flight: out of its table, `keep` if no write has passed it, and the outcome to all who wait.
    ///
    /// `keep` runs under the lock; what it returns is handed out, so that replaced values are dropped outside.
    /// Returns `None` when a write has passed the flight.
    pub(crate) fn complete<R>(&self, flight: &Arc<Flight<O, C>>, outcome: O, keep: impl FnOnce() -> R) -> Option<R> {
        let (kept, unused, _attached) = {
            let mut shard = self.shard(flight.hash);
            // A detached flight must not remove the one that was begun after it.
            let attached = shard.table(flight.kind).remove(flight.hash, |attached| Arc::ptr_eq(attached, flight));
            // What a peer said in the second after a write may be of before it, even if the write was first here.
            let is_settled = flight.kind == Kind::Load || !self.is_unsettled(flight.hash, flight.begun_ms);
            let is_passed =
                self.stripes.read(flight.hash) != flight.stripe || self.clears.load(Relaxed) != flight.clears;
            let is_passed = is_passed && !mutant!(StaleInsertAfterRemove);
            if is_settled && !is_passed { (Some(keep()), None, attached) } else { (None, Some(keep), attached) }
        };
        drop(unused); // it may hold the last of a value: outside of the lock
        flight.complete(outcome);
        kept
    }

    /// A write: from now on no flight that began before it stores anything, and nobody joins one.
    ///
    /// `change` runs under the lock and does to the store what the write wants. Also returns a mark for
    /// [`finish_write`](Self::finish_write).
    pub(crate) fn write<R>(&self, key: &str, now_ms: u64, change: impl FnOnce() -> R) -> (R, WriteToken) {
        let hash = self.hash(key);
        let (changed, mark, detached) = {
            let mut shard = self.shard(hash);
            let mark =
                WriteToken { hash, writes: self.stripes.advance(hash, now_ms), clears: self.clears.load(Relaxed) };
            let detached =
                [Kind::Fetch, Kind::Load].map(|kind| shard.table(kind).remove(hash, |flight| &*flight.key == key));
            (change(), mark, detached)
        };
        drop(detached); // perhaps the last owner of an outcome: outside of the lock
        (changed, mark)
    }

    /// The second half of a write whose value took time to decode: done unless another write has passed it.
    pub(crate) fn finish_write<R>(&self, mark: WriteToken, change: impl FnOnce() -> R) -> Option<R> {
        let shard = self.shard(mark.hash);
        let is_passed = self.stripes.read(mark.hash) != mark.writes || self.clears.load(Relaxed) != mark.clears;
        if is_passed {
            drop(shard); // before what `change` holds
            return None;
        }
        Some(change())
    }

    /// A write of all keys: from now on no flight that began before it stores anything, and nobody joins one.
    ///
    /// `drain` drops what is stored. Meanwhile [`is_clearing`](Self::is_clearing), and what begins then is detached too:
    /// it may have seen what was not dropped yet.
    pub(crate) fn clear<R>(&self, now_ms: u64, drain: impl FnOnce() -> R) -> R {
        self.clears.fetch_add(1, Relaxed);
        self.detach_all(now_ms);
        let drained = drain();
        self.clears.fetch_add(1, Relaxed);
        self.detach_all(now_ms);
        self.clears_over.fetch_add(2, Relaxed);
        drained
    }

    /// Whether what is stored now may be about to be dropped.
    pub(crate) fn is_clearing(&self) -> bool {
        self.clears_over.load(Relaxed) != self.clears.load(Relaxed)
    }

    fn detach_all(&self, now_ms: u64) {
        self.cleared_ms.store(now_ms, Relaxed);
        for shard in &self.shards {
            // Under its lock: who stores something now has seen the clear, or has stored it before.
            let detached = {
                let mut shard = shard.lock();
                [Kind::Fetch, Kind::Load].map(|kind| std::mem::replace(shard.table(kind), Table::new()))
            };
            drop(detached);
        }
    }

    /// Whether a fetch that began then may have asked a node which the last write had not reached.
    fn is_unsettled(&self, hash: u64, begun_ms: u64) -> bool {
        let is_after_clear =
            self.clears.load(Relaxed) > 0 && begun_ms <= self.cleared_ms.load(Relaxed).saturating_add(UNSETTLED_MS);
        is_after_clear || self.stripes.is_unsettled(hash, begun_ms)
    }

    /// Whether what a peer has may have been undone by a write that came here shortly before the flight began.
    pub(crate) fn may_be_undone(&self, flight: &Flight<O, C>) -> bool {
        self.is_unsettled(flight.hash, flight.begun_ms)
    }

    /// Stores what a peer handed over that was asked at `asked_ms`, unless a write may have undone it.
    ///
    /// `fill` runs under the lock; what it returns is handed out, so that values are dropped outside.
    pub(crate) fn fill<R>(&self, key: &str, asked_ms: u64, fill: impl FnOnce() -> R) -> Option<R> {
        let hash = self.hash(key);
        let shard = self.shard(hash);
        if self.is_unsettled(hash, asked_ms) && !mutant!(PullIgnoresStripes) || self.is_clearing() {
            drop(shard); // before what `fill` holds
            return None;
        }
        Some(fill())
    }

    /// Every flight that has not landed; for shutting down and for the watch over overdue loads.
    pub(crate) fn all(&self, kind: Kind) -> Vec<Arc<Flight<O, C>>> {
        self.shards.iter().flat_map(|shard| shard.lock().table(kind).0.iter().cloned().collect::<Vec<_>>()).collect()
    }
}

/// Runs `landing` when dropped, unless it was defused: a task that is aborted or panics still lands its flight.
pub(crate) struct CompleteOnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> CompleteOnDrop<F> {
    pub(crate) fn new(landing: F) -> Self {
        Self(Some(landing))
    }

    pub(crate) fn defuse(mut self) {
        self.0 = None;
    }
}

impl<F: FnOnce()> Drop for CompleteOnDrop<F> {
    fn drop(&mut self) {
        if let Some(landing) = self.0.take().filter(|_| !mutant!(FlightStaysWhenDropped)) {
            landing();
        }
    }
}

/// The future of an outcome, or `None` when `deadline` passes first.
pub(crate) async fn within<O>(deadline: Option<tokio::time::Instant>, outcome: impl Future<Output = O>) -> Option<O> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, outcome).await.ok(),
        None => Some(outcome.await),
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
        begin_at(flights, kind, key, 0)
    }

    fn begin_at(flights: &Numbers, kind: Kind, key: &str, now_ms: u64) -> Arc<Flight<u32, ()>> {
        match flights.join(kind, key, now_ms, |()| true, || None::<()>, || ()) {
            Join::Started(flight) => flight,
            other => panic!("expected to begin, got {other:?}"),
        }
    }

    #[tokio::test]
    async fn everyone_gets_the_outcome_of_the_first() {
        let flights = flights();
        let first = begin(&flights, Kind::Load, "k");
        let Join::Shared(second) = flights.join(Kind::Load, "k", 0, |()| true, || None::<()>, || ()) else {
            panic!("joins")
        };
        let waiting = tokio::spawn(async move { second.outcome().await });
        assert_eq!(flights.complete(&first, 7, || "kept"), Some("kept"));
        assert_eq!(waiting.await.unwrap(), 7);
        assert_eq!(first.outcome().await, 7, "whoever looks later sees it too");
        assert!(flights.running(Kind::Load, "k").is_none());
    }

    #[test]
    fn fetches_and_loads_do_not_meet() {
        let flights = flights();
        begin(&flights, Kind::Fetch, "k");
        begin(&flights, Kind::Load, "k");
    }

    #[test]
    fn a_write_detaches_what_runs_and_forbids_it_to_store() {
        let flights = flights();
        let old = begin(&flights, Kind::Load, "k");
        flights.write("k", 0, || ());
        let new = begin(&flights, Kind::Load, "k");
        assert_eq!(flights.complete(&old, 1, || "kept"), None, "a write has passed it");
        assert!(Arc::ptr_eq(&flights.running(Kind::Load, "k").unwrap(), &new), "the newer flight stays attached");
        assert_eq!(flights.complete(&new, 2, || "kept"), Some("kept"));
    }

    #[test]
    fn a_fetch_of_the_second_after_a_write_is_not_joined() {
        let flights = flights();
        let joins = |now_ms| flights.join(Kind::Fetch, "k", now_ms, |()| true, || None::<()>, || ());
        let fetch = |now_ms| matches!(joins(now_ms), Join::Started(_));
        flights.write("k", 5_000, || ());
        assert!(fetch(5_400) && fetch(5_400), "it may bring what was there before the write");
        assert!(fetch(6_001), "that one too may be older than the end of the write");
        assert!(!fetch(6_002), "the one that began a second later is shared");
    }

    #[test]
    fn what_a_peer_says_in_the_second_after_a_write_is_not_kept_and_what_is_loaded_is() {
        let flights = flights();
        flights.write("k", 5_000, || ());
        for (kind, begun_ms, may_be_undone, kept) in [
            (Kind::Fetch, 6_000, true, None),
            (Kind::Fetch, 6_001, false, Some("kept")),
            (Kind::Load, 5_000, true, Some("kept")),
        ] {
            let flight = begin_at(&flights, kind, "k", begun_ms);
            assert_eq!(flights.may_be_undone(&flight), may_be_undone, "{kind:?} of {begun_ms}");
            assert_eq!(flights.complete(&flight, 1, || "kept"), kept, "{kind:?} of {begun_ms}");
        }
    }

    #[test]
    fn what_was_handed_over_is_kept_unless_a_write_may_have_undone_it() {
        let flights = flights();
        let fill = |key, asked_ms| flights.fill(key, asked_ms, || "kept");
        assert_eq!(fill("k", 0), Some("kept"), "nothing was ever written");
        flights.write("k", 5_000, || ());
        assert_eq!((fill("k", 6_000), fill("k", 6_001)), (None, Some("kept")));
        assert_eq!(fill("another", 5_000), Some("kept"));
        flights.clear(8_000, || assert_eq!(fill("another", 20_000), None, "it may be dropped in a moment"));
        assert_eq!((fill("another", 9_000), fill("another", 9_001)), (None, Some("kept")));
    }

    #[test]
    fn what_runs_is_listed_until_it_lands_and_is_overdue_once() {
        let flights = flights();
        let (fetch, load) = (begin(&flights, Kind::Fetch, "k"), begin(&flights, Kind::Load, "k"));
        assert!(Arc::ptr_eq(&flights.all(Kind::Load)[0], &load) && Arc::ptr_eq(&flights.all(Kind::Fetch)[0], &fetch));
        assert!(load.first_time_overdue() && !load.first_time_overdue());
        assert!(!load.is_complete());
        flights.complete(&load, 1, || ());
        assert_eq!((flights.all(Kind::Load).len(), flights.all(Kind::Fetch).len()), (0, 1));
    }

    #[test]
    fn a_write_that_is_finished_later_gives_way_to_one_that_came_meanwhile() {
        let flights = flights();
        let ((), first) = flights.write("k", 0, || ());
        let ((), second) = flights.write("k", 0, || ());
        assert_eq!(flights.finish_write(first, || "stored"), None);
        assert_eq!(flights.finish_write(second, || "stored"), Some("stored"));
    }

    #[test]
    fn the_last_look_happens_before_a_flight_begins() {
        let flights = flights();
        assert!(matches!(flights.join(Kind::Load, "k", 0, |()| true, || Some(3), || ()), Join::Found(3)));
        assert!(flights.running(Kind::Load, "k").is_none());
    }

    #[test]
    fn what_begins_while_everything_is_being_dropped_is_passed_too() {
        let flights = flights();
        let before = begin(&flights, Kind::Load, "k");
        let during = flights.clear(0, || {
            assert!(flights.is_clearing());
            begin(&flights, Kind::Load, "k")
        });
        assert!(!flights.is_clearing());
        let after = begin(&flights, Kind::Load, "k");
        assert_eq!((flights.complete(&before, 1, || ()), flights.complete(&during, 2, || ())), (None, None));
        assert_eq!(flights.complete(&after, 3, || "kept"), Some("kept"));
    }

    #[tokio::test]
    async fn a_waiter_that_is_dropped_leaves_the_others_waiting() {
        let flights = flights();
        let flight = begin(&flights, Kind::Load, "k");
        let mut dropped = Box::pin(flight.outcome());
        let mut waits = Box::pin(flight.outcome());
        assert!(futures_util::poll!(dropped.as_mut()).is_pending());
        assert!(futures_util::poll!(waits.as_mut()).is_pending());
        drop(dropped);
        flights.complete(&flight, 5, || ());
        assert_eq!(waits.await, 5);
    }

    #[test]
    fn a_task_that_ends_early_lands_its_flight() {
        let flights = flights();
        let flight = begin(&flights, Kind::Load, "k");
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _landing = CompleteOnDrop::new(|| {
                flights.complete(&flight, 0, || ());
            });
            panic!("the loader");
        }));
        assert!(result.is_err() && flight.is_complete());
        assert!(flights.running(Kind::Load, "k").is_none());
        CompleteOnDrop::new(|| panic!("its task has landed it itself")).defuse();
    }
}
