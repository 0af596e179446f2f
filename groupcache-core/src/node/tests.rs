//! Nodes that disagree about the owner of a key, and other tests that need the inside of a node.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    Group, Node,
    identity::{Incarnation, Instance, PeerId},
    membership::{stabilizer::MemberSet, view::View},
    testing::unit::support::{Cluster, Gate, Loads},
    write::log::Entry,
};

const LOAD: Duration = Duration::from_millis(300);

async fn slow(loads: &Loads, key: &str) -> Result<String, crate::BoxError> {
    let number = loads.begin(key);
    tokio::time::sleep(LOAD).await;
    Ok(number.to_string())
}

/// Installs a view at `node` in which these members own the keys.
fn install_owners(node: &Node, owners: &[&str]) {
    let context = &node.inner.context;
    let view = context.view();
    let mut members = view.members().to_vec();
    for member in &mut members {
        member.share = u8::from(owners.contains(&member.id.as_str()));
    }
    context.install_view(View::new(view.epoch + 1, MemberSet { members }));
}

/// Starts three nodes with a group of the slow loader.
async fn three_nodes(loads: &Loads) -> (Cluster, Vec<Group<String>>) {
    let cluster = Cluster::start(3).await;
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(loads.clone(), slow))
        .await;
    (cluster, groups)
}

/// Gets three keys in turn, each with many callers at all nodes at once, and checks that the gets of the fastest key
/// end within 100 ms of the loader's time.
///
/// A busy machine may delay one of the keys, while a time-out would delay each.
async fn all_get(groups: &[Group<String>], loads: &Loads, most_loads: u64) {
    let mut took = Vec::new();
    for key in ["first", "second", "third"] {
        let began = Instant::now();
        let mut callers = tokio::task::JoinSet::new();
        for group in groups {
            for _ in 0..50 {
                let group = group.clone();
                callers.spawn(async move { group.get(key).await });
            }
        }
        for value in callers.join_all().await {
            value.expect("a value");
        }
        took.push(began.elapsed());
        assert!((1..=most_loads).contains(&loads.of(key)), "{} loads", loads.of(key));
    }
    let best = took.iter().min().expect("three");
    assert!(*best < LOAD + Duration::from_millis(100), "no get waits for a time-out: {took:?}");
}

/// Checks that two nodes that each take the other for the owner load at most once each, without waiting for each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_with_swapped_owners_load_without_waiting() {
    let loads = Loads::default();
    let (cluster, groups) = three_nodes(&loads).await;
    install_owners(&cluster.nodes[0], &["b"]);
    install_owners(&cluster.nodes[1], &["a"]);
    all_get(&groups[..2], &loads, 2).await;
    cluster.shutdown().await;
}

/// Checks that three nodes with owners in a circle load at most once each, without waiting for each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_with_owners_in_a_circle_load_once_each() {
    let loads = Loads::default();
    let (cluster, groups) = three_nodes(&loads).await;
    for (node, owner) in [(0, "b"), (1, "c"), (2, "a")] {
        install_owners(&cluster.nodes[node], &[owner]);
    }
    all_get(&groups, &loads, 3).await;
    cluster.shutdown().await;
}

/// Checks that a node that receives a request for a key of another node loads it, and keeps the value for 5 s at most.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn misdirected_request_keeps_value_for_short_time() {
    let loads = Loads::default();
    let (cluster, groups) = three_nodes(&loads).await;
    install_owners(&cluster.nodes[0], &["b"]); // node b has the real view, in which it owns only its share
    let key = (0..).map(|n| format!("key-{n}")).find(|key| groups[1].inspect().owner_of(key).as_str() == "c").unwrap();
    groups[0].get(&key).await.unwrap();
    let kept = groups[1].kept_for_ms(&key).expect("kept");
    assert!(kept <= 5_000, "the fallback cap bounds the time: {kept} ms");
    assert_eq!(groups[1].stats().fallback_loads, 1);
    cluster.shutdown().await;
}

/// Returns the number of the load. The first load waits for the gate.
async fn first_waits(gate: &Gate, key: &str) -> Result<String, crate::BoxError> {
    let number = gate.loads.begin(key);
    if number == 1 {
        gate.pass().await;
    }
    Ok(number.to_string())
}

/// Applies a write of another node at one node only, as if that node alone had heard of it.
fn hear(node: &Node, group: &Group<String>, key: &str, number: u64) {
    let (writes, now_ms) = (&node.inner.context.local.writes, node.inner.context.now_ms());
    let writer = Instance { id: PeerId::new("writer").unwrap(), incarnation: Incarnation(1) };
    let entry = Entry { number, group: group.name().into(), key: Some(key.into()), written_ms: now_ms };
    let entry = writes.begin(&writer, entry, now_ms).expect("a new write");
    group.service().invalidate(key);
    writes.commit(&writer, entry, now_ms);
}

/// Checks that a get of a node that has heard of a write returns no value from before it, although the owner has not
/// heard of the write and a load from before the write runs there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owner_is_told_of_write_by_the_get_of_a_peer() {
    let gate = Gate::default();
    let cluster = Cluster::start(2).await;
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), first_waits))
        .await;
    let key = cluster.key_of(&groups, 0);
    let get = |group: &Group<String>| {
        let (group, key) = (group.clone(), key.clone());
        tokio::spawn(async move { group.get(&key).await.expect("a value") })
    };
    let before = get(&groups[0]);
    gate.begun(1).await;
    hear(&cluster.nodes[1], &groups[1], &key, 1);
    assert_eq!(get(&groups[1]).await.unwrap(), "2", "node a drops its load, because the request names the write");
    gate.open();
    assert_eq!(before.await.unwrap(), "1");
    for group in &groups {
        assert_eq!(get(group).await.unwrap(), "2", "the earlier value is not cached");
    }
    assert_eq!(gate.loads.total(), 2, "callers after the write share its load");
    hear(&cluster.nodes[1], &groups[1], &key, 2);
    assert_eq!(get(&groups[1]).await.unwrap(), "3", "node a drops its value too");
    cluster.shutdown().await;
}

/// Checks that the watch over loads does not overflow when the load deadline is [`Duration::MAX`].
#[tokio::test]
async fn load_watch_accepts_an_infinite_deadline() {
    let node = Node::builder().start().await.unwrap();
    let echo = async |key: &str| Ok::<_, crate::BoxError>(key.to_owned());
    let group = node.group::<String>("data").capacity_bytes(1 << 20).load_deadline(Duration::MAX).loader(echo);
    let group = group.build().unwrap();
    group.service().watch(); // as the tick does, which must not panic here
    assert_eq!(group.get("key").await.unwrap(), "key");
}
