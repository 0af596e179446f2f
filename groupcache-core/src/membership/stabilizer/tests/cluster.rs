//! Tests of several stabilizers that exchange messages in virtual time.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use crate::identity::NodeState;
use crate::membership::stabilizer::{
    Action, DialId, HelloFacts, Input,
    tests::script::{Script, at, peer, start_with},
};

/// A cluster of the nodes `n0`, `n1`, … at `n0:1`, `n1:1`, …, with rounds of 10 ms. A message takes one round.
struct Cluster {
    nodes: Vec<Node>,
}

struct Node {
    script: Script,
    hello: HelloFacts,
    /// The node at the other end of each live connection.
    live: BTreeMap<DialId, usize>,
    is_up: bool,
    /// Number of actions that are performed already.
    performed: usize,
}

impl Cluster {
    fn start(count: usize) -> Self {
        let node = |n: usize| {
            let hello = peer(&format!("n{n}")).incarnation(1_000 + n as u64).state(NodeState::Joining);
            Node { script: start_with(hello.clone()), hello, live: BTreeMap::new(), is_up: true, performed: 0 }
        };
        Self { nodes: (0..count).map(node).collect() }
    }

    fn set(&mut self, words: &str) {
        for node in self.nodes.iter_mut().filter(|node| node.is_up) {
            node.script.set(words);
        }
    }

    fn run(&mut self, rounds: usize) {
        for _ in 0..rounds {
            for n in 0..self.nodes.len() {
                if self.nodes[n].is_up {
                    self.nodes[n].script.now += Duration::from_millis(10);
                    self.nodes[n].script.input(Input::Tick);
                    self.perform(n);
                    self.connect(n);
                }
            }
        }
    }

    /// Performs the actions of the stabilizer of `n` since the last round.
    fn perform(&mut self, n: usize) {
        while let Some(action) = self.nodes[n].script.log.get(self.nodes[n].performed).cloned() {
            self.nodes[n].performed += 1;
            match action {
                Action::Hangup { dial } | Action::Redial { dial } => drop(self.nodes[n].live.remove(&dial)),
                Action::Ping { id } => {
                    let is_alive = self.nodes.iter().any(|node| node.is_up && node.hello.id == id);
                    self.nodes[n].script.input(Input::Pinged { id, is_alive });
                }
                Action::Ready => {
                    self.nodes[n].hello.state = NodeState::Ready;
                    self.resend_hello(n);
                }
                Action::Install(members) => {
                    let mut hash = DefaultHasher::new();
                    members.owners().for_each(|owner| owner.hash(&mut hash));
                    let fingerprint = hash.finish();
                    self.nodes[n].hello.fingerprint = fingerprint;
                    self.nodes[n].script.input(Input::Installed { fingerprint });
                    let id = self.nodes[n].hello.id.clone();
                    for other in self.nodes.iter_mut().filter(|node| node.is_up) {
                        other.script.input(Input::Fingerprint { id: id.clone(), fingerprint });
                    }
                }
                _ => {}
            }
        }
    }

    /// Sends the Hello of `n` again to all nodes with a connection to it.
    fn resend_hello(&mut self, n: usize) {
        let hello = self.nodes[n].hello.clone();
        for other in self.nodes.iter_mut().filter(|node| node.is_up) {
            for (dial, _) in other.live.clone().into_iter().filter(|(_, to)| *to == n) {
                other.script.input(Input::Hello { dial, hello: hello.clone() });
            }
        }
    }

    /// Connects the targets of `n` to the nodes that are up, and reports lost and failed connections.
    fn connect(&mut self, n: usize) {
        for (dial, (_, addresses)) in self.nodes[n].script.dials.clone() {
            let is_up = |to: &usize| self.nodes[*to].is_up;
            match self.nodes[n].live.get(&dial) {
                Some(to) if !is_up(to) => {
                    self.nodes[n].live.remove(&dial);
                    self.nodes[n].script.input(Input::Lost { dial });
                }
                Some(_) => {}
                None => {
                    let listens = |to: &usize| addresses.contains(&at(&format!("n{to}:1")));
                    let input = match (0..self.nodes.len()).find(|to| is_up(to) && listens(to)) {
                        Some(to) => {
                            self.nodes[n].live.insert(dial, to);
                            Input::Hello { dial, hello: self.nodes[to].hello.clone() }
                        }
                        None => Input::Failed { dial },
                    };
                    self.nodes[n].script.input(input);
                }
            }
        }
    }

