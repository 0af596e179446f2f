mod budget;
mod locks;
mod parts;
mod policy;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{OnceLock, Weak, mpsc};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use crate::cache::store::*;

const NEVER: u64 = u64::MAX;
const MIB: u64 = 1 << 20;

/// Overhead of the entries that most tests store.
const OVERHEAD: u64 = Entry::<OfSize>::OVERHEAD_BYTES;

/// Stand-in for a value of any size: only its weight is large.
#[derive(Debug)]
struct OfSize {
    id: u64,
    heap_bytes: u64,
}

impl HeapSize for OfSize {
    fn heap_bytes(&self) -> u64 {
        self.heap_bytes
    }
}

fn entry(id: u64, heap_bytes: u64, expires_at_ms: u64) -> Slot<OfSize> {
    Slot::new(Entry::new(OfSize { id, heap_bytes }, Times::until(0, expires_at_ms)))
}

/// Returns the heap bytes with which an entry of `key` weighs exactly `weight`.
fn heap_for(key: &str, weight: u64) -> u64 {
    weight - OVERHEAD - key.len() as u64
}

fn put(store: &Store<OfSize>, key: &str, id: u64, heap_bytes: u64) -> Admission {
    store.insert(key, entry(id, heap_bytes, NEVER)).admission
}

/// Runs `body` on its own thread and panics if it takes a minute, because a deadlock must not hang the tests.
fn within_a_minute(body: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let run = move || {
        body();
        let _ = done.send(());
    };
    let thread = thread::Builder::new().spawn(run).unwrap();
    let ended = wait.recv_timeout(Duration::from_secs(60));
    assert_ne!(ended, Err(mpsc::RecvTimeoutError::Timeout), "deadlock");
    thread.join().unwrap();
}

#[test]
fn shards_follow_budget_and_largest_value() {
    let shards = |capacity, max_value| Store::<OfSize>::new(capacity, max_value, 1).shards.len();
    assert_eq!(shards(0, MIB), 1);
    assert_eq!(shards(3 * MIB, 0), 1, "a small budget is not divided");
    assert_eq!(shards(64 * MIB, MIB), 32);
    assert_eq!(shards(64 * MIB, 2 * MIB), 16);
    assert_eq!(shards(64 * MIB, 64 * MIB), 1, "the largest value does not fit into one shard either");
    assert_eq!(shards(1 << 30, MIB), 64);
    assert_eq!(shards(NEVER, MIB), 64);
    assert_eq!(shards(NEVER, NEVER), 1);
    let largest = largest_bytes(4 * MIB);
    assert_eq!(
        (shards_for(256 * MIB, largest), shards_for(256 * MIB, largest + 1)),
        (64, 32),
        "at the limit, and above it"
    );
}

#[test]
fn iter_and_clear_return_all_entries() {
    let store = Store::new(64 * MIB, MIB, 1);
    let keys: Vec<_> = (0..100).map(|n| format!("key-{n:02}")).collect();
    keys.iter().for_each(|key| assert_eq!(put(&store, key, 1, 100), Admission::Kept));
    let sorted = |items: Vec<Item<OfSize>>| items.into_iter().map(|(key, _)| key.into()).collect::<BTreeSet<String>>();
    assert!(sorted(store.iter().collect()).iter().eq(&keys));
    assert_eq!(store.clear().len(), keys.len());
    assert_eq!((store.len(), store.iter().count()), (0, 0));
}

#[test]
fn largest_entry_of_a_small_group_is_most_of_its_budget() {
    let store = Store::new(3 * MIB, MIB, 1);
    let limit = store.max_entry_bytes();
    assert!(limit * 10 >= 3 * MIB * 9, "{limit}");
    assert_eq!(put(&store, "other", 1, 100), Admission::Kept);
    assert_eq!(put(&store, "large", 2, heap_for("large", limit)), Admission::Kept);
    assert_eq!(store.get("large", 0).unwrap().payload.id, 2);
    assert_eq!(put(&store, "large", 3, heap_for("large", limit + 1)), Admission::TooLarge);
    assert!(store.get("large", 0).is_none(), "the older value is stale");
    assert_eq!(store.get("other", 0).unwrap().payload.id, 1, "a refused entry evicts no other");
}

#[test]
fn capacity_zero_keeps_nothing() {
    let store = Store::new(0, MIB, 1);
    assert_eq!(put(&store, "", 1, 0), Admission::TooLarge);
    assert!(store.get("", 0).is_none());
    assert_eq!((store.len(), store.bytes(), store.capacity(), store.max_entry_bytes()), (0, 0, 0, 0));
}

#[test]
fn weight_that_overflows_is_too_large() {
    let store = Store::new(NEVER, MIB, 1);
    assert_eq!(put(&store, "k", 1, NEVER), Admission::TooLarge);
    assert_eq!(put(&store, "k", 2, store.max_entry_bytes()), Admission::TooLarge);
    assert_eq!(put(&store, "k", 3, MIB), Admission::Kept);
    assert_eq!(store.bytes(), MIB + 1 + OVERHEAD);
}

#[test]
fn empty_store_allocates_nothing_for_entries() {
    for capacity in [3 * MIB, 64 * MIB, 1 << 40] {
        assert_eq!(Store::<OfSize>::new(capacity, MIB, 1).memory(), 0);
    }
}

