//! Tests of answers from a peer, from another peer, from a stale or newer incarnation, and from the local node.

use crate::membership::stabilizer::{
    Action, Input, Refusal, Warning,
    tests::script::{LOCAL_INCARNATION, at, cluster_of, id, peer, peers, start},
};
use crate::{
    identity::Incarnation,
    membership::provider::{Peer, PeerSet},
};

fn redials(node: &super::script::Script) -> usize {
    node.count(|a| matches!(a, Action::Redial { .. }))
}

/// Checks that addresses without an id become the peers that answer there, and that the peer leaves with its address.
#[test]
fn address_hints_become_the_answering_peers() {
    let mut node = start();
    node.set("@a:1 @b:1 @me:1").members("me");
    node.hello("@a:1").hello("@b:1").answers("@me:1", peer("me").incarnation(LOCAL_INCARNATION));
    node.after(100).members("a b me");
    // The local node keeps no connection to itself, and its address is not dialled again while it is listed.
    assert_eq!(node.dials.len(), 2);
    node.set("@a:1 @b:1 @me:1").after(60_000).set("@b:1 @a:1 @me:1");
    assert_eq!(node.dials.len(), 2);
    assert_eq!(node.warnings(|_| true), 0);
    // A peer that is known by an address is missing when the address is not listed.
    node.set("@b:1 @me:1").after(5_100).members("b me");
    assert_eq!(node.dials.len(), 1);
}

/// Checks that an address of the local node is dialled again when it is listed again after its grace time.
#[test]
fn hint_of_local_node_is_dialled_again_when_relisted() {
    let mut node = start();
    node.set("@x:1 @me:1").hello("@x:1").answers("@me:1", peer("me").incarnation(LOCAL_INCARNATION));
    node.set("@x:1").after(5_100).set("@x:1 @me:1");
    assert!(node.find("@me:1").is_some());
}

/// Checks that a second address of a connected peer becomes an address of that peer without a second connection.
#[test]
fn two_addresses_of_one_peer_share_one_connection() {
    let mut node = start();
    node.set("a @x:1 @y:1 me").hello("a").answers("@x:1", peer("a")).after(100).members("a me");
    assert_eq!(node.dials.len(), 2, "the connection of a, and the target y");
    node.failed("@y:1");
    // A set with only the other address keeps the peer.
    node.set("@x:1 @y:1 me").after(60_000).members("a me");
    node.lost("a");
    assert_eq!(node.dials[&node.dial("a")].1, [at("x:1"), at("a:1")]);
}

/// Checks that a peer that answers at a hinted address first makes the target of its id unnecessary.
#[test]
fn answering_hint_replaces_the_named_target() {
    let mut node = start();
    node.set("a=slow:1 @x:1 me").answers("@x:1", peer("a")).after(100).members("a me");
    assert_eq!(node.dials.len(), 1);
    // After the next loss the peer is dialled by its id, at all of its addresses.
    node.input(Input::Lost { dial: *node.dials.keys().next().unwrap() });
    assert_eq!(node.dials[&node.dial("a")].1, [at("slow:1"), at("x:1"), at("a:1")]);
}

/// Checks that the owner of an address is forgotten after the address has been unlisted for the grace time.
#[test]
fn unlisted_address_loses_its_owner() {
    let mut node = start();
    node.set("a @x:1 me").hello("a").answers("@x:1", peer("a")).set("a me").after(5_100);
    // The address may belong to another peer when it is listed again.
    node.set("a @x:1 me").answers("@x:1", peer("b")).after(100).members("a b me");
}

/// Checks that the hinted address of a missing member is kept, so that the member is recognised when it is listed
/// again.
#[test]
fn address_of_missing_peer_is_kept_for_its_return() {
    let mut node = start();
    node.set("@a:1 me").hello("@a:1").after(100).set("me").after(60_000).members("a me");
    node.lost("a").set("@a:1 me").after(60_000).members("a me");
    assert_eq!(node.dials.len(), 1);
}

