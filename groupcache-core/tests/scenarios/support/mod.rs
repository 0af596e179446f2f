//! Test clusters: real nodes on loopback sockets, with a provider that the test controls.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_docs,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "each test file uses a part of the helpers, and a failing helper fails the test"
)]

#[cfg(feature = "tls")]
pub mod pki;
mod proxy;
pub mod raw;
#[cfg(feature = "tls")]
pub mod unlisted_client;
pub mod warnings;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use groupcache_core::{
    BoxError, Group, GroupBuilder, Identity, Limits, Node, NodeBuilder, Value, WriteOutcome, async_trait,
    discovery::{Peer, PeerSet, Provider, ProviderContext, ProviderError, Signal, Trust},
};
use read_along as _;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

pub use proxy::Proxy;

/// Returns how many loads run on a node and how many wait for a permit.
pub fn loads_of(node: &Node) -> (usize, usize) {
    let loads = node.loads();
    (loads.running, loads.queued)
}

/// Time limit that anything that works keeps, even on a busy machine with two cores.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A provider with a peer set that the test changes.
#[derive(Clone)]
pub struct Peers(Arc<watch::Sender<Vec<Peer>>>);

impl Default for Peers {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Vec::new())))
    }
}

impl Peers {
    pub fn set(&self, peers: Vec<Peer>) {
        self.0.send_replace(peers);
    }

    pub fn change(&self, change: impl FnOnce(&mut Vec<Peer>)) {
        self.0.send_modify(change);
    }
}

#[async_trait]
impl Provider for Peers {
    fn name(&self) -> &str {
        "test"
    }

    fn trust(&self) -> Trust {
        Trust::Authority
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

/// Nodes `a`, `b`, `c`…, and the provider that reports them to each other.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub peers: Peers,
}

pub fn name(n: usize) -> String {
    char::from(b'a' + n as u8).to_string()
}

/// Returns an identity with this name on a free loopback port.
pub fn identity(name: &str) -> Identity {
    Identity::default().with_id(name).expect("the id is valid")
}

pub fn peer(node: &Node) -> Peer {
    Peer::member(node.id(), [node.address().into()])
}

impl Cluster {
    pub async fn start(n: usize) -> Self {
        Self::start_with(n, Limits::default()).await
    }

    pub async fn start_with(n: usize, limits: Limits) -> Self {
        Self::start_each(n, |_, builder| builder.limits(limits.clone())).await
    }

    /// Starts `n` nodes, each configured by `build`.
    pub async fn start_each(n: usize, build: impl Fn(usize, NodeBuilder) -> NodeBuilder) -> Self {
        let peers = Peers::default();
        let mut nodes = Vec::new();
        for at in 0..n {
            let builder = Node::builder().identity(identity(&name(at))).provider(peers.clone());
            nodes.push(build(at, builder).start().await.expect("the node starts"));
        }
        peers.set(nodes.iter().map(peer).collect());
        let cluster = Self { nodes, peers };
        cluster.agree().await;
        cluster
    }

    /// Starts nodes `a` and `b`. `a` connects to `b` through a proxy that the test can stop, and `b` connects to `a`
    /// directly.
    pub async fn start_with_proxy() -> (Self, Proxy) {
        let peers = Peers::default();
        let start =
            async |name: &str| Node::builder().identity(identity(name)).provider(peers.clone()).start().await.unwrap();
        let (a, b) = (start("a").await, start("b").await);
        let proxy = Proxy::start(b.address()).await;
        peers.set(vec![peer(&a), Peer::member(b.id(), [proxy.address.into()])]);
        let cluster = Self { nodes: vec![a, b], peers };
        cluster.agree().await;
        (cluster, proxy)
    }

    /// Waits until every node sees all nodes as reachable owners and all fingerprints are equal.
    pub async fn agree(&self) {
        eventually("all nodes agree", || {
            let n = self.nodes.len();
            let first = self.nodes[0].fingerprint();
            self.nodes.iter().all(|node| {
                let members = node.members();
                members.len() == n && members.iter().all(|m| m.owns && m.reachable) && node.fingerprint() == first
            })
        })
        .await;
    }

