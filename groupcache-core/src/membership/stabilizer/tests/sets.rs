//! What providers publish, and what of it is believed.

use std::{collections::BTreeMap, time::Duration};

use crate::membership::stabilizer::{
    Action, Input, Warning,
    tests::script::{at, cluster_of, id, peer, peers, start},
};
use crate::{
    identity::Incarnation,
    membership::provider::{Peer, PeerSet},
};

#[test]
fn a_provider_that_fails_or_is_forbidden_changes_nothing() {
    // An error and a 403 are reports of health: no set is published, for an hour.
    let mut node = cluster_of("a b me");
    node.after(3_600_000).members("a b me");
    assert_eq!(node.log, []);
    assert_eq!(node.stabilizer.counters().last_set_at, Some(Duration::ZERO));
}

#[test]
fn a_provider_that_never_says_anything_leaves_a_node_that_serves_alone() {
    let mut node = start();
    node.after(5_000).members("me").owners("me");
    assert_eq!((node.readies(), node.installs()), (0, 1));
    node.after(60_000).members("me").owners("me");
    assert_eq!((node.readies(), node.installs()), (1, 2), "and says so, once it has waited long enough");
}

#[test]
fn peers_enter_when_they_answer_and_together() {
    let mut node = start();
    node.set("a b c me").members("me");
    node.hello("a").hello("b").after(100).members("a b me");
    node.hello("c").after(100).members("a b c me");
    assert_eq!(node.installs(), 3);
}

#[test]
fn an_empty_set_is_held() {
    let mut node = cluster_of("a b me");
    node.set("").after(3_600_000).members("a b me");
    assert_eq!(node.held(), 1);
    let counters = node.stabilizer.counters();
    assert_eq!((counters.sets, counters.holds, counters.last_set_at), (2, 1, Some(Duration::ZERO)));
    // Asked again and again, ever less often: 5, 10, 20, 40, 60, 60...
    assert!((50..90).contains(&node.resolves()), "{}", node.resolves());
}

#[test]
fn half_of_the_peers_may_go_and_more_than_half_is_held() {
    let mut half = cluster_of("a b c d me");
    half.set("a b me").after(4_900).members("a b c d me").after(200).members("a b me");
    assert_eq!(half.held(), 0);
    let mut more = cluster_of("a b c d me");
    more.set("a me").after(60_000).members("a b c d me");
    assert_eq!(more.held(), 1);
    let mut only = cluster_of("a me");
    only.set("me").after(60_000).members("a me");
    assert_eq!(only.held(), 1);
}

#[test]
fn what_is_lost_in_small_steps_is_held_too() {
    let mut node = cluster_of("a b c d e me");
    node.set("a b c me").after(2_000).set("a me").after(60_000).members("a b c d e me");
    assert_eq!(node.held(), 1);
}

#[test]
fn additions_of_a_held_set_are_taken() {
    let mut node = cluster_of("a b me");
    node.set("x").hello("x").after(10_000).members("a b me x");
}

