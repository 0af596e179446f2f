//! Loads of suspects at a node, beside gets of other keys.

use std::{sync::Arc, time::Duration};

use crate::{
    Group,
    identity::{Incarnation, Instance, PeerId},
    peer::group_service::{GroupService, LoadRequest},
    protocol::{chain::LoadChain, message::Response},
    testing::unit::support::{Cluster, Loads, eventually},
};

async fn counted(loads: &Loads, key: &str) -> Result<String, crate::BoxError> {
    Ok(loads.begin(key).to_string())
}

/// Starts three nodes with a group that has one load at a time, and returns a key of node `b`.
async fn cluster(loads: &Loads) -> (Cluster, Vec<Group<String>>, Arc<str>) {
    let cluster = Cluster::start(3).await;
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
