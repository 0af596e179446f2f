//! Nodes of a cluster over a server that stops and starts. Nodes find each other fast, and none is lost with the
//! server.

use std::{sync::Arc, time::Duration};

use discovery_nats::Nats;
use groupcache_core::{
    Group, Identity, Node,
    discovery::{Address, Incarnation},
};
use tokio::time::Instant;

use crate::support::{Broker, Fake, eventually, free_port, member};

async fn node(servers: &str, name: &str) -> (Node, Group<String>) {
    let identity = Identity::default().with_id(name).unwrap();
    let nats = Nats::new(servers, "users").unwrap();
    let node = Node::builder().identity(identity).provider(nats).start().await.unwrap();
    let group = node.group::<String>("keys").capacity_bytes(1 << 20);
    let group = group.loader(async |key: &str| Ok::<_, std::io::Error>(format!("value of {key}"))).build().unwrap();
    (node, group)
}

fn sees(node: &Node, members: usize) -> bool {
    let all = node.members();
    all.len() == members && all.iter().all(|member| member.reachable)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_node_enters_and_leaving_node_leaves_every_ring() {
    let broker = Broker::start().await;
    let (a, _) = node(&broker.url(), "a").await;
    let (b, _) = node(&broker.url(), "b").await;
    eventually("a and b see each other", async || sees(&a, 2) && sees(&b, 2)).await;

    let begun = Instant::now();
    let (c, _) = node(&broker.url(), "c").await;
    eventually("c is in every ring", async || [&a, &b, &c].into_iter().all(|node| sees(node, 3))).await;
    println!("in every ring {:?} after its start (figure: 1 s)", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(5));

    let leaving = tokio::spawn(async move { c.shutdown().await });
    let drained = Instant::now();
    eventually("c is in no ring", async || sees(&a, 2) && sees(&b, 2)).await;
    println!("out of every ring {:?} after shutdown began", drained.elapsed());
    leaving.await.unwrap().unwrap();
    a.shutdown().await.unwrap();
    b.shutdown().await.unwrap();
}

/// Checks that an announcement of a node's id with the highest incarnation and a dead address does not keep the node out
/// when it starts again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invented_incarnation_keeps_no_restarted_node_out() {
    let broker = Broker::start().await;
    let (a, _) = node(&broker.url(), "a").await;
    let (b, _) = node(&broker.url(), "b").await;
    eventually("a and b see each other", async || sees(&a, 2) && sees(&b, 2)).await;
    let mut invented = member("b");
    invented.cluster = "default".into();
    invented.incarnation = Incarnation(u64::MAX);
    invented.addresses = vec![Address::new("127.0.0.1:1").unwrap()];
    let _liar = Fake::join(&broker.url(), "users", &invented, Duration::from_millis(500)).await;
    b.shutdown().await.unwrap();
    eventually("a is alone", async || a.members().len() == 1).await;
    let (b, _) = node(&broker.url(), "b").await;
    let took = eventually("a and b see each other", async || sees(&a, 2) && sees(&b, 2)).await;
    println!("in every ring {took:?} after its start beside an invention");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_forms_when_its_server_starts_late() {
    let mut broker = Broker::down("");
    let (a, group) = node(&broker.url(), "a").await;
    let (b, _) = node(&broker.url(), "b").await;
    assert_eq!(group.get("k").await.unwrap(), "value of k", "a node serves alone");
    broker.up().await;
    let begun = Instant::now();
    eventually("both nodes see each other", async || sees(&a, 2) && sees(&b, 2)).await;
    println!("formed {:?} after the server started", begun.elapsed());
}

/// Gets of old and new keys at every node, in rounds of 5 ms. The first failure is kept.
struct Traffic(tokio::task::JoinHandle<()>, Arc<std::sync::Mutex<(u64, Option<String>)>>);

impl Traffic {
    fn begin(groups: Vec<Group<String>>) -> Self {
        let seen = Arc::new(std::sync::Mutex::new((0, None)));
        let kept = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            for n in 0_u64.. {
                for group in &groups {
                    let key = format!("k{}", n % 500 + n / 1000);
                    let got = group.get(&key).await;
                    let mut kept = kept.lock().unwrap();
                    kept.0 += 1;
                    if let Err(e) = got {
                        kept.1.get_or_insert(e.to_string());
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self(task, seen)
    }

    fn end(self) {
        self.0.abort();
        let (gets, failure) = self.1.lock().unwrap().clone();
        assert_eq!(failure, None, "of {gets} gets");
        println!("{gets} gets, none failed");
    }
}

/// Runs three nodes with traffic while the server is away for `outage`. Checks that no member is lost meanwhile, and
/// that a fourth node joins when the server is back.
async fn survive_outage(outage: Duration, broker: &mut Broker, servers: &str, away: fn(&mut Broker), back: AsyncBack) {
    let (a, ga) = node(servers, "a").await;
    let (b, gb) = node(servers, "b").await;
    let (c, gc) = node(servers, "c").await;
    let nodes = [&a, &b, &c];
    let all_see = |n: usize| nodes.into_iter().all(|node| sees(node, n));
    eventually("all see each other", async || all_see(3)).await;
    let traffic = Traffic::begin(vec![ga, gb, gc]);

    away(broker);
    let begun = Instant::now();
    while begun.elapsed() < outage {
        assert!(all_see(3), "{:?} after the server went: {:?}", begun.elapsed(), a.members());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    back(broker).await;
    let returned = Instant::now();
    let (d, gd) = node(servers, "d").await;
    eventually("all see the node that joined afterwards", async || all_see(4) && sees(&d, 4)).await;
    println!("complete {:?} after the server was back (figure: 3 s)", returned.elapsed());
    assert!(returned.elapsed() < Duration::from_secs(10));
    gd.get("k1").await.unwrap();
    // No node has removed a member, so that the outage has cost none.
    let removed: u64 = nodes.iter().map(|node| node.discovery().removals).sum();
    assert_eq!(removed, 0);
    traffic.end();
}

type AsyncBack = for<'a> fn(&'a mut Broker) -> futures_util::future::BoxFuture<'a, ()>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_killed_for_30_s_costs_no_member() {
    let mut broker = Broker::start().await;
    let servers = broker.url();
    let back: AsyncBack = |broker| Box::pin(broker.up());
    survive_outage(Duration::from_secs(30), &mut broker, &servers, Broker::kill, back).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_back_at_another_address_costs_no_member() {
    let mut broker = Broker::start().await;
    let next = free_port();
    let servers = format!("{},nats://127.0.0.1:{next}", broker.url());
    let away: fn(&mut Broker) = |broker| {
        broker.kill();
        // The list of servers that the nodes have includes this port.
        let port = broker.next_port.unwrap();
        broker.move_to(port);
    };
    broker.next_port = Some(next);
    let back: AsyncBack = |broker| Box::pin(broker.up());
    survive_outage(Duration::from_secs(30), &mut broker, &servers, away, back).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_hung_for_20_s_costs_no_member() {
    let mut broker = Broker::start().await;
    let servers = broker.url();
    let back: AsyncBack = |broker| {
        broker.resume();
        Box::pin(std::future::ready(()))
    };
    survive_outage(Duration::from_secs(20), &mut broker, &servers, |broker| broker.pause(), back).await;
}

#[tokio::test]
async fn crashed_peer_is_gone_after_four_heartbeats() {
    let broker = Broker::start().await;
    let fake = Fake::join(&broker.url(), "users", &member("doomed"), Duration::from_secs(2)).await;
    let nats = Nats::new(broker.url(), "users").unwrap();
    let mut bench = groupcache_core::conformance::Bench::start(Arc::new(nats)).unwrap();
    eventually("the peer is listed", async || bench.peers().len() == 2).await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    fake.crash();
    let took = eventually("the peer is not listed any more", async || bench.peers().len() == 1).await;
    println!("gone {took:?} after the crash (figure: 8.5 s)");
    assert!(took > Duration::from_secs(5) && took < Duration::from_secs(12), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_announces_each_state_and_says_goodbye() {
    use futures_util::StreamExt;
    let broker = Broker::start().await;
    let client = crate::support::fake_client(&broker.url()).await;
    let mut said = client.subscribe("groupcache-gossip.users.default.*").await.unwrap();
    client.flush().await.unwrap();
    let begun = Instant::now();
    let (a, _) = node(&broker.url(), "a").await;
    // The node leaves only after its state `ready` was announced. Otherwise the announcements might skip that state,
    // because each carries the state of its moment.
    let (leave, told_to_leave) = tokio::sync::oneshot::channel();
    let mut leave = Some(leave);
    let leaving = tokio::spawn(async move {
        told_to_leave.await.unwrap();
        a.shutdown().await.unwrap();
    });
    let mut heard = Vec::new();
    while !heard.iter().any(|(kind, _)| kind == "bye") {
        let message = tokio::time::timeout(Duration::from_secs(10), said.next()).await.unwrap().unwrap();
        let said: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        assert!(message.payload.len() <= 1024 && said["v"] == 1 && said["id"] == "a", "{said}");
        let kind = message.subject.rsplit('.').next().unwrap_or_default().to_owned();
        let state = said["state"].as_str().unwrap_or_default().to_owned();
        if state == "ready"
            && let Some(leave) = leave.take()
        {
            leave.send(()).unwrap();
        }
        heard.push((kind, state));
    }
    println!("{heard:?} within {:?}", begun.elapsed());
    let has = |kind: &str, state: &str| heard.iter().any(|(k, s)| k == kind && s == state);
    assert!(has("q", "joining") && has("hb", "ready") && has("hb", "draining"), "{heard:?}");
    leaving.await.unwrap();
}
