//! A group that was taken out of its node, and the handles that are left of it.

use crate::support::{Cluster, Gate, eventually, gated};
use groupcache_core::{Group, Node};

fn data(node: &Node, gate: &Gate) -> Group<String> {
    node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated).build().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_that_was_kept_gets_an_error_and_stores_nothing() {
    let node = Node::builder().start().await.unwrap();
    let gate = Gate::default();
    let old = data(&node, &gate);
    let waiting = tokio::spawn({
        let old = old.clone();
        async move { old.get("key").await }
    });
    gate.begun(1).await;
    assert!(node.remove_group("data"));
    assert!(waiting.await.unwrap().expect_err("who waits is told").is_closed());
    // Its load goes on, and ends after the group did.
    gate.open();
    eventually("the load ends", || node.loads() == (0, 0)).await;
    let error = old.get("key").await.expect_err("the group is gone");
    assert!(error.is_unknown_group() && error.to_string().contains("build it again"), "{error:?}");
    assert!(old.get("another").await.expect_err("the group is gone").is_unknown_group());
    assert!(old.set("key", "value").await.expect_err("the group is gone").is_unknown_group());
    assert!(old.remove("key").await.expect_err("the group is gone").is_unknown_group());
    assert_eq!((old.entries(), gate.loads.total()), (0, 1), "nothing is kept, and nothing loaded");

    let new = data(&node, &gate);
    assert_eq!(new.get("key").await.unwrap(), "key by load 2");
    assert!(old.get("key").await.expect_err("still gone").is_unknown_group());
    assert_eq!((new.entries(), old.entries()), (1, 0));
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_group_is_emptied_too() {
    const KEYS: usize = 10_000;
    let node = Node::builder().start().await.unwrap();
    let group = node.group::<String>("data").capacity_bytes(64 << 20);
    let group = group.loader(async |key: &str| Ok::<_, std::io::Error>(key.to_owned())).build().unwrap();
    for n in 0..KEYS {
        group.get(&format!("key-{n}")).await.unwrap();
    }
    assert_eq!(group.entries(), KEYS);
    assert!(node.remove_group("data"));
    eventually("nothing is left", || (group.entries(), group.bytes()) == (0, 0)).await;
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_notice_that_a_group_goes_and_comes_back() {
    let cluster = Cluster::start(2).await;
    let gate = Gate::default();
    gate.open();
    let at_a = data(&cluster.nodes[0], &gate);
    let at_b = data(&cluster.nodes[1], &gate);
    cluster.wait_for_group("data").await;
    let keys: Vec<_> =
        (0..).map(|n| format!("key-{n}")).filter(|key| at_b.owner_of(key).as_str() == "a").take(3).collect();
    at_b.get(&keys[0]).await.unwrap();
    assert_eq!(at_a.entries(), 1, "at its owner");

    assert!(cluster.nodes[0].remove_group("data"));
    eventually("b notices", || cluster.nodes[1].peers_with_group("data") == 0).await;
    at_b.get(&keys[1]).await.expect("its owner has no such group: loaded here");
    assert_eq!((at_b.stats().fallback_loads, at_a.entries()), (1, 0));

    let again = data(&cluster.nodes[0], &gate);
    cluster.wait_for_group("data").await;
    at_b.get(&keys[2]).await.unwrap();
    assert_eq!(at_b.stats().fallback_loads, 1, "at its owner again");
    assert!((1..=2).contains(&again.entries()), "and what was loaded elsewhere meanwhile may be handed over to it");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_peer_has_missed_of_a_group_that_is_removed_is_told_when_it_comes_back() {
    let (cluster, path) = Cluster::start_with_proxy().await;
    let gate = Gate::default();
    gate.open();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated))
        .await;
    let key = cluster.key_of(&groups, 1);
    groups[1].get(&key).await.unwrap();
    path.stop();
    // Its owner cannot be reached, and this node stands for it.
    assert_eq!(groups[0].remove(&key).await.unwrap().unreached().len(), 1);
    assert!(cluster.nodes[0].remove_group("data"));
    path.cut();
    path.resume();
    eventually("it is there again", || cluster.nodes[0].members().iter().all(|member| member.is_reachable)).await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await; // missed writes are looked for each second
    assert_eq!(groups[1].entries(), 1);
    let _again = data(&cluster.nodes[0], &gate);
    eventually("b hears of it", || groups[1].entries() == 0).await;
    cluster.shutdown().await;
}
