//! Tests of peer sets: targets, suspended removals, limits, and requests to the provider to look again.

use std::{collections::BTreeMap, time::Duration};

use crate::membership::stabilizer::{
    Action, Input, Warning,
    tests::script::{at, cluster_of, id, peer, peers, start},
};
use crate::{
    identity::Incarnation,
    membership::provider::{Peer, PeerSet},
};

/// Checks that an hour without a set changes nothing. A provider with an error or a 403 reports its health and
/// publishes no set.
#[test]
fn provider_without_sets_changes_nothing() {
    let mut node = cluster_of("a b me");
    node.after(3_600_000).members("a b me");
    assert_eq!(node.log, []);
    assert_eq!(node.stabilizer.counters().last_set_at, Some(Duration::ZERO));
}

/// Checks that a node without any set owns all keys alone, and reports that it is Ready after 10 s.
#[test]
fn silent_provider_leaves_node_alone_and_ready_after_10_s() {
    let mut node = start();
    node.after(5_000).members("me").owners("me");
    assert_eq!((node.readies(), node.installs()), (0, 1));
    node.after(60_000).members("me").owners("me");
    assert_eq!((node.readies(), node.installs()), (1, 2), "Ready is reported after the wait");
}

/// Checks that peers enter after their Hello, and that two peers that answer together enter with one member list.
#[test]
fn answering_peers_enter_together() {
    let mut node = start();
    node.set("a b c me").members("me");
    node.hello("a").hello("b").after(100).members("a b me");
    node.hello("c").after(100).members("a b c me");
    assert_eq!(node.installs(), 3);
}

/// Checks that an empty set keeps all members for an hour, with one warning and ever fewer requests to look again.
#[test]
fn empty_set_suspends_removals() {
    let mut node = cluster_of("a b me");
    node.set("").after(3_600_000).members("a b me");
    assert_eq!(node.suspensions(), 1);
    let counters = node.stabilizer.counters();
    assert_eq!((counters.sets, counters.holds, counters.last_set_at), (2, 1, Some(Duration::ZERO)));
    // The pauses between the requests are 5, 10, 20, 40, 60, 60 … seconds.
    assert!((50..90).contains(&node.resolves()), "{}", node.resolves());
}

/// Checks that a set without half of the members is accepted, and that a set without more of them suspends removals.
#[test]
fn loss_of_half_is_accepted_and_more_suspends_removals() {
    let mut half = cluster_of("a b c d me");
    half.set("a b me").after(4_900).members("a b c d me").after(200).members("a b me");
    assert_eq!(half.suspensions(), 0);
    let mut more = cluster_of("a b c d me");
    more.set("a me").after(60_000).members("a b c d me");
    assert_eq!(more.suspensions(), 1);
    let mut only = cluster_of("a me");
    only.set("me").after(60_000).members("a me");
    assert_eq!(only.suspensions(), 1);
}

/// Checks that two sets that each lose few members suspend removals if they lose most members together.
#[test]
fn loss_of_most_peers_in_small_steps_suspends_removals() {
    let mut node = cluster_of("a b c d e me");
    node.set("a b c me").after(2_000).set("a me").after(60_000).members("a b c d e me");
    assert_eq!(node.suspensions(), 1);
}

/// Checks that a set that suspends removals still adds a peer.
#[test]
fn suspended_set_still_adds_peers() {
    let mut node = cluster_of("a b me");
    node.set("x").hello("x").after(10_000).members("a b me x");
}

/// Checks that missing members leave during a suspension once each of them has failed two pings a second apart.
#[test]
fn suspended_set_is_accepted_after_two_failed_pings_each() {
    let mut node = cluster_of("a b c me");
    node.set("c me").lost("a").lost("b");
    assert_eq!((node.pings("a"), node.pings("b")), (1, 1));
    node.pinged("a", false).pinged("b", false).after(900).members("a b c me");
    assert_eq!(node.pings("a"), 1, "not before a second has passed");
    node.after(200);
    assert_eq!((node.pings("a"), node.pings("b")), (2, 2));
    node.pinged("a", false).after(2_000).members("a b c me");
    node.pinged("b", false).after(100).members("c me");
}

/// Checks that one missing member that answers its pings keeps all missing members during a suspension.
#[test]
fn one_answering_peer_keeps_all_missing_peers() {
    let mut node = cluster_of("a b c me");
    node.set("c me").lost("a").lost("b");
    for _ in 0..20 {
        node.pinged("a", false).pinged("b", true).after(1_100);
    }
    node.members("a b c me");
    assert!(node.pings("b") < 10, "an answering peer is pinged less often");
}

