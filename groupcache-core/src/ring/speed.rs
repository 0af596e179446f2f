//! How long it takes to find the owner of a key, and to build a ring. A measurement: `make measure-ring`.

use tokio::time::Instant;

use crate::ring::{KeyHasher, Ring};

const KEYS: usize = 1 << 16;
const LOOK_UPS: usize = 5_000_000;

#[test]
#[ignore = "a measurement of a minute, in release builds"]
fn of_an_owner_and_of_a_ring() {
    let place = KeyHasher::new("users");
    let keys: Vec<_> = (0..KEYS).map(|n| format!("key-{n:016}")).collect();
    for peers in [3, 10, 100, 1000] {
        let names: Vec<_> = (0..peers).map(|n| format!("users-{n}")).collect();
        let builds = 2000 / peers + 1;
        let begun = Instant::now();
        let mut ring = Ring::new([]);
        for _ in 0..builds {
            ring = Ring::new(names.iter().map(|name| (name.as_str(), 1)));
        }
        let each_build = begun.elapsed() / builds;
        let (begun, mut sum) = (Instant::now(), 0_u64);
        for key in keys.iter().cycle().take(LOOK_UPS) {
            sum += u64::from(ring.owner(place.hash(key.as_bytes())).unwrap_or(0));
        }
        let each = begun.elapsed().as_nanos() as f64 / LOOK_UPS as f64;
        std::hint::black_box(sum);
        println!("{peers} peers: owner of a key of 20 bytes in {each:.0} ns, hash included; built in {each_build:.0?}");
    }
}
