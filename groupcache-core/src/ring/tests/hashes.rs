//! Tests of the hashes of keys and of the fingerprints of rings.

use crate::ring::tests::*;

#[test]
fn fingerprint_depends_on_ids_and_weights() {
    let sets: [&[(&str, u8)]; 8] = [
        &[],
        &[("a", 1)],
        &[("a", 2)],
        &[("b", 1)],
        &[("a", 1), ("b", 1)],
        &[("a", 2), ("b", 1)],
        &[("a", 1), ("b", 2)],
        &[("a", 1), ("b", 1), ("c", 1)],
    ];
    let prints: BTreeSet<u64> = sets.iter().map(|set| Ring::new(set.iter().copied()).fingerprint()).collect();
    assert_eq!(prints.len(), sets.len());
}

/// Checks that lists of members with equal concatenated ids have different fingerprints.
#[test]
fn fingerprint_depends_on_the_ends_of_ids() {
    let of = |members: &[(&str, u8)]| Ring::new(members.iter().copied()).fingerprint();
    assert_ne!(of(&[("a", 1), ("bc", 1)]), of(&[("ab", 1), ("c", 1)]));
    assert_ne!(of(&[("a", 1), ("b", 1)]), of(&[("a\u{1}b", 1)]), "an id that looks like two members");
    assert_ne!(of(&[("abc", 1)]), of(&[("a", 1), ("b", 1), ("c", 1)]));
}

/// Checks that pairs of group and key with equal concatenations have different hashes.
#[test]
fn hash_of_a_key_depends_on_its_group() {
    let pairs =
        [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc"), ("b", "bc"), ("a", "bd"), ("a\0", "bc"), ("a", "\0bc")];
    let hashes: BTreeSet<u64> = pairs.iter().map(|(group, key)| key_hash(group, key.as_bytes())).collect();
    assert_eq!(hashes.len(), pairs.len());
}

#[test]
fn hash_of_keys_of_all_lengths_depends_on_group() {
    for len in [0, 1, 3, 4, 8, 9, 16, 17, 128, 129, 240, 241, 1024] {
        let key = vec![b'k'; len];
        assert_ne!(key_hash("users", &key), key_hash("orders", &key), "{len} bytes");
        assert_eq!(key_hash("users", &key), KeyHasher::new("users").hash(&key));
    }
}

#[test]
fn consecutive_keys_are_spread_over_peers() {
    let ring = ring_of(&names(Style::Ordinal, 7, 10));
    let users = KeyHasher::new("users");
    for window in 0..20 {
        let mut counts = [0; 10];
        for id in 0..100 {
            let key = (window * 100 + id).to_string();
            counts[ring.owner(users.hash(key.as_bytes())).unwrap() as usize] += 1;
        }
        assert!(counts.iter().all(|&count| count < 30), "100 consecutive ids: {counts:?}");
    }
}
