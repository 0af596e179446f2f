//! Locks of the store: no user code runs under one, and concurrent threads keep the bound.

use crate::cache::store::tests::*;

/// Payload with a `Drop` that uses the store, as a user's value may.
struct ReentrantDrop {
    store: StdArc<OnceLock<Weak<Store<ReentrantDrop>>>>,
    dropped: StdArc<AtomicUsize>,
    heap_bytes: u64,
}

impl HeapSize for ReentrantDrop {
    fn heap_bytes(&self) -> u64 {
        self.heap_bytes
    }
}

impl Drop for ReentrantDrop {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        let Some(store) = self.store.get().and_then(Weak::upgrade) else { return };
        let _ = (store.len(), store.bytes());
        drop(store.get("a", 0));
        // Takes the write lock and finds nothing, so that no further payload is dropped here.
        assert!(store.remove("from drop").is_none());
    }
}

/// Store of such payloads, with a count of the dropped ones.
struct ReentrantStore {
    store: StdArc<Store<ReentrantDrop>>,
    home: StdArc<OnceLock<Weak<Store<ReentrantDrop>>>>,
    dropped: StdArc<AtomicUsize>,
}

impl ReentrantStore {
    /// Creates a store of one shard, so that a `Drop` under its lock would deadlock.
    fn new() -> Self {
        let store = StdArc::new(Store::with_shards(10_000, 1, 1));
        let home = StdArc::new(OnceLock::from(StdArc::downgrade(&store)));
        Self { store, home, dropped: StdArc::default() }
    }

    fn insert(&self, key: &str, heap_bytes: u64, expires_at_ms: u64) -> Inserted<ReentrantDrop> {
        let payload =
            ReentrantDrop { store: StdArc::clone(&self.home), dropped: StdArc::clone(&self.dropped), heap_bytes };
        self.store.insert(key, Slot::new(Entry::new(payload, Times::until(0, expires_at_ms))))
    }

    fn dropped(&self) -> usize {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[test]
fn payload_may_use_the_store_while_it_is_dropped() {
    within_a_minute(|| {
        let reentrant = ReentrantStore::new();
        let held = reentrant.insert("a", 10, NEVER);
        assert_eq!(held.admission, Admission::Kept);
        let replaced = reentrant.insert("a", 10, NEVER);
        assert_eq!(reentrant.dropped(), 0, "a replaced payload waits for the caller");
        drop(replaced);
        assert_eq!(reentrant.dropped(), 1);

        let refused = reentrant.insert("a", 20_000, NEVER);
        assert_eq!((refused.admission, reentrant.dropped()), (Admission::TooLarge, 1));
        drop(refused);
        assert_eq!(reentrant.dropped(), 3, "the refused payload and the stale one");

        let mut evicted = 0;
        for id in 0..100 {
            let before = reentrant.dropped();
            let inserted = reentrant.insert(&format!("{id}"), 1_000 + id * 20, NEVER);
            assert_eq!(reentrant.dropped(), before, "an evicted payload waits for the caller");
            evicted += inserted.evicted(&format!("{id}")).count();
        }
        assert!(evicted > 80);
        assert_eq!(reentrant.dropped(), 3 + evicted);

        let before = reentrant.dropped();
        let all = reentrant.store.clear();
        assert_eq!((reentrant.dropped(), reentrant.store.len()), (before, 0), "cleared payloads wait for the caller");
        let count = all.len();
        drop(all);
        assert_eq!(reentrant.dropped(), before + count);

        drop(reentrant.insert("a", 10, NEVER));
        let before = reentrant.dropped();
        let removed = reentrant.store.remove("a");
        assert_eq!((removed.is_some(), reentrant.dropped()), (true, before));
        drop(removed);

        drop(reentrant.insert("b", 10, 100));
        assert!(reentrant.store.get("b", 100).is_none());
        assert_eq!(reentrant.dropped(), before + 1, "an expired payload stays");
        let ReentrantStore { store, dropped, .. } = reentrant;
        drop(store);
        assert_eq!(dropped.load(Ordering::Relaxed), before + 2);
    });
}

#[test]
fn entries_evicted_by_a_large_one_are_all_handed_out() {
    within_a_minute(|| {
        let reentrant = ReentrantStore::new();
        for id in 0..40 {
            drop(reentrant.insert(&format!("{id}"), 0, NEVER));
        }
        let (before, count) = (reentrant.dropped(), reentrant.store.len());
        let weight = reentrant.store.max_entry_bytes();
        let inserted = reentrant.insert("x", weight - Entry::<ReentrantDrop>::OVERHEAD_BYTES - 1, NEVER);
        assert_eq!((inserted.admission, reentrant.dropped()), (Admission::Kept, before));
        let evicted = inserted.evicted("x").count();
        assert_eq!(evicted, count + 1 - reentrant.store.len());
        assert!(evicted > 30);
    });
}

/// Checks that a new entry which is the least used may be evicted at once, and that the stale entry leaves with it.
#[test]
fn new_entry_may_be_evicted_at_once() {
    let store = Store::with_shards(10_000, 1, 1);
    let keys: Vec<String> = (0..9).map(|id| format!("{id}")).collect();
    for key in &keys {
        assert_eq!(put(&store, key, 1, heap_for(key, 1_000)), Admission::Kept);
    }
    // All other entries are in use, so the replacement, which needs more room, is the least used entry.
    keys[1..].iter().for_each(|key| (0..3).for_each(|_| drop(store.get(key, 0))));
    let inserted = store.insert("0", entry(2, heap_for("0", 2_500), NEVER));
    assert_eq!((inserted.admission, inserted.evicted("0").count()), (Admission::Crowded, 0));
    assert!(store.peek("0").is_none(), "neither the new value nor the stale one");
    assert_eq!((store.len(), store.bytes()), (8, 8_000));
}

#[test]
fn four_threads_keep_the_bound() {
    const KEYS: u64 = 500;
    let store = Store::<OfSize>::with_shards(60_000, 4, 1);
    let running = AtomicBool::new(true);
    let work = |thread: u64| {
        let mut state = thread + 1;
        for op in 0..50_000u64 {
            // A cheap sequence of numbers, equal in each run.
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