/// Checks the size of a place that `SLOT_BYTES` was measured with.
#[test]
fn place_takes_48_bytes() {
    // If this fails, measure SLOT_BYTES again.
    assert_eq!(size_of::<Option<queue::Place<OfSize>>>(), 48);
}

#[test]
fn small_hot_entries_survive_a_scan() {
    let store = Store::new(MIB, MIB, 1);
    let hot: Vec<String> = (0..100).map(|id| format!("hot{id}")).collect();
    hot.iter().for_each(|key| assert_eq!(put(&store, key, 0, 100), Admission::Kept));
    for id in 0..20_000 {
        let _ = put(&store, &format!("scan{id}"), id, 100);
        hot.iter().for_each(|key| drop(store.get(key, 0)));
    }
    assert!(hot.iter().all(|key| store.get(key, 0).is_some()));
    assert!(store.bytes() * 10 > MIB * 9, "the budget is used");
}

/// Checks that the seed alone decides the shard of a key, and that keys spread over the shards.
#[test]
fn seed_decides_the_shard_of_a_key() {
    let place = |seed| {
        let store = Store::<OfSize>::new(1 << 30, MIB, seed);
        (0..64).map(|id| store.place(&format!("{id}")).0).collect::<Vec<_>>()
    };
    assert_eq!(place(1), place(1), "two runs of one simulation agree");
    assert_ne!(place(1), place(2));
    let shards: std::collections::BTreeSet<_> = place(1).into_iter().collect();
    assert!(shards.len() > 30, "keys spread over the shards: {}", shards.len());
}

#[test]
fn closed_store_hands_inserted_entries_back() {
    let store = Store::new(1 << 20, 1 << 10, 1);
    assert_eq!(put(&store, "before", 1, 100), Admission::Kept);
    store.close();
    let refused = entry(2, 100, NEVER);
    let inserted = store.insert("after", Arc::clone(&refused));
    assert_eq!(inserted.admission, Admission::Closed);
    assert_eq!(Arc::strong_count(&refused), 2, "the caller drops the refused entry, not the store");
    assert_eq!((store.len(), inserted.evicted("after").count()), (1, 0), "entries stay until the store is cleared");
    assert_eq!(store.clear().len(), 1);
}

#[test]
fn expired_entry_is_a_miss_from_its_first_millisecond() {
    let store = Store::new(MIB, MIB, 1);
    drop(store.insert("k", entry(1, 10, 100)));
    assert_eq!(store.get("k", 99).unwrap().payload.id, 1);
    assert!(store.get("k", 100).is_none());
    assert_eq!(store.len(), 1, "the entry stays until it is swept");
    drop(store.insert("k", entry(2, 10, 0)));
    assert!(store.get("k", 0).is_none());
    drop(store.insert("k", entry(3, 10, NEVER)));
    assert_eq!(store.get("k", NEVER - 1).unwrap().payload.id, 3);
}

#[test]
fn entry_served_on_expires_with_its_last_use() {
    let entry = entry(1, 10, 100);
    entry.serve_on(500);
    assert_eq!((entry.hit_until_ms(), entry.is_expired(99), entry.is_expired(100)), (100, false, true));
}

#[test]
fn fresh_entry_that_replaced_an_expired_one_survives() {
    let store = Store::new(MIB, MIB, 1);
    drop(store.insert("k", entry(1, 10, 100)));
    let expired = store.peek("k").unwrap();
    // Another thread stores a fresh value between the peek and the removal.
    drop(store.insert("k", entry(2, 10, 300)));
    assert!(store.remove_same("k", &expired).is_none());
    assert_eq!(store.get("k", 200).unwrap().payload.id, 2);
    let fresh = store.peek("k").unwrap();
    assert_eq!(store.remove_same("k", &fresh).unwrap().payload.id, 2);
    assert!(store.peek("k").is_none());
}

#[test]
fn peek_shows_an_expired_entry_and_leaves_it() {
    let store = Store::new(MIB, MIB, 1);
    drop(store.insert("k", entry(1, 10, 100)));
    assert!(store.peek("k").unwrap().is_expired(100));
    assert_eq!(store.len(), 1);
}

/// Checks what a store knows of keys that it has no answer for.
#[test]
fn trace_tells_why_a_key_has_no_answer() {
    let store = Store::new(64 << 10, 0, 1);
    assert_eq!(store.trace("absent", 10), Trace::Absent);
    drop(store.insert("expired", entry(1, 0, 10)));
    assert_eq!((store.trace("expired", 9), store.trace("expired", 10)), (Trace::Absent, Trace::Expired));
    let capped = Slot::new(Entry::new(OfSize { id: 2, heap_bytes: 0 }, Times::until(5, NEVER)));
    drop(store.insert("capped", Slot::clone(&capped)));
    capped.cap(0);
    assert_eq!(store.trace("capped", 9), Trace::Capped);
    for n in 0..400 {
        let _ = put(&store, &format!("key-{n}"), n, 1 << 10);
    }
    let evicted = (0..400).filter(|n| store.trace(&format!("key-{n}"), 9) == Trace::Evicted).count();
    assert!(evicted > 0, "an eviction is remembered");
}
