//! One connection that a peer opened: its requests, the loads they wait for, and what it is owed meanwhile.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::{
    identity::PeerId,
    limits::{BATCH_BYTES, MAX_REQUESTS_PER_FRAME, PENDING_AFTER, RETRY_AFTER, SILENCE},
    peer::{
        group_service::Registry,
        local::LocalNode,
        server::{
            dispatch::{Dispatch, ResolvedGroup, Retry, dispatch, resolve},
            response_queue::ResponseQueue,
        },
    },
    protocol::{
        message::{GroupName, Hello, Op, Request, Response},
        wire::{Incoming, answer_bytes},
    },
    runtime::{
        log_limit::LogRateLimit,
        sync::{Keyed, Map},
        token_bucket::TokenBucket,
    },
    transport::{IDLE_LIMIT, Security},
};

/// What every connection serves from.
pub(crate) struct Service {
    pub(crate) local: Arc<LocalNode>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) arrivals: mpsc::Sender<PeerId>,
    pub(crate) closing: CancellationToken,
    pub(crate) hasher: Keyed,
    /// Requests of all peers that wait for loads here.
    pub(crate) waiting: Arc<AtomicUsize>,
    pub(crate) lines: LogRateLimit,
}

impl Service {
    /// A peer has connected to this node, or speaks again after it was silent: so it can be dialled.
    pub(crate) fn has_come(&self, peer: &PeerId) {
        let _ = self.arrivals.try_send(peer.clone()); // full = it is dialled a little later
    }

    /// A place among the requests that wait for loads here; given back when it is dropped.
    pub(crate) fn may_wait(&self) -> Option<Waiting> {
        let waiting = Waiting(Arc::clone(&self.waiting));
        (waiting.0.fetch_add(1, Relaxed) < self.local.limits.max_serving).then_some(waiting)
    }
}

/// One of the requests that wait for loads here.
pub(crate) struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Of a larger frame, so many requests are answered before their answers are sent; fewer, if those are long.
const AT_ONCE: usize = 64;

/// After so many answers they have their turn to be sent before more is read: the peer is at work on them meanwhile.
const MANY: usize = 8;

type Loads = FuturesUnordered<Pin<Box<dyn Future<Output = (u64, Response)> + Send>>>;

/// How long a connection may live, whatever its peer does.
pub(crate) enum Lifetime {
    /// Until our own listener retires it.
    Ours(CancellationToken),
    /// In a server of the user: until what let it in is replaced.
    Mounted { security: Security, generation: u64, number: u64 },
}

impl Lifetime {
    async fn ends(&self) {
        match self {
            Self::Ours(retired) => retired.cancelled().await,
            Self::Mounted { security, generation, number } => {
                security.replaced(*generation, (number.wrapping_mul(7919) % 1000) as u32).await;
            }
        }
    }

    fn is_mounted(&self) -> bool {
        matches!(self, Self::Mounted { .. })
    }
}

/// What becomes of a connection after a frame.
enum Goes {
    On,
    /// It ends, as connections do.
    NoFurther,
}

/// One connection that a peer opened, as the task that reads it sees it.
pub(crate) struct Connection {
    service: Arc<Service>,
    queue: Arc<ResponseQueue>,
    peer: PeerId,
    /// The peer's groups by its own indices, resolved against our registry as of `registry_version`.
    groups: Map<u32, (GroupName, ResolvedGroup)>,
    registry_version: u64,
    loads: Loads,
    /// Requests that wait for a load, or for room for its value.
    waiting: Map<u64, Option<Retry>>,
    /// Those whose load has ended: many may end at once, and the values are not to be in memory twice until they are sent.
    loaded: VecDeque<u64>,
    /// When each of them is owed a Pending, in order of time.
    pending: VecDeque<(Instant, u64)>,
    /// Largest value that the peer takes.
    max_value_bytes: usize,
    invalidations: TokenBucket,
    /// The peer wants to talk to somebody else; our Hello tells it who we are.
    is_wrong_peer: bool,
}

