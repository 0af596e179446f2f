//! Nodes: whole nodes find each other on loopback and by link-local addresses alone.

use std::{
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use discovery_mdns::Mdns;
use groupcache_core::{Group, Identity, Node, discovery::Address};
use segment::{Families, Segment};
use tokio::{
    runtime::Runtime,
    time::{Instant, sleep},
};

use crate::support::{eventually, free_port, has_multicast};

async fn start(identity: Identity, mdns: Mdns) -> (Node, Group<String>) {
    let identity = identity.with_cluster("default").unwrap();
    let node = Node::builder().identity(identity).insecure().provider(mdns).start().await.unwrap();
    let group = node.group::<String>("keys").capacity_bytes(1 << 20);
    let group = group.loader(async |key: &str| Ok::<_, std::io::Error>(format!("value of {key}"))).build().unwrap();
    (node, group)
}

fn sees(node: &Node, members: usize) -> bool {
    let all = node.members();
    all.len() == members && all.iter().all(|member| member.reachable)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_one_machine_join_and_leave_one_cluster() {
    if !has_multicast() {
        return;
    }
    let port = free_port();
    let node = async |name: &str| {
        let mdns = Mdns::new().port(port).unwrap().loopback();
        start(Identity::default().with_id(name).unwrap(), mdns).await
    };
    let ((a, _), (b, _)) = tokio::join!(node("a"), node("b"));
    eventually("a and b see each other", async || sees(&a, 2) && sees(&b, 2)).await;
    let begun = Instant::now();
    let (c, group) = node("c").await;
    eventually("c is in every ring", async || [&a, &b, &c].into_iter().all(|node| sees(node, 3))).await;
    println!("in every ring {:?} after its start (figure: 2 s)", begun.elapsed());
    for n in 0..20 {
        assert_eq!(group.get(&format!("k{n}")).await.unwrap(), format!("value of k{n}"));
    }
    let leaving = Instant::now();
    c.shutdown().await.unwrap();
    eventually("c is in no ring", async || sees(&a, 2) && sees(&b, 2)).await;
    println!("out of every ring {:?} after shutdown began", leaving.elapsed());
    a.shutdown().await.unwrap();
    b.shutdown().await.unwrap();
}

/// Checks that a node does not start on a segment that other services may share without a name that keeps it apart.
#[tokio::test]
async fn node_without_service_and_cluster_does_not_start() {
    let identity = || Identity::default().with_id("a").unwrap();
    let mdns = || Mdns::new().port(free_port()).unwrap().loopback();
    let error = Node::builder().identity(identity()).provider(mdns()).start().await.unwrap_err();
    let text = error.to_string();
    assert!(error.is_config() && text.contains("GROUPCACHE_MDNS_SERVICE") && text.contains("GROUPCACHE_CLUSTER"));
    // A choice that equals the default is a choice.
    let chosen = mdns().service(Mdns::SERVICE).unwrap();
    Node::builder().identity(identity()).provider(chosen).start().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_node_with_the_same_id_does_not_start() {
    if !has_multicast() {
        return;
    }
    let port = free_port();
    let mdns = || Mdns::new().port(port).unwrap().loopback();
    let (a, _) = start(Identity::default().with_id("a").unwrap(), mdns()).await;
    let identity = Identity::default().with_id("a").and_then(|identity| identity.with_cluster("default")).unwrap();
    let other = Node::builder().identity(identity).provider(mdns()).start().await;
    let error = other.unwrap_err().to_string();
    assert!(error.contains("another live node") && error.contains("NODE_NAME"), "{error}");
    a.shutdown().await.unwrap();
}

/// Starts a node on all interfaces of a host, with a runtime of its own.
fn start_on(host: &segment::Host, name: &str) -> (Runtime, Node, Group<String>) {
    host.enter(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let identity = Identity::new(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 7946))).with_id(name).unwrap();
        // The unspecified address cannot be dialled, so the provider announces the addresses of the interfaces.
        let identity = identity.with_advertised([Address::new("[::]:7946").unwrap()]).unwrap();
        let (node, group) = runtime.block_on(start(identity, Mdns::new().ipv6_only()));
        (runtime, node, group)
    })
}

/// Checks that nodes with link-local addresses alone reach each other by scope, and again at new addresses.
#[test]
fn link_local_nodes_find_each_other_after_an_address_change() {
    let Some(segment) = Segment::of(2, Families::V6) else { return };
    for host in segment.hosts() {
        host.ip(&["address", "delete", &format!("{}/64", host.address()), "dev", "eth0"]);
    }
    let [(runtime, a, _), (other, b, group)] = [start_on(&segment.hosts()[0], "a"), start_on(&segment.hosts()[1], "b")];
    runtime.block_on(async {
        eventually("they see each other", async || sees(&a, 2) && sees(&b, 2)).await;
        for n in 0..20 {
            assert_eq!(group.get(&format!("k{n}")).await.unwrap(), format!("value of k{n}"));
        }
    });
    // The address changes while the node runs.
    segment.hosts()[1].ip(&["address", "flush", "dev", "eth0"]);
    segment.hosts()[1].ip(&["address", "add", "fd77::99/64", "dev", "eth0", "nodad"]);
    segment.hosts()[0].ip(&["address", "add", "fd77::98/64", "dev", "eth0", "nodad"]);
    runtime.block_on(async {
        // Longer than a connection to an address without a node can appear to work.
        sleep(Duration::from_secs(5)).await;
        let took = eventually("they see each other again", async || sees(&a, 2) && sees(&b, 2)).await;
        println!("found at its new address {took:?} after a wait of 5 s");
        for n in 100..120 {
            assert_eq!(group.get(&format!("k{n}")).await.unwrap(), format!("value of k{n}"));
        }
    });
    runtime.block_on(a.shutdown()).unwrap();
    other.block_on(b.shutdown()).unwrap();
}
