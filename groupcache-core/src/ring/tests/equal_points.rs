//! Points that fall together.

use crate::ring::tests::*;

/// Points at positions that were chosen instead of hashed; the slots are those of "a", "b", "c".
fn ring(points: &[(u32, u32)]) -> Ring {
    let points = points.iter().map(|&(at, slot)| point(u64::from(at) << 32, slot)).collect();
    let members = ["a", "b", "c"].map(|id| (id.into(), 1)).to_vec();
    Ring { members, points: Points::new(points), fingerprint: 0 }
}

fn key(at: u32) -> u64 {
    u64::from(at) << 32 | 0x1234_5678
}

#[test]
fn the_smaller_id_wins_whoever_was_placed_first() {
    for points in [[(7, 2), (7, 1), (7, 0)], [(7, 0), (7, 1), (7, 2)], [(7, 1), (7, 2), (7, 0)]] {
        let ring = ring(&points);
        for at in [0, 6, 7, 8, u32::MAX] {
            assert_eq!(successors_of(&ring, key(at)), ["a", "b", "c"]);
            assert_eq!(owner_of(&ring, key(at)), Some("a"));
        }
    }
}

#[test]
fn a_key_at_a_point_belongs_to_it_and_the_circle_closes() {
    let ring = ring(&[(0, 2), (1 << 31, 1), (u32::MAX, 0), (u32::MAX, 1)]);
    let owners = [0, 1, 1 << 31, (1 << 31) + 1, u32::MAX].map(|at| owner_of(&ring, key(at)).unwrap());
    assert_eq!(owners, ["c", "b", "b", "a", "a"]);
    assert_eq!(successors_of(&ring, key(u32::MAX)), ["a", "b", "c"]);
}

#[test]
fn points_that_crowd_into_one_bucket_are_found() {
    let crowd: Vec<(u32, u32)> = (0..900).map(|at| (at, at % 3)).rev().collect();
    let ring = ring(&crowd);
    for at in 0..900 {
        assert_eq!(ring.owner(key(at)), Some(at % 3));
    }
    assert_eq!(ring.owner(key(900)), Some(0));
}
