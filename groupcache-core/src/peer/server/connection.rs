//! Server side of a connection that a peer opened: its requests, the loads that they wait for, and the `Pending`
//! responses meanwhile.
//!
//! A task reads the connection and owns its state. Responses go to the [`ResponseQueue`], from which another task
//! writes them.

use std::{collections::VecDeque, pin::Pin, sync::Arc};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::{
    identity::{Instance, PeerId},
    limits::{BATCH_BYTES, MAX_REQUESTS_PER_FRAME, PENDING_AFTER, RETRY_AFTER, SILENCE, VALUES_TO_DECODE_PER_PEER},
    peer::server::{
        dispatch::{Asker, Dispatch, ResolvedGroup, Retry, dispatch, resolve},
        inbound::InboundPeers,
        response_queue::ResponseQueue,
        service::Service,
    },
    protocol::{
        message::{GroupName, Hello, Op, Request, Response},
        wire::{Incoming, answer_bytes, features},
    },
    runtime::{byte_budget::ByteBudget, sync::Map, token_bucket::TokenBucket},
    transport::{self, IDLE_LIMIT, Security},
};

/// Maximum number of requests of a frame that are answered before their responses are queued. Long responses end the
/// batch at [`BATCH_BYTES`] already.
const MAX_ANSWERED_AT_ONCE: usize = 64;

/// Number of requests in a batch from which the reader yields, so that the responses are sent and the peer processes
/// them while the reader goes on.
const YIELD_FROM: usize = 8;

/// Loads and sets that requests wait for, each with the id of its request.
type Loads = FuturesUnordered<Pin<Box<dyn Future<Output = (u64, Response)> + Send>>>;

/// Event that ends a connection whatever its peer does.
pub(crate) enum Lifetime {
    /// Retirement by the node's own listener, which cancels the token.
    Listener(CancellationToken),
    /// Mounted in a server of the user: replacement of the certificates and keys of `generation`. The `number` of the
    /// connection spreads the ends, so that not all connections end at the same moment.
    Mounted { security: Security, generation: u64, number: u64 },
}

impl Lifetime {
    async fn ends(&self) {
        match self {
            Self::Listener(retired) => retired.cancelled().await,
            Self::Mounted { security, generation, number } => {
                security.replaced(*generation, (number.wrapping_mul(7919) % 1000) as u32).await;
            }
        }
    }

    fn is_mounted(&self) -> bool {
        matches!(self, Self::Mounted { .. })
    }
}

/// Fate of a connection after a frame.
enum Flow {
    Continue,
    /// End of the connection without an error.
    Close,
}

/// State of one connection that a peer opened, owned by the task that reads it.
pub(crate) struct Connection {
    service: Arc<Service>,
    queue: Arc<ResponseQueue>,
    peer: PeerId,
    /// Peer in the incarnation that names its log.
    writer: Instance,
    /// Groups of the peer by the peer's own indices, resolved against the local registry as of `registry_version`.
    groups: Map<u32, (GroupName, ResolvedGroup)>,
    registry_version: u64,
    loads: Loads,
    /// Bytes of the values in sets of the peer that wait to be decoded.
    values: Arc<ByteBudget>,
    /// Requests that wait for a load, or for room for its value. A get has a [`Retry`] that reads memory again.
    waiting: Map<u64, Option<Retry>>,
    /// Ids of gets that wait for room after their load has ended. Only the ids are kept, because many loads may end at
    /// once and their values must not be in memory twice until they are sent.
    loaded: VecDeque<u64>,
    /// Ids of requests with the time at which each is due a `Pending`, in order of time.
    pending: VecDeque<(Instant, u64)>,
    /// Maximum size of a value that the peer accepts.
    max_value_bytes: usize,
    invalidations: TokenBucket,
    /// Table of connected peers, and the number of this connection in it.
    inbound: (Arc<InboundPeers>, u64),
    /// Fingerprint of the peer's ring in its last frame.
    fingerprint: u64,
    /// Whether the peer expects another node here. The Hello of the local node names its real id.
    is_wrong_peer: bool,
    /// Whether the peer understands notices of loads.
    is_witness: bool,
}

