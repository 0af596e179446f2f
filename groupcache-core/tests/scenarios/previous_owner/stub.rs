//! A stub of a previous owner: peer `a`, which answers as the test defines, is Ready at first and drains on request.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
};

use groupcache_core::{Group, Node, NodeBuilder, PeerId, discovery::Peer};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};

use crate::proto::{
    self, Answer, Frame, GetRequest, Hello, Request as PeerRequest,
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
/// Reason of a declined request: the key is not in memory.
pub const NOT_HELD: u32 = 4;

const READY: u32 = 2;
const DRAINING: u32 = 3;
/// Feature bit of a node that hands over values.
const HANDOVER: u64 = 1;
/// Role of a request to the previous owner of a key.
const PREVIOUS_OWNER: u32 = 1000;

/// Function that answers requests. `None` leaves a request unanswered until [`Stub::send_answer`].
type Answers = Box<dyn FnMut(&PeerRequest) -> Option<Answer> + Send>;

#[derive(Default)]
struct Inner {
    answers: Mutex<Option<Answers>>,
    requests: Mutex<Vec<PeerRequest>>,
    /// Sender of frames on the current connection.
    sender: Mutex<Option<mpsc::Sender<Result<Frame, Status>>>>,
    /// Last fingerprint that the peer sent. The stub sends the same one, so that both agree about every owner.
    fingerprint: Mutex<u64>,
    /// Features that the peer offers.
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
        Self { inner: Arc::default(), state: Arc::new(watch::Sender::new(READY)), features: HANDOVER }
    }

    /// Returns a stub that does not hand over values, as nodes of an older version.
    pub fn without_handover() -> Self {
        Self { features: 0, ..Self::new() }
    }

    /// Sets the answers to gets, previous-owner reads and page requests. The stub acknowledges all writes.
    pub fn answer_with(&self, answers: impl FnMut(&PeerRequest) -> Option<Answer> + Send + 'static) {
        *self.inner.answers.lock().unwrap() = Some(Box::new(answers));
    }

    /// Returns the previous-owner reads received so far.
    pub fn reads(&self) -> Vec<PeerRequest> {
        self.requests_where(|request| request.op == 0 && request.role == PREVIOUS_OWNER)
    }

    /// Returns the page requests received so far.
    pub fn page_requests(&self) -> Vec<PeerRequest> {
        self.requests_where(|request| request.op == 4)
    }

    fn requests_where(&self, is_wanted: impl Fn(&PeerRequest) -> bool) -> Vec<PeerRequest> {
        self.inner.requests.lock().unwrap().iter().filter(|request| is_wanted(request)).cloned().collect()
    }

    /// Sends the answer to a request that was left unanswered.
    pub fn send_answer(&self, answer: Answer) {
        self.send_frame(Frame { answers: vec![answer], ..Frame::default() });
    }

    /// Drains, after which the stub owns no key.
    pub fn drain(&self) {
        self.change_state(DRAINING);
    }

    /// Becomes Ready, after which the stub owns its share again.
    pub fn return_to_ready(&self) {
        self.change_state(READY);
    }

    fn change_state(&self, state: u32) {
        self.state.send_replace(state);
        self.send_frame(Frame { hello: Some(self.hello()), ..Frame::default() });
    }

    fn send_frame(&self, frame: Frame) {
        let frame = Frame { fingerprint: *self.inner.fingerprint.lock().unwrap(), ..frame };
        let sender = self.inner.sender.lock().unwrap().clone().expect("node b is connected");
        sender.try_send(Ok(frame)).expect("the channel has room");
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
            groups: vec![proto::Group { index: 1, name: "data".into(), format: 0, ..proto::Group::default() }],
            ..Hello::default()
        }
    }

    async fn serve_frames(self, mut inbound: Streaming<Frame>) {
        while let Ok(Some(frame)) = inbound.message().await {
            if let Some(hello) = &frame.hello {
                *self.inner.features.lock().unwrap() = hello.features;
            }
            let has_changed = {
                let mut fingerprint = self.inner.fingerprint.lock().unwrap();
                std::mem::replace(&mut *fingerprint, frame.fingerprint) != frame.fingerprint
            };
            let answers: Vec<_> = frame.requests.iter().filter_map(|request| self.answer_to(request)).collect();
            self.inner.requests.lock().unwrap().extend(frame.requests);
            if has_changed || frame.ping > 0 || !answers.is_empty() {
                self.send_frame(Frame { answers, pong: frame.ping, ..Frame::default() });
            }
        }
    }

    fn answer_to(&self, request: &PeerRequest) -> Option<Answer> {
        let id = request.id;
        if (1..=3).contains(&request.op) {
            return Some(Answer { id, status: DONE, ..Answer::default() });
        }
        let mut answers = self.inner.answers.lock().unwrap();
        let answer = answers.as_mut().map_or_else(|| Some(not_held()), |answers| answers(request));
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
        let (sender, frames) = mpsc::channel(4096);
        sender.try_send(Ok(Frame { hello: Some(self.0.hello()), ..Frame::default() })).expect("the channel has room");
        *self.0.inner.sender.lock().unwrap() = Some(sender);
        tokio::spawn(self.0.clone().serve_frames(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(frames))))
    }

    async fn get(&self, _: Request<GetRequest>) -> Result<Response<Answer>, Status> {
        Err(Status::unimplemented("the stub serves frames only"))
    }
}

/// Node `b` and the stub, which is peer `a` and owns about half of the keys.
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
        eventually("a and b own their shares", || b.members().iter().filter(|member| member.owns).count() == 2).await;
        if *stub.inner.features.lock().unwrap() & stub.features & HANDOVER != 0 {
            // Node b regards itself as a joining node, and requests its share.
            eventually("b requests a page and receives none", || !stub.page_requests().is_empty()).await;
            stub.inner.requests.lock().unwrap().clear();
        }
        Self { stub, b, group, gate, _peers: peers }
    }

    /// Returns keys of the stub. Never returns while the stub owns no key.
    pub fn keys_of_a(&self, n: usize) -> Vec<String> {
        let keys = (0..).map(|n| format!("key-{n}"));
        keys.filter(|key| self.group.inspect().owner_of(key).as_str() == "a").take(n).collect()
    }

    /// Returns keys of `b`.
    pub fn keys_of_b(&self, n: usize) -> Vec<String> {
        let keys = (0..).map(|n| format!("key-{n}"));
        keys.filter(|key| self.group.inspect().owner_of(key).as_str() == "b").take(n).collect()
    }

    /// Drains the stub and waits until `b` owns all keys.
    pub async fn drain_a(&self) {
        self.stub.drain();
        eventually("a owns no key", || self.b.members().iter().filter(|member| member.owns).count() == 1).await;
    }

    /// Starts a get in a task of its own.
    pub fn get(&self, key: &str) -> tokio::task::JoinHandle<String> {
        let (group, key) = (self.group.clone(), key.to_owned());
        tokio::spawn(async move { group.get(&key).await.expect("the get returns a value") })
    }
}
