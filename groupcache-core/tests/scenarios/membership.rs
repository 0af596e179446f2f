//! Who is a member, as the nodes see each other: found by address alone, started again elsewhere, leaving.

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
    Address, Group, Identity, Node, Peer, PeerId, PeerSet, Provider, ProviderContext, ProviderError, Signal,
    async_trait,
};
use tokio::time::{Instant, timeout};

async fn start(name: &str, peers: &Peers) -> Node {
    Node::builder().identity(identity(name)).provider(peers.clone()).start().await.unwrap()
}

fn data(node: &Node, gate: &Gate) -> Group<String> {
    node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated).build().unwrap()
}

/// Where nobody listens.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A gate that stands open.
fn open() -> Gate {
    let gate = Gate::default();
    gate.open();
    gate
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_know_only_addresses_find_out_who_they_are() {
    let peers = Peers::default();
    let nodes = vec![start("a", &peers).await, start("b", &peers).await];
    // Each is told both addresses, its own among them.
    peers.set(nodes.iter().map(|node| Peer::at(node.address().to_string()).unwrap()).collect());
    let cluster = Cluster { nodes, peers };
    cluster.agree().await;
    let gate = open();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated))
        .await;
    for n in 0..20 {
        for group in &groups {
            group.get(&format!("key-{n}")).await.unwrap();
        }
    }
    assert_eq!(gate.loads.total(), 20, "each key at its owner");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_started_is_one_of_the_peers_that_answered_and_not_alone() {
    let mut cluster = Cluster::start(3).await;
    let late = start("d", &cluster.peers).await;
    let members: Vec<_> = late.members().iter().map(|member| member.id.to_string()).collect();
    assert_eq!(members, ["a", "b", "c", "d"], "at once");
    cluster.nodes.push(late);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_starts_again_elsewhere_owns_its_keys_as_before() {
    let mut cluster = Cluster::start(3).await;
    let gate = open();
    let build =
        |_: usize, node: &Node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated);
    let mut groups = cluster.group(build).await;
    let key = cluster.key_of(&groups, 2);
    let life = |node: &Node| node.members().into_iter().find(|m| m.id.as_str() == "c").unwrap().incarnation;
    let first_life = life(&cluster.nodes[0]);

    // It ends without a word, and its next life is at another port.
    drop((groups.pop(), cluster.nodes.pop()));
    let is_lost = |node: &Node| node.members().iter().any(|m| !m.is_reachable);
    eventually("its first life is over", || cluster.nodes.iter().all(is_lost)).await;
    let again = start("c", &cluster.peers).await;
    cluster.peers.change(|peers| {
        peers.retain(|peer| peer.id().is_none_or(|id| id.as_str() != "c"));
        peers.push(support::peer(&again));
    });
    cluster.nodes.push(again);
    cluster.agree().await;
    eventually("both know its new life", || cluster.nodes[..2].iter().all(|node| life(node) > first_life)).await;
    groups.push(data(&cluster.nodes[2], &gate));
    cluster.wait_for_group("data").await;

    assert_eq!(cluster.owner(&groups, &key), 2, "the ring is placed by ids");
    for group in &groups {
        assert_eq!(group.get(&key).await.unwrap(), format!("{key} by load 1"));
    }
    assert_eq!(groups[2].stats().loads, 1, "at its owner, once");
    cluster.shutdown().await;
}

/// As where a name is given to another host: discovery knows addresses only, and the same ones all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_where_somebody_else_answers_is_theirs_though_the_one_before_had_another_one_too() {
    let peers = Peers::default();
    let me = start("me", &peers).await;
    // Of the two addresses of each, nobody listens at the second.
    let addresses = [free_address(), free_address()];
    let start = async |name: &str| {
        let advertised = addresses.map(Address::from);
        let identity = Identity::new(addresses[0]).with_id(name).unwrap().with_advertised(advertised).unwrap();
        Node::builder().identity(identity).provider(peers.clone()).start().await.unwrap()
    };
    let first = start("first").await;
    peers.set(vec![Peer::at(me.address().to_string()).unwrap(), Peer::at(addresses[0].to_string()).unwrap()]);
    let members = || me.members().into_iter().map(|member| member.id.to_string()).collect::<Vec<_>>();
    eventually("the first is there", || members() == ["first", "me"]).await;

    drop(first); // without a word
    let failures = me.stats().connect_failed;
    eventually("both addresses were tried in vain", || me.stats().connect_failed > failures + 1).await;
    let second = start("second").await;
    eventually("the second is there and the first is not", || members() == ["me", "second"]).await;
    for node in [me, second] {
        node.shutdown_within(Duration::from_secs(1)).await.unwrap();
    }
}

