//! P3: a get ends by its deadline, whatever loaders, threads and runtimes do.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use crate::support::{Cluster, Gate, Loads, PATIENCE, eventually, gated, identity, peer};
use groupcache_core::{BoxError, Group, Limits, Node};
use tokio::time::{Instant, timeout};

/// Far longer than any deadline of these tests.
const LONG: Duration = Duration::from_secs(60);

fn group(node: &Node, gate: &Gate) -> Group<String> {
    node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated).build().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_has_to_load_here_ends_by_the_deadline_of_the_get() {
    let mut limits = Limits::default();
    (limits.get_deadline, limits.load_deadline) = (Duration::from_millis(500), LONG);
    let cluster = Cluster::start_with(2, limits).await;
    let gate = Gate::default();
    let at_b = group(&cluster.nodes[1], &gate); // and a does not have it
    let key = (0..).map(|n| format!("key-{n}")).find(|key| at_b.owner_of(key).as_str() == "a").unwrap();

    let error = timeout(PATIENCE, at_b.get(&key)).await.expect("by its deadline").expect_err("the load hangs");
    assert!(error.is_timeout(), "{error:?}");

    // Who waits for longer than a fetch does asks again, and ends by a deadline of its own.
    let (patient, began) = (at_b.with_deadline(Duration::from_millis(1250)), Instant::now());
    let error = timeout(PATIENCE, patient.get(&key)).await.expect("by its deadline").expect_err("the load hangs");
    assert!(error.is_timeout(), "{error:?}");
    assert!(began.elapsed() >= Duration::from_millis(1200), "not by that of the fetch: {:?}", began.elapsed());

    let stats = at_b.stats();
    assert!(stats.fetches >= 4, "asked again: {} fetches", stats.fetches);
    assert!(stats.fetches <= 6, "each for as long as the first: {} fetches", stats.fetches);
    assert_eq!((gate.loads.total(), stats.fallback_loads), (1, 1), "all of them for one load");
    gate.open();
    assert_eq!(at_b.get(&key).await.unwrap(), format!("{key} by load 1"));
    cluster.shutdown().await;
}

