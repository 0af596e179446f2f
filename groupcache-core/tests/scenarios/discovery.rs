//! Discovery as real nodes meet it: targets that nobody answers at, lists that differ, one id at several nodes, and
//! peers that prove where they are.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::support::{self, Cluster, Gate, Peers, eventually, gated, identity, warnings::Warnings};
use groupcache_core::{
    Group, Node, PeerId, async_trait,
    discovery::{Incarnation, Peer, PeerSet, Provider, ProviderContext, ProviderError, Signal, Trust},
};
use tokio::time::{Instant, sleep};

fn data(node: &Node) -> Group<String> {
    let gate = Gate::default();
    gate.open();
    node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate, gated).build().unwrap()
}

/// Returns an address of loopback without a listener.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Checks that writes are complete although the list has both families and the nodes listen on one of them: a target
/// that never answered is no copy, and the own port at another address of the machine is the node itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dual_stack_list_leaves_writes_complete() {
    let cluster = Cluster::start(2).await;
    let both = |node: &Node| {
        let port = node.address().port();
        [format!("127.0.0.1:{port}"), format!("[::1]:{port}")].map(|at| Peer::at(at).unwrap())
    };
    cluster.peers.set(cluster.nodes.iter().flat_map(both).collect());
    let groups =
        cluster.group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(open(), gated)).await;
    eventually("every other target has been dialled", || {
        cluster.nodes.iter().all(|node| !node.unconnected().is_empty())
    })
    .await;
    for group in &groups {
        support::complete(|| async { group.remove("key").await.unwrap() }).await;
    }
    eventually("each node counts the target of the other node alone", || {
        // Without IPv6 on loopback, the own port there is no address of this machine.
        cluster.nodes.iter().all(|node| (1..=2).contains(&node.discovery().unanswered_targets))
    })
    .await;
    cluster.shutdown().await;
}

fn open() -> Gate {
    let gate = Gate::default();
    gate.open();
    gate
}

/// Checks that 1,900 invented ids at dead addresses make no write pending, and cost it no time to speak of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invented_ids_make_no_write_pending() {
    let cluster = Cluster::start(2).await;
    let groups =
        cluster.group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(open(), gated)).await;
    let dead = free_address();
    let invented = (0..1_900).map(|n| Peer::member(PeerId::new(format!("x-{n}")).unwrap(), [dead.into()]));
    cluster.peers.change(|peers| peers.extend(invented));
    eventually("the inventions are targets", || cluster.nodes[0].discovery().unanswered_targets == 1_900).await;
    support::complete(|| async { groups[0].remove("key").await.unwrap() }).await;
    cluster.shutdown().await;
}

/// Provider that lists `before`, and `after` once it is asked to look again.
#[derive(Clone)]
struct LateProvider {
    before: Vec<Peer>,
    after: Vec<Peer>,
    asked: Arc<AtomicUsize>,
}

#[async_trait]
impl Provider for LateProvider {
    fn name(&self) -> &str {
        "late"
    }

    fn trust(&self) -> Trust {
        Trust::Authority
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        cx.publish(PeerSet::complete(self.before.clone()));
        loop {
            match cx.next().await {
                Signal::Leaving => return Ok(()),
                Signal::Resolve(_) => {
                    self.asked.fetch_add(1, SeqCst);
                    cx.publish(PeerSet::complete(self.after.clone()));
                }
                Signal::MeChanged => {}
            }
        }
    }
}

/// Starts nodes `a` and `b`, of which `b` lists `a`, and `a` lists `b` only when its discovery is asked again, or
/// never.
async fn start_with_lists_that_differ(is_listed_later: bool) -> (Node, Node, LateProvider) {
    let at_b = free_address();
    let b = Peer::member(PeerId::new("b").unwrap(), [at_b.into()]);
    let after = if is_listed_later { vec![b] } else { Vec::new() };
    let late = LateProvider { before: Vec::new(), after, asked: Arc::default() };
    let a = Node::builder().identity(identity("a")).provider(late.clone()).start().await.unwrap();
    let lists_a = Peers::default();
    lists_a.set(vec![support::peer(&a)]);
    let me = groupcache_core::Identity::new(at_b).with_id("b").unwrap();
    let b = Node::builder().identity(me).provider(lists_a).start().await.unwrap();
    (a, b, late)
}

