//! Clusters of nodes that trust each other by cluster key or certificate.

use std::{fs, path::Path, time::Duration};

use crate::support::{self, Cluster, Loads, PATIENCE, identity, name, pki, pki::Authority};
use groupcache_core::{
    BoxError, Group, Node,
    tls::{ClusterKey, MutualTls},
};
use tokio::time::{sleep, timeout};

async fn echo(loads: &Loads, key: &str) -> Result<String, BoxError> {
    loads.begin(key);
    Ok(key.to_owned())
}

async fn groups(cluster: &Cluster, loads: &Loads) -> Vec<Group<String>> {
    cluster.group(|_, node| node.group::<String>("data").capacity_bytes(4 << 20).loader_with(loads.clone(), echo)).await
}

/// Checks that every node gets every key and that each key is loaded once.
async fn check_shared_cache(cluster: &Cluster) {
    let loads = Loads::default();
    let groups = groups(cluster, &loads).await;
    for n in 0..100 {
        let key = format!("key-{n}");
        for group in &groups {
            assert_eq!(timeout(PATIENCE, group.get(&key)).await.expect("the get ends in time").unwrap(), key);
        }
    }
    assert_eq!(loads.total(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_one_cluster_key_share_a_cache() {
    let key = pki::cluster_key();
    let cluster = Cluster::start_each(3, |_, node| node.cluster_key(ClusterKey::new(&key).unwrap())).await;
    check_shared_cache(&cluster).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_certificates_of_one_authority_share_a_cache() {
    let authority = Authority::new("ours");
    let tls = |at: usize| authority.issue(&format!("{}.peers", name(at))).mutual(&authority.pem());
    let cluster = Cluster::start_each(3, |at, node| node.mutual_tls(tls(at))).await;
    check_shared_cache(&cluster).await;
    cluster.shutdown().await;
}

/// Checks that a file with an invalid key is refused and changes nothing, and that nodes read a changed file by
/// themselves every 10 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_file_is_reread_and_an_invalid_one_ignored() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("key-{}", std::process::id()));
    let [old, new] = [(); 2].map(|()| pki::cluster_key());
    fs::write(&path, &old).unwrap();
    let cluster = Cluster::start_each(2, |_, node| node.cluster_key(ClusterKey::from_file(&path))).await;

    fs::write(&path, "too short").unwrap();
    let broken = cluster.nodes[0].reload_tls().await.expect_err("the key is too short");
    assert!(broken.is_config() && broken.to_string().contains("/dev/urandom"), "{broken}");
    assert!(cluster.nodes.iter().all(|node| node.members().iter().all(|member| member.reachable)));

    // A node that has only the new key is let in once the others have read the file.
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
    timeout(Duration::from_secs(60), all_see_c).await.expect("the nodes read the file again");
    fs::remove_file(path).unwrap();
}

/// Checks that a node whose files are pipes does not wait for a writer, and says so.
#[test]
fn pipe_in_place_of_a_key_file_ends_the_start() {
    let pipe = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("pipe-{}", std::process::id()));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let names = |tls: MutualTls| tls.peer_names(["*.peers"]).unwrap();
    for node in [
        Node::builder().cluster_key(ClusterKey::from_file(&pipe)),
        Node::builder().mutual_tls(names(MutualTls::from_files(&pipe, &pipe, &pipe))),
    ] {
        let started = runtime.block_on(async { timeout(PATIENCE, node.start()).await }).expect("the start ends");
        let error = started.expect_err("a pipe is no key file");
        assert!(error.is_config() && error.to_string().contains("not a regular file"), "{error}");
    }
    drop(runtime); // ends, because no thread of the runtime waits for the pipe
    fs::remove_file(pipe).unwrap();
}
