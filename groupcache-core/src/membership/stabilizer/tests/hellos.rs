//! Who answers: a peer, somebody else, an older or newer life of it, or this node itself.

use crate::membership::stabilizer::{
    Action, Input, Refusal, Warning,
    tests::script::{MY_LIFE, at, cluster_of, id, peer, peers, start},
};
use crate::{
    identity::Incarnation,
    membership::provider::{Peer, PeerSet},
};

fn redials(node: &super::script::Script) -> usize {
    node.count(|a| matches!(a, Action::Redial { .. }))
}

#[test]
fn address_only_hints_become_the_peers_that_answer() {
    let mut node = start();
    node.set("@a:1 @b:1 @me:1").members("me");
    node.hello("@a:1").hello("@b:1").answers("@me:1", peer("me").life(MY_LIFE));
    node.after(100).members("a b me");
    // Ourselves are not a connection, and are not tried again while listed.
    assert_eq!(node.dials.len(), 2);
    node.set("@a:1 @b:1 @me:1").after(60_000).set("@b:1 @a:1 @me:1");
    assert_eq!(node.dials.len(), 2);
    assert_eq!(node.warnings(|_| true), 0);
    // They are known by their addresses from now on: without the address, without the peer.
    node.set("@b:1 @me:1").after(5_100).members("b me");
    assert_eq!(node.dials.len(), 1);
}

#[test]
fn a_hint_that_was_us_is_dialled_again_when_it_is_listed_anew() {
    let mut node = start();
    node.set("@x:1 @me:1").hello("@x:1").answers("@me:1", peer("me").life(MY_LIFE));
    node.set("@x:1").after(5_100).set("@x:1 @me:1");
    assert!(node.find("@me:1").is_some());
}

#[test]
fn two_addresses_of_one_peer_are_one_connection() {
    let mut node = start();
    node.set("a @x:1 @y:1 me").hello("a").answers("@x:1", peer("a")).after(100).members("a me");
    assert_eq!(node.dials.len(), 2, "the connection of a, and y");
    node.failed("@y:1");
    // A set that lists only the other address keeps the peer.
    node.set("@x:1 @y:1 me").after(60_000).members("a me");
    node.lost("a");
    assert_eq!(node.dials[&node.dial("a")].1, [at("x:1"), at("a:1")]);
}

#[test]
fn a_hint_that_answers_first_makes_the_named_dial_needless() {
    let mut node = start();
    node.set("a=slow:1 @x:1 me").answers("@x:1", peer("a")).after(100).members("a me");
    assert_eq!(node.dials.len(), 1);
    // From the next loss on it is dialled by its name, at all its addresses.
    node.input(Input::Lost { dial: *node.dials.keys().next().unwrap() });
    assert_eq!(node.dials[&node.dial("a")].1, [at("slow:1"), at("x:1"), at("a:1")]);
}

#[test]
fn an_address_known_as_a_peers_is_forgotten_when_it_is_not_listed_any_more() {
    let mut node = start();
    node.set("a @x:1 me").hello("a").answers("@x:1", peer("a")).set("a me").after(5_100);
    // By now it may be somebody else's.
    node.set("a @x:1 me").answers("@x:1", peer("b")).after(100).members("a b me");
}

#[test]
fn the_address_of_a_missing_peer_is_kept_for_its_return() {
    let mut node = start();
    node.set("@a:1 me").hello("@a:1").after(100).set("me").after(60_000).members("a me");
    node.lost("a").set("@a:1 me").after(60_000).members("a me");
    assert_eq!(node.dials.len(), 1);
}

#[test]
fn a_newer_life_at_a_new_address_wins_and_an_older_is_not_let_in() {
    let mut node = start();
    node.set("@x:1 me").answers("@x:1", peer("a").life(5)).after(100);
    let old = node.dial_of("a");
    node.set("@x:1 @y:1 me").answers("@y:1", peer("a").life(6)).after(100).members("a me");
    assert!(!node.dials.contains_key(&old));
    assert_eq!(node.installed.members[0].incarnation, Incarnation(6));
    node.set("@x:1 @y:1 @z:1 me").answers("@z:1", peer("a").life(4)).after(100);
    assert_eq!((node.installed.members[0].incarnation, redials(&node)), (Incarnation(6), 1));
    assert_eq!(node.warnings(|w| matches!(w, Warning::OldLife { .. })), 1);
    assert_eq!(node.stabilizer.counters().old_lives, 1);
}

#[test]
fn a_recycled_address_that_answers_as_somebody_else_is_refused() {
    let mut node = start();
    node.set("a b me").hello("b").answers("a", peer("c")).answers("a", peer("c")).after(60_000).members("b me");
    assert_eq!(redials(&node), 2);
    let why = Refusal::WrongId { found: Some(id("c")) };
    let warning = Warning::Refused { addresses: vec![at("a:1")], expected: Some(id("a")), why };
    assert_eq!(node.warnings(|w| *w == warning), 1, "once, however often it is redialled");
    // It is a member's connection too when the address changes hands later.
    let mut later = cluster_of("a b me");
    later.lost("a").answers("a", peer("c")).after(60_000).members("a b me");
    assert_eq!(redials(&later), 1);
    // When a comes back, it is well again.
    later.hello("a").after(100).members("a b me");
}

#[test]
fn a_recycled_address_of_a_hint_belongs_to_whoever_answers() {
    let mut node = start();
    node.set("@x:1 @b:1 @me:1").answers("@x:1", peer("a")).hello("@b:1").after(100).members("a b me");
    node.lost("a").answers("a", peer("c")).after(100).members("a b me");
    assert_eq!(node.dials[&node.dial("a")].1, [at("a:1")], "it is not looked for there any more");
    node.answers("@x:1", peer("c")).after(5_100).members("b c me");
}

