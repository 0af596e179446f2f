//! Parts of the store: one budget, of which replicas take their share at most, and which owned entries use alone.

use std::thread;

use crate::cache::store::{Inserted, tests::*};

fn replica(store: &Store<OfSize>, key: &str, heap_bytes: u64) -> Admission {
    store.insert(key, entry(0, heap_bytes, NEVER)).admission
}

/// Fills a part with entries of 1 to 4 KiB until `bytes` were stored.
fn fill(store: &Store<OfSize>, name: &str, bytes: u64) {
    let (mut stored, mut id) = (0, 0);
    while stored < bytes {
        let heap_bytes = 1024 + id * 577 % 3072;
        assert_eq!(replica(store, &format!("{name}-{id}"), heap_bytes), Admission::Kept);
        (stored, id) = (stored + heap_bytes, id + 1);
    }
}

#[test]
fn owned_entries_alone_use_99_percent_of_the_budget() {
    for capacity in [4 * MIB, 64 * MIB] {
        let owned = Store::new(capacity, MIB, 1);
        let _replicas = owned.replicas(capacity / 8);
        fill(&owned, "owned", 2 * capacity);
        let used = 100 * owned.bytes() / owned.capacity();
        assert!(used >= 99, "{used} % of {capacity} bytes are used");
    }
}

#[test]
fn replicas_take_their_share_at_most() {
    for capacity in [MIB, 64 * MIB] {
        let (owned, share) = (Store::new(capacity, MIB, 1), capacity / 8);
        let replicas = owned.replicas(share);
        fill(&owned, "owned", 2 * capacity);
        fill(&replicas, "replica", 2 * capacity);
        assert!(replicas.bytes() <= share && replicas.bytes() > share * 9 / 10, "{} of {share}", replicas.bytes());
        assert!(owned.bytes() + replicas.bytes() <= capacity);
        let before = replicas.bytes();
        fill(&owned, "later", 4 * capacity);
        assert_eq!(replicas.bytes(), before, "owned entries leave the replicas their share");
        assert!(owned.bytes() + before >= capacity / 100 * 99, "owned entries have the rest");
    }
}

#[test]
fn key_has_an_owned_entry_and_a_replica_apart() {
    let owned = Store::new(MIB, MIB, 1);
    let replicas = owned.replicas(MIB / 8);
    assert_eq!((put(&owned, "k", 1, 100), put(&replicas, "k", 2, 100)), (Admission::Kept, Admission::Kept));
    let id = |store: &Store<OfSize>| store.get("k", 0).map(|entry| entry.payload.id);
    assert_eq!((id(&owned), id(&replicas), owned.len(), replicas.len()), (Some(1), Some(2), 1, 1));
    assert_eq!((owned.iter().count(), replicas.iter().count()), (1, 1));
    drop(replicas.remove("k"));
    assert_eq!((id(&owned), id(&replicas)), (Some(1), None));
    assert_eq!(replicas.replicas_bytes.load(Ordering::Relaxed), 0);
}

/// Checks that a replica larger than the share of a shard is kept, because the limit is one of all shards together, and
/// that one above the limit is not.
#[test]
fn replica_is_kept_up_to_the_limit_of_all_shards() {
    let owned = Store::<OfSize>::new(64 * MIB, MIB, 1);
    let replicas = owned.replicas(8 * MIB);
    assert!(owned.shards.len() > 8);
    assert_eq!(replica(&replicas, "large", 3 * MIB / 2), Admission::Kept);
    fill(&replicas, "small", 16 * MIB);
    assert_eq!(replica(&replicas, "larger", heap_for("larger", replicas.max_entry_bytes())), Admission::Kept);
    assert!(replicas.bytes() <= 8 * MIB);
    let little = owned.replicas(MIB);
    assert_eq!(replica(&little, "above", MIB), Admission::TooLarge);
}

/// Checks that the account of the replicas, which bounds them, is the sum of their weights after each way out.
#[test]
fn account_of_replicas_follows_each_way_out() {
    let owned = Store::new(MIB, MIB, 1);
    let replicas = owned.replicas(MIB / 8);
    let check = || assert_eq!(replicas.replicas_bytes.load(Ordering::Relaxed), replicas.bytes());
    fill(&replicas, "replica", MIB);
    check();
    assert_eq!(put(&replicas, "replica-1", 9, 5_000), Admission::Kept, "replaced");
    check();
    let large = heap_for("large", owned.max_entry_bytes());
    assert_eq!(put(&owned, "large", 1, large), Admission::Kept, "a large entry evicts replicas too");
    assert!(replicas.bytes() < MIB / 8 && owned.bytes() + replicas.bytes() <= MIB);
    check();
    assert_eq!(put(&replicas, "last", 1, 100), Admission::Kept);
    drop(replicas.clear());
    assert_eq!((replicas.bytes(), owned.bytes()), (0, 0));
    check();
}

