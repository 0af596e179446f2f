//! What anyone can make a node hold is bounded: each attack leaves it within 64 MiB of what it had before, and the
//! gets of a good peer go on.
//!
//! The node that is attacked is a process: this test binary, started again as `a_process_of_its_own`.

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
    Address, BoxError, Group, Node, Peer, PeerId, PeerSet, Provider, ProviderContext, ProviderError, async_trait,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tonic::codegen::http::{Request, StatusCode};

/// Set for the process of its own.
const VICTIM: &str = "GROUPCACHE_TEST_MEMORY";

const MIB: u64 = 1 << 20;

/// How much more a node may hold at any moment of an attack.
const BOUND: u64 = 64 * MIB;

/// Keys that begin so have values of 60 KiB.
const LARGE: &str = "large";

/// Those of them whose load takes a moment.
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

/// Announces so many peers, where nobody listens.
struct Boundless(Arc<watch::Sender<u32>>);

#[async_trait]
impl Provider for Boundless {
    fn name(&self) -> &str {
        "boundless"
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

/// Not a test but node `a`: it does what its parent says, and ends with it.
#[test]
fn a_process_of_its_own() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let announced = Arc::new(watch::Sender::new(0));
    let (node, group) = runtime.block_on(async {
        let provider = Boundless(Arc::clone(&announced));
        let node = Node::builder().identity(identity("a")).provider(provider).start().await.unwrap();
        let group = data(&node);
        (node, group)
    });
    println!("\nlistening {}", node.address());
    for line in std::io::stdin().lines().map_while(Result::ok) {
        if let Some(n) = line.strip_prefix("announce ") {
            announced.send_replace(n.parse().unwrap());
        }
        let (stats, served) = (node.stats(), group.stats().served);
        let closed = stats.handshake_timeouts + stats.crowded_out;
        println!("{served} {closed} {} {} {}", stats.rejected, node.members().len(), node.unconnected().len());
    }
}

/// What node `a` says of itself.
#[derive(Debug)]
struct Report {
    served: u64,
    /// Connections that took too long, or had to make room.
    closed: u64,
    rejected: u64,
    members: u64,
    unconnected: u64,
}

/// Node `a`, and a good peer of it.
struct Scene {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    address: SocketAddr,
    key: Option<String>,
    good: Good,
    before: u64,
}

impl Scene {
    async fn start(key: Option<String>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["memory::a_process_of_its_own", "--exact", "--nocapture"]).env(VICTIM, "1");
        if let Some(key) = &key {
            command.env("GROUPCACHE_CLUSTER_KEY", key);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let listening = |line: String| line.strip_prefix("listening ")?.parse().ok();
        let address = lines.by_ref().map_while(Result::ok).find_map(listening).expect("it says where it listens");
        let good = Good::start("b", address, key.as_deref()).await;
        good.goes_on(500).await;
        let before = memory(&child, "VmRSS:");
        Self { stdin: child.stdin.take().unwrap(), child, lines, address, key, good, before }
    }

    fn report(&mut self, order: &str) -> Report {
        writeln!(self.stdin, "{order}").unwrap();
        let line = self.lines.next().expect("it answers").unwrap();
        let mut numbers = line.split(' ').map(|number| number.parse().unwrap());
        let mut next = || numbers.next().unwrap();
        Report { served: next(), closed: next(), rejected: next(), members: next(), unconnected: next() }
    }

    /// Waits until node `a` reports it.
    async fn reports(&mut self, what: &str, condition: impl Fn(&Report) -> bool) {
        eventually(what, || condition(&self.report("report"))).await;
    }

    /// While the attack lasts: the good peer is served, and so is a new one.
    async fn is_of_use(&self) {
        self.good.goes_on(200).await;
        Good::start("c", self.address, self.key.as_deref()).await.end().await;
    }

    /// After it: so much more it had at most, and not one get has failed.
    async fn end(mut self, what: &str) {
        self.is_of_use().await;
        let more = memory(&self.child, "VmHWM:").saturating_sub(self.before);
        let gets = self.good.done.load(SeqCst);
        let (before, more_mib) = (self.before / MIB, more / MIB);
        println!("{what}: {before} MiB before, {more_mib} MiB more at most, {gets} gets, {:?}", self.report("report"));
        assert!(more <= BOUND, "{what}: {before} MiB before, {more_mib} MiB more");
        self.good.end().await;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In bytes, as the kernel counts: now (`VmRSS:`), or at most so far (`VmHWM:`).
fn memory(child: &Child, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// A peer of node `a` that gets one new key after another.
struct Good {
    node: Node,
    group: Group<String>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    gets: JoinHandle<()>,
}

impl Good {
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
                    assert_eq!(group.get(&key).await.expect("no get fails"), key);
                    sleep(Duration::from_millis(1)).await;
                }
            }
        });
        Self { node, group, stop, done, gets }
    }

    async fn goes_on(&self, gets: u64) {
        let until = self.done.load(SeqCst) + gets;
        eventually("gets go on", || self.done.load(SeqCst) >= until || self.gets.is_finished()).await;
    }

    /// It has failed at nothing, and `a` serves it still.
    async fn end(self) {
        self.goes_on(20).await;
        self.stop.store(true, SeqCst);
        self.gets.await.expect("no get has failed");
        let loads = self.group.stats().loads;
        for n in 0..20 {
            self.group.get(&format!("end-{n}")).await.unwrap();
        }
        assert_eq!(self.group.stats().loads, loads, "all at their owner");
        self.node.shutdown_within(Duration::from_secs(1)).await.unwrap();
    }
}