/// Checks that an answered ping resets the failures of a missing member, so that two more failures are needed.
#[test]
fn answered_ping_resets_the_failures_of_a_peer() {
    let mut node = cluster_of("a b me");
    node.set("me").lost("a").lost("b").pinged("a", false).pinged("b", false).after(1_000);
    node.pinged("a", true).pinged("b", false).after(5_000).pinged("a", false).after(500).members("a b me");
    node.after(500).pinged("a", false).after(100).members("me");
}

/// Checks that the loss of the connection of a missing member makes its next ping due at once.
#[test]
fn missing_peer_is_pinged_at_once_after_connection_loss() {
    let mut node = cluster_of("a b me");
    node.set("me").pinged("a", true).after(500);
    assert_eq!(node.pings("a"), 1);
    node.lost("a").after(50);
    assert_eq!(node.pings("a"), 2);
}

/// Checks that a second failure without a second ping does not count.
#[test]
fn unrequested_ping_results_are_ignored() {
    let mut node = cluster_of("a b me");
    node.set("me").lost("a").lost("b");
    for name in ["a", "b"] {
        node.pinged(name, false).pinged(name, false);
    }
    node.after(100).members("a b me");
}

/// Checks that an equal set confirms the suspended one only after a request to look again.
#[test]
fn suspended_set_is_accepted_after_provider_confirms_it() {
    let mut node = cluster_of("a b c me");
    node.set("me").after(500);
    assert_eq!(node.resolves(), 0);
    node.set("me").after(1_000).members("a b c me");
    assert_eq!(node.count(|a| *a == Action::Resolve { ids: vec![id("a"), id("b"), id("c")] }), 1);
    node.after(10_000).members("a b c me");
    node.set("me").after(100).members("me");
    assert!(node.dials.is_empty());
}

/// Checks that the request to look again names the missing members.
#[test]
fn resolve_of_suspended_set_names_the_missing_peers() {
    let mut node = cluster_of("a b c d me");
    node.set("d me").after(1_500);
    assert_eq!(node.count(|a| *a == Action::Resolve { ids: vec![id("a"), id("b"), id("c")] }), 1);
}

/// Checks that a confirmed set does not suspend removals again when the provider publishes it once more.
#[test]
fn confirmed_set_published_again_is_accepted() {
    let mut node = cluster_of("a b me");
    node.set("me").after(1_500).set("me").after(1_000).set("me").after(3_000).members("me");
    assert_eq!(node.stabilizer.counters().holds, 1);
}

/// Checks that a different set after the request to look again starts a suspension of its own.
#[test]
fn different_answer_does_not_confirm_suspended_set() {
    let mut node = cluster_of("a b c me");
    node.set("me").after(1_500).set("a me").after(500).members("a b c me");
    assert_eq!(node.stabilizer.counters().holds, 2);
    // The request was for the first set, so that the second set needs another one.
    node.set("a me").after(20_000).members("a b c me");
}

/// Checks that a set with all members ends the suspension and the requests to look again.
#[test]
fn complete_set_with_all_peers_ends_suspension() {
    let mut node = cluster_of("a b me");
    node.set("").after(30_000).set("a b me");
    let resolves = node.resolves();
    node.after(600_000).members("a b me");
    assert_eq!((node.installs(), node.resolves()), (0, resolves));
    assert_eq!(node.stabilizer.counters().last_set_at, Some(Duration::from_millis(30_300)));
}

/// Checks that a provider that publishes two sets in turn, 20 of them a second, changes no member and no target, and
/// causes few warnings and requests.
#[test]
fn flapping_provider_changes_no_member() {
    for flapping in ["a b c d me", "a b c me", ""] {
        let mut node = cluster_of("a b c d e me");
        for _ in 0..600 {
            node.set(flapping).after(50).set("a b c d e me").after(50);
        }
        node.members("a b c d e me");
        let dialled = node.count(|a| matches!(a, Action::Dial { .. } | Action::Hangup { .. }));
        assert_eq!((node.installs(), dialled), (0, 0), "flapping to {flapping:?}");
        assert!(node.suspensions() <= 7 && node.resolves() <= 15, "{} {}", node.suspensions(), node.resolves());
    }
}

/// Checks that a host that a flapping provider lists and that never answers keeps one target.
#[test]
fn flapping_unreachable_host_is_dialled_once() {
    let mut node = cluster_of("a b me");
    for _ in 0..600 {
        node.set("a b dead me").after(50).set("a b me").after(50);
    }
    assert_eq!(node.count(|a| matches!(a, Action::Dial { .. })), 1);
    node.after(5_000);
    assert_eq!(node.find("dead"), None);
}

