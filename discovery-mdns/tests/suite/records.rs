//! What becomes of a peer whose record is lost, and of a node that cannot be announced.

use std::{net::IpAddr, sync::Arc, time::Duration};

use discovery_mdns::Mdns;
use groupcache_core::{Address, Health, Incarnation, Me, NodeState, PeerId, conformance::Bench};
use tokio::time::{Instant, sleep};

use crate::support::{Announcer, eventually, free_port, has_multicast};

fn id(name: &str) -> PeerId {
    PeerId::new(name).unwrap()
}

fn member(name: &str) -> Me {
    Me {
        id: id(name),
        cluster: "conformance".into(), // that of the bench
        incarnation: Incarnation(1),
        state: NodeState::Ready,
        addresses: vec![Address::new("127.0.0.1:7946").unwrap()],
        weight: 1,
        zone: "".into(),
        is_tls: false,
    }
}

/// A provider on a bench, and two peers that it has listed.
async fn two_peers(port: u16) -> (Mdns, Bench, Announcer, Announcer) {
    let (a, b) = (Announcer::new(port), Announcer::new(port));
    a.announce(&member("a"));
    b.announce(&member("b"));
    let mdns = Mdns::new().port(port).unwrap().loopback();
    let mut bench = Bench::start(Arc::new(mdns.clone())).unwrap();
    eventually("both are listed", async || bench.sets() > 0 && names(&mut bench) == ["a", "b", "under-test"]).await;
    (mdns, bench, a, b)
}

fn names(bench: &mut Bench) -> Vec<String> {
    let mut names: Vec<_> = bench.peers().iter().filter_map(|peer| Some(peer.id()?.to_string())).collect();
    names.sort();
    names.dedup();
    names
}

#[tokio::test]
async fn a_peer_that_is_reached_stays_when_its_record_is_lost() {
    if !has_multicast() {
        return;
    }
    let (mdns, mut bench, a, _b) = two_peers(free_port()).await;
    bench.reach([id("a")]);
    a.withdraw("a");
    eventually("the goodbye is heard", async || mdns.stats().lost == 1).await;
    let heard = Instant::now();
    while heard.elapsed() < Duration::from_secs(2) {
        assert_eq!(names(&mut bench), ["a", "b", "under-test"], "it answers, whatever its record says");
        sleep(Duration::from_millis(20)).await;
    }
    bench.reach([]);
    let took = eventually("it is gone", async || names(&mut bench) == ["b", "under-test"]).await;
    println!("gone {took:?} after its connection was lost (figure: 3 s, it may only be connecting anew)");
    assert!(took > Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn a_peer_that_crashed_is_gone_when_it_is_asked_for_and_one_that_lives_is_not() {
    if !has_multicast() {
        return;
    }
    let (mdns, mut bench, a, _b) = two_peers(free_port()).await;
    a.crash();
    let sets = bench.sets();
    bench.ask_for([id("a"), id("b"), id("stranger")]);
    // Asked again and again: that must not make a live peer look dead.
    for _ in 0..6 {
        sleep(Duration::from_millis(300)).await;
        bench.ask_for([id("a"), id("b")]);
    }
    let took = eventually("a is gone", async || names(&mut bench) == ["b", "under-test"]).await;
    println!("gone {took:?} after the last question");
    assert_eq!(mdns.stats().verified, 2, "one question for each at a time");
    eventually("the node has its answer", async || bench.sets() > sets + 1).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(names(&mut bench), ["b", "under-test"]);
}

#[tokio::test]
async fn peers_that_are_reached_are_not_verified_and_the_question_is_answered_at_once() {
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
    assert!(took < Duration::from_secs(2), "as long as verifying takes");
}

#[tokio::test]
async fn a_crowd_whose_records_come_faster_than_they_are_read_is_listed_and_so_is_who_left_meanwhile() {
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
    // The one who reads is away: its thread is this one. So nobody is told of the goodbye.
    std::thread::sleep(Duration::from_secs(1));
    b.withdraw("b");
    std::thread::sleep(Duration::from_secs(2));
    let is_right = |names: Vec<String>| names.len() == 702 && !names.contains(&"b".to_owned());
    eventually("all are listed but the one that left", async || is_right(names(&mut bench))).await;
    println!("{:?}", mdns.stats());
    assert!(mdns.stats().reopened > 0, "else this tested nothing");
}

#[tokio::test]
async fn a_node_that_nobody_could_dial_is_told_so() {
    // Its address is one of loopback, which is not switched on.
    let mdns = Mdns::new().port(free_port()).unwrap();
    let mut bench = Bench::start(Arc::new(mdns)).unwrap();
    let is_told = |health| matches!(health, Some(Health::Stale(why)) if why.contains("NODE_IP"));
    eventually("it is told", async || is_told(bench.health())).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(bench.sets(), 0, "who does not hear itself does not know who else is there");
    bench.stop().await;
}

#[tokio::test]
async fn another_life_of_the_same_id_is_shown_to_the_node() {
    if !has_multicast() {
        return;
    }
    let (_, mut bench, a, _b) = two_peers(free_port()).await;
    let rival = Me { addresses: vec![Address::new("127.0.0.9:1").unwrap()], ..member("under-test") };
    a.announce(&rival);
    let is_shown = |bench: &mut Bench| bench.peers().iter().any(|peer| peer.addresses() == rival.addresses);
    eventually("the node can find out who that is", async || is_shown(&mut bench)).await;
}

/// The library answers without what it has said within the last second, and never asks for a TXT record alone.
#[tokio::test]
async fn a_record_that_came_without_its_txt_is_asked_for_anew() {
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
        // Both are said again 1.1 s after they were first, each without what the other has just said.
        sleep(Duration::from_millis(1_750)).await;
        let mdns = Mdns::new().port(port).unwrap().loopback();
        let mut bench = Bench::start(Arc::new(mdns.clone())).unwrap();
        let took = eventually("it is listed", async || names(&mut bench) == ["a", "under-test"]).await;
        println!("listed after {took:?}, without TXT before: {}", mdns.stats().bare);
        was_bare = mdns.stats().bare > 0;
        if was_bare {
            break;
        }
    }
    assert!(was_bare, "else this tested nothing");
}
