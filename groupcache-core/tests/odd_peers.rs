//! Peers that are wire-compatible and of no use: callers do not pay for them.
#![allow(
    unreachable_pub,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test may stop at the first surprise, and the network is its own"
)]

#[path = "../src/proto/groupcache.v1.rs"]
#[allow(clippy::allow_attributes, unreachable_pub, missing_docs, reason = "generated")]
mod proto;
mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use groupcache_core::{Node, Peer, PeerId};
use proto::{
    Answer, Frame, GetRequest, Hello,
    peer_server::{Peer as Service, PeerServer},
};
use support::{Gate, Peers, eventually, gated, identity};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};

/// Says Hello to whoever connects, and closes.
#[derive(Clone, Default)]
struct Fickle {
    connects: Arc<AtomicU64>,
}

#[tonic::async_trait]
impl Service for Fickle {
    type ConnectStream = tokio_stream::Once<Result<Frame, Status>>;

    async fn connect(&self, _: Request<Streaming<Frame>>) -> Result<Response<Self::ConnectStream>, Status> {
        self.connects.fetch_add(1, SeqCst);
        let hello = Hello {
            min_version: 1,
            max_version: 1,
            cluster: "default".into(),
            id: "a".into(),
            incarnation: 1,
            state: 2,
            weight: 1,
            groups: vec![proto::Group { index: 1, name: "data".into(), format: 0 }],
            ..Hello::default()
        };
        Ok(Response::new(tokio_stream::once(Ok(Frame { hello: Some(hello), ..Frame::default() }))))
    }

    async fn get(&self, _: Request<GetRequest>) -> Result<Response<Answer>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

impl Fickle {
    fn listen(&self) -> SocketAddr {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap();
        let service = PeerServer::new(self.clone());
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        address
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_closes_every_connection_is_dialled_ever_more_rarely_and_waited_for_by_nobody() {
    let peers = Peers::default();
    let fickle = Fickle::default();
    let b = Node::builder().identity(identity("b")).provider(peers.clone()).start().await.unwrap();
    let gate = Gate::default();
    gate.open();
    let group = b.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated).build().unwrap();
    peers.set(vec![Peer::member(PeerId::new("a").unwrap(), [fickle.listen().into()]), support::peer(&b)]);
    eventually("it is a member, since it said Hello", || b.members().len() == 2).await;

    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    let keys = (0..).map(|n| format!("key-{n}")).filter(|key| group.owner_of(key).as_str() == "a");
    for key in keys {
        let asked = Instant::now();
        assert_eq!(group.get(&key).await.expect("loaded here"), format!("{key} by load 1"));
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
