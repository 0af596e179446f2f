use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use proptest::prelude::*;

use super::*;

/// SplitMix64: the sets of names below must be the same in every run and with every version of a crate.
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

/// How peers are called: a stateful set, UUIDs, addresses of one subnet, pods of a deployment.
#[derive(Clone, Copy, Debug)]
enum Style {
    Ordinal,
    Uuid,
    Address,
    Pod,
}

const STYLES: [Style; 4] = [Style::Ordinal, Style::Uuid, Style::Address, Style::Pod];

/// The names of a cluster of `count` peers, all different.
fn names(style: Style, seed: u64, count: usize) -> Vec<String> {
    let mut random = Random(seed);
    let (service, replica_set, subnet) = (random.word(5), random.word(10), random.next() % 0xFF_0000);
    let mut seen = BTreeSet::new();
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
    (0..).map(name).filter(|name| seen.insert(name.clone())).take(count).collect()
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

/// The share of the circle of each slot, in positions.
fn arcs(ring: &Ring) -> Vec<u64> {
    let mut arcs = vec![0; ring.len()];
    let mut previous = ring.points.sorted.last().map_or(0, |&point| point >> 32);
    for &point in &ring.points.sorted {
        let here = point >> 32;
        arcs[slot_of(point) as usize] += here.wrapping_sub(previous) & u64::from(u32::MAX);
        previous = here;
    }
    assert_eq!(arcs.iter().sum::<u64>(), 1 << 32, "the arcs are the circle");
    arcs
}

/// Hashes at which either ring may pass from one owner to the next. Between them nothing changes, so what
/// holds for all of them holds for every key.
fn borders(a: &Ring, b: &Ring) -> Vec<u64> {
    let around = |&point: &u64| [position(point), position(point).wrapping_add(1 << 32)];
    a.points.sorted.iter().chain(&b.points.sorted).flat_map(around).collect()
}

/// The definition of the ring, without an index and without slots.
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

mod agreement {
    use super::*;

    fn members() -> impl Strategy<Value = Vec<(String, u8)>> {
        prop::collection::btree_map("[a-z0-9.:-]{1,9}", 0_u8..4, 1..8).prop_map(|map| map.into_iter().collect())
    }

    fn build(members: &[(String, u8)]) -> Ring {
        Ring::new(members.iter().map(|(id, weight)| (id.as_str(), *weight)))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(16) })]

        #[test]
        fn the_order_in_which_members_came_does_not_matter(mut members in members(), seed: u64) {
            let ring = build(&members);
            Random(seed).shuffle(&mut members);
            let shuffled = build(&members);
            prop_assert_eq!(&ring.members, &shuffled.members);
            prop_assert_eq!(&ring.points.sorted, &shuffled.points.sorted);
            prop_assert_eq!(ring.fingerprint(), shuffled.fingerprint());
        }

        #[test]
        fn an_id_that_comes_twice_counts_once_whatever_the_order(mut members in members(), extra in 0_u8..4, seed: u64) {
            let first = members[0].0.clone();
            members.push((first.clone(), extra));
            let ring = build(&members);
            Random(seed).shuffle(&mut members);
            prop_assert_eq!(ring.fingerprint(), build(&members).fingerprint());
            prop_assert_eq!(&ring.points.sorted, &build(&members).points.sorted);
            prop_assert!(ring.members().filter(|id| *id == first).count() <= 1);
        }

        #[test]
        fn look_ups_follow_the_definition(members in members(), keys in prop::collection::vec(any::<u64>(), 8), at: usize) {
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

        #[test]
        fn a_leave_moves_the_leavers_keys_and_only_to_their_successors(members in members(), leaver: prop::sample::Index) {
            let before = build(&members);
            let mut rest = members.clone();
            let (gone, _) = rest.remove(leaver.index(members.len()));
            let after = build(&rest);
            for key in borders(&before, &after) {
                let order = successors_of(&before, key);
                let heir = order.iter().copied().find(|id| *id != gone);
                prop_assert_eq!(owner_of(&after, key), heir);
            }
        }
    }
}

