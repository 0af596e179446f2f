//! Nodes that disagree about the owner of a key, and other tests that need the inside of a node.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use crate::{
    Group, Node,
    identity::{Incarnation, Instance, PeerId},
    membership::{stabilizer::MemberSet, view::View},
    testing::unit::support::{Cluster, Gate, Loads, eventually},
    write::log::Entry,
};

const LOAD: Duration = Duration::from_millis(300);

async fn slow(loads: &Loads, key: &str) -> Result<String, crate::BoxError> {
    let number = loads.begin(key);
    tokio::time::sleep(LOAD).await;
    Ok(number.to_string())
}

/// Installs a view at `node` in which these members own the keys.
fn install_owners(node: &Node, owners: &[&str]) {
    let context = &node.inner.context;
    let view = context.view();
    let mut members = view.members().to_vec();
    for member in &mut members {
        member.share = u8::from(owners.contains(&member.id.as_str()));
    }
    context.install_view(View::new(view.epoch + 1, MemberSet { members }));
}

/// Starts three nodes with a group of the slow loader.
async fn three_nodes(loads: &Loads) -> (Cluster, Vec<Group<String>>) {
    let cluster = Cluster::start(3).await;
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(loads.clone(), slow))
        .await;
    (cluster, groups)
}

/// Gets three keys in turn, each with many callers at all nodes at once, and checks that the gets of the fastest key
/// end within 100 ms of the loader's time.
///
/// A busy machine may delay one of the keys, while a time-out would delay each.
async fn all_get(groups: &[Group<String>], loads: &Loads, most_loads: u64) {
    let mut took = Vec::new();
    for key in ["first", "second", "third"] {
        let began = Instant::now();
        let mut callers = tokio::task::JoinSet::new();
        for group in groups {
            for _ in 0..50 {
                let group = group.clone();
                callers.spawn(async move { group.get(key).await });
            }
        }
        for value in callers.join_all().await {
            value.expect("a value");
        }
        took.push(began.elapsed());
        assert!((1..=most_loads).contains(&loads.of(key)), "{} loads", loads.of(key));
    }
    let best = took.iter().min().expect("three");
    assert!(*best < LOAD + Duration::from_millis(100), "no get waits for a time-out: {took:?}");
}

/// Checks that two nodes that each take the other for the owner load at most once each, without waiting for each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_with_swapped_owners_load_without_waiting() {
    let loads = Loads::default();
    let (cluster, groups) = three_nodes(&loads).await;
    install_owners(&cluster.nodes[0], &["b"]);
    install_owners(&cluster.nodes[1], &["a"]);
    all_get(&groups[..2], &loads, 2).await;
    cluster.shutdown().await;
}

/// Checks that three nodes with owners in a circle load at most once each, without waiting for each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_with_owners_in_a_circle_load_once_each() {
    let loads = Loads::default();
    let (cluster, groups) = three_nodes(&loads).await;
    for (node, owner) in [(0, "b"), (1, "c"), (2, "a")] {
        install_owners(&cluster.nodes[node], &[owner]);
    }
    all_get(&groups, &loads, 3).await;
    cluster.shutdown().await;
}

/// Checks that a node that receives a request for a key of another node loads it, and keeps the value for 5 s at most.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn misdirected_request_keeps_value_for_short_time() {
    let loads = Loads::default();
    let (cluster, groups) = three_nodes(&loads).await;
    install_owners(&cluster.nodes[0], &["b"]); // node b has the real view, in which it owns only its share
    let key = (0..).map(|n| format!("key-{n}")).find(|key| groups[1].inspect().owner_of(key).as_str() == "c").unwrap();
    groups[0].get(&key).await.unwrap();
    let kept = groups[1].kept_for_ms(&key).expect("kept");
    assert!(kept <= 5_000, "the fallback cap bounds the time: {kept} ms");
    assert_eq!(groups[1].stats().fallback_loads, 1);
    cluster.shutdown().await;
}

/// Returns the number of the load. The first load waits for the gate.
async fn first_waits(gate: &Gate, key: &str) -> Result<String, crate::BoxError> {
    let number = gate.loads.begin(key);
    if number == 1 {
        gate.pass().await;
    }
    Ok(number.to_string())
}

