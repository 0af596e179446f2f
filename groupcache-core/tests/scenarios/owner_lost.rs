//! Loss of an owner (P4): callers get no errors when an owner is killed, stopped, or behind a dead network path.
//!
//! The lost owner is a real process: this test binary, started again as `child_process`.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::support::{self, Loads, Peers, Proxy, eventually, identity};
use groupcache_core::{
    BoxError, Group, Identity, Node, PeerId,
    discovery::{Address, Peer},
};
use tokio::{task::JoinSet, time::Instant};

/// Environment variable with the id of the node, set for the child process.
const ID: &str = "GROUPCACHE_TEST_ID";

/// Loads a key as its own value, without a pause.
async fn instant(loads: &Loads, key: &str) -> Result<String, BoxError> {
    loads.begin(key);
    Ok(key.to_owned())
}

fn data(node: &Node, loads: &Loads) -> Group<String> {
    node.group::<String>("data").capacity_bytes(64 << 20).loader_with(loads.clone(), instant).build().unwrap()
}

/// Runs a node, and tests nothing: [`Process`] starts it, and it ends with its parent.
#[test]
fn child_process() {
    let Ok(id) = std::env::var(ID) else { return };
    let var = |name| std::env::var(name).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _node = runtime.block_on(async {
        let me = Identity::new(var("LISTEN").parse().unwrap()).with_id(&id).unwrap();
        let peers = Peers::default();
        let peer = |text: &str| {
            let (id, address) = text.split_once('@').unwrap();
            Peer::member(PeerId::new(id).unwrap(), [Address::new(address).unwrap()])
        };
        peers.set(var("PEERS").split(',').map(peer).collect());
        let node = Node::builder().identity(me).provider(peers).start().await.unwrap();
        let group = data(&node, &Loads::default());
        println!("\nlistening {}", node.address());
        (node, group)
    });
    let _ = std::io::stdin().read_to_end(&mut Vec::new()); // until the parent ends
}

/// Node in a child process, which is killed when this is dropped.
struct Process(Child);

impl Process {
    /// Starts node `id` and waits until it listens.
    fn start(id: &str, listen: SocketAddr, peers: &[&Node]) -> (Self, SocketAddr) {
        let peers: Vec<_> = peers.iter().map(|node| format!("{}@{}", node.id(), node.address())).collect();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["owner_lost::child_process", "--exact", "--nocapture"])
            .envs([(ID, id), ("LISTEN", &listen.to_string()), ("PEERS", &peers.join(","))])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.strip_prefix("listening ")?.parse().ok());
        (Self(child), address.expect("the child prints its address"))
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Nodes `b` and `c` in this process, and `a` elsewhere.
struct Scene {
    b: Node,
    c: Node,
    groups: [Group<String>; 2],
    peers: Peers,
    /// Loads of `b` and `c`.
    loads: Loads,
}

impl Scene {
    async fn start() -> Self {
        let (peers, loads) = (Peers::default(), Loads::default());
        let start =
            async |name: &str| Node::builder().identity(identity(name)).provider(peers.clone()).start().await.unwrap();
        let (b, c) = (start("b").await, start("c").await);
        let groups = [data(&b, &loads), data(&c, &loads)];
        Self { b, c, groups, peers, loads }
    }

    fn others(&self) -> [&Node; 2] {
        [&self.b, &self.c]
    }

    /// Lists `a` at this address and waits until it is reachable.
    async fn list_a_at(&self, address: SocketAddr) {
        let a = Peer::member(PeerId::new("a").unwrap(), [address.into()]);
        self.peers.set(vec![a, support::peer(&self.b), support::peer(&self.c)]);
        self.wait_until_a_is_reachable().await;
    }

    /// Waits until both nodes route requests to `a`.
    async fn wait_until_a_is_reachable(&self) {
        eventually("a is reachable and has the group", || {
            self.others().iter().all(|node| {
                node.members().len() == 3
                    && node.members().iter().all(|m| m.reachable && m.owns)
                    && node.peers_with_group("data") == 2
            })
        })
        .await;
    }

    /// Checks that keys of `a` are loaded there: neither `b` nor `c` loads any.
    async fn assert_a_serves_its_keys(&self, what: &str) {
        let keys =
            (0..).map(|n| format!("{what}-{n}")).filter(|key| self.groups[0].inspect().owner_of(key).as_str() == "a");
        let before = self.loads.total();
        for key in keys.take(50) {
            for group in &self.groups {
                assert_eq!(group.get(&key).await.unwrap(), key);
            }
        }
        assert_eq!(self.loads.total(), before, "{what}: the owner loads all of its keys");
    }
}

/// Callers at `b` and `c`, each of which gets new keys one after another until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    callers: JoinSet<Vec<Duration>>,
    done: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
}