/// Checks that two records of one id are one peer with all addresses, the addresses of the newer incarnation first.
#[test]
fn duplicate_records_merge_with_newest_addresses_first() {
    let mut node = start();
    let old = Peer::member(id("a"), [at("old:1"), at("both:1")]).with_incarnation(Incarnation(1));
    let new = Peer::member(id("a"), [at("new:1"), at("both:1")]).with_incarnation(Incarnation(2));
    node.input(Input::Set(PeerSet::complete(vec![old, new])));
    assert_eq!(node.dials.len(), 1);
    assert_eq!(node.dials[&node.dial("a")].1, [at("new:1"), at("both:1"), at("old:1")]);
    node.hello("a").after(100).members("a me");
}

/// Checks that a partial set adds peers and removes none, and that the next complete set removes them.
#[test]
fn partial_sets_only_add_peers() {
    let mut node = cluster_of("a b me");
    node.partial("c").hello("c").after(10_000).members("a b c me");
    node.partial("").after(10_000).members("a b c me");
    // The next complete set makes unlisted members missing, also members from a partial set.
    node.set("a b me").after(5_100).members("a b me");
}

/// Checks that the local node is a member without being listed, and that one warning reports a node that is never
/// listed.
#[test]
fn unlisted_local_node_is_member_and_reported_once() {
    let mut node = start();
    node.after(60_000).set("a b").hello("a").hello("b").after(9_900);
    let reports = |node: &super::script::Script| node.warnings(|w| *w == Warning::SelfNotListed);
    assert_eq!(reports(&node), 0);
    node.after(200).set("a b").after(600_000).members("a b me");
    assert_eq!(reports(&node), 1);
    let mut listed = start();
    listed.set("a me").after(60_000).set("a").after(60_000);
    assert_eq!(reports(&listed), 0);
}

/// Checks that 1,000 peers that answer within two seconds cause at most twelve member lists.
#[test]
fn thousand_peers_cause_few_installs() {
    let names: Vec<_> = (0..1_000).map(|n| format!("p{n:03}")).collect();
    let mut node = start();
    node.set(&format!("{} me", names.join(" ")));
    for (n, name) in names.iter().enumerate() {
        let dial = node.dials.iter().find(|(_, dialled)| dialled.0 == Some(id(name))).map(|(dial, _)| *dial).unwrap();
        node.input(Input::Hello { dial, hello: peer(name) });
        // 1,000 connections in two seconds.
        node.now += Duration::from_millis(2);
        if n % 25 == 24 {
            node.input(Input::Tick);
        }
    }
    node.after(300);
    assert_eq!(node.installed.members.len(), 1_001);
    assert!((3..=12).contains(&node.installs()), "{}", node.installs());
    assert_eq!(node.readies(), 1);
}

/// Checks that changes every 30 ms do not delay the next member list beyond 250 ms.
#[test]
fn stream_of_changes_is_installed_within_250_ms() {
    let mut node = cluster_of("a b me");
    for weight in 2..12 {
        node.now += Duration::from_millis(30);
        node.resend_hello(peer("a").weight(weight));
    }
    assert_eq!(node.installs(), 1);
}

/// Checks that a set of 2,100 peers is cut to the first 2,000 ids, and that partial sets count towards the limit.
#[test]
fn oversized_set_is_cut_in_order_of_ids() {
    let names: BTreeMap<_, _> = (0..2_100).rev().map(|n| (n, format!("p{n:04}"))).collect();
    let words = names.values().rev().cloned().collect::<Vec<_>>().join(" ");
    let mut node = start();
    node.set(&words).after(1_000).set(&words);
    assert_eq!(node.dials.len(), 2_000);
    assert!(node.find("p1999").is_some() && node.find("p2000").is_none());
    assert_eq!(node.warnings(|w| *w == Warning::TooManyPeers { left_out: 100 }), 1);
    node.after(11_000).partial("p2000 p2001");
    assert_eq!(node.warnings(|w| *w == Warning::TooManyPeers { left_out: 2 }), 1);
}

/// Checks that partial sets of ever new addresses never keep more than 2,000 targets.
#[test]
fn rotating_hints_are_bounded() {
    let mut node = start();
    for round in 0..100 {
        let words: Vec<_> = (0..100).map(|n| format!("@r{round}n{n}:1")).collect();
        node.partial(&words.join(" ")).after(50);
    }
    node.after(5_100);
    assert_eq!(node.dials.len(), 2_000);
    node.set("me").after(5_100);
    assert!(node.dials.is_empty());
}

