//! Tests of what a complete set may remove: hints against a living connection, and an authority that has lost this
//! node.

use crate::{
    identity::Incarnation,
    membership::{
        provider::{Peer, PeerSet},
        stabilizer::{
            Input, Warning,
            tests::script::{Script, at, cluster_of, hints, id, peers, start},
        },
    },
};

fn cluster_of_hints(words: &str) -> Script {
    let mut script = start();
    script.hinted_set(words);
    for word in words.split_whitespace().filter(|word| *word != "me") {
        script.hello(word);
    }
    script.after(300);
    script
}

fn set(script: &mut Script, records: Vec<Peer>) {
    script.input(Input::Set(PeerSet::complete(records)));
}

/// Checks that living members stay whatever hints leave out, and however often the hints repeat themselves.
#[test]
fn living_members_stay_when_hints_lack_them() {
    for rest in ["", "me", "a", "x y z", "me x"] {
        let mut cluster = cluster_of_hints("me a b c");
        for _ in 0..4 {
            cluster.hinted_set(rest).after(20_000);
        }
        cluster.members("a b c me");
    }
}

/// Checks that a member which hints lack leaves when its connection is lost and two pings have failed, and not after a
/// lost connection alone.
#[test]
fn lost_member_that_hints_lack_leaves_after_two_pings() {
    let mut cluster = cluster_of_hints("me a b c");
    cluster.hinted_set("me a b").after(60_000).members("a b c me");
    cluster.lost("c").after(300).members("a b c me");
    cluster.pinged("c", false).after(300).members("a b c me");
    cluster.after(1_000).pinged("c", false).after(300).members("a b me");
}

/// Checks that the member stays when its connection is back before the second ping fails.
#[test]
fn reconnected_member_that_hints_lack_stays() {
    let mut cluster = cluster_of_hints("me a b c");
    cluster.hinted_set("me a b").after(10_000).lost("c").pinged("c", false).after(500);
    cluster.hello("c").after(60_000).members("a b c me");
}

/// Checks that a member which an authority and hints list keeps the trust of the source that lists it last.
#[test]
fn last_source_of_a_member_decides_when_it_leaves() {
    let mut cluster = cluster_of("me a b c");
    set(&mut cluster, [peers("me a b"), hints("c")].concat());
    cluster.after(10_000);
    set(&mut cluster, peers("me a b"));
    cluster.after(60_000).members("a b c me");
    set(&mut cluster, peers("me a b c"));
    cluster.after(10_000);
    set(&mut cluster, peers("me a b"));
    cluster.after(6_000).members("a b me");
}

/// Checks that an authority without this node removes no living member, although it repeats its set, and that the line
/// in the log says so.
#[test]
fn authority_that_lost_this_node_removes_nobody_alive() {
    for rest in ["", "x y", "a"] {
        let mut cluster = cluster_of("me a b c d");
        for _ in 0..6 {
            cluster.set(rest).after(10_000);
        }
        cluster.members("a b c d me");
        assert_eq!(cluster.warnings(|w| matches!(w, Warning::SelfUnlisted { .. })), 1);
    }
}

/// Checks that members which fail two pings leave although the authority has lost this node.
#[test]
fn authority_that_lost_this_node_removes_the_dead() {
    let mut cluster = cluster_of("me a b c");
    cluster.set("").after(300);
    for name in ["a", "b", "c"] {
        cluster.pinged(name, false);
    }
    cluster.after(1_500).members("a b c me");
    for name in ["a", "b", "c"] {
        cluster.pinged(name, false);
    }
    cluster.after(6_000).members("me");
}

/// Checks that removals are allowed again when the authority lists this node again.
#[test]
fn authority_that_lists_this_node_again_is_believed() {
    let mut cluster = cluster_of("me a b c");
    cluster.set("a b").after(30_000).members("a b c me");
    cluster.set("me a b").after(6_000).members("a b me");
}

/// Checks that an authority that has never listed this node is believed.
#[test]
fn authority_that_never_listed_this_node_is_believed() {
    let mut cluster = cluster_of("a b c");
    cluster.set("a b").after(6_000).members("a b me");
}

/// Checks that inventions of hints beyond the limit push out no address of an authority.
#[test]
fn inventions_push_out_no_address_of_an_authority() {
    let mut cluster = cluster_of("@a:1 @b:1 @zz:1 me");
    let invented: Vec<_> = (0..2_500).map(|n| format!("invented-{n}")).collect();
    let flood = hints(&invented.join(" "));
    set(&mut cluster, [peers("@a:1 @b:1 @zz:1 me"), flood].concat());
    cluster.after(60_000).members("a b me zz");
    assert_eq!(cluster.stabilizer.report().unanswered_targets, 1_996);
}

/// Checks that the address of an authority is dialled before the addresses that hints announce for the same id with the
/// highest incarnation.
#[test]
fn address_of_an_authority_precedes_announced_ones() {
    let mut node = start();
    let dead: Vec<_> = (1..=8).map(|n| at(&format!("dead:{n}"))).collect();
    let lie = Peer::member(id("a"), dead).with_incarnation(Incarnation(u64::MAX));
    for records in [[vec![lie.clone()], peers("me a")], [peers("me a"), vec![lie]]] {
        set(&mut node, records.concat());
        let (_, addresses) = &node.dials[&node.dial("a")];
        assert_eq!(addresses[0], at("a:1"));
    }
}
