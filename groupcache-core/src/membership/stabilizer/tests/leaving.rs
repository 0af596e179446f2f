//! Tests of the removal of members by grace, pings and goodbyes.

use crate::identity::Incarnation;
use crate::membership::stabilizer::{
    Action, Input, Warning,
    tests::script::{Script, cluster_of, id, peer},
};

/// Returns the counted goodbyes without effect, and their warnings.
fn ignored(node: &Script) -> (u64, usize) {
    (node.stabilizer.counters().ignored_goodbyes, node.warnings(|w| matches!(w, Warning::IgnoredGoodbye { .. })))
}

/// Checks that a missing member leaves after 5 s without a ping, because its connection is live, and is hung up.
#[test]
fn missing_peer_leaves_after_grace_and_is_hung_up() {
    let mut node = cluster_of("a b me");
    let installs = node.stabilizer.counters().installs;
    node.set("a me").after(4_900).members("a b me").after(200).members("a me");
    assert_eq!((node.pings("b"), node.find("b"), node.installs()), (0, None, 1));
    let counters = node.stabilizer.counters();
    assert_eq!((counters.installs, counters.removals), (installs + 1, 1));
}

/// Checks that a member that is listed again within its grace time has a full grace time when it is missing again.
#[test]
fn reappearance_within_grace_changes_nothing() {
    let mut node = cluster_of("a b me");
    node.set("a me").after(4_000).set("a b me").after(4_000).set("a me").after(4_000).members("a b me");
    assert_eq!(node.installs(), 0);
}

/// Checks that a lost connection and a failed ping together remove a missing member before the end of its grace time.
#[test]
fn lost_connection_and_failed_ping_skip_the_grace() {
    let mut node = cluster_of("a b me");
    node.set("a me").after(1_000).lost("b").after(50).members("a b me");
    assert_eq!(node.pings("b"), 1);
    node.pinged("b", false).after(100).members("a me");
    // A lost connection alone, or a failed ping alone, does not skip the grace time.
    let mut alive = cluster_of("a b me");
    alive.lost("b").set("a me").pinged("b", true).after(4_000).members("a b me").after(1_100).members("a me");
    let mut live = cluster_of("a b me");
    live.set("a me").left("b").pinged("b", false).after(4_000).members("a b me").after(1_100).members("a me");
}

/// Checks that listed members stay in the view and own keys while their connections fail for an hour.
#[test]
fn unreachable_peers_stay_members() {
    let mut node = cluster_of("a b me");
    node.lost("a").failed("a").failed("a").lost("b").failed("b").after(3_600_000).members("a b me");
    assert_eq!(node.installs(), 0);
    node.hello("a").after(100).members("a b me").owners("a b me");
    assert_eq!(node.installs(), 0);
}

/// Checks that a goodbye removes the member at once, that its incarnation is rejected afterwards, and that its next
/// incarnation is admitted.
#[test]
fn goodbye_removes_a_member_at_once() {
    let mut node = cluster_of("a b me");
    node.goodbye("a", 1).after(100).members("b me");
    // The peer is still listed: its next incarnation is admitted, and the departed one is rejected.
    node.hello("a").after(100).members("b me").hello("a").after(100).members("b me");
    assert_eq!(node.count(|a| matches!(a, Action::Redial { .. })), 2);
    node.answers("a", peer("a").incarnation(2)).after(100).members("a b me");
}

/// Checks that a peer that is listed by its address only is dialled there again after its goodbye.
#[test]
fn address_only_peer_is_dialled_again_after_goodbye() {
    let mut node = cluster_of("@a:1 @b:1 me");
    node.goodbye("a", 1).after(100).members("b me");
    node.answers("@a:1", peer("a").incarnation(2)).after(100).members("a b me");
}

/// Checks that a peer restarted with an earlier clock is admitted after the goodbye of its higher incarnation.
#[test]
fn restart_after_goodbye_may_have_lower_incarnation() {
    let mut node = cluster_of("a b me");
    node.resend_hello(peer("a").incarnation(9))
        .goodbye("a", 9)
        .answers("a", peer("a").incarnation(3))
        .after(100)
        .members("a b me");
    assert_eq!(node.installed.members[0].incarnation, Incarnation(3));
}

/// Checks that the goodbyes of all members do not suspend removals.
#[test]
fn goodbyes_of_all_members_are_accepted() {
    let mut node = cluster_of("a b c me");
    node.goodbye("a", 1).goodbye("b", 1).goodbye("c", 1).after(100).members("me").owners("me");
    assert_eq!((node.installs(), node.suspensions()), (1, 0));
}

/// Checks that a late goodbye of a stale incarnation, and a report of its departure, do not remove the newer
/// incarnation.
#[test]
fn late_goodbye_of_stale_incarnation_is_ignored() {
    let mut node = cluster_of("a b me");
    node.lost("a").answers("a", peer("a").incarnation(2)).after(100).goodbye("a", 1).after(9_000).members("a b me");
    assert_eq!(ignored(&node), (1, 1));
    // A report of discovery about a stale incarnation causes no ping.
    node.input(Input::Left { id: id("a"), incarnation: Some(Incarnation(1)) }).after(10_000).members("a b me");
    assert_eq!((node.pings("a"), ignored(&node)), (0, (2, 1)));
}

/// Checks that reported departures of a connected peer are counted, and cause at most one ping a second and one warning
/// in ten seconds.
#[test]
fn forged_goodbye_of_live_peer_is_counted_and_ignored() {
    let mut node = cluster_of("a b me");
    node.left("a");
    assert_eq!((node.pings("a"), ignored(&node)), (1, (1, 1)));
    node.pinged("a", true).after(60_000).members("a b me");
    assert_eq!((node.pings("a"), node.installs()), (1, 0));
    // A flood of reports causes one ping a second and one warning in ten seconds.
    for _ in 0..100 {
        node.left("a").pinged("a", true).after(100);
    }
    node.members("a b me");
    assert!((9..=12).contains(&node.pings("a")) && ignored(&node).1 <= 3, "{} {:?}", node.pings("a"), ignored(&node));
}

/// Checks that a reported departure and a failed ping remove a member at once.
#[test]
fn reported_departure_and_failed_ping_remove_member() {
    let mut node = cluster_of("a b c me");
    node.left("a").pinged("a", false).after(100).members("b c me");
    node.input(Input::Left { id: id("b"), incarnation: Some(Incarnation(9)) });
    node.pinged("b", false).after(100).members("c me");
    // Discovery still lists the peers, so that they are dialled and enter when they answer.
    node.hello("a").after(100).members("a c me");
}

/// Checks that a ping without a result is sent again every 5 s.
#[test]
fn pings_without_result_are_sent_again() {
    let mut node = cluster_of("a b me");
    node.left("a").after(10_100);
    assert_eq!(node.pings("a"), 3);
}

/// Checks that reports, goodbyes and ping results about an unknown peer or the local node cause no action.
#[test]
fn reports_about_unknown_and_local_nodes_are_ignored() {
    let mut node = cluster_of("a b me");
    node.left("unknown").left("me").goodbye("unknown", 1).goodbye("me", 1_000).pinged("unknown", false);
    node.after(10_000).members("a b me");
    assert_eq!(node.log, []);
}
