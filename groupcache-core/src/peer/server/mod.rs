//! The server of this node: answers what peers ask from memory or by loading here. It never forwards.
//!
//! One task reads a connection, answers hits at once and collects the loads it waits for; the stream that HTTP/2
//! polls takes the answers out of an outbox. The reader never waits for the writer: a peer that does not read
//! its answers is told `overloaded` once the outbox is full, and is cut off when it does not read even those.

mod authenticate;
mod connection;
mod dispatch;
mod response_queue;

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use dashmap::DashMap;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, Streaming};

use crate::{
    identity::PeerId,
    limits::CLIENT_HELLO,
    peer::{
        group_service::Registry,
        local::{LocalNode, rejection_reason},
        server::{
            authenticate::{Sender, authenticate},
            connection::{Connection, Lifetime, Service},
            dispatch::{Dispatch, dispatch, resolve},
            response_queue::{Outbound, ResponseQueue},
        },
    },
    protocol::wire::{self, GetRequest, Incoming, UnaryAnswer},
    runtime::{
        log_limit::LogRateLimit,
        sync::{Keyed, sharded},
    },
    transport::RequestGuard,
};

/// The peer service of a node.
#[derive(Clone)]
pub(crate) struct Server(Arc<Inner>);

struct Inner {
    service: Arc<Service>,
    connections: DashMap<u64, Arc<ResponseQueue>, Keyed>,
    next_connection: AtomicU64,
    open: AtomicUsize,
    tasks: TaskTracker,
}

impl Server {
    /// `arrivals` is told who has connected to this node, and who speaks again after a silence.
    pub(crate) fn new(
        local: Arc<LocalNode>,
        registry: Arc<Registry>,
        arrivals: mpsc::Sender<PeerId>,
        tasks: TaskTracker,
        closing: CancellationToken,
        hasher: Keyed,
    ) -> Self {
        Self(Arc::new(Inner {
            service: Arc::new(Service {
                local,
                registry,
                arrivals,
                closing,
                hasher,
                waiting: Arc::default(),
                lines: LogRateLimit::default(),
            }),
            connections: sharded(hasher),
            next_connection: AtomicU64::new(1),
            open: AtomicUsize::new(0),
            tasks,
        }))
    }

    /// The service with the limits of this node.
    pub(crate) fn service(&self) -> wire::peer_server::PeerServer<Self> {
        let max = self.0.service.local.limits.max_message_bytes();
        wire::peer_server::PeerServer::new(self.clone()).max_decoding_message_size(max).max_encoding_message_size(max)
    }

    /// Whether both are the server of one node.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Who sent a request.
    fn sender(&self, extensions: &tonic::Extensions) -> Result<Sender, Status> {
        // The server that it is mounted in may outlive the node.
        if self.0.service.closing.is_cancelled() {
            return Err(Status::unavailable("this node was shut down"));
        }
        authenticate(&self.0.service.local.security, extensions).map_err(|status| self.turned_away(status))
    }

    fn turned_away(&self, status: Status) -> Status {
        let service = &self.0.service;
        service.local.counters.unauthenticated.up();
        service.lines.write(|suppressed| {
            tracing::warn!(error = status.message(), suppressed, "a request was refused: who sent it is not known");
        });
        status
    }

    /// Something that every frame carries has changed: send it.
    pub(crate) fn nudge(&self) {
        self.0.connections.iter().for_each(|queue| queue.wake());
    }

    /// Requests of peers that are not answered yet.
    pub(crate) fn owes(&self) -> usize {
        self.0.connections.iter().map(|queue| queue.owes()).sum()
    }

    /// Whether a goodbye has yet to be taken by its connection.
    pub(crate) fn owes_goodbye(&self) -> bool {
        self.0.connections.iter().any(|queue| queue.owes_goodbye())
    }

    /// Tells all peers that this node leaves for good.
    pub(crate) fn say_goodbye(&self) {
        self.0.connections.iter().for_each(|queue| queue.say_goodbye());
    }
}

#[tonic::async_trait]
impl wire::peer_server::Peer for Server {
    type ConnectStream = Outbound;

