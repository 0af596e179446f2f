//! Copies of hot values: they spare their owner, they are dropped by every write, and none outlives its short time.

use std::time::Duration;

use crate::support::{self, Cluster, Gate, Loads, PATIENCE, Peers, eventually, identity};
use groupcache_core::{BoxError, Group, GroupBuilder, Node};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// The number of the load of this key.
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

/// Asks so often that the key is hot, until there is a copy.
async fn warm(group: &Group<String>, key: &str) {
    let copies = group.borrowed_entries();
    let end = Instant::now() + PATIENCE;
    while group.borrowed_entries() == copies {
        assert!(Instant::now() < end, "no copy of {key}");
        get(group, key).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_key_costs_its_owner_one_request_for_each_node_and_time() {
    let cluster = Cluster::start(5).await;
    let loads = Loads::default();
    let groups = groups(&cluster, &loads, |group| group.borrowed_time_to_live(Duration::from_secs(600))).await;
    let key = cluster.key_of(&groups, 0);
    for group in &groups[1..] {
        warm(group, &key).await;
    }
    let served = groups[0].stats().served;
    assert!(served <= 4 * 16, "{served} requests until all had their copies");
    for _ in 0..1000 {
        for group in &groups {
            assert_eq!(get(group, &key).await, 1);
        }
    }
    assert_eq!(groups[0].stats().served, served, "the owner is not asked again");
    assert_eq!(groups[1].stats().borrowed_hits, 1000);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_has_ended_is_replaced_by_the_next_get_and_a_cold_key_has_none() {
    const TIME: Duration = Duration::from_secs(1);
    let cluster = Cluster::start(2).await;
    let loads = Loads::default();
    let groups = groups(&cluster, &loads, |group| group.borrowed_time_to_live(TIME)).await;
    let hot = cluster.key_of(&groups, 0);
    warm(&groups[1], &hot).await;
    // The copy has ended, and it is not long enough ago for the key to be a cold one: on a busy machine the clock of a
    // node is late by more than its tick of 10 ms.
    sleep(TIME * 3 / 2).await;
    let before = (groups[0].stats().served, groups[1].stats().borrowed_hits);
    for _ in 0..3 {
        get(&groups[1], &hot).await;
    }
    let after = (groups[0].stats().served, groups[1].stats().borrowed_hits);
    assert_eq!((after.0 - before.0, after.1 - before.1), (1, 2), "the first asks and keeps");

    let cold = (0..).map(|n| format!("cold-{n}")).filter(|key| cluster.owner(&groups, key) == 0);
    for key in cold.take(100) {
        get(&groups[1], &key).await;
    }
    assert_eq!(groups[1].borrowed_entries(), 1);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_wants_no_copies_has_none() {
    let cluster = Cluster::start(2).await;
    let loads = Loads::default();
    let groups = groups(&cluster, &loads, |group| group.hot_copies(false)).await;
    let key = cluster.key_of(&groups, 0);
    for _ in 0..200 {
        get(&groups[1], &key).await;
    }
    assert_eq!((groups[1].borrowed_entries(), groups[1].entries()), (0, 0));
    cluster.shutdown().await;
}

/// P9 where every node has a copy of every key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_write_returned_no_copy_of_what_was_before_is_served_anywhere() {
    const KEYS: usize = 10_000;
    const AT_ONCE: usize = 32;
    let cluster = Cluster::start(5).await;
    let mut rounds = JoinSet::new();
    for first in 0..AT_ONCE {
        // A group for each, so that it sees by the number of copies whether there is one more.
        let loads = Loads::default();
        let group = |node: &Node| {
            let group = node.group::<String>(&format!("data-{first}")).capacity_bytes(64 << 20);
            group.borrowed_time_to_live(Duration::from_secs(600)).loader_with(loads.clone(), numbered)
        };
        let groups = cluster.group(|_, node| group(node)).await;
        rounds.spawn(async move {
            for n in (first..KEYS).step_by(AT_ONCE) {
                write_what_all_have(&groups, &loads, n).await;
            }
        });
    }
    rounds.join_all().await;
    cluster.shutdown().await;
}

/// One round: everyone has the value or a copy, somebody writes, nobody sees the old value.
async fn write_what_all_have(groups: &[Group<String>], loads: &Loads, n: usize) {
    let key = &format!("key-{n}");
    let owner = groups[0].owner_of(key);
    for (at, group) in groups.iter().enumerate() {
        if support::name(at) == owner.as_str() {
            get(group, key).await;
        } else {
            warm(group, key).await;
        }
    }
    let told = match n % 4 {
        0 => groups[n % 5].set(key, "1000000").await.unwrap(),
        _ => groups[n % 5].remove(key).await.unwrap(),
    };
    assert!(told.is_complete(), "{told:?}");
    let before = loads.of(key);
    for group in groups {
        let value = get(group, key).await;
        assert!(value > before || value == 1_000_000, "{key}, owned by {owner}: load {value} began before the write");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_no_write_reaches_is_named_and_its_copy_is_gone_in_its_time() {
    const SHORT: Duration = Duration::from_millis(1500);
    let ((cluster, path), loads) = (Cluster::start_with_proxy().await, Loads::default());
    let groups = groups(&cluster, &loads, |group| group.borrowed_time_to_live(SHORT)).await;
    let key = cluster.key_of(&groups, 0);
    warm(&groups[1], &key).await;
    path.stop();
    let told = groups[0].remove(&key).await.unwrap();
    let removed = Instant::now();
    assert_eq!(told.unreached().iter().map(ToString::to_string).collect::<Vec<_>>(), ["b"]);
    eventually("b has the new value", || true).await;
    while get(&groups[1], &key).await == 1 {
        assert!(removed.elapsed() < SHORT + Duration::from_secs(5), "b still has the old value");
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(get(&groups[1], &key).await, loads.of(&key));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_no_longer_owns_is_a_copy_from_then_on() {
    let (peers, loads) = (Peers::default(), Loads::default());
    let start = async |name: &str| {
        // What is not handed over is loaded: the second load tells.
        let builder = Node::builder().identity(identity(name)).provider(peers.clone()).hand_over(false);
        builder.start().await.unwrap()
    };
    let a = start("a").await;
    let build = |node: &Node| {
        let group = node.group::<String>("data").capacity_bytes(16 << 20).loader_with(loads.clone(), numbered);
        group.borrowed_time_to_live(Duration::from_millis(500)).build().unwrap()
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
        assert_eq!(get(&groups[0], key).await, 2, "its new owner is asked");
    }
    for key in kept {
        assert_eq!(get(&groups[0], key).await, 1, "what stays is not loaded again");
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_all_its_peers_serves_what_it_held_for_a_short_time() {
    let ((cluster, path), loads) = (Cluster::start_with_proxy().await, Loads::default());
    let groups = groups(&cluster, &loads, |group| group.borrowed_time_to_live(Duration::from_millis(500))).await;
    let key = cluster.key_of(&groups, 0);
    assert_eq!(get(&groups[0], &key).await, 1);
    sleep(Duration::from_millis(600)).await;
    assert_eq!(get(&groups[0], &key).await, 1, "it owns the key, and all is well");
    path.stop();
    eventually("a sees that it is alone", || cluster.nodes[0].stats().cut_off == 1).await;
    eventually("b sees nothing: its own path to a is well", || cluster.nodes[1].stats().cut_off == 0).await;
    sleep(Duration::from_millis(600)).await;
    assert_eq!(get(&groups[0], &key).await, 2, "what it held may have changed meanwhile");
    sleep(Duration::from_millis(600)).await;
    assert_eq!(get(&groups[0], &key).await, 3, "and so may what it loads while it is alone");
    path.cut();
    path.resume();
    cluster.agree().await;
    sleep(Duration::from_millis(600)).await;
    assert_eq!(get(&groups[0], &key).await, 4, "what it loaded while it was alone");
    sleep(Duration::from_millis(600)).await;
    assert_eq!(get(&groups[0], &key).await, 4, "what it loads among its peers is kept");
}

#[tokio::test]
async fn a_node_that_stood_still_serves_what_it_held_for_a_short_time() {
    let cluster = Cluster::start(2).await;
    let loads = Loads::default();
    let groups = groups(&cluster, &loads, |group| group.borrowed_time_to_live(Duration::from_millis(500))).await;
    let key = cluster.key_of(&groups, 0);
    assert_eq!(get(&groups[0], &key).await, 1);
    std::thread::sleep(Duration::from_millis(2500)); // both of them: they share this thread
    eventually("it knows that it stood still", || cluster.nodes[0].stats().cut_off >= 1).await;
    assert_eq!(get(&groups[0], &key).await, 1);
    eventually("its peers are there", || cluster.nodes[0].members().iter().all(|member| member.is_reachable)).await;
    sleep(Duration::from_millis(600)).await;
    assert_eq!(get(&groups[0], &key).await, 2);
    sleep(Duration::from_millis(600)).await;
    assert_eq!(get(&groups[0], &key).await, 2, "what it has loaded since is as good as ever");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_value_that_is_stale_does_not_fall_on_its_owner_while_it_is_refreshed() {
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
    let (served, begun) = (groups[0].stats().served, Instant::now());
    let mut gets = 0;
    while begun.elapsed() < Duration::from_secs(2) {
        assert_eq!(groups[1].get(&key).await.unwrap(), format!("{key} by load 1"));
        gets += 1;
    }
    let (served, most) = (groups[0].stats().served - served, 3 * 32);
    assert!(gets > 10 * most && served < most, "{served} of {gets} gets asked the owner");
    gate.open();
    eventually("the younger value is there", || groups[0].stats().loads == 2).await;
    let end = Instant::now() + PATIENCE;
    while groups[1].get(&key).await.unwrap() == format!("{key} by load 1") {
        assert!(Instant::now() < end, "the stale copy ends");
    }
    cluster.shutdown().await;
}
