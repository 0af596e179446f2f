//! Malformed and hostile input (P8): each bad input has an error of its own, and the other requests of its connection
//! and the listener keep working.

use std::time::Duration;

use crate::proto::{self, Frame, GetRequest, Hello, Request};
use crate::support::{
    self, Gate, Loads, PATIENCE, Peers, eventually, gated, identity,
    raw::{
        BAD_REQUEST, DECLINED, DONE, OVERLOADED, Raw, TOO_LARGE, UNSUPPORTED, VALUE, WRONG_PEER, client, get, hello,
        statuses,
    },
};
use groupcache_core::{BoxError, Group, Identity, Limits, Node, bytes::Bytes};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

/// Loads a key as its own value.
async fn echo(loads: &Loads, key: &str) -> Result<String, BoxError> {
    loads.begin(key);
    Ok(key.to_owned())
}

/// Starts node `a` with the group `data` and values of at most 64 KiB.
async fn node() -> (Node, Group<String>) {
    let mut limits = Limits::default();
    limits.max_value_bytes = 64 << 10;
    let node = Node::builder().identity(identity("a")).limits(limits).start().await.unwrap();
    let group =
        node.group::<String>("data").capacity_bytes(1 << 20).loader_with(Loads::default(), echo).build().unwrap();
    (node, group)
}

/// Checks that the node still serves a well-behaved peer.
async fn assert_serves(node: &Node) {
    let mut raw = Raw::greeted(node.address()).await;
    assert_eq!(statuses(&raw.ask(vec![get(1, "good")]).await), [VALUE]);
}

/// Checks that bad keys, unknown groups, other formats and unknown operations in one frame have a status each, and that
/// the good requests of the frame and later ones are served.
#[tokio::test]
async fn bad_requests_are_answered_among_good_ones() {
    let (node, _group) = node().await;
    let mut raw = Raw::greeted(node.address()).await;
    let answers = raw
        .ask(vec![
            get(1, "good"),
            get(2, ""),
            get(3, [b'k'; 1025]),
            get(4, [0xff, 0xfe]),
            Request { group: 8, ..get(5, "k") },
            Request { group: 12345, ..get(6, "k") },
            Request { group: 9, ..get(7, "k") },
            Request { op: 99, ..get(8, "k") },
            Request { no_load: true, ..get(9, "cold") },
            get(10, [b'k'; 1024]),
            Request { op: 2, ..get(11, "k") },
            Request { op: 1, value: Bytes::from_static(&[0xff]), ..get(12, "k") },
        ])
        .await;
    let (v, b, d) = (VALUE, BAD_REQUEST, DECLINED);
    assert_eq!(statuses(&answers), [v, b, b, b, d, d, d, UNSUPPORTED, d, v, DONE, d]);
    let reasons: Vec<_> = answers.iter().filter(|a| a.status == DECLINED).map(|a| a.reason).collect();
    assert_eq!(reasons, [1, 1, 3, 4, 3], "unknown group (twice), other format, not in memory, not decodable");
    assert!(
        answers[1].text.contains("empty") && answers[2].text.contains("1,024") && answers[3].text.contains("UTF-8")
    );
    assert_eq!(statuses(&raw.ask(vec![get(20, "again")]).await), [VALUE], "the connection still works");
}

/// Checks that a remove and a set in another format drop the local value, that the set stores nothing, and that a write
/// to an unknown group is declined.
#[tokio::test]
async fn writes_in_another_format_drop_the_value_and_store_none() {
    let (node, group) = node().await;
    let mut raw = Raw::greeted(node.address()).await;
    let other = |request: Request| Request { group: 9, ..request };
    let remove = Request { op: 2, ..get(1, "k") };
    let set = Request { op: 1, value: "theirs".into(), ..get(2, "k") };
    for (request, status, reason) in [(remove, DONE, 0), (set, DECLINED, 3)] {
        group.get("k").await.unwrap();
        assert_eq!(group.inspect().entries(), 1);
        let answers = raw.ask(vec![other(request)]).await;
        assert_eq!((answers[0].status, answers[0].reason, group.inspect().entries()), (status, reason, 0));
    }
    let unknown = Request { op: 2, group: 12345, ..get(3, "k") };
    assert_eq!(statuses(&raw.ask(vec![unknown]).await), [DECLINED]);
    assert_eq!(group.get("k").await.unwrap(), "k");
}

