//! Builds and starts a node.

use std::{collections::BTreeSet, fmt, sync::Arc};

use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;

#[cfg(feature = "tls")]
use crate::node::security::keep_up_to_date;
use crate::node::{
    Inner, Node,
    handover::take_over,
    membership::{EVENT_QUEUE, Feeds, Membership, Status, facts},
    security::Wanted,
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
    error::{Error, Kind, Result},
    identity::{Identity, Incarnation, NodeState},
    limits::{Limits, MAX_REQUESTS_PER_FRAME, START},
    membership::{
        provider::{Me, PeerSet, Provider, ProviderHandle, Published},
        stabilizer::{MemberSet, Stabilizer},
        view::View,
    },
    peer::{local::LocalNode, mount::PeerService, server::Server},
    protocol::{message::Hello, wire},
    ring,
    runtime::{clock, sync::Keyed},
    transport::{self, ListenerConfig, TcpListener},
};

/// Streams that one connection may carry: the data plane is one, the rest are unary gets of clients that are no peers.
/// Begun and answered all at once, so many take a thread about half a millisecond, for which others wait.
const MAX_STREAMS: u32 = 32;
/// Headers of one request; ours are a few hundred bytes.
const MAX_HEADER_LIST: u32 = 16 << 10;

/// Collects what a node needs; made by [`Node::builder`].
#[must_use = "a node exists once start() is called"]
#[derive(Default)]
pub struct NodeBuilder {
    identity: Identity,
    provider: Option<Arc<dyn Provider>>,
    limits: Limits,
    security: Wanted,
    mounted: Option<PeerService>,
    seed: Option<u64>,
    keeps_to_itself: bool,
}

