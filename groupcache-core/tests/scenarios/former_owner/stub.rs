//! A former owner that answers as the test says: a peer `a` that is Ready at first and drains when it is told to.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
};

use groupcache_core::{Group, Node, NodeBuilder, Peer, PeerId};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};

use crate::proto::{
    self, Answer, Frame, GetRequest, Hello, Request as Asked,
    peer_server::{Peer as Service, PeerServer},
};
use crate::support::{self, Gate, Peers, eventually, gated, identity};

type Frames = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

pub const VALUE: u32 = 1;
pub const LOADER_ERROR: u32 = 4;
pub const DECLINED: u32 = 6;
pub const UNSUPPORTED: u32 = 11;
pub const DONE: u32 = 12;
pub const PAGE: u32 = 14;
/// Why it is declined.
pub const NOT_HELD: u32 = 4;

const READY: u32 = 2;
const DRAINING: u32 = 3;
/// It hands over what it owned before.
const HAND_OVER: u64 = 1;
/// The role of a former owner that is asked for one key.
const PEEK: u32 = 1000;

/// What it answers; `None` = nothing, for now.
type Answers = Box<dyn FnMut(&Asked) -> Option<Answer> + Send>;

#[derive(Default)]
struct Inner {
    answers: Mutex<Option<Answers>>,
    asked: Mutex<Vec<Asked>>,
    /// Where its current connection takes frames.
    says: Mutex<Option<mpsc::Sender<Result<Frame, Status>>>>,
    /// The last fingerprint that its peer said: it agrees with it.
    fingerprint: Mutex<u64>,
    /// What its peer understands.
    features: Mutex<u64>,
}

#[derive(Clone)]
pub struct Stub {
    inner: Arc<Inner>,
    state: Arc<watch::Sender<u32>>,
    features: u64,
}

impl Stub {
    pub fn new() -> Self {
        Self { inner: Arc::default(), state: Arc::new(watch::Sender::new(READY)), features: HAND_OVER }
    }

    /// One of before there was such a thing.
    pub fn older() -> Self {
        Self { features: 0, ..Self::new() }
    }

    /// What it answers to peeks and to requests for pages, from now on. It agrees to all writes.
    pub fn answers(&self, answers: impl FnMut(&Asked) -> Option<Answer> + Send + 'static) {
        *self.inner.answers.lock().unwrap() = Some(Box::new(answers));
    }

    /// The peeks so far.
    pub fn peeks(&self) -> Vec<Asked> {
        self.asked(|asked| asked.op == 0 && asked.role == PEEK)
    }

    /// The requests for pages so far.
    pub fn pages(&self) -> Vec<Asked> {
        self.asked(|asked| asked.op == 4)
    }

    fn asked(&self, which: impl Fn(&Asked) -> bool) -> Vec<Asked> {
        self.inner.asked.lock().unwrap().iter().filter(|asked| which(asked)).cloned().collect()
    }

    /// Answers what it has kept waiting.
    pub fn say(&self, answer: Answer) {
        self.frame(Frame { answers: vec![answer], ..Frame::default() });
    }

    /// Owns nothing any more.
    pub fn drain(&self) {
        self.becomes(DRAINING);
    }

    /// Owns its share again.
    pub fn is_back(&self) {
        self.becomes(READY);
    }

    fn becomes(&self, state: u32) {
        self.state.send_replace(state);
        self.frame(Frame { hello: Some(self.hello()), ..Frame::default() });
    }

    fn frame(&self, frame: Frame) {
        let frame = Frame { fingerprint: *self.inner.fingerprint.lock().unwrap(), ..frame };
        let says = self.inner.says.lock().unwrap().clone().expect("connected");
        says.try_send(Ok(frame)).expect("there is room");
    }

    fn hello(&self) -> Hello {
        Hello {
            min_version: 1,
            max_version: 1,
            cluster: "default".into(),
            id: "a".into(),
            incarnation: 1,
            state: *self.state.borrow(),
            weight: 1,
            features: self.features,
            groups: vec![proto::Group { index: 1, name: "data".into(), format: 0 }],
            ..Hello::default()
        }
    }

