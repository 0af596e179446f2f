//! Misbehaving peers: they speak the protocol but are of no use, and callers do not wait for them.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::proto::{
    self, Answer, Frame, GetRequest, Hello,
    peer_server::{Peer as Service, PeerServer},
};
use crate::support::{
    self, Cluster, Gate, Peers, Proxy, eventually, gated, identity, name,
    raw::{self, Raw},
};
use groupcache_core::{
    Group, Node, PeerId,
    discovery::{MAX_WEIGHT, Peer},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};

type Frames = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

/// Behaviour of a server that poses as node `a`.
trait Misbehaviour: Send + Sync + 'static {
    /// Bytes of a stream that the peer accepts before it reads: the initial window of HTTP/2.
    const WINDOW: u32 = 65_535;

    /// Whether the peer sends a Hello.
    const SENDS_HELLO: bool = true;

    /// Returns the weight in the Hello of the peer.
    fn weight(&self) -> u32 {
        1
    }

    /// Returns the frames that the peer sends after its Hello.
    fn frames_after_hello(&self, inbound: Streaming<Frame>) -> Frames;
}

struct Server<O>(Arc<O>);

#[tonic::async_trait]
impl<O: Misbehaviour> Service for Server<O> {
    type ConnectStream = Frames;

    async fn connect(&self, request: Request<Streaming<Frame>>) -> Result<Response<Frames>, Status> {
        let hello = Hello {
            min_version: 1,
            max_version: 1,
            cluster: "default".into(),
            id: "a".into(),
            incarnation: 1,
            state: 2,
            weight: self.0.weight(),
            groups: vec![proto::Group { index: 1, name: "data".into(), format: 0, ..proto::Group::default() }],
            ..Hello::default()
        };
        let first = O::SENDS_HELLO.then(|| Ok(Frame { hello: Some(hello), ..Frame::default() }));
        let first = tokio_stream::iter(first);
        Ok(Response::new(Box::pin(first.chain(self.0.frames_after_hello(request.into_inner())))))
    }

    async fn get(&self, _: Request<GetRequest>) -> Result<Response<Answer>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// Starts the server of such a peer, and returns the proxy in front of it.
async fn listen<O: Misbehaviour>(peer: &Arc<O>) -> Proxy {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let path = Proxy::start(incoming.local_addr().unwrap()).await;
    let service = PeerServer::new(Server(Arc::clone(peer)));
    let mut server = tonic::transport::Server::builder().initial_stream_window_size(O::WINDOW);
    tokio::spawn(server.add_service(service).serve_with_incoming(incoming));
    path
}

/// Node `b`, and a misbehaving peer `a` that owns every other key.
struct Scene {
    b: Node,
    group: Group<String>,
    /// Proxy between `b` and the peer.
    path: Proxy,
    _peers: Peers,
}

impl Scene {
    async fn start(peer: &Arc<impl Misbehaviour>) -> Self {
        let path = listen(peer).await;
        let peers = Peers::default();
        let b = Node::builder().identity(identity("b")).provider(peers.clone()).start().await.unwrap();
        let gate = Gate::default();
        gate.open();
        let group = b.group::<String>("data").capacity_bytes(256 << 20).loader_with(gate, gated).build().unwrap();
        peers.set(vec![Peer::member(PeerId::new("a").unwrap(), [path.address.into()]), support::peer(&b)]);
        eventually("the peer is a member after its Hello", || b.members().len() == 2).await;
        Self { b, group, path, _peers: peers }
    }

    fn keys_of_a(&self) -> impl Iterator<Item = String> {
        (0..).map(|n| format!("key-{n}")).filter(|key| self.group.inspect().owner_of(key).as_str() == "a")
    }
}

/// Peer that closes each stream after its Hello.
#[derive(Default)]
struct Closing {
    connects: AtomicU64,
}

impl Misbehaviour for Closing {
    fn frames_after_hello(&self, _: Streaming<Frame>) -> Frames {
        self.connects.fetch_add(1, SeqCst);
        Box::pin(tokio_stream::empty())
    }
}

/// Peer that sends frames until the test silences it, and never reads.
struct NotReading {
    sends: watch::Sender<bool>,
    unread: Mutex<Vec<Streaming<Frame>>>,
}

impl Misbehaviour for NotReading {
    fn frames_after_hello(&self, inbound: Streaming<Frame>) -> Frames {
        self.unread.lock().unwrap().push(inbound);
        let (frames, stream) = mpsc::channel(1);
        let mut sends = self.sends.subscribe();
        tokio::spawn(async move {
            while frames.send(Ok(Frame::default())).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let _ = sends.wait_for(|sends| *sends).await;
            }
        });
        Box::pin(ReceiverStream::new(stream))
    }
}

/// Peer with a greater weight than allowed that answers no request.
struct Overweight;

impl Misbehaviour for Overweight {
    fn weight(&self) -> u32 {
        65_535
    }

    fn frames_after_hello(&self, inbound: Streaming<Frame>) -> Frames {
        Box::pin(inbound.filter_map(|_| None))
    }
}

/// Checks that a peer that announces a weight of 65,535 owns the share of the greatest weight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announced_weight_is_capped_at_the_maximum() {
    let scene = Scene::start(&Arc::new(Overweight)).await;
    let keys = (0..1700).map(|n| format!("key-{n}"));
    let left = keys.filter(|key| scene.group.inspect().owner_of(key).as_str() == "b").count();
    assert!((50..200).contains(&left), "b owns {left} of 1,700 keys, about one in 17");
    // The ring equals that of a peer with the greatest weight.
    let greatest = |at: usize| identity(&name(at)).with_weight([MAX_WEIGHT, 1][at]).unwrap();
    let cluster = Cluster::start_each(2, |at, builder| builder.identity(greatest(at))).await;
    assert_eq!(scene.b.fingerprint(), cluster.nodes[1].fingerprint());
    cluster.shutdown().await;
}

