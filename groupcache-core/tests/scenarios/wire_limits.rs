//! Two nodes with different limits of the value size: a value too large for one node is an error of its own, and
//! nothing else breaks.

use crate::support::{self, Cluster, Gate, PATIENCE, Peers, identity};
use groupcache_core::{BoxError, Group, Limits, Node};
use tokio::time::timeout;

/// Size of a value that exceeds a whole message to `a`.
const LARGE: usize = 900 << 10;

/// Loads a key as its prefix demands: `large` is a value of `LARGE` bytes, `slow` waits at the gate.
async fn by_key(gate: &Gate, key: &str) -> Result<String, BoxError> {
    gate.loads.begin(key);
    match key.split('-').next() {
        Some("large") => return Ok("v".repeat(LARGE)),
        Some("slow") => gate.pass().await,
        _ => {}
    }
    Ok(key.to_owned())
}

/// Starts node `a` with values of at most 64 KiB, and node `b` with values of at most 1 MiB.
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

/// Returns a key with this prefix that `owner` owns.
fn key_of(groups: &[Group<String>], owner: &str, prefix: &str) -> String {
    (0..).map(|n| format!("{prefix}-{n}")).find(|key| groups[0].inspect().owner_of(key).as_str() == owner).unwrap()
}

/// Checks that no connection was lost or rejected.
fn assert_connected(cluster: &Cluster) {
    for node in &cluster.nodes {
        let stats = node.stats();
        assert_eq!((stats.lost, stats.rejected), (0, 0), "the connections stay");
    }
}

/// Checks that a value too large for the requester is an error of this get, loaded or from memory, and that concurrent
/// and later gets succeed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn value_too_large_for_the_requester_fails_only_its_get() {
    let (cluster, groups, gate) = unequal().await;
    let (slow, large, plain) =
        (key_of(&groups, "b", "slow"), key_of(&groups, "b", "large"), key_of(&groups, "b", "plain"));
    let waiting = tokio::spawn({
        let (group, slow) = (groups[0].clone(), slow.clone());
        async move { group.get(&slow).await }
    });
    gate.begun(1).await;
    // The owner loads the value for the first get, and has it in memory for the second.
    for _ in 0..2 {
        let error = timeout(PATIENCE, groups[0].get(&large)).await.expect("in time").expect_err("too large for a");
        assert!(error.is_too_large(), "{error:?}");
    }
    assert_eq!(groups[1].get(&large).await.unwrap().len(), LARGE, "the value is within the limit of b");
    assert_eq!(groups[0].get(&plain).await.unwrap(), plain);
    gate.open();
    assert_eq!(waiting.await.unwrap().unwrap(), slow, "the waiting get succeeds");
    assert_eq!((gate.loads.of(&large), groups[0].stats().loads), (1, 0));
    assert_connected(&cluster);
    cluster.shutdown().await;
}

/// Checks that a set of a value too large for the owner fails, drops the old value at all nodes, and stores the new
/// value nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn set_too_large_for_the_owner_drops_the_old_value() {
    let (cluster, groups, gate) = unequal().await;
    let (key, slow) = (key_of(&groups, "a", "plain"), key_of(&groups, "a", "slow"));
    assert_eq!(groups[1].get(&key).await.unwrap(), key);
    assert_eq!((groups[0].inspect().entries(), gate.loads.of(&key)), (1, 1));
    let waiting = tokio::spawn({
        let (group, slow) = (groups[1].clone(), slow.clone());
        async move { group.get(&slow).await }
    });
    gate.begun(2).await;
    let refused = groups[1].set(&key, "v".repeat(LARGE)).await.expect_err("too large for the owner");
    assert!(refused.is_too_large(), "{refused:?}");
    assert_eq!(
        groups[0].inspect().entries() + groups[1].inspect().entries(),
        0,
        "the old value is dropped, and the new value is stored nowhere"
    );
    assert_eq!(groups[0].get(&key).await.unwrap(), key, "the key is loaded again");
    assert_eq!(gate.loads.of(&key), 2);
    gate.open();
    assert_eq!(waiting.await.unwrap().unwrap(), slow, "the waiting get succeeds");
    assert_connected(&cluster);
    cluster.shutdown().await;
}
