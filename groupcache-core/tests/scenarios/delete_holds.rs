//! Delete holds (`RemoveOptions::hold`): for a while loaded values are returned and not cached, because their source
//! lags behind.

use groupcache_core::RemoveOptions;
use std::time::Duration;

use groupcache_core::{BoxError, Group, Node};
use tokio::{task::JoinSet, time::sleep};

use crate::support::{Cluster, Gate, Loads, eventually, gated};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(600);

/// Loads a key in 30 ms. The value is the number of loads of this key so far, this load included.
async fn numbered(loads: &Loads, key: &str) -> Result<String, BoxError> {
    loads.begin(key);
    sleep(Duration::from_millis(30)).await;
    Ok(loads.of(key).to_string())
}

/// Starts one node with the group `data`.
async fn alone(loads: &Loads) -> (Node, Group<String>) {
    let node = Node::builder().start().await.unwrap();
    let group = node.group::<String>("data").capacity_bytes(1 << 20);
    let group = group.loader_with(loads.clone(), numbered).build().unwrap();
    (node, group)
}

/// Checks that values loaded during a hold are not cached, that other keys are, that a shorter hold does not end a
/// longer one, and that values are cached after the hold.
#[tokio::test(start_paused = true)]
async fn loads_are_cached_only_after_the_hold() {
    let loads = Loads::default();
    let (_node, group) = alone(&loads).await;
    assert_eq!(group.get("key-1").await.unwrap(), "1");
    group.remove_with("key-1", RemoveOptions::new().hold(SECOND * 5)).await.unwrap().log_pending();
    for load in ["2", "3"] {
        assert_eq!((group.get("key-1").await.unwrap().as_str(), group.inspect().entries()), (load, 0));
    }
    assert_eq!(group.get("key-2").await.unwrap(), "1");
    assert_eq!(group.get("key-2").await.unwrap(), "1", "another key is cached");

    group.remove_with("key-1", RemoveOptions::new().hold(SECOND)).await.unwrap().log_pending();
    sleep(SECOND * 2).await;
    assert_eq!(group.get("key-1").await.unwrap(), "4");
    assert_eq!(group.get("key-1").await.unwrap(), "5", "a shorter hold does not end a longer one");
    sleep(SECOND * 5).await;
    for _ in 0..2 {
        assert_eq!(group.get("key-1").await.unwrap(), "6", "the hold is over");
    }
}

/// Checks that a load that begins during a hold and ends after it is not cached, and that the next load is.
#[tokio::test(start_paused = true)]
async fn load_begun_during_a_hold_is_not_cached_after_it() {
    let gate = Gate::default();
    let node = Node::builder().start().await.unwrap();
    let group = node.group::<String>("data").capacity_bytes(1 << 20);
    let group = group.loader_with(gate.clone(), async |gate: &Gate, key: &str| gated(gate, key).await).build().unwrap();
    group.remove_with("key-1", RemoveOptions::new().hold(SECOND * 25)).await.unwrap().log_pending();
    sleep(SECOND * 24).await;
    let getter = tokio::spawn({
        let group = group.with_deadline(LONG);
        async move { group.get("key-1").await }
    });
    gate.begun(1).await;
    // The sweep, which runs every 10 s, must not forget the hold while this load runs.
    sleep(SECOND * 20).await;
    gate.open();
    assert_eq!(getter.await.unwrap().unwrap(), "key-1 by load 1");
    assert_eq!(group.inspect().entries(), 0);
    assert_eq!(group.get("key-1").await.unwrap(), "key-1 by load 2");
    assert_eq!(group.inspect().entries(), 1);
}

/// Checks that the hold of a caller that asks for an hour ends after ten minutes.
#[tokio::test(start_paused = true)]
async fn hold_of_an_hour_ends_after_ten_minutes() {
    let loads = Loads::default();
    let (_node, group) = alone(&loads).await;
    group.remove_with("key-1", RemoveOptions::new().hold(SECOND * 3600)).await.unwrap().log_pending();
    sleep(SECOND * 590).await;
    assert_eq!((group.get("key-1").await.unwrap().as_str(), group.inspect().entries()), ("1", 0));
    sleep(SECOND * 12).await;
    assert_eq!((group.get("key-1").await.unwrap().as_str(), group.inspect().entries()), ("2", 1));
}