impl Connection {
    pub(crate) fn new(service: Arc<Service>, queue: Arc<ResponseQueue>, hello: &Hello) -> Self {
        let hasher = service.hasher;
        let invalidations = f64::from(service.local.limits.max_invalidations_per_second);
        let mut connection = Self {
            service,
            queue,
            peer: hello.id.clone(),
            groups: Map::with_hasher(hasher),
            registry_version: 0,
            loads: Loads::new(),
            waiting: Map::with_hasher(hasher),
            loaded: VecDeque::new(),
            pending: VecDeque::new(),
            max_value_bytes: hello.max_value_bytes,
            invalidations: TokenBucket::new(invalidations, invalidations),
            is_wrong_peer: false,
        };
        connection.is_wrong_peer =
            hello.expected.as_ref().is_some_and(|expected| *expected != connection.service.local.hello().id);
        connection.take_groups(&hello.groups);
        connection
    }

    fn take_groups(&mut self, groups: &[GroupName]) {
        self.registry_version = self.service.registry.version();
        self.groups.clear();
        for group in groups {
            let resolved = resolve(&self.service.registry, &group.name, group.format);
            self.groups.insert(group.index, (group.clone(), resolved));
        }
    }

    pub(crate) async fn serve(
        mut self,
        mut inbound: Streaming<Incoming>,
        first: Incoming,
        hello: Hello,
        lifetime: Lifetime,
    ) {
        let mut ends = std::pin::pin!(lifetime.ends());
        let mut heard = Instant::now();
        let is_mounted = lifetime.is_mounted();
        let closing = self.service.closing.clone();
        let mut next = Some(first);
        loop {
            if let Some(frame) = next.take() {
                match self.take(frame, &hello, ends.as_mut()).await {
                    Ok(Goes::On) => {}
                    Ok(Goes::NoFurther) => return self.queue.close(None),
                    Err(status) => {
                        self.service.local.counters.rejected.up();
                        return self.queue.close(Some(status));
                    }
                }
            }
            let owed = self.pending.front().map(|(due, _)| *due);
            tokio::select! {
                biased;
                () = closing.cancelled() => return self.queue.close(None),
                // The peer connects anew, with its certificates of today, and asks again for what it is owed.
                () = &mut ends => return self.queue.close(None),
                Some((id, answer)) = self.loads.next(), if !self.loads.is_empty() => self.has_loaded(id, answer),
                () = self.queue.room(), if !self.loaded.is_empty() => self.say_loaded(),
                frame = inbound.message() => match frame {
                    Ok(Some(frame)) => {
                        next = Some(frame);
                        let before = std::mem::replace(&mut heard, Instant::now());
                        if heard - before > SILENCE {
                            self.service.has_come(&self.peer); // what we had open to it may be closed
                        }
                    }
                    Ok(None) => return self.queue.close(None),
                    Err(status) => {
                        self.service.local.counters.rejected.up();
                        return self.queue.close(Some(status)); // its own words: too large, or no protobuf
                    }
                },
                () = sleep_until(owed.unwrap_or_else(Instant::now)), if owed.is_some() => self.say_pending(),
                () = self.queue.abandoned() => return,
                // Our own listener sees bytes, and so does without a timer for each frame.
                () = sleep_until(heard + IDLE_LIMIT), if is_mounted => return self.queue.close(None),
            }
        }
    }