#[cfg(feature = "tls")]
fn with_key(builder: groupcache_core::NodeBuilder, key: Option<&str>) -> groupcache_core::NodeBuilder {
    match key {
        Some(key) => builder.cluster_key(groupcache_core::ClusterKey::new(key).unwrap()),
        None => builder,
    }
}

#[cfg(not(feature = "tls"))]
fn with_key(builder: groupcache_core::NodeBuilder, _: Option<&str>) -> groupcache_core::NodeBuilder {
    builder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_a_peer_never_reads() {
    let mut scene = Scene::start(None).await;
    let deaf = Raw::greeted(scene.address).await;
    let before = scene.report("report").served;
    for at in 0..40 {
        let requests = (0..50).map(|n| get(at * 50 + n, format!("{LARGE}-{at}-{n}"))).collect();
        deaf.frames.send(Frame { requests, ..Frame::default() }).await.unwrap();
    }
    scene.reports("all 120 MiB were asked for", |report| report.served >= before + 2000).await;
    scene.is_of_use().await;
    // Refusals it does not read either.
    let mut n = 0;
    while scene.report("report").rejected == 0 {
        n += 1;
        assert!(n < 2000, "it is cut off");
        let requests = (0..1024).map(|n| get(n, "")).collect();
        let _ = timeout(Duration::from_millis(20), deaf.frames.send(Frame { requests, ..Frame::default() })).await;
    }
    scene.end("answers that a peer never reads").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_that_end_while_a_peer_is_waited_for_to_read() {
    let mut scene = Scene::start(None).await;
    let deaf = Raw::greeted(scene.address).await;
    let frame = |requests| Frame { requests, ..Frame::default() };
    deaf.frames.send(frame(vec![get(9999, LARGE)])).await.unwrap();
    let before = scene.report("report").served;
    scene.reports("one is in memory", |report| report.served >= before + 200).await; // most are the good peer's
    for at in 0..40 {
        let requests = (0..50).map(|n| get(at * 50 + n, format!("{SLOW}-{at}-{n}"))).collect();
        deaf.frames.send(frame(requests)).await.unwrap();
    }
    // More than may wait to be sent.
    for at in 40..44 {
        let requests = (0..50).map(|n| get(at * 50 + n, LARGE)).collect();
        deaf.frames.send(frame(requests)).await.unwrap();
    }
    scene.reports("all 120 MiB were loaded", |report| report.served >= before + 2000).await;
    scene.is_of_use().await;
    scene.end("loads that end while a peer is waited for to read").await;
}

/// A connection of HTTP/2 that may open as many streams at once as it likes.
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
async fn ten_thousand_streams_on_one_connection() {
    const STREAMS: u32 = 10_000;
    let scene = Scene::start(None).await;
    // By hand: a client library keeps to the number that it is told.
    let (mut from, mut to) = TcpStream::connect(scene.address).await.unwrap().into_split();
    let opening = tokio::spawn(async move {
        // Unary, and what is asked for never comes: nothing but their number ends them.
        let path = b"/groupcache.v1.Peer/Get";
        // POST, http, the path, and the type of its content, as literals of HPACK.
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
        timeout(PATIENCE, from.read_exact(&mut header)).await.expect("an answer").expect("the connection is open");
        let mut frame = vec![0; u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize];
        from.read_exact(&mut frame).await.unwrap();
        // RST_STREAM with REFUSED_STREAM.
        refused += u32::from(header[3] == 3 && frame == [0, 0, 0, 7]);
    }
    scene.is_of_use().await;
    scene.end("10,000 streams").await;
    drop(opening);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mebibyte_of_headers() {
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
                let answer = timeout(PATIENCE, answer).await.expect("refused in time");
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
async fn a_hundred_thousand_announced_peers() {
    let mut scene = Scene::start(None).await;
    scene.report("announce 100000");
    scene.reports("as many are dialled as are allowed", |report| report.unconnected >= 1900).await;
    scene.is_of_use().await;
    let report = scene.report("report");
    assert!(report.unconnected <= 2000 && report.members == 1, "{report:?}");
    scene.end("100,000 announced peers").await;
}

/// 1,000 connections that say the beginning of something, one byte a second, until they are closed.
async fn slow_connections(mut scene: Scene, what: &str, says: &'static [u8]) {
    const SLOW: usize = 1000;
    let mut slow = JoinSet::new();
    for _ in 0..SLOW {
        let mut tcp = TcpStream::connect(scene.address).await.unwrap();
        slow.spawn(async move {
            for byte in says.iter().cycle() {
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
    scene.is_of_use().await;
    timeout(PATIENCE, slow.join_all()).await.expect("all are closed");
    scene.reports("those that made room are counted", |report| report.closed >= 400).await;
    scene.end(what).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_that_send_a_byte_a_second() {
    slow_connections(Scene::start(None).await, "1,000 slow connections", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
}

#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_handshakes_that_send_a_byte_a_second() {
    let scene = Scene::start(Some(crate::support::pki::cluster_key())).await;
    slow_connections(scene, "1,000 slow handshakes", &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 7, 7, 7, 7, 7, 7, 7, 7])
        .await;
}