/// Checks that a value set during a hold is cached.
#[tokio::test(start_paused = true)]
async fn set_during_a_hold_is_cached() {
    let loads = Loads::default();
    let (_node, group) = alone(&loads).await;
    group.remove_with("key-1", RemoveOptions::new().hold(LONG)).await.unwrap().log_pending();
    group.set("key-1", "by hand").await.unwrap().log_pending();
    for _ in 0..2 {
        assert_eq!(group.get("key-1").await.unwrap(), "by hand");
    }
    assert_eq!(loads.total(), 0);
}

/// Checks that a value set during a hold is not refreshed before the hold ends, because the source lags behind, and is
/// refreshed afterwards.
#[tokio::test(start_paused = true)]
async fn set_during_a_hold_is_refreshed_only_after_it() {
    let loads = Loads::default();
    let node = Node::builder().start().await.unwrap();
    let group = node.group::<String>("data").capacity_bytes(1 << 20).jitter(0.0);
    let group = group.time_to_live(SECOND * 60).refresh_ahead(SECOND * 10).loader_with(loads.clone(), numbered);
    let group = group.build().unwrap();
    group.remove_with("key-1", RemoveOptions::new().hold(SECOND * 55)).await.unwrap().log_pending();
    group.set("key-1", "by hand").await.unwrap().log_pending();
    sleep(SECOND * 52).await;
    for _ in 0..3 {
        assert_eq!(group.get("key-1").await.unwrap(), "by hand");
        sleep(SECOND).await;
    }
    assert_eq!(loads.total(), 0);
    sleep(SECOND).await;
    group.get("key-1").await.unwrap();
    eventually("the value is refreshed after the hold", || loads.total() == 1).await;
    sleep(SECOND).await;
    assert_eq!((group.get("key-1").await.unwrap().as_str(), loads.total()), ("1", 1));
}

/// Checks that during a hold concurrent gets at all nodes share loads that begin after the remove, and that no node
/// caches a value or a replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hold_applies_at_all_nodes_and_loads_are_shared() {
    let cluster = Cluster::start(3).await;
    let loads = Loads::default();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(loads.clone(), numbered))
        .await;
    for owner in 0..3 {
        let key = cluster.key_of(&groups, owner);
        groups[owner].get(&key).await.unwrap();
        let held = groups[(owner + 1) % 3].remove_with(&key, RemoveOptions::new().hold(LONG)).await.unwrap();
        assert!(held.is_complete(), "{held:?}");
        let before = loads.of(&key);
        let mut callers = JoinSet::new();
        for group in groups.iter().cycle().take(60) {
            let (group, key) = (group.clone(), key.clone());
            callers.spawn(async move { group.get(&key).await.unwrap() });
        }
        let values = callers.join_all().await;
        assert!(values.iter().all(|value| value.parse::<u64>().unwrap() > before), "{values:?} after {before}");
        let shared = loads.of(&key) - before;
        assert!(shared < 30, "60 concurrent callers made {shared} loads");
        // Although the key is hot, no node keeps a replica, and each get has a load of its own.
        for _ in 0..5 {
            for group in &groups {
                let before = loads.of(&key);
                assert_eq!(group.get(&key).await.unwrap(), (before + 1).to_string());
            }
        }
        for group in &groups {
            assert_eq!((group.contains(&key).await.unwrap(), group.inspect().replicas()), (false, 0));
        }
    }
    cluster.shutdown().await;
}

/// Checks that the hold of a key also applies at the successor, once it becomes the owner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hold_applies_at_the_next_owner() {
    let cluster = Cluster::start(3).await;
    let loads = Loads::default();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(loads.clone(), numbered))
        .await;
    // The key is written at a, owned by b, and then by c.
    let follow = |key: &String| {
        let explained = groups[0].inspect().explain(key);
        explained.candidates.iter().map(|candidate| candidate.id.as_str()).eq(["b", "c", "a"])
    };
    let key = (0..).map(|n| format!("key-{n}")).find(follow).expect("there is one");
    groups[0].remove_with(&key, RemoveOptions::new().hold(LONG)).await.unwrap().log_pending();
    cluster.nodes[1].shutdown_within(SECOND).await.unwrap();
    eventually("c owns it", || groups[2].inspect().owner_of(&key).as_str() == "c").await;
    for load in ["1", "2"] {
        assert_eq!(groups[2].get(&key).await.unwrap(), load);
    }
    cluster.shutdown().await;
}
