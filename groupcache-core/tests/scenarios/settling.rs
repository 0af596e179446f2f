//! Writes that do not reach every node at once: how they settle, and how old the values are that nodes serve meanwhile.

use std::{collections::BTreeSet, time::Duration};

use groupcache_core::{
    BoxError, Group, GroupBuilder, Node, WriteOutcome,
    discovery::{Address, Peer},
};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{self, Loads, PATIENCE, Peers, Proxy, eventually, name};

/// Bound on the staleness: the smallest.
const BOUND: Duration = Duration::from_secs(3);

/// Nodes `a`, `b`, `c`…, each of which dials each other node through a proxy of its own.
struct Net {
    nodes: Vec<Node>,
    groups: Vec<Group<String>>,
    loads: Loads,
    lists: Vec<Peers>,
    /// Paths by the index of the node that dials, and of the node that is dialled.
    paths: Vec<Vec<Option<Proxy>>>,
}

impl Net {
    /// Starts `n` nodes with a group of values that stay for an hour.
    async fn start(n: usize, bound: Option<Duration>) -> Self {
        let (mut nodes, mut lists, loads) = (Vec::new(), Vec::new(), Loads::default());
        for at in 0..n {
            let peers = Peers::default();
            // No path past the proxies, because nobody listens at the address of the Hello.
            let identity =
                support::identity(&name(at)).with_advertised([Address::new("127.0.0.1:1").unwrap()]).unwrap();
            nodes.push(Node::builder().identity(identity).provider(peers.clone()).start().await.unwrap());
            lists.push(peers);
        }
        let mut paths: Vec<Vec<Option<Proxy>>> = Vec::new();
        for from in 0..n {
            let mut row = Vec::new();
            for (to, node) in nodes.iter().enumerate() {
                row.push(if from == to { None } else { Some(Proxy::start(node.address()).await) });
            }
            paths.push(row);
        }
        let net = Self { nodes, groups: Vec::new(), loads, lists, paths };
        net.list_all();
        let (nodes, loads) = (&net.nodes, &net.loads);
        eventually("all nodes agree", || {
            nodes.iter().all(|node| {
                node.members().iter().filter(|m| m.owns && m.reachable).count() == n
                    && node.fingerprint() == nodes[0].fingerprint()
            })
        })
        .await;
        let build = |node: &Node| {
            let group = group_of(node, loads);
            if let Some(bound) = bound { group.max_staleness(bound) } else { group }.build().unwrap()
        };
        let groups: Vec<_> = nodes.iter().map(build).collect();
        eventually("all nodes know the group", || nodes.iter().all(|node| node.peers_with_group("data") == n - 1))
            .await;
        Self { groups, ..net }
    }

    /// Lists every node for every node.
    fn list_all(&self) {
        for (from, list) in self.lists.iter().enumerate() {
            let peer = |to: usize| {
                let own = || Address::from(self.nodes[from].address());
                let address = self.paths[from][to].as_ref().map_or_else(own, |path| path.address.into());
                Peer::member(self.nodes[to].id(), [address])
            };
            list.set((0..self.nodes.len()).map(peer).collect());
        }
    }

    /// Stops or resumes the paths between two nodes, in both directions.
    fn cut(&self, a: usize, b: usize, is_cut: bool) {
        for path in [&self.paths[a][b], &self.paths[b][a]].into_iter().flatten() {
            if is_cut {
                path.stop();
                path.cut();
            } else {
                path.cut();
                path.resume();
            }
        }
    }

    fn keys_of(&self, owner: usize) -> impl Iterator<Item = String> {
        let is_owned = move |key: &String| self.groups[0].inspect().owner_of(key) == self.nodes[owner].id();
        (0..).map(|n| format!("key-{n}")).filter(is_owned)
    }

    fn key_of(&self, owner: usize) -> String {
        self.keys_of(owner).next().unwrap()
    }

