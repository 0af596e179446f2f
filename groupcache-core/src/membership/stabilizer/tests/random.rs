//! Random inputs in any order: invariants after each of them, and the return to the right members afterwards.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::membership::stabilizer::{
    Action, DialId, HelloFacts, Input, Refusal,
    dials::MAX_DIALS,
    tests::script::{LOCAL_INCARNATION, Script, at, id, peer, start},
};
use crate::{
    identity::{Incarnation, NodeState, PeerId},
    membership::provider::{Peer, PeerSet},
};

const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "me"];

fn any_name(rng: &mut fastrand::Rng) -> &'static str {
    NAMES[rng.usize(..NAMES.len())]
}

fn any_hello(rng: &mut fastrand::Rng) -> HelloFacts {
    let states = [NodeState::Joining, NodeState::Ready, NodeState::Ready, NodeState::Draining];
    let hello = peer(any_name(rng)).incarnation(rng.u64(1..4)).state(states[rng.usize(..states.len())]);
    let is_me = hello.id == id("me") && rng.bool();
    let hello = if is_me { hello.incarnation(LOCAL_INCARNATION) } else { hello };
    hello.weight([0, 1, 1, 40][rng.usize(..4)])
}

fn any_set(rng: &mut fastrand::Rng) -> PeerSet {
    let peer = |rng: &mut fastrand::Rng| {
        let address = at(&format!("{}:{}", any_name(rng), rng.u8(1..3)));
        let peer = match rng.u8(..3) {
            0 => Peer::at(address.as_str()).unwrap(),
            1 => Peer::member(id(any_name(rng)), [address]),
            _ => Peer::member(id(any_name(rng)), []),
        };
        if rng.u8(..4) == 0 { peer.with_incarnation(Incarnation(rng.u64(1..4))) } else { peer }
    };
    let peers = (0..rng.usize(..9)).map(|_| peer(rng)).collect();
    if rng.u8(..4) == 0 { PeerSet::partial(peers) } else { PeerSet::complete(peers) }
}

fn any_dial(rng: &mut fastrand::Rng, node: &Script) -> DialId {
    let open: Vec<_> = node.dials.keys().copied().collect();
    if open.is_empty() || rng.u8(..10) == 0 { DialId(rng.u64(..100)) } else { open[rng.usize(..open.len())] }
}

/// Returns a Hello that is mostly from the expected peer, so that connections are made.
fn likely_hello(rng: &mut fastrand::Rng, node: &Script, dial: DialId) -> HelloFacts {
    let mut hello = any_hello(rng);
    if let Some(Some(expected)) = node.dials.get(&dial).map(|dialled| dialled.0.clone())
        && rng.u8(..4) > 0
        && expected != id("me")
    {
        hello.id = expected;
    }
    hello
}

fn any_input(rng: &mut fastrand::Rng, node: &Script) -> Input {
    let dial = any_dial(rng, node);
    let name = id(any_name(rng));
    let incarnation = Incarnation(rng.u64(1..4));
    match rng.u8(..30) {
        0..3 => Input::Set(any_set(rng)),
        3 => Input::Left { id: name, incarnation: rng.bool().then_some(incarnation) },
        4..14 => Input::Hello { dial, hello: likely_hello(rng, node, dial) },
        14 => Input::Refused { dial, why: Refusal::WrongId { found: None } },
        15 => Input::Refused { dial, why: Refusal::OtherCluster },
        16 => Input::Failed { dial },
        17 | 18 => Input::Lost { dial },
        19 => Input::Goodbye { id: name, incarnation },
        20..24 => Input::Pinged { id: name, is_alive: rng.bool() },
        24 => Input::Fingerprint { id: name, fingerprint: rng.u64(6..9) },
        25 => Input::Installed { fingerprint: rng.u64(6..9) },
        26 if rng.u8(..20) == 0 => Input::Left { id: peer("me").id, incarnation: Some(Incarnation(rng.u64(..))) },
        27 if rng.u16(..500) == 0 => Input::Drain,
        _ => Input::Tick,
    }
}

