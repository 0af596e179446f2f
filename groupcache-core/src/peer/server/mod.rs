//! Server of the local node: answers requests of peers from memory or with a load on this node, and never forwards
//! them.
//!
//! A task reads each connection, answers hits at once and collects the loads that requests wait for. The stream that
//! HTTP/2 polls takes the responses out of a [`ResponseQueue`]. While the queue is full, the reader waits as long as
//! the peer takes responses. A peer that takes none for a second is answered `overloaded`, and its connection ends when
//! it does not read even those.
//!
//! `authenticate` identifies the sender of a request, `connection` reads frames, and `dispatch` chooses the response.

mod authenticate;
mod connection;
mod dispatch;
pub(crate) mod inbound;
mod received_body;
mod response_queue;
pub(crate) mod service;

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use dashmap::DashMap;
use futures_util::FutureExt;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, Streaming, codegen::http::HeaderMap};

use crate::{
    identity::{Instance, PeerId},
    limits::{CLIENT_HELLO, MEMORY_PARTS, VALUES_TO_DECODE},
    peer::{
        group_service::Registry,
        local::{LocalNode, rejection_reason},
        server::{
            authenticate::{Sender, authenticate},
            connection::{Connection, Lifetime},
            dispatch::{Dispatch, dispatch, resolve},
            inbound::InboundPeers,
            received_body::Counted,
            response_queue::{Outbound, ResponseQueue},
            service::{LogReaders, Service},
        },
    },
    protocol::wire::{self, GetRequest, Incoming, UnaryAnswer},
    runtime::{
        byte_budget::ByteBudget,
        log_limit::LogRateLimit,
        memory_limit,
        sync::{Keyed, sharded},
    },
    transport::{self, RequestGuard, handshake::Caller},
};

/// The peer service of a node.
#[derive(Clone)]
pub(crate) struct Server(Arc<Inner>);

struct Inner {
    service: Arc<Service>,
    /// Queues of the open connections, by number of the connection.
    connections: DashMap<u64, Arc<ResponseQueue>, Keyed>,
    inbound: Arc<InboundPeers>,
    next_connection: AtomicU64,
    /// Number of open connections of a server of the user, those before their Hello included.
    open: AtomicUsize,
    tasks: TaskTracker,
}

impl Server {
    /// Makes a server that reports to `arrivals` each peer that connects, or sends again after a silence, and that
    /// sends to `logs` the requests for writes.
    pub(crate) fn new(
        local: Arc<LocalNode>,
        registry: Arc<Registry>,
        arrivals: mpsc::Sender<PeerId>,
        logs: LogReaders,
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
                values: ByteBudget::new(memory_limit::part(MEMORY_PARTS, VALUES_TO_DECODE)),
                lines: LogRateLimit::default(),
                logs,
            }),
            connections: sharded(hasher),
            inbound: Arc::default(),
            next_connection: AtomicU64::new(1),
            open: AtomicUsize::new(0),
            tasks,
        }))
    }

    /// Returns the gRPC service with the message limits of this node.
    pub(crate) fn service(&self) -> Counted<wire::peer_server::PeerServer<Self>> {
        let max = self.0.service.local.limits.max_message_bytes();
        let service = wire::peer_server::PeerServer::new(self.clone());
        Counted(service.max_decoding_message_size(max).max_encoding_message_size(max))
    }

    /// Returns the table of the peers that are connected to this node.
    pub(crate) fn inbound(&self) -> Arc<InboundPeers> {
        Arc::clone(&self.0.inbound)
    }

    /// Returns whether both are the server of the same node.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns the sender of a request, or the status with which the request is refused.
    fn sender(&self, extensions: &tonic::Extensions) -> Result<Sender, Status> {
        // A server in which the service is mounted may outlive the node.
        if self.0.service.closing.is_cancelled() {
            return Err(Status::unavailable("this node was shut down; send the request to another node"));
        }
        authenticate(&self.0.service.local.security, extensions).map_err(|status| self.refuse(status))
    }

    /// Counts and logs a request without an authenticated sender, and returns its status.
    fn refuse(&self, status: Status) -> Status {
        let service = &self.0.service;
        service.local.counters.unauthenticated.up();
        service.lines.write(|suppressed| {
            tracing::warn!(
                error = status.message(),
                suppressed,
                "a request was refused because its sender is not authenticated; compare the trust of both nodes"
            );
        });
        status
    }

    /// Wakes all connections, so that each sends the changed Hello.
    pub(crate) fn nudge(&self) {
        self.0.connections.iter().for_each(|queue| queue.wake());
    }

    /// Returns the number of requests of peers that have no response yet, plus the responses that are not sent yet.
    pub(crate) fn owes(&self) -> usize {
        self.0.connections.iter().map(|queue| queue.owes()).sum()
    }

    /// Returns whether any connection has not taken its goodbye yet.
    pub(crate) fn owes_goodbye(&self) -> bool {
        self.0.connections.iter().any(|queue| queue.owes_goodbye())
    }

    /// Sends a goodbye on each connection with its next frame.
    pub(crate) fn say_goodbye(&self) {
        self.0.connections.iter().for_each(|queue| queue.say_goodbye());
    }
}

#[tonic::async_trait]
impl wire::peer_server::Peer for Server {
    type ConnectStream = Outbound;

