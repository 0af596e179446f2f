//! Publications while a namespace is unknown or facts contradict each other. In virtual time.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::support::{Observer, Simulated, THREE, TWO, World, eventually, fake::Mode, pod, running, two_pods};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Puts a running pod into a namespace.
fn put_pod(world: &Simulated, namespace: &str, name: &str, ip: &str) {
    let mut pod = pod(name, &format!("uid of {name} in {namespace}"));
    pod["metadata"]["namespace"] = json!(namespace);
    pod["status"] = running(&[ip], true);
    world.fake.put("pods", pod);
}

/// Checks that partial sets and departures are published while another namespace cannot be listed.
#[tokio::test(start_paused = true)]
async fn departure_is_reported_despite_unlisted_namespace() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    world.start("p2", "10.0.0.2").await;
    world.fake.refuse_namespace(Some("blue"));
    let mut observer = Observer::start(world.pods().namespace("blue"));
    eventually("the known peers are published as a partial set", async || observer.set() == TWO).await;
    world.delete("p2").await;
    eventually("the departure is reported", async || observer.left() == ["p2"]).await;
    let published = observer.pods.stats().published;
    for n in 0..10 {
        world.status("p1", running(&["10.0.0.1"], n % 2 == 0)).await;
        sleep(SECOND).await;
    }
    let stats = observer.pods.stats();
    assert_eq!(stats.published, published, "an equal set is not published: {stats:?}");
    world.start("p3", "10.0.0.3").await;
    eventually("a partial set has the new peer", async || observer.set().contains(&"p3@10.0.0.3".to_owned())).await;
    assert_eq!((observer.bench.sets(), observer.left()), (0, vec![]));
}

/// Checks that only a list answers a request of the node with a complete set; the change of an address does not.
#[tokio::test(start_paused = true)]
async fn unrelated_change_does_not_answer_a_request() {
    let (mut world, mut observer) = two_pods(|pods| pods).await;
    sleep(2 * SECOND).await;
    let sets = observer.bench.sets();
    world.fake.state().mode = Mode::Refuses { verb: "list", code: 500, body: None };
    observer.bench.ask();
    observer.until_stale(&["cannot list pods"]).await;
    world.status("p2", running(&["10.0.0.22"], true)).await;
    eventually("the new address is published", async || observer.set().contains(&"p2@10.0.0.22".to_owned())).await;
    sleep(MINUTE).await;
    assert_eq!(observer.bench.sets(), sets, "a set with equal ids would confirm the peers in doubt");
    // A new peer makes another set, which confirms nothing.
    world.start("p3", "10.0.0.3").await;
    observer.until(&["p1@10.0.0.1", "p2@10.0.0.22", "p3@10.0.0.3"]).await;
    assert_eq!(observer.bench.sets(), sets + 1);
    world.fake.state().mode = Mode::Normal;
    eventually("the answer is published", async || observer.bench.sets() == sets + 2).await;
    world.status("p2", running(&["10.0.0.2"], true)).await;
    observer.until(&THREE).await;
}

/// Checks that a pod that exceeds the grace period of its deletion is reported as having left, repeatedly, and stays in
/// the set.
#[tokio::test(start_paused = true)]
async fn overdue_pod_is_reported_as_left_until_deleted() {
    let (mut world, mut observer) = two_pods(|pods| pods).await;
    world.change("p2", |pod| pod["metadata"]["deletionGracePeriodSeconds"] = json!(40));
    world.terminate("p2").await;
    observer.until(&["p1@10.0.0.1", "p2!@10.0.0.2"]).await;
    sleep(68 * SECOND).await;
    assert_eq!(observer.left(), [""; 0], "the pod may still end in order");
    sleep(4 * SECOND).await;
    assert_eq!(observer.left(), ["p2"], "the pod is overdue because its machine is dead");
    assert_eq!(observer.set(), ["p1@10.0.0.1", "p2!@10.0.0.2"], "the pod stays in the set");
    sleep(10 * MINUTE).await;
    assert_eq!(observer.left(), ["p2", "p2"], "reported again, because the pod may have answered");
    world.delete("p2").await;
    observer.until(&["p1@10.0.0.1"]).await;
    world.start("p2", "10.0.0.2").await;
    observer.until(&TWO).await;
    sleep(10 * MINUTE).await;
    assert_eq!(observer.left(), ["p2"], "reported once for the deletion; the new pod of the same name stays");
}

/// Checks that the counter of shared names has the current number, not a sum.
#[tokio::test(start_paused = true)]
async fn conflicts_count_current_names() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    put_pod(&world, "blue", "p2", "10.0.0.2");
    let mut observer = Observer::start(world.pods().namespace("blue"));
    observer.until(&TWO).await;
    put_pod(&world, "blue", "p1", "10.0.0.9");
    eventually("the conflict is counted", async || observer.pods.stats().conflicts == 1).await;
    for n in 3..=9 {
        put_pod(&world, "blue", &format!("p{n}"), &format!("10.0.0.{n}"));
        sleep(SECOND).await;
    }
    assert_eq!(observer.pods.stats().conflicts, 1, "the number of sets does not matter");
    world.fake.delete("pods", "blue", "p1");
    eventually("the conflict is over", async || observer.pods.stats().conflicts == 0).await;
}