/// After so many attempts the next is two seconds away or more.
const MANY_ATTEMPTS: usize = 7;

/// Whether something comes before such a pause is over, in one of three rounds: a busy machine may be late.
async fn comes_soon(round: impl AsyncFn() -> Duration) -> bool {
    for _ in 0..3 {
        if round().await < Duration::from_millis(1500) {
            return true;
        }
    }
    false
}

/// Where every connection is closed.
struct Closes(tokio::net::TcpListener);

impl Closes {
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

/// How long it takes until a node that was dialled in vain is reached, from its start.
async fn reached_after(record: impl Fn(SocketAddr) -> Peer) -> Duration {
    let (peers, address) = (Peers::default(), free_address());
    let me = start("me", &peers).await;
    peers.set(vec![support::peer(&me), record(address)]);
    eventually("it was dialled in vain", || me.stats().connect_failed == MANY_ATTEMPTS as u64).await;

    let begun = Instant::now();
    let identity = Identity::new(address).with_id("late").unwrap();
    let late = Node::builder().identity(identity).provider(peers.clone()).start().await.unwrap();
    eventually("it is dialled", || me.members().iter().any(|m| m.id.as_str() == "late" && m.is_reachable)).await;
    let after = begun.elapsed();
    for node in [me, late] {
        node.shutdown().await.unwrap();
    }
    after
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_connects_to_a_node_that_has_dialled_it_in_vain_is_dialled_again_soon() {
    let by_name = |address| Peer::member(PeerId::new("late").unwrap(), [Address::from(address)]);
    let by_address = |address: SocketAddr| Peer::at(address.to_string()).unwrap();
    assert!(comes_soon(async || reached_after(by_name).await).await);
    assert!(comes_soon(async || reached_after(by_address).await).await);
}

/// As after a pause of its process: it takes its own connections to be open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_speaks_again_to_a_node_that_has_dialled_it_in_vain_is_dialled_again_soon() {
    let round = async || {
        let (peers, silent) = (Peers::default(), Closes::listen().await);
        let me = start("me", &peers).await;
        let hello = proto::Hello { id: "silent".into(), ..raw::hello() };
        let first = proto::Frame { hello: Some(hello), ..proto::Frame::default() };
        let its = Raw::open(me.address(), first).await.unwrap();
        peers.set(vec![support::peer(&me), silent.named("silent")]);
        silent.attempts(MANY_ATTEMPTS).await;

        let begun = Instant::now();
        its.frames.send(proto::Frame::default()).await.unwrap();
        silent.attempts(1).await;
        let after = begun.elapsed();
        me.shutdown().await.unwrap();
        after
    };
    assert!(comes_soon(round).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_reaches_one_peer_again_tries_the_others_soon() {
    let round = async || {
        let (peers, other, address) = (Peers::default(), Closes::listen().await, free_address());
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
    assert!(comes_soon(round).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_shut_down_leaves_at_once_and_its_keys_move() {
    let mut cluster = Cluster::start(3).await;
    let gate = open();
    let build =
        |_: usize, node: &Node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated);
    let mut groups = cluster.group(build).await;
    let keys: Vec<_> =
        (0..).map(|n| format!("key-{n}")).filter(|key| cluster.owner(&groups, key) == 2).take(20).collect();
    let leaving = cluster.nodes.pop().unwrap();
    groups.pop();
    let began = Instant::now();
    leaving.shutdown().await.unwrap();
    // Discovery lists it still: its own word counts.
    eventually("the others let it go", || cluster.nodes.iter().all(|node| node.members().len() == 2)).await;
    assert!(began.elapsed() < Duration::from_secs(3), "no grace for who says goodbye: {:?}", began.elapsed());
    cluster.agree().await;
    for key in &keys {
        assert!(cluster.owner(&groups, key) < 2);
        for group in &groups {
            assert_eq!(group.get(key).await.unwrap(), format!("{key} by load 1"));
        }
    }
    assert!(groups.iter().all(|group| group.stats().loads > 0), "both take over a share");
    assert_eq!(cluster.nodes.iter().map(|node| node.stats().silent).sum::<u64>(), 0);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_drains_goes_on_for_its_own_callers() {
    let cluster = Cluster::start(2).await;
    let gate = open();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated))
        .await;
    let (before, after) = (cluster.key_of(&groups, 0), format!("{}-too", cluster.key_of(&groups, 0)));
    groups[0].get(&before).await.unwrap();
    cluster.nodes[0].drain().await.unwrap();
    let owns =
        |node: &Node| node.members().into_iter().filter(|m| m.owns).map(|m| m.id.to_string()).collect::<Vec<_>>();
    for node in &cluster.nodes {
        assert_eq!(owns(node), ["b"], "it waited until its peer knew");
    }
    assert_eq!(groups[0].get(&before).await.unwrap(), format!("{before} by load 1"), "from memory");
    assert_eq!(groups[0].get(&after).await.unwrap(), format!("{after} by load 1"), "from b");
    assert_eq!((groups[0].stats().loads, groups[1].stats().loads), (1, 1));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_ready_once_its_groups_are_known_elsewhere() {
    let cluster = Cluster::start(2).await;
    let gate = open();
    let _at_a = data(&cluster.nodes[0], &gate);
    let mut ready = Box::pin(cluster.nodes[0].ready(2));
    assert!(poll!(ready.as_mut()).is_pending(), "b has no such group yet");
    timeout(PATIENCE, cluster.nodes[0].ready(1)).await.expect("alone it is ready").unwrap();
    let _at_b = data(&cluster.nodes[1], &gate);
    timeout(PATIENCE, ready).await.expect("now it is").unwrap();
    drop(cluster);
}

/// A discovery that lists the same peers for ever, and notes what the node lets it know of `b`.
#[derive(Clone)]
struct Curious {
    peers: Vec<Peer>,
    told: Arc<Mutex<Told>>,
}

#[derive(Default)]
struct Told {
    reaches_b: bool,
    asked_for: BTreeSet<PeerId>,
}

#[async_trait]
impl Provider for Curious {
    fn name(&self) -> &str {
        "curious"
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        cx.publish(PeerSet::complete(self.peers.clone()));
        let b = PeerId::new("b")?;
        loop {
            let signal = cx.next_within(Duration::from_millis(10)).await;
            let mut told = self.told.lock().unwrap();
            told.reaches_b = cx.reaches(&b);
            match signal {
                Some(Signal::Leaving) => return Ok(()),
                Some(Signal::Resolve(ids)) => told.asked_for.extend(ids),
                Some(Signal::MeChanged) | None => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_is_told_whom_the_node_reaches_and_asked_for_whom_it_does_not() {
    let b = start("b", &Peers::default()).await;
    let curious = Curious { peers: vec![support::peer(&b)], told: Arc::default() };
    let a = Node::builder().identity(identity("a")).provider(curious.clone()).start().await.unwrap();
    let told = || curious.told.lock().unwrap();
    eventually("a reaches b", || told().reaches_b).await;
    assert!(told().asked_for.is_empty());

    drop(b); // without a word
    eventually("a does not reach b", || !told().reaches_b).await;
    let begun = Instant::now();
    eventually("discovery is asked for b", || told().asked_for.contains("b")).await;
    println!("asked {:?} after it was lost (figure: 4 to 6 s)", begun.elapsed());
    assert_eq!(a.members().len(), 2, "discovery lists it still");
    a.shutdown().await.unwrap();
}
