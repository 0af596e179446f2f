//! Interface of providers: the trait, peer sets, and the context with the signals of the node.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

use crate::{
    identity::{Address, Identity, Incarnation, NodeState, PeerId},
    runtime::sync::Mutex,
};

/// The error of a provider. The text is one sentence with the failure and the remedy.
pub type ProviderError = Box<dyn std::error::Error + Send + Sync>;

/// A source of the peers of a node.
///
/// A node calls [`run`](Self::run) in a supervised task. Use [`poll`](crate::discovery::poll) for a source that is a
/// function, and [`from_stream`](crate::discovery::from_stream) for a source that is a stream.
///
/// # Duties
///
/// - Announce [`ProviderContext::me`], and announce it again after [`Signal::MeChanged`].
/// - Publish a complete set as soon as one is known, and after each change.
/// - Publish again after [`Signal::Resolve`], even if nothing has changed, because the set confirms the last one.
/// - Publish nothing while the source fails, and report [`Health::Stale`]. An empty set means that there are no peers.
/// - Withdraw the announcement after [`Signal::Leaving`], and return within 1 s.
///
/// The feature `testing` has a conformance suite for providers.
///
/// # Example
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
    /// Returns a short name for logs and errors, such as `kubernetes`.
    fn name(&self) -> &str;

    /// Announces the node, watches the source, and publishes peer sets until [`Signal::Leaving`]. Then withdraws the
    /// announcement and returns.
    ///
    /// # Errors
    /// An error, a panic and an early return have the same effect: the last set stays, and the node calls `run` again
    /// after a pause with jitter that grows from 100 ms to 30 s. A run of at least 60 s makes the next pause short
    /// again.
    ///
    /// # Cancellation
    /// The node drops the future if it does not return within 1 s of [`Signal::Leaving`].
    async fn run(&self, cx: ProviderContext) -> Result<(), ProviderError>;

    /// Returns whether a peer that is missing from a complete set has left, even if its connection is alive. Default:
    /// [`Trust::Hints`].
    fn trust(&self) -> Trust {
        Trust::Hints
    }

    /// Checks the options of the provider for a node of that identity. A node calls the function before it starts, and
    /// does not start after an error. Default: no error.
    ///
    /// # Errors
    /// Options that can never work, or that would mix the node with nodes of other services.
    fn check_for(&self, identity: &Identity) -> Result<(), ProviderError> {
        let _ = identity;
        Ok(())
    }
}

/// The weight of a complete set against a connection that is alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trust {
    /// A source to which others than the operator may write, or which may lack peers that are alive, such as a name
    /// server, a multicast network or a message bus. A member leaves after its goodbye, or when the source does not
    /// list it and two pings to it have failed, and never while its connection is alive.
    #[default]
    Hints,
    /// A source that only the operator changes, such as the API server of Kubernetes, a file or a list in the program.
    /// A member that the source does not list leaves after 5 s, even if its connection is alive. A set that does not
    /// list this node, although an earlier set did, removes a member only after two failed pings.
    Authority,
}

#[async_trait]
impl<P: Provider + ?Sized> Provider for Arc<P> {
    fn name(&self) -> &str {
        (**self).name()
    }

    async fn run(&self, cx: ProviderContext) -> Result<(), ProviderError> {
        (**self).run(cx).await
    }

    fn trust(&self) -> Trust {
        (**self).trust()
    }

    fn check_for(&self, identity: &Identity) -> Result<(), ProviderError> {
        (**self).check_for(identity)
    }
}

/// The discovery record of one peer: an id with addresses, or an address only.
///
/// The record is a hint. The node dials the peer, and takes id, state, weight and zone from the Hello that answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    pub(crate) id: Option<PeerId>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) incarnation: Option<Incarnation>,
    pub(crate) state: Option<NodeState>,
    /// Trust in the source of the record, set when a provider publishes it.
    pub(crate) trust: Trust,
}

impl Peer {
    /// Creates the record of a peer with a known id. The addresses are in the order of preference, and the first 8 are
    /// used.
    pub fn member(id: PeerId, addresses: impl IntoIterator<Item = Address>) -> Self {
        let addresses = addresses.into_iter().collect();
        Self { id: Some(id), addresses, incarnation: None, state: None, trust: Trust::Hints }
    }

