//! Nodes that trust each other are a cluster like any other.

use std::{fs, path::Path, time::Duration};

use crate::support::{self, Cluster, Loads, PATIENCE, identity, name, pki, pki::Authority};
use groupcache_core::{BoxError, ClusterKey, Group, Node};
use tokio::time::{sleep, timeout};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_file_that_changes_is_noticed_by_itself_and_a_broken_one_changes_nothing() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("key-{}", std::process::id()));
    let [old, new] = [(); 2].map(|()| pki::cluster_key());
    fs::write(&path, &old).unwrap();
    let cluster = Cluster::start_each(2, |_, node| node.cluster_key(ClusterKey::from_file(&path))).await;

    fs::write(&path, "too short").unwrap();
    let broken = cluster.nodes[0].reload_tls().await.expect_err("refused");
    assert!(broken.is_config() && broken.to_string().contains("/dev/urandom"), "{broken}");
    assert!(cluster.nodes.iter().all(|node| node.members().iter().all(|member| member.is_reachable)));

    // Somebody who has the new key alone is let in once the others have read it.
    fs::write(&path, format!("{new},{old}")).unwrap();
    let key = ClusterKey::new(&new).unwrap();
    let c = Node::builder().identity(identity("c")).cluster_key(key).provider(cluster.peers.clone());
    let c = c.start().await.unwrap();
    cluster.peers.change(|peers| peers.push(support::peer(&c)));
    let all_see_c = async {
        while !cluster.nodes.iter().chain([&c]).all(|node| node.members().len() == 3) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), all_see_c).await.expect("files are read again every 10 s");
    fs::remove_file(path).unwrap();
}
