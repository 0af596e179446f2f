//! Membership as the nodes see each other: nodes found by address alone, restarts at another address, repeated dials,
//! and departures.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::proto;
use crate::support::{
    self, Cluster, Gate, PATIENCE, Peers, eventually, gated, identity,
    raw::{self, Raw},
};
use futures_util::poll;
use groupcache_core::{
    Group, Identity, Node, PeerId, async_trait,
    discovery::{Address, Peer, PeerSet, Provider, ProviderContext, ProviderError, Signal, Trust},
};
use tokio::time::{Instant, timeout};

async fn start(name: &str, peers: &Peers) -> Node {
    Node::builder().identity(identity(name)).provider(peers.clone()).start().await.unwrap()
}

fn data(node: &Node, gate: &Gate) -> Group<String> {
    node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated).build().unwrap()
}

/// Returns an address of loopback without a listener.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Returns an open gate.
fn open_gate() -> Gate {
    let gate = Gate::default();
    gate.open();
    gate
}

/// Checks that nodes listed by address alone learn the ids of each other, agree about the ring, and load each key once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_listed_by_address_learn_their_ids() {
    let peers = Peers::default();
    let nodes = vec![start("a", &peers).await, start("b", &peers).await];
    // The provider lists both addresses to both nodes, so that each node finds its own among them.
    peers.set(nodes.iter().map(|node| Peer::at(node.address().to_string()).unwrap()).collect());
    let cluster = Cluster { nodes, peers };
    cluster.agree().await;
    let gate = open_gate();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated))
        .await;
    for n in 0..20 {
        for group in &groups {
            group.get(&format!("key-{n}")).await.unwrap();
        }
    }
    assert_eq!(gate.loads.total(), 20, "each key is loaded by its owner only");
    cluster.shutdown().await;
}

/// Checks that the view of a node that has just started holds the peers that answered, so that the node is not alone at
/// first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn started_node_has_answering_peers_in_its_view() {
    let mut cluster = Cluster::start(3).await;
    let late = start("d", &cluster.peers).await;
    let members: Vec<_> = late.members().iter().map(|member| member.id.to_string()).collect();
    assert_eq!(members, ["a", "b", "c", "d"], "the view is complete right after the start");
    cluster.nodes.push(late);
    cluster.shutdown().await;
}

/// Checks that a member restarted at another address, with a new incarnation, owns the same keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_member_owns_its_keys_at_a_new_address() {
    let mut cluster = Cluster::start(3).await;
    let gate = open_gate();
    let build =
        |_: usize, node: &Node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated);
    let mut groups = cluster.group(build).await;
    let key = cluster.key_of(&groups, 2);
    let incarnation_of_c = |node: &Node| node.members().into_iter().find(|m| m.id.as_str() == "c").unwrap().incarnation;
    let first_incarnation = incarnation_of_c(&cluster.nodes[0]);

    // The first incarnation ends without a goodbye, and the next one listens at another port.
    drop((groups.pop(), cluster.nodes.pop()));
    let is_lost = |node: &Node| node.members().iter().any(|m| !m.reachable);
    eventually("both nodes mark the first incarnation unreachable", || cluster.nodes.iter().all(is_lost)).await;
    let again = start("c", &cluster.peers).await;
    cluster.peers.change(|peers| {
        peers.retain(|peer| peer.id().is_none_or(|id| id.as_str() != "c"));
        peers.push(support::peer(&again));
    });
    cluster.nodes.push(again);
    cluster.agree().await;
    eventually("both nodes know the new incarnation", || {
        cluster.nodes[..2].iter().all(|node| incarnation_of_c(node) > first_incarnation)
    })
    .await;
    groups.push(data(&cluster.nodes[2], &gate));
    cluster.wait_for_group("data").await;

    assert_eq!(cluster.owner(&groups, &key), 2, "the ring depends on ids, not on addresses");
    for group in &groups {
        assert_eq!(group.get(&key).await.unwrap(), format!("{key} by load 1"));
    }
    assert_eq!(groups[2].stats().loads, 1, "the owner loads it once");
    cluster.shutdown().await;
}

/// Checks that an address belongs to the node that answers there, although the previous node of the address has a
/// second address.
///
/// Discovery lists the same addresses all the time and knows no ids, as where a name is given to another host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reused_address_belongs_to_the_node_answering_there() {
    let peers = Peers::default();
    let me = start("me", &peers).await;
    // Each node has two addresses, and nobody listens at the second.
    let addresses = [free_address(), free_address()];
    let start = async |name: &str| {
        let advertised = addresses.map(Address::from);
        let identity = Identity::new(addresses[0]).with_id(name).unwrap().with_advertised(advertised).unwrap();
        Node::builder().identity(identity).provider(peers.clone()).start().await.unwrap()
    };
    let first = start("first").await;
    peers.set(vec![Peer::at(me.address().to_string()).unwrap(), Peer::at(addresses[0].to_string()).unwrap()]);
    let members = || me.members().into_iter().map(|member| member.id.to_string()).collect::<Vec<_>>();
    eventually("the first node is a member", || members() == ["first", "me"]).await;

    drop(first); // without a goodbye
    let failures = me.stats().connect_failed;
    eventually("the dials of both addresses have failed", || me.stats().connect_failed > failures + 1).await;
    let second = start("second").await;
    eventually("the second node is a member and the first is not", || members() == ["me", "second"]).await;
    for node in [me, second] {
        node.shutdown_within(Duration::from_secs(1)).await.unwrap();
    }
}