    async fn get(&self, at: usize, key: &str) -> u64 {
        self.groups[at].get(key).await.expect("a value").parse().expect("a number")
    }
}

/// Returns the number of the load of a key.
async fn numbered(loads: &Loads, key: &str) -> Result<String, BoxError> {
    Ok(loads.begin(key).to_string())
}

/// Returns a group with values that stay for an hour.
fn group_of(node: &Node, loads: &Loads) -> GroupBuilder<String> {
    let group = node.group::<String>("data").capacity_bytes(1 << 20).loader_with(loads.clone(), numbered);
    group.time_to_live(Duration::from_secs(3600)).jitter(0.0)
}

/// Waits until a write has settled, and returns how long that took.
async fn settled(written: &WriteOutcome) -> Duration {
    let begun = Instant::now();
    timeout(PATIENCE, written.settled()).await.unwrap_or_else(|_| panic!("not settled: {written:?}"));
    begun.elapsed()
}

/// Checks that a write settles although its writer and the owner cannot reach each other, as long as both reach a third
/// node, and that the owner serves nothing older then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_settles_through_a_third_node() {
    let net = Net::start(3, None).await;
    let key = net.key_of(1);
    assert_eq!((net.get(1, &key).await, net.get(2, &key).await), (1, 1));
    net.cut(0, 1, true);
    let written = net.groups[0].remove(&key).await.unwrap();
    settled(&written).await;
    assert!(net.get(1, &key).await > 1 && net.get(2, &key).await > 1);
    assert!(net.nodes[1].stats().pulled_writes > 0);
}

/// Checks that all other nodes have acknowledged a write at its outcome while the owner hangs, whichever of them is the
/// next candidate. On a busy machine the test has further attempts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_beyond_an_owner_that_hangs_is_told() {
    let mut pending = BTreeSet::new();
    for _ in 0..5 {
        let net = Net::start(3, None).await;
        [(0, 1), (1, 0)].iter().for_each(|(from, to)| net.paths[*from][*to].as_ref().unwrap().stop());
        let remove = |key: String| {
            let group = net.groups[0].clone();
            tokio::spawn(async move { group.remove(&key).await.unwrap().pending().to_vec() })
        };
        let writes: Vec<_> = net.keys_of(1).take(8).map(remove).collect();
        pending.clear();
        for write in writes {
            pending.extend(write.await.unwrap());
        }
        if pending == BTreeSet::from([net.nodes[1].id()]) {
            return;
        }
    }
    panic!("not acknowledged: {pending:?}");
}

/// Checks that all nodes hear of a write after its writer has told one of them and died.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_of_a_dead_writer_reaches_every_node() {
    let mut net = Net::start(3, None).await;
    let key = net.key_of(1);
    net.cut(0, 1, true);
    assert_eq!(net.get(1, &key).await, 1);
    let end = Instant::now() + PATIENCE;
    while net.groups[0].remove(&key).await.unwrap().pending() != [net.nodes[1].id()] {
        assert!(Instant::now() < end, "c has heard of the write");
    }
    drop((net.groups.remove(0), net.nodes.remove(0)));
    let end = Instant::now() + PATIENCE;
    while net.groups[0].get(&key).await.unwrap() == "1" {
        assert!(Instant::now() < end, "b has heard of the write from c");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Checks that a node that is cut off serves no value older than the bound, that writes settle by then, and that the
/// values that no write concerns are served again after the cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_is_cut_off_keeps_the_bound() {
    let net = Net::start(2, Some(BOUND)).await;
    let mut keys = net.keys_of(1);
    let (removed, untouched) = (keys.next().unwrap(), keys.next().unwrap());
    net.cut(0, 1, true);
    assert_eq!((net.get(1, &removed).await, net.get(1, &untouched).await), (1, 2));
    let (begun, written) = (Instant::now(), net.groups[0].remove(&removed).await.unwrap());
    assert!(!written.is_complete());
    settled(&written).await;
    assert!(begun.elapsed() >= BOUND, "the node may serve the value until then");
    assert!(net.get(1, &removed).await > 2, "the value is older than the bound");
    assert!(net.groups[1].stats().too_stale > 0);
    let horizon = net.nodes[1].horizon();
    let (age, peer) = (horizon.borrow().age, horizon.borrow().held_back_by.clone());
    assert!(age >= Duration::from_secs(2) && peer == Some(net.nodes[0].id()), "{age:?} {peer:?}");

    net.cut(0, 1, false);
    eventually("b hears of everything again", || net.nodes[1].horizon().borrow().age < Duration::from_secs(2)).await;
    let before = net.loads.total();
    sleep(BOUND).await;
    net.get(1, &untouched).await;
    assert_eq!(net.loads.total(), before, "the value is within the horizon of its node");
}

