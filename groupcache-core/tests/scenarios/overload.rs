//! Overload (P5): the owner refuses excess gets, and they are neither sent to other nodes nor repeated.

use std::{net::SocketAddr, time::Duration};

use crate::support::{self, Cluster, Gate, Loads, PATIENCE, Peers, eventually, gated, identity};
use groupcache_core::{BoxError, Group, Identity, Limits, Node, PeerId, discovery::Peer};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
    time::{sleep, timeout},
};

/// Loads a key as its own value, without a pause.
async fn instant(loads: &Loads, key: &str) -> Result<String, BoxError> {
    loads.begin(key);
    Ok(key.to_owned())
}

/// Checks that with ten times as many gets as the owner can accept, the owner answers each get once, and no other node
/// loads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overloaded_owner_refuses_each_excess_get_once() {
    let mut limits = Limits::default();
    (limits.max_loads, limits.max_queued_loads) = (10, 40);
    // The test counts requests, and the hand-over would add previous-owner reads.
    let cluster = Cluster::start_each(3, |_, builder| builder.limits(limits.clone()).handover(false)).await;
    let gate = Gate::default();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(16 << 20).loader_with(gate.clone(), gated))
        .await;
    let keys: Vec<_> =
        (0..).map(|n| format!("key-{n}")).filter(|key| cluster.owner(&groups, key) == 1).take(500).collect();
    let mut gets = JoinSet::new();
    for key in &keys {
        let (group, key) = (groups[0].clone(), key.clone());
        gets.spawn(async move { group.get(&key).await });
    }
    // The excess gets are refused while all the others wait.
    let mut refused = 0;
    while refused < 450 {
        let got = timeout(PATIENCE, gets.join_next()).await.expect("in time").expect("there are more").unwrap();
        assert!(got.expect_err("nothing is loaded yet").is_overloaded());
        refused += 1;
    }
    gate.open();
    while let Some(got) = timeout(PATIENCE, gets.join_next()).await.expect("in time") {
        assert!(got.unwrap().is_ok());
    }
    assert_eq!(gate.loads.total(), 50, "the accepted gets are loaded");
    assert_eq!(cluster.nodes[0].stats().requests_sent, 500, "each key is requested once");
    assert_eq!((groups[0].stats().loads, groups[2].stats().loads), (0, 0), "the owner alone loads");
    assert_eq!(groups[0].get("later").await.expect("the owner serves again"), "later by load 1");
    cluster.shutdown().await;
}

/// Node in a runtime of its own, so that it can end as a killed process does.
struct KillableNode {
    runtime: Runtime,
    address: SocketAddr,
}

impl KillableNode {
    /// Starts node `id` with the group `data`.
    fn start(id: &str, listen: SocketAddr, peers: &Peers, loads: &Loads) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let me = Identity::new(listen).with_id(id).unwrap();
        let (provider, loads) = (peers.clone(), loads.clone());
        let (send_address, started) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let node = Node::builder().identity(me).provider(provider).start().await.unwrap();
            let _group = data(&node, &loads);
            let _ = send_address.send(node.address());
            std::future::pending::<()>().await;
        });
        let address = started.recv_timeout(PATIENCE).expect("the node starts");
        Self { runtime, address }
    }

    /// Ends the node without a goodbye, and returns its address.
    fn kill(self) -> SocketAddr {
        self.runtime.shutdown_background();
        self.address
    }
}

fn data(node: &Node, loads: &Loads) -> Group<String> {
    node.group::<String>("data").capacity_bytes(64 << 20).loader_with(loads.clone(), instant).build().unwrap()
}

/// Checks that gets cost at most 1.1 requests each while all peers are lost, are loaded once each at the local node,
/// and go to the owners again once the peers are back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_peers_cost_one_request_per_get_until_their_return() {
    let (peers, loads) = (Peers::default(), Loads::default());
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let b = Node::builder().identity(identity("b")).provider(peers.clone()).start().await.unwrap();
    let group = data(&b, &loads);
    let elsewhere = Loads::default();
    let mut others: Vec<_> =
        ["a", "c"].map(|id| (id, KillableNode::start(id, any, &peers, &elsewhere))).into_iter().collect();
    let member = |id: &str, at: SocketAddr| Peer::member(PeerId::new(id).unwrap(), [at.into()]);
    let listed = others.iter().map(|(id, node)| member(id, node.address));
    peers.set(listed.chain([support::peer(&b)]).collect());
    let reached = |n| move |b: &Node| b.peers_with_group("data") == n;
    eventually("both peers have the group", || reached(2)(&b)).await;

    let gone: Vec<_> = others.drain(..).map(|(id, node)| (id, node.kill())).collect();
    let (gets, before) = (1_000, b.stats().requests_sent);
    for n in 0..gets {
        assert_eq!(group.get(&format!("gone-{n}")).await.expect("b loads the key"), format!("gone-{n}"));
        sleep(Duration::from_millis(1)).await;
    }
    let attempts = b.stats().requests_sent - before;
    assert!(attempts <= gets * 11 / 10, "{attempts} requests for {gets} gets");
    assert_eq!(loads.total(), gets, "b loads each key once");

    let back: Vec<_> = gone.into_iter().map(|(id, at)| KillableNode::start(id, at, &peers, &elsewhere)).collect();
    eventually("both peers are reachable again", || reached(2)(&b) && b.members().iter().all(|m| m.reachable)).await;
    let before = loads.total();
    let theirs: Vec<_> = (0..)
        .map(|n| format!("back-{n}"))
        .filter(|key| group.inspect().owner_of(key).as_str() != "b")
        .take(50)
        .collect();
    for key in &theirs {
        assert_eq!(&group.get(key).await.unwrap(), key);
    }
    assert_eq!(loads.total(), before, "the peers load their own keys again");
    tokio::task::spawn_blocking(move || drop(back)).await.unwrap();
}
