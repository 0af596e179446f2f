//! Results across nodes (P5): the value or error of the owner is the result at every node, and no other node loads the
//! key.

use std::{sync::Arc, time::Duration};

use crate::support::{Cluster, Loads, PATIENCE, eventually};
use groupcache_core::{BoxError, Error, Group, Json, Limits, LoadError, Loaded, Value, bytes::Bytes};
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, time::timeout};

/// Loads a key with the outcome that its prefix names.
async fn by_key(loads: &Loads, key: &str) -> Result<Loaded<String>, LoadError> {
    let number = loads.begin(key);
    match key.split('-').next() {
        Some("missing") => Ok(Loaded::not_found()),
        Some("transient") => Err(LoadError::transient("the database is away")),
        Some("permanent") => Err("the row is broken".into()),
        Some("large") => Ok(Loaded::new("x".repeat(2 << 20))),
        Some("fleeting") => Ok(Loaded::new(number.to_string()).do_not_keep()),
        Some("brief") => Ok(Loaded::new(number.to_string()).time_to_live(Duration::from_millis(200))),
        _ => Ok(Loaded::new(number.to_string())),
    }
}

/// Starts three nodes with the group `data`.
async fn start_three(loads: &Loads) -> (Cluster, Vec<Group<String>>) {
    let cluster = Cluster::start(3).await;
    let build = |_: usize, node: &groupcache_core::Node| {
        node.group::<String>("data").capacity_bytes(8 << 20).loader_with(loads.clone(), by_key)
    };
    let groups = cluster.group(build).await;
    (cluster, groups)
}

/// Returns a key with this prefix that belongs to node `owner`.
fn key(cluster: &Cluster, groups: &[Group<String>], what: &str, owner: usize) -> String {
    (0..).map(|n| format!("{what}-{n}")).find(|key| cluster.owner(groups, key) == owner).unwrap()
}

/// Checks that each kind of loader error is the result at every node, costs one load at the owner per get, names the
/// owner as the peer, and contains no key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loader_error_is_the_result_at_every_node() {
    let loads = Loads::default();
    let (cluster, groups) = start_three(&loads).await;
    type Check = fn(&Error) -> bool;
    let cases: [(&str, Check); 4] = [
        ("missing", |e| e.is_not_found() && !e.is_load_failed() && !e.is_transient()),
        ("transient", |e| e.is_load_failed() && e.is_transient()),
        ("permanent", |e| e.is_load_failed() && !e.is_transient()),
        ("large", |e| e.is_too_large()),
    ];
    for (what, is_expected) in cases {
        let key = key(&cluster, &groups, what, 1);
        for (at, group) in groups.iter().enumerate() {
            let before = loads.of(&key);
            let error = group.get(&key).await.expect_err(what);
            assert!(is_expected(&error), "{what} from node {at}: {error:?}");
            assert_eq!(loads.of(&key), before + 1, "{what}: one load per get");
            assert_eq!(error.peer(), (at != 1).then_some("b"), "{what}: the error names the owner");
            assert!(!format!("{error:?}").contains(&key), "the error contains no key");
        }
    }
    let key = key(&cluster, &groups, "transient", 1);
    let error = groups[0].get(&key).await.expect_err("the load fails");
    assert!(error.to_string().contains("the database is away"), "the cause crosses the wire: {error}");
    assert!(groups[0].get_opt(&self::key(&cluster, &groups, "missing", 1)).await.unwrap().is_none());
    cluster.shutdown().await;
}

/// Checks that 1,000 callers at five nodes share the error of one load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_at_five_nodes_share_one_load_error() {
    let cluster = Cluster::start(5).await;
    let loads = Loads::default();
    let failing = async |loads: &Loads, key: &str| {
        loads.begin(key);
        tokio::time::sleep(Duration::from_millis(300)).await;
        Err::<String, BoxError>("no route to the database".into())
    };
    let build = |_: usize, node: &groupcache_core::Node| {
        node.group::<String>("data").capacity_bytes(1 << 20).loader_with(loads.clone(), failing)
    };
    let groups = cluster.group(build).await;
    let mut callers = tokio::task::JoinSet::new();
    for group in &groups {
        for _ in 0..200 {
            let group = group.clone();
            callers.spawn(async move { group.get("key").await });
        }
    }
    assert!(callers.join_all().await.iter().all(|answer| answer.as_ref().is_err_and(Error::is_load_failed)));
    assert_eq!(loads.total(), 1);
    cluster.shutdown().await;
}

