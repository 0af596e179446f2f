//! Tests of the peers that are connected to the local node: unlisted peers, addresses that a peer says of itself, and
//! limits of what an announcer can cause.

use std::time::Duration;

use crate::{
    identity::Incarnation,
    membership::{
        provider::{Peer, PeerSet},
        stabilizer::{
            Action, Input, Warning,
            tests::script::{Script, at, cluster_of, hints, id, peer, start},
        },
    },
};

fn unlisted(script: &Script) -> Vec<&str> {
    script.stabilizer.unlisted().map(|id| id.as_str()).collect()
}

fn is_unlisted_warning(warning: &Warning) -> bool {
    matches!(warning, Warning::UnlistedPeers { .. })
}

/// Checks that discovery is asked soon about a connected peer that it does not list, and that the peer is reported once
/// and no longer when discovery lists it.
#[test]
fn connected_unlisted_peer_is_asked_about_and_reported() {
    let mut node = cluster_of("a me");
    node.after(10_000).inbound("a").after(10_000);
    assert_eq!(node.resolves(), 0, "every connected peer is listed");
    node.inbound("a b").after(450);
    assert_eq!(node.resolves(), 0, "a working watch may be about to list it");
    node.after(100);
    assert_eq!(node.resolves(), 1, "discovery is asked");
    node.after(4_300);
    assert!(unlisted(&node).is_empty(), "discovery may be late");
    node.after(60_000);
    assert_eq!(unlisted(&node), ["b"]);
    assert_eq!((node.warnings(is_unlisted_warning), node.stabilizer.counters().unlisted), (1, 1));
    node.set("a b me").hello("b").after(300).members("a b me");
    assert!(unlisted(&node).is_empty());
}

/// Checks that a connected peer is listed by an address at which it answers, or at which it says that it listens.
#[test]
fn peer_listed_by_address_is_not_unlisted() {
    let mut node = start();
    node.set("@a:1 @b:1 me").hello("@a:1").inbound("a b").after(20_000);
    assert!(unlisted(&node).is_empty());
}

/// Checks that a draining peer is not reported, because the source may have let it go already.
#[test]
fn draining_peer_is_not_unlisted() {
    let mut node = cluster_of("a me");
    let peer = crate::membership::stabilizer::InboundPeer {
        id: id("b"),
        state: crate::identity::NodeState::Draining,
        addresses: Vec::new(),
        is_proven: false,
        fingerprint: 0,
    };
    node.input(Input::Inbound(vec![peer])).after(20_000);
    assert!(unlisted(&node).is_empty());
}

/// Checks that new unlisted peers cause at most one request a second, and one line in 10 s.
#[test]
fn many_unlisted_peers_cause_few_requests_and_lines() {
    let mut node = cluster_of("a me");
    node.after(10_000);
    for n in 0..600 {
        node.inbound(&format!("x{n} y{n} stays{}", n / 100)).after(100);
    }
    assert!(node.resolves() <= 60, "{} requests in 60 s", node.resolves());
    assert!(node.warnings(is_unlisted_warning) <= 7);
}

/// Checks that the addresses that a proven peer says of itself come before announced ones, and those of an unproven
/// peer after them.
#[test]
fn said_addresses_of_a_proven_peer_come_first() {
    for (word, expected) in [("+a=real:1", ["real:1", "dead:1"]), ("a=real:1", ["dead:1", "real:1"])] {
        let mut node = start();
        node.set("me a=dead:1").failed("a").inbound(word);
        let (_, addresses) = &node.dials[&node.dial("a")];
        assert_eq!(addresses[..], expected.map(at));
    }
}

/// Checks that a restarted member, announced with the highest incarnation at a dead address, is reached at
/// the address that it says itself.
#[test]
fn restarted_peer_is_reached_despite_a_false_announcement() {
    let mut node = cluster_of("a b me");
    let mut records = hints("me b");
    records.push(Peer::member(id("a"), [at("dead:1")]).with_incarnation(Incarnation(u64::MAX)));
    node.input(Input::Set(PeerSet::complete(records))).lost("a").failed("a").inbound("+a=new:1");
    let (_, addresses) = &node.dials[&node.dial_of("a")];
    assert_eq!(addresses[0], at("new:1"));
    let dial = node.dial_of("a");
    node.input(Input::Hello { dial, hello: peer("a").incarnation(9) }).after(300).members("a b me");
}

/// Checks that another node with the id of this node causes one report in 10 s, however often it answers.
#[test]
fn duplicate_id_is_reported_once_in_ten_seconds() {
    let mut node = start();
    node.set("me a me=x:1 @y:1 @z:1");
    for _ in 0..200 {
        for word in ["me", "@y:1", "@z:1"] {
            if node.find(word).is_some() {
                node.answers(word, peer("me").incarnation(77));
            }
        }
        node.after(50);
    }
    let reports = node.count(|action| matches!(action, Action::DuplicateId { .. }));
    assert!((1..=2).contains(&reports), "{reports} reports in 10 s");
}

/// Checks that announcements of ever higher incarnations of this node raise its own at most once a second, and that the
/// last one is not forgotten.
#[test]
fn incarnation_is_raised_at_most_once_a_second() {
    let mut node = start();
    let record = |n: u64| vec![Peer::member(id("me"), [at("me:1")]).with_incarnation(Incarnation(n))];
    for n in 0..100 {
        node.input(Input::Set(PeerSet::complete(record(5_000 + n)))).after(50);
    }
    node.after(2_000);
    let raises = node.count(|action| matches!(action, Action::RaiseIncarnation(_)));
    assert!((2..=8).contains(&raises), "{raises} raises in 7 s");
    assert!(node.log.contains(&Action::RaiseIncarnation(Incarnation(5_100))), "the last record counts");
    assert!(node.now > Duration::from_secs(6));
}

/// Checks that the port of this node at an address where it does not listen counts as the node itself, until another
/// node answers there.
#[test]
fn own_port_at_another_address_is_the_node_itself() {
    let mut node = start();
    node.set("me @alias:1 a").hello("a");
    let dial = node.dial("@alias:1");
    node.input(Input::OwnAddress { dial }).after(1_000);
    assert_eq!(node.stabilizer.report().unanswered_targets, 0);
    node.answers("@alias:1", peer("b")).after(300).members("a b me");
}

/// Checks that invented ids beyond the limit leave out no peer that has answered, although its name is the last.
#[test]
fn peers_that_answered_come_before_invented_ids() {
    let mut node = cluster_of("a zz me");
    let invented: Vec<_> = (0..3_000).map(|n| format!("invented-{n}")).collect();
    node.set(&format!("me a zz {}", invented.join(" "))).after(10_000).members("a me zz");
    node.lost("zz").after(300);
    assert!(unlisted(&node).is_empty() && node.find("zz").is_some(), "zz is listed and dialled");
}
