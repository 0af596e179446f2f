//! P5: an overload is answered, and not spread: not by asking others, nor by asking twice.

use std::{net::SocketAddr, time::Duration};

use crate::support::{self, Cluster, Gate, Loads, PATIENCE, Peers, eventually, gated, identity};
use groupcache_core::{BoxError, Group, Identity, Limits, Node, Peer, PeerId};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
    time::{sleep, timeout},
};

async fn instant(loads: &Loads, key: &str) -> Result<String, BoxError> {
    loads.begin(key);
    Ok(key.to_owned())
}

/// Ten times as many gets as an owner has places for: each is answered once, by the owner, and nobody else loads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gets_beyond_what_an_owner_can_do_are_refused_by_it_and_done_by_nobody_else() {
    let mut limits = Limits::default();
    (limits.max_loads, limits.max_queued_loads) = (10, 40);
    // What is asked for is counted, and values that change hands are asked for too.
    let cluster = Cluster::start_each(3, |_, builder| builder.limits(limits.clone()).hand_over(false)).await;
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
    // Those that have no place are told while all the others wait.
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
    assert_eq!(gate.loads.total(), 50, "so many as had a place");
    assert_eq!(cluster.nodes[0].stats().requests_sent, 500, "each asked for once");
    assert_eq!((groups[0].stats().loads, groups[2].stats().loads), (0, 0), "by nobody but the owner");
    assert_eq!(groups[0].get("later").await.expect("it goes on"), "later by load 1");
    cluster.shutdown().await;
}

/// A node that ends as a process does that is killed.
struct Mortal {
    runtime: Runtime,
    address: SocketAddr,
}

impl Mortal {
    fn start(id: &str, listen: SocketAddr, peers: &Peers, loads: &Loads) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let me = Identity::new(listen).with_id(id).unwrap();
        let (provider, loads) = (peers.clone(), loads.clone());
        let (told, started) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let node = Node::builder().identity(me).provider(provider).start().await.unwrap();
            let _group = data(&node, &loads);
            let _ = told.send(node.address());
            std::future::pending::<()>().await;
        });
        let address = started.recv_timeout(PATIENCE).expect("it starts");
        Self { runtime, address }
    }

    fn kill(self) -> SocketAddr {
        self.runtime.shutdown_background();
        self.address
    }
}

fn data(node: &Node, loads: &Loads) -> Group<String> {
    node.group::<String>("data").capacity_bytes(64 << 20).loader_with(loads.clone(), instant).build().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_all_peers_are_gone_each_get_asks_about_once_and_when_they_are_back_they_are_asked_again() {
    let (peers, loads) = (Peers::default(), Loads::default());
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let b = Node::builder().identity(identity("b")).provider(peers.clone()).start().await.unwrap();
    let group = data(&b, &loads);
    let elsewhere = Loads::default();
    let mut others: Vec<_> =
        ["a", "c"].map(|id| (id, Mortal::start(id, any, &peers, &elsewhere))).into_iter().collect();
    let member = |id: &str, at: SocketAddr| Peer::member(PeerId::new(id).unwrap(), [at.into()]);
    let listed = others.iter().map(|(id, node)| member(id, node.address));
    peers.set(listed.chain([support::peer(&b)]).collect());
    let reached = |n| move |b: &Node| b.peers_with_group("data") == n;
    eventually("both are known", || reached(2)(&b)).await;

    let gone: Vec<_> = others.drain(..).map(|(id, node)| (id, node.kill())).collect();
    let (gets, before) = (1_000, b.stats().requests_sent);
    for n in 0..gets {
        assert_eq!(group.get(&format!("gone-{n}")).await.expect("loaded here"), format!("gone-{n}"));
        sleep(Duration::from_millis(1)).await;
    }
    let attempts = b.stats().requests_sent - before;
    assert!(attempts <= gets * 11 / 10, "{attempts} requests for {gets} gets");
    assert_eq!(loads.total(), gets, "each loaded once, here");

    let back: Vec<_> = gone.into_iter().map(|(id, at)| Mortal::start(id, at, &peers, &elsewhere)).collect();
    eventually("they are asked again", || reached(2)(&b) && b.members().iter().all(|m| m.is_reachable)).await;
    let before = loads.total();
    let theirs: Vec<_> =
        (0..).map(|n| format!("back-{n}")).filter(|key| group.owner_of(key).as_str() != "b").take(50).collect();
    for key in &theirs {
        assert_eq!(&group.get(key).await.unwrap(), key);
    }
    assert_eq!(loads.total(), before, "nothing that is theirs is loaded here any more");
    tokio::task::spawn_blocking(move || drop(back)).await.unwrap();
}
