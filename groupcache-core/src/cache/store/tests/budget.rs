//! Property tests: bytes are bounded, and a store never returns another value than the newest one of a key.

use crate::cache::store::tests::*;

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
    // A few keys are replaced often; many keys fill the shards.
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

/// Store with the newest value of each key, which the store must not contradict. Eviction may make any value absent.
struct Model {
    store: Store<OfSize>,
    now: u64,
    next_id: u64,
    /// Id and expiry of the last insert of each key that was kept and not removed since.
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
            inserted.displaced.iter().map(|l| (l.key.clone(), l.entry.payload.id, l.entry.weight(&l.key))).collect();
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
                assert_eq!(
                    Some(&(e.payload.id, e.hit_until_ms())),
                    self.newest.get(key),
                    "the value is removed, or not the newest"
                );
                assert!(self.now < e.hit_until_ms(), "the entry is expired");
            }
            None => assert!(here.is_none_or(|(_, expired)| expired), "a fresh entry is found"),
        }
    }

    fn check(&self) {
        let weight = |key: &String| self.store.peek(key).map(|e| e.weight(key));
        let found: Vec<u64> = self.newest.keys().filter_map(weight).collect();
        let sum: u64 = found.iter().sum();
        assert!(self.store.bytes() <= self.store.capacity(), "the store is above the budget");
        assert_eq!(self.store.bytes(), sum, "the accounted bytes are not those of the entries");
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
        prop_assert!(store.max_entry_bytes() >= largest || store.shards.len() == 1);
    }
}

#[test]
fn budget_is_rounded_down_when_shards_do_not_divide_it() {
    for shards in [1, 2, 4, 8, 16, 32, 64] {
        for capacity in (64 * 600..64 * 600 + 130).chain([65 * MIB + 63]) {
            let store = Store::<OfSize>::with_shards(capacity, shards, 3);
            assert_eq!(store.shards.len() as u64, shards);
            assert!(store.capacity() <= capacity && capacity - store.capacity() < shards);
        }
    }
    let store = Store::<OfSize>::with_shards(64 * 600 + 63, 64, 3);
    for id in 0..5_000 {
        let key = format!("{id}");
        // Each shard holds two entries. With the 63 spare bytes spread over the shards, some would hold more.
        assert_eq!(put(&store, &key, id, heap_for(&key, 300)), Admission::Kept);
        assert!(store.bytes() <= 64 * 600);
    }
    assert_eq!(store.bytes(), 64 * 600);
}