/// Checks that a peer that closes every stream is dialled at growing intervals, and that no get waits for it for a
/// second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_peer_is_dialled_rarely_and_delays_no_get() {
    let closing = Arc::new(Closing::default());
    let scene = Scene::start(&closing).await;
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    for key in scene.keys_of_a() {
        let asked = Instant::now();
        assert_eq!(scene.group.get(&key).await.expect("b loads the key"), format!("{key} by load 1"));
        slowest = slowest.max(asked.elapsed());
        if began.elapsed() > Duration::from_secs(3) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let connects = closing.connects.load(SeqCst);
    println!("{connects} connects in {:?}, the slowest get took {slowest:?}", began.elapsed());
    assert!((3..=30).contains(&connects), "{connects} connects in {:?}", began.elapsed());
    assert!(slowest < Duration::from_secs(1), "a get took {slowest:?}");
}

/// Checks that a peer that neither reads nor sends is found silent although no ping can be sent to it, that writes name
/// it as pending, and that it is connected again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_not_reading_is_silent_without_a_ping() {
    let not_reading = Arc::new(NotReading { sends: watch::Sender::new(true), unread: Mutex::default() });
    let scene = Scene::start(&not_reading).await;
    let keys: Vec<_> = scene.keys_of_a().take(8).collect();
    // The writes exceed what HTTP/2 accepts for a peer that does not read. Frames from the peer keep it from being
    // pinged.
    let mut writes = JoinSet::new();
    for key in keys.clone() {
        let group = scene.group.clone();
        writes.spawn(async move { group.set(&key, "v".repeat(900 << 10)).await });
    }
    eventually("the first write is sent", || scene.b.stats().requests_sent > 0).await;
    not_reading.sends.send_replace(false);
    eventually("b detects the silence", || scene.b.stats().ping_timeouts == 1).await;
    for written in writes.join_all().await {
        assert_eq!(written.expect("b stores the value").pending(), [PeerId::new("a").unwrap()]);
    }
    not_reading.sends.send_replace(true);
    // The peer keeps its unread streams and waits for more, so that nobody but the local node closes the connection.
    eventually("the peer is connected again", || {
        not_reading.unread.lock().unwrap().len() > 1 && scene.b.members().iter().all(|member| member.reachable)
    })
    .await;
    eventually("the abandoned connection is closed", || scene.path.open() == 1).await;
    for key in &keys {
        assert_eq!(scene.group.get(key).await.expect("b has the value").len(), 900 << 10);
    }
}

/// Peer that sends no Hello and accepts none.
#[derive(Default)]
struct NoHello {
    unread: Mutex<Vec<Streaming<Frame>>>,
}

impl Misbehaviour for NoHello {
    const WINDOW: u32 = 0;
    const SENDS_HELLO: bool = false;

    fn frames_after_hello(&self, inbound: Streaming<Frame>) -> Frames {
        self.unread.lock().unwrap().push(inbound);
        Box::pin(tokio_stream::pending())
    }
}

/// Checks that a peer that accepts no Hello is dialled repeatedly, and that all connections to it are closed once it is
/// no longer listed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_a_peer_accepting_no_hello_close() {
    let no_hello = Arc::new(NoHello::default());
    let (path, peers) = (listen(&no_hello).await, Peers::default());
    peers.set(vec![Peer::member(PeerId::new("a").unwrap(), [path.address.into()])]);
    let b = Node::builder().identity(identity("b")).provider(peers.clone()).start().await.unwrap();
    eventually("the peer is dialled three times", || no_hello.unread.lock().unwrap().len() == 3).await;
    peers.set(vec![support::peer(&b)]);
    eventually("all connections are closed", || path.open() == 0).await;
}

/// Checks that a process which was started again learns from the answer to its Hello which key may have ended the one
/// before, although its peer has not read the end of that connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_process_hears_the_strike_in_the_hello() {
    let scene = Scene::start(&Arc::new(Overweight)).await;
    let (key, address) = (scene.keys_of_a().next().unwrap(), scene.path.address);
    let asking = tokio::spawn({
        let (group, key) = (scene.group.clone(), key.clone());
        async move { group.get(&key).await }
    });
    eventually("the request is sent", || scene.b.stats().requests_sent > 0).await;
    let strikes = async |hello: Hello| {
        let first = Frame { hello: Some(hello), ..Frame::default() };
        let mut raw = Raw::open(scene.b.address(), first).await.unwrap();
        let answer = raw.answers.message().await.unwrap().unwrap();
        assert!(answer.hello.is_some());
        answer.suspects.into_iter().map(|suspect| suspect.key).collect::<Vec<_>>()
    };
    let hello = |addresses| Hello { id: "a".into(), incarnation: 2, addresses, ..raw::hello() };
    // Another node with the same id proves nothing.
    assert!(strikes(hello(vec!["127.0.0.1:1".into()])).await.is_empty());
    assert!(!asking.is_finished());
    assert_eq!(strikes(hello(vec![address.to_string()])).await, [key.as_bytes()]);
    assert_eq!(scene.group.stats().strikes, 1);
    asking.abort();
}
