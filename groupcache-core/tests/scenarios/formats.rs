//! Groups in two formats, as during a deploy that changes the format: the nodes share writes, but no values.

use crate::support::{Cluster, Gate, gated};
use groupcache_core::Group;

/// Builds the group `data` in format 1 at `a` and in format 2 at `b`, with a load counter for each.
async fn two_formats() -> (Cluster, [Gate; 2], Vec<Group<String>>) {
    let cluster = Cluster::start(2).await;
    let gates = [Gate::default(), Gate::default()];
    gates.iter().for_each(Gate::open);
    let groups = cluster
        .group(|at, node| {
            let group = node.group::<String>("data").capacity_bytes(1 << 20).format(1 + at as u32);
            group.loader_with(gates[at].clone(), gated)
        })
        .await;
    (cluster, gates, groups)
}

/// Checks that each of two nodes with different formats loads a key once for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_two_formats_load_separately() {
    let (cluster, gates, groups) = two_formats().await;
    for owner in 0..2 {
        let key = cluster.key_of(&groups, owner);
        for group in &groups {
            for _ in 0..2 {
                assert_eq!(group.get(&key).await.unwrap(), format!("{key} by load 1"));
            }
        }
        assert_eq!(gates.each_ref().map(|gate| gate.loads.of(&key)), [1, 1]);
    }
    cluster.shutdown().await;
}

/// Checks that a remove drops the values of both formats, and that a set stores its value in its own format only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_drops_the_values_of_all_formats() {
    let (cluster, _gates, groups) = two_formats().await;
    for owner in 0..2 {
        let key = cluster.key_of(&groups, owner);
        for group in &groups {
            group.get(&key).await.unwrap();
        }
        let removed = groups[0].remove(&key).await.unwrap();
        assert!(removed.is_complete(), "{removed:?}");
        assert_eq!(groups.iter().map(|group| group.inspect().entries()).collect::<Vec<_>>(), [0, 0], "owner {owner}");
        for group in &groups {
            assert_eq!(group.get(&key).await.unwrap(), format!("{key} by load 2"));
        }

        let set = groups[0].set(&key, "by hand").await.unwrap();
        assert!(set.is_complete(), "{set:?}");
        assert_eq!(groups[0].get(&key).await.unwrap(), "by hand");
        assert_eq!(groups[1].get(&key).await.unwrap(), format!("{key} by load 3"), "b loads the key in its own format");
        for group in &groups {
            group.remove(&key).await.unwrap().log_pending();
        }
    }
    cluster.shutdown().await;
}
