//! Writes (P9): after a complete write, no get that starts then yields a value from a load that began before it.
//!
//! The loader returns the number of its start, so that every value tells when it was loaded.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::support::{self, Cluster, Peers, Proxy, name};
use groupcache_core::{BoxError, Group, Node, discovery::Peer};

/// Numbers of loads and sets, in the order of their beginnings.
#[derive(Clone, Default)]
struct Starts(Arc<AtomicU64>);

impl Starts {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, SeqCst) + 1
    }

    fn last(&self) -> u64 {
        self.0.load(SeqCst)
    }
}

/// Loads a key as the number of this load.
async fn numbered(starts: &Starts, key: &str) -> Result<String, BoxError> {
    let number = starts.next();
    // Loads take from nothing to 1.2 ms, so that writes meet loads at every stage.
    match (number + key.len() as u64) % 4 {
        0 => {}
        1 => tokio::task::yield_now().await,
        n => tokio::time::sleep(Duration::from_micros(400 * n)).await,
    }
    Ok(number.to_string())
}

/// Returns the number in a value.
fn number(value: &str) -> u64 {
    value.parse().expect("a number")
}

/// Runs one round of a key: gets run during a write, and later gets at any node must not return an older value.
async fn round(groups: Vec<Group<String>>, starts: Starts, key: String, mut rng: fastrand::Rng) {
    let pick = |rng: &mut fastrand::Rng| groups[rng.usize(..groups.len())].clone();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..rng.usize(1..5) {
        let (group, key, pause) = (pick(&mut rng), key.clone(), rng.u64(..1500));
        running.spawn(async move {
            tokio::time::sleep(Duration::from_micros(pause)).await;
            group.get(&key).await
        });
    }
    if rng.bool() {
        tokio::time::sleep(Duration::from_micros(rng.u64(..2000))).await;
    }
    let writer = pick(&mut rng);
    let before = starts.last();
    let written =
        if rng.bool() { writer.remove(&key).await } else { writer.set(&key, starts.next().to_string()).await };
    let written = written.expect("the owner is reachable");
    assert!(written.is_complete(), "{written:?}");
    for _ in 0..3 {
        let value = number(&pick(&mut rng).get(&key).await.expect("a value"));
        assert!(value > before, "{key}: a get after the write returned {value}, the write came after {before}");
    }
    while let Some(got) = running.join_next().await {
        got.unwrap().expect("a concurrent get has a value");
    }
    let value = number(&pick(&mut rng).get(&key).await.expect("a value"));
    assert!(value > before, "{key}: a concurrent load restored {value}, the write came after {before}");
}

/// Runs `rounds` rounds over 50 keys: the keys in parallel, the rounds of each key one after another.
async fn rounds(groups: Vec<Group<String>>, starts: Starts, rounds: usize) {
    const KEYS: usize = 50;
    let mut keys = tokio::task::JoinSet::new();
    for n in 0..KEYS {
        let (groups, starts) = (groups.clone(), starts.clone());
        keys.spawn(async move {
            for at in 0..rounds / KEYS {
                let rng = fastrand::Rng::with_seed((n * rounds + at) as u64);
                round(groups.clone(), starts.clone(), format!("key-{n}"), rng).await;
            }
        });
    }
    while let Some(done) = keys.join_next().await {
        done.expect("the rounds of a key pass");
    }
}

/// Checks P9 in 10,000 rounds on one node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_writes_on_one_node_leave_no_old_value() {
    let node = Node::builder().start().await.unwrap();
    let starts = Starts::default();
    let group = node.group::<String>("data").capacity_bytes(1 << 20).loader_with(starts.clone(), numbered);
    rounds(vec![group.build().unwrap()], starts, 10_000).await;
    node.shutdown().await.unwrap();
}

/// Checks P9 in 10,000 rounds on five nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_writes_on_five_nodes_leave_no_old_value() {
    let cluster = Cluster::start(5).await;
    let starts = Starts::default();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(starts.clone(), numbered))
        .await;
    rounds(groups, starts, 10_000).await;
    cluster.shutdown().await;
}