    async fn converse(self, mut inbound: Streaming<Frame>) {
        while let Ok(Some(frame)) = inbound.message().await {
            if let Some(hello) = &frame.hello {
                *self.inner.features.lock().unwrap() = hello.features;
            }
            let has_changed = {
                let mut fingerprint = self.inner.fingerprint.lock().unwrap();
                std::mem::replace(&mut *fingerprint, frame.fingerprint) != frame.fingerprint
            };
            let answers: Vec<_> = frame.requests.iter().filter_map(|asked| self.answer(asked)).collect();
            self.inner.asked.lock().unwrap().extend(frame.requests);
            if has_changed || frame.ping > 0 || !answers.is_empty() {
                self.frame(Frame { answers, pong: frame.ping, ..Frame::default() });
            }
        }
    }

    fn answer(&self, asked: &Asked) -> Option<Answer> {
        let id = asked.id;
        if (1..=3).contains(&asked.op) {
            return Some(Answer { id, status: DONE, ..Answer::default() });
        }
        let mut answers = self.inner.answers.lock().unwrap();
        let answer = answers.as_mut().map_or_else(|| Some(not_held()), |answers| answers(asked));
        answer.map(|answer| Answer { id, ..answer })
    }
}

pub fn value(text: &str) -> Answer {
    Answer { status: VALUE, value: text.as_bytes().to_vec().into(), ..Answer::default() }
}

pub fn not_held() -> Answer {
    Answer { status: DECLINED, reason: NOT_HELD, ..Answer::default() }
}

struct Server(Stub);

#[tonic::async_trait]
impl Service for Server {
    type ConnectStream = Frames;

    async fn connect(&self, request: Request<Streaming<Frame>>) -> Result<Response<Frames>, Status> {
        let (says, frames) = mpsc::channel(4096);
        says.try_send(Ok(Frame { hello: Some(self.0.hello()), ..Frame::default() })).expect("there is room");
        *self.0.inner.says.lock().unwrap() = Some(says);
        tokio::spawn(self.0.clone().converse(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(frames))))
    }

    async fn get(&self, _: Request<GetRequest>) -> Result<Response<Answer>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// Node `b`, of which every other key belongs to a stub.
pub struct Scene {
    pub stub: Stub,
    pub b: Node,
    pub group: Group<String>,
    pub gate: Gate,
    _peers: Peers,
}

impl Scene {
    pub async fn start() -> Self {
        Self::with(Stub::new(), |builder| builder).await
    }

    pub async fn with(stub: Stub, build: impl FnOnce(NodeBuilder) -> NodeBuilder) -> Self {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address: SocketAddr = incoming.local_addr().unwrap();
        let service = PeerServer::new(Server(stub.clone()));
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        let peers = Peers::default();
        let builder = Node::builder().identity(identity("b")).provider(peers.clone());
        let b = build(builder).start().await.unwrap();
        let gate = Gate::default();
        gate.open();
        let group = b.group::<String>("data").capacity_bytes(8 << 20).loader_with(gate.clone(), gated);
        let group = group.build().unwrap();
        peers.set(vec![Peer::member(PeerId::new("a").unwrap(), [address.into()]), support::peer(&b)]);
        eventually("it owns a share", || b.members().iter().filter(|member| member.owns).count() == 2).await;
        if *stub.inner.features.lock().unwrap() & stub.features & HAND_OVER != 0 {
            // It has come, as it sees it, and asks for its share.
            eventually("it is told that there is nothing", || !stub.pages().is_empty()).await;
            stub.inner.asked.lock().unwrap().clear();
        }
        Self { stub, b, group, gate, _peers: peers }
    }

    /// Keys of the stub, as long as it owns any.
    pub fn keys_of_a(&self, n: usize) -> Vec<String> {
        let keys = (0..).map(|n| format!("key-{n}"));
        keys.filter(|key| self.group.owner_of(key).as_str() == "a").take(n).collect()
    }

    /// Keys of `b`.
    pub fn keys_of_b(&self, n: usize) -> Vec<String> {
        let keys = (0..).map(|n| format!("key-{n}"));
        keys.filter(|key| self.group.owner_of(key).as_str() == "b").take(n).collect()
    }

    /// The stub drains, and `b` owns everything.
    pub async fn a_drains(&self) {
        self.stub.drain();
        eventually("it owns nothing", || self.b.members().iter().filter(|member| member.owns).count() == 1).await;
    }

    /// A get in a task of its own.
    pub fn get(&self, key: &str) -> tokio::task::JoinHandle<String> {
        let (group, key) = (self.group.clone(), key.to_owned());
        tokio::spawn(async move { group.get(&key).await.expect("a value") })
    }
}