    /// Creates the record of a peer with an unknown id at `host:port`.
    ///
    /// # Errors
    /// [`is_config`](crate::Error::is_config) if `address` is not an address, as for [`Address::new`].
    pub fn at(address: impl AsRef<str>) -> crate::Result<Self> {
        let addresses = vec![Address::new(address)?];
        Ok(Self { id: None, addresses, incarnation: None, state: None, trust: Trust::Hints })
    }

    /// Sets the incarnation of the record.
    ///
    /// A node dials the addresses of a higher incarnation first, and the addresses of a stale incarnation last.
    pub fn with_incarnation(mut self, incarnation: Incarnation) -> Self {
        self.incarnation = Some(incarnation);
        self
    }

    /// Sets the state of the record, for readers of the set. The node takes the state of a peer from its Hello.
    pub fn with_state(mut self, state: NodeState) -> Self {
        self.state = Some(state);
        self
    }

    /// Returns the id, if the source knows it.
    pub fn id(&self) -> Option<&PeerId> {
        self.id.as_ref()
    }

    /// Returns the addresses at which the peer is dialled, best first.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Returns the state, if the source knows it.
    pub fn state(&self) -> Option<NodeState> {
        self.state
    }
}

/// The peers that a provider reports, complete or partial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSet {
    pub(crate) peers: Vec<Peer>,
    pub(crate) is_complete: bool,
}

impl PeerSet {
    /// Creates a set of all peers. The set may include the local node.
    ///
    /// The [`Trust`] in the provider decides when a missing member leaves. From an authority, a missing member leaves
    /// after 5 s, or earlier if its connection is lost and a ping fails. From hints, a missing member leaves after its
    /// connection is lost and two pings have failed. If more than half of the members are missing, all of them stay
    /// until the provider confirms the set after [`Signal::Resolve`], or until every missing member has failed two
    /// pings.
    pub fn complete(peers: Vec<Peer>) -> Self {
        Self { peers, is_complete: true }
    }

    /// Creates a set of some peers, which adds peers to the last complete set and removes none.
    pub fn partial(peers: Vec<Peer>) -> Self {
        Self { peers, is_complete: false }
    }

    /// Returns the peers of the set.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }
}

/// The local node, as a provider announces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Me {
    /// Id of the node.
    pub id: PeerId,
    /// Cluster of the node. Nodes of other clusters may use the same network and the same ids.
    pub cluster: Arc<str>,
    /// Incarnation of the node, which orders the announcements of one id.
    pub incarnation: Incarnation,
    /// State of the node.
    pub state: NodeState,
    /// Addresses that peers dial, best first.
    pub addresses: Vec<Address>,
    /// Share of the keys relative to other nodes. Range: 0 to 16.
    pub weight: u8,
    /// Zone (failure domain) of the node. Empty if none is set.
    pub zone: Arc<str>,
    /// Whether the node uses TLS with its peers.
    pub tls: bool,
}

/// A signal of the node to its provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A change of [`ProviderContext::me`]. Announce the node again.
    MeChanged,
    /// A request to look up the peers again, and to publish even if nothing has changed. The ids are the peers in
    /// question, and an empty list means all peers.
    ///
    /// The node sends the signal while its view differs from the view of a peer, while most members are missing from
    /// the last complete set, while a peer that is listed by its id is unreachable, and while a peer is connected that
    /// discovery does not list. A back-off of the provider does not delay the answer. The signals are at least 1 s
    /// apart.
    Resolve(Vec<PeerId>),
    /// The departure of the node. Withdraw the announcement and return within 1 s.
    Leaving,
}

/// The health of the source of a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// The source answers.
    Connected,
    /// The source does not answer, and the last set stays. The text has the reason and the remedy.
    Stale(String),
}

/// A report of a provider to the node, other than a peer set.
#[derive(Debug)]
pub(crate) enum Report {
    Left { id: PeerId, incarnation: Option<Incarnation> },
    Health(Health),
}

/// Maximum number of resolve requests that a provider has not received. More are dropped, because one lookup answers
/// all.
const RESOLVE_QUEUE: usize = 4;
/// Maximum number of reports that the node has not received. More are dropped, because reports are hints.
const REPORT_QUEUE: usize = 256;