/// Applies a write of another node at one node only, as if that node alone had heard of it.
fn hear(node: &Node, group: &Group<String>, key: &str, number: u64) {
    let (writes, now_ms) = (&node.inner.context.local.writes, node.inner.context.now_ms());
    let writer = Instance { id: PeerId::new("writer").unwrap(), incarnation: Incarnation(1) };
    let entry = Entry { number, group: group.name().into(), key: Some(key.into()), written_ms: now_ms };
    let entry = writes.begin(&writer, entry, now_ms).expect("a new write");
    group.service().invalidate(key);
    writes.commit(&writer, entry, now_ms);
}

/// Checks that a get of a node that has heard of a write returns no value from before it, although the owner has not
/// heard of the write and a load from before the write runs there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owner_is_told_of_write_by_the_get_of_a_peer() {
    let gate = Gate::default();
    let cluster = Cluster::start(2).await;
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), first_waits))
        .await;
    let key = cluster.key_of(&groups, 0);
    let get = |group: &Group<String>| {
        let (group, key) = (group.clone(), key.clone());
        tokio::spawn(async move { group.get(&key).await.expect("a value") })
    };
    let before = get(&groups[0]);
    gate.begun(1).await;
    hear(&cluster.nodes[1], &groups[1], &key, 1);
    assert_eq!(get(&groups[1]).await.unwrap(), "2", "node a drops its load, because the request names the write");
    gate.open();
    assert_eq!(before.await.unwrap(), "1");
    for group in &groups {
        assert_eq!(get(group).await.unwrap(), "2", "the earlier value is not cached");
    }
    assert_eq!(gate.loads.total(), 2, "callers after the write share its load");
    hear(&cluster.nodes[1], &groups[1], &key, 2);
    assert_eq!(get(&groups[1]).await.unwrap(), "3", "node a drops its value too");
    cluster.shutdown().await;
}

/// Checks that the watch over loads does not overflow when the load deadline is [`Duration::MAX`].
#[tokio::test]
async fn load_watch_accepts_an_infinite_deadline() {
    let node = Node::builder().start().await.unwrap();
    let echo = async |key: &str| Ok::<_, crate::BoxError>(key.to_owned());
    let group = node.group::<String>("data").capacity_bytes(1 << 20).load_deadline(Duration::MAX).loader(echo);
    let group = group.build().unwrap();
    group.service().watch(); // as the tick does, which must not panic here
    assert_eq!(group.get("key").await.unwrap(), "key");
}

/// Returns a frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [.., a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[a, b, c, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// Returns the HPACK block of a unary get.
fn headers_of_get() -> Vec<u8> {
    let path = "/groupcache.v1.Peer/Get";
    let begin = [0x83, 0x86, 0x04, path.len() as u8]; // POST, http
    let rest = b"\x01\x04node\x0f\x10\x10application/grpc\0\x02te\x08trailers";
    [&begin[..], path.as_bytes(), rest].concat()
}

/// Checks that headers count while their request waits for its message, and that no received byte stays counted once it
/// is taken: of frames and values of peers, and of a client with a connection that stays open after padding, a request that was
/// reset, and bytes for a stream that has ended.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the test connects as a client")]
async fn received_bytes_return_to_zero_after_traffic() {
    let cluster = Cluster::start(2).await;
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(8 << 20).loader_with(Loads::default(), slow))
        .await;
    let key = cluster.key_of(&groups, 0);
    for _ in 0..20 {
        let _ = groups[1].set(&key, "x".repeat(100_000)).await;
    }
    assert_eq!(groups[1].get(&key).await.unwrap().len(), 100_000);
    let mut client = tokio::net::TcpStream::connect(cluster.nodes[0].address()).await.unwrap();
    let headers = headers_of_get();
    let unfinished = [&[0, 0, 0, 0xff, 0xff], &[0; 1000][..]].concat();
    let message = [&[100], &[0; 105][..]].concat(); // padding, and an empty message
    let begun = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[]), frame(1, 4, 3, &headers)];
    client.write_all(&begun.concat()).await.unwrap();
    let used = || cluster.nodes.iter().map(|node| node.inner.context.local.received.used()).sum::<usize>();
    eventually("the headers count", || used() > 2 * 104).await;
    let frames = [
        frame(0, 0, 3, &unfinished),
        frame(3, 0, 3, &[0, 0, 0, 8]), // a reset
        frame(0, 0, 3, &unfinished),
        frame(1, 4, 5, &headers),
        frame(0, 9, 5, &message), // padded, and the end of the stream
    ];
    client.write_all(&frames.concat()).await.unwrap();
    client.write_all(&frame(6, 0, 0, &[0; 8])).await.unwrap();
    let mut header = [0; 9];
    while (header[3], header[4]) != (6, 1) {
        client.read_exact(&mut header).await.expect("the pong comes after all frames were read");
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        client.read_exact(&mut vec![0; length as usize]).await.unwrap();
    }
    eventually("no byte is counted", || used() == 0).await;
    client.write_all(&frame(6, 0, 0, &[0; 8])).await.unwrap();
    client.read_exact(&mut header).await.expect("the connection is open");
    cluster.shutdown().await;
}

