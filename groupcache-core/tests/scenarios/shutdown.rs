//! How a node ends: shut down, shut down twice, half-way, or dropped.

use std::{sync::Arc, time::Duration};

use crate::support::{Cluster, Gate, PATIENCE, eventually, gated};
use groupcache_core::{BoxError, Error, Group, Node};
use tokio::{task::JoinHandle, time::timeout};

/// Long enough to see that a shutdown waits: one that does not ends sooner.
const LOOK: Duration = Duration::from_millis(500);

/// Two nodes, and a get at `b` of a key of `a` that waits for the load there.
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

    /// The get at `b` was told that its node is closed, and `b` has loaded nothing instead of `a`.
    async fn b_gave_up(self) {
        let error = timeout(PATIENCE, self.get).await.expect("in time").unwrap().expect_err("its node is closed");
        assert!(error.is_closed(), "{error:?}");
        assert!(self.groups[1].get("another").await.expect_err("closed").is_closed());
        assert_eq!((self.groups[1].stats().loads, self.gate.loads.total()), (0, 1), "no load at b");
    }
}

/// Shuts a node down in a task of its own.
fn shut_down(node: &Node) -> JoinHandle<()> {
    let node = node.clone();
    tokio::spawn(async move { node.shutdown().await.expect("shuts down") })
}

/// Waits until the node of this group has drained and refuses what is new.
async fn is_closing(group: &Group<String>) {
    let refused = async { while !group.remove("another").await.is_err_and(|e| e.is_closed()) {} };
    timeout(PATIENCE, refused).await.expect("it drains");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_shut_down_while_it_waits_for_a_peer_loads_nothing() {
    let scene = Scene::start().await;
    scene.nodes[1].shutdown_within(Duration::from_millis(200)).await.unwrap();
    scene.b_gave_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_dropped_while_it_waits_for_a_peer_loads_nothing() {
    let mut scene = Scene::start().await;
    drop(scene.nodes.pop());
    scene.b_gave_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_outlives_its_node_is_not_stored() {
    let scene = Scene::start().await;
    scene.nodes[0].shutdown_within(Duration::from_millis(200)).await.unwrap();
    assert_eq!(scene.nodes[0].loads().0, 1, "it runs still");
    scene.gate.open();
    eventually("the load ends", || scene.nodes[0].loads() == (0, 0)).await;
    assert_eq!(scene.groups[0].entries(), 0);
    assert!(scene.groups[0].get("another").await.expect_err("closed").is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_shut_down_waits_for_its_own_gets() {
    let scene = Scene::start().await;
    let mut closing = shut_down(&scene.nodes[1]);
    is_closing(&scene.groups[1]).await;
    assert!(timeout(LOOK, &mut closing).await.is_err(), "it waits for the get");
    scene.gate.open();
    closing.await.unwrap();
    assert!(scene.get.await.unwrap().expect("a value").ends_with("by load 1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_shut_down_waits_for_what_it_loads_in_the_place_of_an_owner_that_is_lost_meanwhile() {
    let mut scene = Scene::start().await;
    let mut closing = shut_down(&scene.nodes[1]);
    is_closing(&scene.groups[1]).await;
    assert!(timeout(LOOK, &mut closing).await.is_err(), "no load runs here, and it waits for the owner");
    drop(scene.nodes.remove(0));
    scene.gate.begun(2).await;
    assert!(timeout(LOOK, &mut closing).await.is_err(), "it waits for the load");
    scene.gate.open();
    closing.await.unwrap();
    assert!(scene.get.await.unwrap().expect("a value").ends_with("by load 2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_shut_down_gives_the_answers_that_it_owes() {
    let scene = Scene::start().await;
    let mut closing = shut_down(&scene.nodes[0]);
    is_closing(&scene.groups[0]).await;
    assert!(timeout(LOOK, &mut closing).await.is_err(), "it waits for the load that b waits for");
    scene.gate.open();
    closing.await.unwrap();
    assert!(scene.get.await.unwrap().expect("a value").ends_with("by load 1"));
    assert_eq!(scene.gate.loads.total(), 1, "and b loads nothing for itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_may_be_called_again_given_up_and_unbounded() {
    let scene = Scene::start().await;
    // Given up half-way: it waits for the load of a, which does not end.
    assert!(timeout(Duration::from_millis(100), scene.nodes[0].shutdown_within(Duration::MAX)).await.is_err());
    let (first, second) = (shut_down(&scene.nodes[0]), shut_down(&scene.nodes[0]));
    scene.gate.open();
    for closing in [first, second] {
        timeout(PATIENCE, closing).await.expect("in time").unwrap();
    }
    scene.nodes[0].shutdown().await.expect("once more");
    assert!(scene.get.await.unwrap().is_ok());
    assert!(scene.nodes[0].ready(1).await.expect_err("closed").is_closed());
    assert!(scene.nodes[0].drain().await.expect_err("closed").is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_gone_leaves_nothing_behind() {
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
        eventually("loaders and what they hold are freed", || Arc::strong_count(&held) == 1).await;
        for address in addresses {
            eventually("the port is free", || std::net::TcpListener::bind(address).is_ok()).await;
        }
    }
}
