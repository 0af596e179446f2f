//! Nodes that trust each other are a cluster like any other.

use crate::support::{Cluster, Loads, PATIENCE, name, pki, pki::Authority};
use groupcache_core::{BoxError, ClusterKey, Group};
use tokio::time::timeout;

async fn echo(loads: &Loads, key: &str) -> Result<String, BoxError> {
    loads.begin(key);
    Ok(key.to_owned())
}

async fn groups(cluster: &Cluster, loads: &Loads) -> Vec<Group<String>> {
    cluster.group(|_, node| node.group::<String>("data").capacity_bytes(4 << 20).loader_with(loads.clone(), echo)).await
}

/// Every node gets every key; each is loaded once.
async fn shares(cluster: &Cluster) {
    let loads = Loads::default();
    let groups = groups(cluster, &loads).await;
    for n in 0..100 {
        let key = format!("key-{n}");
        for group in &groups {
            assert_eq!(timeout(PATIENCE, group.get(&key)).await.expect("in time").unwrap(), key);
        }
    }
    assert_eq!(loads.total(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_one_cluster_key_share_a_cache() {
    let key = pki::cluster_key();
    let cluster = Cluster::start_each(3, |_, node| node.cluster_key(ClusterKey::new(&key).unwrap())).await;
    shares(&cluster).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_certificates_of_one_authority_share_a_cache() {
    let authority = Authority::new("ours");
    let tls = |at: usize| authority.issue(&format!("{}.peers", name(at))).mutual(&authority.pem());
    let cluster = Cluster::start_each(3, |at, node| node.mutual_tls(tls(at))).await;
    shares(&cluster).await;
    cluster.shutdown().await;
}