/// Checks that a small answer on another stream waits for two frames of a large one at most: the one that leaves, and the
/// one that comes next.
#[tokio::test]
async fn small_answer_waits_for_two_frames_of_a_large_one() {
    const MAX_FRAME: usize = crate::transport::MAX_FRAME as usize;
    let node = Node::builder().insecure().start().await.unwrap();
    let load = async |key: &str| Ok::<_, crate::BoxError>("x".repeat(if key == "large" { 1 << 20 } else { 1 }));
    let group = node.group::<String>("data").capacity_bytes(8 << 20).loader(load).build().unwrap();
    for key in ["large", "small"] {
        group.get(key).await.unwrap();
    }
    let (client, server) = tokio::io::duplex(1024);
    let serving = node.router().serve_with_incoming(tokio_stream::once(std::io::Result::Ok(server)));
    let serving = tokio::spawn(serving);
    let (mut reader, mut writer) = tokio::io::split(client);
    let headers = headers_of_get();
    let get = |key: &str| {
        let cluster = node.inner.context.local.hello().cluster.to_string();
        // Fields 1 to 3 of the message: cluster, group, key.
        let fields = [(0x0a, &*cluster), (0x12, "data"), (0x22, key)];
        let message: Vec<u8> =
            fields.iter().flat_map(|(tag, text)| [&[*tag, text.len() as u8], text.as_bytes()].concat()).collect();
        [&[0, 0, 0, 0, message.len() as u8], &message[..]].concat()
    };
    // The windows of the client are large, so that only frames part the answers, which have the size that a node asks for.
    let [.., a, b, c] = crate::transport::MAX_FRAME.to_be_bytes();
    let settings = frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff, 0, 5, 0, a, b, c]);
    let window = frame(8, 0, 0, &[0x70, 0, 0, 0]);
    let begun = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), settings, window].concat();
    let large = [frame(1, 4, 1, &headers), frame(0, 1, 1, &get("large"))].concat();
    let small = [frame(1, 4, 3, &headers), frame(0, 1, 3, &get("small"))].concat();
    let writing = tokio::spawn(async move {
        writer.write_all(&[begun, large, small].concat()).await.unwrap();
        writer
    });
    eventually("both gets are answered from memory", || group.stats().peer_request_hits == 2).await;
    for _ in 0..100 {
        tokio::task::yield_now().await; // the answers reach HTTP/2, which can write no more
    }
    let (mut ahead, mut largest) = (0, 0);
    loop {
        let mut header = [0; 9];
        reader.read_exact(&mut header).await.expect("a frame");
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        reader.read_exact(&mut vec![0; length]).await.unwrap();
        match (header[3], header[8]) {
            (0, 1) => (ahead, largest) = (ahead + length, largest.max(length)),
            (1, 3) => break,
            _ => {}
        }
    }
    assert!(ahead <= 2 * MAX_FRAME && largest <= MAX_FRAME, "{ahead} bytes ahead, in frames of up to {largest}");
    drop((reader, writing.await.unwrap()));
    serving.abort();
}
