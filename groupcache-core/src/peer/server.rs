//! The server of this node: answers what peers ask from memory or by loading here. It never forwards.
//!
//! One task reads a connection, answers hits at once and collects the loads it waits for; the stream that HTTP/2
//! polls takes the answers out of an outbox. The reader never waits for the writer: a peer that does not read
//! its answers is told `overloaded` once the outbox is full, and is cut off when it does not read even those.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use dashmap::DashMap;
use futures_core::Stream;
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Response, Status, Streaming};

use crate::{
    config::{BATCH_BYTES, CLIENT_HELLO, MAX_REQUESTS_PER_FRAME, PENDING_AFTER},
    message::{Answer, Decline, GroupName, Hello, Op, Request},
    peer::hello::{Local, objection},
    served::{Answering, Ask, Registry, Served},
    sync::{Keyed, Map, Mutex},
    wire::{self, Frame},
};

/// Small answers that may wait for a peer on top of the byte limit; one that reads none of them is cut off.
const MAX_QUEUED_ANSWERS: usize = 1 << 16;

/// How long a peer that was refused an answer should wait before it asks again.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// The peer service of a node.
#[derive(Clone)]
pub(crate) struct Server(Arc<Inner>);

struct Inner {
    local: Arc<Local>,
    registry: Arc<Registry>,
    connections: DashMap<u64, Arc<Outbox>, Keyed>,
    next_connection: AtomicU64,
    open: AtomicUsize,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Server {
    pub(crate) fn new(
        local: Arc<Local>,
        registry: Arc<Registry>,
        tasks: TaskTracker,
        closing: CancellationToken,
        hasher: Keyed,
    ) -> Self {
        Self(Arc::new(Inner {
            local,
            registry,
            connections: DashMap::with_hasher(hasher),
            next_connection: AtomicU64::new(1),
            open: AtomicUsize::new(0),
            tasks,
            closing,
        }))
    }

    /// The service with the limits of this node.
    pub(crate) fn service(&self) -> wire::peer_server::PeerServer<Self> {
        let max = self.0.local.limits.max_message_bytes();
        wire::peer_server::PeerServer::new(self.clone()).max_decoding_message_size(max).max_encoding_message_size(max)
    }

    /// Something that every frame carries has changed: send it.
    pub(crate) fn nudge(&self) {
        self.0.connections.iter().for_each(|outbox| outbox.wake());
    }

    /// Requests of peers that are not answered yet.
    pub(crate) fn owes(&self) -> usize {
        self.0.connections.iter().map(|outbox| outbox.owes()).sum()
    }

    /// Whether a goodbye has yet to be taken by its connection.
    pub(crate) fn owes_goodbye(&self) -> bool {
        self.0.connections.iter().any(|outbox| outbox.queue.lock().goodbye_due)
    }

    /// Tells all peers that this node leaves for good.
    pub(crate) fn say_goodbye(&self) {
        self.0.connections.iter().for_each(|outbox| outbox.say_goodbye());
    }
}

#[tonic::async_trait]
impl wire::peer_server::Peer for Server {
    type ConnectStream = Outbound;

