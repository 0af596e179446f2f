//! Groups whose keys are shared out in each zone by itself: values do not cross zones, writes do.

use std::time::Duration;

use groupcache_core::{BoxError, Group, Node, NodeBuilder};
use tokio::task::JoinSet;

use crate::support::{self, Cluster, Loads, eventually, identity};

/// Nodes `a` and `c` in one zone, `b` and `d` in another.
async fn two_zones() -> Cluster {
    let build = |at: usize, builder: NodeBuilder| {
        builder.identity(identity(&support::name(at)).with_zone(["east", "west"][at % 2]).unwrap())
    };
    Cluster::start_each(4, build).await
}

async fn numbered(loads: &Loads, key: &str) -> Result<String, BoxError> {
    loads.begin(key);
    tokio::time::sleep(Duration::from_millis(20)).await;
    Ok(loads.of(key).to_string())
}

async fn groups(cluster: &Cluster, loads: &Loads) -> Vec<Group<String>> {
    let group = |node: &Node| node.group::<String>("data").capacity_bytes(8 << 20).per_zone();
    cluster.group(|_, node| group(node).loader_with(loads.clone(), numbered)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_zone_loads_once_and_asks_no_other() {
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
        assert_eq!(loads.of(&key), 2, "once in each zone");
        for (at, group) in groups.iter().enumerate() {
            let explained = group.explain(&key);
            let zone = [["a", "c"], ["b", "d"]][at % 2];
            assert!(explained.candidates.iter().all(|candidate| zone.contains(&candidate.id.as_str())), "{explained}");
            assert_eq!((explained.owners, explained.candidates.len()), (2, 2));
            assert_eq!(group.owner_of(&key), explained.candidates[0].id);
        }
        assert_eq!(groups[0].owner_of(&key), groups[2].owner_of(&key));
    }
    let owned: Vec<_> =
        groups.iter().flat_map(|group| group.local_entries(100)).filter(|entry| !entry.is_borrowed).collect();
    assert_eq!(owned.len(), 100, "in each zone at one node");
    assert!(owned.iter().all(|entry| entry.fresh_for.is_none()), "kept as an owner keeps it");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_own_a_key_asks_the_owner_of_its_zone() {
    let (cluster, loads) = (two_zones().await, Loads::default());
    let groups = groups(&cluster, &loads).await;
    for n in 0..50 {
        let key = format!("key-{n}");
        let owner = cluster.owner(&groups, &key); // as the first node sees it
        let other = (owner + 2) % 4;
        let served = groups[owner].stats().served;
        groups[other].get(&key).await.unwrap();
        assert_eq!((loads.of(&key), groups[owner].stats().served), (1, served + 1));
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_heard_in_all_zones() {
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
        assert!(written.is_complete() && !written.views_differed(), "{written:?}");
        let before = loads.of(&key);
        for group in &groups {
            let value: u64 = group.get(&key).await.unwrap().parse().unwrap();
            assert!(value > before, "{key}: load {value} began before the write");
        }
    }
    let cleared = groups[1].clear().await.unwrap();
    assert!(cleared.is_complete());
    assert_eq!(groups.iter().map(Group::entries).sum::<usize>(), 0);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_that_loses_all_its_owners_asks_the_others() {
    let (cluster, loads) = (two_zones().await, Loads::default());
    let groups = groups(&cluster, &loads).await;
    cluster.nodes[2].shutdown().await.unwrap();
    eventually("a owns all of its zone", || groups[0].explain("key-1").owners == 1).await;
    cluster.nodes[0].drain().await.unwrap();
    eventually("nobody of the zone owns anything", || groups[0].explain("key-1").owners == 2).await;
    assert_eq!(groups[3].get("key-1").await.unwrap(), "1");
    assert_eq!(groups[0].get("key-1").await.unwrap(), "1", "of the other zone");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_in_a_zone_whose_owners_cannot_be_reached_is_heard_in_the_others() {
    let (cluster, loads) = (two_zones().await, Loads::default());
    let groups = groups(&cluster, &loads).await;
    cluster.nodes[2].drain().await.unwrap();
    eventually("a owns all of its zone", || groups[2].explain("key-1").owners == 1).await;
    assert_eq!(
        (groups[1].get("key-1").await.unwrap(), groups[3].get("key-1").await.unwrap()),
        ("1".into(), "1".into())
    );
    let Cluster { mut nodes, peers } = cluster;
    // As a process that was killed does.
    drop((nodes.remove(0), peers));
    eventually("its absence is noticed", || nodes.iter().all(|n| n.members().iter().any(|m| !m.is_reachable))).await;

    let written = groups[2].remove("key-1").await.expect("c acts for its zone");
    assert_eq!(written.unreached().iter().map(ToString::to_string).collect::<Vec<_>>(), ["a"]);
    for group in [&groups[1], &groups[3]] {
        assert_eq!(group.get("key-1").await.unwrap(), "2");
    }
}

#[tokio::test]
async fn a_node_without_a_zone_cannot_have_such_a_group() {
    let node = Node::builder().start().await.unwrap();
    let group = node.group::<String>("data").capacity_bytes(1 << 20).per_zone();
    let error = group.loader_with(Loads::default(), numbered).build().expect_err("refused");
    assert!(error.is_config() && error.to_string().contains("with_zone"), "{error}");
}