/// Checks that a draining node returns a cached value to a peer, and declines a request that would need a load.
#[tokio::test]
async fn draining_node_serves_peers_from_memory_only() {
    let (node, group) = node().await;
    group.get("warm").await.unwrap();
    let mut raw = Raw::greeted(node.address()).await;
    node.drain(Duration::from_secs(3)).await.unwrap();
    let answers = raw.ask(vec![get(1, "warm"), get(2, "cold")]).await;
    assert_eq!(statuses(&answers), [VALUE, DECLINED]);
    assert_eq!(answers[1].reason, 2, "draining");
    assert_eq!(group.stats().loads, 1);
}

/// Checks that a shutdown waits until a slow peer has read the responses queued for it.
#[tokio::test]
async fn shutdown_waits_until_a_peer_reads_its_responses() {
    let (node, group) = node().await;
    group.set("large", "v".repeat(60 << 10)).await.unwrap().log_pending();
    let mut raw = Raw::greeted(node.address()).await;
    // The responses exceed what HTTP/2 accepts from the node before its peer reads.
    let requests = (0..50).map(|id| get(id, "large")).collect();
    raw.frames.send(Frame { requests, ..Frame::default() }).await.unwrap();
    eventually("the node has served the requests", || group.stats().peer_request_hits == 50).await;
    let mut closing = tokio::spawn({
        let node = node.clone();
        async move { node.shutdown().await }
    });
    // A shutdown that did not wait would give its tasks 1 s to end and return.
    assert!(timeout(Duration::from_secs(2), &mut closing).await.is_err(), "the shutdown waits for the reader");
    assert_eq!(statuses(&raw.receive(50).await.unwrap()), [VALUE; 50]);
    closing.await.unwrap().unwrap();
}

/// Checks that cancels of unknown ids, a duplicate id, a long chain and a bad trace parent leave the node working.
#[tokio::test]
async fn duplicate_ids_and_unknown_cancels_are_harmless() {
    let (node, group) = node().await;
    let mut raw = Raw::greeted(node.address()).await;
    raw.frames.send(Frame { cancels: vec![0, 1, u64::MAX], ..Frame::default() }).await.unwrap();
    // A duplicate id has one response, or two if its value was in memory.
    let requests = vec![get(1, "x"), get(1, "x"), get(u64::MAX, "x")];
    raw.frames.send(Frame { requests, ..Frame::default() }).await.unwrap();
    let answers = raw.receive(2).await.unwrap();
    assert!(answers.iter().all(|answer| answer.status == VALUE), "{answers:?}");
    // The chain is long and arbitrary. The deadline of 1 ms may pass, for this request alone.
    let odd = Request { chain: vec![7; 1000], deadline_ms: 1, traceparent: "?".repeat(5000), ..get(2, "y") };
    raw.ask(vec![odd]).await;
    assert_eq!(group.get("x").await.unwrap(), "x");
}

/// Checks that a Hello of another cluster, of unsupported versions or with a bad id, and a first frame without a Hello,
/// are refused with the reason in the status, and that unknown states, features and zones are accepted.
#[tokio::test]
async fn unacceptable_hello_is_refused_with_a_reason() {
    let (node, _group) = node().await;
    let with = |change: fn(&mut Hello)| {
        let mut hello = hello();
        change(&mut hello);
        Frame { hello: Some(hello), ..Frame::default() }
    };
    for (first, expected) in [
        (with(|h| h.cluster = "orders".into()), "cluster"),
        (with(|h| (h.min_version, h.max_version) = (2, 9)), "versions 2 to 9"),
        (with(|h| h.id = String::new()), "peer id"),
        (with(|h| h.id = "x".repeat(1000)), "peer id"),
        (Frame { requests: vec![get(1, "k")], ..Frame::default() }, "Hello"),
    ] {
        let refused = Raw::open(node.address(), first).await.map(drop).expect_err(expected);
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains(expected), "{refused:?}");
    }
    // Odd values, but acceptable.
    let odd = with(|h| (h.weight, h.state, h.features, h.zone) = (65_535, 77, u64::MAX, "somewhere".into()));
    assert!(Raw::open(node.address(), odd).await.is_ok());
    assert_serves(&node).await;
    assert!(node.stats().rejected >= 5);
}

