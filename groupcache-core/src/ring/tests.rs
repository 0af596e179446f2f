//! Tests of the ring: owners, successors and weights.

mod agreement;
mod equal_points;
mod golden;
mod hashes;
mod shares;

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use proptest::prelude::*;

use crate::ring::*;

/// The random generator SplitMix64, because the sets of names must be the same in every run and with every version of a
/// crate.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn word(&mut self, len: usize) -> String {
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        (0..len).map(|_| char::from(LETTERS[(self.next() % LETTERS.len() as u64) as usize])).collect()
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
    }
}

/// The style of the ids of peers: a stateful set, UUIDs, addresses of one subnet, pods of a deployment.
#[derive(Clone, Copy, Debug)]
enum Style {
    Ordinal,
    Uuid,
    Address,
    Pod,
}

const STYLES: [Style; 4] = [Style::Ordinal, Style::Uuid, Style::Address, Style::Pod];

/// Returns the distinct names of a cluster of `count` peers.
fn names(style: Style, seed: u64, count: usize) -> Vec<String> {
    let mut random = Random(seed);
    let (service, replica_set, subnet) = (random.word(5), random.word(10), random.next() % 0xFF_0000);
    let mut used = BTreeSet::new();
    let name = |i: u64| match style {
        Style::Ordinal => format!("{service}-{i}"),
        Style::Uuid => {
            let (a, b) = (random.next(), random.next());
            let (low, mid, high) = (a >> 32, a & 0xFFFF, (a >> 16) & 0xFFF);
            format!("{low:08x}-{mid:04x}-4{high:03x}-{:04x}-{:012x}", (b >> 48) & 0x3FFF | 0x8000, b & 0xFFFF_FFFF_FFFF)
        }
        Style::Address => {
            let ip = subnet + i;
            format!("10.{}.{}.{}:7946", (ip >> 16) & 255, (ip >> 8) & 255, ip & 255)
        }
        Style::Pod => format!("{service}-{replica_set}-{}", random.word(5)),
    };
    (0..).map(name).filter(|name| used.insert(name.clone())).take(count).collect()
}

fn ring_of<'a>(ids: impl IntoIterator<Item = &'a String>) -> Ring {
    Ring::new(ids.into_iter().map(|id| (id.as_str(), 1)))
}

fn owner_of(ring: &Ring, key: u64) -> Option<&str> {
    ring.owner(key).map(|slot| ring.member(slot).unwrap())
}

fn successors_of(ring: &Ring, key: u64) -> Vec<&str> {
    ring.successors(key).map(|slot| ring.member(slot).unwrap()).collect()
}

/// Returns the share of the circle of each slot, in positions.
fn arcs(ring: &Ring) -> Vec<u64> {
    let mut arcs = vec![0; ring.len()];
    let mut previous = ring.points.sorted.last().map_or(0, |&point| point >> 32);
    for &point in &ring.points.sorted {
        let here = point >> 32;
        arcs[slot_of(point) as usize] += here.wrapping_sub(previous) & u64::from(u32::MAX);
        previous = here;
    }
    assert_eq!(arcs.iter().sum::<u64>(), 1 << 32, "the arcs add up to the circle");
    arcs
}

/// Returns the hashes at which the owner may change in either ring. The owner does not change between them, so that a
/// test of all of them covers every key.
fn borders(a: &Ring, b: &Ring) -> Vec<u64> {
    let around = |&point: &u64| [position(point), position(point).wrapping_add(1 << 32)];
    a.points.sorted.iter().chain(&b.points.sorted).flat_map(around).collect()
}

/// Returns the owner and the successors of a key by the definition of the ring, without an index and without slots.
fn model(members: &[(String, u8)], key: u64) -> Vec<String> {
    let mut points = BTreeSet::new();
    for (id, weight) in members {
        for n in 0..u64::from(*weight) * u64::from(POINTS_PER_WEIGHT) / 2 {
            let hash = xxh3_64_with_seed(&n.to_le_bytes(), xxh3_64(id.as_bytes()));
            points.insert((hash >> 32, id));
            points.insert((hash & 0xFFFF_FFFF, id));
        }
    }
    let mut order: Vec<String> = Vec::new();
    let ahead = points.iter().filter(|(at, _)| *at >= key >> 32);
    for (_, id) in ahead.chain(&points) {
        if !order.contains(id) {
            order.push((*id).clone());
        }
    }
    order
}

