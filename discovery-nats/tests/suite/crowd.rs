//! Costs of five hundred peers for one node.

use std::{sync::Arc, time::Duration};

use discovery_nats::Nats;
use groupcache_core::conformance::{Bench, CLUSTER};
use tokio::time::{Instant, interval, sleep};

use crate::support::{Broker, eventually, fake_client};

const PEERS: u64 = 500;

fn announcement(n: u64) -> String {
    format!(
        r#"{{"v":1,"id":"peer-{n}","inc":{n},"addrs":["10.0.{}.{}:7946"],"state":"ready","zone":"a","weight":1,"ttl_ms":8000,"from":"x"}}"#,
        n / 250,
        n % 250
    )
}

/// Returns the processor time of this thread in seconds, as Linux reports it, because other tests run in other threads.
fn processor_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / 100.0)
}

#[tokio::test]
async fn five_hundred_peers_cost_one_node_little() {
    let broker = Broker::start().await;
    let client = fake_client(&broker.url()).await;
    let crowd = tokio::spawn(async move {
        // Each peer sends once in 2 s, spread evenly, so that a message is sent every 4 ms.
        let mut beats = interval(Duration::from_secs(2) / PEERS as u32);
        for n in (0..PEERS).cycle() {
            beats.tick().await;
            client.publish(format!("groupcache-gossip.users.{CLUSTER}.hb"), announcement(n).into()).await.unwrap();
        }
    });
    let nats = Nats::new(broker.url(), "users").unwrap();
    let mut bench = Bench::start(Arc::new(nats.clone())).unwrap();
    let all = eventually("all peers are listed", async || bench.peers().len() as u64 == PEERS + 1).await;

    let (begun, before, sets) = (Instant::now(), nats.stats(), bench.sets());
    let processor = processor_time();
    sleep(Duration::from_secs(10)).await;
    let after = nats.stats();
    let seconds = begun.elapsed().as_secs_f64();
    let heard = (after.heard - before.heard) as f64 / seconds;
    let sent = (after.published - before.published) as f64 / seconds;
    println!("{PEERS} peers, all listed after {all:?}: {heard:.0} messages/s heard, {sent:.2}/s sent");
    if let (Some(before), Some(after)) = (processor, processor_time()) {
        let share = (after - before) / seconds;
        println!("{:.1} % of one processor, including the sending of the 500 peers", share * 100.0);
        assert!(share < 0.5, "{share}");
    }
    assert!(heard < PEERS as f64 * 0.75 && sent < 2.0, "{heard} {sent}");
    assert_eq!(bench.sets(), sets, "no set is published without a change");
    assert_eq!((after.expired, after.garbage), (0, 0));
    crowd.abort();
}

#[tokio::test]
async fn many_questions_at_once_are_answered_together() {
    let broker = Broker::start().await;
    let nats = Nats::new(broker.url(), "users").unwrap();
    let mut bench = Bench::start(Arc::new(nats.clone())).unwrap();
    eventually("a set is published", async || bench.sets() > 0).await;
    let client = fake_client(&broker.url()).await;
    let mut heartbeats = client.subscribe(format!("groupcache-gossip.users.{CLUSTER}.hb")).await.unwrap();
    let before = nats.stats().published;
    for n in 0..500 {
        let to = format!("groupcache-gossip.users.{CLUSTER}.to.n{n}");
        client
            .publish_with_reply(format!("groupcache-gossip.users.{CLUSTER}.q"), to, announcement(n).into())
            .await
            .unwrap();
    }
    eventually("all peers are listed", async || bench.peers().len() == 501).await;
    futures_util::StreamExt::next(&mut heartbeats).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let sent = nats.stats().published - before;
    println!("{sent} messages for 500 questions");
    assert!(sent <= 30, "{sent}");
}

/// Checks that a node with many peers collects their heartbeats when it doubts a set, instead of asking all of them.
#[tokio::test]
async fn node_with_many_peers_answers_a_doubt_by_heartbeats() {
    let broker = Broker::start().await;
    let client = fake_client(&broker.url()).await;
    let crowd = {
        let client = client.clone();
        tokio::spawn(async move {
            let mut beats = interval(Duration::from_millis(5));
            for n in (0..150).cycle() {
                beats.tick().await;
                client.publish(format!("groupcache-gossip.users.{CLUSTER}.hb"), announcement(n).into()).await.unwrap();
            }
        })
    };
    let mut asked = client.subscribe(format!("groupcache-gossip.users.{CLUSTER}.q")).await.unwrap();
    let nats = Nats::new(broker.url(), "users").unwrap().heartbeat(Duration::from_secs(1));
    let mut bench = Bench::start(Arc::new(nats.clone())).unwrap();
    futures_util::StreamExt::next(&mut asked).await.unwrap();
    eventually("all peers are listed", async || bench.peers().len() == 151).await;
    sleep(Duration::from_millis(4_500)).await; // longer than a time to live
    let (sets, lost) = (bench.sets(), nats.stats().lost);
    bench.ask();
    eventually("the doubt of the node is answered", async || bench.sets() > sets).await;
    let again = tokio::time::timeout(Duration::from_millis(50), futures_util::StreamExt::next(&mut asked)).await;
    // (After a pause of the machine the provider asks, because messages may be missing.)
    assert!(again.is_err() || nats.stats().lost > lost, "the doubt is answered without a question to all peers");
    crowd.abort();
}
