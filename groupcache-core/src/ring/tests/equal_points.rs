//! Tests of points at equal positions and in one bucket.

use crate::ring::tests::*;

/// Returns a ring with points at chosen positions instead of hashes. The slots 0, 1 and 2 are "a", "b" and "c".
fn ring(points: &[(u32, u32)]) -> Ring {
    let points = points.iter().map(|&(at, slot)| point(u64::from(at) << 32, slot)).collect();
    let members = ["a", "b", "c"].map(|id| (id.into(), 1)).to_vec();
    Ring { members, points: Points::new(points), fingerprint: 0 }
}

fn key(at: u32) -> u64 {
    u64::from(at) << 32 | 0x1234_5678
}

/// Checks that the smallest id owns a position with three points, in any order of the points.
#[test]
fn smaller_id_wins_at_equal_positions() {
    for points in [[(7, 2), (7, 1), (7, 0)], [(7, 0), (7, 1), (7, 2)], [(7, 1), (7, 2), (7, 0)]] {
        let ring = ring(&points);
        for at in [0, 6, 7, 8, u32::MAX] {
            assert_eq!(successors_of(&ring, key(at)), ["a", "b", "c"]);
            assert_eq!(owner_of(&ring, key(at)), Some("a"));
        }
    }
}

/// Checks that a key at the position of a point belongs to that point, and that the first point follows the last one.
#[test]
fn key_at_a_point_belongs_to_it_and_circle_closes() {
    let ring = ring(&[(0, 2), (1 << 31, 1), (u32::MAX, 0), (u32::MAX, 1)]);
    let owners = [0, 1, 1 << 31, (1 << 31) + 1, u32::MAX].map(|at| owner_of(&ring, key(at)).unwrap());
    assert_eq!(owners, ["c", "b", "b", "a", "a"]);
    assert_eq!(successors_of(&ring, key(u32::MAX)), ["a", "b", "c"]);
}

/// Checks that lookups find the right point among 900 points in one bucket.
#[test]
fn crowded_bucket_finds_every_point() {
    let crowd: Vec<(u32, u32)> = (0..900).map(|at| (at, at % 3)).rev().collect();
    let ring = ring(&crowd);
    for at in 0..900 {
        assert_eq!(ring.owner(key(at)), Some(at % 3));
    }
    assert_eq!(ring.owner(key(900)), Some(0));
}
