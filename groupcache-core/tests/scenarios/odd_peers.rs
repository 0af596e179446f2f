//! Peers that are wire-compatible and of no use: callers do not pay for them.

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
use crate::support::{self, Cluster, Gate, Peers, Proxy, eventually, gated, identity, name};
use groupcache_core::{Group, MAX_WEIGHT, Node, Peer, PeerId};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};

type Frames = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

/// A node `a` that is none.
trait Odd: Send + Sync + 'static {
    /// What it takes of a stream before it has read any of it.
    const WINDOW: u32 = 65_535;

    /// Whether it says Hello.
    const GREETS: bool = true;

    /// The share of the keys that it asks for.
    fn weight(&self) -> u32 {
        1
    }

    /// What it says after its Hello.
    fn goes_on(&self, inbound: Streaming<Frame>) -> Frames;
}

struct Server<O>(Arc<O>);

#[tonic::async_trait]
impl<O: Odd> Service for Server<O> {
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
            groups: vec![proto::Group { index: 1, name: "data".into(), format: 0 }],
            ..Hello::default()
        };
        let first = O::GREETS.then(|| Ok(Frame { hello: Some(hello), ..Frame::default() }));
        let first = tokio_stream::iter(first);
        Ok(Response::new(Box::pin(first.chain(self.0.goes_on(request.into_inner())))))
    }

    async fn get(&self, _: Request<GetRequest>) -> Result<Response<Answer>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// Lets such a peer listen; the path to it.
async fn listen<O: Odd>(peer: &Arc<O>) -> Proxy {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let path = Proxy::start(incoming.local_addr().unwrap()).await;
    let service = PeerServer::new(Server(Arc::clone(peer)));
    let mut server = tonic::transport::Server::builder().initial_stream_window_size(O::WINDOW);
    tokio::spawn(server.add_service(service).serve_with_incoming(incoming));
    path
}

/// Node `b`, of which every other key belongs to such a peer.
struct Scene {
    b: Node,
    group: Group<String>,
    /// What lies between it and the peer.
    path: Proxy,
    _peers: Peers,
}

impl Scene {
    async fn start(peer: &Arc<impl Odd>) -> Self {
        let path = listen(peer).await;
        let peers = Peers::default();
        let b = Node::builder().identity(identity("b")).provider(peers.clone()).start().await.unwrap();
        let gate = Gate::default();
        gate.open();
        let group = b.group::<String>("data").capacity_bytes(256 << 20).loader_with(gate, gated).build().unwrap();
        peers.set(vec![Peer::member(PeerId::new("a").unwrap(), [path.address.into()]), support::peer(&b)]);
        eventually("it is a member, since it said Hello", || b.members().len() == 2).await;
        Self { b, group, path, _peers: peers }
    }

    fn keys_of_a(&self) -> impl Iterator<Item = String> {
        (0..).map(|n| format!("key-{n}")).filter(|key| self.group.owner_of(key).as_str() == "a")
    }
}

/// Closes after its Hello.
#[derive(Default)]
struct Fickle {
    connects: AtomicU64,
}

impl Odd for Fickle {
    fn goes_on(&self, _: Streaming<Frame>) -> Frames {
        self.connects.fetch_add(1, SeqCst);
        Box::pin(tokio_stream::empty())
    }
}

/// Says something all the time until it is silenced, and never reads.
struct Deaf {
    speaks: watch::Sender<bool>,
    unread: Mutex<Vec<Streaming<Frame>>>,
}

impl Odd for Deaf {
    fn goes_on(&self, inbound: Streaming<Frame>) -> Frames {
        self.unread.lock().unwrap().push(inbound);
        let (frames, stream) = mpsc::channel(1);
        let mut speaks = self.speaks.subscribe();
        tokio::spawn(async move {
            while frames.send(Ok(Frame::default())).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let _ = speaks.wait_for(|speaks| *speaks).await;
            }
        });
        Box::pin(ReceiverStream::new(stream))
    }
}

/// Wants all keys, and answers none.
struct Greedy;

impl Odd for Greedy {
    fn weight(&self) -> u32 {
        65_535
    }

