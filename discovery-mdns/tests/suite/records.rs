//! Records: lost, incomplete and too many records of peers, and a node without a usable record.

use std::{net::IpAddr, sync::Arc, time::Duration};

use discovery_mdns::Mdns;
use groupcache_core::{
    PeerId,
    conformance::Bench,
    discovery::{Address, Health, Incarnation, Me, NodeState},
};
use tokio::time::{Instant, sleep};

use crate::support::{Announcer, eventually, free_port, has_multicast};

fn id(name: &str) -> PeerId {
    PeerId::new(name).unwrap()
}

fn member(name: &str) -> Me {
    Me {
        id: id(name),
        cluster: "conformance".into(), // cluster of the bench
        incarnation: Incarnation(1),
        state: NodeState::Ready,
        addresses: vec![Address::new("127.0.0.1:7946").unwrap()],
        weight: 1,
        zone: "".into(),
        tls: false,
    }
}

/// Starts a provider on a bench and waits until it lists two announced peers.
async fn two_peers(port: u16) -> (Mdns, Bench, Announcer, Announcer) {
    let (a, b) = (Announcer::new(port), Announcer::new(port));
    a.announce(&member("a"));
    b.announce(&member("b"));
    let mdns = Mdns::new().port(port).unwrap().loopback();
    let mut bench = Bench::start(Arc::new(mdns.clone())).unwrap();
    eventually("two peers are listed", async || bench.sets() > 0 && names(&mut bench) == ["a", "b", "under-test"])
        .await;
    (mdns, bench, a, b)
}

fn names(bench: &mut Bench) -> Vec<String> {
    let mut names: Vec<_> = bench.peers().iter().filter_map(|peer| Some(peer.id()?.to_string())).collect();
    names.sort();
    names.dedup();
    names
}

