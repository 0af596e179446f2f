//! Loads of suspects at a node, beside gets of other keys.

use std::{sync::Arc, time::Duration};

use crate::{
    Group, Limits, Loaded,
    flight::nesting::Stage,
    identity::{Incarnation, Instance, PeerId},
    loader::{BatchLoader, LoadError},
    peer::group_service::{GroupService, LoadRequest},
    protocol::{chain::LoadChain, message::Response},
    testing::unit::support::{Cluster, Gate, Loads, eventually, gated},
};

async fn counted(loads: &Loads, key: &str) -> Result<String, crate::BoxError> {
    Ok(loads.begin(key).to_string())
}

/// Starts three nodes with a group that has one load at a time, and returns a key of node `b`.
async fn cluster(loads: &Loads) -> (Cluster, Vec<Group<String>>, Arc<str>) {
    cluster_with(loads, Limits::default()).await
}

async fn cluster_with(loads: &Loads, limits: Limits) -> (Cluster, Vec<Group<String>>, Arc<str>) {
    let cluster = Cluster::start_with(3, limits).await;
    let build = |_, node: &crate::Node| node.group::<String>("data").capacity_bytes(1 << 20).max_loads(1);
    let groups = cluster.group(|n, node| build(n, node).loader_with(loads.clone(), counted)).await;
    let key = cluster.key_of(&groups, 1).into();
    (cluster, groups, key)
}

/// Records at a node that a process which nobody knows ended during a load of the key.
fn strike(group: &Group<String>, key: &Arc<str>, process: &str) {
    let process = Instance { id: PeerId::new(process).unwrap(), incarnation: Incarnation(1) };
    let local = &group.engine.context.local;
    local.quarantine.strike(&"data".into(), key, process, local.clock.read_ms());
}

/// Checks that a value which was set is served to all nodes although its key is in quarantine.
#[tokio::test]
async fn set_repairs_a_key_in_quarantine() {
    let loads = Loads::default();
    let (cluster, groups, key) = cluster(&loads).await;
    ["x", "y"].iter().for_each(|process| strike(&groups[0], &key, process));
    eventually("all know", || cluster.nodes.iter().all(|node| node.quarantined().len() == 1)).await;
    for group in &groups {
        assert!(group.get(&key).await.unwrap_err().is_quarantined());
        assert!(group.get_many(&[&*key]).await[0].as_ref().unwrap_err().is_quarantined());
    }
    let _ = groups[2].set(&key, "repaired".to_owned()).await.unwrap();
    for group in &groups {
        assert_eq!(group.get(&key).await.unwrap(), "repaired");
    }
    assert_eq!(loads.of(&key), 0);
    cluster.shutdown().await;
}

/// Checks that a suspect which waits for its turn takes no permit of other loads, and is refused without a call of its
/// loader if a second strike comes meanwhile.
#[tokio::test]
async fn second_strike_refuses_a_waiting_load() {
    let loads = Loads::default();
    let (cluster, groups, key) = cluster(&loads).await;
    strike(&groups[0], &key, "x");
    let turn = Arc::clone(&groups[1].engine.context.local.quarantine.turn).acquire_owned().await.unwrap();
    let (asker, asked) = (groups[0].clone(), Arc::clone(&key));
    let suspected = tokio::spawn(async move { asker.get(&asked).await });
    eventually("the load waits", || cluster.nodes[1].loads().running == 0 && is_loading(&groups[1], &key)).await;
    let other = (0..).map(|n| format!("other-{n}")).find(|key| cluster.owner(&groups, key) == 1).unwrap();
    assert_eq!(groups[0].get(&other).await.unwrap(), "1");
    strike(&groups[1], &key, "y");
    drop(turn);
    assert!(suspected.await.unwrap().unwrap_err().is_quarantined());
    assert_eq!((loads.of(&key), cluster.nodes[1].quarantined().len()), (0, 1), "the strikes stay");
    cluster.shutdown().await;
}

fn is_loading(group: &Group<String>, key: &str) -> bool {
    group.engine.flights.running(crate::flight::Kind::Load, key).is_some()
}

/// Checks that a suspect is loaded for a peer that hears of the beginning, and for no other one, and is clean afterwards.
#[tokio::test]
async fn suspect_is_loaded_for_a_witness_only() {
    let loads = Loads::default();
    let (cluster, groups, key) = cluster(&loads).await;
    strike(&groups[1], &key, "x");
    let request =
        |key| LoadRequest { key, wait: Duration::from_secs(1), chain: LoadChain::EMPTY, strikes: None, notice: None };
    let response = Arc::clone(&groups[1].engine).load(request(&key)).await;
    assert!(matches!(response, Response::Quarantined { .. }), "{response:?}");
    assert_eq!(loads.of(&key), 0);
    assert_eq!(groups[0].get(&key).await.unwrap(), "1");
    eventually("the key is clean", || groups[1].engine.suspect(&key).is_none()).await;
    cluster.shutdown().await;
}

