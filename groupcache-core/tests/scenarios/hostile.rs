//! P8: bad input is an error of its own; the connection's other requests and the listener go on.

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

async fn echo(loads: &Loads, key: &str) -> Result<String, BoxError> {
    loads.begin(key);
    Ok(key.to_owned())
}

async fn node() -> (Node, Group<String>) {
    let mut limits = Limits::default();
    limits.max_value_bytes = 64 << 10;
    let node = Node::builder().identity(identity("a")).limits(limits).start().await.unwrap();
    let group =
        node.group::<String>("data").capacity_bytes(1 << 20).loader_with(Loads::default(), echo).build().unwrap();
    (node, group)
}

/// A well-behaved peer is served.
async fn serves(node: &Node) {
    let mut raw = Raw::greeted(node.address()).await;
    assert_eq!(statuses(&raw.ask(vec![get(1, "good")]).await), [VALUE]);
}

#[tokio::test]
async fn bad_keys_and_unknown_names_are_answered_one_by_one_among_good_ones() {
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
    assert_eq!(reasons, [1, 1, 3, 4, 3], "unknown group twice, other format, not held, not decodable");
    assert!(
        answers[1].text.contains("empty") && answers[2].text.contains("1,024") && answers[3].text.contains("UTF-8")
    );
    assert_eq!(statuses(&raw.ask(vec![get(20, "again")]).await), [VALUE], "the connection goes on");
}

#[tokio::test]
async fn writes_in_another_format_drop_the_value_and_store_none() {
    let (node, group) = node().await;
    let mut raw = Raw::greeted(node.address()).await;
    let other = |request: Request| Request { group: 9, ..request };
    let remove = Request { op: 2, ..get(1, "k") };
    let set = Request { op: 1, value: "theirs".into(), ..get(2, "k") };
    for (request, status, reason) in [(remove, DONE, 0), (set, DECLINED, 3)] {
        group.get("k").await.unwrap();
        assert_eq!(group.entries(), 1);
        let answers = raw.ask(vec![other(request)]).await;
        assert_eq!((answers[0].status, answers[0].reason, group.entries()), (status, reason, 0));
    }
    let unknown = Request { op: 2, group: 12345, ..get(3, "k") };
    assert_eq!(statuses(&raw.ask(vec![unknown]).await), [DECLINED]);
    assert_eq!(group.get("k").await.unwrap(), "k");
}

#[tokio::test]
async fn a_node_that_drains_answers_from_memory_and_loads_nothing_for_others() {
    let (node, group) = node().await;
    group.get("warm").await.unwrap();
    let mut raw = Raw::greeted(node.address()).await;
    node.drain().await.unwrap();
    let answers = raw.ask(vec![get(1, "warm"), get(2, "cold")]).await;
    assert_eq!(statuses(&answers), [VALUE, DECLINED]);
    assert_eq!(answers[1].reason, 2, "draining");
    assert_eq!(group.stats().loads, 1);
}

#[tokio::test]
async fn a_peer_that_reads_late_gets_what_it_was_owed_when_the_node_was_shut_down() {
    let (node, group) = node().await;
    group.set("large", "v".repeat(60 << 10)).await.unwrap().log_unreached();
    let mut raw = Raw::greeted(node.address()).await;
    // More than HTTP/2 takes from the node before its peer reads.
    let requests = (0..50).map(|id| get(id, "large")).collect();
    raw.frames.send(Frame { requests, ..Frame::default() }).await.unwrap();
    eventually("the requests are taken", || group.stats().served_hits == 50).await;
    let mut closing = tokio::spawn({
        let node = node.clone();
        async move { node.shutdown().await }
    });
    // One that does not wait gives its tasks a second to end, and is done.
    assert!(timeout(Duration::from_secs(2), &mut closing).await.is_err(), "it waits for the reader");
    assert_eq!(statuses(&raw.receive(50).await.unwrap()), [VALUE; 50]);
    closing.await.unwrap().unwrap();
}