/// Checks that a connection with another expected id in its Hello receives the Hello of the node, and that its requests
/// are refused and change nothing.
#[tokio::test]
async fn hello_for_another_id_is_served_nothing() {
    let (node, group) = node().await;
    group.set("k", "old").await.unwrap().log_pending();
    let hello_for_b = Hello { expected_id: "b".into(), ..hello() };
    let mut raw =
        Raw::open(node.address(), Frame { hello: Some(hello_for_b), ..Frame::default() }).await.expect("greeted");
    let first = timeout(PATIENCE, raw.answers.message()).await.expect("in time").unwrap().unwrap();
    assert_eq!(first.hello.expect("a Hello").id, "a");
    let remove = Request { op: 2, ..get(2, "k") };
    assert_eq!(statuses(&raw.ask(vec![get(1, "k"), remove]).await), [WRONG_PEER, WRONG_PEER]);
    assert_eq!(group.get("k").await.unwrap(), "old", "the refused requests change nothing");
}

/// Checks that a second Hello with another id ends the stream, because a connection belongs to one node.
#[tokio::test]
async fn second_hello_with_another_id_is_refused() {
    let (node, _group) = node().await;
    let mut raw = Raw::greeted(node.address()).await;
    let other = Hello { id: "another".into(), ..hello() };
    raw.frames.send(Frame { hello: Some(other), ..Frame::default() }).await.unwrap();
    assert_eq!(raw.receive(1).await.expect_err("refused").code(), Code::FailedPrecondition);
    assert_serves(&node).await;
}

/// Checks that an oversized frame ends its stream with `OutOfRange`, and that an oversized value in a frame of allowed
/// size is refused for its own request only.
#[tokio::test]
async fn oversized_frame_ends_only_its_stream() {
    let (node, group) = node().await;
    let mut raw = Raw::greeted(node.address()).await;
    let huge = Request { op: 1, value: vec![0; 2 << 20].into(), ..get(1, "k") };
    raw.frames.send(Frame { requests: vec![huge], ..Frame::default() }).await.unwrap();
    let refused = raw.receive(1).await.expect_err("refused");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    // The first value exceeds the limit of a value, but not that of a frame, so that only this request is refused.
    let mut raw = Raw::greeted(node.address()).await;
    let large = Request { op: 1, value: vec![b'v'; 65 << 10].into(), ..get(1, "k") };
    assert_eq!(statuses(&raw.ask(vec![large, get(2, "good")]).await), [TOO_LARGE, VALUE]);
    assert!(group.get("k").await.is_ok());
    assert_serves(&node).await;
}

/// Checks that frames and Hellos of very many tiny fields are refused before they are decoded, because decoding would
/// multiply their size.
#[tokio::test]
async fn frame_of_many_tiny_fields_is_refused_undecoded() {
    let (node, _group) = node().await;
    let mut raw = Raw::greeted(node.address()).await;
    let requests = vec![Request::default(); 100_000]; // 200 KB, which decoding would turn into 18 MB
    raw.frames.send(Frame { requests, ..Frame::default() }).await.unwrap();
    let refused = raw.receive(1).await.expect_err("refused");
    assert!(refused.code() == Code::OutOfRange && refused.message().contains("parts"), "{refused:?}");
    let groups = vec![proto::Group::default(); 1 << 18];
    let first = Frame { hello: Some(Hello { groups, ..hello() }), ..Frame::default() };
    let refused = Raw::open(node.address(), first).await.map(drop).expect_err("refused");
    assert!(refused.message().contains("field 1"), "{refused:?}");
    assert_serves(&node).await;
}

/// Checks that a second `Connect` on one connection is refused with `ResourceExhausted`.
#[tokio::test]
async fn second_stream_of_a_connection_is_refused() {
    let (node, _group) = node().await;
    let mut client = client(node.address()).await;
    let mut begin = async || {
        let (frames, stream) = mpsc::channel(4);
        frames.send(Frame { hello: Some(hello()), ..Frame::default() }).await.unwrap();
        client.connect(ReceiverStream::new(stream)).await.map(|answers| (frames, answers))
    };
    let _first = begin().await.expect("greeted");
    let refused = begin().await.map(drop).expect_err("refused");
    assert!(refused.code() == Code::ResourceExhausted && refused.message().contains("one Connect"), "{refused:?}");
}