/// The connection of a provider to its node: the node to announce, the signals of the node, and the way for peer sets.
///
/// Publishing and reporting never wait. The latest complete set replaces an earlier one that the node has not read, so
/// that a busy node reads fewer sets and never an older one.
#[derive(Debug)]
pub struct ProviderContext {
    me: watch::Receiver<Me>,
    resolve: mpsc::Receiver<Vec<PeerId>>,
    leaving: watch::Receiver<bool>,
    reached: Reached,
    trust: Trust,
    sets: Arc<watch::Sender<Published>>,
    reports: mpsc::Sender<Report>,
}

/// The members with a live connection, as a channel.
pub(crate) type Reached = watch::Receiver<BTreeSet<PeerId>>;

/// The peer sets that a provider has published and the node has not read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Published {
    /// The last complete set until the node takes it. The set may be large, and is needed once.
    complete: Arc<Mutex<Option<PeerSet>>>,
    /// Records from partial sets since the last complete set.
    pub(crate) hints: Vec<Peer>,
}

impl Published {
    /// Creates the state after one complete set.
    pub(crate) fn complete(set: PeerSet) -> Self {
        Self { complete: Arc::new(Mutex::new(Some(set))), hints: Vec::new() }
    }

    /// Takes the complete set, if one was published since the last call. An equal set counts, because it confirms the
    /// last one.
    pub(crate) fn take_complete(&self) -> Option<PeerSet> {
        self.complete.lock().take()
    }
}

/// Maximum number of records from partial sets that the node has not read. The next complete set replaces them.
const MAX_HINTS: usize = 2_000;

impl ProviderContext {
    /// Returns the local node, as it is to be announced.
    pub fn me(&self) -> Me {
        self.me.borrow().clone()
    }

    /// Returns whether the peer is a member with a live connection, as of about 50 ms ago.
    ///
    /// Use it if a missing record does not prove that the peer has left, because a connected peer is present.
    pub fn reaches(&self, id: &PeerId) -> bool {
        self.reached.borrow().contains(id)
    }

    /// Waits for the next signal of the node. After [`Signal::Leaving`], always returns it again.
    ///
    /// # Cancellation
    /// A dropped future loses no signal.
    pub async fn next(&mut self) -> Signal {
        // A closed channel means that the node is gone, which counts as leaving.
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

    /// Waits for a request to look again, and takes it.
    pub(crate) async fn asked(&mut self) {
        if self.resolve.recv().await.is_none() {
            std::future::pending().await // the node is gone, and ends the caller
        }
    }

    /// Waits until the node leaves. Other signals stay for [`next`](Self::next).
    ///
    /// # Cancellation
    /// A dropped future loses no signal.
    pub async fn leaving(&self) {
        let mut leaving = self.leaving.clone();
        // An error means that the node is gone.
        let _ = leaving.wait_for(|leaving| *leaving).await;
    }

    /// Waits for the next signal as [`next`](Self::next) does, for at most `wait`. Returns `None` if there was no
    /// signal.
    pub async fn next_within(&mut self, wait: Duration) -> Option<Signal> {
        tokio::time::timeout(wait, self.next()).await.ok()
    }

    /// Publishes a peer set.
    ///
    /// A complete set replaces all earlier sets. A partial set adds to the last complete set. Limit: 2,000 records from
    /// partial sets that the node has not read.
    pub fn publish(&self, mut set: PeerSet) {
        for peer in &mut set.peers {
            peer.trust = self.trust;
        }
        self.publish_of_sources(set);
    }

    /// Publishes a peer set of records that have the trust of their sources.
    pub(crate) fn publish_of_sources(&self, set: PeerSet) {
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

    /// Reports that a peer has announced its departure.
    ///
    /// The report is a hint. The node pings the peer, and removes it if the ping fails. A report about a stale
    /// `incarnation` is ignored.
    pub fn left(&self, id: PeerId, incarnation: Option<Incarnation>) {
        let _ = self.reports.try_send(Report::Left { id, incarnation });
    }

    /// Reports the health of the source. The node logs changes.
    pub fn report(&self, health: Health) {
        let _ = self.reports.try_send(Report::Health(health));
    }

    /// Creates the handle and the feed of a child, for a provider that is made of others.
    pub(crate) fn child(&self, trust: Trust) -> (ProviderHandle, ProviderFeed) {
        ProviderHandle::new(self.me.clone(), self.leaving.clone(), self.reached.clone(), trust)
    }

    /// Returns the flag that becomes true when the node leaves.
    pub(crate) fn leaving_flag(&self) -> watch::Receiver<bool> {
        self.leaving.clone()
    }
}

/// The node's side of [`ProviderContext`], which outlives the runs of the provider.
#[derive(Debug)]
pub(crate) struct ProviderHandle {
    me: watch::Receiver<Me>,
    leaving: watch::Receiver<bool>,
    reached: Reached,
    trust: Trust,
    sets: Arc<watch::Sender<Published>>,
    reports: mpsc::Sender<Report>,
}

/// The peer sets and reports of a provider, for the membership task.
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
        trust: Trust,
    ) -> (Self, ProviderFeed) {
        let (sets, set_feed) = watch::channel(Published::default());
        let (reports, report_feed) = mpsc::channel(REPORT_QUEUE);
        let feed = ProviderFeed { sets: set_feed, reports: report_feed };
        (Self { me, leaving, reached, trust, sets: Arc::new(sets), reports }, feed)
    }

