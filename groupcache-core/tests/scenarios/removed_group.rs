//! Groups that are removed from their node, and the handles that remain of them.

use crate::support::{self, Cluster, Gate, eventually, gated};
use groupcache_core::{Group, Node};
use tokio::time::timeout;

/// Builds the group `data`, in which loads wait at the gate.
fn data(node: &Node, gate: &Gate) -> Group<String> {
    node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated).build().unwrap()
}

/// Checks that waiters and later calls of the handle of a removed group have errors, that a load that ends later is not
/// cached, and that a new group of the same name is unaffected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handle_of_a_removed_group_fails_and_stores_nothing() {
    let node = Node::builder().start().await.unwrap();
    let gate = Gate::default();
    let old = data(&node, &gate);
    let waiting = tokio::spawn({
        let old = old.clone();
        async move { old.get("key").await }
    });
    gate.begun(1).await;
    assert!(node.remove_group("data"));
    assert!(waiting.await.unwrap().expect_err("the waiter has an error").is_closed());
    // The load goes on, and ends after the removal of the group.
    gate.open();
    eventually("the load ends", || crate::support::loads_of(&node) == (0, 0)).await;
    let error = old.get("key").await.expect_err("the group is gone");
    assert!(error.is_unknown_group() && error.to_string().contains("build it again"), "{error:?}");
    assert!(old.get("another").await.expect_err("the group is gone").is_unknown_group());
    assert!(old.set("key", "value").await.expect_err("the group is gone").is_unknown_group());
    assert!(old.remove("key").await.expect_err("the group is gone").is_unknown_group());
    assert_eq!((old.inspect().entries(), gate.loads.total()), (0, 1), "nothing is cached or loaded");

    let new = data(&node, &gate);
    assert_eq!(new.get("key").await.unwrap(), "key by load 2");
    assert!(old.get("key").await.expect_err("the group is still gone").is_unknown_group());
    assert_eq!((new.inspect().entries(), old.inspect().entries()), (1, 0));
    node.shutdown().await.unwrap();
}

/// Checks that a removed group with 10,000 entries frees all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_group_of_10000_entries_is_emptied() {
    const KEYS: usize = 10_000;
    let node = Node::builder().start().await.unwrap();
    let group = node.group::<String>("data").capacity_bytes(64 << 20);
    let group = group.loader(async |key: &str| Ok::<_, std::io::Error>(key.to_owned())).build().unwrap();
    for n in 0..KEYS {
        group.get(&format!("key-{n}")).await.unwrap();
    }
    assert_eq!(group.inspect().entries(), KEYS);
    assert!(node.remove_group("data"));
    eventually("nothing is left", || (group.inspect().entries(), group.inspect().bytes()) == (0, 0)).await;
    node.shutdown().await.unwrap();
}

/// Checks that a peer loads the keys of a node that has removed the group, and fetches from this node again once the
/// group is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_follow_the_removal_and_return_of_a_group() {
    let cluster = Cluster::start(2).await;
    let gate = Gate::default();
    gate.open();
    let at_a = data(&cluster.nodes[0], &gate);
    let at_b = data(&cluster.nodes[1], &gate);
    cluster.wait_for_group("data").await;
    let keys: Vec<_> =
        (0..).map(|n| format!("key-{n}")).filter(|key| at_b.inspect().owner_of(key).as_str() == "a").take(3).collect();
    at_b.get(&keys[0]).await.unwrap();
    assert_eq!(at_a.inspect().entries(), 1, "the owner keeps the value");

    assert!(cluster.nodes[0].remove_group("data"));
    eventually("b knows of the removal", || cluster.nodes[1].peers_with_group("data") == 0).await;
    at_b.get(&keys[1]).await.expect("b loads the key, because its owner lacks the group");
    assert_eq!((at_b.stats().fallback_loads, at_a.inspect().entries()), (1, 0));

    let again = data(&cluster.nodes[0], &gate);
    cluster.wait_for_group("data").await;
    at_b.get(&keys[2]).await.unwrap();
    assert_eq!(at_b.stats().fallback_loads, 1, "the owner loads again");
    assert!((1..=2).contains(&again.inspect().entries()), "the hand-over may add the value that b loaded meanwhile");
    cluster.shutdown().await;
}

/// Checks that a node keeps the keys of a connected owner without the group as an owner does, and that the value ends soon
/// after the owner has the group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stand_in_of_an_owner_without_the_group_keeps_values() {
    let cluster = Cluster::start(2).await;
    let gate = Gate::default();
    gate.open();
    let at_a = data(&cluster.nodes[0], &gate);
    let key = (0..).map(|n| format!("key-{n}")).find(|key| at_a.inspect().owner_of(key).as_str() == "b").unwrap();
    at_a.get(&key).await.unwrap();
    let kept = || at_a.inspect().local_entries(1)[0].fresh_for;
    assert_eq!(kept(), None, "the group has no time to live");

    let at_b = data(&cluster.nodes[1], &gate);
    cluster.wait_for_group("data").await;
    support::eventually("the value of a ends", || {
        let _hit = futures_util::FutureExt::now_or_never(at_a.get(&key));
        kept().is_some_and(|left| left <= std::time::Duration::from_secs(10))
    })
    .await;
    assert_eq!(at_b.inspect().entries(), 0);
    cluster.shutdown().await;
}

/// Checks that a write settles although its writer has removed the group meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_settles_after_its_group_is_removed() {
    let (cluster, path) = Cluster::start_with_proxy().await;
    let gate = Gate::default();
    gate.open();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated))
        .await;
    let key = cluster.key_of(&groups, 1);
    groups[1].get(&key).await.unwrap();
    path.stop();
    let written = groups[0].remove(&key).await.unwrap();
    assert!(cluster.nodes[0].remove_group("data"));
    timeout(support::PATIENCE, written.settled()).await.expect("b asks for the write");
    assert_eq!(groups[1].inspect().entries(), 0);
    cluster.shutdown().await;
}