/// Number of failed attempts after which the backoff is 2 s or longer.
const MANY_ATTEMPTS: usize = 7;

/// Returns whether one of three rounds takes less than 1.5 s, and thus less than the backoff. There are three, because
/// a busy machine may be late.
async fn ends_before_backoff(round: impl AsyncFn() -> Duration) -> bool {
    for _ in 0..3 {
        if round().await < Duration::from_millis(1500) {
            return true;
        }
    }
    false
}

/// Listener that closes every connection at once.
struct ClosingListener(tokio::net::TcpListener);

impl ClosingListener {
    async fn listen() -> Self {
        Self(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn named(&self, name: &str) -> Peer {
        Peer::member(PeerId::new(name).unwrap(), [self.0.local_addr().unwrap().into()])
    }

    async fn attempts(&self, n: usize) {
        for _ in 0..n {
            drop(timeout(PATIENCE, self.0.accept()).await.unwrap().unwrap());
        }
    }
}

/// Returns the time from the start of a peer until the local node reaches it. All earlier dials to the peer have
/// failed.
async fn reached_after(record: impl Fn(SocketAddr) -> Peer) -> Duration {
    let (peers, address) = (Peers::default(), free_address());
    let me = start("me", &peers).await;
    peers.set(vec![support::peer(&me), record(address)]);
    eventually("all dials have failed", || me.stats().connect_failed == MANY_ATTEMPTS as u64).await;

    let begun = Instant::now();
    let identity = Identity::new(address).with_id("late").unwrap();
    let late = Node::builder().identity(identity).provider(peers.clone()).start().await.unwrap();
    eventually("the late node is reached", || me.members().iter().any(|m| m.id.as_str() == "late" && m.reachable))
        .await;
    let after = begun.elapsed();
    for node in [me, late] {
        node.shutdown().await.unwrap();
    }
    after
}

/// Checks that a peer which connects is dialled before the backoff of earlier failures ends, listed by id or by address
/// alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inbound_connection_expedites_the_next_dial() {
    let by_name = |address| Peer::member(PeerId::new("late").unwrap(), [Address::from(address)]);
    let by_address = |address: SocketAddr| Peer::at(address.to_string()).unwrap();
    assert!(ends_before_backoff(async || reached_after(by_name).await).await);
    assert!(ends_before_backoff(async || reached_after(by_address).await).await);
}

/// Checks that a frame on a connection of the peer ends the backoff of the dials to it.
///
/// The peer behaves as a process after a pause: it takes its own connections to be open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inbound_frame_expedites_the_next_dial() {
    let round = async || {
        let (peers, silent) = (Peers::default(), ClosingListener::listen().await);
        let me = start("me", &peers).await;
        let hello = proto::Hello { id: "silent".into(), ..raw::hello() };
        let first = proto::Frame { hello: Some(hello), ..proto::Frame::default() };
        let connection = Raw::open(me.address(), first).await.unwrap();
        peers.set(vec![support::peer(&me), silent.named("silent")]);
        silent.attempts(MANY_ATTEMPTS).await;

        let begun = Instant::now();
        connection.frames.send(proto::Frame::default()).await.unwrap();
        silent.attempts(1).await;
        let after = begun.elapsed();
        me.shutdown().await.unwrap();
        after
    };
    assert!(ends_before_backoff(round).await);
}

/// Checks that a node which reaches one peer again dials the other peers before their backoff ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reached_peer_expedites_dials_to_the_others() {
    let round = async || {
        let (peers, other, address) = (Peers::default(), ClosingListener::listen().await, free_address());
        let me = start("me", &peers).await;
        let first = Peer::member(PeerId::new("first").unwrap(), [address.into()]);
        peers.set(vec![support::peer(&me), first, other.named("other")]);
        other.attempts(MANY_ATTEMPTS).await;

        let begun = Instant::now();
        let identity = Identity::new(address).with_id("first").unwrap();
        let mine = Peers::default();
        mine.set(vec![support::peer(&me)]);
        let first = Node::builder().identity(identity).provider(mine).start().await.unwrap();
        other.attempts(1).await;
        let after = begun.elapsed();
        for node in [me, first] {
            node.shutdown().await.unwrap();
        }
        after
    };
    assert!(ends_before_backoff(round).await);
}

