//! When this node becomes Ready, and who owns keys.

use crate::identity::NodeState::{Draining, Joining, Ready};
use crate::membership::stabilizer::{
    Action, Input,
    tests::script::{MY_LIFE, cluster_of, peer, start, start_with},
};

#[test]
fn a_node_without_peers_is_ready_with_its_first_complete_set() {
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

#[test]
fn a_node_is_ready_when_every_listed_peer_answered_or_failed() {
    let mut node = start();
    node.set("a b c d me").hello("a").after(500).failed("b");
    node.refused("c", super::super::Refusal::NoCommonVersion).after(500).owners("a");
    assert_eq!(node.readies(), 0);
    node.hello("d").after(100).owners("a d me");
    assert_eq!(node.readies(), 1);
}

#[test]
fn a_node_that_is_ready_has_the_peers_in_its_view_that_answered() {
    let mut node = start();
    node.set("a b me").hello("a").hello("b").members("a b me").owners("a b me");
    let order: Vec<_> = node.log.iter().filter(|action| matches!(action, Action::Install(_) | Action::Ready)).collect();
    assert!(matches!(order[..], [Action::Install(_), Action::Install(_), Action::Ready]), "{order:?}");
}

#[test]
fn a_listed_host_that_never_answers_delays_ready_by_two_seconds_and_never_enters() {
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

#[test]
fn hints_that_are_not_complete_do_not_make_a_node_ready() {
    let mut node = start();
    node.partial("a me").hello("a").after(60_000).members("a me").owners("a");
    assert_eq!(node.readies(), 0);
    node.set("a me").after(100).owners("a me");
    assert_eq!(node.readies(), 1);
}

#[test]
fn a_node_whose_discovery_says_nothing_is_ready_when_it_knows_nobody_who_is() {
    let mut node = start();
    node.after(9_900);
    assert_eq!(node.readies(), 0);
    node.after(100).after(100).owners("me");
    assert_eq!(node.readies(), 1);
    node.set("a me").hello("a").after(300).owners("a me");
    assert_eq!(node.readies(), 1, "once in its life");
}

#[test]
fn our_own_record_at_another_address_is_waited_for_since_a_rival_may_answer_there() {
    let mut node = start();
    node.set("a me=stale:1").hello("a").after(1_900);
    assert_eq!(node.readies(), 0);
    node.after(200);
    assert_eq!(node.readies(), 1, "as long as for any peer");
}

#[test]
fn when_nobody_is_ready_all_that_do_not_drain_own() {
    let mut node = start();
    node.set("a b c dead me").answers("a", peer("a").state(Joining)).answers("b", peer("b").state(Joining));
    node.answers("c", peer("c").state(Draining)).after(100).owners("a b me");
    node.says(peer("b")).after(100).owners("b");
}

#[test]
fn a_draining_member_stays_a_member_and_owns_nothing() {
    let mut node = cluster_of("a b me");
    node.says(peer("a").state(Draining)).after(100).members("a b me").owners("b me");
    node.input(Input::Drain).after(100).members("a b me").owners("b");
    assert_eq!(node.readies(), 0, "it was Ready before");
    // When all drain, who is asked serves.
    node.says(peer("b").state(Draining)).after(100).owners("me");
}

#[test]
fn a_node_that_drains_before_it_was_ready_never_is() {
    let mut node = start();
    node.input(Input::Drain).set("a me").hello("a").after(10_000).owners("a");
    assert_eq!(node.readies(), 0);
}

#[test]
fn weight_zero_routes_and_owns_only_when_nobody_else_could() {
    let mut node = start_with(peer("me").life(MY_LIFE).state(Joining).weight(0));
    node.set("a b me").answers("a", peer("a").weight(0)).answers("b", peer("b").weight(3)).after(100).owners("b");
    assert_eq!(node.installed.owners().map(|(_, share)| share).collect::<Vec<_>>(), [3]);
    node.says(peer("b").weight(0)).after(100).owners("a b me");
    // A router that is Ready does not keep those from owning that are not Ready yet.
    node.says(peer("b").weight(3).state(Joining)).after(100).owners("b");
}

#[test]
fn a_member_that_is_sent_away_comes_back_with_its_new_weight() {
    let mut node = cluster_of("a b me");
    node.says(peer("a").weight(4)).after(100);
    assert_eq!(node.installed.owners().map(|(_, share)| share).collect::<Vec<_>>(), [4, 1, 1]);
    assert_eq!(node.installs(), 1);
    node.says(peer("a").weight(5)).says(peer("a").weight(4)).after(500);
    assert_eq!(node.installs(), 1, "a change that was taken back is none");
}