/// Duration above which a get has waited for a silent peer.
const SLOW: Duration = Duration::from_millis(900);

impl Load {
    fn begin(groups: &[Group<String>; 2]) -> Self {
        let (stop, done, failed) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let mut callers = JoinSet::new();
        for at in 0..16 {
            let (group, stop) = (groups[at % 2].clone(), Arc::clone(&stop));
            let (done, failed) = (Arc::clone(&done), Arc::clone(&failed));
            callers.spawn(async move {
                let mut slow = Vec::new();
                for n in 0.. {
                    if stop.load(SeqCst) {
                        break;
                    }
                    let (key, began) = (format!("caller-{at}-{n}"), Instant::now());
                    match group.get(&key).await {
                        Ok(value) => assert_eq!(value, key),
                        Err(error) => {
                            eprintln!("failed: {error:?}");
                            failed.fetch_add(1, SeqCst);
                        }
                    }
                    done.fetch_add(1, SeqCst);
                    if began.elapsed() > SLOW {
                        slow.push(began.elapsed());
                    }
                }
                slow
            });
        }
        Self { stop, callers, done, failed }
    }

    /// Waits until this many more gets have ended, and panics when they stall.
    async fn wait_for(&self, gets: u64) {
        let begun = self.done.load(SeqCst);
        for until in (begun..=begun + gets).step_by(500) {
            eventually("the gets continue", || self.done.load(SeqCst) >= until).await;
        }
    }

    /// Ends the callers, and returns the number of gets and the slow gets of each caller.
    async fn end(self) -> (u64, Vec<Vec<Duration>>) {
        self.stop.store(true, SeqCst);
        let slow = self.callers.join_all().await;
        assert_eq!(self.failed.load(SeqCst), 0, "failed gets of {}", self.done.load(SeqCst));
        (self.done.load(SeqCst), slow)
    }
}

/// Checks that each caller waited for the lost owner at most once. The detection of the loss takes a second, and longer
/// on a busy machine.
fn assert_waited_at_most_once(slow: &[Vec<Duration>]) {
    for gets in slow {
        assert!(gets.len() <= 1, "a caller waited again: {gets:?}");
        assert!(gets.iter().all(|took| *took < Duration::from_secs(8)), "the limit of silence is 1 s: {gets:?}");
    }
}

/// Checks that no get fails and that each caller waits at most once when an owner is killed under load, and that the
/// owner serves its keys again after its restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_owner_fails_no_get() {
    let scene = Scene::start().await;
    let (process, address) = Process::start("a", "127.0.0.1:0".parse().unwrap(), &scene.others());
    scene.list_a_at(address).await;
    scene.assert_a_serves_its_keys("before").await;
    let load = Load::begin(&scene.groups);
    load.wait_for(2000).await;
    process.signal("-KILL");
    drop(process);
    load.wait_for(5000).await;
    // The owner returns under load, at the same address and with a new incarnation.
    let (_again, _) = Process::start("a", address, &scene.others());
    scene.wait_until_a_is_reachable().await;
    load.wait_for(2000).await;
    let (gets, slow) = load.end().await;
    println!("killed: {gets} gets, 0 failed, slow ones {slow:?}");
    assert_waited_at_most_once(&slow);
    scene.assert_a_serves_its_keys("after").await;
}

/// Checks that each caller waits at most once for an owner that is stopped with SIGSTOP, and that the owner serves its
/// keys again after SIGCONT.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_owner_delays_each_caller_once() {
    let scene = Scene::start().await;
    let (process, address) = Process::start("a", "127.0.0.1:0".parse().unwrap(), &scene.others());
    scene.list_a_at(address).await;
    let load = Load::begin(&scene.groups);
    load.wait_for(2000).await;
    process.signal("-STOP");
    load.wait_for(20_000).await;
    eventually("b and c detect the silence", || scene.others().iter().all(|node| node.stats().ping_timeouts == 1))
        .await;
    process.signal("-CONT");
    scene.wait_until_a_is_reachable().await;
    let (gets, slow) = load.end().await;
    println!("stopped: {gets} gets, 0 failed, slow ones {slow:?}");
    assert_waited_at_most_once(&slow);
    scene.assert_a_serves_its_keys("after").await;
}

/// Checks that each caller waits at most once when the path to the owner carries no more bytes, and that the owner
/// serves its keys once the path works again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_path_delays_each_caller_once() {
    let scene = Scene::start().await;
    let a = Node::builder().identity(identity("a")).provider(scene.peers.clone()).start().await.unwrap();
    let _group = data(&a, &Loads::default());
    let path = Proxy::start(a.address()).await;
    scene.list_a_at(path.address).await;
    scene.assert_a_serves_its_keys("before").await;
    let load = Load::begin(&scene.groups);
    load.wait_for(2000).await;
    path.stop();
    load.wait_for(20_000).await;
    eventually("b and c detect the silence", || scene.others().iter().all(|node| node.stats().ping_timeouts == 1))
        .await;
    path.resume();
    scene.wait_until_a_is_reachable().await;
    let (gets, slow) = load.end().await;
    println!("dead path: {gets} gets, 0 failed, slow ones {slow:?}");
    assert_waited_at_most_once(&slow);
    scene.assert_a_serves_its_keys("after").await;
}

