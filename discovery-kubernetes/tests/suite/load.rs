//! What the provider asks of an API server that is slow, overloaded or confused: little, and not all nodes at once.
//! In virtual time.

use std::time::Duration;

use discovery_kubernetes::Pods;
use groupcache_core::Health;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::{
    BOTH, Eyes, Simulated, THREE, World, eventually,
    fake::{Mishap, Mode},
    running, settled, settled_with,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_list_may_be_slow_as_long_as_it_moves() {
    let mut world = Simulated::new();
    for n in 0..30 {
        world.start(&format!("p{n:02}"), &format!("10.0.0.{n}")).await;
    }
    world.fake.world().list_pace = Some((500, 2 * SECOND));
    let mut eyes = Eyes::open(world.pods());
    let begun = Instant::now();
    while eyes.bench.sets() == 0 {
        assert!(begun.elapsed() < 2 * MINUTE, "{:?}", eyes.bench.health());
        sleep(SECOND / 4).await;
    }
    assert_eq!((eyes.set().len(), eyes.pods.stats().failures), (30, 0));
    assert!(begun.elapsed() > 20 * SECOND, "{:?}", begun.elapsed());
    for (pace, words) in [((500, 16 * SECOND), "no more of the answer within 15 s"), ((10, 10 * SECOND), "no end within 120 s")] {
        world.fake.world().list_pace = Some(pace);
        eyes.bench.ask();
        sleep(MINUTE * 2).await;
        eyes.until_stale(&["cannot list pods", words]).await;
        world.fake.world().list_pace = None;
        sleep(MINUTE).await;
    }
}