#[tokio::test]
async fn ids_that_come_twice_and_cancels_of_nothing_harm_nobody() {
    let (node, group) = node().await;
    let mut raw = Raw::greeted(node.address()).await;
    raw.frames.send(Frame { cancels: vec![0, 1, u64::MAX], ..Frame::default() }).await.unwrap();
    // An id that comes twice is answered once, or twice when it was in memory.
    let requests = vec![get(1, "x"), get(1, "x"), get(u64::MAX, "x")];
    raw.frames.send(Frame { requests, ..Frame::default() }).await.unwrap();
    let answers = raw.receive(2).await.unwrap();
    assert!(answers.iter().all(|answer| answer.status == VALUE), "{answers:?}");
    // A chain of any length and content; the deadline of one millisecond may pass, and only for this one.
    let odd = Request { chain: vec![7; 1000], deadline_ms: 1, traceparent: "?".repeat(5000), ..get(2, "y") };
    raw.ask(vec![odd]).await;
    assert_eq!(group.get("x").await.unwrap(), "x");
}

#[tokio::test]
async fn a_hello_that_will_not_do_is_refused_in_words() {
    let (node, _group) = node().await;
    let with = |change: fn(&mut Hello)| {
        let mut hello = hello();
        change(&mut hello);
        Frame { hello: Some(hello), ..Frame::default() }
    };
    for (first, says) in [
        (with(|h| h.cluster = "orders".into()), "cluster"),
        (with(|h| (h.min_version, h.max_version) = (2, 9)), "versions 2 to 9"),
        (with(|h| h.id = String::new()), "peer id"),
        (with(|h| h.id = "x".repeat(1000)), "peer id"),
        (Frame { requests: vec![get(1, "k")], ..Frame::default() }, "Hello"),
    ] {
        let refused = Raw::open(node.address(), first).await.map(drop).expect_err(says);
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains(says), "{refused:?}");
    }
    // Strange, and no reason to refuse.
    let odd = with(|h| (h.weight, h.state, h.features, h.zone) = (65_535, 77, u64::MAX, "somewhere".into()));
    assert!(Raw::open(node.address(), odd).await.is_ok());
    serves(&node).await;
    assert!(node.stats().rejected >= 5);
}

#[tokio::test]
async fn who_wants_somebody_else_is_told_who_is_here_and_served_nothing() {
    let (node, group) = node().await;
    group.set("k", "held").await.unwrap().log_unreached();
    let wants = Hello { expected_id: "b".into(), ..hello() };
    let mut raw = Raw::open(node.address(), Frame { hello: Some(wants), ..Frame::default() }).await.expect("greeted");
    let first = timeout(PATIENCE, raw.answers.message()).await.expect("in time").unwrap().unwrap();
    assert_eq!(first.hello.expect("a Hello").id, "a");
    let remove = Request { op: 2, ..get(2, "k") };
    assert_eq!(statuses(&raw.ask(vec![get(1, "k"), remove]).await), [WRONG_PEER, WRONG_PEER]);
    assert_eq!(group.get("k").await.unwrap(), "held", "nor does it change anything");
}

#[tokio::test]
async fn a_connection_speaks_for_one_node_all_its_life() {
    let (node, _group) = node().await;
    let mut raw = Raw::greeted(node.address()).await;
    let other = Hello { id: "another".into(), ..hello() };
    raw.frames.send(Frame { hello: Some(other), ..Frame::default() }).await.unwrap();
    assert_eq!(raw.receive(1).await.expect_err("refused").code(), Code::FailedPrecondition);
    serves(&node).await;
}

#[tokio::test]
async fn a_frame_that_is_too_large_ends_its_stream_in_words_and_nothing_else() {
    let (node, group) = node().await;
    let mut raw = Raw::greeted(node.address()).await;
    let huge = Request { op: 1, value: vec![0; 2 << 20].into(), ..get(1, "k") };
    raw.frames.send(Frame { requests: vec![huge], ..Frame::default() }).await.unwrap();
    let refused = raw.receive(1).await.expect_err("refused");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    // One value above the limit, in a frame that is not: this request alone.
    let mut raw = Raw::greeted(node.address()).await;
    let large = Request { op: 1, value: vec![b'v'; 65 << 10].into(), ..get(1, "k") };
    assert_eq!(statuses(&raw.ask(vec![large, get(2, "good")]).await), [TOO_LARGE, VALUE]);
    assert!(group.get("k").await.is_ok());
    serves(&node).await;
}