/// Checks that a group without a bound on a node that is cut off serves what it has, until it has asked for the writes
/// that it missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_is_back_asks_for_missed_writes() {
    let net = Net::start(2, None).await;
    let key = net.key_of(1);
    assert_eq!(net.get(1, &key).await, 1);
    net.cut(0, 1, true);
    eventually("a has lost b", || net.nodes[0].members().iter().any(|member| !member.reachable)).await;
    let written = net.groups[0].remove(&key).await.unwrap();
    assert_eq!(written.pending(), [net.nodes[1].id()]);
    assert_eq!(net.get(1, &key).await, 1, "no bound");
    assert!(timeout(Duration::from_millis(200), written.settled()).await.is_err());
    net.cut(0, 1, false);
    settled(&written).await;
    assert!(net.get(1, &key).await > 1);
}

/// Checks that a lone node serves from memory whatever its bound, and that a bound below 3 s is refused.
#[tokio::test(start_paused = true)]
async fn lone_node_serves_from_memory_within_any_bound() {
    let (node, loads) = (Node::builder().start().await.unwrap(), Loads::default());
    let error = group_of(&node, &loads).max_staleness(BOUND - Duration::from_millis(1)).build().unwrap_err();
    assert!(error.is_config() && error.to_string().contains("max_staleness"), "{error}");
    let group = group_of(&node, &loads).max_staleness(BOUND).build().unwrap();
    for _ in 0..10 {
        assert_eq!(group.get("key").await.unwrap(), "1");
        sleep(Duration::from_secs(2)).await;
    }
    assert!(node.horizon().borrow().held_back_by.is_none());
    assert!(group.remove("key").await.unwrap().is_complete());
    assert_eq!(group.get("key").await.unwrap(), "2");
}

/// Checks that a "not found" is as old as the values that its loader has read through another group.
#[tokio::test(start_paused = true)]
async fn nothing_is_as_old_as_the_values_that_its_loader_read() {
    let (lists, loads) = (Peers::default(), Loads::default());
    let node = Node::builder().identity(support::identity("b")).provider(lists.clone()).start().await.unwrap();
    // A target that never answers, so that the node is not alone and its horizon stands still.
    lists.set(vec![Peer::at("127.0.0.1:1").unwrap()]);
    let inner = group_of(&node, &loads).build().unwrap();
    let nothing = async |inner: &Group<String>, key: &str| {
        inner.get(key).await?;
        Ok::<_, BoxError>(None::<String>)
    };
    let outer = node.group::<String>("outer").capacity_bytes(1 << 20).negative_time_to_live(BOUND * 10);
    let outer = outer.max_staleness(BOUND).loader_with(inner.clone(), nothing).build().unwrap();
    inner.get("key").await.unwrap();
    sleep(BOUND * 2).await;
    let error = outer.get("key").await.unwrap_err();
    assert!(error.is_load_failed() && error.to_string().contains("max_staleness"), "{error}");
    inner.remove("key").await.unwrap().log_pending();
    assert!(outer.get("key").await.unwrap_err().is_not_found(), "the value that the loader reads is young");
}
