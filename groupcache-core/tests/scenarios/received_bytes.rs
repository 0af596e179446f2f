//! The budget of received bytes: an honest burst of large sets loses no connection, and messages that are never finished
//! end connections, which are counted.

use futures_util::future::join_all;
use groupcache_core::{Group, Limits, Node, bytes::Bytes};

use crate::{
    proto::{Frame, Request},
    support::{
        eventually, identity,
        raw::{DONE, Raw, VALUE, get, statuses},
    },
};

/// Status of an answer that announces another one.
const PENDING: u32 = 8;

/// Size of the values: eleven of them exceed the budget of 32 MiB.
const VALUE_BYTES: usize = 3 << 20;

async fn node() -> (Node, Group<Bytes>) {
    let mut limits = Limits::default();
    limits.max_value_bytes = VALUE_BYTES;
    let node = Node::builder().identity(identity("a")).limits(limits).start().await.unwrap();
    let load = async |_: &str| Ok::<_, std::io::Error>(Bytes::from_static(b"loaded"));
    let group = node.group::<Bytes>("data").capacity_bytes(64 << 20).loader(load).build().unwrap();
    (node, group)
}

/// Checks that eleven peers set values of 3 MiB at once, five times, without the end of a connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn burst_of_large_sets_loses_no_connection() {
    let (node, group) = node().await;
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let mut peers = join_all((0..11).map(|_| Raw::greeted(node.address()))).await;
    for round in 0..5 {
        let sets = peers.iter_mut().enumerate().map(async |(at, peer)| {
            let set = Request { op: 1, value: value.clone(), ..get(1, format!("{round} {at}")) };
            let mut answers = statuses(&peer.ask(vec![set]).await);
            while answers.iter().all(|status| *status == PENDING) {
                answers = statuses(&peer.receive(1).await.expect("the final answer"));
            }
            answers.retain(|status| *status != PENDING);
            answers
        });
        assert_eq!(join_all(sets).await, [[DONE]; 11], "round {round}");
    }
    assert_eq!((node.stats().connections_over_budget, node.stats().rejected), (0, 0));
    assert!(group.inspect().entries() > 0);
}

/// Returns a frame with a set, which lacks its last byte.
fn unfinished() -> Vec<u8> {
    use prost::Message;
    let set = Request { op: 1, value: vec![b'v'; VALUE_BYTES].into(), ..get(1, "key") };
    let mut message = Frame { requests: vec![set], ..Frame::default() }.encode_to_vec();
    let prefix = u32::try_from(message.len()).unwrap().to_be_bytes();
    message.pop();
    [&[0], &prefix[..], &message].concat()
}

/// Checks that the holders of unfinished messages end and are counted apart from those that made room for others, and
/// that another peer is served meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_messages_end_connections_and_are_counted() {
    let (node, _group) = node().await;
    let mut peer = Raw::greeted(node.address()).await;
    let message = unfinished();
    let mut open = Vec::new();
    for _ in 0..40 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let (requests, connection) =
            h2::client::handshake(socket.connect(node.address()).await.unwrap()).await.unwrap();
        tokio::spawn(connection);
        let request = tonic::codegen::http::Request::post("http://node/groupcache.v1.Peer/Get");
        let request = request.header("content-type", "application/grpc").header("te", "trailers").body(()).unwrap();
        let Ok(mut requests) = requests.ready().await else { continue };
        let Ok((_, mut stream)) = requests.send_request(request, false) else { continue };
        let _ = stream.send_data(message.clone().into(), false);
        open.push((requests, stream));
    }
    eventually("holders end", || node.stats().connections_over_budget > 0).await;
    assert_eq!(node.stats().connections_evicted, 0);
    for id in 0..100 {
        assert_eq!(statuses(&peer.ask(vec![get(id, format!("key-{id}"))]).await), [VALUE]);
    }
}
