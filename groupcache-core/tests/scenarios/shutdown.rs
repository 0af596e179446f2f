//! Ends of a node: shut down, shut down again, shut down half-way, or dropped.

use std::{sync::Arc, time::Duration};

use crate::support::{Cluster, Gate, PATIENCE, eventually, gated, warnings::Warnings};
use groupcache_core::{BoxError, Error, Group, Node};
use tokio::{task::JoinHandle, time::timeout};

/// Time after which a running shutdown is known to wait, because a shutdown that does not wait ends sooner.
const OBSERVATION: Duration = Duration::from_millis(500);

/// Two nodes, and a get at `b` of a key of `a` that waits for the load at `a`.
struct Scene {
    nodes: Vec<Node>,
    groups: Vec<Group<String>>,
    gate: Gate,
    get: JoinHandle<Result<String, Error>>,
}

impl Scene {
    async fn start() -> Self {
        let cluster = Cluster::start(2).await;
        let gate = Gate::default();
        let groups = cluster
            .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated))
            .await;
        let (group, key) = (groups[1].clone(), cluster.key_of(&groups, 0));
        let get = tokio::spawn(async move { group.get(&key).await });
        gate.begun(1).await;
        Self { nodes: cluster.nodes, groups, gate, get }
    }

    /// Checks that the get at `b` failed as closed, and that `b` has loaded nothing in place of `a`.
    async fn assert_b_is_closed(self) {
        let error = timeout(PATIENCE, self.get).await.expect("in time").unwrap().expect_err("its node is closed");
        assert!(error.is_closed(), "{error:?}");
        assert!(self.groups[1].get("another").await.expect_err("closed").is_closed());
        assert_eq!((self.groups[1].stats().loads, self.gate.loads.total()), (0, 1), "b loads nothing");
    }
}

/// Shuts a node down in a task of its own.
fn shut_down(node: &Node) -> JoinHandle<()> {
    let node = node.clone();
    tokio::spawn(async move { node.shutdown().await.expect("shuts down") })
}

/// Waits until the node of this group has drained and refuses new calls.
async fn wait_until_closing(group: &Group<String>) {
    let refused = async { while !group.remove("another").await.is_err_and(|e| e.is_closed()) {} };
    timeout(PATIENCE, refused).await.expect("the node drains");
}

/// Checks that a shutdown fails a running fetch as closed, without a fallback load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_during_a_fetch_starts_no_load() {
    let scene = Scene::start().await;
    scene.nodes[1].shutdown_within(Duration::from_millis(200)).await.unwrap();
    scene.assert_b_is_closed().await;
}

/// Checks that a deadline which is too short for a drain warns of work that is left, and of nothing at an idle node.
#[tokio::test]
async fn short_shutdown_warns_only_of_work_that_is_left() {
    let (warnings, _guard) = Warnings::capture();
    let node = Node::builder().start().await.unwrap();
    node.shutdown_within(Duration::ZERO).await.unwrap();
    assert_eq!(warnings.lines_with("at the end of the shutdown"), [""; 0]);

    let (node, gate) = (Node::builder().start().await.unwrap(), Gate::default());
    let group = node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated).build().unwrap();
    let get = tokio::spawn(async move { group.get("slow").await });
    gate.begun(1).await;
    node.shutdown_within(Duration::ZERO).await.unwrap();
    let lines = warnings.lines_with("at the end of the shutdown");
    assert!(matches!(&lines[..], [line] if line.contains("loads=1")), "{lines:?}");
    assert!(get.await.unwrap().unwrap_err().is_closed());
}

/// Checks that a dropped node fails a running fetch as closed, without a fallback load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drop_during_a_fetch_starts_no_load() {
    let mut scene = Scene::start().await;
    drop(scene.nodes.pop());
    scene.assert_b_is_closed().await;
}

/// Checks that a load that ends after the shutdown of its node is not cached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_ending_after_the_shutdown_is_not_cached() {
    let scene = Scene::start().await;
    scene.nodes[0].shutdown_within(Duration::from_millis(200)).await.unwrap();
    assert_eq!(scene.nodes[0].loads().running, 1, "the load still runs");
    scene.gate.open();
    eventually("the load ends", || crate::support::loads_of(&scene.nodes[0]) == (0, 0)).await;
    assert_eq!(scene.groups[0].inspect().entries(), 0);
    assert!(scene.groups[0].get("another").await.expect_err("closed").is_closed());
}

