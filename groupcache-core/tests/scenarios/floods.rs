//! Abuse of HTTP/2: the node is a child process, a well-behaved client is served during each flood and can connect
//! again after it, and the node hardly grows. Latencies of that client are printed, and mean little in a test build.

mod unfinished;

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::support::{
    PATIENCE, identity,
    raw::{Raw, VALUE, get, statuses},
};
use groupcache_core::{BoxError, Node};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

/// Environment variable that is set for the process of the node.
const IS_NODE: &str = "GROUPCACHE_TEST_FLOODED";

/// Maximum growth of a node during a flood, in KiB.
const MAX_GROWTH_KIB: u64 = 64 << 10;

/// Minimum duration of flooding. A flood that ends earlier is repeated.
const MIN_DURATION: Duration = Duration::from_secs(2);

/// Pause between two requests of the well-behaved client.
const PAUSE: Duration = Duration::from_millis(2);

/// Beginning of the keys with the number of connections that were closed for their bytes as their value.
const OVER_BUDGET: &str = "over budget ";

/// Node of the child process.
static NODE: OnceLock<Node> = OnceLock::new();

async fn echo((): &(), key: &str) -> Result<String, BoxError> {
    let stats = || NODE.get().map_or(0, |node| node.stats().connections_over_budget).to_string();
    Ok(if key.starts_with(OVER_BUDGET) { stats() } else { key.to_owned() })
}

/// Returns how many connections a node has closed for their bytes. Each `ask` needs another number.
async fn connections_over_budget(client: &mut Raw, ask: u64) -> u64 {
    let answers = client.ask(vec![get(ask, format!("{OVER_BUDGET}{ask}"))]).await;
    std::str::from_utf8(&answers[0].value).unwrap().parse().unwrap()
}

/// Runs a node when it is started as the child process, until standard input closes. Returns at once as a test.
#[test]
fn child_process_runs_a_node() {
    if std::env::var_os(IS_NODE).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (node, _group) = runtime.block_on(async {
        let node = Node::builder().identity(identity("a")).start().await.unwrap();
        let group = node.group::<String>("data").capacity_bytes(1 << 20).loader_with((), echo).build().unwrap();
        let _ = NODE.set(node.clone());
        (node, group)
    });
    println!("\nlistening {}", node.address());
    let _ = std::io::stdin().read_line(&mut String::new());
}

struct Flooded {
    child: Child,
    /// Number of the process of the node.
    process: u32,
    /// Standard input of the node. The node ends when this handle is dropped.
    _stdin: ChildStdin,
    address: SocketAddr,
}

impl Flooded {
    fn start() -> Self {
        let mut node = Self::spawn(Command::new(std::env::current_exe().unwrap()).env(IS_NODE, "1"));
        node.process = node.child.id();
        node
    }