#[test]
fn a_join_or_a_leave_moves_no_key_between_two_peers_that_stay() {
    for style in STYLES {
        let ids = names(style, 1, 21);
        let (large, small) = (ring_of(&ids), ring_of(&ids[..20]));
        let mut moved = 0_u64;
        let keys = borders(&large, &small);
        for &key in &keys {
            let (with, without) = (owner_of(&large, key).unwrap(), owner_of(&small, key).unwrap());
            assert_ne!(without, ids[20]);
            if with != without {
                assert_eq!(with, ids[20], "only the peer that came or went gains or loses keys");
                moved += 1;
            }
        }
        assert!(moved > 0, "{style:?}: the twenty-first peer owns something");
    }
}

#[test]
fn when_two_leave_at_once_their_keys_go_to_the_next_successor() {
    let ids = names(Style::Pod, 2, 12);
    let (before, after) = (ring_of(&ids), ring_of(&ids[2..]));
    for key in borders(&before, &after) {
        let heir = successors_of(&before, key).into_iter().find(|id| *id != ids[0] && *id != ids[1]);
        assert_eq!(owner_of(&after, key), heir);
    }
}

#[test]
fn more_weight_takes_keys_from_others_and_moves_none_between_them() {
    let ids = names(Style::Address, 3, 10);
    let with_first = |weight| Ring::new(ids.iter().enumerate().map(|(i, id)| (&**id, if i == 0 { weight } else { 1 })));
    let (light, heavy) = (with_first(1), with_first(3));
    for key in borders(&light, &heavy) {
        let (a, b) = (owner_of(&light, key).unwrap(), owner_of(&heavy, key).unwrap());
        assert!(a == b || b == ids[0], "a key went from {a} to {b}");
    }
}

#[test]
fn a_peer_carries_keys_in_proportion_to_its_weight() {
    for (weight, range) in [(1, 90..=110), (2, 190..=210), (16, 1_540..=1_660)] {
        let ids = names(Style::Ordinal, 4, 40);
        let ring = Ring::new(ids.iter().enumerate().map(|(i, id)| (&**id, if i < 4 { weight } else { 1 })));
        let is_heavy = |id: &str| ids[..4].iter().any(|heavy| heavy == id);
        let (mut heavy, mut light) = (0, 0);
        for (id, arc) in ring.members().zip(arcs(&ring)) {
            *(if is_heavy(id) { &mut heavy } else { &mut light }) += arc;
        }
        let percent = heavy * 36 * 100 / 4 / light;
        assert!(range.contains(&percent), "weight {weight} carries {percent} % of what weight 1 carries");
    }
}