/// Checks that a set that replaces all addresses is dialled while the old targets are in their grace time.
#[test]
fn replaced_and_new_targets_are_dialled_together() {
    let all = |letter: char| (0..1_500).map(|n| format!("@{letter}{n}:1")).collect::<Vec<_>>().join(" ");
    let mut node = start();
    node.set(&all('a')).after(1_000).set(&all('b'));
    assert_eq!(node.dials.len(), 3_000);
}

/// Checks that addresses and weights beyond the limits are cut, from discovery and from a Hello.
#[test]
fn peer_is_limited_to_8_addresses_and_weight_16() {
    let many: Vec<_> = (0..20).map(|n| at(&format!("h{n}:1"))).collect();
    let mut node = start();
    node.input(Input::Set(PeerSet::complete(vec![Peer::member(id("a"), many.clone())])));
    assert_eq!(node.dials[&node.dial("a")].1.len(), 8);
    let mut hello = peer("a").weight(200);
    hello.addresses = many;
    node.answers("a", hello).after(100);
    let a = &node.installed.members[0];
    assert_eq!((a.addresses.len(), a.weight, a.share), (8, 16, 16));
}

/// Checks that a new address in discovery is counted and not dialled while the peer is connected, and is dialled first
/// once the connection is lost.
#[test]
fn new_address_is_ignored_while_old_one_answers() {
    let mut node = cluster_of("a b me");
    node.set("a=new:1 b me");
    assert_eq!(node.stabilizer.counters().ignored_addresses, 1);
    node.set("a=new:1 b me").after(60_000);
    assert_eq!(node.log, []);
    assert_eq!(node.stabilizer.counters().ignored_addresses, 1);
    node.lost("a");
    assert_eq!(node.dials[&node.dial("a")].1, [at("new:1"), at("a:1")]);
    // A new address of an unreachable peer is used at once.
    node.set("a=newer:1 b me");
    assert_eq!(node.dials[&node.dial("a")].1, [at("newer:1"), at("a:1"), at("new:1")]);
}

/// Checks that an address from the peer's own Hello does not count as new when discovery lists it.
#[test]
fn known_address_of_named_peer_is_not_counted_as_new() {
    let mut node = start();
    node.set("@x:1 me").answers("@x:1", peer("a")).set("@x:1 a me").after(1_000).members("a me");
    assert_eq!(node.stabilizer.counters().ignored_addresses, 0);
}

/// Checks that the addresses of a record with a stale incarnation come after the known addresses of the peer.
#[test]
fn record_of_stale_incarnation_is_dialled_last() {
    let mut node = cluster_of("a b me");
    node.resend_hello(peer("a").incarnation(9)).after(100).lost("a");
    let mut set = peers("b me");
    set.push(Peer::member(id("a"), [at("stale:1")]).with_incarnation(Incarnation(8)));
    node.input(Input::Set(PeerSet::complete(set)));
    assert_eq!(node.dials[&node.dial("a")].1, [at("a:1"), at("stale:1")]);
}

/// Checks that the addresses of a record with the peer's own incarnation come first.
#[test]
fn record_of_same_incarnation_is_dialled_first() {
    let mut node = cluster_of("a b me");
    node.resend_hello(peer("a").incarnation(9)).after(100).lost("a");
    let mut set = peers("b me");
    set.push(Peer::member(id("a"), [at("moved:1")]).with_incarnation(Incarnation(9)));
    node.input(Input::Set(PeerSet::complete(set)));
    assert_eq!(node.dials[&node.dial("a")].1, [at("moved:1"), at("a:1")]);
}

/// Checks that differing fingerprints cause requests to look again with growing pauses, that a changed set shortens the
/// pause, and that equal fingerprints end the requests.
#[test]
fn differing_views_resolve_with_growing_pauses() {
    let mut node = cluster_of("a b me");
    node.input(Input::Fingerprint { id: id("a"), fingerprint: 8 });
    node.after(3_900);
    assert_eq!(node.resolves(), 0, "views differ for a moment after each change");
    node.after(2_200);
    assert_eq!(node.count(|a| *a == Action::Resolve { ids: vec![id("a")] }), 1);
    let mut times = vec![node.now];
    while times.len() < 8 {
        let before = node.resolves();
        node.after(50);
        if node.resolves() > before {
            times.push(node.now);
        }
        // A poll without news does not shorten the pause.
        node.set("a b me");
    }
    for (pair, wait) in times.windows(2).zip([5_000, 10_000, 20_000, 40_000, 60_000, 60_000, 60_000]) {
        let millis = (pair[1] - pair[0]).as_millis();
        assert!((wait * 7 / 10..=wait * 13 / 10).contains(&millis), "{millis} for {wait}");
    }
    // A changed set shortens the pause, and equal views end the requests.
    let before = node.resolves();
    node.set("a b c me").after(6_100);
    assert_eq!(node.resolves(), before + 1);
    node.input(Input::Installed { fingerprint: 8 }).input(Input::Fingerprint { id: id("b"), fingerprint: 8 });
    node.after(600_000).members("a b me");
    assert_eq!(node.resolves(), before + 1);
}