/// Checks that the members remove a peer within 3 s of its shutdown, although discovery still lists it, and that its
/// keys move to both members.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shut_down_member_leaves_at_once_and_its_keys_move() {
    let mut cluster = Cluster::start(3).await;
    let gate = open_gate();
    let build =
        |_: usize, node: &Node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated);
    let mut groups = cluster.group(build).await;
    let keys: Vec<_> =
        (0..).map(|n| format!("key-{n}")).filter(|key| cluster.owner(&groups, key) == 2).take(20).collect();
    let leaving = cluster.nodes.pop().unwrap();
    groups.pop();
    let began = Instant::now();
    leaving.shutdown().await.unwrap();
    // Discovery still lists the node, but the goodbye of the node takes precedence.
    eventually("the members remove the node", || cluster.nodes.iter().all(|node| node.members().len() == 2)).await;
    assert!(began.elapsed() < Duration::from_secs(3), "a goodbye skips the grace period: {:?}", began.elapsed());
    cluster.agree().await;
    for key in &keys {
        assert!(cluster.owner(&groups, key) < 2);
        for group in &groups {
            assert_eq!(group.get(key).await.unwrap(), format!("{key} by load 1"));
        }
    }
    assert!(groups.iter().all(|group| group.stats().loads > 0), "both members receive a share of the keys");
    assert_eq!(cluster.nodes.iter().map(|node| node.stats().ping_timeouts).sum::<u64>(), 0);
    cluster.shutdown().await;
}

/// Checks that a draining node owns nothing in any view, and that its own callers still get values from its memory and
/// from its peer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_node_serves_its_own_callers() {
    let cluster = Cluster::start(2).await;
    let gate = open_gate();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated))
        .await;
    let (before, after) = (cluster.key_of(&groups, 0), format!("{}-too", cluster.key_of(&groups, 0)));
    groups[0].get(&before).await.unwrap();
    cluster.nodes[0].drain(Duration::from_secs(3)).await.unwrap();
    let owns =
        |node: &Node| node.members().into_iter().filter(|m| m.owns).map(|m| m.id.to_string()).collect::<Vec<_>>();
    for node in &cluster.nodes {
        assert_eq!(owns(node), ["b"], "the drain waits until the peer has the new state");
    }
    assert_eq!(groups[0].get(&before).await.unwrap(), format!("{before} by load 1"), "from memory");
    assert_eq!(groups[0].get(&after).await.unwrap(), format!("{after} by load 1"), "from b");
    assert_eq!((groups[0].stats().loads, groups[1].stats().loads), (1, 1));
    cluster.shutdown().await;
}

/// Checks that `ready(2)` waits until a peer has the groups of the node, and that `ready(1)` does not wait for peers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_is_ready_once_peers_know_its_groups() {
    let cluster = Cluster::start(2).await;
    let gate = open_gate();
    let _at_a = data(&cluster.nodes[0], &gate);
    let mut ready = Box::pin(cluster.nodes[0].ready(2));
    assert!(poll!(ready.as_mut()).is_pending(), "b has no such group yet");
    timeout(PATIENCE, cluster.nodes[0].ready(1)).await.expect("one node is enough").unwrap();
    let _at_b = data(&cluster.nodes[1], &gate);
    timeout(PATIENCE, ready).await.expect("b has the group").unwrap();
    drop(cluster);
}

/// Provider that always lists the same peers, and records the reports of the node about `b`.
#[derive(Clone)]
struct RecordingProvider {
    peers: Vec<Peer>,
    reports: Arc<Mutex<Reports>>,
}

#[derive(Default)]
struct Reports {
    reaches_b: bool,
    asked_for: BTreeSet<PeerId>,
}

#[async_trait]
impl Provider for RecordingProvider {
    fn name(&self) -> &str {
        "recording"
    }

    fn trust(&self) -> Trust {
        Trust::Authority
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        cx.publish(PeerSet::complete(self.peers.clone()));
        let b = PeerId::new("b")?;
        loop {
            let signal = cx.next_within(Duration::from_millis(10)).await;
            let mut reports = self.reports.lock().unwrap();
            reports.reaches_b = cx.reaches(&b);
            match signal {
                Some(Signal::Leaving) => return Ok(()),
                Some(Signal::Resolve(ids)) => reports.asked_for.extend(ids),
                Some(Signal::MeChanged) | None => {}
            }
        }
    }
}

/// Checks that a provider is notified about the reachability of a peer, and is asked to resolve the peer once it is
/// unreachable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn provider_is_asked_to_resolve_an_unreachable_peer() {
    let b = start("b", &Peers::default()).await;
    let recording = RecordingProvider { peers: vec![support::peer(&b)], reports: Arc::default() };
    let a = Node::builder().identity(identity("a")).provider(recording.clone()).start().await.unwrap();
    let reports = || recording.reports.lock().unwrap();
    eventually("a reaches b", || reports().reaches_b).await;
    assert!(reports().asked_for.is_empty());

    drop(b); // without a goodbye
    eventually("a does not reach b", || !reports().reaches_b).await;
    let begun = Instant::now();
    eventually("the provider is asked to resolve b", || reports().asked_for.contains("b")).await;
    println!("asked {:?} after the loss of b (expected: 4 to 6 s)", begun.elapsed());
    assert_eq!(a.members().len(), 2, "b stays a member while discovery lists it");
    a.shutdown().await.unwrap();
}
