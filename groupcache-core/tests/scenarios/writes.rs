//! P9: after a complete write, no get that starts then yields a value whose load began before it.
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
use groupcache_core::{BoxError, Group, Node, Peer};

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

async fn numbered(starts: &Starts, key: &str) -> Result<String, BoxError> {
    let number = starts.next();
    // From none at all to a few milliseconds, so that writes meet loads at every stage.
    match (number + key.len() as u64) % 4 {
        0 => {}
        1 => tokio::task::yield_now().await,
        n => tokio::time::sleep(Duration::from_micros(400 * n)).await,
    }
    Ok(number.to_string())
}

fn number(value: &str) -> u64 {
    value.parse().expect("a number")
}

/// One life of a key: gets under way while it is written, then gets everywhere.
async fn round(groups: Vec<Group<String>>, starts: Starts, key: String, mut rng: fastrand::Rng) {
    let pick = |rng: &mut fastrand::Rng| groups[rng.usize(..groups.len())].clone();
    let mut under_way = tokio::task::JoinSet::new();
    for _ in 0..rng.usize(1..5) {
        let (group, key, pause) = (pick(&mut rng), key.clone(), rng.u64(..1500));
        under_way.spawn(async move {
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
    let written = written.expect("the owner is there");
    assert!(written.is_complete() && !written.views_differed(), "{written:?}");
    for _ in 0..3 {
        let value = number(&pick(&mut rng).get(&key).await.expect("a value"));
        assert!(value > before, "{key}: a get after the write began yields {value}, the write came after {before}");
    }
    while let Some(got) = under_way.join_next().await {
        got.unwrap().expect("who was under way gets a value too");
    }
    let value = number(&pick(&mut rng).get(&key).await.expect("a value"));
    assert!(value > before, "{key}: what was under way came back: {value}, the write came after {before}");
}

/// `rounds` rounds over a few keys, many side by side, each key one after another.
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
        done.expect("the rounds of a key hold");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_writes_on_one_node() {
    let node = Node::builder().start().await.unwrap();
    let starts = Starts::default();
    let group = node.group::<String>("data").capacity_bytes(1 << 20).loader_with(starts.clone(), numbered);
    rounds(vec![group.build().unwrap()], starts, 10_000).await;
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_writes_on_five_nodes() {
    let cluster = Cluster::start(5).await;
    let starts = Starts::default();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(starts.clone(), numbered))
        .await;
    rounds(groups, starts, 10_000).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_is_seen_everywhere_and_loads_nothing() {
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
    assert_eq!(starts.last(), 0, "no load");
    let owned: usize = groups.iter().map(Group::entries).sum();
    assert_eq!(owned, 3, "each value is at its owner");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_names_whom_it_did_not_reach() {
    let cluster = Cluster::start(3).await;
    let starts = Starts::default();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(starts.clone(), numbered))
        .await;
    let key = cluster.key_of(&groups, 2);
    // The owner disappears without a word, as a process that was killed does.
    let Cluster { mut nodes, peers } = cluster;
    drop((nodes.pop(), peers));
    support::eventually("its absence is noticed", || nodes.iter().all(|n| n.members().iter().any(|m| !m.is_reachable)))
        .await;
    let written = groups[0].set(&key, "by hand").await.expect("a successor takes it");
    assert_eq!(written.unreached().iter().map(|id| id.to_string()).collect::<Vec<_>>(), [name(2)]);
    assert!(!written.is_complete());
    for group in &groups[..2] {
        assert_eq!(group.get(&key).await.unwrap(), "by hand", "the successor has it");
    }
    // It is named too where it is not the owner: it may hold an older copy.
    let elsewhere = (0..).map(|n| format!("else-{n}")).find(|key| groups[0].owner_of(key).as_str() == "a").unwrap();
    let written = groups[1].remove(&elsewhere).await.expect("its owner is there");
    assert_eq!(written.unreached().iter().map(|id| id.to_string()).collect::<Vec<_>>(), [name(2)]);
}

/// A node that starts while the only other one cannot be reached, and writes: it says so, and the other one is told when
/// they meet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_names_who_is_listed_and_has_never_answered_and_who_hears_of_it_when_they_meet() {
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
    assert_eq!(written.unreached(), [b.id()], "its address is listed, and it may have the value");
    assert_eq!(number(&at_b.get(removed).await.unwrap()), 1, "nobody has told it");

    path.resume();
    support::eventually("they have met", || a.members().len() == 2).await;
    support::eventually("b was told", || at_b.stats().invalidated == 1).await;
    assert!(number(&at_b.get(removed).await.unwrap()) > before, "what was written is loaded again");
    assert_eq!(at_b.stats().invalidated, 1, "what was not written is left alone");
    assert!(at_a.remove(untouched).await.unwrap().is_complete(), "there is nobody left who has not answered");
    for node in [a, b] {
        node.shutdown_within(Duration::from_secs(1)).await.unwrap();
    }
}
