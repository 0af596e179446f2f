//! Memory under attack: each attack makes the node grow by 64 MiB at most, and the gets of a well-behaved peer go on.
//!
//! The attacked node is a child process: this test binary, started again as `child_process_runs_a_node`.

use std::{
    io::{BufRead, BufReader, Lines, Write},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::{
    proto::Frame,
    support::{
        PATIENCE, Peers, eventually, identity,
        raw::{Raw, get},
    },
};
use groupcache_core::{
    BoxError, Group, Node, PeerId, async_trait,
    discovery::{Address, Peer, PeerSet, Provider, ProviderContext, ProviderError, Trust},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tonic::codegen::http::{Request, StatusCode};

/// Environment variable that is set for the child process.
const VICTIM: &str = "GROUPCACHE_TEST_MEMORY";

const MIB: u64 = 1 << 20;

/// Maximum growth of the node at any moment of an attack.
const BOUND: u64 = 64 * MIB;

/// Prefix of keys with values of 60 KiB.
const LARGE: &str = "large";

/// Prefix of keys with values of 60 KiB and loads of 100 ms.
const SLOW: &str = "large and slow";

async fn by_key((): &(), key: &str) -> Result<String, BoxError> {
    if key.starts_with(SLOW) {
        sleep(Duration::from_millis(100)).await;
    }
    Ok(if key.starts_with(LARGE) { key.repeat((60 << 10) / key.len()) } else { key.to_owned() })
}

fn data(node: &Node) -> Group<String> {
    node.group::<String>("data").capacity_bytes(4 << 20).loader_with((), by_key).build().unwrap()
}

/// A provider that reports the given number of peers at addresses without a listener.
struct ManyPeers(Arc<watch::Sender<u32>>);

#[async_trait]
impl Provider for ManyPeers {
    fn name(&self) -> &str {
        "many-peers"
    }

    fn trust(&self) -> Trust {
        Trust::Authority
    }

    async fn run(&self, cx: ProviderContext) -> Result<(), ProviderError> {
        let mut announced = self.0.subscribe();
        let address = |n: u32| Address::new(format!("127.{}.{}.{}:1", n >> 16, (n >> 8) & 255, n & 255)).unwrap();
        loop {
            let n = *announced.borrow_and_update();
            let peer = |n| Peer::member(PeerId::new(format!("p{n}")).unwrap(), [address(n)]);
            cx.publish(PeerSet::complete((0..n).map(peer).collect()));
            tokio::select! {
                changed = announced.changed() => changed?,
                () = cx.leaving() => return Ok(()),
            }
        }
    }
}

/// Runs node `a` when it is started as the child process: obeys the lines on standard input and ends with the parent.
/// Returns at once as a test.
#[test]
fn child_process_runs_a_node() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let announced = Arc::new(watch::Sender::new(0));
    let (node, group) = runtime.block_on(async {
        let provider = ManyPeers(Arc::clone(&announced));
        let node = Node::builder().identity(identity("a")).provider(provider).start().await.unwrap();
        let group = data(&node);
        (node, group)
    });
    println!("\nlistening {}", node.address());
    for line in std::io::stdin().lines().map_while(Result::ok) {
        if let Some(n) = line.strip_prefix("announce ") {
            announced.send_replace(n.parse().unwrap());
        }
        let (stats, served) = (node.stats(), group.stats().peer_requests);
        let closed = stats.handshake_timeouts + stats.connections_evicted;
        println!("{served} {closed} {} {} {}", stats.rejected, node.members().len(), node.unconnected().len());
    }
}

/// Counters that node `a` reports.
#[derive(Debug)]
struct Report {
    served: u64,
    /// Connections that were closed for lack of progress or of room.
    closed: u64,
    rejected: u64,
    members: u64,
    unconnected: u64,
}

/// Node `a`, and a well-behaved peer of it.
struct Scene {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    address: SocketAddr,
    key: Option<String>,
    peer: GoodPeer,
    /// Resident memory before the attack, in bytes.
    before: u64,
}

impl Scene {
    async fn start(key: Option<String>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["memory::child_process_runs_a_node", "--exact", "--nocapture"]).env(VICTIM, "1");
        if let Some(key) = &key {
            command.env("GROUPCACHE_CLUSTER_KEY", key);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let listening = |line: String| line.strip_prefix("listening ")?.parse().ok();
        let address = lines.by_ref().map_while(Result::ok).find_map(listening).expect("the child reports its address");
        let peer = GoodPeer::start("b", address, key.as_deref()).await;
        peer.wait_for_gets(500).await;
        let before = memory(&child, "VmRSS:");
        Self { stdin: child.stdin.take().unwrap(), child, lines, address, key, peer, before }
    }

    fn report(&mut self, order: &str) -> Report {
        writeln!(self.stdin, "{order}").unwrap();
        let line = self.lines.next().expect("the child answers").unwrap();
        let mut numbers = line.split(' ').map(|number| number.parse().unwrap());
        let mut next = || numbers.next().unwrap();
        Report { served: next(), closed: next(), rejected: next(), members: next(), unconnected: next() }
    }

    /// Waits until a report of node `a` meets the condition.
    async fn wait_for_report(&mut self, what: &str, condition: impl Fn(&Report) -> bool) {
        eventually(what, || condition(&self.report("report"))).await;
    }

    /// Checks during the attack that the peer and a new peer are served.
    async fn check_service(&self) {
        self.peer.wait_for_gets(200).await;
        GoodPeer::start("c", self.address, self.key.as_deref()).await.end().await;
    }

    /// Ends the attack: checks that the growth stayed within [`BOUND`] and that no get has failed.
    async fn end(mut self, what: &str) {
        self.check_service().await;
        let growth = memory(&self.child, "VmHWM:").saturating_sub(self.before);
        let gets = self.peer.done.load(SeqCst);
        let (before, growth_mib) = (self.before / MIB, growth / MIB);
        println!("{what}: {before} MiB before, {growth_mib} MiB growth, {gets} gets, {:?}", self.report("report"));
        assert!(growth <= BOUND, "{what}: {before} MiB before, {growth_mib} MiB growth");
        self.peer.end().await;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the resident memory of a process in bytes: the current value (`VmRSS:`) or the highest so far (`VmHWM:`).
fn memory(child: &Child, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// A peer of node `a` that gets one new key after another.
struct GoodPeer {
    node: Node,
    group: Group<String>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    gets: JoinHandle<()>,
}

impl GoodPeer {
    async fn start(id: &str, a: SocketAddr, key: Option<&str>) -> Self {
        let peers = Peers::default();
        peers.set(vec![Peer::member(PeerId::new("a").unwrap(), [a.into()])]);
        let builder = Node::builder().identity(identity(id).with_weight(0).unwrap()).provider(peers);
        let node = with_key(builder, key).start().await.unwrap();
        let group = data(&node);
        eventually("a has the group", || node.members().len() == 2 && node.peers_with_group("data") == 1).await;
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let gets = tokio::spawn({
            let (id, group, stop, done) = (id.to_owned(), group.clone(), Arc::clone(&stop), Arc::clone(&done));
            async move {
                while !stop.load(SeqCst) {
                    let key = format!("{id}-{}", done.fetch_add(1, SeqCst));
                    assert_eq!(group.get(&key).await.expect("the get returns a value"), key);
                    sleep(Duration::from_millis(1)).await;
                }
            }
        });
        Self { node, group, stop, done, gets }
    }

    /// Waits until this many more gets have been made.
    async fn wait_for_gets(&self, gets: u64) {
        let until = self.done.load(SeqCst) + gets;
        eventually("the peer makes more gets", || self.done.load(SeqCst) >= until || self.gets.is_finished()).await;
    }

    /// Checks that no get has failed and that `a` still serves this peer, and shuts the peer down.
    async fn end(self) {
        self.wait_for_gets(20).await;
        self.stop.store(true, SeqCst);
        self.gets.await.expect("no get has failed");
        let loads = self.group.stats().loads;
        for n in 0..20 {
            self.group.get(&format!("end-{n}")).await.unwrap();
        }
        assert_eq!(self.group.stats().loads, loads, "all keys are loaded at their owner");
        self.node.shutdown_within(Duration::from_secs(1)).await.unwrap();
    }
}

#[cfg(feature = "tls")]
fn with_key(builder: groupcache_core::NodeBuilder, key: Option<&str>) -> groupcache_core::NodeBuilder {
    match key {
        Some(key) => builder.cluster_key(groupcache_core::tls::ClusterKey::new(key).unwrap()),
        None => builder,
    }
}

#[cfg(not(feature = "tls"))]
fn with_key(builder: groupcache_core::NodeBuilder, _: Option<&str>) -> groupcache_core::NodeBuilder {
    builder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_answers_stay_within_the_bound() {
    let mut scene = Scene::start(None).await;
    let non_reader = Raw::greeted(scene.address).await;
    let before = scene.report("report").served;
    for at in 0..40 {
        let requests = (0..50).map(|n| get(at * 50 + n, format!("{LARGE}-{at}-{n}"))).collect();
        non_reader.frames.send(Frame { requests, ..Frame::default() }).await.unwrap();
    }
    scene.wait_for_report("the node has all 2,000 requests", |report| report.served >= before + 2000).await;
    scene.check_service().await;
    // The client does not read the answers to these requests either, until the node closes the connection.
    let mut n = 0;
    while scene.report("report").rejected == 0 {
        n += 1;
        assert!(n < 2000, "the node closes the connection");
        let requests = (0..1024).map(|n| get(n, "")).collect();
        let _ =
            timeout(Duration::from_millis(20), non_reader.frames.send(Frame { requests, ..Frame::default() })).await;
    }
    scene.end("answers that are never read").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_answers_of_loads_stay_within_the_bound() {
    let mut scene = Scene::start(None).await;
    let non_reader = Raw::greeted(scene.address).await;
    let frame = |requests| Frame { requests, ..Frame::default() };
    non_reader.frames.send(frame(vec![get(9999, LARGE)])).await.unwrap();
    let before = scene.report("report").served;
    // Most of these are gets of the well-behaved peer.
    scene.wait_for_report("the large value is in memory", |report| report.served >= before + 200).await;
    for at in 0..40 {
        let requests = (0..50).map(|n| get(at * 50 + n, format!("{SLOW}-{at}-{n}"))).collect();
        non_reader.frames.send(frame(requests)).await.unwrap();
    }
    // More answers than may be queued for one peer.
    for at in 40..44 {
        let requests = (0..50).map(|n| get(at * 50 + n, LARGE)).collect();
        non_reader.frames.send(frame(requests)).await.unwrap();
    }
    scene.wait_for_report("the node has all 2,000 requests", |report| report.served >= before + 2000).await;
    scene.check_service().await;
    scene.end("answers of loads that are never read").await;
}

/// Opens an HTTP/2 connection without a limit of its own on concurrent streams.
async fn http2(
    address: SocketAddr,
) -> (h2::client::SendRequest<tonic::codegen::Bytes>, h2::client::Connection<TcpStream, tonic::codegen::Bytes>) {
    let tcp = TcpStream::connect(address).await.unwrap();
    h2::client::Builder::new().initial_max_send_streams(1 << 20).handshake(tcp).await.unwrap()
}

fn connect_request() -> Request<()> {
    let uri = "http://a/groupcache.v1.Peer/Connect";
    Request::post(uri).header("content-type", "application/grpc").body(()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_streams_stay_within_the_bound() {
    const STREAMS: u32 = 10_000;
    let scene = Scene::start(None).await;
    // Frames are written by hand, because a client library respects the node's limit of streams.
    let (mut from, mut to) = TcpStream::connect(scene.address).await.unwrap().into_split();
    let opening = tokio::spawn(async move {
        // Unary requests without a body, so that only their number ends the streams.
        let path = b"/groupcache.v1.Peer/Get";
        // The HPACK fields POST, http, the path and the content type.
        let headers = [&[0x83, 0x86, 0x04, path.len() as u8], &path[..], b"\x0f\x10\x10application/grpc"].concat();
        let mut frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        for stream in 0..STREAMS {
            frames.extend([0, 0, headers.len() as u8, 1, 4]);
            frames.extend((2 * stream + 1).to_be_bytes());
            frames.extend(&headers);
        }
        to.write_all(&frames).await.map(|()| to)
    });
    let (mut refused, mut header) = (0, [0; 9]);
    while refused < STREAMS - 64 {
        timeout(PATIENCE, from.read_exact(&mut header))
            .await
            .expect("the node answers")
            .expect("the connection is open");
        let mut frame = vec![0; u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize];
        from.read_exact(&mut frame).await.unwrap();
        // RST_STREAM with REFUSED_STREAM.
        refused += u32::from(header[3] == 3 && frame == [0, 0, 0, 7]);
    }
    scene.check_service().await;
    scene.end("10,000 streams").await;
    drop(opening);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_mebibyte_of_headers_is_refused() {
    let scene = Scene::start(None).await;
    for _ in 0..10 {
        let mut under_way = JoinSet::new();
        for _ in 0..20 {
            let address = scene.address;
            under_way.spawn(async move {
                let (mut requests, connection) = http2(address).await;
                let mut request = connect_request();
                for n in 0..64 {
                    let name = format!("x-{n}").parse::<tonic::codegen::http::HeaderName>().unwrap();
                    request.headers_mut().insert(name, "v".repeat(16 << 10).parse().unwrap());
                }
                let (answer, _stream) = requests.send_request(request, false).unwrap();
                let connection = tokio::spawn(connection);
                let answer = timeout(PATIENCE, answer).await.expect("the node refuses in time");
                connection.abort();
                answer.map(|answer| answer.status())
            });
        }
        for answer in under_way.join_all().await {
            assert!(
                answer.is_err() || answer.as_ref().unwrap() == &StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "{answer:?}"
            );
        }
    }
    scene.end("1 MiB of headers, 200 times").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announced_peers_stay_within_the_bound() {
    let mut scene = Scene::start(None).await;
    scene.report("announce 100000");
    scene
        .wait_for_report("the node dials nearly as many as its limit allows", |report| report.unconnected >= 1900)
        .await;
    scene.check_service().await;
    let report = scene.report("report");
    assert!(report.unconnected <= 2000 && report.members == 1, "{report:?}");
    scene.end("100,000 announced peers").await;
}

/// Opens 1,000 connections that send the given bytes again and again, one byte a second, and waits until the node has
/// closed all of them.
async fn check_slow_connections(mut scene: Scene, what: &str, sent: &'static [u8]) {
    const SLOW: usize = 1000;
    let mut slow = JoinSet::new();
    for _ in 0..SLOW {
        let mut tcp = TcpStream::connect(scene.address).await.unwrap();
        slow.spawn(async move {
            for byte in sent.iter().cycle() {
                if tcp.write_all(&[*byte]).await.is_err() {
                    return;
                }
                if timeout(Duration::from_secs(1), tcp.read(&mut [0; 100]))
                    .await
                    .is_ok_and(|read| !matches!(read, Ok(1..)))
                {
                    return;
                }
            }
        });
    }
    scene.check_service().await;
    timeout(PATIENCE, slow.join_all()).await.expect("the node closes all connections");
    scene.wait_for_report("the closed connections are counted", |report| report.closed >= 400).await;
    scene.end(what).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_slow_connections_are_closed() {
    check_slow_connections(Scene::start(None).await, "1,000 slow connections", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await;
}

#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_slow_handshakes_are_closed() {
    let scene = Scene::start(Some(crate::support::pki::cluster_key())).await;
    check_slow_connections(
        scene,
        "1,000 slow handshakes",
        &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 7, 7, 7, 7, 7, 7, 7, 7],
    )
    .await;
}
