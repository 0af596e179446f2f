use std::time::Duration;

use crate::membership::merge::*;
use crate::{
    identity::{Address, Incarnation, NodeState},
    membership::provider::{Me, ProviderHandle},
};

/// The senders of the node, which lives as long as they do.
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
    let (handle, feed) = ProviderHandle::new(me, is_leaving, watch::channel(Default::default()).1, Trust::Hints);
    let (cx, ask) = handle.context();
    (cx, feed, (leaving, announce), ask)
}

fn id(name: &str) -> PeerId {
    PeerId::new(name).unwrap()
}

fn named(name: &str, address: &str) -> Peer {
    Peer::member(id(name), [Address::new(address).unwrap()])
}

/// A provider with sets and errors from the test. A resolve request has no effect.
#[derive(Clone)]
struct ScriptedProvider(watch::Sender<Option<Result<PeerSet, String>>>);

impl ScriptedProvider {
    fn new() -> Self {
        Self(watch::channel(None).0)
    }

    fn publish(&self, peers: &[Peer]) {
        self.0.send_replace(Some(Ok(PeerSet::complete(peers.to_vec()))));
    }

    fn fail(&self, why: &str) {
        self.0.send_replace(Some(Err(why.to_owned())));
    }
}

#[async_trait]
impl Provider for ScriptedProvider {
    fn name(&self) -> &str {
        "scripted"
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        let mut steps = self.0.subscribe();
        steps.mark_unchanged();
        loop {
            let step = steps.borrow_and_update().clone();
            match step {
                Some(Ok(set)) => cx.publish(set),
                Some(Err(why)) => return Err(why.into()),
                None => {}
            }
            loop {
                tokio::select! {
                    biased;
                    signal = cx.next() => if signal == Signal::Leaving { return Ok(()) },
                    changed = steps.changed() => {
                        changed?;
                        break;
                    }
                }
            }
        }
    }
}

/// A merged provider of two scripted ones, with its sets.
struct Merged {
    first: ScriptedProvider,
    second: ScriptedProvider,
    feed: ProviderFeed,
    ask: mpsc::Sender<Vec<PeerId>>,
    received: Received,
    _node: Node,
}

/// The last complete set, the number of complete sets, and the partial sets since the last one.
#[derive(Clone, Default)]
struct Received {
    complete: Option<PeerSet>,
    count: u64,
    hints: Vec<Peer>,
}

impl Merged {
    fn start() -> Self {
        let (first, second) = (ScriptedProvider::new(), ScriptedProvider::new());
        let (cx, feed, node, ask) = context();
        let merged = merge(first.clone(), second.clone());
        tokio::spawn(async move { merged.run(cx).await.map_err(|e| e.to_string()) });
        Self { first, second, feed, ask, received: Received::default(), _node: node }
    }

    /// Waits until all tasks are idle, and returns the sets published so far. Time is paused, so that the sleep ends
    /// then.
    async fn receive(&mut self) -> Received {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let published = self.feed.sets.borrow_and_update().clone();
        if let Some(set) = published.take_complete() {
            self.received.complete = Some(set);
            self.received.count += 1;
        }
        self.received.hints = published.hints;
        self.received.clone()
    }
}

fn names(peers: &[Peer]) -> Vec<&str> {
    peers.iter().map(|peer| peer.id().map_or("?", PeerId::as_str)).collect()
}

/// Checks that the set of one source is published as a partial set until the other source has published one.
#[tokio::test(start_paused = true)]
async fn set_is_partial_until_both_sources_published() {
    let mut merged = Merged::start();
    merged.first.publish(&[named("a", "10.0.0.1:1")]);
    let received = merged.receive().await;
    assert_eq!((received.complete, names(&received.hints)), (None, vec!["a"]), "the second may know others");

    merged.second.publish(&[named("b", "10.0.0.2:1")]);
    let received = merged.receive().await;
    assert_eq!(names(&received.complete.unwrap().peers), ["a", "b"]);
    assert_eq!(received.count, 1);
}