    /// Creates the context of one run, and the sender of its resolve requests.
    pub(crate) fn context(&self) -> (ProviderContext, mpsc::Sender<Vec<PeerId>>) {
        let (ask, resolve) = mpsc::channel(RESOLVE_QUEUE);
        let cx = ProviderContext {
            me: self.me.clone(),
            resolve,
            leaving: self.leaving.clone(),
            reached: self.reached.clone(),
            trust: self.trust,
            sets: Arc::clone(&self.sets),
            reports: self.reports.clone(),
        };
        (cx, ask)
    }

    /// Publishes peer sets for a node without a provider.
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
    use crate::{identity::PeerId, testing::unit::me};

    fn start() -> (ProviderContext, ProviderFeed) {
        let reached = watch::channel(BTreeSet::from([PeerId::new("b").expect("a good id")])).1;
        let (handle, feed) =
            ProviderHandle::new(watch::channel(me("me")).1, watch::channel(false).1, reached, Trust::Hints);
        (handle.context().0, feed)
    }

    fn peers(names: &[&str]) -> Vec<Peer> {
        names.iter().map(|name| Peer::member(PeerId::new(name).expect("a good id"), [])).collect()
    }

    fn read(feed: &mut ProviderFeed) -> Published {
        feed.sets.borrow_and_update().clone()
    }

    /// Checks that a provider and its children see the connected members.
    #[test]
    fn reaches_reports_connected_members_to_children_too() {
        let (cx, _feed) = start();
        let (child, _child_feed) = cx.child(Trust::Hints);
        for cx in [&cx, &child.context().0] {
            let reaches = |name: &str| cx.reaches(&PeerId::new(name).expect("a good id"));
            assert_eq!((reaches("a"), reaches("b")), (false, true));
        }
    }

    /// Checks that partial sets keep an unread complete set, and each other's records.
    #[test]
    fn partial_sets_add_up_beside_an_unread_complete_set() {
        let (cx, mut feed) = start();
        cx.publish(PeerSet::complete(peers(&["a"])));
        cx.publish(PeerSet::partial(peers(&["b"])));
        cx.publish(PeerSet::partial(peers(&["c"])));
        let published = read(&mut feed);
        assert_eq!(
            published.take_complete(),
            Some(PeerSet::complete(peers(&["a"]))),
            "partial sets keep the complete set"
        );
        assert_eq!(published.hints, peers(&["b", "c"]), "the second partial set keeps the first");
    }

    /// Checks that a complete set replaces earlier partial sets, is taken once, and counts again when it is published
    /// again.
    #[test]
    fn complete_set_replaces_earlier_partial_sets() {
        let (cx, mut feed) = start();
        cx.publish(PeerSet::partial(peers(&["b"])));
        cx.publish(PeerSet::complete(peers(&["a"])));
        let published = read(&mut feed);
        assert_eq!((published.take_complete(), published.hints), (Some(PeerSet::complete(peers(&["a"]))), Vec::new()));
        cx.publish(PeerSet::partial(peers(&["c"])));
        let again = read(&mut feed);
        assert_eq!((again.take_complete(), again.hints), (None, peers(&["c"])), "the complete set is taken once");
        cx.publish(PeerSet::complete(peers(&["a"])));
        assert!(read(&mut feed).take_complete().is_some(), "an equal set counts again");
    }
}