/// Checks that the first 1,024 requests of a frame are served and that the rest is answered `overloaded` with a retry
/// delay.
#[tokio::test]
async fn requests_above_1024_per_frame_are_overloaded() {
    let (node, _group) = node().await;
    let mut raw = Raw::greeted(node.address()).await;
    let answers = raw.ask((0..1500).map(|id| get(id, "k")).collect()).await;
    let finals: Vec<_> = answers.into_iter().filter(|answer| answer.status != 8).collect();
    assert_eq!(finals.iter().filter(|answer| answer.status == VALUE).count(), 1024);
    assert!(finals[1024..].iter().all(|answer| answer.status == OVERLOADED && answer.retry_after_ms > 0));
}

/// Checks that the requests of a peer that reads no responses are answered `overloaded` once the queue is full, and
/// that the node closes its stream if the refusals stay unread too.
#[tokio::test]
async fn peer_not_reading_is_overloaded_then_disconnected() {
    let (node, group) = node().await;
    let value = "v".repeat(60 << 10);
    group.set("large", value.clone()).await.unwrap().log_pending();
    let mut raw = Raw::greeted(node.address()).await;
    // 1,000 values of 60 KiB are requested and not read: 8 MiB are queued for the peer, the rest is refused.
    for at in 0..10 {
        let requests = (0..100).map(|n| get(at * 100 + n, "large")).collect();
        raw.frames.send(Frame { requests, ..Frame::default() }).await.unwrap();
    }
    assert_serves(&node).await;
    eventually("the node has received all requests", || group.stats().peer_requests >= 1000).await;
    let answers = raw.receive(1000).await.unwrap();
    let refused = answers.iter().filter(|answer| answer.status == OVERLOADED).count();
    assert!(refused > 500, "{refused} of 1,000 refused");
    assert!(answers.iter().any(|answer| answer.status == VALUE && answer.value.len() == value.len()));
    // Refusals are small, but the node does not queue them without end for a peer that reads nothing.
    let mut unread = Raw::greeted(node.address()).await;
    let rejected = node.stats().rejected;
    let flood = async {
        while node.stats().rejected == rejected {
            let requests = (0..1024).map(|n| get(n, "")).collect();
            let _ =
                timeout(Duration::from_millis(50), unread.frames.send(Frame { requests, ..Frame::default() })).await;
        }
    };
    timeout(PATIENCE, flood).await.expect("the node closes the stream");
    assert_eq!(unread.receive(usize::MAX).await.expect_err("closed by the node").code(), Code::ResourceExhausted);
    assert_serves(&node).await;
}

/// Checks that 200 connections of random bytes, half of them after a valid HTTP/2 preface, are closed, and that
/// well-formed connections are served afterwards.
#[tokio::test]
async fn garbage_bytes_end_only_their_connection() {
    let (node, group) = node().await;
    let mut rng = fastrand::Rng::with_seed(1);
    for round in 0..200 {
        let mut socket = TcpStream::connect(node.address()).await.unwrap();
        let mut bytes: Vec<u8> = (0..rng.usize(1..2000)).map(|_| rng.u8(..)).collect();
        if round % 2 == 0 {
            bytes.splice(0..0, *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); // passes the check of the preface
        }
        let _ = socket.write_all(&bytes).await;
        let _ = socket.shutdown().await;
        let _ = timeout(PATIENCE, socket.read_to_end(&mut Vec::new())).await.expect("closed");
    }
    let mut raw = Raw::greeted(node.address()).await;
    assert_eq!(statuses(&raw.ask(vec![get(1, "good")]).await), [VALUE]);
    assert_eq!(group.get("key").await.unwrap(), "key");
    assert_serves(&node).await;
}

