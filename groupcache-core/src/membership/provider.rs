//! What a provider is, and what it is given.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

use crate::{
    identity::{Address, Incarnation, NodeState, PeerId},
    runtime::sync::Mutex,
};

/// Any error of a provider: what failed and what to do, in one sentence.
pub type ProviderError = Box<dyn std::error::Error + Send + Sync>;

/// Finds the peers of a node.
///
/// One method, run as a supervised task: an error, a panic or an early return keeps the last set, and the
/// node runs it again after a back-off with jitter. A provider that polls is a function:
/// see [`poll`](crate::discovery::poll).
///
/// ```
/// use groupcache_core::{discovery::{Peer, PeerSet, Provider, ProviderContext, ProviderError, Signal}, async_trait};
///
/// struct Two;
///
/// #[async_trait]
/// impl Provider for Two {
///     fn name(&self) -> &str {
///         "two"
///     }
///
///     async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
///         let peers = ["10.0.0.7:7946", "10.0.0.8:7946"].into_iter().map(Peer::at).collect::<Result<_, _>>()?;
///         cx.publish(PeerSet::complete(peers));
///         while cx.next().await != Signal::Leaving {}
///         Ok(())
///     }
/// }
/// ```
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// A short name for logs and errors, such as `kubernetes`.
    fn name(&self) -> &str;

    /// Announces `cx.me()`, watches, and publishes full sets of peers until [`Signal::Leaving`]; then
    /// withdraws the announcement and returns.
    ///
    /// The future is dropped when it does not return within a second of `Leaving`.
    async fn run(&self, cx: ProviderContext) -> Result<(), ProviderError>;
}

#[async_trait]
impl<P: Provider + ?Sized> Provider for Arc<P> {
    fn name(&self) -> &str {
        (**self).name()
    }

    async fn run(&self, cx: ProviderContext) -> Result<(), ProviderError> {
        (**self).run(cx).await
    }
}

/// What discovery says about one peer: a member (its id is known) or a place to dial (only an address is).
///
/// The node dials either; the Hello that answers says who it really is. State, weight and incarnation are
/// hints until then.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    pub(crate) id: Option<PeerId>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) incarnation: Option<Incarnation>,
    pub(crate) state: Option<NodeState>,
    pub(crate) zone: Option<Arc<str>>,
}

impl Peer {
    /// A peer that is known by name.
    pub fn member(id: PeerId, addresses: impl IntoIterator<Item = Address>) -> Self {
        let addresses = addresses.into_iter().collect();
        Self { id: Some(id), addresses, incarnation: None, state: None, zone: None }
    }

    /// A place where a peer answers, whoever it is; `host:port`.
    ///
    /// # Errors
    /// [`is_config`](crate::Error::is_config) when it is not an address.
    pub fn at(address: impl AsRef<str>) -> crate::Result<Self> {
        Ok(Self { id: None, addresses: vec![Address::new(address)?], incarnation: None, state: None, zone: None })
    }

    /// The incarnation that discovery knows of; an announcement that is older than what the node knows is ignored.
    pub fn with_incarnation(mut self, incarnation: Incarnation) -> Self {
        self.incarnation = Some(incarnation);
        self
    }

    /// The state that discovery heard of: a hint, the peer's own Hello decides.
    pub fn with_state(mut self, state: NodeState) -> Self {
        self.state = Some(state);
        self
    }

    /// The failure domain that discovery knows of, for whoever reads the set. In which zone a node shares in groups that
    /// are [`per_zone`](crate::GroupBuilder::per_zone) it says itself: [`Identity::with_zone`](crate::Identity::with_zone).
    pub fn with_zone(mut self, zone: impl Into<Arc<str>>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// The name, where discovery knows it.
    pub fn id(&self) -> Option<&PeerId> {
        self.id.as_ref()
    }

    /// Where it can be dialled, best first.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The state that discovery heard of.
    pub fn state(&self) -> Option<NodeState> {
        self.state
    }

    /// The failure domain that discovery knows of.
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }
}

/// A set of peers, as a provider sees it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSet {
    pub(crate) peers: Vec<Peer>,
    pub(crate) is_complete: bool,
}

impl PeerSet {
    /// Everyone there is; who is missing from it is on the way out. It may include this node itself.
    pub fn complete(peers: Vec<Peer>) -> Self {
        Self { peers, is_complete: true }
    }

    /// Some that are there; says nothing about the others.
    pub fn partial(peers: Vec<Peer>) -> Self {
        Self { peers, is_complete: false }
    }

    /// The peers.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }
}

/// This node, as a provider should announce it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Me {
    /// The id.
    pub id: PeerId,
    /// The cluster; others of the same name may be on the same network under another.
    pub cluster: Arc<str>,
    /// Orders the announcements of one id.
    pub incarnation: Incarnation,
    /// Joining, Ready or Draining.
    pub state: NodeState,
    /// Where peers dial, best first.
    pub addresses: Vec<Address>,
    /// Share of the keys.
    pub weight: u8,
    /// Failure domain; may be empty.
    pub zone: Arc<str>,
    /// Whether it talks TLS to its peers.
    pub tls: bool,
}