    async fn connect(&self, request: tonic::Request<Streaming<Incoming>>) -> Result<tonic::Response<Outbound>, Status> {
        let server = &self.0;
        // Before it is looked at who sent it: what is replaced from now on, this connection was let in by.
        let security = server.service.local.security.clone();
        let generation = security.generation();
        let sender = self.sender(request.extensions())?;
        // Limits are those of a connection: a second stream on it would have them twice.
        let is_first = sender.session.as_ref().is_none_or(|session| session.takes_its_stream());
        if !is_first {
            server.service.local.counters.rejected.up();
            return Err(Status::resource_exhausted("a connection carries one Connect stream; open another connection"));
        }
        let place = Place::take(server)?;
        let mut inbound = request.into_inner();
        let first = timeout(CLIENT_HELLO, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello within 5 s"))??
            .and_then(|mut frame| frame.hello().map(|hello| (hello, frame)));
        let Some((hello, frame)) = first else {
            server.service.local.counters.rejected.up();
            return Err(Status::failed_precondition("the first frame of a connection carries a Hello"));
        };
        let hello = hello.and_then(|hello| match rejection_reason(&server.service.local.hello(), &hello) {
            Some(why) => Err(wire::BadHello(why)),
            None => Ok(hello),
        });
        let hello = hello.map_err(|bad| {
            server.service.local.counters.rejected.up();
            Status::failed_precondition(bad.0)
        })?;
        if let Some(why) = sender.caller.rejection_reason(&hello.id) {
            return Err(self.turned_away(Status::unauthenticated(why)));
        }
        server.service.local.counters.accepted.up();
        server.service.has_come(&hello.id);
        let in_use = sender.session.as_ref().map(RequestGuard::begin);
        let queue = Arc::new(ResponseQueue::new(Arc::clone(&server.service.local)));
        let number = server.next_connection.fetch_add(1, Relaxed);
        server.connections.insert(number, Arc::clone(&queue));
        let lifetime = match sender.session {
            Some(session) => Lifetime::Ours(session.retired().clone()),
            None => Lifetime::Mounted { security, generation, number },
        };
        let connection = Connection::new(Arc::clone(&server.service), Arc::clone(&queue), &hello);
        let registered = Registered(Arc::clone(server), number);
        server.tasks.spawn(async move {
            let (_place, _registered, _in_use) = (place, registered, in_use);
            connection.serve(inbound, frame, hello, lifetime).await;
        });
        Ok(tonic::Response::new(Outbound(queue)))
    }

    async fn get(&self, request: tonic::Request<GetRequest>) -> Result<tonic::Response<UnaryAnswer>, Status> {
        let server = &self.0;
        let sender = self.sender(request.extensions())?;
        let (cluster, group, format, request) = wire::unary(request.into_inner());
        if cluster != server.service.local.hello().cluster {
            return Err(Status::failed_precondition("this node belongs to another cluster"));
        }
        let _in_use = sender.session.as_ref().map(RequestGuard::begin);
        let group = resolve(&server.service.registry, &group, format);
        let mut waiting = None;
        let may_wait = || {
            waiting = server.service.may_wait();
            waiting.is_some()
        };
        let answer = match dispatch(&server.service, &group, request, None, may_wait) {
            Dispatch::Response(answer) => answer,
            Dispatch::Wait(answering, _) => answering.await,
        };
        Ok(tonic::Response::new(UnaryAnswer(answer)))
    }
}

/// One of the connections that may be open at once.
struct Place(Arc<Inner>);

impl Place {
    fn take(server: &Arc<Inner>) -> Result<Self, Status> {
        let place = Self(Arc::clone(server)); // counts down again when it is dropped
        if server.open.fetch_add(1, Relaxed) >= server.service.local.limits.max_connections {
            server.service.local.counters.rejected.up();
            return Err(Status::resource_exhausted("this node has as many connections as it allows"));
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// Forgets a connection however its task ends.
struct Registered(Arc<Inner>, u64);

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some((_, queue)) = self.0.connections.remove(&self.1) {
            queue.close(None);
        }
    }
}