    /// Builds the same group on all nodes and waits until every node knows the group at all others.
    pub async fn group<V: Value>(&self, build: impl Fn(usize, &Node) -> GroupBuilder<V>) -> Vec<Group<V>> {
        let build = |(at, node)| build(at, node).build().expect("the group is valid");
        let groups: Vec<Group<V>> = self.nodes.iter().enumerate().map(build).collect();
        self.wait_for_group(groups[0].name()).await;
        groups
    }

    /// Waits until every node knows that all others have the group.
    pub async fn wait_for_group(&self, group: &str) {
        eventually("all nodes know the group", || {
            self.nodes.iter().all(|node| node.peers_with_group(group) + 1 == self.nodes.len())
        })
        .await;
    }

    /// Returns the index of the owner of a key, as node `a` sees it.
    pub fn owner<V: Value>(&self, groups: &[Group<V>], key: &str) -> usize {
        let owner = groups[0].inspect().owner_of(key);
        self.nodes.iter().position(|node| node.id() == owner).expect("the owner is a node of the cluster")
    }

    /// Returns a key that the given node owns.
    pub fn key_of<V: Value>(&self, groups: &[Group<V>], node: usize) -> String {
        (0..).map(|n| format!("key-{n}")).find(|key| self.owner(groups, key) == node).expect("the node owns a key")
    }

    pub async fn shutdown(self) {
        for node in &self.nodes {
            node.shutdown_within(Duration::from_secs(1)).await.expect("the node shuts down");
        }
    }
}

/// Waits for a condition. Panics with its name when the condition does not hold within [`PATIENCE`].
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"));
}

/// Repeats a write until it is complete. A node of a busy machine may take longer than a second to acknowledge one.
pub async fn complete<F: Future<Output = WriteOutcome>>(write: impl Fn() -> F) {
    let until = Instant::now() + PATIENCE;
    loop {
        let written = write().await;
        if written.is_complete() {
            return;
        }
        assert!(Instant::now() < until, "no complete write within {PATIENCE:?}: {written:?}");
    }
}

/// A counter of loads by key, shared by all nodes of a test.
#[derive(Clone, Default)]
pub struct Loads(Arc<Counted>);

#[derive(Default)]
struct Counted {
    total: AtomicU64,
    by_key: Mutex<BTreeMap<String, u64>>,
}

impl Loads {
    /// Counts a load and returns its number among the loads of all keys, from 1.
    pub fn begin(&self, key: &str) -> u64 {
        *self.0.by_key.lock().unwrap().entry(key.to_owned()).or_default() += 1;
        self.0.total.fetch_add(1, SeqCst) + 1
    }

    pub fn total(&self) -> u64 {
        self.0.total.load(SeqCst)
    }

    pub fn of(&self, key: &str) -> u64 {
        self.0.by_key.lock().unwrap().get(key).copied().unwrap_or(0)
    }
}

/// A gate at which loads wait until the test opens it.
#[derive(Clone, Default)]
pub struct Gate {
    pub loads: Loads,
    is_open: Arc<watch::Sender<bool>>,
}

impl Gate {
    pub fn open(&self) {
        self.is_open.send_replace(true);
    }

    pub fn close(&self) {
        self.is_open.send_replace(false);
    }

    pub async fn pass(&self) {
        let mut is_open = self.is_open.subscribe();
        let _ = is_open.wait_for(|open| *open).await;
    }

    /// Waits until exactly this many loads have begun.
    pub async fn begun(&self, loads: u64) {
        eventually("the loads begin", || self.loads.total() == loads).await;
    }
}

/// Waits at the gate and returns a value that names the key and the number of this load among the loads of the key.
pub async fn gated(gate: &Gate, key: &str) -> Result<String, BoxError> {
    gate.loads.begin(key);
    let number = gate.loads.of(key);
    gate.pass().await;
    Ok(format!("{key} by load {number}"))
}