/// What the node tells a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// [`ProviderContext::me`] has changed: announce it again.
    MeChanged,
    /// Look again, with these peers in mind (none = everyone), and publish even if nothing changed. It comes when nodes
    /// disagree, when a set without most peers is doubted, and when a peer that is listed by its name cannot be
    /// reached; not more often than every few seconds.
    Resolve(Vec<PeerId>),
    /// The node leaves: withdraw the announcement and return within a second.
    Leaving,
}

/// How a provider's source is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// The source answers.
    Connected,
    /// The source does not answer; the last set stays. The text says why, and what to do.
    Stale(String),
}

/// What a provider says, on its way to the node.
#[derive(Debug)]
pub(crate) enum Report {
    Left { id: PeerId, incarnation: Option<Incarnation> },
    Health(Health),
}

/// Resolve requests that a provider has not taken yet; more are dropped, since one look answers all.
const RESOLVE_QUEUE: usize = 4;
/// Reports that the node has not taken yet. They are hints: what does not fit is dropped.
const REPORT_QUEUE: usize = 256;

/// A provider's connection to its node: who the node is, what it asks, and where the sets go.
///
/// Publishing never waits and the latest set wins; a slow node sees fewer sets, never older ones.
#[derive(Debug)]
pub struct ProviderContext {
    me: watch::Receiver<Me>,
    resolve: mpsc::Receiver<Vec<PeerId>>,
    leaving: watch::Receiver<bool>,
    reached: Reached,
    sets: Arc<watch::Sender<Published>>,
    reports: mpsc::Sender<Report>,
}

/// The members that the node has a connection to.
pub(crate) type Reached = watch::Receiver<BTreeSet<PeerId>>;

/// The latest of what a provider has published.
#[derive(Clone, Debug, Default)]
pub(crate) struct Published {
    /// Taken out by the node: it may be large, and is needed once.
    complete: Arc<Mutex<Option<PeerSet>>>,
    /// Hints since the last complete set.
    pub(crate) hints: Vec<Peer>,
}

impl Published {
    pub(crate) fn complete(set: PeerSet) -> Self {
        Self { complete: Arc::new(Mutex::new(Some(set))), hints: Vec::new() }
    }

    /// The complete set, if there has been one since this was asked last; the same one again is an answer too.
    pub(crate) fn take_complete(&self) -> Option<PeerSet> {
        self.complete.lock().take()
    }
}

/// Hints that are held for a node that does not read them; the next complete set says it all anyway.
const MAX_HINTS: usize = 2_000;

impl ProviderContext {
    /// This node, as it should be announced now.
    pub fn me(&self) -> Me {
        self.me.borrow().clone()
    }

    /// Whether this peer is a member that the node has a live connection to, as of some 50 ms ago.
    ///
    /// For sources whose silence proves nothing: a peer that answers is there, whatever has become of its record.
    pub fn reaches(&self, id: &PeerId) -> bool {
        self.reached.borrow().contains(id)
    }

    /// Waits for the node's next word. Dropping the future loses none.
    pub async fn next(&mut self) -> Signal {
        // A node that is gone without a word is leaving too.
        if *self.leaving.borrow() {
            return Signal::Leaving;
        }
        tokio::select! {
            biased;
            _ = self.leaving.changed() => Signal::Leaving,
            changed = self.me.changed() => if changed.is_ok() { Signal::MeChanged } else { Signal::Leaving },
            ids = self.resolve.recv() => ids.map_or(Signal::Leaving, Signal::Resolve),
        }
    }

    /// Waits until the node leaves; what else it says meanwhile stays for [`next`](Self::next).
    pub async fn leaving(&self) {
        let mut leaving = self.leaving.clone();
        // An error means that the node is gone.
        let _ = leaving.wait_for(|leaving| *leaving).await;
    }

    /// As [`next`](Self::next), but at most for `wait`; `None` when nothing was said.
    pub async fn next_within(&mut self, wait: Duration) -> Option<Signal> {
        tokio::time::timeout(wait, self.next()).await.ok()
    }

    /// Publishes who is there.
    pub fn publish(&self, set: PeerSet) {
        self.sets.send_modify(|published| {
            if set.is_complete {
                *published.complete.lock() = Some(set);
                published.hints.clear();
            } else {
                if mutant!(SnapshotWatchGap) {
                    published.complete.lock().take();
                }
                published.hints.extend(set.peers);
                published.hints.sort_unstable();
                published.hints.dedup();
                published.hints.truncate(MAX_HINTS);
            }
        });
    }

    /// Says that a peer announced its leave; a hint, ignored while that peer still answers.
    pub fn left(&self, id: PeerId, incarnation: Option<Incarnation>) {
        let _ = self.reports.try_send(Report::Left { id, incarnation });
    }

    /// Says how the source is doing; changes are logged and counted.
    pub fn report(&self, health: Health) {
        let _ = self.reports.try_send(Report::Health(health));
    }