/// Checks that each entry that makes room is reported with its own part, whatever part the new entry is of.
#[test]
fn evicted_entry_is_of_its_own_part() {
    let owned = Store::new(MIB, MIB, 1);
    let replicas = owned.replicas(MIB / 8);
    fill(&owned, "owned", 2 * MIB);
    let parts = |inserted: &Inserted<OfSize>, key: &str| {
        inserted.evicted(key).map(|(key, _, was_replica)| (key.to_owned(), was_replica)).collect::<Vec<_>>()
    };
    let inserted = replicas.insert("replica", entry(1, 100_000, NEVER));
    let left = parts(&inserted, "replica");
    assert!(
        !left.is_empty() && left.iter().all(|(key, was_replica)| key.starts_with("owned") && !was_replica),
        "{left:?}"
    );
    let large = heap_for("replica", owned.max_entry_bytes());
    let left = parts(&owned.insert("replica", entry(2, large, NEVER)), "replica");
    assert!(left.contains(&("replica".to_owned(), true)), "the replica of the same key makes room");
}

/// Checks that large replicas in one shard do not take the shard from its owned entries, and that one alone stays.
#[test]
fn replicas_leave_a_crowded_shard_first() {
    let owned = Store::with_shards(4 * MIB, 1, 1);
    let replicas = owned.replicas(4 * MIB);
    (0..3).for_each(|n| assert_eq!(replica(&replicas, &format!("large-{n}"), MIB), Admission::Kept));
    fill(&owned, "owned", 4 * MIB);
    assert!(replicas.bytes() <= 2 * MIB, "{}", replicas.bytes());
    assert!(owned.bytes() > MIB, "{}", owned.bytes());
    let alone = Store::with_shards(4 * MIB, 1, 1);
    let replicas = alone.replicas(4 * MIB);
    assert_eq!(replica(&replicas, "large", 3 * MIB), Admission::Kept);
    fill(&alone, "owned", 4 * MIB);
    assert_eq!(replicas.len(), 1);
}

/// Checks that a walk shows its steps, so that the part with few entries of a full store keeps no task from running.
#[test]
fn walk_pauses_within_places_of_the_other_part() {
    let owned = Store::with_shards(MIB, 1, 1);
    let replicas = owned.replicas(MIB / 8);
    (0..5_000).for_each(|n| assert_eq!(put(&owned, &format!("{n}"), n, 1), Admission::Kept));
    assert_eq!(replicas.steps().count(), 0, "nothing to look for");
    assert_eq!(put(&replicas, "last", 1, 1), Admission::Kept);
    let steps: Vec<_> = replicas.steps().map(|step| step.is_some()).collect();
    assert!(steps.len() > 4 && steps.iter().filter(|found| **found).count() == 1, "{steps:?}");
}

/// Checks that both parts keep their bounds while threads use both.
#[test]
fn four_threads_keep_the_bounds_of_both_parts() {
    let owned = Store::<OfSize>::with_shards(60_000, 4, 1);
    let replicas = owned.replicas(10_000);
    let work = |thread: u64| {
        let mut state = thread + 1;
        for op in 0..20_000u64 {
            state = xxh3_64_with_seed(&op.to_le_bytes(), state);
            let (key, part) = (format!("{}", state % 200), if state >> 63 == 0 { &owned } else { &replicas });
            match (state >> 32) % 16 {
                0..8 => drop(part.insert(&key, entry(1, (state >> 40) % 3_000, NEVER))),
                8..14 => drop(part.get(&key, 0)),
                14 => drop(part.remove(&key)),
                _ if op % 500 == 0 => drop(owned.clear()),
                _ => drop(part.peek(&key)),
            }
            assert!(replicas.replicas_bytes.load(Ordering::Relaxed) <= 10_000 && owned.bytes_of_parts() <= 60_000);
        }
    };
    thread::scope(|scope| (0..4).for_each(|n| drop(scope.spawn(move || work(n)))));
    assert_eq!(replicas.replicas_bytes.load(Ordering::Relaxed), replicas.bytes());
}