impl NodeBuilder {
    /// Who this node is and where it listens. Default: a free port of loopback, and its address as its id.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = identity;
        self
    }

    /// Who finds the peers. Default: nobody; the node serves alone.
    pub fn provider(mut self, provider: impl Provider) -> Self {
        self.provider = Some(Arc::new(provider));
        self
    }

    /// What the node allows. Default: [`Limits::default`].
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Peers prove with certificates that you bring who they are, and are let in by name. Default: none, on loopback
    /// only; see also `cluster_key`.
    #[cfg(feature = "tls")]
    pub fn mutual_tls(mut self, tls: MutualTls) -> Self {
        self.security.is_ambiguous |= self.security.source.is_some();
        self.security.source = Some(Source::Certificates(tls));
        self
    }

    /// Peers prove that they have the same key, and need nothing else. Default: `GROUPCACHE_CLUSTER_KEY` or
    /// `GROUPCACHE_CLUSTER_KEY_FILE` of the environment, where one is set.
    #[cfg(feature = "tls")]
    pub fn cluster_key(mut self, key: ClusterKey) -> Self {
        self.security.is_ambiguous |= self.security.source.is_some();
        self.security.source = Some(Source::Key(key));
        self
    }

    /// Lets the node listen on an address that others can reach, without encryption and without knowing who calls.
    ///
    /// Whoever reaches that address reads the cache and can fill it with what they like. `GROUPCACHE_INSECURE=1`
    /// in the environment says the same. Not needed on loopback.
    pub fn insecure(mut self) -> Self {
        self.security.is_insecure = true;
        self
    }

    /// Serves peers in a server that you have, and not on a port of the node's own.
    ///
    /// The listening address of the identity is then where peers dial that server; see [`PeerService`].
    pub fn mount(mut self, service: &PeerService) -> Self {
        self.mounted = Some(service.clone());
        self
    }

    /// Whether values change hands when keys do: a node asks the former owner of a key before it loads it, and what a node
    /// that leaves has in memory is taken over by those that own it then. Who comes takes over what was used in the last
    /// quarter of a minute, about, and the rest when the owners have been the same for 35 s. Default true.
    ///
    /// Without it each change of the cluster's members loads a share of all values again, as classic groupcache does;
    /// there is little reason for that but to compare. A node that is told so neither asks nor is asked.
    pub fn handover(mut self, handover: bool) -> Self {
        self.keeps_to_itself = !handover;
        self
    }

    /// Seeds the node's random numbers (jitter, hash keys), so that a simulation repeats itself. Default: random.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Listens, finds the peers, and returns when the first of them have answered, at most about two seconds later.
    ///
    /// Must be called within a tokio runtime. A node whose discovery does not answer yet starts too: it serves
    /// alone until the peers are found.
    ///
    /// # Errors
    /// [`is_config`](Error::is_config) when a limit makes no sense, the address is taken or cannot be listened on,
    /// others can reach it and neither certificates nor a key nor [`insecure`](Self::insecure) say who may, certificates
    /// or keys cannot be used, or another live node has the same id; the text says what to change. Dropping the future ends the node again.
    pub async fn start(self) -> Result<Node> {
        self.limits.check()?;
        let mut identity = self.identity;
        let runtime =
            Handle::try_current().map_err(|e| Error::caused(Kind::Config, "start() needs a tokio runtime", e))?;
        let is_mounted = self.mounted.is_some();
        let security = self.security.choose(&identity, is_mounted)?;
        check_addresses(&identity, is_mounted)?;
        let listener = if is_mounted { None } else { Some(listen(&mut identity).await?) };
        // After listening: certificates name the id, which may be the address.
        let security = security.settle(&identity).await?;

        let mut rng = self.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        let hands_over = !self.keeps_to_itself;
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
        let server = Server::new(
            Arc::clone(&local),
            Arc::clone(&context.registry),
            arrivals,
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
        let (asks, ask_feed) = watch::channel(None);
        let (handle, provider_feed) = ProviderHandle::new(announced, is_leaving.clone(), reached_feed);
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
            return Err(Error::config("a peer service serves one node; make another with PeerService::default()"));
        }
        tasks.run(tick(Arc::clone(&context)));
        tasks.run(sweep(Arc::clone(&context)));
        tasks.run(take_over(Arc::clone(&context)));
        tasks.run(announce(Arc::clone(&context), server));
        #[cfg(feature = "tls")]
        if let Security::Tls(keeper) = &local.security {
            tasks.run(keep_up_to_date(Arc::clone(&context), Arc::clone(keeper)));
        }
        let withdrawn = node.inner.withdrawn.clone();
        match self.provider {
            Some(provider) => {
                let seed = context.random();
                let run = supervise(provider, handle, asks, Arc::clone(&local), is_leaving, seed);
                // Not one that `closing` cuts off: it has a second to withdraw.
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
        let membership = Membership::new(Arc::clone(&context), stabilizer, events, ask_feed, me, reached, status);
        tasks.run(membership.run(Feeds {
            provider: provider_feed,
            commands: command_feed,
            events: event_feed,
            arrivals: arrival_feed,
        }));
        node.settled().await?;
        tracing::info!(id = %node.id(), address = %node.address(), "started");
        Ok(node)
    }
}

impl Node {
    /// Waits until the first peers are known; tells of another node with this id.
    async fn settled(&self) -> Result<()> {
        let mut status = self.inner.status.clone();
        let settled = status.wait_for(|status| status.is_ready || status.rival.is_some());
        let rival = match timeout(START, settled).await {
            Ok(Ok(status)) => status.rival.clone(),
            Ok(Err(_)) => return Err(self.closed()),
            Err(_) => None, // discovery takes its time: serve alone meanwhile
        };
        match rival {
            None => Ok(()),
            Some(at) => Err(Error::config(format!(
                "another live node answers to the id {} at {at:?}; give each node its own NODE_NAME",
                self.id()
            ))),
        }
    }
}

/// Where peers will reach this node, and that they can.
fn check_addresses(identity: &Identity, is_mounted: bool) -> Result<()> {
    let listen = identity.listen();
    if is_mounted && listen.port() == 0 && !identity.is_named_and_advertised() {
        return Err(Error::config(
            "a node whose peer service is mounted must be told where peers dial: Identity::new(the address of your \
             server), or an id and with_advertised([...])",
        ));
    }
    if listen.ip().is_unspecified() && !identity.is_named_and_advertised() {
        return Err(Error::config(format!(
            "{listen} is no address that peers can dial or tell apart; listen on the address of one interface (NODE_IP), \
             or give the node an id and with_advertised([...])"
        )));
    }
    Ok(())
}

async fn listen(identity: &mut Identity) -> Result<TcpListener> {
    let wanted = identity.listen();
    let cannot = |e: std::io::Error| {
        let text = format!(
            "cannot listen for peers on {wanted}: the port is taken, or the address is another host's; choose another \
             GROUP_PORT or NODE_IP"
        );
        Error::caused(Kind::Config, text, e)
    };
    let listener = transport::listen(wanted).await.map_err(cannot)?;
    identity.bound_to(listener.local_addr().map_err(cannot)?);
    Ok(listener)
}

fn hello_of(identity: &Identity, limits: &Limits, hands_over: bool) -> Hello {
    Hello {
        cluster: identity.cluster().to_owned(),
        id: identity.id(),
        expected: None,
        incarnation: Incarnation(clock::wall_clock_ms()),
        state: NodeState::Joining,
        weight: identity.weight(),
        zone: identity.zone().into(),
        addresses: identity.addresses(),
        ring_algorithm: ring::ALGORITHM,
        fingerprint: 0,
        max_requests_per_frame: MAX_REQUESTS_PER_FRAME,
        max_value_bytes: limits.max_value_bytes,
        groups: Vec::new(),
        features: if hands_over { wire::features::HANDOVER } else { 0 },
    }
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

/// HTTP/2 with our limits, and what it serves.
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
    /// As it serves its own connections.
    pub(crate) fn router(&self) -> Router {
        router(&self.inner.server, &self.inner.context.local.limits)
    }

    /// Requests of peers that are not answered yet.
    pub(crate) fn owes(&self) -> usize {
        self.inner.server.owes()
    }
}

/// Serves peers until the node stops.
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
        // `stop` is the end of the goodbyes; connections that do not end by themselves then are cut by the listener.
        if let Err(e) = serving.await {
            tracing::error!(error = %e, "the listener for peers ended");
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
