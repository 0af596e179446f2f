//! The builder of a node: checks the settings, starts the listener and the tasks, and waits for the first peers.
//!
//! Nothing runs before all settings are checked. A start that fails later drops the [`Node`], which ends what was
//! started.

use std::{collections::BTreeSet, fmt, panic::catch_unwind, sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;

#[cfg(feature = "tls")]
use crate::node::security::reload_credentials;
use crate::node::{
    Inner, Node,
    channels::{EVENT_QUEUE, Feeds, Outputs, Status},
    handover::receive_values,
    membership::{Membership, facts},
    pull::{answer, ping_all, pull},
    security::SecuritySettings,
    supervise::supervise,
    tick::{announce, sweep, tick},
};
#[cfg(feature = "tls")]
use crate::transport::{
    Security,
    tls::{ClusterKey, MutualTls, Source},
};
use crate::{
    context::NodeContext,
    environment::Variables,
    error::{Error, Kind, Result},
    identity::{Identity, Incarnation, NodeState},
    limits::{Limits, MAX_REQUESTS_PER_FRAME, START},
    membership::{
        provider::{Me, PeerSet, Provider, ProviderHandle, Published, Trust},
        stabilizer::{MemberSet, Stabilizer},
        view::View,
    },
    peer::{local::LocalNode, mount::PeerService, server::Server},
    protocol::{message::Hello, wire},
    ring,
    runtime::{clock, sync::Keyed},
    transport::{self, ListenerConfig, TcpListener},
};

/// Maximum number of HTTP/2 streams of one connection: one for the frames of a peer, the others for unary gets of
/// clients that are not peers. Starting and answering all of them at once keeps a thread busy for about 0.5 ms, during
/// which other connections wait.
const MAX_STREAMS: u32 = 32;
/// Maximum bytes of the headers of one request. The headers of a peer take a few hundred bytes.
const MAX_HEADER_LIST: u32 = 16 << 10;

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
    identity: Identity,
    provider: Option<Arc<dyn Provider>>,
    limits: Limits,
    security: SecuritySettings,
    mounted: Option<PeerService>,
    seed: Option<u64>,
    is_handover_off: bool,
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
    /// The call must be made within a tokio runtime, and the tasks of the node run there. When discovery has not
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
    /// [`is_config`](Error::is_config), with a text that names the remedy, when
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
    /// [`is_closed`](Error::is_closed) when the runtime shuts down meanwhile.
    pub async fn start(self) -> Result<Node> {
        self.limits.check()?;
        let mut identity = self.identity;
        let runtime =
            Handle::try_current().map_err(|e| Error::caused(Kind::Config, "start() needs a tokio runtime", e))?;
        check_runtime()?;
        let is_mounted = self.mounted.is_some();
        let security = self.security.choose(&Variables::of_process(), &identity, is_mounted)?;
        check_addresses(&identity, is_mounted)?;
        if let Some(provider) = &self.provider {
            let of =
                |e| Error::caused(Kind::Config, format!("discovery by {} cannot be used: {e}", provider.name()), e);
            provider.check_for(&identity).map_err(of)?;
        }
        let listener = if is_mounted { None } else { Some(listen(&mut identity).await?) };
        // The listener comes first, because certificates name the id, which may be the address.
        let security = security.resolve(&identity).await?;

        let mut rng = self.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        let hands_over = !self.is_handover_off;
        let hello = hello_of(&identity, &self.limits, hands_over);
        let stabilizer = Stabilizer::new(facts(&hello), rng.fork());
        let local = Arc::new(LocalNode::new(hello, self.limits, security));
        let context = Arc::new(NodeContext::new(
            Arc::clone(&local),
            View::new(1, MemberSet::default()),
            runtime,
            hands_over,
            rng,
        ));
        let tasks = &context.tasks;
        let (arrivals, arrival_feed) = mpsc::channel(EVENT_QUEUE);
        let (logs, log_requests) = mpsc::channel(EVENT_QUEUE);
        let server = Server::new(
            Arc::clone(&local),
            Arc::clone(&context.registry),
            arrivals,
            logs,
            tasks.others.clone(),
            tasks.closing.clone(),
            Keyed(context.random()),
        );

        let (me, announced) = watch::channel(me_of(&identity, &local.hello(), !local.security.is_open()));
        let (leaving, is_leaving) = watch::channel(false);
        let (reached, reached_feed) = watch::channel(BTreeSet::new());
        let (commands, command_feed) = mpsc::channel(4);
        let (status, status_feed) = watch::channel(Status::default());
        let (events, event_feed) = mpsc::channel(EVENT_QUEUE);
        let (requests, request_feed) = watch::channel(None);
        let (handle, provider_feed) = ProviderHandle::new(
            announced,
            is_leaving.clone(),
            reached_feed,
            // A node without a provider decides by itself that there are no peers.
            self.provider.as_ref().map_or(Trust::Authority, |provider| provider.trust()),
        );
        let node = Node {
            inner: Arc::new(Inner {
                context: Arc::clone(&context),
                identity,
                server: server.clone(),
                commands,
                status: status_feed,
                leaving,
                withdrawn: CancellationToken::new(),
                stop_serving: CancellationToken::new(),
                mounted: self.mounted.clone(),
            }),
        };

        if let Some(listener) = listener {
            serve(&node, listener);
        }
        if self.mounted.is_some_and(|mounted| !mounted.begins(&server)) {
            return Err(Error::config(
                "the mounted peer service already serves a node, and serves one node only; make another with \
                 PeerService::default()",
            ));
        }
        tasks.run(tick(Arc::clone(&context)));
        tasks.run(sweep(Arc::clone(&context)));
        tasks.run(receive_values(Arc::clone(&context)));
        tasks.run(pull(Arc::clone(&context)));
        tasks.run(ping_all(Arc::clone(&context)));
        tasks.run(answer(Arc::clone(&context), log_requests));
        let inbound = server.inbound();
        tasks.run(announce(Arc::clone(&context), server));
        #[cfg(feature = "tls")]
        if let Security::Tls(credentials) = &local.security {
            tasks.run(reload_credentials(Arc::clone(&context), Arc::clone(credentials)));
        }
        let withdrawn = node.inner.withdrawn.clone();
        match self.provider {
            Some(provider) => {
                let seed = context.random();
                let run = supervise(provider, handle, requests, Arc::clone(&local), is_leaving, seed);
                // `closing` must not cancel this task, because the provider has a second to withdraw.
                tasks.others.spawn(async move {
                    run.await;
                    withdrawn.cancel();
                });
            }
            None => {
                handle.publish(Published::complete(PeerSet::complete(Vec::new())));
                withdrawn.cancel();
            }
        }
        let outputs = Outputs { links: events, requests: request_feed, me, reached, status };
        let port = node.address().port();
        let membership = Membership::new(Arc::clone(&context), stabilizer, outputs, port, inbound);
        tasks.run(membership.run(Feeds {
            provider: provider_feed,
            commands: command_feed,
            events: event_feed,
            arrivals: arrival_feed,
        }));
        node.wait_for_first_peers().await?;
        tracing::info!(id = %node.id(), address = %node.address(), "node started");
        Ok(node)
    }
}