#[test]
fn a_held_set_is_believed_when_every_missing_peer_failed_two_pings_a_second_apart() {
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

#[test]
fn one_missing_peer_that_answers_keeps_the_others_of_a_held_set() {
    let mut node = cluster_of("a b c me");
    node.set("c me").lost("a").lost("b");
    for _ in 0..20 {
        node.pinged("a", false).pinged("b", true).after(1_100);
    }
    node.members("a b c me");
    assert!(node.pings("b") < 10, "a peer that answers is asked less often");
}

#[test]
fn pings_fail_in_a_row_or_not_at_all() {
    let mut node = cluster_of("a b me");
    node.set("me").lost("a").lost("b").pinged("a", false).pinged("b", false).after(1_000);
    node.pinged("a", true).pinged("b", false).after(5_000).pinged("a", false).after(500).members("a b me");
    node.after(500).pinged("a", false).after(100).members("me");
}

#[test]
fn a_missing_peer_whose_connection_breaks_is_asked_again_at_once() {
    let mut node = cluster_of("a b me");
    node.set("me").pinged("a", true).after(500);
    assert_eq!(node.pings("a"), 1);
    node.lost("a").after(50);
    assert_eq!(node.pings("a"), 2);
}

#[test]
fn an_answer_that_nobody_asked_for_does_not_prove_a_peer_gone() {
    let mut node = cluster_of("a b me");
    node.set("me").lost("a").lost("b");
    for name in ["a", "b"] {
        node.pinged(name, false).pinged(name, false);
    }
    node.after(100).members("a b me");
}

#[test]
fn a_held_set_is_believed_when_the_provider_says_the_same_after_being_asked() {
    let mut node = cluster_of("a b c me");
    node.set("me").after(500);
    assert_eq!(node.resolves(), 0);
    node.set("me").after(1_000).members("a b c me");
    assert_eq!(node.count(|a| *a == Action::Resolve { ids: vec![id("a"), id("b"), id("c")] }), 1);
    node.after(10_000).members("a b c me");
    node.set("me").after(100).members("me");
    assert!(node.dials.is_empty());
}

#[test]
fn a_held_set_is_asked_about_for_those_whom_it_lacks() {
    let mut node = cluster_of("a b c d me");
    node.set("d me").after(1_500);
    assert_eq!(node.count(|a| *a == Action::Resolve { ids: vec![id("a"), id("b"), id("c")] }), 1);
}

#[test]
fn a_confirmed_set_that_is_published_again_is_not_held_again() {
    let mut node = cluster_of("a b me");
    node.set("me").after(1_500).set("me").after(1_000).set("me").after(3_000).members("me");
    assert_eq!(node.stabilizer.counters().holds, 1);
}

#[test]
fn another_answer_than_the_held_set_confirms_nothing() {
    let mut node = cluster_of("a b c me");
    node.set("me").after(1_500).set("a me").after(500).members("a b c me");
    assert_eq!(node.stabilizer.counters().holds, 2);
    // The question was about the first set: the second needs its own.
    node.set("a me").after(20_000).members("a b c me");
}

#[test]
fn a_good_set_ends_a_hold() {
    let mut node = cluster_of("a b me");
    node.set("").after(30_000).set("a b me");
    let asked = node.resolves();
    node.after(600_000).members("a b me");
    assert_eq!((node.installs(), node.resolves()), (0, asked));
    assert_eq!(node.stabilizer.counters().last_set_at, Some(Duration::from_millis(30_300)));
}

#[test]
fn a_provider_that_flaps_ten_times_a_second_changes_nothing() {
    for flapping in ["a b c d me", "a b c me", ""] {
        let mut node = cluster_of("a b c d e me");
        for _ in 0..600 {
            node.set(flapping).after(50).set("a b c d e me").after(50);
        }
        node.members("a b c d e me");
        let dialled = node.count(|a| matches!(a, Action::Dial { .. } | Action::Hangup { .. }));
        assert_eq!((node.installs(), dialled), (0, 0), "flapping to {flapping:?}");
        assert!(node.held() <= 7 && node.resolves() <= 15, "{} {}", node.held(), node.resolves());
    }
}

#[test]
fn a_host_that_flaps_and_never_answers_is_dialled_once() {
    let mut node = cluster_of("a b me");
    for _ in 0..600 {
        node.set("a b dead me").after(50).set("a b me").after(50);
    }
    assert_eq!(node.count(|a| matches!(a, Action::Dial { .. })), 1);
    node.after(5_000);
    assert_eq!(node.find("dead"), None);
}

#[test]
fn duplicate_ids_are_one_peer_with_all_addresses_those_of_the_newer_life_first() {
    let mut node = start();
    let old = Peer::member(id("a"), [at("old:1"), at("both:1")]).with_incarnation(Incarnation(1));
    let new = Peer::member(id("a"), [at("new:1"), at("both:1")]).with_incarnation(Incarnation(2));
    node.input(Input::Set(PeerSet::complete(vec![old, new])));
    assert_eq!(node.dials.len(), 1);
    assert_eq!(node.dials[&node.dial("a")].1, [at("new:1"), at("both:1"), at("old:1")]);
    node.hello("a").after(100).members("a me");
}

#[test]
fn partial_sets_only_add() {
    let mut node = cluster_of("a b me");
    node.partial("c").hello("c").after(10_000).members("a b c me");
    node.partial("").after(10_000).members("a b c me");
    // The next complete set says who is missing, those of the hints among them.
    node.set("a b me").after(5_100).members("a b me");
}

#[test]
fn self_is_always_in_and_a_self_that_is_never_listed_is_reported_once() {
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

#[test]
fn a_thousand_peers_make_few_installs() {
    let names: Vec<_> = (0..1_000).map(|n| format!("p{n:03}")).collect();
    let mut node = start();
    node.set(&format!("{} me", names.join(" ")));
    for (n, name) in names.iter().enumerate() {
        let dial = node.dials.iter().find(|(_, told)| told.0 == Some(id(name))).map(|(dial, _)| *dial).unwrap();
        node.input(Input::Hello { dial, hello: peer(name) });
        // A thousand connections in two seconds.
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

#[test]
fn a_stream_of_changes_delays_nobody_for_more_than_a_quarter_of_a_second() {
    let mut node = cluster_of("a b me");
    for weight in 2..12 {
        node.now += Duration::from_millis(30);
        node.says(peer("a").weight(weight));
    }
    assert_eq!(node.installs(), 1);
}

#[test]
fn a_set_beyond_the_limit_is_cut_in_the_order_of_names() {
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

#[test]
fn hints_that_rotate_for_ever_do_not_grow_for_ever() {
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

#[test]
fn those_who_replace_everybody_are_dialled_while_the_others_are_in_their_grace() {
    let all = |letter: char| (0..1_500).map(|n| format!("@{letter}{n}:1")).collect::<Vec<_>>().join(" ");
    let mut node = start();
    node.set(&all('a')).after(1_000).set(&all('b'));
    assert_eq!(node.dials.len(), 3_000);
}

#[test]
fn a_peer_has_at_most_eight_addresses_and_weight_sixteen() {
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

#[test]
fn a_new_address_is_a_hint_while_the_peer_answers_at_the_old_one() {
    let mut node = cluster_of("a b me");
    node.set("a=new:1 b me");
    assert_eq!(node.stabilizer.counters().ignored_addresses, 1);
    node.set("a=new:1 b me").after(60_000);
    assert_eq!(node.log, []);
    assert_eq!(node.stabilizer.counters().ignored_addresses, 1);
    node.lost("a");
    assert_eq!(node.dials[&node.dial("a")].1, [at("new:1"), at("a:1")]);
    // And while it is away, at once.
    node.set("a=newer:1 b me");
    assert_eq!(node.dials[&node.dial("a")].1, [at("newer:1"), at("a:1"), at("new:1")]);
}

#[test]
fn a_peer_that_is_named_at_the_address_it_gave_itself_has_no_new_address() {
    let mut node = start();
    node.set("@x:1 me").answers("@x:1", peer("a")).set("@x:1 a me").after(1_000).members("a me");
    assert_eq!(node.stabilizer.counters().ignored_addresses, 0);
}

#[test]
fn the_record_of_an_older_life_is_dialled_last() {
    let mut node = cluster_of("a b me");
    node.says(peer("a").life(9)).after(100).lost("a");
    let mut set = peers("b me");
    set.push(Peer::member(id("a"), [at("stale:1")]).with_incarnation(Incarnation(8)));
    node.input(Input::Set(PeerSet::complete(set)));
    assert_eq!(node.dials[&node.dial("a")].1, [at("a:1"), at("stale:1")]);
}

#[test]
fn the_record_of_the_same_life_is_dialled_first() {
    let mut node = cluster_of("a b me");
    node.says(peer("a").life(9)).after(100).lost("a");
    let mut set = peers("b me");
    set.push(Peer::member(id("a"), [at("moved:1")]).with_incarnation(Incarnation(9)));
    node.input(Input::Set(PeerSet::complete(set)));
    assert_eq!(node.dials[&node.dial("a")].1, [at("moved:1"), at("a:1")]);
}

#[test]
fn nodes_of_different_views_ask_the_provider_ever_less_often() {
    let mut node = cluster_of("a b me");
    node.input(Input::Fingerprint { id: id("a"), fingerprint: 8 });
    node.after(3_900);
    assert_eq!(node.resolves(), 0, "views differ for a moment after each change");
    node.after(2_200);
    assert_eq!(node.count(|a| *a == Action::Resolve { ids: vec![id("a")] }), 1);
    let mut asked = vec![node.now];
    while asked.len() < 8 {
        let before = node.resolves();
        node.after(50);
        if node.resolves() > before {
            asked.push(node.now);
        }
        // A poll that finds nothing new is no reason to hurry.
        node.set("a b me");
    }
    for (pair, wait) in asked.windows(2).zip([5_000, 10_000, 20_000, 40_000, 60_000, 60_000, 60_000]) {
        let millis = (pair[1] - pair[0]).as_millis();
        assert!((wait * 7 / 10..=wait * 13 / 10).contains(&millis), "{millis} for {wait}");
    }
    // A new set is a reason; and with the same view there is nothing to ask.
    let before = node.resolves();
    node.set("a b c me").after(6_100);
    assert_eq!(node.resolves(), before + 1);
    node.input(Input::Installed { fingerprint: 8 }).input(Input::Fingerprint { id: id("b"), fingerprint: 8 });
    node.after(600_000).members("a b me");
    assert_eq!(node.resolves(), before + 1);
}

#[test]
fn questions_are_never_closer_than_four_seconds() {
    let mut node = cluster_of("a b me");
    let mut last = None;
    for n in 0_u64..600 {
        // Views that agree and differ by turns, and sets that come and go.
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

#[test]
fn the_fingerprint_of_a_lost_peer_is_old_news() {
    // Known by its address only: nobody could be asked for it by name.
    let mut node = cluster_of("@a:1 b me");
    node.input(Input::Fingerprint { id: id("a"), fingerprint: 8 }).lost("a").after(60_000);
    assert_eq!(node.resolves(), 0);
}

fn asked_for(names: &[&str]) -> impl Fn(&Action) -> bool {
    let ids: Vec<_> = names.iter().map(|name| id(name)).collect();
    move |action| *action == Action::Resolve { ids: ids.clone() }
}

#[test]
fn a_listed_peer_that_cannot_be_reached_is_asked_for_in_seconds_and_ever_less_often() {
    let mut node = cluster_of("a b me");
    node.lost("a").failed("a").after(3_900);
    assert_eq!(node.resolves(), 0, "it may only have been restarted");
    node.after(2_200);
    assert_eq!((node.resolves(), node.count(asked_for(&["a"]))), (1, 1));
    node.after(3_600_000).members("a b me");
    assert!((50..90).contains(&node.resolves()), "{}", node.resolves());
    let before = node.resolves();
    while node.resolves() == before {
        node.after(50);
    }
    // The next question would come in a minute. The next one that is lost does not wait for that.
    node.lost("b").after(6_100);
    assert_eq!(node.count(asked_for(&["a", "b"])), 1);
    let before = node.resolves();
    node.hello("a").hello("b").after(600_000);
    assert_eq!(node.resolves(), before, "nobody is missed any more");
}

#[test]
fn a_listed_peer_that_never_answered_is_asked_for_and_one_that_left_the_list_is_not() {
    let mut node = cluster_of("a b c me");
    node.set("a b c x me").failed("x").after(6_100);
    assert_eq!((node.resolves(), node.count(asked_for(&["x"]))), (1, 1));
    node.set("a b c me").after(600_000);
    assert_eq!(node.resolves(), 1);
    node.lost("a").set("b c me").pinged("a", true).after(4_000);
    assert_eq!(node.resolves(), 1, "discovery has said that it is gone");
}

#[test]
fn a_peer_that_is_lost_again_and_again_is_asked_for_no_more_often_than_others() {
    let mut node = cluster_of("a b me");
    for _ in 0..100 {
        node.lost("a").after(5_000).hello("a").after(1_000);
    }
    assert!(node.resolves() <= 120, "{} in 600 s", node.resolves());
}

#[test]
fn who_is_reached_is_who_has_a_connection() {
    let mut node = cluster_of("a b c me");
    node.lost("a");
    assert_eq!(node.stabilizer.reached(), [id("b"), id("c")].into());
    node.hello("a").goodbye("c", 1);
    assert_eq!(node.stabilizer.reached(), [id("a"), id("b")].into());
}