/// Checks the invariants of the installed member list, and returns its members with their targets.
fn check(node: &Script, answered: &BTreeSet<PeerId>, before: &BTreeMap<PeerId, DialId>) -> BTreeMap<PeerId, DialId> {
    let members = &node.installed.members;
    assert!(members.is_sorted_by(|a, b| a.id < b.id), "members are sorted, and each is listed once");
    assert_eq!(members.iter().filter(|m| m.dial.is_none()).count(), 1);
    assert!(members.iter().any(|m| m.id == id("me") && m.dial.is_none()), "the local node is a member");
    assert!(node.installed.owners().next().is_some(), "a member owns keys");
    assert!(members.iter().all(|m| m.share <= 16));
    let now: BTreeMap<_, _> = members.iter().filter_map(|m| Some((m.id.clone(), m.dial?))).collect();
    assert!(now.keys().all(|id| answered.contains(id)), "a member has answered");
    assert!(now.values().all(|dial| node.dials.contains_key(dial)), "a member has a target");
    assert_eq!(now.values().collect::<BTreeSet<_>>().len(), now.len(), "each member has a target of its own");
    for (gone, dial) in before.iter().filter(|(id, _)| !now.contains_key(*id)) {
        assert!(!node.dials.contains_key(dial), "the target of {gone} is hung up");
    }
    now
}

/// Lists `a` and `b`, lets only them answer, and checks that they become the members.
fn settle(node: &mut Script) {
    node.log.clear();
    node.input(Input::Installed { fingerprint: 7 })
        .input(Input::Set(PeerSet::complete(super::script::peers("a b me"))));
    // A goodbye among the random inputs rejects its incarnation for a minute.
    for _ in 0..1_600 {
        for action in std::mem::take(&mut node.log) {
            if let Action::Ping { id } = action {
                let is_alive = ["a", "b"].contains(&id.as_str());
                node.input(Input::Pinged { id, is_alive });
            }
        }
        for (dial, (expected, addresses)) in node.dials.clone() {
            let listens = |name: &str| addresses.contains(&at(&format!("{name}:1")));
            let name =
                ["a", "b"].into_iter().find(|n| listens(n) && expected.as_ref().is_none_or(|e| e.as_str() == *n));
            let input = match name {
                Some(name) => Input::Hello { dial, hello: peer(name).incarnation(2) },
                None => Input::Failed { dial },
            };
            node.input(input);
        }
        node.after(50);
    }
    node.members("a b me");
    assert_eq!(node.dials.len(), 2, "{:?}", node.dials);
}

/// Checks the invariants of the member list after random inputs, and that the right members return afterwards.
#[test]
fn random_inputs_keep_invariants_and_members_recover() {
    let mut members_seen = 0;
    for seed in 0..120 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut node = start();
        let (mut answered, mut before) = (BTreeSet::new(), BTreeMap::new());
        for _ in 0..400 {
            let input = any_input(&mut rng, &node);
            if let Input::Hello { hello, .. } = &input {
                answered.insert(hello.id.clone());
            }
            node.now += Duration::from_millis(rng.u64(..400));
            let installs = node.installs();
            node.input(input);
            if node.installs() > installs {
                before = check(&node, &answered, &before);
                members_seen = members_seen.max(before.len());
            }
            assert!(node.dials.len() <= MAX_DIALS);
        }
        let readies = node.readies();
        assert!(readies <= 1);
        settle(&mut node);
    }
    assert!(members_seen >= 4, "the random inputs made only {members_seen} members");
}

/// Checks that ever new full sets never have more targets than two full sets, and that the last set is dialled
/// completely.
#[test]
fn sets_of_new_peers_never_exceed_the_target_limit() {
    let mut node = start();
    for round in 0..6 {
        let named = |n| Peer::member(id(&format!("r{round}n{n}")), [at(&format!("r{round}n{n}:1"))]);
        node.input(Input::Set(PeerSet::complete((0..2_000).map(named).collect())));
        assert!(node.dials.len() <= MAX_DIALS);
        node.now += Duration::from_millis(100);
    }
    // Peers without room are dialled once there is room.
    node.after(5_100);
    assert_eq!(node.dials.len(), 2_000);
    assert!(node.find("r5n1999").is_some());
}

/// Checks that two runs with equal inputs and equal seeds return equal actions.
#[test]
fn equal_inputs_cause_equal_actions() {
    let run = || {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut node = start();
        for _ in 0..2_000 {
            let input = any_input(&mut rng, &node);
            node.now += Duration::from_millis(rng.u64(..400));
            node.input(input);
        }
        node.log
    };
    assert_eq!(run(), run());
}