/// Checks the statuses of the unary `Get`: a value, a bad key, an unknown group, another format, a key that is not in
/// memory, and the refusal of another cluster.
#[tokio::test]
async fn unary_get_has_the_same_statuses_as_the_stream() {
    let (node, _group) = node().await;
    let mut client = client(node.address()).await;
    let request =
        GetRequest { cluster: "default".into(), group: "data".into(), key: "k".into(), ..GetRequest::default() };
    let answer = client.get(request.clone()).await.unwrap().into_inner();
    assert_eq!((answer.status, &*answer.value), (VALUE, &b"k"[..]));
    let odd = [
        (GetRequest { key: Bytes::new(), ..request.clone() }, BAD_REQUEST),
        (GetRequest { group: "none".into(), ..request.clone() }, DECLINED),
        (GetRequest { format: 3, ..request.clone() }, DECLINED),
        (GetRequest { key: "cold".into(), no_load: true, ..request.clone() }, DECLINED),
    ];
    for (request, status) in odd {
        assert_eq!(client.get(request).await.unwrap().into_inner().status, status);
    }
    let other = client.get(GetRequest { cluster: "orders".into(), ..request }).await.expect_err("another cluster");
    assert_eq!(other.code(), Code::FailedPrecondition);
}

/// Checks that the connection of a caller that waits 90 s for a unary `Get`, and sends nothing meanwhile, stays open.
#[tokio::test]
async fn silent_caller_of_unary_get_stays_connected() {
    const LONG: Duration = Duration::from_secs(90);
    let (node, gate) = (Node::builder().start().await.unwrap(), Gate::default());
    let group = node.group::<String>("data").capacity_bytes(1 << 20).load_deadline(LONG * 2);
    let _group = group.loader_with(gate.clone(), gated).build().unwrap();
    let mut client = client(node.address()).await;
    let request =
        GetRequest { cluster: "default".into(), group: "data".into(), key: "k".into(), ..GetRequest::default() };
    let request = GetRequest { deadline_ms: LONG.as_millis() as u32 * 2, ..request };
    let answer = tokio::spawn(async move { client.get(request).await });
    gate.begun(1).await;
    // The listener checks its connections in each second of the paused time, and no bytes arrive from a socket.
    tokio::time::pause();
    tokio::time::sleep(LONG).await;
    tokio::time::resume();
    gate.open();
    assert_eq!(answer.await.unwrap().expect("the connection is still open").into_inner().status, VALUE);
}

/// Checks that two nodes of different clusters, listed to each other, refuse each other and do not become members.
#[tokio::test]
async fn nodes_of_two_clusters_refuse_each_other() {
    let peers = Peers::default();
    let start = async |name: &str, cluster: &str| {
        let me = identity(name).with_cluster(cluster).unwrap();
        Node::builder().identity(me).provider(peers.clone()).start().await.unwrap()
    };
    let (a, b) = (start("a", "users").await, start("b", "orders").await);
    peers.set(vec![support::peer(&a), support::peer(&b)]);
    eventually("both nodes refuse each other", || a.stats().refused > 0 && b.stats().refused > 0).await;
    assert_eq!((a.members().len(), b.members().len()), (1, 1));
}

/// Checks that a node with the id of a live peer does not start, and that the error names the address of the peer.
#[tokio::test]
async fn start_with_the_id_of_a_live_node_is_refused() {
    let peers = Peers::default();
    let first = Node::builder().identity(identity("a")).provider(peers.clone()).start().await.unwrap();
    peers.set(vec![support::peer(&first)]);
    let second = Node::builder().identity(identity("a")).provider(peers.clone()).start().await.expect_err("refused");
    assert!(second.is_config() && second.to_string().contains(&first.address().to_string()), "{second}");
}

/// Checks that a wildcard address without TLS needs `insecure()` and an advertised address, and that an address in use
/// is a configuration error.
#[tokio::test]
async fn start_on_an_exposed_port_needs_insecure() {
    let exposed = Identity::new("0.0.0.0:0".parse().unwrap());
    let refused = Node::builder().identity(exposed.clone()).start().await.expect_err("refused");
    assert!(refused.is_config() && refused.to_string().contains("insecure"), "{refused}");
    let unadvertised = Node::builder().identity(exposed).insecure().start().await.expect_err("no advertised address");
    assert!(unadvertised.to_string().contains("with_advertised"), "{unadvertised}");
    let first = Node::builder().start().await.unwrap();
    let again = Node::builder().identity(Identity::new(first.address())).start().await.expect_err("address in use");
    assert!(again.is_config() && again.to_string().contains(&first.address().to_string()), "{again}");
}
