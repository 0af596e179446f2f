//! Messages that are never finished: on one connection, on 50 and on 5,000, the node grows by its budget of received
//! bytes and by what a connection costs, judged by its resident memory.

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
};

use futures_util::StreamExt;
use groupcache_core::bytes::Bytes;
use h2::{
    SendStream,
    client::{ResponseFuture, SendRequest},
};
use prost::Message;
use tokio::{
    net::TcpSocket,
    time::{Duration, sleep, timeout},
};
use tonic::codegen::http;

use super::{Flooded, IS_NODE, connections_over_budget, flooded_node, flooded_within};
use crate::{
    proto::Frame,
    support::{
        PATIENCE,
        raw::{Raw, hello},
    },
};

/// Growth that messages cause, in KiB, of one connection with 30 MiB, and of many: the budget of 32 MiB, with
/// four times as much for what the allocator keeps of closed connections.
const ONE_KIB: u64 = 48 << 10;
const MANY_KIB: u64 = 5 * (32 << 10);

/// Memory of one connection that has sent a message, in KiB.
const CONNECTION_KIB: u64 = 48;

/// Connections of the largest flood, and the least with which it says anything.
const MOST: usize = 5_000;
const LEAST: usize = 500;

/// Descriptors that the test needs beside those of the flood.
const OTHER_DESCRIPTORS: usize = 500;

/// Number of connections that are opened at once.
const AT_ONCE: usize = 64;

/// Length of each message, of which the last byte is never sent.
const MESSAGE: usize = 1 << 20;

/// Address from which the flood comes, because a client loses connections to others of its own address.
const ORIGIN: &str = "127.0.0.2:0";

/// Opens an HTTP/2 connection.
async fn connect(node: SocketAddr) -> Option<SendRequest<Bytes>> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(ORIGIN.parse().unwrap()).unwrap();
    let (requests, connection) = h2::client::handshake(socket.connect(node).await.ok()?).await.ok()?;
    tokio::spawn(connection);
    Some(requests)
}

/// Returns the prefix of a message of this length.
fn prefix(bytes: usize) -> Vec<u8> {
    [&[0], &u32::try_from(bytes).unwrap().to_be_bytes()[..]].concat()
}

/// Begins a request and sends as much of its message as the windows take. The message lacks its last byte. A stream of
/// frames begins with a Hello, after which the connection counts as one of a peer.
async fn begin(requests: SendRequest<Bytes>, method: &str) -> Option<(ResponseFuture, SendStream<Bytes>)> {
    let request = http::Request::post(format!("http://node/groupcache.v1.Peer/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut stream) = requests.ready().await.ok()?.send_request(request, false).ok()?;
    if method == "Connect" {
        let hello = Frame { hello: Some(hello()), ..Frame::default() }.encode_to_vec();
        stream.send_data([prefix(hello.len()), hello].concat().into(), false).ok()?;
    }
    stream.send_data(prefix(MESSAGE).into(), false).ok()?;
    stream.send_data(Bytes::from(vec![0x7a; MESSAGE - 1]), false).ok()?;
    Some((response, stream))
}

/// Leaves `streams` messages unfinished on each of `connections` until the node has closed some of many connections, or
/// has ended a request of one. Returns the number of messages.
async fn leave_unfinished(node: SocketAddr, connections: usize, streams: usize) -> usize {
    let mut other = Raw::greeted(node).await;
    let opened = (0..connections).map(async |_| {
        let Some(requests) = connect(node).await else { return Vec::new() };
        let methods = std::iter::once("Connect").chain(std::iter::repeat("Get")).take(streams);
        let begun: Vec<_> = methods.map(|method| begin(requests.clone(), method)).collect();
        futures_util::future::join_all(begun).await
    });
    let open: Vec<_> = futures_util::stream::iter(opened).buffer_unordered(AT_ONCE).collect().await;
    let mut open: Vec<_> = open.into_iter().flatten().flatten().collect();
    let begun = open.len();
    if connections == 1 {
        let (get, _) = open.last_mut().expect("a request");
        let _ = timeout(PATIENCE, get).await.expect("a unary request ends by its own time");
    } else {
        let mut asks = 0;
        while connections_over_budget(&mut other, asks).await == 0 {
            asks += 1;
            sleep(Duration::from_millis(20)).await;
        }
    }
    begun
}

/// Returns how many descriptors this process and the node may have.
fn descriptors() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap_or(usize::MAX)
}

/// Returns the number of connections of the largest flood.
fn most_connections() -> usize {
    let descriptors = descriptors();
    let most = MOST.min(descriptors.saturating_sub(OTHER_DESCRIPTORS));
    assert!(
        most >= LEAST,
        "the limit of open files is {descriptors}; raise it with ulimit -n {}",
        MOST + OTHER_DESCRIPTORS
    );
    if most < MOST {
        println!("the limit of open files is {descriptors}, so that {most} connections stand for {MOST}");
    }
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn unfinished_messages_are_bounded_by_one_budget() {
    let most = most_connections();
    for (connections, streams, max_kib) in [(1, 30, ONE_KIB), (50, 30, MANY_KIB), (most, 1, MANY_KIB)] {
        let name = format!("{connections} connections with {streams} unfinished messages of 1 MiB");
        let max_kib = max_kib + connections as u64 * CONNECTION_KIB;
        let begun =
            flooded_within(&name, max_kib, async move |node| leave_unfinished(node, connections, streams).await);
        assert!(begun.await > 0, "{name}");
    }
}

/// Node in a container with little memory. Dropping it removes the container.
struct Container {
    node: Flooded,
    name: String,
}

/// Returns the standard output of a command that succeeds.
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Container {
    fn start(memory: &str) -> Self {
        run(Command::new("../tools/image").arg("runtime"));
        let name = format!("groupcache-flooded-{}", std::process::id());
        let binary = format!("{}:/node:ro", std::env::current_exe().unwrap().display());
        let mut docker = Command::new("docker");
        docker.args(["run", "--interactive", "--rm", "--network", "host", "--env", &format!("{IS_NODE}=1")]);
        docker.args(["--env", "MALLOC_TRIM_THRESHOLD_=131072"]); // as in deploy/Dockerfile
        docker.args(["--memory", memory, "--memory-swap", memory, "--name", &name, "--volume", &binary]);
        let node = Flooded::spawn(docker.args(["groupcache-runtime:local", "/node"]));
        let mut container = Self { node, name };
        container.node.process = container.inspect("{{.State.Pid}}").parse().unwrap();
        container
    }

    fn inspect(&self, what: &str) -> String {
        run(Command::new("docker").args(["inspect", "--format", what, &self.name])).trim().to_owned()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let removed = Command::new("docker").args(["rm", "--force", &self.name]).output();
        println!("removed: {}", removed.is_ok_and(|output| output.status.success()));
    }
}

/// Checks that a node in a container of 256 MiB survives messages that are never finished, in the figure of SECURITY.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs a Docker engine"]
async fn unfinished_messages_fit_a_small_container() {
    let most = most_connections();
    for (connections, streams) in [(1, 30), (50, 30), (most, 1)] {
        let container = Container::start("256m");
        let name = format!("256 MiB, {connections} connections with {streams} unfinished messages of 1 MiB");
        let begun = flooded_node(&name, &container.node, u64::MAX, async move |node| {
            leave_unfinished(node, connections, streams).await
        });
        assert!(begun.await > 0, "{name}");
        assert_eq!(container.inspect("{{.State.OOMKilled}} {{.State.Running}}"), "false true", "{name}");
    }
}
