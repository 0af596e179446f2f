//! Measurement of lookups and of building a ring: `make measure-ring`.

use tokio::time::Instant;

use crate::ring::{KeyHasher, Ring};

const KEYS: usize = 1 << 16;
const LOOKUPS: usize = 5_000_000;

/// Measures the lookup of an owner and the building of a ring for 3 to 1,000 peers.
#[test]
#[ignore = "a measurement of a minute, for release builds"]
fn owner_lookup_and_ring_build_are_measured() {
    let hasher = KeyHasher::new("users");
    let keys: Vec<_> = (0..KEYS).map(|n| format!("key-{n:016}")).collect();
    for peers in [3, 10, 100, 1000] {
        let names: Vec<_> = (0..peers).map(|n| format!("users-{n}")).collect();
        let builds = 2000 / peers + 1;
        let started = Instant::now();
        let mut ring = Ring::new([]);
        for _ in 0..builds {
            ring = Ring::new(names.iter().map(|name| (name.as_str(), 1)));
        }
        let each_build = started.elapsed() / builds;
        let (started, mut sum) = (Instant::now(), 0_u64);
        for key in keys.iter().cycle().take(LOOKUPS) {
            sum += u64::from(ring.owner(hasher.hash(key.as_bytes())).unwrap_or(0));
        }
        let each = started.elapsed().as_nanos() as f64 / LOOKUPS as f64;
        std::hint::black_box(sum);
        println!("{peers} peers: owner of a key of 20 bytes in {each:.0} ns, hash included; built in {each_build:.0?}");
    }
}