/// Checks that a suspect is not loaded once its peer has given up, because nobody would witness the end of the process.
#[tokio::test]
async fn suspect_of_an_impatient_peer_is_not_loaded() {
    let loads = Loads::default();
    let limits = Limits { get_deadline: Duration::from_millis(300), ..Limits::default() };
    let (cluster, groups, key) = cluster_with(&loads, limits).await;
    strike(&groups[1], &key, "x");
    eventually("the peer knows", || groups[0].engine.suspect(&key).is_some()).await;
    let turn = Arc::clone(&groups[1].engine.context.local.quarantine.turn).acquire_owned().await.unwrap();
    assert!(groups[0].get(&key).await.is_err());
    let flights = &groups[1].engine.flights;
    eventually("the load has ended", || flights.running(crate::flight::Kind::Load, &key).is_none()).await;
    drop(turn);
    assert_eq!(loads.of(&key), 0);
    assert!(groups[1].engine.suspect(&key).is_some(), "the strike stays");
    cluster.shutdown().await;
}

/// Checks that a strike takes one key out of a batch that waits for a permit, and that the other keys are loaded.
#[tokio::test]
async fn strike_takes_its_key_out_of_a_waiting_batch() {
    struct Rows(Gate);

    impl BatchLoader<String> for Rows {
        async fn load_many(&self, keys: &[&str]) -> Result<Vec<Result<Loaded<String>, LoadError>>, LoadError> {
            for key in keys {
                gated(&self.0, key).await?;
            }
            Ok(keys.iter().map(|key| Ok(Loaded::new((*key).to_owned()))).collect())
        }
    }

    let limits = Limits { max_loads: 1, ..Limits::default() };
    let (loads, node) = (Gate::default(), crate::Node::builder().limits(limits).start().await.unwrap());
    let group = node.group::<String>("data").capacity_bytes(1 << 20);
    let group = group.batch_loader(Rows(loads.clone())).build().unwrap();
    let get = |keys: &'static [&'static str]| {
        let group = group.clone();
        tokio::spawn(async move { group.get_many(keys).await })
    };
    let first = get(&["first"]);
    eventually("the first load runs", || loads.loads.of("first") == 1).await;
    let others = get(&["second", "third"]);
    eventually("the others wait", || is_loading(&group, "second") && is_loading(&group, "third")).await;
    eventually("the batch waits", || node.loads().queued == 1).await;
    strike(&group, &"second".into(), "x");
    loads.open();
    assert!(first.await.unwrap()[0].is_ok());
    let outcomes = others.await.unwrap();
    assert!(outcomes[0].as_ref().unwrap_err().is_quarantined());
    assert_eq!(outcomes[1].as_ref().unwrap(), "third");
    assert_eq!((loads.loads.of("second"), loads.loads.of("third")), (0, 1));
}

/// Checks that the request of a peer that knows of a strike gets a load of its own, of which the peer hears, while a load
/// of a local caller waits for a permit and is refused at its turn.
#[tokio::test]
async fn suspect_does_not_join_a_load_without_a_turn() {
    let limits = Limits { max_loads: 1, ..Limits::default() };
    let (cluster, loads) = (Cluster::start_with(3, limits).await, Gate::default());
    let build = |node: &crate::Node| node.group::<String>("data").capacity_bytes(1 << 20);
    let groups = cluster.group(|_, node| build(node).loader_with(loads.clone(), gated)).await;
    let key: Arc<str> = cluster.key_of(&groups, 1).into();
    let get = |n: usize, key: Arc<str>| {
        let group: Group<String> = groups[n].clone();
        tokio::spawn(async move { group.get(&key).await })
    };
    let other = (0..).map(|n| format!("other-{n}")).find(|key| cluster.owner(&groups, key) == 1).unwrap();
    let other = get(1, other.into());
    eventually("the other load runs", || cluster.nodes[1].loads().running == 1).await;
    let own = get(1, Arc::clone(&key));
    eventually("the load waits", || cluster.nodes[1].loads().queued == 1).await;
    [0, 1].iter().for_each(|n| strike(&groups[*n], &key, "x"));
    let of_peer = get(0, Arc::clone(&key));
    let is_in_turn = || {
        let load = groups[1].engine.flights.running(crate::flight::Kind::Load, &key);
        load.is_some_and(|load| load.context.load_context().is_some_and(|load| load.stage() == Stage::WaitsForTurn))
    };
    eventually("the load of the peer waits for its turn", is_in_turn).await;
    loads.open();
    assert!(other.await.unwrap().is_ok());
    assert!(own.await.unwrap().unwrap_err().is_quarantined());
    assert!(of_peer.await.unwrap().is_ok());
    assert_eq!(loads.loads.of(&key), 1);
    cluster.shutdown().await;
}

/// Checks that a load of a caller of this node, which was admitted before the first strike, is judged again at its turn.
#[tokio::test]
async fn strike_refuses_a_load_that_waits_for_a_permit() {
    let (loads, node) = (Gate::default(), crate::Node::builder().start().await.unwrap());
    let group = node.group::<String>("data").capacity_bytes(1 << 20).max_loads(1);
    let group = group.loader_with(loads.clone(), gated).build().unwrap();
    let get = |key: &'static str| {
        let group = group.clone();
        tokio::spawn(async move { group.get(key).await })
    };
    let first = get("first");
    eventually("the first load runs", || loads.loads.of("first") == 1).await;
    let second = get("second");
    eventually("the second load waits", || group.engine.flights.running(crate::flight::Kind::Load, "second").is_some())
        .await;
    strike(&group, &"second".into(), "x");
    loads.open();
    assert!(first.await.unwrap().is_ok());
    assert!(second.await.unwrap().unwrap_err().is_quarantined());
    assert_eq!(loads.loads.of("second"), 0);
}