    async fn connect(&self, request: tonic::Request<Streaming<Frame>>) -> Result<Response<Outbound>, Status> {
        let server = &self.0;
        let place = Place::take(server)?;
        let mut inbound = request.into_inner();
        let first = timeout(CLIENT_HELLO, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello within 5 s"))??
            .and_then(|mut frame| wire::hello(&mut frame).map(|hello| (hello, frame)));
        let Some((hello, frame)) = first else {
            server.local.counters.rejected.up();
            return Err(Status::failed_precondition("the first frame of a connection carries a Hello"));
        };
        let hello = hello.and_then(|hello| match objection(&server.local.hello(), &hello) {
            Some(why) => Err(wire::BadHello(why)),
            None => Ok(hello),
        });
        let hello = hello.map_err(|bad| {
            server.local.counters.rejected.up();
            Status::failed_precondition(bad.0)
        })?;
        server.local.counters.accepted.up();
        let outbox = Arc::new(Outbox::new(Arc::clone(&server.local)));
        let number = server.next_connection.fetch_add(1, Relaxed);
        server.connections.insert(number, Arc::clone(&outbox));
        let connection = Connection::new(Arc::clone(server), Arc::clone(&outbox), &hello);
        let registered = Registered(Arc::clone(server), number);
        server.tasks.spawn(async move {
            let (_place, _registered) = (place, registered);
            connection.serve(inbound, frame, hello).await;
        });
        Ok(Response::new(Outbound(outbox)))
    }

    async fn get(&self, request: tonic::Request<wire::GetRequest>) -> Result<Response<wire::AnswerMessage>, Status> {
        let server = &self.0;
        let (cluster, group, format, request) = wire::unary(request.into_inner());
        if cluster != server.local.hello().cluster {
            return Err(Status::failed_precondition("this node belongs to another cluster"));
        }
        let group = resolve(&server.registry, &group, format);
        let answer = match first_look(server, group, request, true) {
            Looked::Answer(answer) => answer,
            Looked::Wait(answering) => answering.await,
        };
        Ok(Response::new(wire::answer_message(0, answer)))
    }
}

/// One of the connections that may be open at once.
struct Place(Arc<Inner>);

impl Place {
    fn take(server: &Arc<Inner>) -> Result<Self, Status> {
        let place = Self(Arc::clone(server)); // counts down again when it is dropped
        if server.open.fetch_add(1, Relaxed) >= server.local.limits.max_connections {
            server.local.counters.rejected.up();
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

/// What a request names.
#[derive(Clone)]
enum Named {
    Group(Arc<dyn Served>),
    /// A group of this name, whose values have another format.
    OtherFormat(Arc<dyn Served>),
    Unknown,
}

fn resolve(registry: &Registry, name: &str, format: u32) -> Named {
    match registry.get(name) {
        None => Named::Unknown,
        Some(group) if group.format() != format => Named::OtherFormat(group),
        Some(group) => Named::Group(group),
    }
}

/// The outcome of looking at a request without waiting.
enum Looked {
    Answer(Answer),
    Wait(Answering),
}

/// Memory, a write, or, if the asker may have one more, the beginning of a load.
fn first_look(server: &Inner, named: Named, request: Request, may_wait: bool) -> Looked {
    let declined = |why| Looked::Answer(Answer::Declined(why));
    let key = match request.key {
        Ok(key) => key,
        Err(bad) => return Looked::Answer(Answer::BadRequest(bad.text().to_owned())),
    };
    match (request.op, named) {
        (Op::Unknown(_), _) => Looked::Answer(Answer::Unsupported),
        (_, Named::Unknown) => declined(Decline::UnknownGroup),
        (Op::Get, Named::OtherFormat(_)) => declined(Decline::OtherFormat),
        (Op::Get, Named::Group(group)) => {
            if let Some(value) = group.hit(&key) {
                return Looked::Answer(Answer::Value(value));
            }
            if request.no_load {
                return declined(Decline::NotHeld);
            }
            if !may_wait {
                return Looked::Answer(Answer::Overloaded { retry_after: RETRY_AFTER });
            }
            let limit = server.local.limits.load_deadline;
            let wait = request.wait.map_or(limit, |wait| wait.min(limit));
            Looked::Wait(group.load(Ask { key, wait, chain: request.chain }))
        }
        (Op::Remove, Named::Group(group) | Named::OtherFormat(group)) => {
            group.invalidate(&key);
            Looked::Answer(Answer::Done)
        }
        (Op::Set(_), Named::OtherFormat(group)) => {
            group.invalidate(&key);
            declined(Decline::OtherFormat)
        }
        (Op::Set(value), Named::Group(group)) => {
            if value.len() > server.local.limits.max_value_bytes {
                group.invalidate(&key);
                return Looked::Answer(Answer::TooLarge);
            }
            // A copy: a slice would hold the whole frame alive for as long as the value is kept.
            Looked::Wait(group.set(&key, bytes::Bytes::copy_from_slice(&value)))
        }
    }
}

type Loads = FuturesUnordered<Pin<Box<dyn Future<Output = (u64, Answer)> + Send>>>;

/// One connection that a peer opened, as the task that reads it sees it.
struct Connection {
    server: Arc<Inner>,
    outbox: Arc<Outbox>,
    /// The peer's groups by its own indices, resolved against our registry as of `registry_version`.
    groups: Map<u32, (GroupName, Named)>,
    registry_version: u64,
    loads: Loads,
    /// Requests that wait for a load.
    waiting: Map<u64, ()>,
    /// When each of them is owed a Pending, in order of time.
    pending: VecDeque<(Instant, u64)>,
    /// Largest value that the peer takes.
    max_value_bytes: usize,
    /// The peer wants to talk to somebody else; our Hello tells it who we are.
    is_wrong_peer: bool,
}

impl Connection {
    fn new(server: Arc<Inner>, outbox: Arc<Outbox>, hello: &Hello) -> Self {
        let hasher = server.connections.hasher().to_owned();
        let mut connection = Self {
            server,
            outbox,
            groups: Map::with_hasher(hasher),
            registry_version: 0,
            loads: Loads::new(),
            waiting: Map::with_hasher(hasher),
            pending: VecDeque::new(),
            max_value_bytes: hello.max_value_bytes,
            is_wrong_peer: false,
        };
        connection.is_wrong_peer =
            hello.expected.as_ref().is_some_and(|expected| *expected != connection.server.local.hello().id);
        connection.take_groups(&hello.groups);
        connection
    }

    fn take_groups(&mut self, groups: &[GroupName]) {
        self.registry_version = self.server.registry.version();
        self.groups.clear();
        for group in groups {
            let resolved = resolve(&self.server.registry, &group.name, group.format);
            self.groups.insert(group.index, (group.clone(), resolved));
        }
    }

    async fn serve(mut self, mut inbound: Streaming<Frame>, first: Frame, hello: Hello) {
        let closing = self.server.closing.clone();
        let mut next = Some(first);
        loop {
            if let Some(frame) = next.take()
                && let Err(status) = self.take(frame, &hello)
            {
                self.server.local.counters.rejected.up();
                self.outbox.close(Some(status));
                return;
            }
            let owed = self.pending.front().map(|(due, _)| *due);
            tokio::select! {
                biased;
                () = closing.cancelled() => return self.outbox.close(None),
                Some((id, answer)) = self.loads.next(), if !self.loads.is_empty() => {
                    if self.waiting.remove(&id).is_some() {
                        self.outbox.push(std::iter::once((id, self.sized(answer))));
                    }
                    self.outbox.now_waiting(self.waiting.len());
                }
                frame = inbound.message() => match frame {
                    Ok(Some(frame)) => next = Some(frame),
                    Ok(None) => return self.outbox.close(None),
                    Err(status) => {
                        self.server.local.counters.rejected.up();
                        return self.outbox.close(Some(status)); // its own words: too large, or no protobuf
                    }
                },
                () = sleep_until(owed.unwrap_or_else(Instant::now)), if owed.is_some() => self.say_pending(),
                () = self.outbox.abandoned() => return,
            }
        }
    }

    /// Takes a frame: answers what it can, and begins to wait for the rest.
    fn take(&mut self, mut frame: Frame, hello: &Hello) -> Result<(), Status> {
        match wire::hello(&mut frame) {
            Some(Ok(again)) if again.id == hello.id => self.take_groups(&again.groups),
            Some(Ok(_)) => return Err(Status::failed_precondition("a connection speaks for one node all its life")),
            Some(Err(bad)) => return Err(Status::failed_precondition(bad.0)),
            None => {}
        }
        if self.registry_version != self.server.registry.version() {
            let groups: Vec<_> = self.groups.values().map(|(name, _)| name.clone()).collect();
            self.take_groups(&groups);
        }
        let frame = wire::open(frame);
        if frame.ping != 0 {
            self.outbox.pong(frame.ping);
        }
        let mut answers = Vec::with_capacity(frame.requests.len());
        for (at, message) in frame.requests.into_iter().enumerate() {
            let request = wire::request(message);
            let id = request.id;
            if let Some(answer) = self.look(request, at) {
                answers.push((id, answer));
            }
        }
        for id in frame.cancels {
            self.waiting.remove(&id); // the load goes on: it belongs to nobody
        }
        self.outbox.push(answers.into_iter());
        if self.outbox.is_overrun() {
            self.outbox.clear();
            return Err(Status::resource_exhausted("answers are not read"));
        }
        self.outbox.now_waiting(self.waiting.len());
        self.say_pending(); // here too: frames that come without a pause keep the timer from being looked at
        Ok(())
    }

    /// The answer to a request, unless a load must be waited for.
    fn look(&mut self, request: Request, at: usize) -> Option<Answer> {
        if self.is_wrong_peer {
            return Some(Answer::WrongPeer);
        }
        if at >= MAX_REQUESTS_PER_FRAME {
            return Some(Answer::Overloaded { retry_after: RETRY_AFTER });
        }
        let id = request.id;
        let named = self.groups.get(&request.group).map_or(Named::Unknown, |(_, named)| named.clone());
        let may_wait = self.loads.len() < self.server.local.limits.max_serving_per_peer;
        match first_look(&self.server, named, request, may_wait) {
            Looked::Answer(answer) => Some(self.sized(answer)),
            Looked::Wait(answering) => {
                self.waiting.insert(id, ());
                self.pending.push_back((Instant::now() + PENDING_AFTER, id));
                self.loads.push(Box::pin(async move { (id, answering.await) }));
                None
            }
        }
    }

    /// A value that the peer would not take ends the whole stream there: it is told so instead.
    fn sized(&self, answer: Answer) -> Answer {
        match answer {
            Answer::Value(value) if value.bytes.len() > self.max_value_bytes => Answer::TooLarge,
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
                answers.push((id, Answer::Pending));
            }
        }
        self.outbox.push(answers.into_iter());
    }
}

/// Forgets a connection however its task ends.
struct Registered(Arc<Inner>, u64);

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some((_, outbox)) = self.0.connections.remove(&self.1) {
            outbox.close(None);
        }
    }
}

/// What waits to be sent to one peer.
pub(crate) struct Outbox {
    local: Arc<Local>,
    queue: Mutex<Queue>,
    /// Requests that wait for loads.
    waiting: AtomicUsize,
    /// The stream that sends was dropped: the peer is gone.
    abandoned: CancellationToken,
}

#[derive(Default)]
struct Queue {
    answers: VecDeque<(u64, Answer)>,
    bytes: usize,
    pong: u64,
    hello_sent: u64,
    goodbye_due: bool,
    closed: Option<Option<Status>>,
    waker: Option<Waker>,
}

impl Outbox {
    fn new(local: Arc<Local>) -> Self {
        Self { local, queue: Mutex::default(), waiting: AtomicUsize::new(0), abandoned: CancellationToken::new() }
    }

