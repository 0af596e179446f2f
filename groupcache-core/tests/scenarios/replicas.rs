//! Replicas of hot values: they spare the owner, every write drops them, and none outlives its short time to live.

use std::time::Duration;

use crate::support::{self, Cluster, Gate, Loads, PATIENCE, Peers, eventually, identity};
use groupcache_core::{BoxError, Group, GroupBuilder, Node};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// Loads a key. The value is the number of loads of this key so far, this load included.
async fn numbered(loads: &Loads, key: &str) -> Result<String, BoxError> {
    loads.begin(key);
    Ok(loads.of(key).to_string())
}

async fn groups(
    cluster: &Cluster,
    loads: &Loads,
    build: impl Fn(GroupBuilder<String>) -> GroupBuilder<String>,
) -> Vec<Group<String>> {
    let group =
        |node: &Node| node.group::<String>("data").capacity_bytes(64 << 20).loader_with(loads.clone(), numbered);
    cluster.group(|_, node| build(group(node))).await
}

async fn get(group: &Group<String>, key: &str) -> u64 {
    timeout(PATIENCE, group.get(key)).await.expect("in time").expect("a value").parse().unwrap()
}

/// Gets the key until it is hot and the node keeps a replica of it.
async fn warm(group: &Group<String>, key: &str) {
    let replicas = group.inspect().replicas();
    let end = Instant::now() + PATIENCE;
    while group.inspect().replicas() == replicas {
        assert!(Instant::now() < end, "no replica of {key}");
        get(group, key).await;
    }
}

/// Checks that the owner of a hot key serves at most 64 requests until all nodes have a replica, and none
/// afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_answer_all_gets_of_a_hot_key() {
    let cluster = Cluster::start(5).await;
    let loads = Loads::default();
    let groups = groups(&cluster, &loads, |group| group.replica_time_to_live(Duration::from_secs(600))).await;
    let key = cluster.key_of(&groups, 0);
    for group in &groups[1..] {
        warm(group, &key).await;
    }
    let served = groups[0].stats().peer_requests;
    assert!(served <= 4 * 16, "{served} requests until all nodes had replicas");
    for _ in 0..1000 {
        for group in &groups {
            assert_eq!(get(group, &key).await, 1);
        }
    }
    assert_eq!(groups[0].stats().peer_requests, served, "the owner serves no more requests");
    assert_eq!(groups[1].stats().replica_hits, 1000);
    cluster.shutdown().await;
}

/// Checks that the first get after the end of a replica fetches the value and keeps a new replica, and that cold keys
/// have no replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_replica_is_fetched_again_by_the_next_get() {
    const TIME: Duration = Duration::from_secs(1);
    let cluster = Cluster::start(2).await;
    let loads = Loads::default();
    let groups = groups(&cluster, &loads, |group| group.replica_time_to_live(TIME)).await;
    let hot = cluster.key_of(&groups, 0);
    warm(&groups[1], &hot).await;
    // The replica has expired, but not so long ago that the key counts as cold. The pause is generous because on a busy
    // machine the clock of a node is late by more than its tick of 10 ms.
    sleep(TIME * 3 / 2).await;
    let before = (groups[0].stats().peer_requests, groups[1].stats().replica_hits);
    for _ in 0..3 {
        get(&groups[1], &hot).await;
    }
    let after = (groups[0].stats().peer_requests, groups[1].stats().replica_hits);
    assert_eq!((after.0 - before.0, after.1 - before.1), (1, 2), "the first get fetches the value and keeps a replica");

    let cold = (0..).map(|n| format!("cold-{n}")).filter(|key| cluster.owner(&groups, key) == 0);
    for key in cold.take(100) {
        get(&groups[1], &key).await;
    }
    assert_eq!(groups[1].inspect().replicas(), 1);
    cluster.shutdown().await;
}

/// Checks that a group with replicas disabled keeps no values of other nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn group_with_replicas_disabled_keeps_none() {
    let cluster = Cluster::start(2).await;
    let loads = Loads::default();
    let groups = groups(&cluster, &loads, |group| group.replicas(false)).await;
    let key = cluster.key_of(&groups, 0);
    for _ in 0..200 {
        get(&groups[1], &key).await;
    }
    assert_eq!((groups[1].inspect().replicas(), groups[1].inspect().entries()), (0, 0));
    cluster.shutdown().await;
}

/// Checks P9 where every node has a replica of every key: after a complete write no node returns the old value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn complete_write_leaves_no_old_replica() {
    const KEYS: usize = 10_000;
    const AT_ONCE: usize = 32;
    let cluster = Cluster::start(5).await;
    let mut rounds = JoinSet::new();
    for first in 0..AT_ONCE {
        // Each task has a group of its own, so that the number of replicas in the group shows when there is one more.
        let loads = Loads::default();
        let group = |node: &Node| {
            let group = node.group::<String>(&format!("data-{first}")).capacity_bytes(64 << 20);
            group.replica_time_to_live(Duration::from_secs(600)).loader_with(loads.clone(), numbered)
        };
        let groups = cluster.group(|_, node| group(node)).await;
        rounds.spawn(async move {
            for n in (first..KEYS).step_by(AT_ONCE) {
                check_write_with_replicas(&groups, &loads, n).await;
            }
        });
    }
    rounds.join_all().await;
    cluster.shutdown().await;
}

