//! Names: nodes that dial host names, with name servers that answer late, in part, or never.
//!
//! Each test starts this test binary again, in a network namespace of its own with its own `/etc/resolv.conf` and
//! `/etc/hosts`, as `child_process_dials_names`. The child process is the name server too.

use std::{
    io::{BufRead, BufReader},
    net::{SocketAddr, UdpSocket},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use crate::support::{PATIENCE, Peers, eventually};
use groupcache_core::{
    BoxError, Identity, Node, PeerId,
    discovery::{Address, Peer},
};
use tokio::time::{sleep, timeout};

/// Environment variable of the child process, which names the scene.
const SCENE: &str = "GROUPCACHE_TEST_NAMES";

/// Environment variable with another number of silent names, for measurements.
const NAMES: &str = "GROUPCACHE_TEST_NAMES_NUMBER";

/// Time that a system resolver may take with a name server that answers half of the questions.
const SLOW: Duration = Duration::from_secs(60);

/// Preparation of the namespace, and the start of the child process in it. `fd00:dead::77` swallows all packets.
const PREPARE: &str = "
    ip link set lo up
    ip link add swallow type veth peer name other
    ip addr add fd00:beef::1/64 dev swallow nodad
    ip link set swallow up
    ip link set other up
    ip route add fd00:dead::/64 dev swallow
    ip neigh replace fd00:dead::77 lladdr 02:00:00:00:00:01 dev swallow nud permanent
    mount --bind \"$1/resolv.conf\" /etc/resolv.conf
    mount --bind \"$1/hosts\" /etc/hosts
    if [ -e /etc/nsswitch.conf ]; then mount --bind \"$1/nsswitch.conf\" /etc/nsswitch.conf; fi
    exec \"$2\" names::child_process_dials_names --exact --nocapture
";

const HOSTS: &str = "127.0.0.1 localhost
fd00:dead::77 bee
127.0.0.1 bee
127.0.0.3 cache
127.0.0.2 cache
127.0.0.4 scaled
127.0.0.5 scaled
127.0.0.6 scaled
";

/// Runs a scene in a namespace, and returns how long the process lived after its last line. Returns `None` where the
/// machine has no namespaces.
fn run(scene: &str) -> Option<Duration> {
    let namespaces = Command::new("unshare").args(["--net", "--mount", "ip", "link", "set", "lo", "up"]).output();
    if !namespaces.is_ok_and(|output| output.status.success()) {
        segment::leave_out("needs root, unshare and iproute2, for a namespace with its own name server");
        return None;
    }
    let etc = std::env::temp_dir().join(format!("groupcache-names-{}-{scene}", std::process::id()));
    std::fs::create_dir_all(&etc).unwrap();
    for (file, content) in
        [("resolv.conf", "nameserver 127.0.0.1\n"), ("hosts", HOSTS), ("nsswitch.conf", "hosts: files dns\n")]
    {
        std::fs::write(etc.join(file), content).unwrap();
    }
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "sh", "-e", "-c", PREPARE, "sh"]).arg(&etc);
    command.arg(std::env::current_exe().unwrap()).env(SCENE, scene).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut over = None;
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        println!("{scene}: {line}");
        if line == "over" {
            over = Some(Instant::now());
        }
    }
    let status = child.wait().unwrap();
    let lived = over.map(|over| over.elapsed());
    println!("{scene}: the process ended {lived:?} after its node");
    let _ = std::fs::remove_dir_all(etc);
    assert!(status.success(), "{scene}: {status}");
    Some(lived.expect("the scene is over"))
}

/// Child process, for the tests below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_process_dials_names() {
    let Ok(scene) = std::env::var(SCENE) else { return };
    let server = UdpSocket::bind("127.0.0.1:53").unwrap();
    match scene.as_str() {
        "silence" => silence(server).await,
        "half" => half(server).await,
        "swallow" => swallow().await,
        "shared" => shared().await,
        "scaled" => scaled().await,
        other => panic!("unknown scene: {other}"),
    }
    println!("over");
}

async fn start(id: &str, listen: &str, peers: &Peers) -> Node {
    let identity = Identity::new(listen.parse().unwrap()).with_id(id).unwrap();
    Node::builder().identity(identity).provider(peers.clone()).start().await.unwrap()
}

fn named(id: &str, address: &str) -> Peer {
    Peer::member(PeerId::new(id).unwrap(), [Address::new(address).unwrap()])
}

fn reaches(node: &Node, id: &str) -> bool {
    node.members().iter().any(|member| member.id.as_str() == id && member.reachable)
}

async fn end(nodes: impl IntoIterator<Item = Node>) {
    for node in nodes {
        node.shutdown_within(Duration::from_secs(1)).await.unwrap();
    }
}

#[test]
fn silent_name_server_delays_nothing_of_the_process() {
    let Some(lived) = run("silence") else { return };
    assert!(lived < Duration::from_secs(6), "the process lived {lived:?} longer than its node");
}

