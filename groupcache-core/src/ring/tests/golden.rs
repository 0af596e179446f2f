//! Test of the golden vectors, which fix the placement of keys: another version of this crate must not move keys.

use crate::ring::tests::*;

const HEADER: &str = "\
# Where the ring places keys: 1,000 keys in six sets of members. Fields are separated by tabs.
#
# set:  name, fingerprint, then the members that own keys as id=weight; their slots are 0, 1, 2, ...
# key:  group, key (UTF-8), hash, then for each set in the order above the slots of the owner and of the
#       next two successors; fewer where there are fewer members.
#
# Written by the test; see this crate's src/ring/tests/golden.rs.
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

/// Returns a key. The keys have all lengths that the hash treats differently: up to 3, 8, 16, 128 and 240 bytes, and
/// more.
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

/// Checks that every key has the owner and the successors of the golden file. With `UPDATE_GOLDEN` set, writes the file
/// first.
#[test]
fn placement_of_keys_matches_golden_file() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/ring-v{ALGORITHM}.txt"));
    let vectors = vectors();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &vectors).unwrap();
    }
    let advice = "a node with this placement disagrees with running nodes: raise ring::ALGORITHM, then \
                  write the new file with `UPDATE_GOLDEN=1 cargo test -p groupcache-core --lib ring::`";
    let golden = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}; {advice}", path.display()));
    let differing: Vec<_> = golden.lines().zip(vectors.lines()).filter(|(old, new)| old != new).collect();
    if let Some((old, new)) = differing.first() {
        panic!("{} lines differ, first\n  old {old}\n  new {new}\n{advice}", differing.len());
    }
    assert_eq!(golden.lines().count(), vectors.lines().count(), "{advice}");
    assert_eq!(golden.lines().filter(|line| line.starts_with("key\t")).count(), 1_000);
}