#[test]
fn a_peer_of_weight_0_owns_nothing() {
    let ring = Ring::new([("b", 1), ("idle", 0), ("a", 1)]);
    assert_eq!(ring.members().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((ring.len(), ring.member(1), ring.member(2)), (2, Some("b"), None));
    assert_eq!(ring.fingerprint(), Ring::new([("a", 1), ("b", 1)]).fingerprint());
    assert!(Ring::new([("idle", 0)]).is_empty());
    assert_eq!(Ring::new([("a", 0), ("a", 2), ("a", 1)]).fingerprint(), Ring::new([("a", 2)]).fingerprint());
}

#[test]
fn an_empty_ring_has_no_owner() {
    let ring = Ring::new([]);
    assert!(ring.is_empty());
    for key in [0, 1, u64::MAX] {
        assert_eq!(ring.owner(key), None);
        assert_eq!(ring.successors(key).count(), 0);
    }
    assert_eq!((ring.len(), ring.members().len(), ring.member(0)), (0, 0, None));
}

#[test]
fn a_single_member_owns_everything() {
    let ring = Ring::new([("only", 1)]);
    assert!(!ring.is_empty());
    for key in borders(&ring, &ring).into_iter().chain([0, u64::MAX]) {
        assert_eq!(ring.owner(key), Some(0));
        assert_eq!(ring.successors(key).collect::<Vec<_>>(), [0]);
    }
}

#[test]
fn successors_are_all_members_once_and_the_owner_first() {
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
fn debug_is_short() {
    let text = format!("{:?}", ring_of(&names(Style::Pod, 6, 100)));
    assert!(text.starts_with("Ring { members: 100, points: 76800, fingerprint: ") && text.len() < 80, "{text}");
}

mod hashes {
    use super::*;

    #[test]
    fn the_fingerprint_changes_with_an_id_or_a_weight() {
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

    #[test]
    fn the_fingerprint_tells_where_one_id_ends_and_the_next_begins() {
        let of = |members: &[(&str, u8)]| Ring::new(members.iter().copied()).fingerprint();
        assert_ne!(of(&[("a", 1), ("bc", 1)]), of(&[("ab", 1), ("c", 1)]));
        assert_ne!(of(&[("a", 1), ("b", 1)]), of(&[("a\u{1}b", 1)]), "an id that looks like two members");
        assert_ne!(of(&[("abc", 1)]), of(&[("a", 1), ("b", 1), ("c", 1)]));
    }

    #[test]
    fn the_group_takes_part_in_the_hash_of_a_key() {
        let pairs = [
            ("a", "bc"),
            ("ab", "c"),
            ("abc", ""),
            ("", "abc"),
            ("b", "bc"),
            ("a", "bd"),
            ("a\0", "bc"),
            ("a", "\0bc"),
        ];
        let hashes: BTreeSet<u64> = pairs.iter().map(|(group, key)| key_hash(group, key.as_bytes())).collect();
        assert_eq!(hashes.len(), pairs.len());
    }

    #[test]
    fn keys_of_every_length_depend_on_their_group() {
        for len in [0, 1, 3, 4, 8, 9, 16, 17, 128, 129, 240, 241, 1024] {
            let key = vec![b'k'; len];
            assert_ne!(key_hash("users", &key), key_hash("orders", &key), "{len} bytes");
            assert_eq!(key_hash("users", &key), KeyHasher::new("users").hash(&key));
        }
    }

    #[test]
    fn consecutive_keys_are_spread_over_the_peers() {
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
}

mod equal_points {
    use super::*;

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
}

mod shares {
    use super::*;

    /// Mean and maximum over the sets of what the busiest peer carries, in 1/10,000 of the average peer.
    fn busiest(peers: usize, sets: u64, styles: impl Fn(u64) -> Style) -> (u64, u64) {
        let of = |set| {
            let ring = ring_of(&names(styles(set), set, peers));
            assert_eq!(ring.len(), peers);
            let most = arcs(&ring).into_iter().max().unwrap();
            ((u128::from(most) * peers as u128 * 10_000) >> 32) as u64
        };
        let ratios: Vec<u64> = (0..sets).map(of).collect();
        (ratios.iter().sum::<u64>() / sets, ratios.into_iter().max().unwrap())
    }

    fn check(peers: usize, sets: u64, mean_at_most: u64, styles: impl Fn(u64) -> Style) {
        let (mean, worst) = busiest(peers, sets, styles);
        println!(
            "{peers} peers, {sets} sets: busiest / average: mean 1.{:04}, worst 1.{:04}",
            mean - 10_000,
            worst - 10_000
        );
        assert!(mean <= mean_at_most, "{peers} peers: {mean} on average over {sets} sets");
        assert!(worst <= 12_000, "{peers} peers: {worst} in the worst of {sets} sets");
    }

    fn mixed(set: u64) -> Style {
        STYLES[(set % 4) as usize]
    }

    #[test]
    fn of_20_peers_in_200_sets() {
        check(20, 200, 10_900, mixed);
    }

    #[test]
    fn of_100_peers_in_40_sets() {
        check(100, 40, 11_200, mixed);
    }

    #[test]
    fn of_1000_peers_in_4_sets() {
        check(1_000, 4, 11_600, mixed);
    }

    #[test]
    #[ignore = "200 sets of each style at each size: half a minute in a release build"]
    fn of_20_and_100_and_1000_peers_in_200_sets_of_each_style() {
        for style in STYLES {
            println!("{style:?}");
            for (peers, mean_at_most) in [(20, 10_900), (100, 11_200), (1_000, 11_600)] {
                check(peers, 200, mean_at_most, |_| style);
            }
        }
    }
}

mod golden {
    use super::*;

    const HEADER: &str = "\
# Where the ring places keys: 1,000 keys in six sets of members. Fields are separated by tabs.
#
# set:  name, fingerprint, then the members that own keys as id=weight; their slots are 0, 1, 2, ...
# key:  group, key (UTF-8), hash, then for each set in the order above the slots of the owner and of the
#       next two successors, as far as there are so many members.
#
# Written by the test; see the end of this crate's src/ring/tests.rs.
";

    fn sets() -> Vec<(&'static str, Vec<(String, u8)>)> {
        let equal = |style, seed, count| names(style, seed, count).into_iter().map(|id| (id, 1)).collect();
        let weights = [1, 2, 0, 5, 16];
        let weighted = (1..).zip(weights).map(|(i, weight)| (format!("10.0.0.{i}:7946"), weight)).collect();
        vec![
            ("one", vec![("users-0".to_owned(), 1)]),
            ("three", (0..3).map(|i| (format!("users-{i}"), 1)).collect()),
            ("five", equal(Style::Uuid, 5, 5)),
            ("twenty", equal(Style::Pod, 20, 20)),
            ("hundred", equal(Style::Address, 100, 100)),
            ("weighted", weighted),
        ]
    }

    /// Keys of all lengths that the hash treats differently: to 3, 8, 16, 128, 240 bytes and beyond.
    fn key(i: usize) -> String {
        match i % 8 {
            0 | 1 => i.to_string(),
            2 => format!("user:{i:08}"),
            3 => format!("tenant/{}/order/{i}", i % 7),
            4 => format!("ключ-{i}-鍵"),
            5 => format!("{i:0>200}"),
            6 if i < 100 => format!("{i:x>width$}", width = 237 + i * 8),
            _ => format!("{:016x}", Random(i as u64).next()),
        }
    }

    fn vectors() -> String {
        let mut text = format!("{HEADER}algorithm\t{ALGORITHM}\npoints per weight\t{POINTS_PER_WEIGHT}\n");
        let mut rings = Vec::new();
        for (name, members) in sets() {
            let ring = Ring::new(members.iter().map(|(id, weight)| (id.as_str(), *weight)));
            write!(text, "set\t{name}\t{:016x}", ring.fingerprint()).unwrap();
            for (id, weight) in &ring.members {
                write!(text, "\t{id}={weight}").unwrap();
            }
            text.push('\n');
            rings.push(ring);
        }
        for i in 0..1_000 {
            let (group, key) = (["users", "orders"][i % 2], key(i));
            let hash = key_hash(group, key.as_bytes());
            write!(text, "key\t{group}\t{key}\t{hash:016x}").unwrap();
            for ring in &rings {
                let slots: Vec<String> = ring.successors(hash).take(3).map(|slot| slot.to_string()).collect();
                write!(text, "\t{}", slots.join(",")).unwrap();
            }
            text.push('\n');
        }
        text
    }

    #[test]
    fn keys_are_where_they_have_always_been() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/ring-v{ALGORITHM}.txt"));
        let vectors = vectors();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &vectors).unwrap();
        }
        let advice = "a node with this placement disagrees with those already running: raise ring::ALGORITHM, then \
                      write the new file with `UPDATE_GOLDEN=1 cargo test -p groupcache-core --lib ring::`";
        let golden = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}; {advice}", path.display()));
        let differing: Vec<_> = golden.lines().zip(vectors.lines()).filter(|(old, new)| old != new).collect();
        if let Some((old, new)) = differing.first() {
            panic!("{} lines differ, first\n  old {old}\n  new {new}\n{advice}", differing.len());
        }
        assert_eq!(golden.lines().count(), vectors.lines().count(), "{advice}");
        assert_eq!(golden.lines().filter(|line| line.starts_with("key\t")).count(), 1_000);
    }
}
