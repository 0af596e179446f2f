//! Interface of providers: the trait, peer sets and signals. The channels to the node are in `context`.

mod context;

use std::{fmt, sync::Arc};

use async_trait::async_trait;

pub use self::context::ProviderContext;
pub(crate) use self::context::{ProviderFeed, ProviderHandle, Published, Report};
use crate::identity::{Address, Identity, Incarnation, NodeState, PeerId};

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

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NodeState::Joining => "joining",
            NodeState::Ready => "ready",
            NodeState::Draining => "draining",
        })
    }
}
