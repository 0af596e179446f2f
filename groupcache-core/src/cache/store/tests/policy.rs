//! Policy of eviction: what stays in loops, in scans, and when recent keys return.

use crate::cache::store::tests::*;

/// Entries that fit into the stores of these tests.
const ROOM: u64 = 1_000;

fn store() -> Store<OfSize> {
    Store::with_shards(ROOM * (OVERHEAD + 10), 1, 1)
}

/// Requests a key as a read-through cache does. Returns whether the key was there.
fn request(store: &Store<OfSize>, id: u64) -> bool {
    let key = format!("{id:010}");
    let is_there = store.get(&key, 0).is_some();
    if !is_there {
        assert_eq!(put(store, &key, id, 0), Admission::Kept);
    }
    is_there
}

fn hits(store: &Store<OfSize>, ids: impl Iterator<Item = u64>) -> usize {
    ids.filter(|id| request(store, *id)).count()
}

#[test]
fn loop_over_twice_the_room_has_hits() {
    let store = store();
    let hits = hits(&store, (0..20 * ROOM).map(|n| n % (2 * ROOM))) as u64;
    assert!(hits > 8 * ROOM, "{hits} hits in nine further rounds, where the order of last use has none");
}

#[test]
fn keys_in_use_survive_a_scan() {
    let store = store();
    let in_use = ROOM / 2;
    for _ in 0..4 {
        let _ = hits(&store, 0..in_use);
    }
    let _ = hits(&store, 1_000_000..1_000_000 + 10 * ROOM);
    let left = (0..in_use).filter(|id| store.peek(&format!("{id:010}")).is_some()).count() as u64;
    assert!(left * 10 >= in_use * 9, "{left} of {in_use} are left");
}

/// Checks that the newcomers get more room while keys return that were evicted as newcomers, and lose it again.
#[test]
fn share_of_newcomers_follows_the_keys_that_return() {
    let store = store();
    let target = || store.shard(0).read().newcomers_target();
    let least = target();
    let _ = hits(&store, 0..2 * ROOM);
    // Each key is requested again after as many others as are remembered in addition to the newcomers.
    let _ = hits(&store, (2 * ROOM..6 * ROOM).flat_map(|id| [id, id - ROOM / 4]));
    let most = target();
    assert!(most > 2 * least, "{most}, from {least}");
    // In a loop over a few more keys than fit, proven entries leave shortly before they return.
    let _ = hits(&store, (0..100 * ROOM).map(|n| 1_000_000 + n % (ROOM * 6 / 5)));
    assert!(target() < most, "{}, from {most}", target());
}

#[test]
fn remembered_keys_are_bounded_by_the_entries() {
    let store = store();
    let _ = hits(&store, 0..100 * ROOM);
    let bytes_each = store.memory() as u64 / ROOM;
    assert!(bytes_each < 150, "{bytes_each} bytes per entry");
}
