//! Script language of the tests: a stabilizer, the targets of its node, and a clock that the test advances.

use std::{collections::BTreeMap, time::Duration};

use crate::membership::stabilizer::{
    Action, DialId, HelloFacts, InboundPeer, Input, MemberSet, Refusal, Stabilizer, Warning,
};
use crate::{
    identity::{Address, Incarnation, NodeState, PeerId},
    membership::provider::{Peer, PeerSet, Trust},
};

pub(super) const LOCAL_INCARNATION: u64 = 1_000;
/// Milliseconds between two ticks.
const TICK: u64 = 50;

/// A stabilizer with the state of its node.
pub(super) struct Script {
    pub(super) stabilizer: Stabilizer,
    pub(super) now: Duration,
    pub(super) dials: BTreeMap<DialId, (Option<PeerId>, Vec<Address>)>,
    pub(super) log: Vec<Action>,
    pub(super) installed: MemberSet,
}

pub(super) fn id(name: &str) -> PeerId {
    PeerId::new(name).unwrap()
}

pub(super) fn at(address: &str) -> Address {
    Address::new(address).unwrap()
}

/// Returns the facts of a Ready peer at `name:1` with the incarnation 1.
pub(super) fn peer(name: &str) -> HelloFacts {
    HelloFacts {
        id: id(name),
        incarnation: Incarnation(1),
        state: NodeState::Ready,
        weight: 1,
        zone: "".into(),
        addresses: vec![at(&format!("{name}:1"))],
        fingerprint: 7,
    }
}

impl HelloFacts {
    pub(super) fn incarnation(mut self, incarnation: u64) -> Self {
        self.incarnation = Incarnation(incarnation);
        self
    }

    pub(super) fn state(mut self, state: NodeState) -> Self {
        self.state = state;
        self
    }

    pub(super) fn weight(mut self, weight: u8) -> Self {
        self.weight = weight;
        self
    }
}

/// Reads the words of a set as discovery records of an authority.
pub(super) fn peers(words: &str) -> Vec<Peer> {
    hints(words).into_iter().map(|peer| Peer { trust: Trust::Authority, ..peer }).collect()
}

/// Reads the words of a set as discovery records of hints.
pub(super) fn hints(words: &str) -> Vec<Peer> {
    let record = |word: &str| match (word.strip_prefix('@'), word.split_once('=')) {
        (Some(address), _) => Peer::at(address).unwrap(),
        (None, Some((name, address))) => Peer::member(id(name), [at(address)]),
        (None, None) => Peer::member(id(word), [at(&format!("{word}:1"))]),
    };
    words.split_whitespace().map(record).collect()
}

pub(super) fn start() -> Script {
    start_with(peer("me").incarnation(LOCAL_INCARNATION).state(NodeState::Joining))
}

pub(super) fn start_with(me: HelloFacts) -> Script {
    Script {
        stabilizer: Stabilizer::new(me, fastrand::Rng::with_seed(1)),
        now: Duration::ZERO,
        dials: BTreeMap::new(),
        log: Vec::new(),
        installed: MemberSet::default(),
    }
}

/// Starts a node and lets all listed peers answer and enter the view.
pub(super) fn cluster_of(words: &str) -> Script {
    let mut script = start();
    script.set(words);
    for word in words.split_whitespace().filter(|word| *word != "me") {
        script.hello(word);
    }
    script.after(300);
    script.log.clear();
    script
}

impl Script {
    pub(super) fn input(&mut self, input: Input) -> &mut Self {
        for action in self.stabilizer.step(self.now, input) {
            match &action {
                Action::Dial { dial, expected, addresses } => {
                    assert!(!addresses.is_empty(), "a target has an address");
                    self.dials.insert(*dial, (expected.clone(), addresses.clone()));
                }
                Action::Hangup { dial } => assert!(self.dials.remove(dial).is_some(), "a target is hung up once"),
                Action::Redial { dial } => assert!(self.dials.contains_key(dial), "only an open target is redialled"),
                Action::Install(members) => self.installed = members.clone(),
                _ => {}
            }
            self.log.push(action);
        }
        self
    }

    pub(super) fn set(&mut self, words: &str) -> &mut Self {
        self.input(Input::Set(PeerSet::complete(peers(words))))
    }

    pub(super) fn hinted_set(&mut self, words: &str) -> &mut Self {
        self.input(Input::Set(PeerSet::complete(hints(words))))
    }

    pub(super) fn partial(&mut self, words: &str) -> &mut Self {
        self.input(Input::Set(PeerSet::partial(peers(words))))
    }

    /// Reports the connected peers. The word `a` is an unproven peer, and `+a=x:1` a proven peer that says it is at `x:1`.
    pub(super) fn inbound(&mut self, words: &str) -> &mut Self {
        let peer = |word: &str| {
            let facts = word.trim_start_matches('+');
            let (name, address) =
                facts.split_once('=').map_or((facts, format!("{facts}:1")), |(n, a)| (n, a.to_owned()));
            InboundPeer {
                id: id(name),
                state: NodeState::Ready,
                addresses: vec![at(&address)],
                is_proven: word.starts_with('+'),
                fingerprint: 7,
            }
        };
        self.input(Input::Inbound(words.split_whitespace().map(peer).collect()))
    }