/// Checks that a newer incarnation at another address replaces the connection, and that a stale incarnation is rejected
/// with one warning.
#[test]
fn newer_incarnation_wins_and_stale_one_is_rejected() {
    let mut node = start();
    node.set("@x:1 me").answers("@x:1", peer("a").incarnation(5)).after(100);
    let old = node.dial_of("a");
    node.set("@x:1 @y:1 me").answers("@y:1", peer("a").incarnation(6)).after(100).members("a me");
    assert!(!node.dials.contains_key(&old));
    assert_eq!(node.installed.members[0].incarnation, Incarnation(6));
    node.set("@x:1 @y:1 @z:1 me").answers("@z:1", peer("a").incarnation(4)).after(100);
    assert_eq!((node.installed.members[0].incarnation, redials(&node)), (Incarnation(6), 1));
    assert_eq!(node.warnings(|w| matches!(w, Warning::OldLife { .. })), 1);
    assert_eq!(node.stabilizer.counters().stale_incarnations, 1);
}

/// Checks that another peer at the address of a listed id is refused with one warning, before and after the listed peer
/// has been a member.
#[test]
fn recycled_address_with_another_peer_is_refused() {
    let mut node = start();
    node.set("a b me").hello("b").answers("a", peer("c")).answers("a", peer("c")).after(60_000).members("b me");
    assert_eq!(redials(&node), 2);
    let why = Refusal::WrongId { found: Some(id("c")) };
    let warning = Warning::Refused { addresses: vec![at("a:1")], expected: Some(id("a")), why };
    assert_eq!(node.warnings(|w| *w == warning), 1, "redials do not repeat the warning");
    // The target may be that of a member when the address gets another owner.
    let mut later = cluster_of("a b me");
    later.lost("a").answers("a", peer("c")).after(60_000).members("a b me");
    assert_eq!(redials(&later), 1);
    // When a returns, its target is live again.
    later.hello("a").after(100).members("a b me");
}

/// Checks that a hinted address of a lost member belongs to the peer that answers there next.
#[test]
fn recycled_hint_belongs_to_the_answering_peer() {
    let mut node = start();
    node.set("@x:1 @b:1 @me:1").answers("@x:1", peer("a")).hello("@b:1").after(100).members("a b me");
    node.lost("a").answers("a", peer("c")).after(100).members("a b me");
    assert_eq!(node.dials[&node.dial("a")].1, [at("a:1")], "the recycled address is not dialled for a any more");
    node.answers("@x:1", peer("c")).after(5_100).members("b c me");
}

/// Checks that the local node at the address of a listed id is refused with one warning.
#[test]
fn recycled_address_with_local_node_is_no_peer() {
    let mut node = start();
    node.set("a b me").hello("b").answers("a", peer("me").incarnation(LOCAL_INCARNATION)).after(100).members("b me");
    assert_eq!((redials(&node), node.warnings(|w| matches!(w, Warning::Refused { .. }))), (1, 1));
}

/// Checks that a peer of another cluster causes one warning for ten refusals and is no member, and that a refusal after
/// an accepted Hello causes another warning.
#[test]
fn peer_of_other_cluster_warns_once_and_never_enters() {
    let mut node = start();
    node.set("a b me").hello("b");
    for _ in 0..10 {
        node.refused("a", Refusal::OtherCluster).after(1_000);
    }
    node.members("b me");
    assert_eq!(node.warnings(|w| matches!(w, Warning::Refused { .. })), 1);
    assert_eq!(node.stabilizer.counters().refusals, 10);
    node.hello("a").after(100).members("a b me").lost("a").refused("a", Refusal::OtherCluster);
    assert_eq!(
        node.warnings(|w| matches!(w, Warning::Refused { .. })),
        2,
        "the accepted Hello has ended the first refusal"
    );
}

/// Checks that a restarted peer is the same member with a newer incarnation.
#[test]
fn restarted_peer_is_same_member_with_new_incarnation() {
    let mut node = cluster_of("a b me");
    node.lost("a").answers("a", peer("a").incarnation(2)).after(100).members("a b me");
    assert_eq!((node.installed.members[0].incarnation, node.installs()), (Incarnation(2), 1));
}

