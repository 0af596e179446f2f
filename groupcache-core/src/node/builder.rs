//! The builder of a node: its settings. `start.rs` makes the node of them.

use std::{fmt, sync::Arc};

#[cfg(feature = "tls")]
use crate::transport::tls::{ClusterKey, MutualTls, Source};
use crate::{
    error::Result,
    identity::Identity,
    limits::Limits,
    membership::provider::Provider,
    node::{Node, security::SecuritySettings, start},
    peer::mount::PeerService,
};

/// The settings of a node that is not started yet; made by [`Node::builder`].
///
/// ```
/// # use groupcache_core::{Identity, Limits, Node};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), groupcache_core::Error> {
/// let mut limits = Limits::default();
/// limits.max_loads = 32; // as many as the database pool has connections
/// let identity = Identity::default().with_id("users-0")?.with_cluster("users")?;
/// let node = Node::builder().identity(identity).limits(limits).start().await?;
/// assert_eq!(node.id().as_str(), "users-0");
/// node.shutdown().await?;
/// # Ok(()) }
/// ```
#[must_use = "a node exists once start() is called"]
#[derive(Default)]
pub struct NodeBuilder {
    pub(super) identity: Identity,
    pub(super) provider: Option<Arc<dyn Provider>>,
    pub(super) limits: Limits,
    pub(super) security: SecuritySettings,
    pub(super) mounted: Option<PeerService>,
    pub(super) seed: Option<u64>,
    pub(super) is_handover_off: bool,
    pub(super) serve_threads: usize,
}

impl NodeBuilder {
    /// Sets the id, the cluster and the addresses of the node. Default: [`Identity::default`], which listens on a free
    /// port of loopback and uses the address as the id.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = identity;
        self
    }

    /// Sets the source of peers. Default: none, so that the node is alone in its cluster.
    ///
    /// The provider runs in a task of the node, and is restarted after an error or a panic.
    pub fn provider(mut self, provider: impl Provider) -> Self {
        self.provider = Some(Arc::new(provider));
        self
    }

    /// Sets the limits of the node. Default: [`Limits::default`].
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Authenticates peers by certificates of your own and by the names in them, and encrypts connections with TLS 1.3.
    /// Default: none.
    ///
    /// Without certificates, a [cluster key](Self::cluster_key) or [`insecure`](Self::insecure), the node starts on
    /// loopback only. The three exclude one another.
    #[cfg(feature = "tls")]
    pub fn mutual_tls(mut self, tls: MutualTls) -> Self {
        self.security.is_ambiguous |= self.security.source.is_some();
        self.security.source = Some(Source::Certificates(tls));
        self
    }

    /// Authenticates peers by a key that all nodes of the cluster share, and encrypts connections with TLS 1.3.
    /// Default: `GROUPCACHE_CLUSTER_KEY` or `GROUPCACHE_CLUSTER_KEY_FILE` of the environment, if one is set.
    ///
    /// A peer needs nothing but the key. A node with a [mounted](Self::mount) peer service takes no cluster key,
    /// because the user's server presents its own certificate.
    #[cfg(feature = "tls")]
    pub fn cluster_key(mut self, key: ClusterKey) -> Self {
        self.security.is_ambiguous |= self.security.source.is_some();
        self.security.source = Some(Source::Key(key));
        self
    }

    /// Allows the node to listen beyond loopback without authentication and without encryption.
    ///
    /// Any client that reaches the address can read the cache and can fill it with values of its choice.
    /// `GROUPCACHE_INSECURE=1` in the environment has the same effect. On loopback neither is needed, unless the peer
    /// service is [mounted](Self::mount).
    pub fn insecure(mut self) -> Self {
        self.security.is_insecure = true;
        self
    }

    /// Serves peers through a server of your own, instead of on a port of the node.
    ///
    /// The listening address of the identity is then the address at which peers dial that server. [`PeerService`] has
    /// an example. A service serves one node at a time.
    pub fn mount(mut self, service: &PeerService) -> Self {
        self.mounted = Some(service.clone());
        self
    }

    /// Sets the number of threads of the node, on which it serves its peers. Default: 0, so that the node runs on the
    /// runtime of [`start`](Self::start). Range: 0 to 256.
    ///
    /// With threads of its own, the node reads and writes its connections, answers peers from memory and keeps its
    /// timers there, so that code which blocks the workers of the user's runtime delays neither the values in memory nor
    /// the liveness of the node. Loaders, providers and the code of values run on the user's runtime. A thread answers
    /// some 100,000 requests a second. A server with a [mounted](Self::mount) service keeps its own threads. The node
    /// closes when the user's runtime ends. The clock of that runtime must not be paused, as tests do.
    ///
    /// ```
    /// # use groupcache_core::Node;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), groupcache_core::Error> {
    /// let node = Node::builder().serve_threads(1).start().await?;
    /// # node.shutdown().await?;
    /// # Ok(()) }
    /// ```
    pub fn serve_threads(mut self, threads: usize) -> Self {
        self.serve_threads = threads;
        self
    }

    /// Enables or disables the hand-over of values when the owners of keys change. Default: true.
    ///
    /// A new owner reads a key from its previous owner before it loads the key. A draining node sends all of its values
    /// to the new owners. A joining node first receives the values that were used in the last 15 s or so, and the
    /// others once the owners have been the same for 35 s.
    ///
    /// When disabled, the node neither requests nor serves hand-overs, and each change of the members loads a share of
    /// all values again, as classic groupcache does. The main use of that is a comparison.
    pub fn handover(mut self, handover: bool) -> Self {
        self.is_handover_off = !handover;
        self
    }

    /// Sets the seed of the node's random numbers (jitter, hash keys), so that a simulation can be repeated. Default:
    /// random.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Starts the node, and returns once the first peers have answered, after 2 s at most.
    ///
    /// The call must be made within a tokio runtime, and the tasks of the node run there, save for those of
    /// [`serve_threads`](Self::serve_threads). When discovery has not
    /// answered within 2 s, the call returns all the same, and the node serves alone until peers are found. Use
    /// [`Node::ready`] to wait for a number of members. Dropping the future ends the node.
    ///
    /// ```
    /// # use groupcache_core::Node;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), groupcache_core::Error> {
    /// let node = Node::builder().start().await?; // no provider: alone
    /// node.ready(1).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`is_config`](crate::Error::is_config), with a text that names the remedy, when
    ///
    /// - a limit is zero or too large, or there is no tokio runtime,
    /// - the address is in use, belongs to another host, or cannot be dialled by peers,
    /// - the address is beyond loopback and no security is chosen: neither certificates, nor a cluster key, nor
    ///   [`insecure`](Self::insecure),
    /// - more than one of these is chosen, or a certificate or key cannot be used,
    /// - the provider refuses its options ([`Provider::check_for`](crate::discovery::Provider::check_for)),
    /// - the mounted peer service serves another node,
    /// - another live node has the same id.
    ///
    /// [`is_closed`](crate::Error::is_closed) when the runtime shuts down meanwhile.
    pub async fn start(self) -> Result<Node> {
        start::start(self).await
    }
}

impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let provider = self.provider.as_ref().map(|provider| provider.name());
        f.debug_struct("NodeBuilder")
            .field("identity", &self.identity)
            .field("provider", &provider)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
