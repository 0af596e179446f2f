use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc as StdArc, OnceLock, Weak, mpsc};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const NEVER: u64 = u64::MAX;
const MIB: u64 = 1 << 20;

/// The overhead of the entries that most tests store.
const OVERHEAD: u64 = Entry::<OfSize>::OVERHEAD_BYTES;

/// Stands for a value of any size: only its weight is large.
#[derive(Debug)]
struct OfSize {
    id: u64,
    heap_bytes: u64,
}

impl Payload for OfSize {
    fn heap_bytes(&self) -> u64 {
        self.heap_bytes
    }
}

fn entry(id: u64, heap_bytes: u64, expires_at_ms: u64) -> Slot<OfSize> {
    Slot::new(Entry::new(OfSize { id, heap_bytes }, Times::until(0, expires_at_ms)))
}

/// The heap bytes with which an entry of `key` weighs exactly `weight`.
fn heap_for(key: &str, weight: u64) -> u64 {
    weight - OVERHEAD - key.len() as u64
}

fn put(store: &Store<OfSize>, key: &str, id: u64, heap_bytes: u64) -> Admission {
    store.insert(key, entry(id, heap_bytes, NEVER)).admission
}

/// Runs `body` on its own thread and fails when it does not end: a deadlock must not hang the tests.
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

// --- budget, by property -------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy)]
enum Size {
    Exactly(u64),
    /// The entry limit plus this many bytes.
    Limit(i64),
    /// Thousandths of the entry limit.
    Part(u64),
    Capacity,
}

#[derive(Debug, Clone)]
enum Step {
    Insert { key: u8, size: Size, ttl: Option<u64> },
    Get { key: u8 },
    Peek { key: u8 },
    Remove { key: u8 },
    Clear,
    Advance { ms: u64 },
}

