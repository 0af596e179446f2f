//! P4: an owner that is killed, stopped, or behind a path that has gone dead is not the callers' error.
//!
//! The owner that is lost is a real process: this test binary, started again as `a_process_of_its_own`.

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
use groupcache_core::{Address, BoxError, Group, Identity, Node, Peer, PeerId};
use tokio::{task::JoinSet, time::Instant};

/// Set for the process of its own: what it is called.
const ID: &str = "GROUPCACHE_TEST_ID";

async fn instant(loads: &Loads, key: &str) -> Result<String, BoxError> {
    loads.begin(key);
    Ok(key.to_owned())
}

fn data(node: &Node, loads: &Loads) -> Group<String> {
    node.group::<String>("data").capacity_bytes(64 << 20).loader_with(loads.clone(), instant).build().unwrap()
}

/// Not a test but a node: run by [`Process`], it ends with its parent.
#[test]
fn a_process_of_its_own() {
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
    let _ = std::io::stdin().read_to_end(&mut Vec::new()); // until the parent is gone
}

struct Process(Child);

impl Process {
    /// Starts node `id` and waits until it listens.
    fn start(id: &str, listen: SocketAddr, peers: &[&Node]) -> (Self, SocketAddr) {
        let peers: Vec<_> = peers.iter().map(|node| format!("{}@{}", node.id(), node.address())).collect();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["owner_lost::a_process_of_its_own", "--exact", "--nocapture"])
            .envs([(ID, id), ("LISTEN", &listen.to_string()), ("PEERS", &peers.join(","))])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.strip_prefix("listening ")?.parse().ok());
        (Self(child), address.expect("it says where it listens"))
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

/// Nodes `b` and `c` in this process, and `a` somewhere else.
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

    async fn know_a_at(&self, address: SocketAddr) {
        let a = Peer::member(PeerId::new("a").unwrap(), [address.into()]);
        self.peers.set(vec![a, support::peer(&self.b), support::peer(&self.c)]);
        self.a_is_back().await;
    }

    /// Waits until both nodes route to `a`.
    async fn a_is_back(&self) {
        eventually("a is reachable and has the group", || {
            self.others().iter().all(|node| {
                node.members().len() == 3
                    && node.members().iter().all(|m| m.is_reachable && m.owns)
                    && node.peers_with_group("data") == 2
            })
        })
        .await;
    }

    /// Keys of `a` are loaded there: neither `b` nor `c` loads any.
    async fn a_serves_its_keys(&self, what: &str) {
        let keys = (0..).map(|n| format!("{what}-{n}")).filter(|key| self.groups[0].owner_of(key).as_str() == "a");
        let before = self.loads.total();
        for key in keys.take(50) {
            for group in &self.groups {
                assert_eq!(group.get(&key).await.unwrap(), key);
            }
        }
        assert_eq!(self.loads.total(), before, "{what}: all of them at their owner");
    }
}

/// Callers at `b` and `c` that get new keys all the time, one after another each.
struct Load {
    stop: Arc<AtomicBool>,
    callers: JoinSet<Vec<Duration>>,
    done: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
}

/// A get that took this long waited for a peer that said nothing.
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

    /// Waits for so many gets more, as long as they go on.
    async fn more(&self, gets: u64) {
        let begun = self.done.load(SeqCst);
        for until in (begun..=begun + gets).step_by(500) {
            eventually("gets go on", || self.done.load(SeqCst) >= until).await;
        }
    }

    /// Ends the callers; returns how many gets there were, and the slow ones of each caller.
    async fn end(self) -> (u64, Vec<Vec<Duration>>) {
        self.stop.store(true, SeqCst);
        let slow = self.callers.join_all().await;
        assert_eq!(self.failed.load(SeqCst), 0, "failed gets of {}", self.done.load(SeqCst));
        (self.done.load(SeqCst), slow)
    }
}