/// Checks that a fetch is sent again to the same owner over a new connection when its connection breaks, and that it
/// joins the running load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_connection_retries_at_the_same_owner() {
    let scene = Scene::start().await;
    let loads = Loads::default();
    let slow = async |loads: &Loads, key: &str| {
        loads.begin(key);
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok::<_, BoxError>("once".to_owned())
    };
    let a = Node::builder().identity(identity("a")).provider(scene.peers.clone()).start().await.unwrap();
    let build = |node: &Node| {
        node.group::<String>("slow").capacity_bytes(1 << 20).loader_with(loads.clone(), slow).build().unwrap()
    };
    let (_at_a, _data, at_b, _at_c) = (build(&a), data(&a, &Loads::default()), build(&scene.b), build(&scene.c));
    let path = Proxy::start(a.address()).await;
    scene.list_a_at(path.address).await;
    eventually("b knows the group at both peers", || scene.b.peers_with_group("slow") == 2).await;
    let key = (0..).map(|n| format!("key-{n}")).find(|key| at_b.inspect().owner_of(key).as_str() == "a").unwrap();
    let get = tokio::spawn(async move { at_b.get(&key).await });
    eventually("the load runs at its owner", || loads.total() == 1).await;
    path.cut();
    assert_eq!(get.await.unwrap().unwrap(), "once");
    assert_eq!(loads.total(), 1, "the repeated request joins the running load");
    eventually("b detects the cut", || scene.b.stats().lost == 1).await;
}

/// Starts nodes `a` and `b`, of which `b` reaches `a` through a proxy only.
async fn behind_a_proxy(build: impl Fn(&Node) -> Group<String>) -> (Node, Node, Group<String>, Proxy) {
    let peers = Peers::default();
    let start =
        async |name: &str| Node::builder().identity(identity(name)).provider(peers.clone()).start().await.unwrap();
    let (a, b) = (start("a").await, start("b").await);
    let (_at_a, at_b) = (build(&a), build(&b));
    let path = Proxy::start(a.address()).await;
    peers.set(vec![Peer::member(a.id(), [path.address.into()]), support::peer(&b)]);
    wait_until_reached(&b, at_b.name()).await;
    (a, b, at_b, path)
}

/// Waits until `node` can send requests for the group to its only peer.
async fn wait_until_reached(node: &Node, group: &str) {
    eventually("the peer is reachable", || {
        let members = node.members();
        members.len() == 2 && members.iter().all(|m| m.owns && m.reachable) && node.peers_with_group(group) == 1
    })
    .await;
}

/// Checks that a node closes a connection that it has abandoned because of silence, and serves through the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_connection_is_closed() {
    let loads = Loads::default();
    let (_a, b, group, path) = behind_a_proxy(|node| data(node, &loads)).await;
    for round in 1..=2 {
        path.stop();
        eventually("b detects the silence", || b.stats().ping_timeouts == round).await;
        path.resume();
        wait_until_reached(&b, "data").await;
        eventually("the old connection is closed", || path.open() == 1).await;
    }
    let key = (0..).map(|n| format!("key-{n}")).find(|key| group.inspect().owner_of(key).as_str() == "a").unwrap();
    assert_eq!(group.get(&key).await.unwrap(), key);
}

/// Checks that a response that takes 2.5 s to arrive is not mistaken for a silent peer, because bytes arrive all the
/// time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_value_on_a_slow_path_is_not_silence() {
    const BYTES: usize = 500 << 10;
    let large = async |loads: &Loads, key: &str| {
        loads.begin(key);
        Ok::<_, BoxError>("v".repeat(BYTES))
    };
    let loads = Loads::default();
    let build = |node: &Node| {
        node.group::<String>("data").capacity_bytes(8 << 20).loader_with(loads.clone(), large).build().unwrap()
    };
    let (_a, b, group, path) = behind_a_proxy(build).await;
    path.limit_rate(200 << 10);
    let key = (0..).map(|n| format!("key-{n}")).find(|key| group.inspect().owner_of(key).as_str() == "a").unwrap();
    assert_eq!(group.get(&key).await.unwrap().len(), BYTES);
    assert_eq!((b.stats().ping_timeouts, b.stats().lost), (0, 0), "the peer is never silent");
    assert_eq!((loads.total(), group.stats().loads), (1, 0), "the owner loads the key");
}