    /// Takes a frame: answers what it can, and begins to wait for the rest. A peer that reads slowly holds it up, and not
    /// the end of the connection.
    async fn take(
        &mut self,
        mut frame: Incoming,
        hello: &Hello,
        mut ends: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Goes, Status> {
        match frame.hello() {
            Some(Ok(again)) if again.id == hello.id => self.take_groups(&again.groups),
            Some(Ok(_)) => return Err(Status::failed_precondition("a connection speaks for one node all its life")),
            Some(Err(bad)) => return Err(Status::failed_precondition(bad.0)),
            None => {}
        }
        if self.registry_version != self.service.registry.version() {
            let groups: Vec<_> = self.groups.values().map(|(name, _)| name.clone()).collect();
            self.take_groups(&groups);
        }
        let service = Arc::clone(&self.service);
        if frame.ping != 0 {
            self.queue.pong(frame.ping);
        }
        // Over all of the frame: what it makes this node load is loaded together.
        let taking = service.registry.takes_many();
        let mut requests = frame.requests.into_iter().enumerate();
        while requests.len() > 0 {
            let is_much = self.answer(&mut requests);
            if self.queue.is_overrun() {
                self.queue.clear();
                return Err(Status::resource_exhausted("answers are not read"));
            }
            if is_much {
                tokio::task::yield_now().await;
            }
            loop {
                tokio::select! {
                    biased;
                    () = self.queue.room() => break,
                    // Or the values of all loads that end meanwhile would be kept.
                    Some((id, answer)) = self.loads.next(), if !self.loads.is_empty() => self.has_loaded(id, answer),
                    () = service.closing.cancelled() => return Ok(Goes::NoFurther),
                    () = &mut ends => return Ok(Goes::NoFurther),
                    () = self.queue.abandoned() => return Ok(Goes::NoFurther),
                }
            }
        }
        drop(taking);
        for id in frame.cancels {
            self.waiting.remove(&id); // the load goes on: it belongs to nobody
        }
        self.queue.now_waiting(self.waiting.len());
        self.say_pending(); // here too: frames that come without a pause keep the timer from being looked at
        Ok(Goes::On)
    }

    /// Answers some requests of a frame, each with its place in it; whether that was much.
    fn answer(&mut self, requests: &mut impl Iterator<Item = (usize, Request)>) -> bool {
        let (mut answers, mut bytes, mut looked_at) = (Vec::with_capacity(AT_ONCE), 0, 0);
        while looked_at < AT_ONCE
            && bytes < BATCH_BYTES
            && let Some((at, request)) = requests.next()
        {
            looked_at += 1;
            let id = request.id;
            if let Some(answer) = self.look(request, at) {
                bytes += answer_bytes(&answer);
                answers.push((id, answer));
            }
        }
        self.queue.push(answers.into_iter());
        looked_at >= MANY || bytes >= BATCH_BYTES
    }

    /// A load has ended. Without room for its value that is looked for once more when there is room.
    fn has_loaded(&mut self, id: u64, answer: Response) {
        let Some(again) = self.waiting.get(&id) else { return }; // the peer has cancelled it
        if again.is_some() && matches!(answer, Response::Value(_)) && !self.queue.has_room_for_loaded() {
            self.loaded.push_back(id);
            return;
        }
        self.waiting.remove(&id);
        self.queue.push_completed(id, self.sized(answer));
        self.queue.now_waiting(self.waiting.len());
    }

    /// There is room for a value, or the peer reads nothing.
    fn say_loaded(&mut self) {
        let Some(id) = self.loaded.pop_front() else { return };
        if let Some(again) = self.waiting.remove(&id).flatten() {
            let answer = self.sized(again.look());
            self.queue.push(std::iter::once((id, answer)));
        }
        self.queue.now_waiting(self.waiting.len());
    }

    /// The answer to a request, unless a load must be waited for.
    fn look(&mut self, request: Request, at: usize) -> Option<Response> {
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
        let named = self.groups.get(&request.group).map_or(&ResolvedGroup::Unknown, |(_, named)| named);
        let has_room = self.loads.len() + self.loaded.len() < self.service.local.limits.max_serving_per_peer;
        let mut waiting = None;
        let may_wait = || {
            waiting = self.service.may_wait().filter(|_| has_room);
            waiting.is_some()
        };
        match dispatch(&self.service, named, request, Some(&self.peer), may_wait) {
            Dispatch::Response(answer) => Some(self.sized(answer)),
            Dispatch::Wait(answering, again) => {
                self.waiting.insert(id, again);
                self.pending.push_back((Instant::now() + PENDING_AFTER, id));
                self.loads.push(Box::pin(async move {
                    let _waiting = waiting;
                    (id, answering.await)
                }));
                None
            }
        }
    }

    /// A value that the peer would not take ends the whole stream there: it is told so instead.
    fn sized(&self, answer: Response) -> Response {
        match answer {
            Response::Value(value) if value.bytes.len() > self.max_value_bytes => Response::TooLarge,
            Response::Page(mut page) => {
                page.entries.retain(|handed| handed.bytes.len() <= self.max_value_bytes);
                Response::Page(page)
            }
            answer => answer,
        }
    }

    fn say_pending(&mut self) {
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