#[test]
fn a_recycled_address_that_answers_as_ourselves_is_no_peer() {
    let mut node = start();
    node.set("a b me").hello("b").answers("a", peer("me").life(MY_LIFE)).after(100).members("b me");
    assert_eq!((redials(&node), node.warnings(|w| matches!(w, Warning::Refused { .. }))), (1, 1));
}

#[test]
fn a_peer_of_another_cluster_is_told_once_and_never_enters() {
    let mut node = start();
    node.set("a b me").hello("b");
    for _ in 0..10 {
        node.refused("a", Refusal::OtherCluster).after(1_000);
    }
    node.members("b me");
    assert_eq!(node.warnings(|w| matches!(w, Warning::Refused { .. })), 1);
    assert_eq!(node.stabilizer.counters().refusals, 10);
    node.hello("a").after(100).members("a b me").lost("a").refused("a", Refusal::OtherCluster);
    assert_eq!(node.warnings(|w| matches!(w, Warning::Refused { .. })), 2, "it is news again");
}

#[test]
fn a_restart_is_the_same_peer_in_a_newer_life() {
    let mut node = cluster_of("a b me");
    node.lost("a").answers("a", peer("a").life(2)).after(100).members("a b me");
    assert_eq!((node.installed.members[0].incarnation, node.installs()), (Incarnation(2), 1));
}

#[test]
fn a_restart_with_the_clock_set_back_is_let_in_when_the_old_life_is_gone() {
    let mut node = start();
    node.set("@x:1 @b:1 me").answers("@x:1", peer("a").life(100)).hello("@b:1").after(100);
    // On the same address: the live Hello counts.
    node.lost("a").answers("a", peer("a").life(50)).after(100);
    assert_eq!(node.installed.members[0].incarnation, Incarnation(50));
    // At another: while the old connection is not known to be dead, the new one has to come again.
    node.set("@x:1 @y:1 @b:1 me").answers("@y:1", peer("a").life(30)).after(100);
    assert_eq!(node.installed.members[0].incarnation, Incarnation(50));
    node.lost("a").answers("@y:1", peer("a").life(30)).after(100).members("a b me");
    assert_eq!(node.installed.members[0].incarnation, Incarnation(30));
    // What the old life left behind does not harm the new one.
    node.goodbye("a", 100).goodbye("a", 50).after(10_000).members("a b me");
}

#[test]
fn a_restart_with_the_clock_set_back_raises_itself_above_what_discovery_knows() {
    let mut node = start();
    let record = Peer::member(id("me"), [at("me:1")]).with_incarnation(Incarnation(5_000));
    node.input(Input::Set(PeerSet::complete([peers("a"), vec![record]].concat())));
    assert_eq!(node.count(|a| *a == Action::RaiseIncarnation(Incarnation(5_001))), 1);
    // Our own older words, on their way still, are not somebody else's.
    node.hello("a").set("a @self:1").answers("@self:1", peer("me").life(MY_LIFE)).after(100);
    node.input(Input::Left { id: peer("me").id, incarnation: Some(Incarnation(MY_LIFE)) });
    node.input(Input::Left { id: id("me"), incarnation: Some(Incarnation(6_000)) });
    node.input(Input::Left { id: peer("me").id, incarnation: Some(Incarnation(u64::MAX)) }).after(100).members("a me");
    assert_eq!(node.installed.members[1].incarnation, Incarnation(6_001));
    assert_eq!(node.count(|a| matches!(a, Action::DuplicateId { .. })), 0);
    assert_eq!((node.readies(), node.count(|a| matches!(a, Action::RaiseIncarnation(_)))), (1, 2));
}

#[test]
fn a_live_node_under_our_id_is_reported_and_not_raced() {
    for words in ["a @other:1", "a me=other:1"] {
        let mut node = start();
        node.set(words).hello("a");
        let word = if words.contains('@') { "@other:1" } else { "me" };
        node.answers(word, peer("me").life(2_000)).after(100).members("a me");
        let incarnation = Incarnation(2_000);
        assert_eq!(node.count(|a| *a == Action::DuplicateId { at: vec![at("other:1")], incarnation }), 1, "{words}");
        assert_eq!(redials(&node), 1, "{words}");
        node.input(Input::Left { id: peer("me").id, incarnation: Some(incarnation) });
        assert_eq!(node.count(|a| matches!(a, Action::RaiseIncarnation(_))), 0, "{words}");
    }
}

#[test]
fn our_own_record_is_dialled_only_where_we_do_not_listen() {
    let mut node = start();
    node.set("a me").hello("a");
    assert_eq!(node.dials.len(), 1);
    // Behind NAT: found to be us, once.
    node.set("a me=nat:1").answers("me", peer("me").life(MY_LIFE)).after(60_000).set("a me=nat:1").after(60_000);
    node.set("a me=nat:1");
    assert_eq!((node.dials.len(), node.count(|a| matches!(a, Action::Dial { .. }))), (1, 2));
    // A stale record whose address has a new owner makes that owner no peer.
    node.set("a me=stale:1").answers("me", peer("c")).after(100).members("a me");
}

#[test]
fn a_hello_on_a_connection_that_was_hung_up_is_too_late() {
    let mut node = start();
    node.set("a b me").hello("b");
    let late = node.dial("a");
    node.set("b me").input(Input::Hello { dial: late, hello: peer("a") }).after(100).members("b me");
    assert_eq!(node.find("a"), None);
    node.input(Input::Hello { dial: late, hello: peer("a") }).after(100).members("b me");
}