/// Checks that a peer restarted with an earlier clock is admitted once the connection of its newer incarnation is lost.
#[test]
fn restart_with_earlier_clock_is_admitted_after_loss() {
    let mut node = start();
    node.set("@x:1 @b:1 me").answers("@x:1", peer("a").incarnation(100)).hello("@b:1").after(100);
    // At the same address the Hello on the new connection counts.
    node.lost("a").answers("a", peer("a").incarnation(50)).after(100);
    assert_eq!(node.installed.members[0].incarnation, Incarnation(50));
    // At another address the new incarnation is rejected while the old connection is live.
    node.set("@x:1 @y:1 @b:1 me").answers("@y:1", peer("a").incarnation(30)).after(100);
    assert_eq!(node.installed.members[0].incarnation, Incarnation(50));
    node.lost("a").answers("@y:1", peer("a").incarnation(30)).after(100).members("a b me");
    assert_eq!(node.installed.members[0].incarnation, Incarnation(30));
    // Goodbyes of the earlier incarnations do not remove the peer.
    node.goodbye("a", 100).goodbye("a", 50).after(10_000).members("a b me");
}

/// Checks that a node with an earlier clock raises its incarnation above the incarnation that discovery has for it, and
/// that its own earlier incarnations do not count as a duplicate id.
#[test]
fn restart_with_earlier_clock_raises_own_incarnation() {
    let mut node = start();
    let record = Peer::member(id("me"), [at("me:1")]).with_incarnation(Incarnation(5_000));
    node.input(Input::Set(PeerSet::complete([peers("a"), vec![record]].concat())));
    assert_eq!(node.count(|a| *a == Action::RaiseIncarnation(Incarnation(5_001))), 1);
    // A Hello of an earlier incarnation that is still in transit is not from another node.
    node.hello("a").set("a @self:1").answers("@self:1", peer("me").incarnation(LOCAL_INCARNATION)).after(1_100);
    node.input(Input::Left { id: peer("me").id, incarnation: Some(Incarnation(LOCAL_INCARNATION)) });
    node.input(Input::Left { id: id("me"), incarnation: Some(Incarnation(6_000)) });
    node.input(Input::Left { id: peer("me").id, incarnation: Some(Incarnation(u64::MAX)) }).after(100).members("a me");
    assert_eq!(node.installed.members[1].incarnation, Incarnation(6_001));
    assert_eq!(node.count(|a| matches!(a, Action::DuplicateId { .. })), 0);
    assert_eq!((node.readies(), node.count(|a| matches!(a, Action::RaiseIncarnation(_)))), (1, 2));
}

/// Checks that a live node with the id of this node is reported, and that this node does not raise its incarnation
/// then.
#[test]
fn duplicate_id_is_reported_without_raising_incarnation() {
    for words in ["a @other:1", "a me=other:1"] {
        let mut node = start();
        node.set(words).hello("a");
        let word = if words.contains('@') { "@other:1" } else { "me" };
        node.answers(word, peer("me").incarnation(2_000)).after(100).members("a me");
        let incarnation = Incarnation(2_000);
        assert_eq!(node.count(|a| *a == Action::DuplicateId { at: vec![at("other:1")], incarnation }), 1, "{words}");
        assert_eq!(redials(&node), 1, "{words}");
        node.input(Input::Left { id: peer("me").id, incarnation: Some(incarnation) });
        assert_eq!(node.count(|a| matches!(a, Action::RaiseIncarnation(_))), 0, "{words}");
    }
}

/// Checks that the record of the local id is dialled only at addresses that are not known to be the local node's.
#[test]
fn own_record_is_dialled_only_at_foreign_addresses() {
    let mut node = start();
    node.set("a me").hello("a");
    assert_eq!(node.dials.len(), 1);
    // Behind NAT, the address is dialled once and found to be the local node's.
    node.set("a me=nat:1")
        .answers("me", peer("me").incarnation(LOCAL_INCARNATION))
        .after(60_000)
        .set("a me=nat:1")
        .after(60_000);
    node.set("a me=nat:1");
    assert_eq!((node.dials.len(), node.count(|a| matches!(a, Action::Dial { .. }))), (1, 2));
    // A stale record with the address of another node does not make that node a peer.
    node.set("a me=stale:1").answers("me", peer("c")).after(100).members("a me");
}

/// Checks that a Hello on a closed target, or on a target that is not listed any more, is ignored.
#[test]
fn hello_on_closed_target_is_ignored() {
    let mut node = start();
    node.set("a b me").hello("b");
    let late = node.dial("a");
    node.set("b me").input(Input::Hello { dial: late, hello: peer("a") }).after(100).members("b me");
    assert_eq!(node.find("a"), None);
    node.input(Input::Hello { dial: late, hello: peer("a") }).after(100).members("b me");
}