impl Connection {
    pub(crate) fn new(
        service: Arc<Service>,
        queue: Arc<ResponseQueue>,
        hello: &Hello,
        inbound: (Arc<InboundPeers>, u64),
    ) -> Self {
        let hasher = service.hasher;
        let invalidations = f64::from(service.local.limits.max_invalidations_per_second);
        let mut connection = Self {
            service,
            queue,
            peer: hello.id.clone(),
            writer: hello.instance(),
            groups: Map::with_hasher(hasher),
            registry_version: 0,
            loads: Loads::new(),
            values: ByteBudget::new(VALUES_TO_DECODE_PER_PEER),
            waiting: Map::with_hasher(hasher),
            loaded: VecDeque::new(),
            pending: VecDeque::new(),
            max_value_bytes: hello.max_value_bytes,
            invalidations: TokenBucket::new(invalidations, invalidations),
            inbound,
            fingerprint: hello.fingerprint,
            is_wrong_peer: false,
            is_witness: hello.features & features::QUARANTINE != 0,
        };
        connection.is_wrong_peer =
            hello.expected.as_ref().is_some_and(|expected| *expected != connection.service.local.hello().id);
        connection.resolve_groups(&hello.groups);
        connection
    }

    /// Resolves the groups of the peer against the local registry.
    fn resolve_groups(&mut self, groups: &[GroupName]) {
        self.registry_version = self.service.registry.version();
        self.groups.clear();
        for group in groups {
            let resolved = resolve(&self.service.registry, &group.name, group.format);
            self.groups.insert(group.index, (group.clone(), resolved));
        }
    }

    /// Serves the connection until it ends. `first` is the frame that carried `hello`, and `body` counts what `inbound`
    /// has received.
    pub(crate) async fn serve(
        mut self,
        mut inbound: Streaming<Incoming>,
        body: Arc<transport::Body>,
        first: Incoming,
        hello: Hello,
        lifetime: Lifetime,
    ) {
        let mut ends = std::pin::pin!(lifetime.ends());
        let mut last_read = Instant::now();
        let is_mounted = lifetime.is_mounted();
        let closing = self.service.closing.clone();
        let mut next = Some(first);
        loop {
            if let Some(frame) = next.take() {
                let bytes = frame.bytes;
                let handled = self.handle(frame, &hello, ends.as_mut()).await;
                body.handled(bytes);
                match handled {
                    Ok(Flow::Continue) => {}
                    Ok(Flow::Close) => return self.queue.close(None),
                    Err(status) => {
                        self.service.local.counters.rejected.up();
                        return self.queue.close(Some(status));
                    }
                }
            }
            let pending_at = self.pending.front().map(|(due, _)| *due);
            tokio::select! {
                biased;
                () = closing.cancelled() => return self.queue.close(None),
                // The peer reconnects with its current certificates and repeats the requests without a response.
                () = &mut ends => return self.queue.close(None),
                Some((id, answer)) = self.loads.next(), if !self.loads.is_empty() => self.on_loaded(id, answer),
                () = self.queue.room(), if !self.loaded.is_empty() => self.send_loaded(),
                frame = inbound.message() => match frame {
                    Ok(Some(frame)) => {
                        next = Some(frame);
                        let previous = std::mem::replace(&mut last_read, Instant::now());
                        if last_read - previous > SILENCE {
                            self.service.report_arrival(&self.peer); // the link to the peer may have closed meanwhile
                        }
                    }
                    Ok(None) => return self.queue.close(None),
                    Err(status) => {
                        self.service.local.counters.rejected.up();
                        return self.queue.close(Some(status)); // the decoder's text: too large, or malformed
                    }
                },
                () = sleep_until(pending_at.unwrap_or_else(Instant::now)), if pending_at.is_some() => self.send_pending(),
                () = self.queue.abandoned() => return,
                // The node's own listener counts bytes instead, without a timer for each frame.
                () = sleep_until(last_read + IDLE_LIMIT), if is_mounted => return self.queue.close(None),
            }
        }
    }

