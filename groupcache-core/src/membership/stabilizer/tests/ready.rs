//! Tests of the change to Ready, and of the owners among joining, ready and draining members.

use crate::identity::NodeState::{Draining, Joining, Ready};
use crate::membership::stabilizer::{
    Action, Input,
    tests::script::{LOCAL_INCARNATION, cluster_of, peer, start, start_with},
};

/// Checks that a node alone becomes Ready with its first complete set, and once only.
#[test]
fn node_without_peers_is_ready_after_first_complete_set() {
    for words in ["", "me"] {
        let mut node = start();
        node.after(5_000);
        assert_eq!(node.readies(), 0);
        node.set(words).after(100).members("me").owners("me");
        assert_eq!((node.readies(), node.installed.members[0].state), (1, Ready));
        node.set(words).after(60_000);
        assert_eq!(node.readies(), 1);
    }
}

/// Checks that a node becomes Ready when each listed peer has answered, failed or refused.
#[test]
fn node_is_ready_once_every_listed_peer_answered_or_failed() {
    let mut node = start();
    node.set("a b c d me").hello("a").after(500).failed("b");
    node.refused("c", super::super::Refusal::NoCommonVersion).after(500).owners("a");
    assert_eq!(node.readies(), 0);
    node.hello("d").after(100).owners("a d me");
    assert_eq!(node.readies(), 1);
}

/// Checks that the member list with the peers that have answered is installed before the node is reported Ready.
#[test]
fn ready_node_has_answering_peers_in_its_view() {
    let mut node = start();
    node.set("a b me").hello("a").hello("b").members("a b me").owners("a b me");
    let order: Vec<_> = node.log.iter().filter(|action| matches!(action, Action::Install(_) | Action::Ready)).collect();
    assert!(matches!(order[..], [Action::Install(_), Action::Install(_), Action::Ready]), "{order:?}");
}

/// Checks that a listed host without an answer delays Ready by 2 s, and never becomes a member.
#[test]
fn unresponsive_host_delays_ready_by_2_s_and_never_enters() {
    let mut node = start();
    node.set("a dead me").hello("a").after(1_900);
    assert_eq!(node.readies(), 0);
    node.after(100);
    assert_eq!(node.readies(), 1);
    node.after(100).members("a me");
    let installs = node.installs();
    for _ in 0..1_000 {
        node.failed("dead").after(1_000);
    }
    node.members("a me");
    assert_eq!((node.installs(), node.readies()), (installs, 1));
}

/// Checks that a node with a ready peer from a partial set stays Joining until the first complete set.
#[test]
fn partial_sets_do_not_make_a_node_ready() {
    let mut node = start();
    node.partial("a me").hello("a").after(60_000).members("a me").owners("a");
    assert_eq!(node.readies(), 0);
    node.set("a me").after(100).owners("a me");
    assert_eq!(node.readies(), 1);
}

/// Checks that a node without any set becomes Ready after 10 s if no member is Ready, and once only.
#[test]
fn silent_discovery_makes_node_ready_without_ready_members() {
    let mut node = start();
    node.after(9_900);
    assert_eq!(node.readies(), 0);
    node.after(100).after(100).owners("me");
    assert_eq!(node.readies(), 1);
    node.set("a me").hello("a").after(300).owners("a me");
    assert_eq!(node.readies(), 1, "Ready is reported once");
}

/// Checks that a record of the local id at another address delays Ready by up to 2 s, because a node with a duplicate
/// id may answer there.
#[test]
fn own_record_at_other_address_delays_ready() {
    let mut node = start();
    node.set("a me=stale:1").hello("a").after(1_900);
    assert_eq!(node.readies(), 0);
    node.after(200);
    assert_eq!(node.readies(), 1, "the delay is that of any peer");
}

/// Checks that joining members own keys while no member is Ready, and draining members do not.
#[test]
fn without_ready_members_all_joining_members_own() {
    let mut node = start();
    node.set("a b c dead me").answers("a", peer("a").state(Joining)).answers("b", peer("b").state(Joining));
    node.answers("c", peer("c").state(Draining)).after(100).owners("a b me");
    node.resend_hello(peer("b")).after(100).owners("b");
}

/// Checks that a draining member stays in the view without keys, and that the local node owns all keys when all members
/// drain.
#[test]
fn draining_member_stays_and_owns_nothing() {
    let mut node = cluster_of("a b me");
    node.resend_hello(peer("a").state(Draining)).after(100).members("a b me").owners("b me");
    node.input(Input::Drain).after(100).members("a b me").owners("b");
    assert_eq!(node.readies(), 0, "the node was Ready before the log began");
    // When all members drain, each node serves its own callers.
    node.resend_hello(peer("b").state(Draining)).after(100).owners("me");
}

/// Checks that a node that drains while it is Joining never becomes Ready.
#[test]
fn node_drained_while_joining_is_never_ready() {
    let mut node = start();
    node.input(Input::Drain).set("a me").hello("a").after(10_000).owners("a");
    assert_eq!(node.readies(), 0);
}

/// Checks that members of weight 0 own keys only while every serving member has weight 0.
#[test]
fn weight_0_member_owns_only_without_weighted_members() {
    let mut node = start_with(peer("me").incarnation(LOCAL_INCARNATION).state(Joining).weight(0));
    node.set("a b me").answers("a", peer("a").weight(0)).answers("b", peer("b").weight(3)).after(100).owners("b");
    assert_eq!(node.installed.owners().map(|(_, share)| share).collect::<Vec<_>>(), [3]);
    node.resend_hello(peer("b").weight(0)).after(100).owners("a b me");
    // A Ready member of weight 0 does not keep a joining member from owning keys.
    node.resend_hello(peer("b").weight(3).state(Joining)).after(100).owners("b");
}

/// Checks that a changed weight of a member causes one member list, and that a reverted change causes none.
#[test]
fn changed_weight_of_member_is_installed_once() {
    let mut node = cluster_of("a b me");
    node.resend_hello(peer("a").weight(4)).after(100);
    assert_eq!(node.installed.owners().map(|(_, share)| share).collect::<Vec<_>>(), [4, 1, 1]);
    assert_eq!(node.installs(), 1);
    node.resend_hello(peer("a").weight(5)).resend_hello(peer("a").weight(4)).after(500);
    assert_eq!(node.installs(), 1, "a reverted change is not installed");
}