impl Node {
    /// Waits until the first peers are known, for [`START`] at most. Fails if another live node has this id.
    async fn wait_for_first_peers(&self) -> Result<()> {
        let mut status = self.inner.status.clone();
        let known = status.wait_for(|status| status.is_ready || status.duplicate_at.is_some());
        let duplicate_at = match timeout(START, known).await {
            Ok(Ok(status)) => status.duplicate_at.clone(),
            Ok(Err(_)) => return Err(self.closed()),
            Err(_) => None, // discovery is slow, and the node serves alone meanwhile
        };
        match duplicate_at {
            None => Ok(()),
            Some(at) => Err(Error::config(format!(
                "another live node answers to the id {} at {at:?}; give each node its own NODE_NAME",
                self.id()
            ))),
        }
    }
}

/// Checks that the identity has an address that peers can dial, or an id and advertised addresses.
fn check_addresses(identity: &Identity, is_mounted: bool) -> Result<()> {
    let listen = identity.listen();
    if is_mounted && listen.port() == 0 && !identity.is_named_and_advertised() {
        return Err(Error::config(
            "a node with a mounted peer service needs the address that peers dial; use Identity::new(address of your \
             server), or give the node an id and with_advertised([...])",
        ));
    }
    if listen.ip().is_unspecified() && !identity.is_named_and_advertised() {
        return Err(Error::config(format!(
            "peers cannot dial {listen}, and it does not identify a node; listen on the address of one interface \
             (NODE_IP), or give the node an id and with_advertised([...])"
        )));
    }
    Ok(())
}