#[tokio::test]
async fn reachable_peer_stays_when_its_record_is_lost() {
    if !has_multicast() {
        return;
    }
    let (mdns, mut bench, a, _b) = two_peers(free_port()).await;
    bench.reach([id("a")]);
    a.withdraw("a");
    eventually("the goodbye is received", async || mdns.stats().lost == 1).await;
    let heard = Instant::now();
    while heard.elapsed() < Duration::from_secs(2) {
        assert_eq!(names(&mut bench), ["a", "b", "under-test"], "a reachable peer stays without a record");
        sleep(Duration::from_millis(20)).await;
    }
    bench.reach([]);
    let took = eventually("the unreachable peer is gone", async || names(&mut bench) == ["b", "under-test"]).await;
    println!("gone {took:?} after its connection was lost (figure: 3 s, because it may be reconnecting)");
    assert!(took > Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn request_drops_a_crashed_peer_and_keeps_a_live_one() {
    if !has_multicast() {
        return;
    }
    let (mdns, mut bench, a, _b) = two_peers(free_port()).await;
    a.crash();
    let sets = bench.sets();
    bench.ask_for([id("a"), id("b"), id("unknown")]);
    // Repeated requests must not make a live peer look dead.
    for _ in 0..6 {
        sleep(Duration::from_millis(300)).await;
        bench.ask_for([id("a"), id("b")]);
    }
    let took = eventually("a is gone", async || names(&mut bench) == ["b", "under-test"]).await;
    println!("gone {took:?} after the last request");
    assert_eq!(mdns.stats().verified, 2, "one verification per peer at a time");
    eventually("the node has its answer", async || bench.sets() > sets + 1).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(names(&mut bench), ["b", "under-test"]);
}

#[tokio::test]
async fn request_for_a_reachable_peer_needs_no_verification() {
    if !has_multicast() {
        return;
    }
    let (mdns, mut bench, _a, _b) = two_peers(free_port()).await;
    bench.reach([id("a"), id("b")]);
    let sets = bench.sets();
    bench.ask_for([id("a")]);
    let took = eventually("the node has its answer", async || bench.sets() > sets).await;
    assert_eq!(mdns.stats().verified, 0);
    println!("answered after {took:?} (figure: 300 ms)");
    assert!(took < Duration::from_secs(2), "the answer took as long as a verification");
}

/// Checks that records and goodbyes are not lost when they arrive faster than the provider reads them.
#[tokio::test]
async fn events_lost_in_a_burst_are_recovered_by_a_new_listing() {
    if !has_multicast() {
        return;
    }
    let port = free_port();
    let (mdns, mut bench, a, b) = two_peers(port).await;
    let here: [IpAddr; 1] = ["127.0.0.1".parse().unwrap()];
    for n in 0..700 {
        let txt =
            [("txtvers", "1"), ("cluster", "conformance"), ("inc", "1")].map(|(key, value)| (key, value.to_owned()));
        let name = format!("p{n}");
        let txt = [&txt[..], &[("id", name.clone())]].concat();
        a.register(&name, "crowd.local.", &here, 1, &txt);
    }
    // The provider runs on this thread, so it reads no event, not even the goodbye.
    std::thread::sleep(Duration::from_secs(1));
    b.withdraw("b");
    std::thread::sleep(Duration::from_secs(2));
    let is_right = |names: Vec<String>| names.len() == 702 && !names.contains(&"b".to_owned());
    eventually("all peers are listed except the one that left", async || is_right(names(&mut bench))).await;
    println!("{:?}", mdns.stats());
    assert!(mdns.stats().reopened > 0, "no event was lost, so this test proves nothing");
}

#[tokio::test]
async fn node_on_loopback_alone_reports_the_remedy() {
    // The node has a loopback address, and loopback is not enabled.
    let mdns = Mdns::new().port(free_port()).unwrap();
    let mut bench = Bench::start(Arc::new(mdns)).unwrap();
    let is_reported = |health| matches!(health, Some(Health::Stale(why)) if why.contains("NODE_IP"));
    eventually("the health names NODE_IP", async || is_reported(bench.health())).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(bench.sets(), 0, "a node that does not receive its own announcement publishes no set");
    bench.stop().await;
}

/// Checks that a record of the node's own id and another incarnation is published, so that the node can dial it.
#[tokio::test]
async fn other_incarnation_of_the_own_id_is_published() {
    if !has_multicast() {
        return;
    }
    let (_, mut bench, a, _b) = two_peers(free_port()).await;
    let rival = Me { addresses: vec![Address::new("127.0.0.9:1").unwrap()], ..member("under-test") };
    a.announce(&rival);
    let is_shown = |bench: &mut Bench| bench.peers().iter().any(|peer| peer.addresses() == rival.addresses);
    eventually("the other incarnation is published", async || is_shown(&mut bench)).await;
}

/// Checks the way around two properties of the library: its answers leave out records sent within the last second, and
/// a missing TXT record alone is never queried for.
#[tokio::test]
async fn record_without_txt_is_queried_again() {
    if !has_multicast() {
        return;
    }
    let mut was_bare = false;
    for _ in 0..8 {
        let port = free_port();
        let a = Announcer::new(port);
        a.announce(&member("a"));
        sleep(Duration::from_millis(400)).await;
        a.announce(&Me { state: NodeState::Draining, ..member("a") });
        // The library repeats each announcement after 1.1 s, and leaves out what the other one has just contained.
        sleep(Duration::from_millis(1_750)).await;
        let mdns = Mdns::new().port(port).unwrap().loopback();
        let mut bench = Bench::start(Arc::new(mdns.clone())).unwrap();
        let took = eventually("the peer is listed", async || names(&mut bench) == ["a", "under-test"]).await;
        println!("listed after {took:?}; records without TXT: {}", mdns.stats().bare);
        was_bare = mdns.stats().bare > 0;
        if was_bare {
            break;
        }
    }
    assert!(was_bare, "no record arrived without TXT, so this test proves nothing");
}
