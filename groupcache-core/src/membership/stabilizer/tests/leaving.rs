//! How members leave, and how they do not.

use crate::identity::Incarnation;
use crate::membership::stabilizer::{
    Action, Input, Warning,
    tests::script::{Script, cluster_of, id, peer},
};

fn ignored(node: &Script) -> (u64, usize) {
    (node.stabilizer.counters().ignored_goodbyes, node.warnings(|w| matches!(w, Warning::IgnoredGoodbye { .. })))
}

#[test]
fn a_missing_peer_leaves_after_its_grace_and_is_hung_up() {
    let mut node = cluster_of("a b me");
    let installs = node.stabilizer.counters().installs;
    node.set("a me").after(4_900).members("a b me").after(200).members("a me");
    assert_eq!((node.pings("b"), node.find("b"), node.installs()), (0, None, 1));
    let counters = node.stabilizer.counters();
    assert_eq!((counters.installs, counters.removals), (installs + 1, 1));
}

#[test]
fn a_peer_that_reappears_within_its_grace_has_not_been_away() {
    let mut node = cluster_of("a b me");
    node.set("a me").after(4_000).set("a b me").after(4_000).set("a me").after(4_000).members("a b me");
    assert_eq!(node.installs(), 0);
}

#[test]
fn grace_is_skipped_when_the_connection_is_gone_and_a_ping_fails() {
    let mut node = cluster_of("a b me");
    node.set("a me").after(1_000).lost("b").after(50).members("a b me");
    assert_eq!(node.pings("b"), 1);
    node.pinged("b", false).after(100).members("a me");
    // Either of them alone does not skip it.
    let mut alive = cluster_of("a b me");
    alive.lost("b").set("a me").pinged("b", true).after(4_000).members("a b me").after(1_100).members("a me");
    let mut live = cluster_of("a b me");
    live.set("a me").left("b").pinged("b", false).after(4_000).members("a b me").after(1_100).members("a me");
}

#[test]
fn health_is_not_membership() {
    let mut node = cluster_of("a b me");
    node.lost("a").failed("a").failed("a").lost("b").failed("b").after(3_600_000).members("a b me");
    assert_eq!(node.installs(), 0);
    node.hello("a").after(100).members("a b me").owners("a b me");
    assert_eq!(node.installs(), 0);
}

#[test]
fn a_goodbye_on_the_peers_own_connection_acts_at_once() {
    let mut node = cluster_of("a b me");
    node.goodbye("a", 1).after(100).members("b me");
    // It is listed still: its next life is welcome, the one that left is not.
    node.hello("a").after(100).members("b me").hello("a").after(100).members("b me");
    assert_eq!(node.count(|a| matches!(a, Action::Redial { .. })), 2);
    node.answers("a", peer("a").life(2)).after(100).members("a b me");
}

#[test]
fn a_peer_known_by_its_address_only_is_dialled_there_again_after_its_goodbye() {
    let mut node = cluster_of("@a:1 @b:1 me");
    node.goodbye("a", 1).after(100).members("b me");
    node.answers("@a:1", peer("a").life(2)).after(100).members("a b me");
}

#[test]
fn the_next_life_after_a_goodbye_may_have_its_clock_set_back() {
    let mut node = cluster_of("a b me");
    node.says(peer("a").life(9)).goodbye("a", 9).answers("a", peer("a").life(3)).after(100).members("a b me");
    assert_eq!(node.installed.members[0].incarnation, Incarnation(3));
}

#[test]
fn goodbyes_of_everybody_are_believed() {
    let mut node = cluster_of("a b c me");
    node.goodbye("a", 1).goodbye("b", 1).goodbye("c", 1).after(100).members("me").owners("me");
    assert_eq!((node.installs(), node.held()), (1, 0));
}

#[test]
fn the_late_goodbye_of_a_former_incarnation_does_not_remove_the_newer_life() {
    let mut node = cluster_of("a b me");
    node.lost("a").answers("a", peer("a").life(2)).after(100).goodbye("a", 1).after(9_000).members("a b me");
    assert_eq!(ignored(&node), (1, 1));
    // The same as a hint from discovery: it is not even worth a ping.
    node.input(Input::Left { id: id("a"), incarnation: Some(Incarnation(1)) }).after(10_000).members("a b me");
    assert_eq!((node.pings("a"), ignored(&node)), (0, (2, 1)));
}

#[test]
fn a_forged_goodbye_for_a_live_peer_is_counted_and_ignored() {
    let mut node = cluster_of("a b me");
    node.left("a");
    assert_eq!((node.pings("a"), ignored(&node)), (1, (1, 1)));
    node.pinged("a", true).after(60_000).members("a b me");
    assert_eq!((node.pings("a"), node.installs()), (1, 0));
    // A flood of them is one ping a second and one line in ten.
    for _ in 0..100 {
        node.left("a").pinged("a", true).after(100);
    }
    node.members("a b me");
    assert!((9..=12).contains(&node.pings("a")) && ignored(&node).1 <= 3, "{} {:?}", node.pings("a"), ignored(&node));
}

#[test]
fn a_peer_that_is_said_to_have_left_and_fails_its_ping_leaves_at_once() {
    let mut node = cluster_of("a b c me");
    node.left("a").pinged("a", false).after(100).members("b c me");
    node.input(Input::Left { id: id("b"), incarnation: Some(Incarnation(9)) });
    node.pinged("b", false).after(100).members("c me");
    // Discovery lists them still, so they are dialled, and enter when they answer.
    node.hello("a").after(100).members("a c me");
}

#[test]
fn pings_that_are_never_reported_are_asked_again() {
    let mut node = cluster_of("a b me");
    node.left("a").after(10_100);
    assert_eq!(node.pings("a"), 3);
}

#[test]
fn hints_about_strangers_and_about_us_are_nothing() {
    let mut node = cluster_of("a b me");
    node.left("stranger").left("me").goodbye("stranger", 1).goodbye("me", 1_000).pinged("stranger", false);
    node.after(10_000).members("a b me");
    assert_eq!(node.log, []);
}