/// Checks one key: every node has the value or a replica, one node writes, and no node returns the old value.
async fn check_write_with_replicas(groups: &[Group<String>], loads: &Loads, n: usize) {
    let key = &format!("key-{n}");
    let owner = groups[0].inspect().owner_of(key);
    for (at, group) in groups.iter().enumerate() {
        if support::name(at) == owner.as_str() {
            get(group, key).await;
        } else {
            warm(group, key).await;
        }
    }
    support::complete(|| async {
        match n % 4 {
            0 => groups[n % 5].set(key, "1000000").await.unwrap(),
            _ => groups[n % 5].remove(key).await.unwrap(),
        }
    })
    .await;
    let before = loads.of(key);
    for group in groups {
        let value = get(group, key).await;
        assert!(value > before || value == 1_000_000, "{key}, owned by {owner}: load {value} began before the write");
    }
}

/// Checks that an orphaned entry expires like a replica, and that the entries that the node still owns stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphaned_entry_expires_like_a_replica() {
    let (peers, loads) = (Peers::default(), Loads::default());
    let start = async |name: &str| {
        // Without the hand-over the new owner loads the keys, and the value tells that it is of the second load.
        let builder = Node::builder().identity(identity(name)).provider(peers.clone()).handover(false);
        builder.start().await.unwrap()
    };
    let a = start("a").await;
    let build = |node: &Node| {
        let group = node.group::<String>("data").capacity_bytes(16 << 20).loader_with(loads.clone(), numbered);
        group.replica_time_to_live(Duration::from_millis(500)).build().unwrap()
    };
    let at_a = build(&a);
    let keys: Vec<_> = (0..200).map(|n| format!("key-{n}")).collect();
    for key in &keys {
        get(&at_a, key).await;
    }
    let b = start("b").await;
    let at_b = build(&b);
    peers.set(vec![support::peer(&a), support::peer(&b)]);
    let cluster = Cluster { nodes: vec![a, b], peers };
    cluster.agree().await;
    cluster.wait_for_group("data").await;
    let groups = [at_a, at_b];
    let moved: Vec<_> = keys.iter().filter(|key| cluster.owner(&groups, key) == 1).collect();
    let kept: Vec<_> = keys.iter().filter(|key| cluster.owner(&groups, key) == 0).collect();
    assert!(moved.len() > 50 && kept.len() > 50);
    sleep(Duration::from_millis(600)).await;
    for key in moved {
        assert_eq!(get(&groups[0], key).await, 2, "the new owner loads the moved key");
    }
    for key in kept {
        assert_eq!(get(&groups[0], key).await, 1, "a key that stays is not loaded again");
    }
    cluster.shutdown().await;
}

/// Checks that gets of a stale hot value seldom reach the owner while its refresh hangs, and that the new value
/// replaces the stale replica afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_hot_value_spares_its_owner_during_refresh() {
    let (cluster, gate) = (Cluster::start(2).await, Gate::default());
    gate.open();
    let build = |node: &Node| {
        let group = node.group::<String>("data").capacity_bytes(8 << 20).jitter(0.0);
        let group = group.time_to_live(Duration::from_millis(300)).stale_while_revalidate(Duration::from_secs(600));
        group.loader_with(gate.clone(), async |gate: &Gate, key: &str| support::gated(gate, key).await)
    };
    let groups = cluster.group(|_, node| build(node)).await;
    let key = cluster.key_of(&groups, 0);
    groups[1].get(&key).await.unwrap();
    gate.close();
    sleep(Duration::from_millis(400)).await;
    groups[0].get(&key).await.unwrap(); // begins the refresh, which hangs
    gate.begun(2).await;
    let (served, begun) = (groups[0].stats().peer_requests, Instant::now());
    let mut gets = 0;
    while begun.elapsed() < Duration::from_secs(2) {
        assert_eq!(groups[1].get(&key).await.unwrap(), format!("{key} by load 1"));
        gets += 1;
    }
    let (served, most) = (groups[0].stats().peer_requests - served, 3 * 32);
    assert!(gets > 10 * most && served < most, "{served} of {gets} gets reached the owner");
    gate.open();
    eventually("the refresh ends", || groups[0].stats().loads == 2).await;
    let end = Instant::now() + PATIENCE;
    while groups[1].get(&key).await.unwrap() == format!("{key} by load 1") {
        assert!(Instant::now() < end, "the stale replica is replaced");
    }
    cluster.shutdown().await;
}

/// Checks that a peek of a stale value at its owner begins no refresh, and that many peeks make no key hot, because a
/// peek keeps no replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peek_of_stale_value_loads_nothing() {
    let (cluster, loads) = (Cluster::start(2).await, Loads::default());
    let stale = |group: GroupBuilder<String>| {
        let group = group.jitter(0.0).time_to_live(Duration::from_millis(100));
        group.stale_while_revalidate(Duration::from_secs(600))
    };
    let groups = groups(&cluster, &loads, stale).await;
    let key = cluster.key_of(&groups, 0);
    assert_eq!(get(&groups[0], &key).await, 1);
    sleep(Duration::from_millis(300)).await;
    let before = groups[0].stats();
    for _ in 0..100 {
        assert_eq!(groups[1].peek(&key).await.unwrap().as_deref(), Some("1"));
        assert!(groups[1].contains(&key).await.unwrap());
    }
    sleep(Duration::from_millis(100)).await; // a load would have begun
    let after = groups[0].stats();
    assert_eq!((loads.total(), after.refreshes, after.stale_hits), (1, 0, before.stale_hits));
    assert_eq!((after.peer_requests, after.peer_request_hits), (before.peer_requests, before.peer_request_hits));
    assert_eq!(get(&groups[1], &key).await, 1);
    assert_eq!(groups[1].inspect().replicas(), 0, "peeks do not make a key hot");
    eventually("a get refreshes the value", || loads.total() == 2).await;
    cluster.shutdown().await;
}
