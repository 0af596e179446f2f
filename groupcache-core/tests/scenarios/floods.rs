//! Clients that abuse HTTP/2 itself: the node is a process of its own, and a good client beside them is served, gets in
//! anew, and the node does not grow. How long it waits is printed; a build for tests says little about that.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
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

/// Set for the process that is the node.
const IS_NODE: &str = "GROUPCACHE_TEST_FLOODED";

/// The most that a node may grow by while it is flooded.
const MAX_GROWTH_KIB: u64 = 64 << 10;

/// How long a flood lasts: one that ends its connection is done in a moment.
const AT_LEAST: Duration = Duration::from_secs(2);

/// Between two requests of the good client.
const PAUSE: Duration = Duration::from_millis(2);

async fn echo((): &(), key: &str) -> Result<String, BoxError> {
    Ok(key.to_owned())
}

/// Not a test but a node, until it is told to end.
#[test]
fn a_process_of_its_own() {
    if std::env::var_os(IS_NODE).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (node, _group) = runtime.block_on(async {
        let node = Node::builder().identity(identity("a")).start().await.unwrap();
        let group = node.group::<String>("data").capacity_bytes(1 << 20).loader_with((), echo).build().unwrap();
        (node, group)
    });
    println!("\nlistening {}", node.address());
    let _ = std::io::stdin().read_line(&mut String::new());
}

struct Flooded {
    child: Child,
    /// Closed when this is dropped, which ends it.
    _told: ChildStdin,
    address: SocketAddr,
}

impl Flooded {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["floods::a_process_of_its_own", "--exact", "--nocapture"])
            .env(IS_NODE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.strip_prefix("listening ").map(|a| a.parse().unwrap())).unwrap();
        let told = child.stdin.take().unwrap();
        Self { child, _told: told, address }
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
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

/// One request, and how long it took.
async fn ask(good: &mut Raw, id: u64) -> Duration {
    let begun = Instant::now();
    assert_eq!(statuses(&good.ask(vec![get(id, format!("key-{}", id % 50))]).await), [VALUE]);
    begun.elapsed()
}

/// The median and the ninety-ninth percentile.
fn percentiles(latencies: &mut [Duration]) -> [Duration; 2] {
    latencies.sort();
    [50, 99].map(|percent| latencies[latencies.len() * percent / 100])
}

/// A thread of its own. Where latencies are measured it has the processor only while nobody else wants it, or the good
/// client would wait for the flood and not for the node. Not in a build for tests: beside others it might get none at all.
fn behind_all_others(name: &str, run: impl FnOnce() + Send + 'static) {
    let run = || {
        if cfg!(not(debug_assertions)) {
            let me = std::fs::read_link("/proc/thread-self").unwrap();
            // Without the tool the latencies say less.
            let _ = Command::new("chrt").args(["--idle", "--pid", "0"]).arg(me.file_name().unwrap()).status();
        }
        run();
    };
    thread::Builder::new().name(name.to_owned()).spawn(run).unwrap();
}

/// Does nothing, and keeps a processor from going to sleep as a flood does.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn start() -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ends);
        behind_all_others("busy", move || {
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

/// Floods for a while, from a thread of its own.
fn flood_on_a_thread<T: Send + 'static>(
    node: SocketAddr,
    flood: impl AsyncFn(SocketAddr) -> T + Send + 'static,
) -> oneshot::Receiver<T> {
    let (said, hear) = oneshot::channel();
    behind_all_others("flood", move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let begun = Instant::now();
        let last = runtime.block_on(async {
            loop {
                let said = flood(node).await;
                if begun.elapsed() >= AT_LEAST {
                    return said;
                }
            }
        });
        let _ = said.send(last);
    });
    hear
}

