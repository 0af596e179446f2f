//! What is said while not all is known, or not all can be true. In virtual time.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::support::{BOTH, Eyes, Simulated, THREE, World, eventually, fake::Mode, pod, running, settled};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn put_in(world: &Simulated, namespace: &str, name: &str, ip: &str) {
    let mut pod = pod(name, &format!("uid of {name} in {namespace}"));
    pod["metadata"]["namespace"] = json!(namespace);
    pod["status"] = running(&[ip], true);
    world.fake.put("pods", pod);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_is_told_though_a_namespace_cannot_be_listed() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    world.start("p2", "10.0.0.2").await;
    world.fake.refuse_namespace(Some("blue"));
    let mut eyes = Eyes::open(world.pods().namespace("blue"));
    eventually("who is known is an addition", async || eyes.set() == BOTH).await;
    world.delete("p2").await;
    eventually("who is gone is told", async || eyes.left() == ["p2"]).await;
    let published = eyes.pods.stats().published;
    for n in 0..10 {
        world.status("p1", running(&["10.0.0.1"], n % 2 == 0)).await;
        sleep(SECOND).await;
    }
    let stats = eyes.pods.stats();
    assert_eq!(stats.published, published, "the same again is no news: {stats:?}");
    world.start("p3", "10.0.0.3").await;
    eventually("an addition", async || eyes.set().contains(&"p3@10.0.0.3".to_owned())).await;
    assert_eq!((eyes.bench.sets(), eyes.left()), (0, vec![]));
}

#[tokio::test(start_paused = true)]
async fn an_unrelated_change_is_no_answer_to_a_question() {
    let (mut world, mut eyes) = settled(|pods| pods).await;
    sleep(2 * SECOND).await;
    let sets = eyes.bench.sets();
    world.fake.world().mode = Mode::Refuses { verb: "list", code: 500, body: None };
    eyes.bench.ask();
    eyes.until_stale(&["cannot list pods"]).await;
    world.status("p2", running(&["10.0.0.22"], true)).await;
    eventually("its address is told", async || eyes.set().contains(&"p2@10.0.0.22".to_owned())).await;
    sleep(MINUTE).await;
    assert_eq!(eyes.bench.sets(), sets, "a set of the same ids would confirm what is in doubt");
    // Who comes or goes makes another set, which confirms nothing.
    world.start("p3", "10.0.0.3").await;
    eyes.until(&["p1@10.0.0.1", "p2@10.0.0.22", "p3@10.0.0.3"]).await;
    assert_eq!(eyes.bench.sets(), sets + 1);
    world.fake.world().mode = Mode::Well;
    eventually("the answer", async || eyes.bench.sets() == sets + 2).await;
    world.status("p2", running(&["10.0.0.2"], true)).await;
    eyes.until(&THREE).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_should_have_ended_is_said_to_have_left_until_it_has() {
    let (mut world, mut eyes) = settled(|pods| pods).await;
    world.change("p2", |pod| pod["metadata"]["deletionGracePeriodSeconds"] = json!(40));
    world.terminate("p2").await;
    eyes.until(&["p1@10.0.0.1", "p2!@10.0.0.2"]).await;
    sleep(68 * SECOND).await;
    assert_eq!(eyes.left(), [""; 0], "it may still be ending in order");
    sleep(4 * SECOND).await;
    assert_eq!(eyes.left(), ["p2"], "nobody ends it: its machine is dead");
    assert_eq!(eyes.set(), ["p1@10.0.0.1", "p2!@10.0.0.2"], "it is still there");
    sleep(10 * MINUTE).await;
    assert_eq!(eyes.left(), ["p2", "p2"], "again, since it may have answered");
    world.delete("p2").await;
    eyes.until(&["p1@10.0.0.1"]).await;
    world.start("p2", "10.0.0.2").await;
    eyes.until(&BOTH).await;
    sleep(10 * MINUTE).await;
    assert_eq!(eyes.left(), ["p2"], "once when it was gone; the new one of its name stays");
}

#[tokio::test(start_paused = true)]
async fn names_in_conflict_are_those_of_now() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    put_in(&world, "blue", "p2", "10.0.0.2");
    let mut eyes = Eyes::open(world.pods().namespace("blue"));
    eyes.until(&BOTH).await;
    put_in(&world, "blue", "p1", "10.0.0.9");
    eventually("the conflict is counted", async || eyes.pods.stats().conflicts == 1).await;
    for n in 3..=9 {
        put_in(&world, "blue", &format!("p{n}"), &format!("10.0.0.{n}"));
        sleep(SECOND).await;
    }
    assert_eq!(eyes.pods.stats().conflicts, 1, "however often a set is made");
    world.fake.delete("pods", "blue", "p1");
    eventually("it is over", async || eyes.pods.stats().conflicts == 0).await;
}
