//! Real nodes on loopback that join and leave by a list.

use std::{future::Future, time::Duration};

use discovery_static::Static;
use groupcache_core::{Identity, Node, discovery::Peer};
use tokio::time::{sleep, timeout};

/// Maximum time for anything that works, including the grace before a removal.
const PATIENCE: Duration = Duration::from_secs(30);

async fn start(name: &str, peers: &Static) -> Node {
    let identity = Identity::default().with_id(name).unwrap();
    Node::builder().identity(identity).provider(peers.clone()).start().await.unwrap()
}

/// Returns the members that a node sees, or none if one of them is unreachable.
fn sees(node: &Node) -> Vec<String> {
    let members = node.members();
    if members.iter().all(|member| member.reachable) {
        members.iter().map(|member| member.id.to_string()).collect()
    } else {
        Vec::new()
    }
}

async fn until_sees(node: &Node, expected: &[&str]) {
    let waited = within(async {
        while sees(node) != expected {
            sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_some(), "{} sees {:?}, not {expected:?}", node.id(), node.members());
}

async fn within<T>(future: impl Future<Output = T>) -> Option<T> {
    timeout(PATIENCE, future).await.ok()
}

#[tokio::test]
async fn two_nodes_find_each_other_by_address_only() {
    let peers = Static::default();
    let (a, b) = (start("a", &peers).await, start("b", &peers).await);
    until_sees(&a, &["a"]).await;

    // The list is the same for both nodes, and each recognises itself in it.
    peers.handle().set([&a, &b].map(|node| Peer::at(node.address().to_string()).unwrap()));
    until_sees(&a, &["a", "b"]).await;
    until_sees(&b, &["a", "b"]).await;
    assert_eq!(a.fingerprint(), b.fingerprint());

    within(async { tokio::try_join!(a.shutdown(), b.shutdown()) }).await.expect("the nodes shut down").unwrap();
}

#[tokio::test]
async fn peer_removed_by_the_handle_leaves_every_other_ring() {
    let peers = Static::default();
    let (a, b, c) = (start("a", &peers).await, start("b", &peers).await, start("c", &peers).await);
    let list = [&a, &b, &c].map(|node| Peer::member(node.id(), [node.address().into()]));
    peers.handle().set(list);
    for node in [&a, &b, &c] {
        until_sees(node, &["a", "b", "c"]).await;
    }

    assert!(peers.handle().remove(&c.id()));
    for node in [&a, &b] {
        until_sees(node, &["a", "b"]).await;
    }

    within(async { tokio::try_join!(a.shutdown(), b.shutdown(), c.shutdown()) })
        .await
        .expect("the nodes shut down")
        .unwrap();
}
