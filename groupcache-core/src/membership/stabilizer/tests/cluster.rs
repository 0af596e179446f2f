//! Several stabilizers that talk to each other in virtual time.

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

/// Nodes `n0`, `n1`, … at `n0:1`, `n1:1`, …; a message takes one round of ten milliseconds.
struct Cluster {
    nodes: Vec<Node>,
}

struct Node {
    script: Script,
    says: HelloFacts,
    live: BTreeMap<DialId, usize>,
    is_up: bool,
    seen: usize,
}

impl Cluster {
    fn start(count: usize) -> Self {
        let node = |n: usize| {
            let says = peer(&format!("n{n}")).life(1_000 + n as u64).state(NodeState::Joining);
            Node { script: start_with(says.clone()), says, live: BTreeMap::new(), is_up: true, seen: 0 }
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

    /// Does what the stabilizer of `n` asked for since the last round.
    fn perform(&mut self, n: usize) {
        while let Some(action) = self.nodes[n].script.log.get(self.nodes[n].seen).cloned() {
            self.nodes[n].seen += 1;
            match action {
                Action::Hangup { dial } | Action::Redial { dial } => drop(self.nodes[n].live.remove(&dial)),
                Action::Ping { id } => {
                    let is_alive = self.nodes.iter().any(|node| node.is_up && node.says.id == id);
                    self.nodes[n].script.input(Input::Pinged { id, is_alive });
                }
                Action::Ready => {
                    self.nodes[n].says.state = NodeState::Ready;
                    self.tell(n);
                }
                Action::Install(members) => {
                    let mut hash = DefaultHasher::new();
                    members.owners().for_each(|owner| owner.hash(&mut hash));
                    let fingerprint = hash.finish();
                    self.nodes[n].says.fingerprint = fingerprint;
                    self.nodes[n].script.input(Input::Installed { fingerprint });
                    let id = self.nodes[n].says.id.clone();
                    for other in self.nodes.iter_mut().filter(|node| node.is_up) {
                        other.script.input(Input::Fingerprint { id: id.clone(), fingerprint });
                    }
                }
                _ => {}
            }
        }
    }

    /// Sends the Hello of `n` again to everybody who is connected to it.
    fn tell(&mut self, n: usize) {
        let hello = self.nodes[n].says.clone();
        for other in self.nodes.iter_mut().filter(|node| node.is_up) {
            for (dial, _) in other.live.clone().into_iter().filter(|(_, to)| *to == n) {
                other.script.input(Input::Hello { dial, hello: hello.clone() });
            }
        }
    }

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
                            Input::Hello { dial, hello: self.nodes[to].says.clone() }
                        }
                        None => Input::Failed { dial },
                    };
                    self.nodes[n].script.input(input);
                }
            }
        }
    }

    /// What every living node believes, if they agree.
    #[track_caller]
    fn agree(&self, members: &str, owners: &str) {
        for node in self.nodes.iter().filter(|node| node.is_up) {
            let names: Vec<_> = node.script.installed.members.iter().map(|m| m.id.as_str()).collect();
            let owning: Vec<_> = node.script.installed.owners().map(|(id, _)| id.as_str()).collect();
            assert_eq!((names.join(" ").as_str(), owning.join(" ").as_str()), (members, owners), "at {}", node.says.id);
            assert_eq!(node.script.stabilizer.counters().resolves, 0);
        }
        let fingerprints: BTreeSet<_> = self.nodes.iter().filter(|n| n.is_up).map(|n| n.says.fingerprint).collect();
        assert_eq!(fingerprints.len(), 1);
    }
}

#[test]
fn all_nodes_started_at_the_same_instant_become_ready() {
    for words in ["n0 n1 n2 n3 n4", "@n0:1 @n1:1 @n2:1 @n3:1 @n4:1", "n0 @n1:1 n2 @n2:1 @n3:1 n3 n4"] {
        let mut cluster = Cluster::start(5);
        cluster.set(words);
        cluster.run(50);
        cluster.agree("n0 n1 n2 n3 n4", "n0 n1 n2 n3 n4");
        for node in &cluster.nodes {
            assert_eq!(node.script.readies(), 1);
            assert!(node.script.installs() <= 4, "{}", node.script.installs());
            assert_eq!(node.script.dials.len(), 4, "{words}");
        }
    }
}

#[test]
fn all_nodes_started_at_the_same_instant_become_ready_beside_a_dead_one() {
    let mut cluster = Cluster::start(4);
    cluster.nodes[3].is_up = false;
    cluster.set("n0 n1 n2 n3");
    cluster.run(50);
    cluster.agree("n0 n1 n2", "n0 n1 n2");
}

#[test]
fn nodes_that_never_get_a_complete_set_own_together() {
    let mut cluster = Cluster::start(3);
    for node in &mut cluster.nodes {
        node.script.partial("n0 n1 n2");
    }
    cluster.run(100);
    cluster.agree("n0 n1 n2", "n0 n1 n2");
    assert!(cluster.nodes.iter().all(|node| node.script.readies() == 0));
}

#[test]
fn a_killed_node_leaves_with_the_set_and_comes_back_with_its_next_life() {
    let mut cluster = Cluster::start(3);
    cluster.set("n0 n1 n2");
    cluster.run(50);
    cluster.nodes[2].is_up = false;
    cluster.run(500);
    cluster.agree("n0 n1 n2", "n0 n1 n2");
    cluster.set("n0 n1");
    cluster.run(20);
    cluster.agree("n0 n1", "n0 n1");
    // With its clock set back.
    let says = peer("n2").life(5).state(NodeState::Joining);
    cluster.nodes[2] = Node { script: start_with(says.clone()), says, live: BTreeMap::new(), is_up: true, seen: 0 };
    cluster.set("n0 n1 n2");
    cluster.run(50);
    cluster.agree("n0 n1 n2", "n0 n1 n2");
}

#[test]
fn a_cluster_that_discovery_forgets_goes_on() {
    let mut cluster = Cluster::start(5);
    cluster.set("n0 n1 n2 n3 n4");
    cluster.run(50);
    cluster.set("");
    cluster.run(90);
    cluster.agree("n0 n1 n2 n3 n4", "n0 n1 n2 n3 n4");
    cluster.run(100_000);
    for node in &cluster.nodes {
        assert_eq!(node.script.installed.members.len(), 5);
    }
}