    /// Advances the clock, with its ticks.
    pub(super) fn after(&mut self, millis: u64) -> &mut Self {
        for _ in 0..millis / TICK {
            self.now += Duration::from_millis(TICK);
            self.input(Input::Tick);
        }
        self
    }

    /// Returns the target that expects `a`, or the target at the address `@x:1` that expects any peer.
    pub(super) fn find(&self, word: &str) -> Option<DialId> {
        let is_match = |(expected, addresses): &(Option<PeerId>, Vec<Address>)| match word.strip_prefix('@') {
            Some(address) => expected.is_none() && addresses.contains(&at(address)),
            None => expected.as_ref() == Some(&id(word)),
        };
        self.dials.iter().find(|(_, dialled)| is_match(dialled)).map(|(dial, _)| *dial)
    }

    pub(super) fn dial(&self, word: &str) -> DialId {
        self.find(word).unwrap_or_else(|| panic!("{word} is not dialled; targets: {:?}", self.dials))
    }

    /// Lets `a` answer as itself, and the peer at `@a:1` answer with the id `a`.
    pub(super) fn hello(&mut self, word: &str) -> &mut Self {
        let name = word.trim_start_matches('@').split([':', '=']).next().unwrap();
        self.answers(if word.contains('=') { name } else { word }, peer(name))
    }

    /// Lets the target answer with this Hello.
    pub(super) fn answers(&mut self, word: &str, hello: HelloFacts) -> &mut Self {
        self.input(Input::Hello { dial: self.dial(word), hello })
    }

    /// Lets a member send another Hello on its connection.
    pub(super) fn resend_hello(&mut self, hello: HelloFacts) -> &mut Self {
        let dial = self.installed.members.iter().find(|m| m.id == hello.id).unwrap().dial.unwrap();
        self.input(Input::Hello { dial, hello })
    }

    pub(super) fn lost(&mut self, word: &str) -> &mut Self {
        self.input(Input::Lost { dial: self.dial_of(word) })
    }

    pub(super) fn failed(&mut self, word: &str) -> &mut Self {
        self.input(Input::Failed { dial: self.dial_of(word) })
    }

    pub(super) fn refused(&mut self, word: &str, why: Refusal) -> &mut Self {
        self.input(Input::Refused { dial: self.dial_of(word), why })
    }

    pub(super) fn pinged(&mut self, name: &str, is_alive: bool) -> &mut Self {
        self.input(Input::Pinged { id: id(name), is_alive })
    }

    pub(super) fn left(&mut self, name: &str) -> &mut Self {
        self.input(Input::Left { id: id(name), incarnation: None })
    }

    pub(super) fn goodbye(&mut self, name: &str, incarnation: u64) -> &mut Self {
        self.input(Input::Goodbye { id: id(name), incarnation: Incarnation(incarnation) })
    }

    /// Returns the target of a member, or of a peer that is not a member.
    pub(super) fn dial_of(&self, word: &str) -> DialId {
        let member = self.installed.members.iter().find(|m| m.id.as_str() == word).and_then(|m| m.dial);
        member.unwrap_or_else(|| self.dial(word))
    }

    #[track_caller]
    pub(super) fn members(&mut self, expected: &str) -> &mut Self {
        let names: Vec<_> = self.installed.members.iter().map(|m| m.id.as_str()).collect();
        assert_eq!(names.join(" "), expected, "members at {:?}", self.now);
        self
    }

    #[track_caller]
    pub(super) fn owners(&mut self, expected: &str) -> &mut Self {
        let names: Vec<_> = self.installed.owners().map(|(id, _)| id.as_str()).collect();
        assert_eq!(names.join(" "), expected, "owners at {:?}", self.now);
        self
    }

    pub(super) fn count(&self, is_counted: impl Fn(&Action) -> bool) -> usize {
        self.log.iter().filter(|action| is_counted(action)).count()
    }

    pub(super) fn installs(&self) -> usize {
        self.count(|a| matches!(a, Action::Install(_)))
    }

    pub(super) fn readies(&self) -> usize {
        self.count(|a| matches!(a, Action::Ready))
    }

    pub(super) fn resolves(&self) -> usize {
        let resolves = self.count(|a| matches!(a, Action::Resolve { .. }));
        assert_eq!(self.stabilizer.counters().resolves, resolves as u64, "each request is counted");
        resolves
    }

    pub(super) fn pings(&self, name: &str) -> usize {
        self.count(|a| *a == Action::Ping { id: id(name) })
    }

    pub(super) fn warnings(&self, is_counted: impl Fn(&Warning) -> bool) -> usize {
        self.count(|a| matches!(a, Action::Warn(warning) if is_counted(warning)))
    }

    pub(super) fn suspensions(&self) -> usize {
        self.warnings(|w| matches!(w, Warning::Held { .. } | Warning::SelfUnlisted { .. }))
    }
}