    fn goes_on(&self, inbound: Streaming<Frame>) -> Frames {
        Box::pin(inbound.filter_map(|_| None))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_announces_more_weight_than_there_is_gets_no_more_than_the_greatest() {
    let scene = Scene::start(&Arc::new(Greedy)).await;
    let keys = (0..1700).map(|n| format!("key-{n}"));
    let left = keys.filter(|key| scene.group.owner_of(key).as_str() == "b").count();
    assert!((50..200).contains(&left), "{left} of 1,700, about one in 17");
    // The ring is that of a node that has the greatest weight.
    let greatest = |at: usize| identity(&name(at)).with_weight([MAX_WEIGHT, 1][at]).unwrap();
    let cluster = Cluster::start_each(2, |at, builder| builder.identity(greatest(at))).await;
    assert_eq!(scene.b.fingerprint(), cluster.nodes[1].fingerprint());
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_closes_every_connection_is_dialled_ever_more_rarely_and_waited_for_by_nobody() {
    let fickle = Arc::new(Fickle::default());
    let scene = Scene::start(&fickle).await;
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    for key in scene.keys_of_a() {
        let asked = Instant::now();
        assert_eq!(scene.group.get(&key).await.expect("loaded here"), format!("{key} by load 1"));
        slowest = slowest.max(asked.elapsed());
        if began.elapsed() > Duration::from_secs(3) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let connects = fickle.connects.load(SeqCst);
    println!("{connects} connects in {:?}, the slowest get took {slowest:?}", began.elapsed());
    assert!((3..=30).contains(&connects), "{connects} connects in {:?}", began.elapsed());
    assert!(slowest < Duration::from_secs(1), "a get took {slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_reads_nothing_is_silent_though_no_ping_can_be_sent_to_it() {
    let deaf = Arc::new(Deaf { speaks: watch::Sender::new(true), unread: Mutex::default() });
    let scene = Scene::start(&deaf).await;
    let keys: Vec<_> = scene.keys_of_a().take(8).collect();
    // More than HTTP/2 takes from us for somebody who does not read. What it says keeps it from being pinged.
    let mut writes = JoinSet::new();
    for key in keys.clone() {
        let group = scene.group.clone();
        writes.spawn(async move { group.set(&key, "v".repeat(900 << 10)).await });
    }
    eventually("the first is sent", || scene.b.stats().requests_sent > 0).await;
    deaf.speaks.send_replace(false);
    eventually("its silence is noticed", || scene.b.stats().silent == 1).await;
    for written in writes.join_all().await {
        assert_eq!(written.expect("stored here").unreached(), [PeerId::new("a").unwrap()]);
    }
    deaf.speaks.send_replace(true);
    // It has kept what it has not read, and waits for more: nobody but us closes the connection.
    eventually("it is connected again", || {
        deaf.unread.lock().unwrap().len() > 1 && scene.b.members().iter().all(|member| member.is_reachable)
    })
    .await;
    eventually("the connection that was given up is closed", || scene.path.open() == 1).await;
    for key in &keys {
        assert_eq!(scene.group.get(key).await.expect("served here").len(), 900 << 10);
    }
}

/// Answers without a Hello, and takes not even ours.
#[derive(Default)]
struct Mute {
    unread: Mutex<Vec<Streaming<Frame>>>,
}

impl Odd for Mute {
    const WINDOW: u32 = 0;
    const GREETS: bool = false;

    fn goes_on(&self, inbound: Streaming<Frame>) -> Frames {
        self.unread.lock().unwrap().push(inbound);
        Box::pin(tokio_stream::pending())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_takes_not_even_a_hello_is_left_with_no_connection() {
    let mute = Arc::new(Mute::default());
    let (path, peers) = (listen(&mute).await, Peers::default());
    peers.set(vec![Peer::member(PeerId::new("a").unwrap(), [path.address.into()])]);
    let b = Node::builder().identity(identity("b")).provider(peers.clone()).start().await.unwrap();
    eventually("it is dialled again and again", || mute.unread.lock().unwrap().len() == 3).await;
    peers.set(vec![support::peer(&b)]);
    eventually("all are closed", || path.open() == 0).await;
}
