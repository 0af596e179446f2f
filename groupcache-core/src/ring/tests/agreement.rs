//! Tests that nodes with equal members have equal rings, after any order and history of joins and leaves.

use crate::ring::tests::*;

fn members() -> impl Strategy<Value = Vec<(String, u8)>> {
    prop::collection::btree_map("[a-z0-9.:-]{1,9}", 0_u8..4, 1..8).prop_map(|map| map.into_iter().collect())
}

fn build(members: &[(String, u8)]) -> Ring {
    Ring::new(members.iter().map(|(id, weight)| (id.as_str(), *weight)))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(16) })]

    #[test]
    fn ring_is_independent_of_member_order(mut members in members(), seed: u64) {
        let ring = build(&members);
        Random(seed).shuffle(&mut members);
        let shuffled = build(&members);
        prop_assert_eq!(&ring.members, &shuffled.members);
        prop_assert_eq!(&ring.points.sorted, &shuffled.points.sorted);
        prop_assert_eq!(ring.fingerprint(), shuffled.fingerprint());
    }

    /// Checks that a duplicate id is one member, and that the order of its two weights does not matter.
    #[test]
    fn duplicate_id_counts_once_in_any_order(mut members in members(), extra in 0_u8..4, seed: u64) {
        let first = members[0].0.clone();
        members.push((first.clone(), extra));
        let ring = build(&members);
        Random(seed).shuffle(&mut members);
        prop_assert_eq!(ring.fingerprint(), build(&members).fingerprint());
        prop_assert_eq!(&ring.points.sorted, &build(&members).points.sorted);
        prop_assert!(ring.members().filter(|id| *id == first).count() <= 1);
    }

    /// Checks owners and successors against the model, at random keys, at the ends of the circle and around a point.
    #[test]
    fn lookups_follow_the_definition(members in members(), keys in prop::collection::vec(any::<u64>(), 8), at: usize) {
        let ring = build(&members);
        let mut keys = keys;
        keys.extend([0, 1 << 32, u64::MAX, u64::MAX << 32]);
        if let Some(&point) = ring.points.sorted.get(at % ring.points.sorted.len().max(1)) {
            keys.extend([point, position(point), point.wrapping_add(1 << 32), point.wrapping_sub(1 << 32)]);
        }
        for key in keys {
            let expected = model(&members, key);
            prop_assert_eq!(successors_of(&ring, key), expected.iter().map(String::as_str).collect::<Vec<_>>());
            prop_assert_eq!(owner_of(&ring, key), expected.first().map(String::as_str));
        }
    }

    /// Checks that a leave moves only the keys of the leaving member, each to its next successor.
    #[test]
    fn leave_moves_keys_only_to_their_successors(members in members(), leaver: prop::sample::Index) {
        let before = build(&members);
        let mut rest = members.clone();
        let (gone, _) = rest.remove(leaver.index(members.len()));
        let after = build(&rest);
        for key in borders(&before, &after) {
            let order = successors_of(&before, key);
            let successor = order.iter().copied().find(|id| *id != gone);
            prop_assert_eq!(owner_of(&after, key), successor);
        }
    }
}