    /// Handles a frame: answers the requests that memory can answer, and begins to wait for the others.
    ///
    /// A peer that reads its responses slowly delays the frame, but not the end of the connection.
    async fn handle(
        &mut self,
        mut frame: Incoming,
        hello: &Hello,
        mut ends: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Flow, Status> {
        match frame.hello() {
            Some(Ok(again)) if again.id == hello.id => {
                self.resolve_groups(&again.groups);
                self.service.local.writes.greeted(&again, false, self.service.local.clock.read_ms());
                self.inbound.0.update(self.inbound.1, |peer| {
                    peer.state = again.state;
                    peer.addresses = again.addresses;
                });
            }
            Some(Ok(_)) => {
                return Err(Status::failed_precondition(
                    "a later Hello names another node; open a new connection for it",
                ));
            }
            Some(Err(bad)) => return Err(Status::failed_precondition(bad.0)),
            None => {}
        }
        if self.registry_version != self.service.registry.version() {
            let groups: Vec<_> = self.groups.values().map(|(name, _)| name.clone()).collect();
            self.resolve_groups(&groups);
        }
        if frame.fingerprint != self.fingerprint {
            self.fingerprint = frame.fingerprint;
            self.inbound.0.update(self.inbound.1, |peer| peer.fingerprint = frame.fingerprint);
        }
        let service = Arc::clone(&self.service);
        self.take_knowledge(&mut frame);
        // The window spans the whole frame, so that the loads of its requests form batches.
        let window = service.registry.takes_many();
        let mut requests = frame.requests.into_iter().enumerate();
        while requests.len() > 0 {
            let should_yield = self.answer_batch(&mut requests);
            if self.queue.is_overrun() {
                self.queue.clear();
                return Err(Status::resource_exhausted("the responses are not read; read them while sending requests"));
            }
            if should_yield {
                tokio::task::yield_now().await;
            }
            loop {
                tokio::select! {
                    biased;
                    () = self.queue.room() => break,
                    // Loads that end meanwhile are taken too; otherwise the values of all of them would be kept.
                    Some((id, answer)) = self.loads.next(), if !self.loads.is_empty() => self.on_loaded(id, answer),
                    () = service.closing.cancelled() => return Ok(Flow::Close),
                    () = &mut ends => return Ok(Flow::Close),
                    () = self.queue.abandoned() => return Ok(Flow::Close),
                }
            }
        }
        drop(window);
        for id in frame.cancels {
            self.waiting.remove(&id); // the load goes on, because it belongs to no single request
        }
        self.queue.set_waiting(self.waiting.len());
        // Here too, because the timer has no turn while frames arrive without a pause.
        self.send_pending();
        Ok(Flow::Continue)
    }

    /// Takes what a frame shows of the writes that the peer has applied, and answers its ping.
    fn take_knowledge(&mut self, frame: &mut Incoming) {
        let (local, mut asked) = (&self.service.local, Vec::new());
        if let Some(mut knowledge) = frame.knowledge() {
            asked = std::mem::take(&mut knowledge.asked);
            local.writes.shown(&self.writer, knowledge, None, local.clock.read_ms());
        }
        local.quarantine.take(&frame.suspects, local.clock.read_ms());
        if frame.goodbye.is_some() {
            local.writes.said_goodbye(&self.writer, local.clock.read_ms());
        }
        if frame.ping != 0 {
            self.queue.pong(frame.ping, asked);
        }
    }

    /// Answers the next batch of a frame's requests, each with its position in the frame. Returns whether the reader
    /// should yield afterwards.
    fn answer_batch(&mut self, requests: &mut impl Iterator<Item = (usize, Request)>) -> bool {
        let (mut answers, mut bytes, mut taken) = (Vec::with_capacity(MAX_ANSWERED_AT_ONCE), 0, 0);
        while taken < MAX_ANSWERED_AT_ONCE
            && bytes < BATCH_BYTES
            && let Some((at, request)) = requests.next()
        {
            taken += 1;
            let id = request.id;
            if let Some(answer) = self.respond(request, at) {
                bytes += answer_bytes(&answer);
                answers.push((id, answer));
            }
        }
        self.queue.push(answers.into_iter());
        taken >= YIELD_FROM || bytes >= BATCH_BYTES
    }

    /// Queues the response of a load that has ended. Without room for a value, memory is read again once there is room.
    fn on_loaded(&mut self, id: u64, answer: Response) {
        let Some(retry) = self.waiting.get(&id) else { return }; // the peer has cancelled it
        if retry.is_some() && matches!(answer, Response::Value(_)) && !self.queue.has_room_for_completed() {
            self.loaded.push_back(id);
            return;
        }
        self.waiting.remove(&id);
        self.queue.push_completed(id, self.sized(answer));
        self.queue.set_waiting(self.waiting.len());
    }

    /// Answers the next get that waits for room. Runs when [`ResponseQueue::room`] has returned.
    fn send_loaded(&mut self) {
        let Some(id) = self.loaded.pop_front() else { return };
        if let Some(retry) = self.waiting.remove(&id).flatten() {
            let answer = self.sized(retry.lookup());
            self.queue.push(std::iter::once((id, answer)));
        }
        self.queue.set_waiting(self.waiting.len());
    }

    /// Returns the response to a request, or `None` if the request waits for a load or a set. `at` is the position of
    /// the request in its frame.
    fn respond(&mut self, request: Request, at: usize) -> Option<Response> {
        if self.is_wrong_peer {
            return Some(Response::WrongPeer);
        }
        if at >= MAX_REQUESTS_PER_FRAME {
            return Some(Response::Overloaded { retry_after: RETRY_AFTER });
        }
        let is_write = matches!(request.op, Op::Set(_) | Op::Remove { .. } | Op::Clear);
        if is_write && !self.invalidations.take(Instant::now()) {
            return Some(Response::Overloaded { retry_after: RETRY_AFTER });
        }
        let id = request.id;
        let (name, resolved) = match self.groups.get(&request.group) {
            Some((group, resolved)) => (Some(&group.name), resolved),
            None => (None, &ResolvedGroup::Unknown),
        };
        let has_room = self.loads.len() + self.loaded.len() < self.service.local.limits.max_serving_per_peer;
        let mut waiting = None;
        let may_wait = || {
            waiting = self.service.take_waiting_slot().filter(|_| has_room);
            waiting.is_some()
        };
        let asker = Asker {
            peer: &self.writer,
            group: name,
            queue: &self.queue,
            values: &self.values,
            is_witness: self.is_witness,
        };
        match dispatch(&self.service, resolved, request, Some(&asker), may_wait) {
            Dispatch::Response(answer) => Some(self.sized(answer)),
            Dispatch::Wait(response, retry) => {
                self.waiting.insert(id, retry);
                self.pending.push_back((Instant::now() + PENDING_AFTER, id));
                self.loads.push(Box::pin(async move {
                    let _waiting = waiting;
                    (id, response.await)
                }));
                None
            }
        }
    }

    /// Replaces a value above the size limit of the peer by `TooLarge`, and leaves such values out of a page. Otherwise
    /// one value would end the whole stream at the peer.
    fn sized(&self, answer: Response) -> Response {
        match answer {
            Response::Value(value) if value.bytes.len() > self.max_value_bytes => Response::TooLarge,
            Response::Page(mut page) => {
                page.entries.retain(|entry| entry.bytes.len() <= self.max_value_bytes);
                Response::Page(page)
            }
            answer => answer,
        }
    }

    /// Queues a `Pending` for each waiting request that is due one.
    fn send_pending(&mut self) {
        let now = Instant::now();
        let mut answers = Vec::new();
        while let Some((_, id)) = self.pending.front().filter(|(due, _)| *due <= now) {
            let id = *id;
            self.pending.pop_front();
            if self.waiting.contains_key(&id) {
                answers.push((id, Response::Pending));
            }
        }
        self.queue.push(answers.into_iter());
    }
}