/// Checks that a join or a leave moves keys of the joining or leaving peer only.
#[test]
fn join_or_leave_moves_no_key_between_staying_peers() {
    for style in STYLES {
        let ids = names(style, 1, 21);
        let (large, small) = (ring_of(&ids), ring_of(&ids[..20]));
        let mut moved = 0_u64;
        let keys = borders(&large, &small);
        for &key in &keys {
            let (with, without) = (owner_of(&large, key).unwrap(), owner_of(&small, key).unwrap());
            assert_ne!(without, ids[20]);
            if with != without {
                assert_eq!(with, ids[20], "only the joining or leaving peer gains or loses keys");
                moved += 1;
            }
        }
        assert!(moved > 0, "{style:?}: the twenty-first peer owns keys");
    }
}

/// Checks that the keys of two leaving peers move to the first successor that stays.
#[test]
fn keys_of_two_leaving_peers_move_to_next_successor() {
    let ids = names(Style::Pod, 2, 12);
    let (before, after) = (ring_of(&ids), ring_of(&ids[2..]));
    for key in borders(&before, &after) {
        let successor = successors_of(&before, key).into_iter().find(|id| *id != ids[0] && *id != ids[1]);
        assert_eq!(owner_of(&after, key), successor);
    }
}

/// Checks that a larger weight moves keys to its peer and no key between other peers.
#[test]
fn larger_weight_moves_no_key_between_other_peers() {
    let ids = names(Style::Address, 3, 10);
    let with_first = |weight| Ring::new(ids.iter().enumerate().map(|(i, id)| (&**id, if i == 0 { weight } else { 1 })));
    let (light, heavy) = (with_first(1), with_first(3));
    for key in borders(&light, &heavy) {
        let (a, b) = (owner_of(&light, key).unwrap(), owner_of(&heavy, key).unwrap());
        assert!(a == b || b == ids[0], "a key moved from {a} to {b}");
    }
}

#[test]
fn share_of_a_peer_is_proportional_to_its_weight() {
    for (weight, range) in [(1, 90..=110), (2, 190..=210), (16, 1_540..=1_660)] {
        let ids = names(Style::Ordinal, 4, 40);
        let ring = Ring::new(ids.iter().enumerate().map(|(i, id)| (&**id, if i < 4 { weight } else { 1 })));
        let is_heavy = |id: &str| ids[..4].iter().any(|heavy| heavy == id);
        let (mut heavy, mut light) = (0, 0);
        for (id, arc) in ring.members().zip(arcs(&ring)) {
            *(if is_heavy(id) { &mut heavy } else { &mut light }) += arc;
        }
        let percent = heavy * 36 * 100 / 4 / light;
        assert!(range.contains(&percent), "weight {weight} owns {percent} % of the keys of weight 1");
    }
}

#[test]
fn peer_of_weight_0_owns_nothing() {
    let ring = Ring::new([("b", 1), ("idle", 0), ("a", 1)]);
    assert_eq!(ring.members().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((ring.len(), ring.member(1), ring.member(2)), (2, Some("b"), None));
    assert_eq!(ring.fingerprint(), Ring::new([("a", 1), ("b", 1)]).fingerprint());
    assert!(Ring::new([("idle", 0)]).is_empty());
    assert_eq!(Ring::new([("a", 0), ("a", 2), ("a", 1)]).fingerprint(), Ring::new([("a", 2)]).fingerprint());
}

#[test]
fn empty_ring_has_no_owner() {
    let ring = Ring::new([]);
    assert!(ring.is_empty());
    for key in [0, 1, u64::MAX] {
        assert_eq!(ring.owner(key), None);
        assert_eq!(ring.successors(key).count(), 0);
    }
    assert_eq!((ring.len(), ring.members().len(), ring.member(0)), (0, 0, None));
}

#[test]
fn single_member_owns_all_keys() {
    let ring = Ring::new([("only", 1)]);
    assert!(!ring.is_empty());
    for key in borders(&ring, &ring).into_iter().chain([0, u64::MAX]) {
        assert_eq!(ring.owner(key), Some(0));
        assert_eq!(ring.successors(key).collect::<Vec<_>>(), [0]);
    }
}

#[test]
fn successors_are_all_members_once_with_owner_first() {
    for count in [2, 3, 63, 64, 65, 130] {
        let ring = ring_of(&names(Style::Uuid, 5, count));
        let mut random = Random(count as u64);
        for _ in 0..20 {
            let key = random.next();
            let mut order: Vec<u32> = ring.successors(key).collect();
            assert_eq!(order.first().copied(), ring.owner(key));
            order.sort_unstable();
            assert_eq!(order, (0..count as u32).collect::<Vec<_>>());
        }
    }
}

#[test]
fn debug_output_of_a_ring_is_short() {
    let text = format!("{:?}", ring_of(&names(Style::Pod, 6, 100)));
    assert!(text.starts_with("Ring { members: 100, points: 76800, fingerprint: ") && text.len() < 80, "{text}");
}