    async fn connect(&self, request: tonic::Request<Streaming<Incoming>>) -> Result<tonic::Response<Outbound>, Status> {
        let server = &self.0;
        // Read before the sender is checked, so that a replacement of the certificates from here on ends this
        // connection.
        let security = server.service.local.security.clone();
        let generation = security.generation();
        let sender = self.sender(request.extensions())?;
        // Limits apply to a connection, and a second stream on it would double them.
        let is_first = sender.session.as_ref().is_none_or(|session| session.takes_its_stream());
        if !is_first {
            server.service.local.counters.rejected.up();
            return Err(Status::resource_exhausted("a connection carries one Connect stream; open another connection"));
        }
        // The listener of the node has its own places, and makes room in them.
        let slot = if sender.session.is_none() { Some(ConnectionSlot::take(server)?) } else { None };
        let body = request.extensions().get::<Arc<transport::Body>>().cloned();
        let body = body.unwrap_or_else(|| transport::Body::new(None, &HeaderMap::new()));
        let mut inbound = request.into_inner();
        body.headers_dropped();
        let first = timeout(CLIENT_HELLO, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello within 5 s; send one with the first frame"))??
            .and_then(|mut frame| frame.hello().map(|hello| (hello, frame)));
        let Some((hello, frame)) = first else {
            server.service.local.counters.rejected.up();
            return Err(Status::failed_precondition("the first frame carries no Hello; send one with it"));
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
            return Err(self.refuse(Status::unauthenticated(why)));
        }
        // Before the answer to the Hello, which shows the strikes.
        server.service.local.witnesses.arrived(&hello);
        server.service.local.counters.accepted.up();
        let in_use = sender.session.as_ref().map(RequestGuard::begin);
        let queue = Arc::new(ResponseQueue::new(Arc::clone(&server.service.local), &hello));
        let number = server.next_connection.fetch_add(1, Relaxed);
        server.connections.insert(number, Arc::clone(&queue));
        let lifetime = match sender.session {
            Some(session) => Lifetime::Listener(session.retired().clone()),
            None => Lifetime::Mounted { security, generation, number },
        };
        let is_proven = matches!(sender.caller, Caller::Verified { .. });
        server.inbound.insert(number, &hello, is_proven);
        // After the insertion, because the membership compares the addresses that the peer says with those of targets.
        server.service.report_arrival(&hello.id);
        let (service, outbound) = (Arc::clone(&server.service), Arc::clone(&queue));
        let connection = Connection::new(
            Arc::clone(&server.service),
            Arc::clone(&queue),
            &hello,
            (Arc::clone(&server.inbound), number),
        );
        let local = &server.service.local;
        local.writes.greeted(&hello, true, local.clock.read_ms());
        local.quarantine.is_alive(&hello.instance(), local.clock.read_ms());
        let registration = Registration(Arc::clone(server), number, hello.instance());
        server.tasks.spawn(async move {
            let (_slot, _registration, _in_use) = (slot, registration, in_use);
            let peer = hello.id.clone();
            let served = AssertUnwindSafe(connection.serve(inbound, body, frame, hello, lifetime)).catch_unwind().await;
            if served.is_err() {
                // The status ends the stream, so that the peer need not wait for the silence limit.
                queue.close(Some(Status::internal("the task of the connection panicked")));
                service.local.counters.connection_panics.up();
                tracing::error!(%peer, "the task that serves a connection panicked; the connection is closed");
            }
        });
        Ok(tonic::Response::new(Outbound(outbound)))
    }

    async fn get(&self, request: tonic::Request<GetRequest>) -> Result<tonic::Response<UnaryAnswer>, Status> {
        let server = &self.0;
        let sender = self.sender(request.extensions())?;
        let (cluster, group, format, request) = wire::unary(request.into_inner());
        if cluster != server.service.local.hello().cluster {
            return Err(Status::failed_precondition("this node belongs to another cluster; compare the names"));
        }
        let _in_use = sender.session.as_ref().map(RequestGuard::begin);
        let group = resolve(&server.service.registry, &group, format);
        let mut waiting = None;
        let may_wait = || {
            waiting = server.service.take_waiting_slot();
            waiting.is_some()
        };
        let answer = match dispatch(&server.service, &group, request, None, may_wait) {
            Dispatch::Response(answer) => answer,
            Dispatch::Wait(response, _) => response.await,
        };
        Ok(tonic::Response::new(UnaryAnswer(answer)))
    }
}

/// Slot of one of the connections that may be open at once. Dropping it gives the slot back.
struct ConnectionSlot(Arc<Inner>);

impl ConnectionSlot {
    fn take(server: &Arc<Inner>) -> Result<Self, Status> {
        let slot = Self(Arc::clone(server)); // its drop decrements the count, also after a refusal
        if server.open.fetch_add(1, Relaxed) >= server.service.local.limits.max_connections {
            server.service.local.counters.rejected.up();
            return Err(Status::resource_exhausted("this node has its maximum of connections; raise max_connections"));
        }
        Ok(slot)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// Entry of a connection in the table. Dropping it removes and closes the connection, however its task ends.
struct Registration(Arc<Inner>, u64, Instance);

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some((_, queue)) = self.0.connections.remove(&self.1) {
            queue.close(None);
        }
        self.0.inbound.remove(self.1);
        let local = &self.0.service.local;
        local.writes.disconnected(&self.2, local.clock.read_ms());
    }
}
