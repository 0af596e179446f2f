//! What happens to pods, and the sets of peers that are published meanwhile. Each is told once, for any API server.

use std::time::Duration;

use groupcache_core::Health;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::{Eyes, Simulated, World, running};

/// The same on the fake, in virtual time.
macro_rules! simulated {
    ($($name:ident),+ $(,)?) => { $(
        mod $name {
            #[tokio::test(start_paused = true)]
            async fn simulated() {
                super::$name(&mut super::Simulated::new()).await;
            }
        }
    )+ };
}

simulated!(
    a_rolling_update_of_three,
    the_life_of_a_pod,
    all_pods_not_ready_at_once,
    a_new_pod_of_the_same_name,
    readiness_that_flaps,
    a_thousand_pods_in_pages,
    an_outage,
    a_permission_that_is_lost_and_given_again,
);

/// All of them, one after the other, each in a world of its own.
pub(crate) async fn all<W: World>(fresh: impl AsyncFn(&str) -> W) {
    a_rolling_update_of_three(&mut fresh("a rolling update of three").await).await;
    the_life_of_a_pod(&mut fresh("the life of a pod").await).await;
    all_pods_not_ready_at_once(&mut fresh("all pods not ready at once").await).await;
    a_new_pod_of_the_same_name(&mut fresh("a new pod of the same name").await).await;
    readiness_that_flaps(&mut fresh("readiness that flaps").await).await;
    a_thousand_pods_in_pages(&mut fresh("a thousand pods in pages").await).await;
    an_outage(&mut fresh("an outage").await).await;
    a_permission_that_is_lost_and_given_again(&mut fresh("a permission that is lost and given again").await).await;
}

async fn a_rolling_update_of_three(world: &mut impl World) {
    for n in 0..3 {
        world.start(&format!("old-{n}"), &format!("10.0.0.{n}")).await;
    }
    let mut eyes = Eyes::open(world.pods());
    let mut expected: Vec<String> = (0..3).map(|n| format!("old-{n}@10.0.0.{n}")).collect();
    let sees = async |eyes: &mut Eyes, expected: &[String]| {
        let mut sorted: Vec<_> = expected.iter().map(String::as_str).collect();
        sorted.sort_unstable();
        eyes.until(&sorted).await;
    };
    sees(&mut eyes, &expected).await;
    for n in 0..3 {
        let (old, new, sets) = (format!("old-{n}"), format!("new-{n}"), eyes.bench.sets());
        let before = eyes.pods.stats().events;
        world.create(&new).await;
        eyes.reads(before, 1).await;
        assert_eq!((eyes.bench.sets(), eyes.pods.stats().waiting), (sets, 1), "no address yet");
        world.status(&new, running(&[&format!("10.0.1.{n}")], false)).await;
        expected.push(format!("{new}@10.0.1.{n}"));
        sees(&mut eyes, &expected).await;
        assert_eq!(eyes.pods.stats().waiting, 0);
        world.status(&new, running(&[&format!("10.0.1.{n}")], true)).await;
        world.terminate(&old).await;
        expected.retain(|peer| !peer.starts_with(&old));
        let draining = [expected.clone(), vec![format!("{old}!@10.0.0.{n}")]].concat();
        sees(&mut eyes, &draining).await;
        assert_eq!(eyes.left(), [""; 0], "it is there until it is gone");
        world.delete(&old).await;
        sees(&mut eyes, &expected).await;
        assert_eq!(eyes.left(), [old]);
    }
    assert_eq!(expected, ["new-0@10.0.1.0", "new-1@10.0.1.1", "new-2@10.0.1.2"]);
    assert_eq!(
        eyes.pods.stats().published,
        1 + 3 * 3,
        "a set for each that came, drained and went: {:?}",
        eyes.pods.stats()
    );
}

async fn the_life_of_a_pod(world: &mut impl World) {
    world.start("other", "10.0.0.1").await;
    let mut eyes = Eyes::open(world.pods());
    eyes.until(&["other@10.0.0.1"]).await;
    world.create("p").await;
    world.status("p", running(&["10.0.0.2"], false)).await;
    eyes.until(&["other@10.0.0.1", "p@10.0.0.2"]).await;
    let (sets, before) = (eyes.bench.sets(), eyes.pods.stats().events);
    world.status("p", running(&["10.0.0.2"], true)).await;
    eyes.reads(before, 1).await;
    assert_eq!(eyes.bench.sets(), sets, "readiness is no news");
    world.terminate("p").await;
    eyes.until(&["other@10.0.0.1", "p!@10.0.0.2"]).await;
    world.delete("p").await;
    eyes.until(&["other@10.0.0.1"]).await;
    // The end of another kind: an evicted pod stays in the API for days.
    world.start("q", "10.0.0.3").await;
    eyes.until(&["other@10.0.0.1", "q@10.0.0.3"]).await;
    let evicted =
        json!({ "phase": "Failed", "reason": "Evicted", "podIP": "10.0.0.3", "podIPs": [{ "ip": "10.0.0.3" }] });
    world.status("q", evicted).await;
    eyes.until(&["other@10.0.0.1"]).await;
    assert_eq!(eyes.left(), ["p", "q"], "each is told once, when it is gone");
    eyes.bench.stop().await;
}

