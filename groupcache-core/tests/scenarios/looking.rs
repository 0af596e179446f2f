//! What tools are told: who owns a key and why, what is in memory, what leaves it, how long things took.

use std::time::Duration;

use groupcache_core::{BoxError, Eviction, Group, GroupBuilder, Loaded, Node};
use tokio::time::{sleep, timeout};

use crate::support::{Cluster, Loads, PATIENCE, eventually};

const MINUTE: Duration = Duration::from_secs(60);

async fn load(key: &str) -> Result<Loaded<String>, BoxError> {
    sleep(Duration::from_millis(20)).await;
    Ok(match key.strip_prefix("none-") {
        Some(_) => Loaded::not_found(),
        None => Loaded::new(format!("value of {key}")),
    })
}

fn names(node: &Node) -> GroupBuilder<String> {
    node.group("names").capacity_bytes(4 << 20).time_to_live(MINUTE).jitter(0.0).loader(load)
}

async fn alone(build: impl FnOnce(GroupBuilder<String>) -> GroupBuilder<String>) -> (Node, Group<String>) {
    let node = Node::builder().start().await.unwrap();
    let group = build(names(&node)).build().unwrap();
    (node, group)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_explain_a_key_alike_and_say_whom_they_would_ask() {
    let cluster = Cluster::start(3).await;
    let groups: Vec<_> = cluster.nodes[..2].iter().map(|node| names(node).build().unwrap()).collect();
    eventually("both know of each other's group", || {
        cluster.nodes[..2].iter().all(|n| n.peers_with_group("names") == 1)
    })
    .await;
    let key = cluster.key_of(&groups, 2); // on a node without the group
    let told = [groups[0].explain(&key), groups[1].explain(&key)];
    for explained in &told {
        assert_eq!(explained.candidates.len(), 3);
        assert_eq!((explained.owners, explained.point), (3, told[0].point));
        assert_eq!(explained.fingerprint, cluster.nodes[0].fingerprint());
        let ids = |explained: &groupcache_core::Explained| -> Vec<_> {
            explained.candidates.iter().map(|candidate| candidate.id.clone()).collect()
        };
        assert_eq!(ids(explained), ids(&told[0]));
        assert_eq!(explained.candidates[0].id, groups[0].owner_of(&key));
        assert!(explained.candidates.iter().all(|candidate| candidate.is_reachable));
        assert!(!explained.candidates[0].has_group);
        assert_eq!(explained.asked(), Some(&explained.candidates[1]), "the owner has no such group");
    }
    let (first, then) = (&told[0].candidates[1].id, &told[0].candidates[2].id);
    let says = told[0].to_string();
    assert!(says.starts_with("c (without the group) owns it: the first of 3 owners from point "), "{says}");
    let asks = if first.as_str() == "a" { "loads it here".to_owned() } else { format!("asks {first}") };
    assert!(says.contains(&format!("a get that misses {asks}; then {first}")), "{says}");
    assert!(says.contains(&format!(", {then}")), "{says}");
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_in_memory_is_listed_with_its_age_and_weight() {
    let (_node, group) = alone(|group| group.negative_time_to_live(MINUTE / 2)).await;
    for key in ["key-1", "none-1"] {
        let _ = group.get(key).await;
    }
    sleep(Duration::from_secs(10)).await;
    group.set("key-2", "a value").await.unwrap().log_unreached();
    let mut entries = group.local_entries(10);
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    let told: Vec<_> = entries.iter().map(|entry| (entry.key.as_str(), entry.is_nothing, entry.is_borrowed)).collect();
    assert_eq!(told, [("key-1", false, false), ("key-2", false, false), ("none-1", true, false)]);
    assert_eq!(entries.iter().map(|entry| entry.bytes).sum::<u64>(), group.bytes());
    // To the tick.
    let is_about =
        |told: Duration, expected: u64| told.abs_diff(Duration::from_secs(expected)) < Duration::from_millis(60);
    for (entry, age, fresh_for) in [(&entries[0], 10, 50), (&entries[1], 0, 60), (&entries[2], 10, 20)] {
        assert!(is_about(entry.age, age) && is_about(entry.fresh_for.unwrap(), fresh_for), "{entry:?}");
    }
    assert_eq!(group.local_entries(2).len(), 2);
    sleep(MINUTE / 2).await;
    let negative = group.local_entries(10).into_iter().find(|entry| entry.is_nothing);
    assert!(negative.is_none_or(|entry| entry.fresh_for == Some(Duration::ZERO)), "expired, if not swept");
}

#[tokio::test(start_paused = true)]
async fn what_leaves_by_itself_is_told_and_nothing_else_is() {
    let (_node, group) = alone(|group| group.capacity_bytes(40 << 10).hot_copies(false)).await;
    for n in 0..100 {
        group.get(&format!("early-{n}")).await.unwrap(); // nobody listens yet
    }
    let before = group.stats().evictions;
    let mut evictions = group.evictions();
    let mut other_reader = group.evictions();
    for n in 0..100 {
        // By a load, and by a write.
        group.get(&format!("key-{n}")).await.unwrap();
        group.set(&format!("set-{n}"), "x".repeat(100)).await.unwrap().log_unreached();
    }
    group.remove("key-99").await.unwrap().log_unreached();
    let for_room = group.stats().evictions - before;
    assert!(for_room > 100, "{for_room}");
    let left = group.entries() as u64;
    sleep(MINUTE).await;
    eventually("the sweep takes what has expired", || group.stats().expired == left).await;
    let mut told = Vec::new();
    for _ in 0..for_room + left {
        told.push(timeout(PATIENCE, evictions.next()).await.expect("told").expect("the group is there"));
    }
    let (room, age): (Vec<_>, Vec<_>) = told.iter().partition(|evicted| evicted.why == Eviction::Room);
    assert_eq!((room.len() as u64, age.len() as u64), (for_room, left));
    assert!(told.iter().all(|evicted| evicted.bytes > 100 && !evicted.is_borrowed && &*evicted.key != "key-99"));
    assert_eq!(timeout(Duration::from_secs(1), other_reader.next()).await.expect("told too").unwrap(), told[0]);
    assert!(timeout(MINUTE, evictions.next()).await.is_err(), "nothing more");
    assert_eq!(evictions.lost(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_was_asked_for_when_it_had_expired_is_told_of_too() {
    let (loads, node) = (Loads::default(), Node::builder().start().await.unwrap());
    let once = async |loads: &Loads, key: &str| match loads.begin(key) {
        1 => Ok("a value".to_owned()),
        _ => Err(BoxError::from("the source is down")),
    };
    // Between two sweeps.
    let life = Duration::from_secs(55);
    let group = node.group::<String>("names").capacity_bytes(1 << 20).time_to_live(life).jitter(0.0);
    let group = group.loader_with(loads, once).build().unwrap();
    let mut evictions = group.evictions();
    group.get("key-1").await.unwrap();
    sleep(life + Duration::from_millis(20)).await;
    assert!(group.get("key-1").await.unwrap_err().is_load_failed());
    let evicted = timeout(PATIENCE, evictions.next()).await.expect("told").expect("the group is there");
    assert_eq!((&*evicted.key, evicted.why, group.stats().expired), ("key-1", Eviction::Age, 1));
}

#[tokio::test(start_paused = true)]
async fn evictions_end_with_their_group_or_node() {
    let (node, group) = alone(|group| group).await;
    let other = node.group::<String>("other").capacity_bytes(1 << 20).loader(load).build().unwrap();
    let (mut of_group, mut of_other) = (group.evictions(), other.evictions());
    assert!(node.remove_group("names"));
    assert_eq!(timeout(PATIENCE, of_group.next()).await.expect("it ends"), None);
    assert!(timeout(PATIENCE, of_other.next()).await.is_err(), "the other group is there");
    node.shutdown().await.unwrap();
    for evictions in [of_group, of_other, group.evictions(), other.evictions()].iter_mut() {
        for _ in 0..2 {
            assert_eq!(timeout(PATIENCE, evictions.next()).await.expect("it has ended"), None);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_evictions_who_is_slow_is_told_how_many_it_lost() {
    let (_node, group) = alone(|group| group.capacity_bytes(20 << 10).hot_copies(false)).await;
    let mut evictions = group.evictions();
    for n in 0..6000 {
        group.set(&format!("set-{n}"), "x").await.unwrap().log_unreached();
    }
    let all = group.stats().evictions;
    let mut told = 0;
    while timeout(Duration::from_millis(100), evictions.next()).await.is_ok() {
        told += 1;
    }
    assert_eq!((told, told + evictions.lost()), (4096, all));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_and_answers_of_peers_are_timed() {
    let cluster = Cluster::start(2).await;
    let groups = cluster.group(|_, node| names(node)).await;
    let key = cluster.key_of(&groups, 1);
    groups[0].get(&key).await.unwrap();
    let (loads, answers) = (groups[1].load_latencies(), groups[0].peer_latencies());
    assert_eq!((loads.count(), answers.count()), (1, 1));
    assert!(loads.quantile(0.5) >= Duration::from_millis(20), "{loads:?}");
    assert!(answers.sum() >= loads.sum(), "{answers:?} with {loads:?} in it");
    assert_eq!((groups[0].load_latencies().count(), groups[1].peer_latencies().count()), (0, 0));
    cluster.shutdown().await;
}
