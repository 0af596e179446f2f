//! Start of a node: checks the settings, starts the listener and the tasks, and waits for the first peers.
//!
//! Nothing runs before all settings are checked. A start that fails later drops the [`Node`], which ends what was
//! started.

use std::{
    collections::BTreeSet,
    panic::{catch_unwind, resume_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

#[cfg(feature = "tls")]
use crate::node::security::reload_credentials;
use crate::node::{
    Inner, Node,
    builder::NodeBuilder,
    channels::{EVENT_QUEUE, Feeds, Outputs, Status},
    handover::receive_values,
    membership::{Membership, facts},
    pull::{answer, ping_all, pull},
    security::ChosenSecurity,
    serve_threads::ServeThreads,
    serving::serve,
    supervise::{Asks, supervise},
    tick::{announce, sweep, tick},
};
#[cfg(feature = "tls")]
use crate::transport::Security;
use crate::{
    context::{NodeContext, tasks::Runtimes},
    environment::Variables,
    error::{Error, Kind, Result},
    identity::{Identity, Incarnation, NodeState, PeerId},
    limits::{Limits, MAX_REQUESTS_PER_FRAME, START},
    membership::{
        provider::{Me, PeerSet, Provider, ProviderHandle, Published, Trust},
        stabilizer::{MemberSet, Stabilizer},
        view::View,
    },
    peer::{
        local::LocalNode,
        server::{Server, service::LogRequest},
    },
    protocol::{message::Hello, wire},
    ring,
    runtime::{clock, seed, stats::NodeCounters, sync::Keyed},
    transport::{self, TcpListener},
};

/// Starts a node with these settings.
pub(super) async fn start(mut builder: NodeBuilder) -> Result<Node> {
    builder.limits.check()?;
    let of_user = runtime()?;
    let is_mounted = builder.mounted.is_some();
    let security = std::mem::take(&mut builder.security);
    let security = security.choose(&Variables::of_process(), &builder.identity, is_mounted)?;
    check_addresses(&builder.identity, is_mounted)?;
    // Code of the provider runs on the runtime of the user.
    builder.provider.iter().try_for_each(|provider| check_provider(&**provider, &builder.identity))?;
    let source = builder.provider.as_ref().map(|provider| (Arc::from(provider.name()), provider.trust()));
    if builder.serve_threads == 0 {
        return start_on(builder, security, source, Runtimes { serving: of_user.clone(), of_user }, None).await;
    }
    let threads = ServeThreads::start(builder.serve_threads)?;
    let Some(serving) = threads.handle().cloned() else { return Err(Error::config("serve_threads have ended")) };
    // The sockets and timers of the node belong to the runtime that makes them.
    let starting = start_on(builder, security, source, Runtimes { serving: serving.clone(), of_user }, Some(threads));
    match AbortOnDropHandle::new(serving.spawn(starting)).await {
        Ok(started) => started,
        Err(failed) if failed.is_panic() => resume_unwind(failed.into_panic()),
        Err(_) => Err(Error::new(Kind::Closed, "the threads of the node have ended during its start")),
    }
}

/// Starts a node on `runtimes`. `source` is the name of the provider and its trust.
async fn start_on(
    builder: NodeBuilder,
    security: ChosenSecurity,
    source: Option<(Arc<str>, Trust)>,
    runtimes: Runtimes,
    threads: Option<ServeThreads>,
) -> Result<Node> {
    let mut identity = builder.identity;
    let is_mounted = builder.mounted.is_some();
    let listener = if is_mounted { None } else { Some(listen(&mut identity).await?) };
    // The listener comes first, because certificates name the id, which may be the address.
    let counters = Arc::<NodeCounters>::default();
    let security = security.resolve(&identity, &counters).await?;

    let mut rng = fastrand::Rng::with_seed(builder.seed.unwrap_or_else(seed::random));
    let hands_over = !builder.is_handover_off;
    let hello = hello_of(&identity, &builder.limits, hands_over);
    let stabilizer = Stabilizer::new(facts(&hello), rng.fork());
    let local = Arc::new(LocalNode::new(hello, builder.limits, security, counters));
    let context =
        Arc::new(NodeContext::new(Arc::clone(&local), View::new(1, MemberSet::default()), runtimes, hands_over, rng));
    let (server, arrivals, log_requests) = server(&context);
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
        source.as_ref().map_or(Trust::Authority, |(_, trust)| *trust),
    );
    let node = Node {
        inner: Arc::new(Inner {
            context: Arc::clone(&context),
            identity,
            provider: source.map(|(name, _)| name),
            server: server.clone(),
            commands,
            status: status_feed,
            leaving,
            withdrawn: CancellationToken::new(),
            stop_serving: CancellationToken::new(),
            mounted: builder.mounted,
            _threads: threads.map(|threads| threads.ending_after(&context.tasks.others)),
        }),
    };

    serve_peers(&node, listener)?;
    let inbound = server.inbound();
    run_tasks(&context, server, log_requests);
    let asks = (handle, requests, is_leaving);
    run_provider(&node, builder.provider, asks);
    let outputs = Outputs { links: events, requests: request_feed, me, reached, status };
    let port = node.address().port();
    let membership = Membership::new(Arc::clone(&context), stabilizer, outputs, port, inbound);
    context.tasks.run(membership.run(Feeds {
        provider: provider_feed,
        commands: command_feed,
        events: event_feed,
        arrivals,
    }));
    node.wait_for_first_peers().await?;
    tracing::info!(id = %node.id(), address = %node.address(), "node started");
    Ok(node)
}

/// Makes the server of a node. Returns with it the peers that connect, and the requests for writes.
fn server(context: &NodeContext) -> (Server, mpsc::Receiver<PeerId>, mpsc::Receiver<LogRequest>) {
    let (arrivals, arrival_feed) = mpsc::channel(EVENT_QUEUE);
    let (logs, log_requests) = mpsc::channel(EVENT_QUEUE);
    let tasks = &context.tasks;
    let server = Server::new(
        Arc::clone(&context.local),
        Arc::clone(&context.registry),
        arrivals,
        logs,
        tasks.others.clone(),
        tasks.closing.clone(),
        Keyed(context.random()),
    );
    (server, arrival_feed, log_requests)
}

/// Lets peers connect: on the listener of the node, or to the server of the user in which the service is mounted.
fn serve_peers(node: &Node, listener: Option<TcpListener>) -> Result<()> {
    if let Some(listener) = listener {
        serve(node, listener);
    }
    if node.inner.mounted.as_ref().is_some_and(|mounted| !mounted.begins(&node.inner.server)) {
        return Err(Error::config(
            "the mounted peer service already serves a node, and serves one node only; make another with \
             PeerService::default()",
        ));
    }
    Ok(())
}

/// Starts the tasks of a node that need no channel of the membership.
fn run_tasks(context: &Arc<NodeContext>, server: Server, log_requests: mpsc::Receiver<LogRequest>) {
    let tasks = &context.tasks;
    tasks.run(tick(Arc::clone(context)));
    tasks.run_user_code(sweep(Arc::clone(context)));
    tasks.run(receive_values(Arc::clone(context)));
    tasks.run(pull(Arc::clone(context)));
    tasks.run(ping_all(Arc::clone(context)));
    tasks.run(answer(Arc::clone(context), log_requests));
    tasks.run(announce(Arc::clone(context), server));
    #[cfg(feature = "tls")]
    if let Security::Tls(credentials) = &context.local.security {
        tasks.run(reload_credentials(Arc::clone(context), Arc::clone(credentials)));
    }
}

/// Runs the provider until the node has left. A node without a provider is alone.
fn run_provider(
    node: &Node,
    provider: Option<Arc<dyn Provider>>,
    (handle, requests, is_leaving): (ProviderHandle, Asks, watch::Receiver<bool>),
) {
    let context = &node.inner.context;
    let (local, tasks) = (&context.local, &context.tasks);
    let withdrawn = node.inner.withdrawn.clone();
    match provider {
        Some(provider) => {
            let seed = context.random();
            let run = supervise(provider, handle, requests, Arc::clone(local), is_leaving, seed);
            // `closing` must not cancel this task, because the provider has a second to withdraw.
            let run = async move {
                run.await;
                withdrawn.cancel();
            };
            tasks.others.spawn_on(run, &tasks.runtimes.of_user);
        }
        None => {
            handle.publish(Published::complete(PeerSet::complete(Vec::new())));
            withdrawn.cancel();
        }
    }
}

/// Checks that a provider can announce this node.
fn check_provider(provider: &dyn Provider, identity: &Identity) -> Result<()> {
    let of = |e| Error::caused(Kind::Config, format!("discovery by {} cannot be used: {e}", provider.name()), e);
    provider.check_for(identity).map_err(of)
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

/// Returns the current runtime, or an error if the runtime lacks timers or, on Unix, sockets.
///
/// Tokio has no call that answers this, and panics where timers or sockets are missing. The panic is caught, after the
/// panic hook has printed its message; a build with `panic = "abort"` ends.
fn runtime() -> Result<Handle> {
    let runtime = Handle::try_current().map_err(|e| Error::caused(Kind::Config, "start() needs a tokio runtime", e))?;
    let has_timers = catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO))).is_ok();
    #[cfg(all(unix, not(simulation)))]
    let has_sockets = catch_unwind(|| drop(tokio::net::UnixDatagram::pair())).is_ok();
    #[cfg(not(all(unix, not(simulation))))]
    let has_sockets = true;
    if has_timers && has_sockets {
        return Ok(runtime);
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