    /// Queues answers; those for which there is no room become `overloaded`.
    fn push(&self, answers: impl ExactSizeIterator<Item = (u64, Answer)>) {
        if answers.len() == 0 {
            return;
        }
        self.change(|queue| {
            for (id, mut answer) in answers {
                let mut bytes = wire::answer_bytes(&answer);
                if queue.bytes + bytes > self.local.limits.max_queued_answer_bytes {
                    answer = Answer::Overloaded { retry_after: RETRY_AFTER };
                    bytes = wire::answer_bytes(&answer);
                }
                queue.bytes += bytes;
                queue.answers.push_back((id, answer));
            }
        });
    }

    fn now_waiting(&self, requests: usize) {
        self.waiting.store(requests, Relaxed);
    }

    /// Requests that are not answered, and answers that are not sent.
    fn owes(&self) -> usize {
        self.waiting.load(Relaxed) + self.queue.lock().answers.len()
    }

    /// Forgets what waits for a peer that does not read.
    fn clear(&self) {
        self.change(|queue| {
            queue.answers.clear();
            queue.bytes = 0;
        });
    }

    fn pong(&self, number: u64) {
        self.change(|queue| queue.pong = number);
    }

    fn say_goodbye(&self) {
        self.change(|queue| queue.goodbye_due = true);
    }