/// Nobody waits for the lost owner more than once, and then no longer than it takes to notice.
fn waited_at_most_once(slow: &[Vec<Duration>]) {
    for one in slow {
        assert!(one.len() <= 1, "a caller waited again: {one:?}");
        assert!(one.iter().all(|took| *took < Duration::from_millis(1900)), "the silence limit is a second: {one:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_is_killed_under_load_fails_no_get() {
    let scene = Scene::start().await;
    let (process, address) = Process::start("a", "127.0.0.1:0".parse().unwrap(), &scene.others());
    scene.know_a_at(address).await;
    scene.a_serves_its_keys("before").await;
    let load = Load::begin(&scene.groups);
    load.more(2000).await;
    process.signal("-KILL");
    drop(process);
    load.more(5000).await;
    // It returns under load, at the same address and with a new incarnation.
    let (_again, _) = Process::start("a", address, &scene.others());
    scene.a_is_back().await;
    load.more(2000).await;
    let (gets, slow) = load.end().await;
    println!("killed: {gets} gets, 0 failed, slow ones {slow:?}");
    waited_at_most_once(&slow);
    scene.a_serves_its_keys("after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_is_stopped_is_waited_for_once() {
    let scene = Scene::start().await;
    let (process, address) = Process::start("a", "127.0.0.1:0".parse().unwrap(), &scene.others());
    scene.know_a_at(address).await;
    let load = Load::begin(&scene.groups);
    load.more(2000).await;
    process.signal("-STOP");
    load.more(20_000).await;
    eventually("its silence is noticed", || scene.others().iter().all(|node| node.stats().silent == 1)).await;
    process.signal("-CONT");
    scene.a_is_back().await;
    let (gets, slow) = load.end().await;
    println!("stopped: {gets} gets, 0 failed, slow ones {slow:?}");
    waited_at_most_once(&slow);
    scene.a_serves_its_keys("after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_stops_carrying_anything_is_waited_for_once() {
    let scene = Scene::start().await;
    let a = Node::builder().identity(identity("a")).provider(scene.peers.clone()).start().await.unwrap();
    let _group = data(&a, &Loads::default());
    let path = Proxy::start(a.address()).await;
    scene.know_a_at(path.address).await;
    scene.a_serves_its_keys("before").await;
    let load = Load::begin(&scene.groups);
    load.more(2000).await;
    path.stop();
    load.more(20_000).await;
    eventually("the silence is noticed", || scene.others().iter().all(|node| node.stats().silent == 1)).await;
    path.resume();
    scene.a_is_back().await;
    let (gets, slow) = load.end().await;
    println!("dead path: {gets} gets, 0 failed, slow ones {slow:?}");
    waited_at_most_once(&slow);
    scene.a_serves_its_keys("after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_is_replaced_and_the_same_owner_asked_again() {
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
    scene.know_a_at(path.address).await;
    eventually("all know the group", || scene.b.peers_with_group("slow") == 2).await;
    let key = (0..).map(|n| format!("key-{n}")).find(|key| at_b.owner_of(key).as_str() == "a").unwrap();
    let get = tokio::spawn(async move { at_b.get(&key).await });
    eventually("the load runs at its owner", || loads.total() == 1).await;
    path.cut();
    assert_eq!(get.await.unwrap().unwrap(), "once");
    assert_eq!(loads.total(), 1, "asked again, it joined the load that ran");
    eventually("the cut was noticed", || scene.b.stats().lost == 1).await;
}

/// Nodes `a` and `b`, of which `b` reaches `a` through a proxy only.
async fn behind_a_proxy(build: impl Fn(&Node) -> Group<String>) -> (Node, Node, Group<String>, Proxy) {
    let peers = Peers::default();
    let start =
        async |name: &str| Node::builder().identity(identity(name)).provider(peers.clone()).start().await.unwrap();
    let (a, b) = (start("a").await, start("b").await);
    let (_at_a, at_b) = (build(&a), build(&b));
    let path = Proxy::start(a.address()).await;
    peers.set(vec![Peer::member(a.id(), [path.address.into()]), support::peer(&b)]);
    is_reached(&b, at_b.name()).await;
    (a, b, at_b, path)
}

/// Waits until `node` can ask its one peer for a group.
async fn is_reached(node: &Node, group: &str) {
    eventually("the peer is reached", || {
        let members = node.members();
        members.len() == 2 && members.iter().all(|m| m.owns && m.is_reachable) && node.peers_with_group(group) == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_given_up_is_closed() {
    let loads = Loads::default();
    let (_a, b, group, path) = behind_a_proxy(|node| data(node, &loads)).await;
    for round in 1..=2 {
        path.stop();
        eventually("the silence is noticed", || b.stats().silent == round).await;
        path.resume();
        is_reached(&b, "data").await;
        eventually("the old connection is closed", || path.open() == 1).await;
    }
    let key = (0..).map(|n| format!("key-{n}")).find(|key| group.owner_of(key).as_str() == "a").unwrap();
    assert_eq!(group.get(&key).await.unwrap(), key);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_value_on_a_slow_path_is_not_silence() {
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
    let key = (0..).map(|n| format!("key-{n}")).find(|key| group.owner_of(key).as_str() == "a").unwrap();
    assert_eq!(group.get(&key).await.unwrap().len(), BYTES);
    assert_eq!((b.stats().silent, b.stats().lost), (0, 0), "bytes came all the time");
    assert_eq!((loads.total(), group.stats().loads), (1, 0), "at its owner");
}
