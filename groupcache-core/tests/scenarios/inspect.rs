//! Introspection: the explanation of a key, the entries in memory, evictions, and latencies.

use std::time::Duration;

use groupcache_core::{
    BoxError, Group, GroupBuilder, Loaded, Node,
    inspect::{EvictionReason, LoadResult},
    loader::LoadReason,
};
use tokio::time::{sleep, timeout};

use crate::support::{Cluster, Loads, PATIENCE, eventually};

const MINUTE: Duration = Duration::from_secs(60);

/// Loads a key in 20 ms. Keys that begin with `none-` are not found.
async fn load(key: &str) -> Result<Loaded<String>, BoxError> {
    sleep(Duration::from_millis(20)).await;
    Ok(match key.strip_prefix("none-") {
        Some(_) => Loaded::not_found(),
        None => Loaded::new(format!("value of {key}")),
    })
}

/// Returns a builder of the group `names` with a time to live of one minute.
fn names(node: &Node) -> GroupBuilder<String> {
    node.group("names").capacity_bytes(4 << 20).time_to_live(MINUTE).jitter(0.0).loader(load)
}

/// Starts one node with the group `names`.
async fn alone(build: impl FnOnce(GroupBuilder<String>) -> GroupBuilder<String>) -> (Node, Group<String>) {
    let node = Node::builder().start().await.unwrap();
    let group = build(names(&node)).build().unwrap();
    (node, group)
}

/// Checks that two nodes explain a key with the same owners and candidates, and that they skip an owner without the
/// group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explanations_agree_and_name_the_candidate_to_ask() {
    let cluster = Cluster::start(3).await;
    let groups: Vec<_> = cluster.nodes[..2].iter().map(|node| names(node).build().unwrap()).collect();
    eventually("both nodes know the group of each other", || {
        cluster.nodes[..2].iter().all(|n| n.peers_with_group("names") == 1)
    })
    .await;
    let key = cluster.key_of(&groups, 2); // on a node without the group
    let explanations = [groups[0].inspect().explain(&key), groups[1].inspect().explain(&key)];
    for explained in &explanations {
        assert_eq!(explained.candidates.len(), 3);
        assert_eq!((explained.owners, explained.point), (3, explanations[0].point));
        assert_eq!(explained.fingerprint, cluster.nodes[0].fingerprint());
        let ids = |explained: &groupcache_core::inspect::KeyPlacement| -> Vec<_> {
            explained.candidates.iter().map(|candidate| candidate.id.clone()).collect()
        };
        assert_eq!(ids(explained), ids(&explanations[0]));
        assert_eq!(explained.candidates[0].id, groups[0].inspect().owner_of(&key));
        assert!(explained.candidates.iter().all(|candidate| candidate.reachable));
        assert!(!explained.candidates[0].has_group);
        assert_eq!(explained.asked(), Some(&explained.candidates[1]), "the owner has no such group");
    }
    let (first, then) = (&explanations[0].candidates[1].id, &explanations[0].candidates[2].id);
    let text = explanations[0].to_string();
    assert!(text.starts_with("c (without the group) owns it: the first of 3 owners from point "), "{text}");
    let asks = if first.as_str() == "a" { "loads it here".to_owned() } else { format!("asks {first}") };
    assert!(text.contains(&format!("a get that misses {asks}; then {first}")), "{text}");
    assert!(text.contains(&format!(", {then}")), "{text}");
    cluster.shutdown().await;
}

