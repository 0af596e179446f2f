//! Inventions: discovery that anybody may write to lists ids that nobody has. Real peers are dialled as before.

use std::{sync::Arc, time::Duration};

use crate::support::{Peers, Proxy, eventually, identity, peer};
use groupcache_core::{
    Node, PeerId, async_trait,
    discovery::{Address, Peer, PeerSet, Provider, ProviderContext, ProviderError, Signal},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// Number of invented ids; with the real ones fewer than the maximum of a set.
const INVENTIONS: usize = 1_900;

/// Time for which dials are counted.
const COUNTED: Duration = Duration::from_secs(10);

/// A provider of hints, as NATS is.
#[derive(Clone)]
struct Hints(Arc<watch::Sender<Vec<Peer>>>);

#[async_trait]
impl Provider for Hints {
    fn name(&self) -> &str {
        "hints"
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        let mut peers = self.0.subscribe();
        loop {
            cx.publish(PeerSet::complete(peers.borrow_and_update().clone()));
            tokio::select! {
                changed = peers.changed() => changed?,
                signal = cx.next() => if signal == Signal::Leaving { return Ok(()) },
            }
        }
    }
}

/// Starts node `a` with hints of `b`, which is behind a proxy.
async fn pair() -> (Node, Node, Hints, Proxy) {
    let of_b = Peers::default();
    let b = Node::builder().identity(identity("b")).provider(of_b.clone()).start().await.unwrap();
    let proxy = Proxy::start(b.address()).await;
    let hints = Hints(Arc::new(watch::Sender::new(vec![Peer::member(b.id(), [proxy.address.into()])])));
    let a = Node::builder().identity(identity("a")).provider(hints.clone()).start().await.unwrap();
    of_b.set(vec![peer(&a), peer(&b)]);
    eventually("both are members", || reaches(&a, "b") && reaches(&b, "a")).await;
    (a, b, hints, proxy)
}

fn reaches(node: &Node, id: &str) -> bool {
    node.members().iter().any(|member| member.id.as_str() == id && member.reachable)
}

fn add(hints: &Hints, address: impl Fn(usize) -> Address) {
    let invented = |n| Peer::member(PeerId::new(format!("invented-{n}")).unwrap(), [address(n)]);
    hints.0.send_modify(|peers| peers.extend((0..INVENTIONS).map(invented)));
}

/// Checks that many ids at the address of a member cause no more dials there than one id does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_invented_at_a_member_cause_few_dials() {
    let (a, b, hints, proxy) = pair().await;
    let before = proxy.accepted();
    add(&hints, |_| proxy.address.into());
    sleep(COUNTED).await;
    let dials = proxy.accepted() - before;
    println!("{INVENTIONS} ids at one member: {dials} connections to it in {COUNTED:?}");
    assert!(dials <= 40, "{dials} connections in {COUNTED:?}");
    assert!(reaches(&a, "b") && reaches(&b, "a"));
    // The connection of the member itself is replaced as fast as ever, and the inventions wait for their turn.
    let lost = a.stats().lost;
    proxy.cut();
    eventually("the connection is replaced", || a.stats().lost > lost && reaches(&a, "b")).await;
    eventually("inventions are unconnected", || a.unconnected().len() > INVENTIONS / 2).await;
    for node in [a, b] {
        node.shutdown_within(Duration::from_secs(1)).await.unwrap();
    }
}

/// Checks that ids at addresses where nobody listens are dialled ever more seldom, and that a new peer among them
/// joins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_invented_at_dead_addresses_cause_few_dials() {
    let (a, b, hints, _proxy) = pair().await;
    let before = a.stats().connect_failed;
    let begun = Instant::now();
    add(&hints, |n| Address::new(format!("127.1.{}.{}:1", n >> 8, n & 255)).unwrap());
    sleep(COUNTED).await;
    let dials = a.stats().connect_failed - before;
    println!("{INVENTIONS} ids at dead addresses: {dials} failed dials in {:?}", begun.elapsed());
    // Each has a first dial, and the others are 20 a second.
    assert!(dials <= INVENTIONS as u64 + 20 * (begun.elapsed().as_secs() + 10), "{dials} dials");
    assert!(reaches(&a, "b"));
    let of_c = Peers::default();
    let c = Node::builder().identity(identity("c")).provider(of_c.clone()).start().await.unwrap();
    hints.0.send_modify(|peers| peers.push(peer(&c)));
    of_c.set(vec![peer(&a), peer(&b), peer(&c)]);
    eventually("a new peer joins", || reaches(&a, "c")).await;
    for node in [a, b, c] {
        node.shutdown_within(Duration::from_secs(1)).await.unwrap();
    }
}

/// Checks that nodes which connect to this one are dialled at once while more than a thousand addresses swallow dials
/// for minutes: a node that is listed by its id beside an invented id at its address, and one that is listed by its
/// address alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arrived_nodes_pass_addresses_that_swallow_dials() {
    let (a, b, hints, _proxy) = pair().await;
    // A port that nothing accepts on takes connections and never answers.
    let silent = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    add(&hints, |n| Address::new(format!("127.1.{}.{}:{port}", n >> 8, n & 255)).unwrap());
    eventually("dials are swallowed", || a.stats().connect_failed > 0).await;
    let (of_c, of_d) = (Peers::default(), Peers::default());
    let c = Node::builder().identity(identity("c")).provider(of_c.clone()).start().await.unwrap();
    let d = Node::builder().identity(identity("d")).provider(of_d.clone()).start().await.unwrap();
    let invented = Peer::member(PeerId::new("zz-invented").unwrap(), [c.address().into()]);
    hints.0.send_modify(|peers| peers.extend([invented, peer(&c), Peer::at(d.address().to_string()).unwrap()]));
    sleep(Duration::from_millis(200)).await; // the targets wait for their turn
    let begun = Instant::now();
    for of_one in [of_c, of_d] {
        of_one.set(vec![peer(&a)]);
    }
    eventually("both are members", || reaches(&a, "c") && reaches(&a, "d")).await;
    println!("members {:?} after they connected, beside {INVENTIONS} addresses that swallow dials", begun.elapsed());
    for node in [a, b, c, d] {
        node.shutdown_within(Duration::from_secs(1)).await.unwrap();
    }
}
