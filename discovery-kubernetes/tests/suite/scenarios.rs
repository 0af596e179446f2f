//! Scenarios: changes of pods and the peer sets that result. Each scenario is written once, for any API server.

use std::time::Duration;

use groupcache_core::discovery::Health;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::{Observer, Simulated, World, running};

/// Runs scenarios on the fake API server, in virtual time.
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
    rolling_update_publishes_each_step,
    pod_lifecycle_is_published,
    unready_pods_stay_published,
    recreated_pod_is_published_at_new_address,
    flapping_readiness_publishes_nothing,
    thousand_pods_in_pages_are_one_set,
    outage_keeps_peers,
    revoked_right_is_reported_until_granted,
);

/// Runs all scenarios one after the other, each in a new world.
pub(crate) async fn all<W: World>(fresh: impl AsyncFn(&str) -> W) {
    rolling_update_publishes_each_step(&mut fresh("rolling update").await).await;
    pod_lifecycle_is_published(&mut fresh("lifecycle of a pod").await).await;
    unready_pods_stay_published(&mut fresh("all pods unready at once").await).await;
    recreated_pod_is_published_at_new_address(&mut fresh("recreated pod").await).await;
    flapping_readiness_publishes_nothing(&mut fresh("flapping readiness").await).await;
    thousand_pods_in_pages_are_one_set(&mut fresh("a thousand pods in pages").await).await;
    outage_keeps_peers(&mut fresh("outage").await).await;
    revoked_right_is_reported_until_granted(&mut fresh("revoked right").await).await;
}

/// Checks the sets while three pods are replaced one by one: each new, draining and deleted pod makes one set.
async fn rolling_update_publishes_each_step(world: &mut impl World) {
    for n in 0..3 {
        world.start(&format!("old-{n}"), &format!("10.0.0.{n}")).await;
    }
    let mut observer = Observer::start(world.pods());
    let mut expected: Vec<String> = (0..3).map(|n| format!("old-{n}@10.0.0.{n}")).collect();
    let sees = async |observer: &mut Observer, expected: &[String]| {
        let mut sorted: Vec<_> = expected.iter().map(String::as_str).collect();
        sorted.sort_unstable();
        observer.until(&sorted).await;
    };
    sees(&mut observer, &expected).await;
    for n in 0..3 {
        let (old, new, sets) = (format!("old-{n}"), format!("new-{n}"), observer.bench.sets());
        let before = observer.pods.stats().events;
        world.create(&new).await;
        observer.until_read(before, 1).await;
        assert_eq!((observer.bench.sets(), observer.pods.stats().waiting), (sets, 1), "no address yet");
        world.status(&new, running(&[&format!("10.0.1.{n}")], false)).await;
        expected.push(format!("{new}@10.0.1.{n}"));
        sees(&mut observer, &expected).await;
        assert_eq!(observer.pods.stats().waiting, 0);
        world.status(&new, running(&[&format!("10.0.1.{n}")], true)).await;
        world.terminate(&old).await;
        expected.retain(|peer| !peer.starts_with(&old));
        let draining = [expected.clone(), vec![format!("{old}!@10.0.0.{n}")]].concat();
        sees(&mut observer, &draining).await;
        assert_eq!(observer.left(), [""; 0], "a draining pod has not left");
        world.delete(&old).await;
        sees(&mut observer, &expected).await;
        assert_eq!(observer.left(), [old]);
    }
    assert_eq!(expected, ["new-0@10.0.1.0", "new-1@10.0.1.1", "new-2@10.0.1.2"]);
    assert_eq!(
        observer.pods.stats().published,
        1 + 3 * 3,
        "one set per new, draining and deleted pod: {:?}",
        observer.pods.stats()
    );
}

/// Checks the sets from the creation of a pod to its deletion or eviction.
async fn pod_lifecycle_is_published(world: &mut impl World) {
    world.start("other", "10.0.0.1").await;
    let mut observer = Observer::start(world.pods());
    observer.until(&["other@10.0.0.1"]).await;
    world.create("p").await;
    world.status("p", running(&["10.0.0.2"], false)).await;
    observer.until(&["other@10.0.0.1", "p@10.0.0.2"]).await;
    let (sets, before) = (observer.bench.sets(), observer.pods.stats().events);
    world.status("p", running(&["10.0.0.2"], true)).await;
    observer.until_read(before, 1).await;
    assert_eq!(observer.bench.sets(), sets, "readiness causes no set");
    world.terminate("p").await;
    observer.until(&["other@10.0.0.1", "p!@10.0.0.2"]).await;
    world.delete("p").await;
    observer.until(&["other@10.0.0.1"]).await;
    // An evicted pod stays in the API for days.
    world.start("q", "10.0.0.3").await;
    observer.until(&["other@10.0.0.1", "q@10.0.0.3"]).await;
    let evicted =
        json!({ "phase": "Failed", "reason": "Evicted", "podIP": "10.0.0.3", "podIPs": [{ "ip": "10.0.0.3" }] });
    world.status("q", evicted).await;
    observer.until(&["other@10.0.0.1"]).await;
    assert_eq!(observer.left(), ["p", "q"], "each departure is reported once");
    observer.bench.stop().await;
}