/// Checks that a value with a time to live from its loader expires, and that a value marked `do_not_keep` is returned
/// and not cached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loader_sets_the_time_to_live_of_a_value() {
    let loads = Loads::default();
    let (cluster, groups) = start_three(&loads).await;
    let [kept, brief, fleeting] = ["kept", "brief", "fleeting"].map(|what| key(&cluster, &groups, what, 2));
    for group in &groups {
        group.get(&kept).await.unwrap();
        group.get(&fleeting).await.unwrap();
    }
    assert_eq!((loads.of(&kept), loads.of(&fleeting)), (1, 3), "one value is cached, the other is not");
    let first = groups[0].get(&brief).await.unwrap();
    let expires = async {
        while groups[0].get(&brief).await.unwrap() == first {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, expires).await.expect("the value expires");
    assert_eq!(loads.of(&brief), 2);
    cluster.shutdown().await;
}

/// Checks that an owner without room for another load refuses a request as overloaded, and that the requester does not
/// load the key itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overloaded_owner_refuses_without_a_fallback_load() {
    let mut limits = Limits::default();
    (limits.max_loads, limits.max_queued_loads) = (1, 1);
    let cluster = Cluster::start_with(2, limits).await;
    let (gate, loads) = (Arc::new(Semaphore::new(0)), Loads::default());
    let load = async |(gate, loads): &(Arc<Semaphore>, Loads), key: &str| {
        loads.begin(key);
        gate.acquire().await?.forget();
        Ok::<_, BoxError>(key.to_owned())
    };
    let state = (Arc::clone(&gate), loads.clone());
    let build = |_: usize, node: &groupcache_core::Node| {
        node.group::<String>("data").capacity_bytes(1 << 20).loader_with(state.clone(), load)
    };
    let groups = cluster.group(build).await;
    let mut keys = (0..).map(|n| format!("key-{n}")).filter(|key| cluster.owner(&groups, key) == 1);
    let mut get = || {
        let (group, key) = (groups[0].clone(), keys.next().unwrap());
        async move { group.get(&key).await }
    };
    let waiting = [tokio::spawn(get()), tokio::spawn(get())];
    eventually("one load runs and one waits at the owner", || crate::support::loads_of(&cluster.nodes[1]) == (1, 1))
        .await;
    let refused = get().await.expect_err("no room");
    assert!(refused.is_overloaded() && refused.peer() == Some("b"), "{refused:?}");
    assert_eq!(loads.total(), 1, "no fallback load");
    gate.add_permits(2);
    for waiter in waiting {
        waiter.await.unwrap().expect("the accepted requests are served");
    }
    cluster.shutdown().await;
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct User {
    name: String,
    age: u8,
}

/// Checks that a value is equal at both nodes after one load at its owner.
async fn assert_crosses_the_wire<V: Value + PartialEq + std::fmt::Debug>(value: V) {
    let cluster = Cluster::start(2).await;
    let build = |_: usize, node: &groupcache_core::Node| {
        let load = async |value: &V, _: &str| Ok::<V, BoxError>(value.clone());
        node.group::<V>("data").capacity_bytes(1 << 20).loader_with(value.clone(), load)
    };
    let groups = cluster.group(build).await;
    let key = cluster.key_of(&groups, 1);
    for _ in 0..2 {
        assert_eq!(groups[0].get(&key).await.unwrap(), value);
        assert_eq!(groups[1].get(&key).await.unwrap(), value);
    }
    assert_eq!((groups[0].stats().loads, groups[1].stats().loads), (0, 1));
    cluster.shutdown().await;
}

/// Checks that values of each provided type arrive unchanged at another node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_each_kind_cross_the_wire() {
    assert_crosses_the_wire(Bytes::from_static(b"\x00\xff")).await;
    assert_crosses_the_wire(Bytes::new()).await;
    assert_crosses_the_wire("größer".to_owned()).await;
    assert_crosses_the_wire(Json::new(User { name: "Ada".into(), age: 36 })).await;
}

/// Checks that the keys of a group that one node lacks are loaded once each by their next candidates, and that gets of
/// a removed group fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn group_of_some_nodes_is_served_by_those_nodes() {
    let cluster = Cluster::start(3).await;
    let loads = Loads::default();
    let build = |at: usize| {
        let node = &cluster.nodes[at];
        node.group::<String>("data").capacity_bytes(1 << 20).loader_with(loads.clone(), by_key).build().unwrap()
    };
    let groups = [build(0), build(1)];
    eventually("both nodes know the group of each other", || {
        cluster.nodes[..2].iter().all(|node| node.peers_with_group("data") == 1)
    })
    .await;
    for n in 0..60 {
        let key = format!("key-{n}");
        let values = [groups[0].get(&key).await.unwrap(), groups[1].get(&key).await.unwrap()];
        assert!(values.iter().all(|value| !value.is_empty()));
    }
    // A third of the keys belongs to the node without the group. A successor loads these keys for both nodes.
    assert_eq!(loads.total(), 60, "loads of 60 keys");
    assert!(cluster.nodes[0].remove_group("data") && !cluster.nodes[0].remove_group("data"));
    assert!(groups[0].get("key-1").await.expect_err("removed").is_unknown_group());
    assert!(groups[1].get("key-1").await.is_ok());
    cluster.shutdown().await;
}