/// Floods a node, again and again for a while, as a good client asks; returns what the flood says of itself.
async fn flooded<T: Send + 'static>(name: &str, flood: impl AsyncFn(SocketAddr) -> T + Send + 'static) -> T {
    let node = Flooded::start();
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
    let said = loop {
        tokio::select! {
            biased;
            took = ask(&mut good, id) => during.push(took),
            said = &mut flooding => break said,
        }
        id += 1;
        if id % 16 == 0 {
            large_kib = large_kib.max(node.resident_kib());
        }
        tokio::select! {
            biased;
            said = &mut flooding => break said,
            () = sleep(PAUSE) => {}
        }
    };
    let said = said.expect("the flood comes to an end").expect("it does not panic");
    // A connection that was asked on meanwhile may have an answer under way.
    drop(good);
    let mut again = Raw::greeted(node.address).await;
    for id in 0..100 {
        ask(&mut again, id).await;
    }
    let grown_kib = large_kib.max(node.resident_kib()).saturating_sub(small_kib);
    let asked = during.len();
    assert!(asked > 0, "the good client had its turn");
    let (before, during) = (percentiles(&mut before), percentiles(&mut during));
    println!(
        "{name}: {asked} requests beside it, p50 and p99 {before:?} before, {during:?} during, {grown_kib} KiB more"
    );
    assert!(grown_kib < MAX_GROWTH_KIB, "{name}: {grown_kib} KiB");
    said
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

/// The headers of a `Connect`, and these bytes of HPACK after them.
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

/// A header that is not in any table, of so many bytes.
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

/// A connection of HTTP/2 that reads nothing by itself.
async fn http2(node: SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(node).await.unwrap();
    tcp.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    tcp.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    tcp
}

/// Writes the frames that `make` makes for 0, 1, 2…, and reads meanwhile; how many were written before the node closed.
async fn write(node: SocketAddr, count: u32, make: impl Fn(u32) -> Vec<u8>) -> u32 {
    let (mut reader, mut writer) = http2(node).await.into_split();
    let reading = tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    let mut written = 0;
    while written < count && !reading.is_finished() {
        let some: Vec<u8> = (written..count.min(written + 16)).flat_map(&make).collect();
        if writer.write_all(&some).await.is_err() {
            break;
        }
        written = count.min(written + 16);
        tokio::task::yield_now().await;
    }
    // What is written after the end goes nowhere: let it be seen.
    let _ = timeout(Duration::from_millis(300), reading).await;
    written
}

fn stream(n: u32) -> u32 {
    2 * n + 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn streams_that_are_reset_at_once_end_their_connection() {
    let written = flooded("rapid resets", async |node| {
        write(node, 100_000, |n| {
            let cancel = frame(RESET, 0, stream(n), &8_u32.to_be_bytes());
            [frame(HEADERS, END_HEADERS, stream(n), &headers(&[])), cancel].concat()
        })
        .await
    })
    .await;
    assert!(written < 100_000, "it goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn headers_that_never_end_end_their_connection() {
    let written = flooded("CONTINUATION", async |node| {
        write(node, 20_000, |n| match n {
            0 => frame(HEADERS, 0, 1, &headers(&[])),
            _ => frame(CONTINUATION, 0, 1, &header(16_000)),
        })
        .await
    })
    .await;
    assert!(written < 2_000, "{written} frames of 16 KiB");
    // As large as nothing: what counts is that there are so many.
    let written = flooded("empty CONTINUATION", async |node| {
        write(node, 1_000_000, |n| match n {
            0 => frame(HEADERS, 0, 1, &headers(&[])),
            _ => frame(CONTINUATION, 0, 1, &[]),
        })
        .await
    })
    .await;
    assert!(written < 1_000_000, "it goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn headers_that_are_too_large_are_refused() {
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
async fn frames_of_one_byte_and_of_none_harm_nobody_else() {
    flooded("DATA of one byte", async |node| {
        write(node, 200_000, |n| match n {
            0 => frame(HEADERS, END_HEADERS, 1, &headers(&[])),
            // A message of 200,000 bytes, which comes one by one.
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
async fn ten_thousand_streams_are_not_ten_thousand_requests() {
    flooded("10,000 streams", async |node| {
        write(node, 10_000, |n| frame(HEADERS, END_HEADERS, stream(n), &headers(&[]))).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_thousand_connections_that_say_little_keep_nobody_out() {
    let closed = flooded("1,000 slow connections", async |node| {
        let mut slow = Vec::new();
        for n in 0..1_000 {
            let mut tcp = TcpStream::connect(node).await.unwrap();
            // Nothing, a part of the preface, and headers that never go on.
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
            // One byte in a while keeps none of them: what counts is an accepted request.
            let _ = tcp.write_all(b"\x01").await;
            closed += u32::from(timeout(PATIENCE, tokio::io::copy(&mut tcp, &mut tokio::io::sink())).await.is_ok());
        }
        closed
    })
    .await;
    assert_eq!(closed, 1_000, "closed within {PATIENCE:?}");
}