fn size() -> impl Strategy<Value = Size> {
    prop_oneof![
        2 => Just(Size::Exactly(0)),
        2 => Just(Size::Exactly(1)),
        1 => (0..5_000u64).prop_map(Size::Exactly),
        3 => (-1..=1i64).prop_map(Size::Limit),
        6 => (0..=1_000u64).prop_map(Size::Part),
        1 => Just(Size::Capacity),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    // Few keys meet often (replace, stale values); many fill shards.
    let key = || prop_oneof![0..6u8, any::<u8>()];
    let ttl = prop_oneof![3 => Just(None), 1 => (0..40u64).prop_map(Some)];
    prop_oneof![
        12 => (key(), size(), ttl).prop_map(|(key, size, ttl)| Step::Insert { key, size, ttl }),
        8 => key().prop_map(|key| Step::Get { key }),
        1 => key().prop_map(|key| Step::Peek { key }),
        2 => key().prop_map(|key| Step::Remove { key }),
        1 => Just(Step::Clear),
        2 => (0..30u64).prop_map(|ms| Step::Advance { ms }),
    ]
}

fn a_store() -> impl Strategy<Value = (u64, u64)> {
    let capacity = prop_oneof![
        0..=3u64,
        OVERHEAD - 3..OVERHEAD + 50,
        200..5_000u64,
        5_000..200_000u64,
        Just(3 * MIB),
        Just(NEVER)
    ];
    (capacity, (0..=6u32).prop_map(|power| 1 << power))
}

/// What a store must not contradict: the newest value of each key. Eviction may make any of them absent.
struct Model {
    store: Store<OfSize>,
    now: u64,
    next_id: u64,
    /// Key → (id, expires_at_ms) of the last insert that was kept and not removed since.
    newest: BTreeMap<String, (u64, u64)>,
}

impl Model {
    fn new(capacity: u64, shards: u64) -> Self {
        Self { store: Store::with_shards(capacity, shards, 42), now: 0, next_id: 0, newest: BTreeMap::new() }
    }

    fn run(&mut self, step: &Step) {
        let key = |key: &u8| format!("k{key}");
        match step {
            Step::Insert { key: k, size, ttl } => self.insert(&key(k), *size, *ttl),
            Step::Get { key: k } => self.get(&key(k)),
            Step::Peek { key: k } => {
                let found = self.store.peek(&key(k)).map(|e| (e.payload.id, e.hit_until_ms()));
                assert!(found.is_none() || found.as_ref() == self.newest.get(&key(k)));
            }
            Step::Remove { key: k } => {
                let before = self.store.peek(&key(k)).map(|e| e.payload.id);
                assert_eq!(self.store.remove(&key(k)).map(|e| e.payload.id), before);
                assert!(self.store.peek(&key(k)).is_none());
                self.newest.remove(&key(k));
            }
            Step::Clear => {
                let before = self.store.len();
                assert_eq!(self.store.clear().len(), before);
                assert_eq!((self.store.len(), self.store.bytes()), (0, 0));
                self.newest.clear();
            }
            Step::Advance { ms } => self.now += ms,
        }
        self.check();
    }

    fn insert(&mut self, key: &str, size: Size, ttl: Option<u64>) {
        let limit = self.store.max_entry_bytes();
        let fixed = OVERHEAD + key.len() as u64;
        let heap = match size {
            Size::Exactly(bytes) => bytes,
            Size::Limit(off) => limit.saturating_add_signed(off).saturating_sub(fixed),
            Size::Part(thousandths) => (limit / 1_000 * thousandths).saturating_sub(fixed),
            Size::Capacity => self.store.capacity(),
        };
        self.next_id += 1;
        let expires = ttl.map_or(NEVER, |ttl| self.now + ttl);
        let new = entry(self.next_id, heap, expires);
        let (weight, before, count) = (new.weight(key), self.store.bytes(), self.store.len());
        assert_eq!(weight, fixed + heap);

        let inserted = self.store.insert(key, new);

        let left: Vec<_> =
            inserted.displaced.iter().map(|(key, e)| (key.clone(), e.payload.id, e.weight(key))).collect();
        let left_bytes: u64 = left.iter().map(|(_, _, weight)| weight).sum();
        assert_eq!(before + weight, self.store.bytes() + left_bytes, "nothing is lost and nothing counted twice");
        assert_eq!(count + 1, self.store.len() + left.len());
        assert_eq!(inserted.evicted(key).count(), left.iter().filter(|(k, ..)| **k != *key).count());
        assert_eq!(inserted.admission == Admission::TooLarge, weight > limit, "refused exactly above the limit");
        let found = self.store.peek(key).map(|e| e.payload.id);
        match inserted.admission {
            Admission::Kept => {
                assert_eq!(found, Some(self.next_id));
                self.newest.insert(key.to_owned(), (self.next_id, expires));
            }
            Admission::Crowded | Admission::TooLarge | Admission::Closed => {
                assert_eq!(found, None, "an older value is stale");
                assert!(left.iter().any(|(_, id, _)| *id == self.next_id), "the refused entry is handed back");
                self.newest.remove(key);
            }
        }
    }

    fn get(&mut self, key: &str) {
        let here = self.store.peek(key).map(|e| (e.payload.id, e.is_expired(self.now)));
        let got = self.store.get(key, self.now);
        match &got {
            Some(e) => {
                assert_eq!(Some(&(e.payload.id, e.hit_until_ms())), self.newest.get(key), "removed, or not the newest");
                assert!(self.now < e.hit_until_ms(), "expired");
            }
            None => assert!(here.is_none_or(|(_, expired)| expired), "a fresh entry is found"),
        }
    }

    fn check(&self) {
        let weight = |key: &String| self.store.peek(key).map(|e| e.weight(key));
        let found: Vec<u64> = self.newest.keys().filter_map(weight).collect();
        let sum: u64 = found.iter().sum();
        assert!(self.store.bytes() <= self.store.capacity(), "above the budget");
        assert_eq!(self.store.bytes(), sum, "accounted is not what can be found");
        assert_eq!(self.store.len(), found.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn p6_bytes_are_bounded_at_every_step(
        (capacity, shards) in a_store(),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut model = Model::new(capacity, shards);
        prop_assert!(model.store.capacity() <= capacity);
        for step in &steps {
            model.run(step);
        }
    }

    #[test]
    fn each_shard_holds_the_largest_value(capacity in 0..NEVER, power in 0..64u32, max_value in 0..64 * MIB) {
        let capacity = capacity >> power;
        let store = Store::<OfSize>::new(capacity, max_value, 1);
        let largest = max_value + MAX_KEY_BYTES + OVERHEAD;
        prop_assert!(store.capacity() <= capacity);
        prop_assert!(store.max_entry_bytes() >= largest || store.cache.num_shards() == 1);
        prop_assert_eq!(store.max_entry_bytes(), hot_bytes(store.cache.shard_capacity()));
    }
}

#[test]
fn budget_is_rounded_down_when_shards_do_not_divide_it() {
    for shards in [1, 2, 4, 8, 16, 32, 64] {
        for capacity in (64 * 600..64 * 600 + 130).chain([65 * MIB + 63]) {
            let store = Store::<OfSize>::with_shards(capacity, shards, 3);
            assert_eq!(store.cache.num_shards() as u64, shards, "the estimate of items lowered it");
            assert_eq!(store.cache.capacity(), store.capacity());
            assert!(store.capacity() <= capacity && capacity - store.capacity() < shards);
        }
    }
    let store = Store::<OfSize>::with_shards(64 * 600 + 63, 64, 3);
    for id in 0..5_000 {
        let key = format!("{id}");
        // Each shard holds two of these: 63 spare bytes spread over the shards would let some hold more.
        assert_eq!(put(&store, &key, id, heap_for(&key, 300)), Admission::Kept);
        assert!(store.bytes() <= 64 * 600);
    }
    assert_eq!(store.bytes(), 64 * 600);
}

// --- shards and limits ---------------------------------------------------------------------------------------------

#[test]
fn shards_follow_budget_and_largest_value() {
    let shards = |capacity, max_value| Store::<OfSize>::new(capacity, max_value, 1).cache.num_shards();
    assert_eq!(shards(0, MIB), 1);
    assert_eq!(shards(3 * MIB, 0), 1, "a small budget is not divided");
    assert_eq!(shards(64 * MIB, MIB), 32);
    assert_eq!(shards(64 * MIB, 2 * MIB), 16);
    assert_eq!(shards(64 * MIB, 64 * MIB), 1, "the largest value does not fit even here");
    assert_eq!(shards(1 << 30, MIB), 64);
    assert_eq!(shards(NEVER, MIB), 64);
    assert_eq!(shards(NEVER, NEVER), 1);
    let largest = hot_bytes(4 * MIB);
    assert_eq!((shards_for(256 * MIB, largest), shards_for(256 * MIB, largest + 1)), (64, 32), "it fits, and just not");
}

#[test]
fn all_that_is_there_is_shown_and_handed_out_in_the_end() {
    let store = Store::new(64 * MIB, MIB, 1);
    let keys: Vec<_> = (0..100).map(|n| format!("key-{n:02}")).collect();
    keys.iter().for_each(|key| assert_eq!(put(&store, key, 1, 100), Admission::Kept));
    let sorted = |items: Vec<Item<OfSize>>| items.into_iter().map(|(key, _)| key.into()).collect::<BTreeSet<String>>();
    assert!(sorted(store.iter().collect()).iter().eq(&keys));
    assert!(sorted(store.clear()).iter().eq(&keys));
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
    assert_eq!(store.get("other", 0).unwrap().payload.id, 1, "a refused entry evicts nobody");
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
fn nothing_is_allocated_for_entries_that_are_not_there() {
    for capacity in [3 * MIB, 64 * MIB, 1 << 40] {
        assert_eq!(Store::<OfSize>::new(capacity, MIB, 1).cache.memory_used().total(), 0);
    }
}

#[test]
fn slots_are_what_the_overhead_was_measured_with() {
    let store = Store::<OfSize>::new(1 << 30, MIB, 1);
    for id in 0..1_000 {
        assert_eq!(put(&store, &format!("{id}"), id, 0), Admission::Kept);
    }
    // When this fails, measure SLOT_BYTES again.
    assert_eq!(store.cache.memory_used().entries, 56 * 1_000);
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

#[test]
fn seed_decides_where_a_key_goes() {
    let place = |seed| {
        let store = Store::<OfSize>::new(1 << 30, MIB, seed);
        (0..64).map(|id| store.cache.shard_index(format!("{id}").as_str())).collect::<Vec<_>>()
    };
    assert_eq!(place(1), place(1), "two runs of one simulation agree");
    assert_ne!(place(1), place(2));
    let shards: std::collections::BTreeSet<_> = place(1).into_iter().collect();
    assert!(shards.len() > 30, "keys spread over the shards: {}", shards.len());
}

// --- expiry --------------------------------------------------------------------------------------------------------

#[test]
fn expired_entry_is_a_miss_from_its_first_millisecond() {
    let store = Store::new(MIB, MIB, 1);
    drop(store.insert("k", entry(1, 10, 100)));
    assert_eq!(store.get("k", 99).unwrap().payload.id, 1);
    assert!(store.get("k", 100).is_none());
    assert_eq!(store.len(), 1, "until it is swept");
    drop(store.insert("k", entry(2, 10, 0)));
    assert!(store.get("k", 0).is_none());
    drop(store.insert("k", entry(3, 10, NEVER)));
    assert_eq!(store.get("k", NEVER - 1).unwrap().payload.id, 3);
}

#[test]
fn what_is_served_on_is_no_hit_when_it_is_of_no_use_any_more() {
    let entry = entry(1, 10, 100);
    entry.serve_on(500);
    assert_eq!((entry.hit_until_ms(), entry.is_expired(99), entry.is_expired(100)), (100, false, true));
}

#[test]
fn fresh_entry_that_replaced_an_expired_one_survives() {
    let store = Store::new(MIB, MIB, 1);
    drop(store.insert("k", entry(1, 10, 100)));
    let seen = store.peek("k").unwrap();
    // Between a get's look and its removal another thread stores a fresh value.
    drop(store.insert("k", entry(2, 10, 300)));
    assert!(store.remove_same("k", &seen).is_none());
    assert_eq!(store.get("k", 200).unwrap().payload.id, 2);
    let seen = store.peek("k").unwrap();
    assert_eq!(store.remove_same("k", &seen).unwrap().payload.id, 2);
    assert!(store.peek("k").is_none());
}

#[test]
fn peek_shows_an_expired_entry_and_leaves_it() {
    let store = Store::new(MIB, MIB, 1);
    drop(store.insert("k", entry(1, 10, 100)));
    assert!(store.peek("k").unwrap().is_expired(100));
    assert_eq!(store.len(), 1);
}

// --- user code and locks -------------------------------------------------------------------------------------------

/// A payload whose `Drop` uses the store it was in, as a user's value might.
struct Nosy {
    store: StdArc<OnceLock<Weak<Store<Nosy>>>>,
    dropped: StdArc<AtomicUsize>,
    heap_bytes: u64,
}

impl Payload for Nosy {
    fn heap_bytes(&self) -> u64 {
        self.heap_bytes
    }
}

impl Drop for Nosy {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        let Some(store) = self.store.get().and_then(Weak::upgrade) else { return };
        let _ = (store.len(), store.bytes());
        drop(store.get("a", 0));
        // Takes the write lock, and finds nothing: another Nosy would do the same again.
        assert!(store.remove("from drop").is_none());
    }
}

struct NosyStore {
    store: StdArc<Store<Nosy>>,
    home: StdArc<OnceLock<Weak<Store<Nosy>>>>,
    dropped: StdArc<AtomicUsize>,
}

impl NosyStore {
    /// One shard, so that a `Drop` under its lock would meet that lock.
    fn new() -> Self {
        let store = StdArc::new(Store::with_shards(10_000, 1, 1));
        let home = StdArc::new(OnceLock::from(StdArc::downgrade(&store)));
        Self { store, home, dropped: StdArc::default() }
    }

    fn insert(&self, key: &str, heap_bytes: u64, expires_at_ms: u64) -> Inserted<Nosy> {
        let payload = Nosy { store: StdArc::clone(&self.home), dropped: StdArc::clone(&self.dropped), heap_bytes };
        self.store.insert(key, Slot::new(Entry::new(payload, Times::until(0, expires_at_ms))))
    }

    fn dropped(&self) -> usize {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[test]
fn payload_may_use_the_store_while_it_is_dropped() {
    within_a_minute(|| {
        let nosy = NosyStore::new();
        let held = nosy.insert("a", 10, NEVER);
        assert_eq!(held.admission, Admission::Kept);
        let replaced = nosy.insert("a", 10, NEVER);
        assert_eq!(nosy.dropped(), 0, "a replaced payload waits for the caller");
        drop(replaced);
        assert_eq!(nosy.dropped(), 1);

        let refused = nosy.insert("a", 20_000, NEVER);
        assert_eq!((refused.admission, nosy.dropped()), (Admission::TooLarge, 1));
        drop(refused);
        assert_eq!(nosy.dropped(), 3, "the refused one and the stale one");

        let mut evicted = 0;
        for id in 0..100 {
            let before = nosy.dropped();
            let inserted = nosy.insert(&format!("{id}"), 1_000 + id * 20, NEVER);
            assert_eq!(nosy.dropped(), before, "an evicted payload waits for the caller");
            evicted += inserted.evicted(&format!("{id}")).count();
        }
        assert!(evicted > 80);
        assert_eq!(nosy.dropped(), 3 + evicted);

        let before = nosy.dropped();
        let all = nosy.store.clear();
        assert_eq!((nosy.dropped(), nosy.store.len()), (before, 0), "cleared payloads wait for the caller");
        let count = all.len();
        drop(all);
        assert_eq!(nosy.dropped(), before + count);

        drop(nosy.insert("a", 10, NEVER));
        let before = nosy.dropped();
        let removed = nosy.store.remove("a");
        assert_eq!((removed.is_some(), nosy.dropped()), (true, before));
        drop(removed);

        drop(nosy.insert("b", 10, 100));
        assert!(nosy.store.get("b", 100).is_none());
        assert_eq!(nosy.dropped(), before + 1, "an expired payload stays");
        let NosyStore { store, dropped, .. } = nosy;
        drop(store);
        assert_eq!(dropped.load(Ordering::Relaxed), before + 2);
    });
}

#[test]
fn many_small_entries_that_one_large_one_evicts_are_all_handed_out() {
    within_a_minute(|| {
        let nosy = NosyStore::new();
        for id in 0..40 {
            drop(nosy.insert(&format!("{id}"), 0, NEVER));
        }
        let (before, count) = (nosy.dropped(), nosy.store.len());
        let weight = nosy.store.max_entry_bytes();
        let inserted = nosy.insert("x", weight - Entry::<Nosy>::OVERHEAD_BYTES - 1, NEVER);
        assert_eq!((inserted.admission, nosy.dropped()), (Admission::Kept, before));
        let evicted = inserted.evicted("x").count();
        assert_eq!(evicted, count + 1 - nosy.store.len());
        assert!(evicted > 30);
    });
}

#[test]
fn newcomer_may_be_the_one_that_is_evicted() {
    let store = Store::with_shards(10_000, 1, 1);
    let keys: Vec<String> = (0..9).map(|id| format!("{id}")).collect();
    for key in &keys {
        assert_eq!(put(&store, key, 1, heap_for(key, 1_000)), Admission::Kept);
    }
    // All others are in use, so the replacement, which needs more room, is itself the least used.
    keys[1..].iter().for_each(|key| (0..3).for_each(|_| drop(store.get(key, 0))));
    let inserted = store.insert("0", entry(2, heap_for("0", 2_500), NEVER));
    assert_eq!((inserted.admission, inserted.evicted("0").count()), (Admission::Crowded, 0));
    assert!(store.peek("0").is_none(), "neither the new value nor the stale one");
    assert_eq!((store.len(), store.bytes()), (8, 8_000));
}

// --- threads -------------------------------------------------------------------------------------------------------

#[test]
fn four_threads_keep_the_bound() {
    const KEYS: u64 = 500;
    let store = Store::<OfSize>::with_shards(60_000, 4, 1);
    let running = AtomicBool::new(true);
    let work = |thread: u64| {
        let mut state = thread + 1;
        for op in 0..50_000u64 {
            // Any cheap sequence of numbers will do; it is the same in each run.
            state = xxh3_64_with_seed(&op.to_le_bytes(), state);
            let id = state % KEYS;
            let (key, now) = (format!("{id}"), op / 100);
            match (state >> 32) % 16 {
                0..6 => drop(store.insert(&key, entry(id, (state >> 40) % 3_000, now + (state >> 52) % 100))),
                6..14 => assert!(store.get(&key, now).is_none_or(|e| e.payload.id == id && now < e.hit_until_ms())),
                14 => assert!(store.remove(&key).is_none_or(|e| e.payload.id == id)),
                _ if op % 1_000 == 0 => drop(store.clear()),
                _ => drop(store.peek(&key)),
            }
        }
    };
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while running.load(Ordering::Relaxed) {
                assert!(store.bytes() <= store.capacity());
                thread::yield_now();
            }
        });
        let workers: Vec<_> = (0..4).map(|thread| scope.spawn(move || work(thread))).collect();
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        running.store(false, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
        watch.join().unwrap();
    });
    let weight = |key: String| store.peek(&key).map(|e| e.weight(&key));
    let found: Vec<u64> = (0..KEYS).filter_map(|id| weight(format!("{id}"))).collect();
    assert_eq!(store.bytes(), found.iter().sum::<u64>());
    assert_eq!(store.len(), found.len());
    assert!(store.bytes() <= store.capacity());
}

#[test]
fn what_was_used_often_lately_counts_more_than_what_was_used_more_often_long_ago() {
    let entry = |uses: u32, at_ms: u64| {
        let entry = Entry::new((), Times::until(0, u64::MAX));
        (0..uses).for_each(|_| entry.touch(at_ms));
        entry
    };
    let minute = 60_000;
    assert_eq!(entry(0, 0).uses(minute), Some(0));
    assert_eq!(entry(7, minute).uses(minute), Some(7));
    assert!(entry(100, minute).uses(10 * minute) < entry(3, 10 * minute).uses(10 * minute));
    let many = entry(100_000, minute);
    assert_eq!(many.uses(minute), Some(255), "more than enough");
    many.handed_over(minute);
    many.touch(minute);
    assert_eq!(many.uses(minute), None, "its owner has it");
}

#[test]
fn what_is_lent_ends_here_and_is_kept_for_its_owner_and_what_is_capped_is_gone() {
    let entry = || Entry::new((), Times::until(1000, 100_000));
    let lent = entry();
    lent.lend(5000);
    assert_eq!((lent.fresh_until_ms(), lent.fresh_at_its_owner_until_ms(), lent.hit_until_ms()), (5000, 100_000, 5000));
    assert!(lent.is_expired(5000) && lent.is_gone(5000) && !lent.is_spent(99_999) && lent.is_spent(100_000));
    let capped = entry();
    capped.cap(5000);
    assert_eq!((capped.fresh_at_its_owner_until_ms(), capped.is_spent(5000)), (5000, true));
    let handed_over = entry();
    handed_over.handed_over(5000);
    assert!(!handed_over.is_gone(4999) && handed_over.is_spent(5000));
}

#[test]
fn a_store_that_is_closed_keeps_nothing_more_and_hands_it_back() {
    let store = Store::new(1 << 20, 1 << 10, 1);
    assert_eq!(put(&store, "before", 1, 100), Admission::Kept);
    store.close();
    let refused = entry(2, 100, NEVER);
    let inserted = store.insert("after", Arc::clone(&refused));
    assert_eq!(inserted.admission, Admission::Closed);
    assert_eq!(Arc::strong_count(&refused), 2, "it is dropped by the caller, and not here");
    assert_eq!((store.len(), inserted.evicted("after").count()), (1, 0), "what is there stays until it is cleared");
    assert_eq!(store.clear().len(), 1);
}
