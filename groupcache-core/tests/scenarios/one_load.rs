//! P1 and P2: any number of concurrent gets of a missing key anywhere cause one loader call.

use std::time::Duration;

use crate::support::{Cluster, Loads};

/// A loader that takes a while and says which load it was.
async fn numbered(loads: &Loads, key: &str) -> Result<String, std::io::Error> {
    let number = loads.begin(key);
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(format!("{key} by load {number}"))
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_keys_are_a_thousand_loads() {
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
    let owned: Vec<_> = groups.iter().map(|group| group.entries()).collect();
    assert!(owned.iter().all(|n| *n > 100), "every node owns its share: {owned:?}");
    cluster.shutdown().await;
}