/// Checks that all nodes return the value of a set, that nothing is loaded, and that only the owner keeps each value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn set_is_seen_by_all_nodes_without_a_load() {
    let cluster = Cluster::start(3).await;
    let starts = Starts::default();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(starts.clone(), numbered))
        .await;
    for (n, writer) in groups.iter().enumerate() {
        let key = format!("key-{n}");
        let written = writer.set(&key, "by hand").await.unwrap();
        assert!(written.is_complete());
        for group in &groups {
            assert_eq!(group.get(&key).await.unwrap(), "by hand");
        }
    }
    assert_eq!(starts.last(), 0, "nothing is loaded");
    let owned: usize = groups.iter().map(|group| group.inspect().entries()).sum();
    assert_eq!(owned, 3, "only the owners keep values");
    cluster.shutdown().await;
}

/// Checks that writes name an unreachable node, whether it is the owner of the key or not, and that a successor stores
/// the value in place of an unreachable owner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_names_an_unreachable_node() {
    let cluster = Cluster::start(3).await;
    let starts = Starts::default();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(starts.clone(), numbered))
        .await;
    let key = cluster.key_of(&groups, 2);
    // The owner ends without a goodbye, as a killed process does.
    let Cluster { mut nodes, peers } = cluster;
    drop((nodes.pop(), peers));
    support::eventually("all nodes see the owner unreachable", || {
        nodes.iter().all(|n| n.members().iter().any(|m| !m.reachable))
    })
    .await;
    let written = groups[0].set(&key, "by hand").await.expect("a successor stores the value");
    assert_eq!(written.pending().iter().map(|id| id.to_string()).collect::<Vec<_>>(), [name(2)]);
    assert!(!written.is_complete());
    for group in &groups[..2] {
        assert_eq!(group.get(&key).await.unwrap(), "by hand", "the successor has the value");
    }
    // The node is named for keys of other owners too, because it may hold an older replica.
    let elsewhere =
        (0..).map(|n| format!("else-{n}")).find(|key| groups[0].inspect().owner_of(key).as_str() == "a").unwrap();
    let written = groups[1].remove(&elsewhere).await.expect("the owner a is reachable");
    assert_eq!(written.pending().iter().map(|id| id.to_string()).collect::<Vec<_>>(), [name(2)]);
}

/// Checks that a write does not wait for a listed target that has never answered, and is sent once a peer answers
/// there.
///
/// Node `a` starts while its only peer cannot be reached, and writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_is_sent_to_a_peer_that_was_never_met() {
    let (starts, peers) = (Starts::default(), Peers::default());
    let start = async |name: &str, provider: Peers| {
        let node = Node::builder().identity(support::identity(name)).provider(provider).start().await.unwrap();
        let group = node.group::<String>("data").capacity_bytes(1 << 20).loader_with(starts.clone(), numbered);
        (node, group.build().unwrap())
    };
    let (b, at_b) = start("b", Peers::default()).await;
    let path = Proxy::start(b.address()).await;
    path.stop();
    peers.set(vec![Peer::member(b.id(), [path.address.into()])]);
    let (a, at_a) = start("a", peers.clone()).await;

    let (removed, untouched) = ("key-1", "key-2");
    for key in [removed, untouched] {
        let _ = at_b.get(key).await.expect("b serves alone");
    }
    let before = starts.last();
    let written = at_a.remove(removed).await.expect("a serves alone");
    assert!(written.is_complete(), "nobody has answered at the target: {written:?}");
    assert_eq!(a.discovery().unanswered_targets, 1);
    assert_eq!(number(&at_b.get(removed).await.unwrap()), 1, "b has not received the write");

    path.resume();
    support::eventually("a has reached b", || a.members().len() == 2).await;
    support::eventually("b receives the earlier write", || at_b.stats().invalidations == 1).await;
    assert!(number(&at_b.get(removed).await.unwrap()) > before, "the written key is loaded again");
    assert_eq!(at_b.stats().invalidations, 1, "the other key stays");
    assert!(at_a.remove(untouched).await.unwrap().is_complete(), "b has received the write");
    for node in [a, b] {
        node.shutdown_within(Duration::from_secs(1)).await.unwrap();
    }
}