/// Both times are over at nearly the same moment, and the caller would have more of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_runs_into_its_own_deadline_at_the_owner_is_not_asked_for_again() {
    let mut limits = Limits::default();
    (limits.get_deadline, limits.load_deadline) = (Duration::from_millis(500), Duration::from_millis(450));
    let cluster = Cluster::start_with(2, limits).await;
    let gate = Gate::default();
    let group = |node: &Node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated);
    let groups = cluster.group(|_, node| group(node)).await;
    let patient = groups[0].with_deadline(LONG);
    let error = timeout(PATIENCE, patient.get(&cluster.key_of(&groups, 1))).await.expect("in time");
    assert!(error.expect_err("the load hangs").is_timeout());
    assert_eq!(gate.loads.total(), 1);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_loads_may_take_longer_has_that_time_for_callers_on_other_nodes_too() {
    let mut limits = Limits::default();
    limits.load_deadline = Duration::from_millis(200);
    let cluster = Cluster::start_with(2, limits).await;
    let slow = async |key: &str| {
        tokio::time::sleep(Duration::from_millis(600)).await;
        Ok::<_, BoxError>(key.to_owned())
    };
    let group = |node: &Node| node.group::<String>("data").capacity_bytes(1 << 20).load_deadline(LONG).loader(slow);
    let groups = cluster.group(|_, node| group(node)).await;
    let key = cluster.key_of(&groups, 1);
    assert_eq!(timeout(PATIENCE, groups[0].get(&key)).await.expect("in time").unwrap(), key);
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_get_after_the_process_stood_still_has_all_of_its_time() {
    let node = Node::builder().start().await.unwrap();
    let loads = Loads::default();
    let quick = async |loads: &Loads, key: &str| {
        loads.begin(key);
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok::<_, BoxError>(key.to_owned())
    };
    let group = node.group::<String>("data").capacity_bytes(1 << 20).loader_with(loads, quick).build().unwrap();
    let group = group.with_deadline(Duration::from_millis(300));
    std::thread::sleep(Duration::from_millis(500)); // the only thread: nothing has ticked meanwhile
    assert_eq!(group.get("key").await.expect("300 ms are enough"), "key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_loader_that_blocks_its_thread_is_told_in_time() {
    let mut limits = Limits::default();
    (limits.get_deadline, limits.load_deadline) = (Duration::from_millis(200), Duration::from_millis(200));
    let node = Node::builder().limits(limits).start().await.unwrap();
    let (release, released) = mpsc::channel::<()>();
    let blocks = async |released: &Arc<Mutex<mpsc::Receiver<()>>>, key: &str| {
        let _ = released.lock().unwrap().recv(); // as a synchronous driver does
        Ok::<_, BoxError>(key.to_owned())
    };
    let group = node
        .group::<String>("data")
        .capacity_bytes(1 << 20)
        .loader_with(Arc::new(Mutex::new(released)), blocks)
        .build()
        .unwrap();
    for group in [group.clone(), group.with_deadline(Duration::from_millis(400))] {
        let error = timeout(PATIENCE, group.get("key")).await.expect("in time").expect_err("the loader blocks");
        assert!(error.is_timeout(), "{error:?}");
    }
    eventually("the watch counts it", || group.stats().overdue_loads == 1).await;
    assert_eq!(node.loads(), (1, 0), "it runs on, since nothing can stop it");
    drop(release);
    eventually("its permit comes back", || node.loads() == (0, 0)).await;
}

#[tokio::test]
async fn the_end_of_the_runtime_of_a_node_is_an_error_to_callers_on_another() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let gate = Gate::default();
    let (started, at_start) = (gate.clone(), tokio::sync::oneshot::channel());
    runtime.spawn(async move {
        let node = Node::builder().start().await.unwrap();
        let group = group(&node, &started);
        let _ = at_start.0.send((node, group));
    });
    let (node, group) = at_start.1.await.unwrap();
    let waiting = tokio::spawn({
        let group = group.clone();
        async move { group.get("key").await }
    });
    gate.begun(1).await;
    runtime.shutdown_background();
    let error = timeout(PATIENCE, waiting).await.expect("in time").unwrap().expect_err("the load is gone");
    assert!(error.is_closed(), "{error:?}");
    let error = timeout(PATIENCE, group.get("another")).await.expect("in time").expect_err("nothing can be loaded");
    assert!(error.is_closed(), "{error:?}");
    drop(node);
}

/// Nothing in the process of the callers looks after what the node has asked its peer for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_runtime_of_a_node_is_an_error_to_callers_who_wait_for_its_peer() {
    let mut cluster = Cluster::start(1).await;
    let (gate, peers) = (Gate::default(), cluster.peers.clone());
    let at_a = group(&cluster.nodes[0], &gate);
    peers.set(vec![peer(&cluster.nodes[0])]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (started, at_start) = tokio::sync::oneshot::channel();
    let (provider, gate_of_b) = (peers.clone(), gate.clone());
    runtime.spawn(async move {
        let node = Node::builder().identity(identity("b")).provider(provider).start().await.unwrap();
        let _ = started.send((group(&node, &gate_of_b), node));
    });
    let (at_b, node) = at_start.await.unwrap();
    peers.change(|peers| peers.push(peer(&node)));
    cluster.nodes.push(node);
    cluster.agree().await;
    cluster.wait_for_group("data").await;
    let key = cluster.key_of(&[at_a], 0);
    let waiting = tokio::spawn({
        let (group, key) = (at_b.clone(), key.clone());
        async move { group.get(&key).await }
    });
    gate.begun(1).await;
    runtime.shutdown_background();
    let error = timeout(PATIENCE, waiting).await.expect("in time").unwrap().expect_err("nobody hears the answer");
    assert!(error.is_closed(), "{error:?}");
    let error = timeout(PATIENCE, at_b.get(&key)).await.expect("in time").expect_err("nobody can be asked");
    assert!(error.is_closed(), "{error:?}");
    gate.open();
}

#[tokio::test]
async fn waiting_for_ever_is_a_deadline_like_any_other() {
    let mut limits = Limits::default();
    (limits.get_deadline, limits.load_deadline) = (Duration::MAX, Duration::MAX);
    let node = Node::builder().limits(limits).start().await.unwrap();
    let echo = async |key: &str| Ok::<_, BoxError>(key.to_owned());
    let group = node.group::<String>("data").capacity_bytes(1 << 20).time_to_live(Duration::MAX).loader(echo);
    let group = group.build().unwrap().with_deadline(Duration::MAX);
    assert_eq!(group.get("key").await.unwrap(), "key");
    group.set("key", "by hand").await.unwrap().log_unreached();
    assert_eq!(group.get("key").await.unwrap(), "by hand");
    node.shutdown_within(Duration::MAX).await.unwrap();
}