    /// Checks that all nodes that are up have these members and owners, and that none asked its provider to look again.
    #[track_caller]
    fn check_agreement(&self, members: &str, owners: &str) {
        for node in self.nodes.iter().filter(|node| node.is_up) {
            let names: Vec<_> = node.script.installed.members.iter().map(|m| m.id.as_str()).collect();
            let owning: Vec<_> = node.script.installed.owners().map(|(id, _)| id.as_str()).collect();
            assert_eq!(
                (names.join(" ").as_str(), owning.join(" ").as_str()),
                (members, owners),
                "at {}",
                node.hello.id
            );
            assert_eq!(node.script.stabilizer.counters().resolves, 0);
        }
        let fingerprints: BTreeSet<_> = self.nodes.iter().filter(|n| n.is_up).map(|n| n.hello.fingerprint).collect();
        assert_eq!(fingerprints.len(), 1);
    }
}

/// Checks that nodes that start at the same instant become Ready within 500 ms, listed by id, by address, or by both.
#[test]
fn nodes_started_together_become_ready() {
    for words in ["n0 n1 n2 n3 n4", "@n0:1 @n1:1 @n2:1 @n3:1 @n4:1", "n0 @n1:1 n2 @n2:1 @n3:1 n3 n4"] {
        let mut cluster = Cluster::start(5);
        cluster.set(words);
        cluster.run(50);
        cluster.check_agreement("n0 n1 n2 n3 n4", "n0 n1 n2 n3 n4");
        for node in &cluster.nodes {
            assert_eq!(node.script.readies(), 1);
            assert!(node.script.installs() <= 4, "{}", node.script.installs());
            assert_eq!(node.script.dials.len(), 4, "{words}");
        }
    }
}

/// Checks that a listed node that is down does not keep the others from becoming Ready.
#[test]
fn nodes_started_together_become_ready_despite_dead_node() {
    let mut cluster = Cluster::start(4);
    cluster.nodes[3].is_up = false;
    cluster.set("n0 n1 n2 n3");
    cluster.run(50);
    cluster.check_agreement("n0 n1 n2", "n0 n1 n2");
}

/// Checks that nodes with partial sets only own the keys together, as joining members.
#[test]
fn nodes_without_complete_set_own_together() {
    let mut cluster = Cluster::start(3);
    for node in &mut cluster.nodes {
        node.script.partial("n0 n1 n2");
    }
    cluster.run(100);
    cluster.check_agreement("n0 n1 n2", "n0 n1 n2");
    assert!(cluster.nodes.iter().all(|node| node.script.readies() == 0));
}

/// Checks that a killed node leaves after a set without it, and returns with its next incarnation.
#[test]
fn killed_node_leaves_and_returns_with_new_incarnation() {
    let mut cluster = Cluster::start(3);
    cluster.set("n0 n1 n2");
    cluster.run(50);
    cluster.nodes[2].is_up = false;
    cluster.run(500);
    cluster.check_agreement("n0 n1 n2", "n0 n1 n2");
    cluster.set("n0 n1");
    cluster.run(20);
    cluster.check_agreement("n0 n1", "n0 n1");
    // The clock of the restarted node is set back.
    let hello = peer("n2").incarnation(5).state(NodeState::Joining);
    cluster.nodes[2] =
        Node { script: start_with(hello.clone()), hello, live: BTreeMap::new(), is_up: true, performed: 0 };
    cluster.set("n0 n1 n2");
    cluster.run(50);
    cluster.check_agreement("n0 n1 n2", "n0 n1 n2");
}

/// Checks that all nodes keep all members for 1,000 s after an empty set.
#[test]
fn cluster_keeps_members_after_empty_sets() {
    let mut cluster = Cluster::start(5);
    cluster.set("n0 n1 n2 n3 n4");
    cluster.run(50);
    cluster.set("");
    cluster.run(90);
    cluster.check_agreement("n0 n1 n2 n3 n4", "n0 n1 n2 n3 n4");
    cluster.run(100_000);
    for node in &cluster.nodes {
        assert_eq!(node.script.installed.members.len(), 5);
    }
}
