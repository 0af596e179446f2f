//! Single loads (P1 and P2): concurrent gets of a missing key at any nodes cause one loader call.

use std::time::Duration;

use crate::support::{Cluster, Loads};

/// Loads a key in 50 ms. The value has the number of the load.
async fn numbered(loads: &Loads, key: &str) -> Result<String, std::io::Error> {
    let number = loads.begin(key);
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(format!("{key} by load {number}"))
}

/// Checks that 1,000 concurrent gets of one key at five nodes cause one load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_nodes_with_200_callers_each_load_a_cold_key_once() {
    let cluster = Cluster::start(5).await;
    let loads = Loads::default();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(loads.clone(), numbered))
        .await;

    let mut callers = tokio::task::JoinSet::new();
    for group in &groups {
        for _ in 0..200 {
            let group = group.clone();
            callers.spawn(async move { group.get("cold").await });
        }
    }
    let values = callers.join_all().await;

    assert_eq!(values.len(), 1000);
    for value in values {
        assert_eq!(value.expect("a value"), "cold by load 1");
    }
    assert_eq!(loads.total(), 1);
    cluster.shutdown().await;
}

/// Checks that 1,000 keys, each requested at five nodes, cause one load each, and that every node owns a share of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_1000_keys_is_loaded_once_by_five_nodes() {
    let cluster = Cluster::start(5).await;
    let loads = Loads::default();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(4 << 20).loader_with(loads.clone(), numbered))
        .await;

    let mut callers = tokio::task::JoinSet::new();
    for n in 0..1000 {
        for group in &groups {
            let group = group.clone();
            callers.spawn(async move { group.get(&format!("key-{n}")).await.expect("a value") });
        }
    }
    callers.join_all().await;

    assert_eq!(loads.total(), 1000);
    assert!((0..1000).all(|n| loads.of(&format!("key-{n}")) == 1));
    let owned: Vec<_> = groups.iter().map(|group| group.inspect().entries()).collect();
    assert!(owned.iter().all(|n| *n > 100), "every node owns its share: {owned:?}");
    cluster.shutdown().await;
}
