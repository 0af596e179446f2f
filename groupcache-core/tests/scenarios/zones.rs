//! Groups with one owner of each key per zone: loads and values stay within a zone, and writes reach all zones.

use std::time::Duration;

use groupcache_core::{BoxError, Group, Node, NodeBuilder};
use tokio::task::JoinSet;

use crate::support::{self, Cluster, Loads, eventually, identity};

/// Starts nodes `a` and `c` in one zone, `b` and `d` in another.
async fn two_zones() -> Cluster {
    let build = |at: usize, builder: NodeBuilder| {
        builder.identity(identity(&support::name(at)).with_zone(["east", "west"][at % 2]).unwrap())
    };
    Cluster::start_each(4, build).await
}

/// Loads a key in 20 ms. The value is the number of loads of this key so far, this load included.
async fn numbered(loads: &Loads, key: &str) -> Result<String, BoxError> {
    loads.begin(key);
    tokio::time::sleep(Duration::from_millis(20)).await;
    Ok(loads.of(key).to_string())
}

async fn groups(cluster: &Cluster, loads: &Loads) -> Vec<Group<String>> {
    let group = |node: &Node| node.group::<String>("data").capacity_bytes(8 << 20).per_zone();
    cluster.group(|_, node| group(node).loader_with(loads.clone(), numbered)).await
}

/// Checks that each zone loads a key once, that all candidates of a key are in the zone of the caller, and that one
/// node per zone keeps the value as its owner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_zone_loads_a_key_once() {
    let (cluster, loads) = (two_zones().await, Loads::default());
    let groups = groups(&cluster, &loads).await;
    let mut callers = JoinSet::new();
    for n in 0..50 {
        for group in groups.iter().cycle().take(20) {
            let (group, key) = (group.clone(), format!("key-{n}"));
            callers.spawn(async move { group.get(&key).await.unwrap() });
        }
    }
    callers.join_all().await;
    for n in 0..50 {
        let key = format!("key-{n}");
        assert_eq!(loads.of(&key), 2, "each zone loads the key once");
        for (at, group) in groups.iter().enumerate() {
            let explained = group.inspect().explain(&key);
            let zone = [["a", "c"], ["b", "d"]][at % 2];
            assert!(explained.candidates.iter().all(|candidate| zone.contains(&candidate.id.as_str())), "{explained}");
            assert_eq!((explained.owners, explained.candidates.len()), (2, 2));
            assert_eq!(group.inspect().owner_of(&key), explained.candidates[0].id);
        }
        assert_eq!(groups[0].inspect().owner_of(&key), groups[2].inspect().owner_of(&key));
    }
    let owned: Vec<_> =
        groups.iter().flat_map(|group| group.inspect().local_entries(100)).filter(|entry| !entry.replica).collect();
    assert_eq!(owned.len(), 100, "one node per zone owns each key");
    assert!(owned.iter().all(|entry| entry.fresh_for.is_none()), "owners keep values without a limit of age");
    cluster.shutdown().await;
}

/// Checks that a node fetches a key that it does not own from the owner of its zone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn miss_is_fetched_from_the_owner_of_the_zone() {
    let (cluster, loads) = (two_zones().await, Loads::default());
    let groups = groups(&cluster, &loads).await;
    for n in 0..50 {
        let key = format!("key-{n}");
        let owner = cluster.owner(&groups, &key); // in the zone of the first node
        let other = (owner + 2) % 4;
        let served = groups[owner].stats().peer_requests;
        groups[other].get(&key).await.unwrap();
        assert_eq!((loads.of(&key), groups[owner].stats().peer_requests), (1, served + 1));
    }
    cluster.shutdown().await;
}

/// Checks that after a complete write no node of any zone returns a value that was loaded before it, and that a clear
/// empties all zones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_reaches_all_zones() {
    let (cluster, loads) = (two_zones().await, Loads::default());
    let groups = groups(&cluster, &loads).await;
    for n in 0..200 {
        let key = format!("key-{n}");
        for group in &groups {
            group.get(&key).await.unwrap();
        }
        let written = match n % 3 {
            0 => groups[n % 4].set(&key, "1000").await.unwrap(),
            _ => groups[n % 4].remove(&key).await.unwrap(),
        };
        assert!(written.is_complete(), "{written:?}");
        let before = loads.of(&key);
        for group in &groups {
            let value: u64 = group.get(&key).await.unwrap().parse().unwrap();
            assert!(value > before, "{key}: load {value} began before the write");
        }
    }
    let cleared = groups[1].clear().await.unwrap();
    assert!(cleared.is_complete());
    assert_eq!(groups.iter().map(|group| group.inspect().entries()).sum::<usize>(), 0);
    cluster.shutdown().await;
}

/// Checks that a zone without any owner fetches from the owners of the other zones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zone_without_owners_fetches_from_other_zones() {
    let (cluster, loads) = (two_zones().await, Loads::default());
    let groups = groups(&cluster, &loads).await;
    cluster.nodes[2].shutdown().await.unwrap();
    eventually("a owns all of its zone", || groups[0].inspect().explain("key-1").owners == 1).await;
    cluster.nodes[0].drain(Duration::from_secs(3)).await.unwrap();
    eventually("no node of the zone owns keys", || groups[0].inspect().explain("key-1").owners == 2).await;
    assert_eq!(groups[3].get("key-1").await.unwrap(), "1");
    assert_eq!(groups[0].get("key-1").await.unwrap(), "1", "from the other zone");
    cluster.shutdown().await;
}

/// Checks that a write in a zone with an unreachable owner names that owner as pending, and reaches the other zone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_in_a_zone_without_owners_reaches_the_others() {
    let (cluster, loads) = (two_zones().await, Loads::default());
    let groups = groups(&cluster, &loads).await;
    cluster.nodes[2].drain(Duration::from_secs(3)).await.unwrap();
    eventually("a owns all of its zone", || groups[2].inspect().explain("key-1").owners == 1).await;
    assert_eq!(
        (groups[1].get("key-1").await.unwrap(), groups[3].get("key-1").await.unwrap()),
        ("1".into(), "1".into())
    );
    let Cluster { mut nodes, peers } = cluster;
    // Node `a` ends without a goodbye, as a killed process does.
    drop((nodes.remove(0), peers));
    eventually("a is unreachable for all", || nodes.iter().all(|n| n.members().iter().any(|m| !m.reachable))).await;

    let written = groups[2].remove("key-1").await.expect("c, which drains, writes for its zone");
    assert_eq!(written.pending().iter().map(ToString::to_string).collect::<Vec<_>>(), ["a"]);
    for group in [&groups[1], &groups[3]] {
        assert_eq!(group.get("key-1").await.unwrap(), "2");
    }
}

/// Checks that a node without a zone cannot build a group with one owner per zone, and that the error names
/// `with_zone`.
#[tokio::test]
async fn per_zone_group_without_a_zone_is_refused() {
    let node = Node::builder().start().await.unwrap();
    let group = node.group::<String>("data").capacity_bytes(1 << 20).per_zone();
    let error = group.loader_with(Loads::default(), numbered).build().expect_err("refused");
    assert!(error.is_config() && error.to_string().contains("with_zone"), "{error}");
}