/// Checks that a shutdown waits for the gets of local callers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_waits_for_local_gets() {
    let scene = Scene::start().await;
    let mut closing = shut_down(&scene.nodes[1]);
    wait_until_closing(&scene.groups[1]).await;
    assert!(timeout(OBSERVATION, &mut closing).await.is_err(), "the shutdown waits for the get");
    scene.gate.open();
    closing.await.unwrap();
    assert!(scene.get.await.unwrap().expect("a value").ends_with("by load 1"));
}

/// Checks that a shutdown waits for a fetch, and for the fallback load that follows when the owner is silent meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_waits_for_fallback_loads() {
    let (cluster, proxy) = Cluster::start_with_proxy().await;
    let gate = Gate::default();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated))
        .await;
    let (group, key) = (groups[0].clone(), cluster.key_of(&groups, 1));
    let get = tokio::spawn(async move { group.get(&key).await });
    gate.begun(1).await;
    let mut closing = shut_down(&cluster.nodes[0]);
    wait_until_closing(&groups[0]).await;
    assert!(
        timeout(OBSERVATION, &mut closing).await.is_err(),
        "no load runs at a, and the shutdown waits for the owner"
    );
    proxy.stop();
    gate.begun(2).await;
    assert!(timeout(OBSERVATION, &mut closing).await.is_err(), "the shutdown waits for the fallback load");
    gate.open();
    closing.await.unwrap();
    assert!(get.await.unwrap().expect("a value").ends_with("by load 2"));
}

/// Checks that a shutdown waits for loads that a peer has requested, and sends their responses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_waits_for_responses_to_peers() {
    let scene = Scene::start().await;
    let mut closing = shut_down(&scene.nodes[0]);
    wait_until_closing(&scene.groups[0]).await;
    assert!(timeout(OBSERVATION, &mut closing).await.is_err(), "the shutdown waits for the load that b has requested");
    scene.gate.open();
    closing.await.unwrap();
    assert!(scene.get.await.unwrap().expect("a value").ends_with("by load 1"));
    assert_eq!(scene.gate.loads.total(), 1, "b loads nothing itself");
}

/// Checks that a shutdown without a time limit can be dropped half-way, and that further shutdowns, concurrent and
/// later ones, succeed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_can_be_dropped_repeated_and_unbounded() {
    let scene = Scene::start().await;
    // The shutdown is dropped half-way: it waits for the load of a, which does not end.
    assert!(timeout(Duration::from_millis(100), scene.nodes[0].shutdown_within(Duration::MAX)).await.is_err());
    let (first, second) = (shut_down(&scene.nodes[0]), shut_down(&scene.nodes[0]));
    scene.gate.open();
    for closing in [first, second] {
        timeout(PATIENCE, closing).await.expect("in time").unwrap();
    }
    scene.nodes[0].shutdown().await.expect("a later shutdown succeeds");
    assert!(scene.get.await.unwrap().is_ok());
    assert!(scene.nodes[0].ready(1).await.expect_err("closed").is_closed());
    assert!(scene.nodes[0].drain(Duration::from_secs(3)).await.expect_err("closed").is_closed());
}

/// Checks that the loaders and the port of a node are free after a shutdown, and after a drop alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_node_frees_its_loaders_and_its_port() {
    for is_shut_down in [true, false] {
        let cluster = Cluster::start(2).await;
        let held = Arc::new(());
        let build = |_: usize, node: &Node| {
            let load = async |_: &Arc<()>, key: &str| Ok::<_, BoxError>(key.to_owned());
            node.group::<String>("data").capacity_bytes(1 << 20).loader_with(Arc::clone(&held), load)
        };
        let groups = cluster.group(build).await;
        for group in &groups {
            for n in 0..20 {
                group.get(&format!("key-{n}")).await.unwrap();
            }
        }
        let Cluster { nodes, peers } = cluster;
        if is_shut_down {
            for node in &nodes {
                node.shutdown().await.unwrap();
            }
        }
        let addresses: Vec<_> = nodes.iter().map(Node::address).collect();
        drop((nodes, peers, groups));
        eventually("loaders and their state are freed", || Arc::strong_count(&held) == 1).await;
        for address in addresses {
            eventually("the port is free", || std::net::TcpListener::bind(address).is_ok()).await;
        }
    }
}