#[tokio::test]
async fn a_frame_of_very_many_very_small_parts_is_refused_before_it_is_decoded() {
    let (node, _group) = node().await;
    let mut raw = Raw::greeted(node.address()).await;
    let requests = vec![Request::default(); 100_000]; // 200 KB that would become 18 MB
    raw.frames.send(Frame { requests, ..Frame::default() }).await.unwrap();
    let refused = raw.receive(1).await.expect_err("refused");
    assert!(refused.code() == Code::OutOfRange && refused.message().contains("parts"), "{refused:?}");
    let groups = vec![proto::Group::default(); 1 << 18];
    let first = Frame { hello: Some(Hello { groups, ..hello() }), ..Frame::default() };
    let refused = Raw::open(node.address(), first).await.map(drop).expect_err("refused");
    assert!(refused.message().contains("part 1"), "{refused:?}");
    serves(&node).await;
}

#[tokio::test]
async fn a_connection_has_one_stream_of_frames() {
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

#[tokio::test]
async fn more_requests_than_a_frame_may_hold_are_answered_overloaded() {
    let (node, _group) = node().await;
    let mut raw = Raw::greeted(node.address()).await;
    let answers = raw.ask((0..1500).map(|id| get(id, "k")).collect()).await;
    let finals: Vec<_> = answers.into_iter().filter(|answer| answer.status != 8).collect();
    assert_eq!(finals.iter().filter(|answer| answer.status == VALUE).count(), 1024);
    assert!(finals[1024..].iter().all(|answer| answer.status == OVERLOADED && answer.retry_after_ms > 0));
}

#[tokio::test]
async fn a_peer_that_reads_no_answers_is_told_overloaded_and_then_cut_off() {
    let (node, group) = node().await;
    let value = "v".repeat(60 << 10);
    group.set("large", value.clone()).await.unwrap().log_unreached();
    let mut raw = Raw::greeted(node.address()).await;
    // 1,000 × 60 KiB are asked for and not read: 8 MiB wait for the reader, the rest is refused.
    for at in 0..10 {
        let requests = (0..100).map(|n| get(at * 100 + n, "large")).collect();
        raw.frames.send(Frame { requests, ..Frame::default() }).await.unwrap();
    }
    serves(&node).await;
    eventually("all was asked for, and nothing read for a second", || group.stats().served >= 1000).await;
    let answers = raw.receive(1000).await.unwrap();
    let refused = answers.iter().filter(|answer| answer.status == OVERLOADED).count();
    assert!(refused > 500, "{refused} of 1,000 refused");
    assert!(answers.iter().any(|answer| answer.status == VALUE && answer.value.len() == value.len()));
    // Refusals are small, but a peer that reads nothing at all does not get them without end.
    let mut deaf = Raw::greeted(node.address()).await;
    let rejected = node.stats().rejected;
    let flood = async {
        while node.stats().rejected == rejected {
            let requests = (0..1024).map(|n| get(n, "")).collect();
            let _ = timeout(Duration::from_millis(50), deaf.frames.send(Frame { requests, ..Frame::default() })).await;
        }
    };
    timeout(PATIENCE, flood).await.expect("it is cut off");
    assert_eq!(deaf.receive(usize::MAX).await.expect_err("cut off").code(), Code::ResourceExhausted);
    serves(&node).await;
}

#[tokio::test]
async fn garbage_at_the_port_ends_that_connection_only() {
    let (node, group) = node().await;
    let mut rng = fastrand::Rng::with_seed(1);
    for round in 0..200 {
        let mut socket = TcpStream::connect(node.address()).await.unwrap();
        let mut bytes: Vec<u8> = (0..rng.usize(1..2000)).map(|_| rng.u8(..)).collect();
        if round % 2 == 0 {
            bytes.splice(0..0, *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); // gets past the preface
        }
        let _ = socket.write_all(&bytes).await;
        let _ = socket.shutdown().await;
        let _ = timeout(PATIENCE, socket.read_to_end(&mut Vec::new())).await.expect("closed");
    }
    // Frames of gRPC that are no protobuf.
    let mut raw = Raw::greeted(node.address()).await;
    assert_eq!(statuses(&raw.ask(vec![get(1, "good")]).await), [VALUE]);
    assert_eq!(group.get("key").await.unwrap(), "key");
    serves(&node).await;
}

#[tokio::test]
async fn the_unary_get_answers_as_precisely() {
    let (node, _group) = node().await;
    let mut client = client(node.address()).await;
    let ask = GetRequest { cluster: "default".into(), group: "data".into(), key: "k".into(), ..GetRequest::default() };
    let answer = client.get(ask.clone()).await.unwrap().into_inner();
    assert_eq!((answer.status, &*answer.value), (VALUE, &b"k"[..]));
    let odd = [
        (GetRequest { key: Bytes::new(), ..ask.clone() }, BAD_REQUEST),
        (GetRequest { group: "none".into(), ..ask.clone() }, DECLINED),
        (GetRequest { format: 3, ..ask.clone() }, DECLINED),
        (GetRequest { key: "cold".into(), no_load: true, ..ask.clone() }, DECLINED),
    ];
    for (ask, status) in odd {
        assert_eq!(client.get(ask).await.unwrap().into_inner().status, status);
    }
    let other = client.get(GetRequest { cluster: "orders".into(), ..ask }).await.expect_err("another cluster");
    assert_eq!(other.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn who_waits_for_a_unary_get_need_say_nothing_meanwhile() {
    const LONG: Duration = Duration::from_secs(90);
    let (node, gate) = (Node::builder().start().await.unwrap(), Gate::default());
    let group = node.group::<String>("data").capacity_bytes(1 << 20).load_deadline(LONG * 2);
    let _group = group.loader_with(gate.clone(), gated).build().unwrap();
    let mut client = client(node.address()).await;
    let ask = GetRequest { cluster: "default".into(), group: "data".into(), key: "k".into(), ..GetRequest::default() };
    let ask = GetRequest { deadline_ms: LONG.as_millis() as u32 * 2, ..ask };
    let answer = tokio::spawn(async move { client.get(ask).await });
    gate.begun(1).await;
    // The listener looks at its connections each second of these, and nothing comes from a socket.
    tokio::time::pause();
    tokio::time::sleep(LONG).await;
    tokio::time::resume();
    gate.open();
    assert_eq!(answer.await.unwrap().expect("it is connected").into_inner().status, VALUE);
}

#[tokio::test]
async fn nodes_of_another_cluster_do_not_join() {
    let peers = Peers::default();
    let start = async |name: &str, cluster: &str| {
        let me = identity(name).with_cluster(cluster).unwrap();
        Node::builder().identity(me).provider(peers.clone()).start().await.unwrap()
    };
    let (a, b) = (start("a", "users").await, start("b", "orders").await);
    peers.set(vec![support::peer(&a), support::peer(&b)]);
    eventually("each refuses the other", || a.stats().refused > 0 && b.stats().refused > 0).await;
    assert_eq!((a.members().len(), b.members().len()), (1, 1));
}

#[tokio::test]
async fn two_live_nodes_of_one_id_are_told_apart_at_start() {
    let peers = Peers::default();
    let first = Node::builder().identity(identity("a")).provider(peers.clone()).start().await.unwrap();
    peers.set(vec![support::peer(&first)]);
    let second = Node::builder().identity(identity("a")).provider(peers.clone()).start().await.expect_err("refused");
    assert!(second.is_config() && second.to_string().contains(&first.address().to_string()), "{second}");
}

#[tokio::test]
async fn an_exposed_port_must_be_asked_for() {
    let exposed = Identity::new("0.0.0.0:0".parse().unwrap());
    let refused = Node::builder().identity(exposed.clone()).start().await.expect_err("refused");
    assert!(refused.is_config() && refused.to_string().contains("insecure"), "{refused}");
    let nameless = Node::builder().identity(exposed).insecure().start().await.expect_err("no address to dial");
    assert!(nameless.to_string().contains("with_advertised"), "{nameless}");
    let taken = Node::builder().start().await.unwrap();
    let again = Node::builder().identity(Identity::new(taken.address())).start().await.expect_err("taken");
    assert!(again.is_config() && again.to_string().contains(&taken.address().to_string()), "{again}");
}
