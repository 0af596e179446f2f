use std::time::Duration;

use crate::membership::merge::*;
use crate::{
    identity::{Address, Incarnation, NodeState},
    membership::provider::{Me, ProviderHandle},
};

/// The node's ends of a context: while they live, so does the node.
type Node = (watch::Sender<bool>, watch::Sender<Me>);

fn context() -> (ProviderContext, ProviderFeed, Node, mpsc::Sender<Vec<PeerId>>) {
    let me = Me {
        id: id("me"),
        cluster: "default".into(),
        incarnation: Incarnation(1),
        state: NodeState::Ready,
        addresses: Vec::new(),
        weight: 1,
        zone: "".into(),
        tls: false,
    };
    let (leaving, is_leaving) = watch::channel(false);
    let (announce, me) = watch::channel(me);
    let (handle, feed) = ProviderHandle::new(me, is_leaving, watch::channel(Default::default()).1);
    let (cx, ask) = handle.context();
    (cx, feed, (leaving, announce), ask)
}

fn id(name: &str) -> PeerId {
    PeerId::new(name).unwrap()
}

fn named(name: &str, address: &str) -> Peer {
    Peer::member(id(name), [Address::new(address).unwrap()])
}

/// A source that says what the test tells it to say, and answers no question by itself.
#[derive(Clone)]
struct Told(watch::Sender<Option<Result<PeerSet, String>>>);

impl Told {
    fn new() -> Self {
        Self(watch::channel(None).0)
    }

    fn says(&self, peers: &[Peer]) {
        self.0.send_replace(Some(Ok(PeerSet::complete(peers.to_vec()))));
    }

    fn fails(&self, why: &str) {
        self.0.send_replace(Some(Err(why.to_owned())));
    }
}

#[async_trait]
impl Provider for Told {
    fn name(&self) -> &str {
        "told"
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        let mut words = self.0.subscribe();
        words.mark_unchanged();
        loop {
            let word = words.borrow_and_update().clone();
            match word {
                Some(Ok(set)) => cx.publish(set),
                Some(Err(why)) => return Err(why.into()),
                None => {}
            }
            loop {
                tokio::select! {
                    biased;
                    signal = cx.next() => if signal == Signal::Leaving { return Ok(()) },
                    changed = words.changed() => {
                        changed?;
                        break;
                    }
                }
            }
        }
    }
}

/// What the merge of two told sources publishes.
struct Merged {
    first: Told,
    second: Told,
    feed: ProviderFeed,
    ask: mpsc::Sender<Vec<PeerId>>,
    heard: Heard,
    _node: Node,
}

/// The last complete set, how many there have been, and the hints since.
#[derive(Clone, Default)]
struct Heard {
    complete: Option<PeerSet>,
    count: u64,
    hints: Vec<Peer>,
}

impl Merged {
    fn start() -> Self {
        let (first, second) = (Told::new(), Told::new());
        let (cx, feed, node, ask) = context();
        let merged = merge(first.clone(), second.clone());
        tokio::spawn(async move { merged.run(cx).await.map_err(|e| e.to_string()) });
        Self { first, second, feed, ask, heard: Heard::default(), _node: node }
    }

    /// What is published once everything that was said has been heard. (Time is paused: this waits for idleness.)
    async fn heard(&mut self) -> Heard {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let published = self.feed.sets.borrow_and_update().clone();
        if let Some(set) = published.take_complete() {
            self.heard.complete = Some(set);
            self.heard.count += 1;
        }
        self.heard.hints = published.hints;
        self.heard.clone()
    }
}

fn names(peers: &[Peer]) -> Vec<&str> {
    peers.iter().map(|peer| peer.id().map_or("?", PeerId::as_str)).collect()
}

#[tokio::test(start_paused = true)]
async fn until_both_have_spoken_what_one_says_is_an_addition() {
    let mut merged = Merged::start();
    merged.first.says(&[named("a", "10.0.0.1:1")]);
    let heard = merged.heard().await;
    assert_eq!((heard.complete, names(&heard.hints)), (None, vec!["a"]), "the second may know others");

    merged.second.says(&[named("b", "10.0.0.2:1")]);
    let heard = merged.heard().await;
    assert_eq!(names(&heard.complete.unwrap().peers), ["a", "b"]);
    assert_eq!(heard.count, 1);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_keeps_its_peers_and_the_other_goes_on() {
    let mut merged = Merged::start();
    merged.first.says(&[named("a", "10.0.0.1:1")]);
    merged.second.says(&[named("b", "10.0.0.2:1")]);
    merged.heard().await;

    merged.first.fails("it is down");
    merged.heard().await;
    merged.second.says(&[named("b", "10.0.0.2:1"), named("c", "10.0.0.3:1")]);
    assert_eq!(names(&merged.heard().await.complete.unwrap().peers), ["a", "b", "c"]);
    let mut health = Vec::new();
    while let Ok(report) = merged.feed.reports.try_recv() {
        health.push(report);
    }
    let is_told = |report: &Report| matches!(report, Report::Health(Health::Stale(why)) if why == "told: it is down");
    assert!(health.iter().any(is_told), "{health:?}");

    // It is run again by itself, and then its word counts.
    merged.first.says(&[]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(names(&merged.heard().await.complete.unwrap().peers), ["b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_both_list_is_one_and_its_newer_life_comes_first() {
    let mut merged = Merged::start();
    let old = named("a", "10.0.0.1:1").with_incarnation(Incarnation(1));
    let new = named("a", "10.0.0.2:1").with_incarnation(Incarnation(2));
    merged.first.says(&[old, Peer::at("10.0.0.2:1").unwrap(), Peer::at("10.0.0.9:1").unwrap()]);
    merged.second.says(std::slice::from_ref(&new));
    let peers = merged.heard().await.complete.unwrap().peers;
    let addresses = ["10.0.0.2:1", "10.0.0.1:1"].map(|a| Address::new(a).unwrap());
    let both = Peer::member(id("a"), addresses).with_incarnation(Incarnation(2));
    assert_eq!(peers, [both, Peer::at("10.0.0.9:1").unwrap()], "and a place whose peer is known is no second peer");
    merged.first.says(&[]);
    assert_eq!(merged.heard().await.complete.unwrap().peers, [new], "one of them still lists it");
}

#[tokio::test(start_paused = true)]
async fn the_same_set_again_is_an_answer_only_when_both_have_looked_again() {
    let mut merged = Merged::start();
    let (a, b) = ([named("a", "10.0.0.1:1")], [named("b", "10.0.0.2:1")]);
    merged.first.says(&a);
    merged.second.says(&b);
    assert_eq!(merged.heard().await.count, 1);
    merged.first.says(&a);
    merged.heard().await;
    merged.ask.try_send(Vec::new()).unwrap();
    merged.heard().await;

    merged.second.says(&b);
    assert_eq!(merged.heard().await.count, 1, "the first has said nothing since the question");
    merged.first.says(&a);
    assert_eq!(merged.heard().await.count, 2);
}