    /// For a provider made of others: what a child of it is run with, and what that child says.
    pub(crate) fn child(&self) -> (ProviderHandle, ProviderFeed) {
        ProviderHandle::new(self.me.clone(), self.leaving.clone(), self.reached.clone())
    }

    /// Turns true when the node leaves.
    pub(crate) fn leaving_flag(&self) -> watch::Receiver<bool> {
        self.leaving.clone()
    }
}

/// The node's end of a [`ProviderContext`]; it outlives the runs of the provider.
#[derive(Debug)]
pub(crate) struct ProviderHandle {
    me: watch::Receiver<Me>,
    leaving: watch::Receiver<bool>,
    reached: Reached,
    sets: Arc<watch::Sender<Published>>,
    reports: mpsc::Sender<Report>,
}

/// What the membership task reads.
#[derive(Debug)]
pub(crate) struct ProviderFeed {
    pub(crate) sets: watch::Receiver<Published>,
    pub(crate) reports: mpsc::Receiver<Report>,
}

impl ProviderHandle {
    pub(crate) fn new(
        me: watch::Receiver<Me>,
        leaving: watch::Receiver<bool>,
        reached: Reached,
    ) -> (Self, ProviderFeed) {
        let (sets, set_feed) = watch::channel(Published::default());
        let (reports, report_feed) = mpsc::channel(REPORT_QUEUE);
        let feed = ProviderFeed { sets: set_feed, reports: report_feed };
        (Self { me, leaving, reached, sets: Arc::new(sets), reports }, feed)
    }

    /// A context for one more run, and where to ask that run to look again.
    pub(crate) fn context(&self) -> (ProviderContext, mpsc::Sender<Vec<PeerId>>) {
        let (ask, resolve) = mpsc::channel(RESOLVE_QUEUE);
        let cx = ProviderContext {
            me: self.me.clone(),
            resolve,
            leaving: self.leaving.clone(),
            reached: self.reached.clone(),
            sets: Arc::clone(&self.sets),
            reports: self.reports.clone(),
        };
        (cx, ask)
    }

    /// For a node without a provider: what one would have published.
    pub(crate) fn publish(&self, published: Published) {
        self.sets.send_replace(published);
    }

    pub(crate) fn report(&self, health: Health) {
        let _ = self.reports.try_send(Report::Health(health));
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NodeState::Joining => "joining",
            NodeState::Ready => "ready",
            NodeState::Draining => "draining",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{identity::PeerId, testing::unit::hello};

    fn begin() -> (ProviderContext, ProviderFeed) {
        let hello = hello("me");
        let me = Me {
            id: hello.id,
            cluster: "default".into(),
            incarnation: hello.incarnation,
            state: hello.state,
            addresses: Vec::new(),
            weight: hello.weight,
            zone: "".into(),
            tls: false,
        };
        let reached = watch::channel(BTreeSet::from([PeerId::new("b").expect("a good id")])).1;
        let (handle, feed) = ProviderHandle::new(watch::channel(me).1, watch::channel(false).1, reached);
        (handle.context().0, feed)
    }

    fn peers(names: &[&str]) -> Vec<Peer> {
        names.iter().map(|name| Peer::member(PeerId::new(name).expect("a good id"), [])).collect()
    }

    fn read(feed: &mut ProviderFeed) -> Published {
        feed.sets.borrow_and_update().clone()
    }

    #[test]
    fn a_provider_is_told_whom_the_node_reaches_and_so_are_those_it_is_made_of() {
        let (cx, _feed) = begin();
        let (child, _child_feed) = cx.child();
        for cx in [&cx, &child.context().0] {
            let reaches = |name: &str| cx.reaches(&PeerId::new(name).expect("a good id"));
            assert_eq!((reaches("a"), reaches("b")), (false, true));
        }
    }

    #[test]
    fn hints_add_up_beside_a_complete_set_that_nobody_has_read() {
        let (cx, mut feed) = begin();
        cx.publish(PeerSet::complete(peers(&["a"])));
        cx.publish(PeerSet::partial(peers(&["b"])));
        cx.publish(PeerSet::partial(peers(&["c"])));
        let seen = read(&mut feed);
        assert_eq!(seen.take_complete(), Some(PeerSet::complete(peers(&["a"]))), "not lost to the hints after it");
        assert_eq!(seen.hints, peers(&["b", "c"]), "nor the first hint to the second");
    }

    #[test]
    fn a_complete_set_ends_the_hints_before_it() {
        let (cx, mut feed) = begin();
        cx.publish(PeerSet::partial(peers(&["b"])));
        cx.publish(PeerSet::complete(peers(&["a"])));
        let seen = read(&mut feed);
        assert_eq!((seen.take_complete(), seen.hints), (Some(PeerSet::complete(peers(&["a"]))), Vec::new()));
        cx.publish(PeerSet::partial(peers(&["c"])));
        let again = read(&mut feed);
        assert_eq!((again.take_complete(), again.hints), (None, peers(&["c"])), "the complete set is no new one");
        cx.publish(PeerSet::complete(peers(&["a"])));
        assert!(read(&mut feed).take_complete().is_some(), "and the same one again is an answer");
    }
}
