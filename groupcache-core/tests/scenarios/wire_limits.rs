//! Two nodes that do not allow values of the same size: each is told what it can be, and nothing else breaks.

use crate::support::{self, Cluster, Gate, PATIENCE, Peers, identity};
use groupcache_core::{BoxError, Group, Limits, Node};
use tokio::time::timeout;

/// More than a whole message to `a` may have.
const LARGE: usize = 900 << 10;

/// What a key begins with decides what its loader does.
async fn by_key(gate: &Gate, key: &str) -> Result<String, BoxError> {
    gate.loads.begin(key);
    match key.split('-').next() {
        Some("large") => return Ok("v".repeat(LARGE)),
        Some("slow") => gate.pass().await,
        _ => {}
    }
    Ok(key.to_owned())
}

/// Node `a` takes values of 64 KiB, node `b` of 1 MiB.
async fn unequal() -> (Cluster, Vec<Group<String>>, Gate) {
    let peers = Peers::default();
    let mut nodes = Vec::new();
    for (name, max_value_bytes) in [("a", 64 << 10), ("b", 1 << 20)] {
        let mut limits = Limits::default();
        limits.max_value_bytes = max_value_bytes;
        let builder = Node::builder().identity(identity(name)).provider(peers.clone()).limits(limits);
        nodes.push(builder.start().await.unwrap());
    }
    peers.set(nodes.iter().map(support::peer).collect());
    let cluster = Cluster { nodes, peers };
    cluster.agree().await;
    let gate = Gate::default();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(16 << 20).loader_with(gate.clone(), by_key))
        .await;
    (cluster, groups, gate)
}

fn key_of(groups: &[Group<String>], owner: &str, prefix: &str) -> String {
    (0..).map(|n| format!("{prefix}-{n}")).find(|key| groups[0].owner_of(key).as_str() == owner).unwrap()
}

fn assert_connected(cluster: &Cluster) {
    for node in &cluster.nodes {
        let stats = node.stats();
        assert_eq!((stats.lost, stats.rejected), (0, 0), "the connections stay");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_is_too_large_for_the_asker_is_an_error_of_its_own() {
    let (cluster, groups, gate) = unequal().await;
    let (slow, large, plain) =
        (key_of(&groups, "b", "slow"), key_of(&groups, "b", "large"), key_of(&groups, "b", "plain"));
    let waiting = tokio::spawn({
        let (group, slow) = (groups[0].clone(), slow.clone());
        async move { group.get(&slow).await }
    });
    gate.begun(1).await;
    // Loaded for the asker, and then from memory.
    for _ in 0..2 {
        let error = timeout(PATIENCE, groups[0].get(&large)).await.expect("in time").expect_err("too large for a");
        assert!(error.is_too_large(), "{error:?}");
    }
    assert_eq!(groups[1].get(&large).await.unwrap().len(), LARGE, "b may have it");
    assert_eq!(groups[0].get(&plain).await.unwrap(), plain);
    gate.open();
    assert_eq!(waiting.await.unwrap().unwrap(), slow, "who waited meanwhile is served");
    assert_eq!((gate.loads.of(&large), groups[0].stats().loads), (1, 0));
    assert_connected(&cluster);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_of_what_is_too_large_for_the_owner_drops_the_old_value_everywhere() {
    let (cluster, groups, gate) = unequal().await;
    let (key, slow) = (key_of(&groups, "a", "plain"), key_of(&groups, "a", "slow"));
    assert_eq!(groups[1].get(&key).await.unwrap(), key);
    assert_eq!((groups[0].entries(), gate.loads.of(&key)), (1, 1));
    let waiting = tokio::spawn({
        let (group, slow) = (groups[1].clone(), slow.clone());
        async move { group.get(&slow).await }
    });
    gate.begun(2).await;
    let refused = groups[1].set(&key, "v".repeat(LARGE)).await.expect_err("too large for the owner");
    assert!(refused.is_too_large(), "{refused:?}");
    assert_eq!(groups[0].entries() + groups[1].entries(), 0, "the old value is gone, the new one is kept nowhere");
    assert_eq!(groups[0].get(&key).await.unwrap(), key, "and loads it anew");
    assert_eq!(gate.loads.of(&key), 2);
    gate.open();
    assert_eq!(waiting.await.unwrap().unwrap(), slow, "who waited meanwhile is served");
    assert_connected(&cluster);
    cluster.shutdown().await;
}
