//! Deadlines (P3): a get ends by its deadline, in spite of slow loaders, blocked threads and ended runtimes.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use crate::support::{Cluster, Gate, Loads, PATIENCE, eventually, gated, identity, peer};
use groupcache_core::{BoxError, Group, Limits, Node};
use tokio::time::{Instant, timeout};

/// Time far longer than any deadline of these tests.
const LONG: Duration = Duration::from_secs(60);

/// Builds the group `data`, in which loads wait at the gate.
fn group(node: &Node, gate: &Gate) -> Group<String> {
    node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated).build().unwrap()
}

/// Checks that a get with a hanging fallback load ends by its deadline, and that a caller with a longer deadline starts
/// further fetches, all of which share one load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fallback_load_ends_by_the_deadline_of_the_get() {
    let mut limits = Limits::default();
    (limits.get_deadline, limits.load_deadline) = (Duration::from_millis(500), LONG);
    let cluster = Cluster::start_with(2, limits).await;
    let gate = Gate::default();
    let at_b = group(&cluster.nodes[1], &gate); // node a lacks the group
    let key = (0..).map(|n| format!("key-{n}")).find(|key| at_b.inspect().owner_of(key).as_str() == "a").unwrap();

    let error = timeout(PATIENCE, at_b.get(&key)).await.expect("ends by its deadline").expect_err("the load hangs");
    assert!(error.is_timeout(), "{error:?}");

    // A caller with a longer deadline than a fetch starts further fetches, and ends by its own deadline.
    let (patient, began) = (at_b.with_deadline(Duration::from_millis(1250)), Instant::now());
    let error = timeout(PATIENCE, patient.get(&key)).await.expect("ends by its deadline").expect_err("the load hangs");
    assert!(error.is_timeout(), "{error:?}");
    assert!(
        began.elapsed() >= Duration::from_millis(1200),
        "the get ended by the deadline of the fetch: {:?}",
        began.elapsed()
    );

    let stats = at_b.stats();
    assert!(stats.fetches >= 4, "the caller starts further fetches: {} fetches", stats.fetches);
    assert!(stats.fetches <= 6, "all fetches have the same deadline: {} fetches", stats.fetches);
    assert_eq!((gate.loads.total(), stats.fallback_loads), (1, 1), "all fetches share one load");
    gate.open();
    assert_eq!(at_b.get(&key).await.unwrap(), format!("{key} by load 1"));
    cluster.shutdown().await;
}

/// Checks that a load that times out at the owner is the result of the get, although its caller has time left.
///
/// The deadlines of the load (450 ms) and of the fetch (500 ms) end at nearly the same moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_timed_out_at_the_owner_is_not_repeated() {
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

/// Checks that a group with a longer load deadline than the node's limit has this time for callers at other nodes too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_deadline_of_a_group_applies_to_remote_callers() {
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

/// Checks that a get right after a pause of the process has its full deadline, although the coarse clock is late.
#[tokio::test]
async fn get_after_a_process_pause_has_its_full_deadline() {
    let node = Node::builder().start().await.unwrap();
    let loads = Loads::default();
    let quick = async |loads: &Loads, key: &str| {
        loads.begin(key);
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok::<_, BoxError>(key.to_owned())
    };
    let group = node.group::<String>("data").capacity_bytes(1 << 20).loader_with(loads, quick).build().unwrap();
    let group = group.with_deadline(Duration::from_millis(300));
    std::thread::sleep(Duration::from_millis(500)); // blocks the only thread, so that the clock does not tick
    assert_eq!(group.get("key").await.expect("300 ms are enough"), "key");
}

/// Checks that callers of a loader that blocks its thread time out by their deadlines, that the load is counted as
/// overdue, and that its permit is freed when the thread goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_of_a_thread_blocking_loader_ends_in_time() {
    let mut limits = Limits::default();
    (limits.get_deadline, limits.load_deadline) = (Duration::from_millis(200), Duration::from_millis(200));
    let node = Node::builder().limits(limits).start().await.unwrap();
    let (release, released) = mpsc::channel::<()>();
    let blocks = async |released: &Arc<Mutex<mpsc::Receiver<()>>>, key: &str| {
        let _ = released.lock().unwrap().recv(); // blocks the thread, as a synchronous driver does
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
    eventually("the overdue load is counted", || group.stats().overdue_loads == 1).await;
    assert_eq!(
        crate::support::loads_of(&node),
        (1, 0),
        "the load still runs, because a blocked thread cannot be stopped"
    );
    drop(release);
    eventually("the permit is free again", || crate::support::loads_of(&node) == (0, 0)).await;
}

/// Checks that running and later gets of callers on another runtime fail as closed when the runtime of the node ends.
#[tokio::test]
async fn end_of_node_runtime_fails_callers_on_other_runtimes() {
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
    let error =
        timeout(PATIENCE, waiting).await.expect("in time").unwrap().expect_err("the load has ended with its runtime");
    assert!(error.is_closed(), "{error:?}");
    let error = timeout(PATIENCE, group.get("another")).await.expect("in time").expect_err("the node is closed");
    assert!(error.is_closed(), "{error:?}");
    drop(node);
}

/// Checks that gets that wait for a peer fail as closed when the runtime of the node ends, because no task is left to
/// receive the response.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_of_node_runtime_fails_callers_awaiting_its_peer() {
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
    let error = timeout(PATIENCE, waiting).await.expect("in time").unwrap().expect_err("no task receives the response");
    assert!(error.is_closed(), "{error:?}");
    let error = timeout(PATIENCE, at_b.get(&key)).await.expect("in time").expect_err("the node is closed");
    assert!(error.is_closed(), "{error:?}");
    gate.open();
}

/// Checks that `Duration::MAX` works as a deadline, as a time to live and as the time of a shutdown.
#[tokio::test]
async fn infinite_deadlines_are_accepted() {
    let mut limits = Limits::default();
    (limits.get_deadline, limits.load_deadline) = (Duration::MAX, Duration::MAX);
    let node = Node::builder().limits(limits).start().await.unwrap();
    let echo = async |key: &str| Ok::<_, BoxError>(key.to_owned());
    let group = node.group::<String>("data").capacity_bytes(1 << 20).time_to_live(Duration::MAX).loader(echo);
    let group = group.build().unwrap().with_deadline(Duration::MAX);
    assert_eq!(group.get("key").await.unwrap(), "key");
    group.set("key", "by hand").await.unwrap().log_pending();
    assert_eq!(group.get("key").await.unwrap(), "by hand");
    node.shutdown_within(Duration::MAX).await.unwrap();
}