    /// Ends the stream after what is queued; with an error when the peer is to know one.
    fn close(&self, status: Option<Status>) {
        self.change(|queue| {
            queue.closed.get_or_insert(status);
        });
    }

    fn wake(&self) {
        self.change(|_| ());
    }

    fn change(&self, change: impl FnOnce(&mut Queue)) {
        let waker = {
            let mut queue = self.queue.lock();
            change(&mut queue);
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn is_overrun(&self) -> bool {
        self.queue.lock().answers.len() > MAX_QUEUED_ANSWERS
    }

    async fn abandoned(&self) {
        self.abandoned.cancelled().await;
    }
}

/// Our half of a connection that a peer opened.
pub(crate) struct Outbound(Arc<Outbox>);

impl Stream for Outbound {
    type Item = Result<Frame, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let local = &self.0.local;
        let mut frame = wire::Outgoing::new(local.fingerprint());
        let mut queue = self.0.queue.lock();
        // Read under the lock: a change after it finds the waker there.
        let version = local.version();
        let is_greeted = queue.hello_sent == version;
        if is_greeted && queue.answers.is_empty() && queue.pong == 0 && !queue.goodbye_due {
            return match queue.closed.take() {
                Some(status) => {
                    queue.closed = Some(None); // said once
                    Poll::Ready(status.map(Err))
                }
                None => {
                    queue.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        if !is_greeted {
            queue.hello_sent = version;
            frame.hello(&local.hello(), local.limits.max_serving_per_peer);
        }
        if std::mem::take(&mut queue.goodbye_due) {
            frame.goodbye(local.hello().incarnation);
        }
        frame.pong(std::mem::take(&mut queue.pong));
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Some((id, answer)) = queue.answers.pop_front()
        {
            let size = wire::answer_bytes(&answer);
            queue.bytes -= size;
            bytes += size;
            frame.answer(id, answer);
        }
        Poll::Ready(Some(Ok(frame.finish())))
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        self.0.abandoned.cancel();
    }
}