/// Checks that `local_entries` lists values and negative entries with age, remaining freshness and weight, and at most
/// as many as requested.
#[tokio::test(start_paused = true)]
async fn local_entries_have_their_age_and_weight() {
    let (_node, group) = alone(|group| group.negative_time_to_live(MINUTE / 2)).await;
    for key in ["key-1", "none-1"] {
        let _ = group.get(key).await;
    }
    sleep(Duration::from_secs(10)).await;
    group.set("key-2", "seventh").await.unwrap().log_pending();
    let mut entries = group.inspect().local_entries(10);
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    let listed: Vec<_> = entries.iter().map(|entry| (entry.key.as_str(), entry.negative, entry.replica)).collect();
    assert_eq!(listed, [("key-1", false, false), ("key-2", false, false), ("none-1", true, false)]);
    assert_eq!(entries.iter().map(|entry| entry.bytes).sum::<u64>(), group.inspect().bytes());
    // Times are exact to a few ticks of the clock.
    let is_about =
        |actual: Duration, expected: u64| actual.abs_diff(Duration::from_secs(expected)) < Duration::from_millis(60);
    for (entry, age, fresh_for) in [(&entries[0], 10, 50), (&entries[1], 0, 60), (&entries[2], 10, 20)] {
        assert!(is_about(entry.age, age) && is_about(entry.fresh_for.unwrap(), fresh_for), "{entry:?}");
    }
    assert_eq!(group.inspect().local_entries(2).len(), 2);
    sleep(MINUTE / 2).await;
    let negative = group.inspect().local_entries(10).into_iter().find(|entry| entry.negative);
    assert!(
        negative.is_none_or(|entry| entry.fresh_for == Some(Duration::ZERO)),
        "the negative entry is expired or already swept"
    );
}

/// Checks that readers of evictions receive each entry that left for want of room or because of its age, and none that
/// a call has removed.
#[tokio::test(start_paused = true)]
async fn evictions_report_entries_removed_for_room_or_age() {
    let (_node, group) = alone(|group| group.capacity_bytes(40 << 10).replicas(false)).await;
    for n in 0..100 {
        group.get(&format!("early-{n}")).await.unwrap(); // before the first reader
    }
    let before = group.stats().evictions;
    let mut evictions = group.inspect().evictions();
    let mut other_reader = group.inspect().evictions();
    for n in 0..100 {
        // A load adds the first entry, a write the second.
        group.get(&format!("key-{n}")).await.unwrap();
        group.set(&format!("set-{n}"), "x".repeat(100)).await.unwrap().log_pending();
    }
    group.remove("key-99").await.unwrap().log_pending();
    let for_room = group.stats().evictions - before;
    assert!(for_room > 100, "{for_room}");
    let left = group.inspect().entries() as u64;
    sleep(MINUTE).await;
    eventually("the sweep removes the expired entries", || group.stats().expired == left).await;
    let mut evicted = Vec::new();
    for _ in 0..for_room + left {
        evicted.push(timeout(PATIENCE, evictions.next()).await.expect("an eviction").expect("the group exists"));
    }
    let (room, age): (Vec<_>, Vec<_>) = evicted.iter().partition(|entry| entry.why == EvictionReason::Room);
    assert_eq!((room.len() as u64, age.len() as u64), (for_room, left));
    assert!(evicted.iter().all(|entry| entry.bytes > 100 && !entry.replica && &*entry.key != "key-99"));
    assert_eq!(
        timeout(Duration::from_secs(1), other_reader.next()).await.expect("the same eviction").unwrap(),
        evicted[0]
    );
    assert!(timeout(MINUTE, evictions.next()).await.is_err(), "no further evictions");
    assert_eq!(evictions.lost(), 0);
}

/// Checks that an entry which a get finds expired, between two sweeps, is reported as evicted because of its age.
#[tokio::test(start_paused = true)]
async fn entry_found_expired_by_a_get_is_reported_evicted() {
    let (loads, node) = (Loads::default(), Node::builder().start().await.unwrap());
    let once = async |loads: &Loads, key: &str| match loads.begin(key) {
        1 => Ok("seventh".to_owned()),
        _ => Err(BoxError::from("the source is down")),
    };
    // The time to live ends between two sweeps.
    let time_to_live = Duration::from_secs(55);
    let group = node.group::<String>("names").capacity_bytes(1 << 20).time_to_live(time_to_live).jitter(0.0);
    let group = group.loader_with(loads, once).build().unwrap();
    let mut evictions = group.inspect().evictions();
    group.get("key-1").await.unwrap();
    sleep(time_to_live + Duration::from_millis(20)).await;
    assert!(group.get("key-1").await.unwrap_err().is_load_failed());
    let evicted = timeout(PATIENCE, evictions.next()).await.expect("an eviction").expect("the group exists");
    assert_eq!((&*evicted.key, evicted.why, group.stats().expired), ("key-1", EvictionReason::Age, 1));
}