/// Threads of this process.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// Checks the threads, the blocking pool and the gets of a node with many names and a name server that never answers.
async fn silence(_server: UdpSocket) {
    let names = std::env::var(NAMES).map_or(100, |names| names.parse().unwrap());
    let peers = Peers::default();
    peers.set((0..names).map(|n| named(&format!("p{n}"), &format!("silent-{n}.test:7946"))).collect());
    let before = threads();
    let node = start("a", "127.0.0.1:0", &peers).await;
    let group = node.group::<String>("data").capacity_bytes(1 << 20);
    // The loader reads its source with a blocking call, as many do.
    let group = group.loader(async |key: &str| {
        let key = key.to_owned();
        Ok::<_, BoxError>(tokio::task::spawn_blocking(move || key).await?)
    });
    let group = group.build().unwrap();
    let (mut slowest_get, mut slowest_task, mut most_threads) = (Duration::ZERO, Duration::ZERO, 0);
    let begun = Instant::now();
    for n in 0.. {
        if begun.elapsed() > Duration::from_secs(15) {
            break;
        }
        let asked = Instant::now();
        timeout(PATIENCE, tokio::task::spawn_blocking(|| {})).await.expect("the blocking pool is free").unwrap();
        slowest_task = slowest_task.max(asked.elapsed());
        let asked = Instant::now();
        group.get(&format!("key-{n}")).await.unwrap();
        slowest_get = slowest_get.max(asked.elapsed());
        most_threads = most_threads.max(threads());
        sleep(Duration::from_millis(50)).await;
    }
    let more = most_threads - before;
    println!("{names} names: {more} more threads, spawn_blocking {slowest_task:?}, uncached get {slowest_get:?}");
    assert!(more <= 20, "{more} more threads");
    assert!(slowest_task < Duration::from_secs(2), "a blocking task waited {slowest_task:?}");
    assert!(slowest_get < Duration::from_secs(2), "a get took {slowest_get:?}");
    end([node]).await;
}

/// Checks that a name is reached whose look-up takes longer than a dial, and stays known when the name server is
/// silent.
#[test]
fn peer_is_reached_by_a_name_that_is_looked_up_slowly() {
    run("half");
}

/// Returns the answer to a question for IPv4 addresses, and nothing to others.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let name_end = 12 + question.get(12..)?.iter().position(|byte| *byte == 0)? + 1;
    let is_of_v4 = question.get(name_end..name_end + 2)? == [0, 1];
    let mut answer = question.get(..2)?.to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend(question.get(12..name_end + 4)?);
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
    is_of_v4.then_some(answer)
}

async fn half(server: UdpSocket) {
    let (is_silent, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (silent, questions) = (Arc::clone(&is_silent), Arc::clone(&asked));
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((n, from)) = server.recv_from(&mut buffer) {
            questions.fetch_add(1, SeqCst);
            if let Some(answer) = answer(&buffer[..n]).filter(|_| !silent.load(SeqCst)) {
                server.send_to(&answer, from).unwrap();
            }
        }
    });
    let (of_a, of_b) = (Peers::default(), Peers::default());
    let (a, b) = (start("a", "127.0.0.1:0", &of_a).await, start("b", "127.0.0.1:0", &of_b).await);
    of_a.set(vec![named("b", &format!("bee.test:{}", b.address().port()))]);
    let begun = Instant::now();
    let reached = timeout(SLOW, async {
        while !reaches(&a, "b") {
            sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(reached.await.is_ok(), "not reached: {:?}", a.unconnected());
    println!("reached after {:?}", begun.elapsed());
    is_silent.store(true, SeqCst);
    // The connection is lost at an age at which the addresses are not fresh any more.
    let (lost, before) = (a.stats().lost, asked.load(SeqCst));
    sleep(Duration::from_secs(6)).await;
    let port = b.address();
    end([b]).await;
    let b = start("b", &port.to_string(), &of_b).await;
    eventually("the peer is reached again", || a.stats().lost > lost && reaches(&a, "b")).await;
    println!("{} questions meanwhile", asked.load(SeqCst) - before);
    end([a, b]).await;
}

/// Checks that a peer is reached although the first address of its name swallows all packets.
#[test]
fn peer_with_a_dead_address_is_reached() {
    run("swallow");
}

async fn swallow() {
    let (of_a, of_b) = (Peers::default(), Peers::default());
    let (a, b) = (start("a", "127.0.0.1:0", &of_a).await, start("b", "127.0.0.1:0", &of_b).await);
    let begun = Instant::now();
    of_a.set(vec![named("b", &format!("bee:{}", b.address().port()))]);
    eventually("b is reached", || reaches(&a, "b")).await;
    println!("reached after {:?}", begun.elapsed());
    end([a, b]).await;
}

/// Checks that each of two peers behind one name is reached.
#[test]
fn peers_behind_one_name_are_all_reached() {
    run("shared");
}

async fn shared() {
    let (of_a, others) = (Peers::default(), Peers::default());
    let a = start("a", "127.0.0.1:0", &of_a).await;
    let (b, c) = (start("b", "127.0.0.2:7946", &others).await, start("c", "127.0.0.3:7946", &others).await);
    of_a.set(vec![named("b", "cache:7946"), named("c", "cache:7946")]);
    eventually("b and c are reached", || reaches(&a, "b") && reaches(&a, "c")).await;
    let addresses: Vec<SocketAddr> = vec![b.address(), c.address()];
    println!("reached {addresses:?}");
    end([a, b, c]).await;
}

/// Checks that three nodes find one another by one name without ids, which stands for the addresses of all three.
#[test]
fn nodes_behind_one_name_without_ids_find_each_other() {
    run("scaled");
}

async fn scaled() {
    let peers = Peers::default();
    peers.set(vec![Peer::at("scaled:7946").unwrap()]);
    let mut nodes = Vec::new();
    for (id, listen) in [("a", "127.0.0.4:7946"), ("b", "127.0.0.5:7946"), ("c", "127.0.0.6:7946")] {
        nodes.push(start(id, listen, &peers).await);
    }
    let begun = Instant::now();
    let agree = |nodes: &[Node]| {
        nodes.iter().all(|node| node.members().len() == 3 && node.fingerprint() == nodes[0].fingerprint())
    };
    eventually("all three agree", || agree(&nodes)).await;
    println!("all three agree after {:?}", begun.elapsed());
    sleep(Duration::from_secs(10)).await; // longer than the time between two look-ups, and than the grace of a member
    assert!(agree(&nodes), "the nodes stay together");
    end(nodes).await;
}