/// Checks that requests to look again are at least 4 s apart, whatever views and sets do.
#[test]
fn resolves_are_at_least_4_s_apart() {
    let mut node = cluster_of("a b me");
    let mut last = None;
    for n in 0_u64..600 {
        // Views agree and differ in turn, and full and empty sets follow each other.
        node.input(Input::Fingerprint { id: id("a"), fingerprint: 7 + n / 40 % 2 });
        node.set(if n % 3 == 0 { "" } else { "a b me" });
        let before = node.resolves();
        node.after(50);
        if node.resolves() > before {
            assert!(last.is_none_or(|last| node.now - last >= Duration::from_secs(4)), "{last:?} {:?}", node.now);
            last = Some(node.now);
        }
    }
    assert!(last.is_some());
}

/// Checks that the differing fingerprint of a peer without a connection is no reason to look again.
#[test]
fn fingerprint_of_lost_peer_causes_no_resolve() {
    // The peer is listed by its address only, so that the loss itself causes no request for its id.
    let mut node = cluster_of("@a:1 b me");
    node.input(Input::Fingerprint { id: id("a"), fingerprint: 8 }).lost("a").after(60_000);
    assert_eq!(node.resolves(), 0);
}

/// Returns a test for a resolve request with exactly these ids.
fn is_resolve_of(names: &[&str]) -> impl Fn(&Action) -> bool {
    let ids: Vec<_> = names.iter().map(|name| id(name)).collect();
    move |action| *action == Action::Resolve { ids: ids.clone() }
}

/// Checks that an unreachable listed peer causes a request within about 6 s and then ever fewer, that the loss of
/// another peer shortens the pause, and that the return of all peers ends the requests.
#[test]
fn unreachable_listed_peer_is_resolved_with_growing_pauses() {
    let mut node = cluster_of("a b me");
    node.lost("a").failed("a").after(3_900);
    assert_eq!(node.resolves(), 0, "a restart of the peer takes less time");
    node.after(2_200);
    assert_eq!((node.resolves(), node.count(is_resolve_of(&["a"]))), (1, 1));
    node.after(3_600_000).members("a b me");
    assert!((50..90).contains(&node.resolves()), "{}", node.resolves());
    let before = node.resolves();
    while node.resolves() == before {
        node.after(50);
    }
    // The next request is due in a minute, and the next loss does not wait for it.
    node.lost("b").after(6_100);
    assert_eq!(node.count(is_resolve_of(&["a", "b"])), 1);
    let before = node.resolves();
    node.hello("a").hello("b").after(600_000);
    assert_eq!(node.resolves(), before, "no peer is unreachable");
}

/// Checks that a listed peer that has never answered causes a request, and that unlisted peers cause none.
#[test]
fn peer_is_resolved_only_while_listed() {
    let mut node = cluster_of("a b c me");
    node.set("a b c x me").failed("x").after(6_100);
    assert_eq!((node.resolves(), node.count(is_resolve_of(&["x"]))), (1, 1));
    node.set("a b c me").after(600_000);
    assert_eq!(node.resolves(), 1);
    node.lost("a").set("b c me").pinged("a", true).after(4_000);
    assert_eq!(node.resolves(), 1, "discovery does not list the peer");
}

/// Checks that a peer that is lost every 6 s causes at most 120 requests in 600 s.
#[test]
fn repeated_loss_does_not_resolve_more_often() {
    let mut node = cluster_of("a b me");
    for _ in 0..100 {
        node.lost("a").after(5_000).hello("a").after(1_000);
    }
    assert!(node.resolves() <= 120, "{} in 600 s", node.resolves());
}

/// Checks that only members with a connection count as reached.
#[test]
fn reached_is_the_set_of_connected_members() {
    let mut node = cluster_of("a b c me");
    node.lost("a");
    assert_eq!(node.stabilizer.reached(), [id("b"), id("c")].into());
    node.hello("a").goodbye("c", 1);
    assert_eq!(node.stabilizer.reached(), [id("a"), id("b")].into());
}