/// Checks that the peers of a failed source stay, that its failure is reported, and that its sets count again after a
/// restart.
#[tokio::test(start_paused = true)]
async fn failed_source_keeps_its_peers() {
    let mut merged = Merged::start();
    merged.first.publish(&[named("a", "10.0.0.1:1")]);
    merged.second.publish(&[named("b", "10.0.0.2:1")]);
    merged.receive().await;

    merged.first.fail("the source is down");
    merged.receive().await;
    merged.second.publish(&[named("b", "10.0.0.2:1"), named("c", "10.0.0.3:1")]);
    assert_eq!(names(&merged.receive().await.complete.unwrap().peers), ["a", "b", "c"]);
    let mut health = Vec::new();
    while let Ok(report) = merged.feed.reports.try_recv() {
        health.push(report);
    }
    let is_failure =
        |report: &Report| matches!(report, Report::Health(Health::Stale(why)) if why == "scripted: the source is down");
    assert!(health.iter().any(is_failure), "{health:?}");

    // The failed source is restarted, and its next set counts.
    merged.first.publish(&[]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(names(&merged.receive().await.complete.unwrap().peers), ["b", "c"]);
}

/// Checks that a peer with records in both sources is listed once, with the addresses of the newer incarnation first,
/// and that an address of a listed id is no further peer.
#[tokio::test(start_paused = true)]
async fn records_of_one_id_merge_with_newest_address_first() {
    let mut merged = Merged::start();
    let old = named("a", "10.0.0.1:1").with_incarnation(Incarnation(1));
    let new = named("a", "10.0.0.2:1").with_incarnation(Incarnation(2));
    merged.first.publish(&[old, Peer::at("10.0.0.2:1").unwrap(), Peer::at("10.0.0.9:1").unwrap()]);
    merged.second.publish(std::slice::from_ref(&new));
    let peers = merged.receive().await.complete.unwrap().peers;
    let addresses = ["10.0.0.2:1", "10.0.0.1:1"].map(|a| Address::new(a).unwrap());
    let both = Peer::member(id("a"), addresses).with_incarnation(Incarnation(2));
    assert_eq!(peers, [both, Peer::at("10.0.0.9:1").unwrap()], "an address of a known peer is no second peer");
    merged.first.publish(&[]);
    assert_eq!(merged.receive().await.complete.unwrap().peers, [new], "one source still lists the peer");
}

/// Checks that an equal set is published after a resolve request only when both sources have published again.
#[tokio::test(start_paused = true)]
async fn equal_set_is_published_after_both_sources_resolve() {
    let mut merged = Merged::start();
    let (a, b) = ([named("a", "10.0.0.1:1")], [named("b", "10.0.0.2:1")]);
    merged.first.publish(&a);
    merged.second.publish(&b);
    assert_eq!(merged.receive().await.count, 1);
    merged.first.publish(&a);
    merged.receive().await;
    merged.ask.try_send(Vec::new()).unwrap();
    merged.receive().await;

    merged.second.publish(&b);
    assert_eq!(merged.receive().await.count, 1, "the first source has published nothing since the request");
    merged.first.publish(&a);
    assert_eq!(merged.receive().await.count, 2);
}

/// Checks that a record of hints neither covers an address of an authority nor comes before its record.
#[test]
fn records_of_an_authority_come_before_hints() {
    let of = |peer: Peer, trust| Peer { trust, ..peer };
    let listed = of(Peer::at("10.0.0.7:7946").unwrap(), Trust::Authority);
    let lie = of(named("x", "10.0.0.7:7946"), Trust::Hints);
    assert!(unite([listed.clone(), lie].into_iter()).contains(&listed));

    let b = of(named("b", "10.0.0.8:7946"), Trust::Authority);
    let lie = of(named("b", "10.0.9.9:7946").with_incarnation(Incarnation(u64::MAX)), Trust::Hints);
    for records in [[b.clone(), lie.clone()], [lie, b]] {
        let united = unite(records.into_iter());
        assert_eq!(united[0].addresses()[0].as_str(), "10.0.0.8:7946");
        assert_eq!(united[0].trust, Trust::Authority);
    }
}