/// Checks that a stream of evictions ends when its group is removed or its node is shut down, and that other groups go
/// on.
#[tokio::test(start_paused = true)]
async fn evictions_end_with_their_group_or_node() {
    let (node, group) = alone(|group| group).await;
    let other = node.group::<String>("other").capacity_bytes(1 << 20).loader(load).build().unwrap();
    let (mut of_group, mut of_other) = (group.inspect().evictions(), other.inspect().evictions());
    assert!(node.remove_group("names"));
    assert_eq!(timeout(PATIENCE, of_group.next()).await.expect("the stream ends"), None);
    assert!(timeout(PATIENCE, of_other.next()).await.is_err(), "the stream of the other group continues");
    node.shutdown().await.unwrap();
    for evictions in [of_group, of_other, group.inspect().evictions(), other.inspect().evictions()].iter_mut() {
        for _ in 0..2 {
            assert_eq!(timeout(PATIENCE, evictions.next()).await.expect("the stream has ended"), None);
        }
    }
}

/// Checks that a slow reader receives the 4,096 queued evictions and the number of those that it lost.
#[tokio::test(start_paused = true)]
async fn slow_reader_of_evictions_gets_the_number_of_lost() {
    let (_node, group) = alone(|group| group.capacity_bytes(20 << 10).replicas(false)).await;
    let mut evictions = group.inspect().evictions();
    for n in 0..6000 {
        group.set(&format!("set-{n}"), "x").await.unwrap().log_pending();
    }
    let all = group.stats().evictions;
    let mut received = 0;
    while timeout(Duration::from_millis(100), evictions.next()).await.is_ok() {
        received += 1;
    }
    assert_eq!((received, received + evictions.lost()), (4096, all));
}

/// Checks that the load is timed at the owner and the response of the peer at the requester.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latencies_of_loads_and_peer_responses_are_recorded() {
    let cluster = Cluster::start(2).await;
    let groups = cluster.group(|_, node| names(node)).await;
    let key = cluster.key_of(&groups, 1);
    groups[0].get(&key).await.unwrap();
    let (loads, responses) = (groups[1].inspect().load_latencies(), groups[0].inspect().peer_latencies());
    assert_eq!((loads.count(), responses.count()), (1, 1));
    assert!(loads.quantile(0.5) >= Duration::from_millis(20), "{loads:?}");
    assert!(responses.sum() >= loads.sum(), "{responses:?} include {loads:?}");
    assert_eq!((groups[0].inspect().load_latencies().count(), groups[1].inspect().peer_latencies().count()), (0, 0));
    cluster.shutdown().await;
}

/// Checks that running loads have their age, the oldest first, and that ended loads have their reason and their result.
#[tokio::test(start_paused = true)]
async fn loads_are_listed_while_they_run_and_after() {
    let (node, group) = alone(|group| group.negative_time_to_live(MINUTE)).await;
    assert!(node.group_loads("other").is_none());
    let running = |node: &Node| node.group_loads("names").unwrap().running;
    let get = |key: &'static str| {
        let group = group.clone();
        tokio::spawn(async move { group.get(key).await })
    };
    let first = get("key-1");
    sleep(Duration::from_millis(10)).await;
    let second = get("none-1");
    eventually("both loads run", || running(&node).len() == 2).await;
    let loads = running(&node);
    assert_eq!((&*loads[0].key, &*loads[1].key), ("key-1", "none-1"));
    assert!(loads[0].age >= Duration::from_millis(10), "{loads:?}");
    first.await.unwrap().unwrap();
    assert!(second.await.unwrap().unwrap_err().is_not_found());
    let loads = node.group_loads("names").unwrap();
    assert!(loads.running.is_empty(), "{loads:?}");
    let recent: Vec<_> = loads.recent.iter().map(|load| (&*load.key, load.reason, load.result, load.is_kept)).collect();
    let expected = [
        ("none-1", LoadReason::Owner, LoadResult::NotFound, true),
        ("key-1", LoadReason::Owner, LoadResult::Value, true),
    ];
    assert_eq!(recent, expected);
    assert!(loads.recent.iter().all(|load| load.took >= Duration::from_millis(10)), "{loads:?}");
    for n in 0..300 {
        group.get(&format!("more-{n}")).await.unwrap();
    }
    let recent = node.group_loads("names").unwrap().recent;
    assert_eq!((recent.len(), &*recent[0].key, &*recent[255].key), (256, "more-299", "more-44"));
}