async fn listen(identity: &mut Identity) -> Result<TcpListener> {
    let wanted = identity.listen();
    let cannot = |e: std::io::Error| {
        let text = format!(
            "cannot listen for peers on {wanted}: the port is in use, or the address belongs to another host; choose \
             another GROUP_PORT or NODE_IP"
        );
        Error::caused(Kind::Config, text, e)
    };
    let listener = transport::listen(wanted).await.map_err(cannot)?;
    identity.bound_to(listener.local_addr().map_err(cannot)?);
    Ok(listener)
}

fn hello_of(identity: &Identity, limits: &Limits, hands_over: bool) -> Hello {
    let incarnation = Incarnation(clock::wall_clock_ms());
    let handover = if hands_over { wire::features::HANDOVER } else { 0 };
    Hello {
        cluster: identity.cluster().to_owned(),
        id: identity.id(),
        expected: None,
        incarnation,
        state: NodeState::Joining,
        weight: identity.weight(),
        zone: identity.zone().into(),
        addresses: identity.addresses(),
        ring_algorithm: ring::ALGORITHM,
        fingerprint: 0,
        max_requests_per_frame: MAX_REQUESTS_PER_FRAME,
        max_value_bytes: limits.max_value_bytes,
        groups: Vec::new(),
        features: handover | wire::features::WRITE_LOG | wire::features::QUARANTINE,
        log_incarnation: incarnation,
    }
}

/// Returns an error unless the current runtime has timers and sockets. Tokio has no question for that, and panics when
/// one of them is missing.
fn check_runtime() -> Result<()> {
    let has_timers = catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO))).is_ok();
    #[cfg(all(unix, not(simulation)))]
    let has_sockets = catch_unwind(|| drop(tokio::net::UnixDatagram::pair())).is_ok();
    #[cfg(not(all(unix, not(simulation))))]
    let has_sockets = true;
    if has_timers && has_sockets {
        return Ok(());
    }
    Err(Error::config("start() needs a tokio runtime with timers and sockets; build it with enable_all()"))
}

fn me_of(identity: &Identity, hello: &Hello, tls: bool) -> Me {
    Me {
        id: hello.id.clone(),
        cluster: identity.cluster().into(),
        incarnation: hello.incarnation,
        state: hello.state,
        addresses: hello.addresses.clone(),
        weight: hello.weight,
        zone: Arc::clone(&hello.zone),
        tls,
    }
}

/// Returns an HTTP/2 server with the limits of the node and the peer service.
fn router(server: &Server, limits: &Limits) -> Router {
    let window = transport::stream_window(limits);
    tonic::transport::Server::builder()
        .initial_stream_window_size(window)
        .initial_connection_window_size(window.saturating_mul(2))
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_LIST)
        .add_service(server.service())
}

#[cfg(any(test, fuzzing))]
impl Node {
    /// Returns the router with which the node serves its own listener.
    pub(crate) fn router(&self) -> Router {
        router(&self.inner.server, &self.inner.context.local.limits)
    }

    /// Returns the number of requests of peers that are not answered yet.
    pub(crate) fn owes(&self) -> usize {
        self.inner.server.owes()
    }
}

/// Serves peers on the listener, in a task that ends when the node stops serving.
fn serve(node: &Node, listener: TcpListener) {
    let inner = &node.inner;
    let (local, tasks) = (&inner.context.local, &inner.context.tasks);
    let router = router(&inner.server, &local.limits);
    let stop = inner.stop_serving.clone();
    let accepting = transport::start(
        listener,
        ListenerConfig {
            security: local.security.clone(),
            max_connections: local.limits.max_connections,
            counters: Arc::clone(&local.counters),
            tasks: tasks.others.clone(),
            stop: stop.clone(),
        },
    );
    let serving = router.serve_with_incoming_shutdown(accepting, stop.cancelled_owned());
    tasks.others.spawn(async move {
        // `stop` follows the goodbyes. The listener closes connections that do not end by themselves then.
        if let Err(e) = serving.await {
            tracing::error!(error = %e, "the listener for peers ended: peers cannot connect to this node; restart it");
        }
    });
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