/// Checks that no set is published when all pods become unready at once.
async fn unready_pods_stay_published(world: &mut impl World) {
    for n in 1..=3 {
        world.start(&format!("p{n}"), &format!("10.0.0.{n}")).await;
    }
    let mut observer = Observer::start(world.pods());
    let all = ["p1@10.0.0.1", "p2@10.0.0.2", "p3@10.0.0.3"];
    observer.until(&all).await;
    observer.until_connected().await;
    let (sets, before) = (observer.bench.sets(), observer.pods.stats().events);
    for n in 1..=3 {
        world.status(&format!("p{n}"), running(&[&format!("10.0.0.{n}")], false)).await;
    }
    observer.until_read(before, 3).await;
    assert_eq!((observer.set().as_slice(), observer.bench.sets()), (all.map(str::to_owned).as_slice(), sets));
}

/// Checks that a pod that is deleted and created again is published at its new address.
async fn recreated_pod_is_published_at_new_address(world: &mut impl World) {
    world.start("users-0", "10.0.0.1").await;
    world.start("users-1", "10.0.0.2").await;
    let mut observer = Observer::start(world.pods());
    observer.until(&["users-0@10.0.0.1", "users-1@10.0.0.2"]).await;
    world.terminate("users-0").await;
    world.delete("users-0").await;
    world.create("users-0").await;
    observer.until(&["users-1@10.0.0.2"]).await;
    world.status("users-0", running(&["10.0.0.9"], false)).await;
    observer.until(&["users-0@10.0.0.9", "users-1@10.0.0.2"]).await;
}

/// Checks that changes of the readiness alone cause no set.
async fn flapping_readiness_publishes_nothing(world: &mut impl World) {
    world.start("p1", "10.0.0.1").await;
    world.start("p2", "10.0.0.2").await;
    let mut observer = Observer::start(world.pods());
    observer.until(&["p1@10.0.0.1", "p2@10.0.0.2"]).await;
    observer.until_connected().await;
    let (sets, before) = (observer.bench.sets(), observer.pods.stats().events);
    for n in 0..20 {
        world.status("p2", running(&["10.0.0.2"], n % 2 == 0)).await;
    }
    // A real API server sends no event for the last status, which changes nothing.
    observer.until_read(before, 19).await;
    assert_eq!(observer.bench.sets(), sets, "no set is published, so no key moves");
    assert_eq!(observer.set(), ["p1@10.0.0.1", "p2@10.0.0.2"]);
}

/// Checks that a list in many pages is published as one set.
async fn thousand_pods_in_pages_are_one_set(world: &mut impl World) {
    for n in 0..1_000 {
        world.start(&format!("p{n:04}"), &format!("10.0.{}.{}", n / 250, n % 250)).await;
    }
    let mut observer = Observer::start(world.pods().page_size(70));
    let all: Vec<_> = (0..1_000).map(|n| format!("p{n:04}@10.0.{}.{}", n / 250, n % 250)).collect();
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    observer.until(&all).await;
    let stats = observer.pods.stats();
    assert_eq!((stats.lists, stats.published), (1, 1), "one set after the last page: {stats:?}");
}

/// Checks that an outage keeps the peers, causes few requests, and ends without a burst of sets.
async fn outage_keeps_peers(world: &mut impl World) {
    const QUESTIONS: u32 = 100;
    for n in 1..=3 {
        world.start(&format!("p{n}"), &format!("10.0.0.{n}")).await;
    }
    let mut observer = Observer::start(world.pods());
    let all = ["p1@10.0.0.1", "p2@10.0.0.2", "p3@10.0.0.3"];
    observer.until(&all).await;
    observer.until_connected().await;
    let (sets, before) = (observer.bench.sets(), observer.pods.stats());
    world.down().await;
    observer.until_stale(&["cannot watch pods in the namespace"]).await;
    let end_at = Instant::now() + world.outage();
    while Instant::now() < end_at {
        sleep(world.outage() / QUESTIONS).await;
        observer.bench.ask();
        assert_eq!((observer.set().as_slice(), observer.bench.sets()), (all.map(str::to_owned).as_slice(), sets));
    }
    let failures = observer.pods.stats().failures - before.failures;
    // Each question is tried once at once, beside the back-off.
    let most = 20 + u64::from(QUESTIONS) + world.outage().as_secs() / 15;
    assert!(failures <= most, "{failures} failed requests, without a growing back-off");
    world.up().await;
    let took = observer.until_connected().await;
    assert!(took <= Duration::from_secs(31), "connected again after {took:?}");
    observer.until(&all).await;
    world.start("p4", "10.0.0.4").await;
    observer.until(&[all.as_slice(), &["p4@10.0.0.4"]].concat()).await;
    let stats = observer.pods.stats();
    assert!(stats.published <= before.published + 3, "a burst of sets: {stats:?}");
}

/// Checks that the health has the Role to create while the right is missing, and that the peers stay.
async fn revoked_right_is_reported_until_granted(world: &mut impl World) {
    world.start("p1", "10.0.0.1").await;
    world.start("p2", "10.0.0.2").await;
    let mut observer = Observer::start(world.pods());
    observer.until(&["p1@10.0.0.1", "p2@10.0.0.2"]).await;
    observer.until_connected().await;
    world.revoke().await;
    observer.bench.ask(); // an open watch stays open after its right is revoked
    let why =
        observer.until_stale(&["this node may not list pods in the namespace", "403", "create role pod-reader"]).await;
    for part in ["--resource=pods ", "--verb=list,watch", "create rolebinding", ":users-sa"] {
        assert!(why.contains(part), "{part} is missing in:\n{why}");
    }
    assert_eq!(observer.set(), ["p1@10.0.0.1", "p2@10.0.0.2"], "the peers stay");
    world.delete("p1").await;
    world.grant().await;
    observer.until(&["p2@10.0.0.2"]).await;
    observer.until_connected().await;
    assert_eq!(observer.bench.health(), Some(Health::Connected));
}