/// Checks that a node asks its discovery again at once about a peer that connects and is not listed, so that both agree
/// as soon as discovery knows better.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unlisted_connection_makes_discovery_look_again() {
    let (a, b, late) = start_with_lists_that_differ(true).await;
    let begun = Instant::now();
    eventually("both agree", || a.members().len() == 2 && a.fingerprint() == b.fingerprint()).await;
    println!("both agree {:?} after the start of b (measured: 1.2 s)", begun.elapsed());
    assert!(late.asked.load(SeqCst) >= 1);
    assert!(a.discovery().unlisted.is_empty() && a.discovery().faults().is_empty());
}

/// Checks that a peer that stays unlisted is counted, named in the health of discovery, and said once in the log.
#[tokio::test]
async fn peer_that_stays_unlisted_is_reported() {
    let (warnings, _guard) = Warnings::capture();
    let (a, b, late) = start_with_lists_that_differ(false).await;
    eventually("a reports b", || a.discovery().unlisted == [b.id()]).await;
    assert!(a.discovery().faults().iter().any(|fault| fault.contains("b is connected and not in discovery")));
    assert!(late.asked.load(SeqCst) >= 1);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(warnings.lines_with("connected and not in discovery").len(), 1);
    b.shutdown().await.unwrap();
    eventually("a forgets b", || a.discovery().unlisted.is_empty()).await;
}

/// Checks that five nodes with one id cause few lines and few dials, although each of them answers to the others.
#[tokio::test]
async fn one_id_at_five_nodes_causes_few_dials_and_lines() {
    let (warnings, _guard) = Warnings::capture();
    let peers = Peers::default();
    let mut nodes = Vec::new();
    for _ in 0..5 {
        nodes.push(Node::builder().identity(identity("same")).provider(peers.clone()).start().await.unwrap());
    }
    peers.set(nodes.iter().map(|node| Peer::at(node.address().to_string()).unwrap()).collect());
    eventually("the duplicate is said", || !warnings.lines_with("another live node has this id").is_empty()).await;
    let accepted = || nodes.iter().map(|node| node.stats().accepted).sum::<u64>();
    let (lines, dials) = (warnings.lines_with("").len(), accepted());
    sleep(Duration::from_secs(10)).await;
    let (lines, dials) = (warnings.lines_with("").len() - lines, accepted() - dials);
    println!("{lines} lines and {dials} dials in 10 s");
    // Each of five nodes dials four others, every few seconds after the first.
    assert!(lines <= 15, "{lines} lines in 10 s");
    assert!(dials <= 200, "{dials} dials in 10 s");
}

/// Checks that two nodes without a common group say so, and that both name a group with two formats.
#[tokio::test]
async fn nodes_without_a_common_group_say_so() {
    let (warnings, _guard) = Warnings::capture();
    let cluster = Cluster::start(2).await;
    let _users = data(&cluster.nodes[0]);
    let other = || cluster.nodes[1].group::<String>("orders").capacity_bytes(1 << 20).loader_with(open(), gated);
    let _orders = other().build().unwrap();
    eventually("both say it", || warnings.lines_with("shares no group with this node").len() == 2).await;
    cluster.shutdown().await;
}

/// Checks that a restarted node joins again while discovery announces its id with the highest incarnation at a dead
/// address, because the node says itself where it listens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_node_joins_despite_a_false_announcement() {
    let mut cluster = Cluster::start(3).await;
    drop(cluster.nodes.pop());
    let false_c =
        Peer::member(PeerId::new("c").unwrap(), [free_address().into()]).with_incarnation(Incarnation(u64::MAX));
    cluster.peers.change(|peers| {
        peers.retain(|peer| peer.id().is_none_or(|id| id.as_str() != "c"));
        peers.push(false_c);
    });
    let again = Node::builder().identity(identity("c")).provider(cluster.peers.clone()).start().await.unwrap();
    cluster.nodes.push(again);
    cluster.agree().await;
    cluster.shutdown().await;
}