async fn all_pods_not_ready_at_once(world: &mut impl World) {
    for n in 1..=3 {
        world.start(&format!("p{n}"), &format!("10.0.0.{n}")).await;
    }
    let mut eyes = Eyes::open(world.pods());
    let all = ["p1@10.0.0.1", "p2@10.0.0.2", "p3@10.0.0.3"];
    eyes.until(&all).await;
    eyes.until_well().await;
    let (sets, before) = (eyes.bench.sets(), eyes.pods.stats().events);
    for n in 1..=3 {
        world.status(&format!("p{n}"), running(&[&format!("10.0.0.{n}")], false)).await;
    }
    eyes.reads(before, 3).await;
    assert_eq!((eyes.set().as_slice(), eyes.bench.sets()), (all.map(str::to_owned).as_slice(), sets));
}

async fn a_new_pod_of_the_same_name(world: &mut impl World) {
    world.start("users-0", "10.0.0.1").await;
    world.start("users-1", "10.0.0.2").await;
    let mut eyes = Eyes::open(world.pods());
    eyes.until(&["users-0@10.0.0.1", "users-1@10.0.0.2"]).await;
    world.terminate("users-0").await;
    world.delete("users-0").await;
    world.create("users-0").await;
    eyes.until(&["users-1@10.0.0.2"]).await;
    world.status("users-0", running(&["10.0.0.9"], false)).await;
    eyes.until(&["users-0@10.0.0.9", "users-1@10.0.0.2"]).await;
}

async fn readiness_that_flaps(world: &mut impl World) {
    world.start("p1", "10.0.0.1").await;
    world.start("p2", "10.0.0.2").await;
    let mut eyes = Eyes::open(world.pods());
    eyes.until(&["p1@10.0.0.1", "p2@10.0.0.2"]).await;
    eyes.until_well().await;
    let (sets, before) = (eyes.bench.sets(), eyes.pods.stats().events);
    for n in 0..20 {
        world.status("p2", running(&["10.0.0.2"], n % 2 == 0)).await;
    }
    eyes.reads(before, 19).await; // a last one that changes nothing is no event to a real server
    assert_eq!(eyes.bench.sets(), sets, "no set of it moves a key");
    assert_eq!(eyes.set(), ["p1@10.0.0.1", "p2@10.0.0.2"]);
}

async fn a_thousand_pods_in_pages(world: &mut impl World) {
    for n in 0..1_000 {
        world.start(&format!("p{n:04}"), &format!("10.0.{}.{}", n / 250, n % 250)).await;
    }
    let mut eyes = Eyes::open(world.pods().page_size(70));
    let all: Vec<_> = (0..1_000).map(|n| format!("p{n:04}@10.0.{}.{}", n / 250, n % 250)).collect();
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    eyes.until(&all).await;
    let stats = eyes.pods.stats();
    assert_eq!((stats.lists, stats.published), (1, 1), "one set, when all pages are there: {stats:?}");
}

async fn an_outage(world: &mut impl World) {
    for n in 1..=3 {
        world.start(&format!("p{n}"), &format!("10.0.0.{n}")).await;
    }
    let mut eyes = Eyes::open(world.pods());
    let all = ["p1@10.0.0.1", "p2@10.0.0.2", "p3@10.0.0.3"];
    eyes.until(&all).await;
    eyes.until_well().await;
    let (sets, before) = (eyes.bench.sets(), eyes.pods.stats());
    world.down().await;
    eyes.until_stale(&["cannot watch pods in the namespace"]).await;
    let end_at = Instant::now() + world.outage();
    while Instant::now() < end_at {
        sleep(world.outage() / 100).await;
        eyes.bench.ask();
        assert_eq!((eyes.set().as_slice(), eyes.bench.sets()), (all.map(str::to_owned).as_slice(), sets));
    }
    let failures = eyes.pods.stats().failures - before.failures;
    let most = 20 + world.outage().as_secs() / 15;
    assert!(failures <= most, "{failures} requests that failed; it must wait longer and longer");
    world.up().await;
    let took = eyes.until_well().await;
    assert!(took <= Duration::from_secs(31), "well again after {took:?}");
    eyes.until(&all).await;
    world.start("p4", "10.0.0.4").await;
    eyes.until(&[all.as_slice(), &["p4@10.0.0.4"]].concat()).await;
    let stats = eyes.pods.stats();
    assert!(stats.published <= before.published + 3, "no burst: {stats:?}");
}

async fn a_permission_that_is_lost_and_given_again(world: &mut impl World) {
    world.start("p1", "10.0.0.1").await;
    world.start("p2", "10.0.0.2").await;
    let mut eyes = Eyes::open(world.pods());
    eyes.until(&["p1@10.0.0.1", "p2@10.0.0.2"]).await;
    eyes.until_well().await;
    world.revoke().await;
    eyes.bench.ask(); // a watch that is open stays so, whatever its rights
    let why = eyes.until_stale(&["this node may not list pods in the namespace", "403", "kind: Role\n"]).await;
    for part in ["resources: [\"pods\"]", "verbs: [\"list\", \"watch\"]", "kind: RoleBinding", "name: users-sa"] {
        assert!(why.contains(part), "{part} is missing in:\n{why}");
    }
    assert_eq!(eyes.set(), ["p1@10.0.0.1", "p2@10.0.0.2"], "nobody is gone");
    world.delete("p1").await;
    world.grant().await;
    eyes.until(&["p2@10.0.0.2"]).await;
    eyes.until_well().await;
    assert_eq!(eyes.bench.health(), Some(Health::Connected));
}