    /// Starts a command that runs the node, directly or through another process.
    fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .args(["floods::child_process_runs_a_node", "--exact", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.strip_prefix("listening ").map(|a| a.parse().unwrap())).unwrap();
        let stdin = child.stdin.take().unwrap();
        Self { child, process: 0, _stdin: stdin, address }
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Flooded {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes one request and returns its latency.
async fn ask(good: &mut Raw, id: u64) -> Duration {
    let begun = Instant::now();
    assert_eq!(statuses(&good.ask(vec![get(id, format!("key-{}", id % 50))]).await), [VALUE]);
    begun.elapsed()
}

/// Returns the median and the 99th percentile.
fn percentiles(latencies: &mut [Duration]) -> [Duration; 2] {
    latencies.sort();
    [50, 99].map(|percent| latencies[latencies.len() * percent / 100])
}

/// Spawns a thread. In a release build, where latencies are measured, the thread runs only while the processor is idle,
/// because otherwise the well-behaved client would wait for the flood and not for the node. In a test build the thread
/// has normal priority, because beside other tests it might get no processor time at all.
fn spawn_at_idle_priority(name: &str, run: impl FnOnce() + Send + 'static) {
    let run = || {
        if cfg!(not(debug_assertions)) {
            let me = std::fs::read_link("/proc/thread-self").unwrap();
            // Without `chrt` the latencies mean less.
            let _ = Command::new("chrt").args(["--idle", "--pid", "0"]).arg(me.file_name().unwrap()).status();
        }
        run();
    };
    thread::Builder::new().name(name.to_owned()).spawn(run).unwrap();
}

/// A thread that does nothing and keeps a processor awake, as a flood does.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn start() -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ends);
        spawn_at_idle_priority("busy", move || {
            while !end.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Self(ends)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Repeats a flood for at least [`MIN_DURATION`] on a thread of its own and returns the outcome of the last one.
fn flood_on_a_thread<T: Send + 'static>(
    node: SocketAddr,
    flood: impl AsyncFn(SocketAddr) -> T + Send + 'static,
) -> oneshot::Receiver<T> {
    let (sender, receiver) = oneshot::channel();
    spawn_at_idle_priority("flood", move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let begun = Instant::now();
        let last = runtime.block_on(async {
            loop {
                let outcome = flood(node).await;
                if begun.elapsed() >= MIN_DURATION {
                    return outcome;
                }
            }
        });
        let _ = sender.send(last);
    });
    receiver
}

/// Floods a new node while a well-behaved client makes requests, and returns the outcome of the last flood.
async fn flooded<T: Send + 'static>(name: &str, flood: impl AsyncFn(SocketAddr) -> T + Send + 'static) -> T {
    flooded_within(name, MAX_GROWTH_KIB, flood).await
}

/// Does the same with another bound of the growth, in KiB.
async fn flooded_within<T: Send + 'static>(
    name: &str,
    max_growth_kib: u64,
    flood: impl AsyncFn(SocketAddr) -> T + Send + 'static,
) -> T {
    flooded_node(name, &Flooded::start(), max_growth_kib, flood).await
}

/// Floods a node.
async fn flooded_node<T: Send + 'static>(
    name: &str,
    node: &Flooded,
    max_growth_kib: u64,
    flood: impl AsyncFn(SocketAddr) -> T + Send + 'static,
) -> T {
    let mut good = Raw::greeted(node.address).await;
    let mut before = Vec::new();
    let busy = Busy::start();
    for id in 0..300 {
        before.push(ask(&mut good, id).await);
        sleep(PAUSE).await;
    }
    drop(busy);
    let (small_kib, mut large_kib, mut during) = (node.resident_kib(), 0, Vec::new());
    let mut flooding = std::pin::pin!(timeout(3 * PATIENCE, flood_on_a_thread(node.address, flood)));
    let mut id = 1000;
    let outcome = loop {
        tokio::select! {
            biased;
            took = ask(&mut good, id) => during.push(took),
            outcome = &mut flooding => break outcome,
        }
        id += 1;
        if id % 16 == 0 {
            large_kib = large_kib.max(node.resident_kib());
        }
        tokio::select! {
            biased;
            outcome = &mut flooding => break outcome,
            () = sleep(PAUSE) => {}
        }
    };
    let outcome = outcome.expect("the flood ends").expect("the flood does not panic");
    // The first connection may still owe an answer.
    drop(good);
    let mut again = Raw::greeted(node.address).await;
    for id in 0..100 {
        ask(&mut again, id).await;
    }
    let grown_kib = large_kib.max(node.resident_kib()).saturating_sub(small_kib);
    let asked = during.len();
    assert!(asked > 0, "the well-behaved client was served");
    let (before, during) = (percentiles(&mut before), percentiles(&mut during));
    println!(
        "{name}: {asked} requests, p50 and p99 {before:?} before, {during:?} during the flood, {grown_kib} KiB growth"
    );
    assert!(grown_kib < max_growth_kib, "{name}: {grown_kib} KiB");
    outcome
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Returns the HPACK block of a `Connect` request, followed by the given bytes.
fn headers(more: &[u8]) -> Vec<u8> {
    let mut block = vec![0x83, 0x86]; // POST, http
    for (name, value) in
        [(&[0x04][..], "/groupcache.v1.Peer/Connect"), (&[0x01], "node"), (&[0x0f, 0x10], "application/grpc")]
    {
        block.extend(name);
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    block.extend(b"\0\x02te\x08trailers");
    block.extend(more);
    block
}

/// Returns a header field with a value of the given length that is in no HPACK table.
fn header(bytes: usize) -> Vec<u8> {
    let mut field = b"\0\x01x".to_vec();
    // An integer with a prefix of seven bits (RFC 7541, section 5.1).
    field.push(0x7f);
    let mut rest = bytes - 127;
    while rest >= 128 {
        field.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    field.push(rest as u8);
    field.resize(field.len() + bytes, b'x');
    field
}

/// Opens an HTTP/2 connection that reads nothing by itself.
async fn http2(node: SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(node).await.unwrap();
    tcp.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    tcp.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    tcp
}

/// Writes the frames of `make` for 0, 1, 2… while reading, and returns how many were written before the node closed the
/// connection.
async fn write(node: SocketAddr, count: u32, make: impl Fn(u32) -> Vec<u8>) -> u32 {
    let (mut reader, mut writer) = http2(node).await.into_split();
    let reading = tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    let mut written = 0;
    while written < count && !reading.is_finished() {
        let frames: Vec<u8> = (written..count.min(written + 16)).flat_map(&make).collect();
        if writer.write_all(&frames).await.is_err() {
            break;
        }
        written = count.min(written + 16);
        tokio::task::yield_now().await;
    }
    // Writes after the end of the connection may still succeed, so that the end is waited for.
    let _ = timeout(Duration::from_millis(300), reading).await;
    written
}

fn stream(n: u32) -> u32 {
    2 * n + 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn rapid_stream_resets_end_the_connection() {
    let written = flooded("rapid resets", async |node| {
        write(node, 100_000, |n| {
            let cancel = frame(RESET, 0, stream(n), &8_u32.to_be_bytes());
            [frame(HEADERS, END_HEADERS, stream(n), &headers(&[])), cancel].concat()
        })
        .await
    })
    .await;
    assert!(written < 100_000, "the node ends the connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn endless_headers_end_the_connection() {
    let written = flooded("CONTINUATION", async |node| {
        write(node, 20_000, |n| match n {
            0 => frame(HEADERS, 0, 1, &headers(&[])),
            _ => frame(CONTINUATION, 0, 1, &header(16_000)),
        })
        .await
    })
    .await;
    assert!(written < 2_000, "{written} frames of 16 KiB");
    // The frames are empty, so that only their number ends the connection.
    let written = flooded("empty CONTINUATION", async |node| {
        write(node, 1_000_000, |n| match n {
            0 => frame(HEADERS, 0, 1, &headers(&[])),
            _ => frame(CONTINUATION, 0, 1, &[]),
        })
        .await
    })
    .await;
    assert!(written < 1_000_000, "the node ends the connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn oversized_headers_disturb_no_other_client() {
    flooded("headers of 64 KiB", async |node| {
        write(node, 2_000, |n| {
            let block = headers(&header(64 << 10));
            let mut parts = block.chunks(16 << 10);
            let mut frames = frame(HEADERS, 0, stream(n), parts.next().unwrap());
            for (at, part) in parts.enumerate() {
                frames.extend(frame(CONTINUATION, if at == 3 { END_HEADERS } else { 0 }, stream(n), part));
            }
            frames
        })
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn tiny_and_empty_frames_disturb_no_other_client() {
    flooded("DATA of one byte", async |node| {
        write(node, 200_000, |n| match n {
            0 => frame(HEADERS, END_HEADERS, 1, &headers(&[])),
            // A message of 200,000 bytes, sent byte by byte.
            1 => frame(DATA, 0, 1, &[0, 0, 3, 13, 64]),
            _ => frame(DATA, 0, 1, &[0]),
        })
        .await
    })
    .await;
    flooded("DATA of nothing", async |node| {
        let begin = frame(HEADERS, END_HEADERS, 1, &headers(&[]));
        write(node, 500_000, |n| if n == 0 { begin.clone() } else { frame(DATA, 0, 1, &[]) }).await
    })
    .await;
    flooded("PING and SETTINGS", async |node| {
        write(node, 200_000, |n| if n % 2 == 0 { frame(PING, 0, 0, &[7; 8]) } else { frame(SETTINGS, 0, 0, &[]) }).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ten_thousand_streams_disturb_no_other_client() {
    flooded("10,000 streams", async |node| {
        write(node, 10_000, |n| frame(HEADERS, END_HEADERS, stream(n), &headers(&[]))).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn thousand_slow_connections_keep_no_client_out() {
    let closed = flooded("1,000 slow connections", async |node| {
        let mut slow = Vec::new();
        for n in 0..1_000 {
            let mut tcp = TcpStream::connect(node).await.unwrap();
            // No byte, a part of the preface, or headers that are never completed.
            let begin: &[u8] = match n % 3 {
                0 => b"",
                1 => b"PRI * HT",
                _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x40\x01\0\0\0\0\x01",
            };
            let _ = tcp.write_all(begin).await;
            slow.push(tcp);
        }
        let mut closed = 0;
        for mut tcp in slow {
            // A byte now and then keeps no connection open, because only an accepted request counts.
            let _ = tcp.write_all(b"\x01").await;
            closed += u32::from(timeout(PATIENCE, tokio::io::copy(&mut tcp, &mut tokio::io::sink())).await.is_ok());
        }
        closed
    })
    .await;
    assert_eq!(closed, 1_000, "all are closed within {PATIENCE:?}");
}
