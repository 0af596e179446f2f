//! Parts of the store: one budget, of which replicas take their share at most, and which owned entries use alone.

use crate::cache::store::tests::*;

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
    assert_eq!((replicas.bytes(), owned.len()), (0, 1));
    check();
}
