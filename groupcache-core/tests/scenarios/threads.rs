//! Threads: public calls from any thread and any executor, whatever the runtime of the node does.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use groupcache_core::{
    BoxError, Error, Group, Identity, Limits, Node, NodeBuilder, RemoveOptions, Value, WriteOutcome, async_trait,
    discovery::{Provider, ProviderContext, ProviderError, Trust},
    value::{DecodeError, EncodeError},
};
use tokio::runtime::{Builder, Runtime};

use crate::support::{self, Cluster, PATIENCE};

/// Nodes `a` and `b` on a runtime of their own, with keys of `a` as the calls of `a` see them.
struct Scene {
    runtime: Runtime,
    cluster: Cluster,
    groups: Vec<Group<String>>,
}

/// Loads a key as its own value, and never the keys that hang.
async fn load(_: &(), key: &str) -> Result<String, BoxError> {
    if key.starts_with("hangs") {
        std::future::pending::<()>().await;
    }
    Ok(key.to_owned())
}

impl Scene {
    fn start(limits: &Limits) -> Self {
        Self::start_with(limits, 0)
    }

    fn start_with(limits: &Limits, serve_threads: usize) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (cluster, groups) = runtime.block_on(async {
            let build = |_, node: NodeBuilder| node.limits(limits.clone()).serve_threads(serve_threads);
            let cluster = Cluster::start_each(2, build).await;
            let build = |_, node: &Node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with((), load);
            let groups = cluster.group(build).await;
            (cluster, groups)
        });
        Self { runtime, cluster, groups }
    }

    /// Blocks all workers of the runtime until the result is dropped.
    fn block(&self) -> Vec<mpsc::Sender<()>> {
        let (releases, workers): (Vec<_>, Vec<_>) = (0..2).map(|_| mpsc::channel::<()>()).unzip();
        let (begun, blocked) = mpsc::channel();
        for worker in workers {
            let begun = begun.clone();
            self.runtime.spawn(async move {
                begun.send(()).unwrap();
                let _ = worker.recv();
            });
        }
        (0..2).for_each(|_| blocked.recv_timeout(PATIENCE).unwrap());
        releases
    }

    /// Returns the first key with this prefix of node `owner`.
    fn key_of(&self, owner: usize, prefix: &str) -> String {
        let is_owned = |key: &String| self.groups[0].inspect().owner_of(key) == self.cluster.nodes[owner].id();
        (0..).map(|n| format!("{prefix}-{n}")).find(is_owned).unwrap()
    }
}

/// Executor of a caller.
#[derive(Clone, Copy, Debug)]
enum On {
    /// A thread without a runtime.
    PlainThread,
    /// Another runtime with several threads.
    OtherRuntime,
    CurrentThread,
    PausedClock,
    /// A runtime without timers.
    NoTimers,
}

const EXECUTORS: [On; 5] = [On::PlainThread, On::OtherRuntime, On::CurrentThread, On::PausedClock, On::NoTimers];

impl On {
    /// Runs a call to its end on a thread of its own, and fails when that takes too long.
    fn run<T: Send + 'static>(self, name: &str, call: impl Future<Output = T> + Send + 'static) -> T {
        let (done, outcome) = mpsc::channel();
        std::thread::spawn(move || {
            let output = match self {
                Self::PlainThread => futures_executor::block_on(call),
                Self::OtherRuntime => Builder::new_multi_thread().enable_all().build().unwrap().block_on(call),
                Self::CurrentThread => Builder::new_current_thread().enable_all().build().unwrap().block_on(call),
                Self::PausedClock => {
                    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
                    runtime.block_on(call)
                }
                Self::NoTimers => Builder::new_current_thread().build().unwrap().block_on(call),
            };
            let _ = done.send(output);
        });
        // The channel is disconnected after a panic, which the thread has printed.
        outcome.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{name} on {self:?}: {e}"))
    }
}

/// Waits until a write has settled.
async fn settled(written: WriteOutcome) -> Result<(), Error> {
    written.settled().await;
    Ok(())
}

type Call = (&'static str, BoxFuture<'static, Result<(), Error>>);

/// Returns each asynchronous call of a group with a key in memory, an own missing key, and a missing key of a peer.
fn calls(scene: &Scene, on: On) -> Vec<Call> {
    let hit = scene.key_of(0, "hit");
    scene.runtime.block_on(scene.groups[0].get(&hit)).unwrap();
    let mut calls: Vec<Call> = Vec::new();
    for key in [hit, scene.key_of(0, &format!("own-{on:?}")), scene.key_of(1, &format!("peers-{on:?}"))] {
        let group = || scene.groups[0].clone();
        let mut add = |name, call| calls.push((name, call));
        macro_rules! call {
            ($name:literal, |$group:ident, $key:ident| $call:expr) => {{
                let ($group, $key) = (group(), key.clone());
                add($name, Box::pin(async move { $call }));
            }};
        }
        call!("peek", |group, key| group.peek(&key).await.map(drop));
        call!("contains", |group, key| group.contains(&key).await.map(drop));
        call!("get", |group, key| group.get(&key).await.map(|value| assert_eq!(value, key)));
        call!("remove", |group, key| settled(group.remove(&key).await?).await);
        call!("get_opt", |group, key| group.get_opt(&key).await.map(|value| assert_eq!(value, Some(key))));
        call!("remove_many", |group, key| group.remove_many([key]).await.map(|outcome| outcome.log_pending()));
        call!("get_many", |group, key| group.get_many([key]).await.remove(0).map(drop));
        call!("set", |group, key| settled(group.set(&key, "set").await?).await);
        call!("remove_with", |group, key| {
            let hold = RemoveOptions::new().hold(Duration::from_millis(1));
            settled(group.remove_with(&key, hold).await?).await
        });
        call!("clear", |group, _key| settled(group.clear().await?).await);
    }
    calls
}

/// Checks that each call works on each executor.
#[test]
fn every_call_works_on_every_executor() {
    calls_on_every_executor(&Scene::start(&Limits::default()));
}

/// Checks the same of nodes with threads of their own.
#[test]
fn every_call_works_beside_own_threads() {
    calls_on_every_executor(&Scene::start_with(&Limits::default(), 1));
}

fn calls_on_every_executor(scene: &Scene) {
    for on in EXECUTORS {
        for (name, call) in calls(scene, on) {
            on.run(name, call).unwrap_or_else(|error| panic!("{name} on {on:?}: {error:?}"));
        }
        let owner_only = RemoveOptions::new().owner_only();
        let (group, key) = (scene.groups[0].clone(), scene.key_of(1, "owner-only"));
        on.run("owner_only", async move { group.remove_with(&key, owner_only).await.map(drop) }).unwrap();
        let node = scene.cluster.nodes[0].clone();
        on.run("ready", async move { node.ready(2).await }).unwrap();
    }
    for (on, node) in [(On::PlainThread, 0), (On::NoTimers, 1)] {
        let node = scene.cluster.nodes[node].clone();
        let leave = async move {
            node.drain(Duration::from_secs(1)).await?;
            node.shutdown_within(Duration::from_secs(1)).await
        };
        on.run("leave", leave).unwrap();
    }
}

/// Checks that each call ends on each executor after the runtime of its node has ended.
#[test]
fn every_call_ends_after_the_runtime_of_its_node() {
    for on in EXECUTORS {
        let scene = Scene::start(&Limits::default());
        let calls = calls(&scene, on);
        let Scene { runtime, cluster, groups } = scene;
        runtime.shutdown_background();
        for (name, call) in calls {
            let _ = on.run(name, call);
        }
        drop((cluster, groups));
    }
}

/// Checks that gets from other executors end by their deadlines while the runtime of their node is blocked.
#[test]
fn deadline_holds_while_the_nodes_runtime_is_blocked() {
    let mut limits = Limits::default();
    limits.get_deadline = Duration::from_millis(500); // that of each fetch too, which the blocked runtime does not end
    let scene = Scene::start(&limits);
    let keys = [scene.key_of(0, "hangs"), scene.key_of(1, "hangs")];
    let _blocked = scene.block();
    for on in EXECUTORS {
        for key in &keys {
            let (group, key) = (scene.groups[0].clone(), key.clone());
            let begun = Instant::now();
            let error = on.run("get", async move { group.get(&key).await }).unwrap_err();
            assert!(error.is_timeout() && begun.elapsed() < PATIENCE, "{on:?} {error:?}");
        }
    }
}

/// Checks that a start without a runtime, or on one without timers or sockets, is an error that says what is missing.
#[test]
fn start_without_a_full_runtime_is_an_error() {
    let no_runtime = futures_executor::block_on(Node::builder().start()).unwrap_err();
    assert!(no_runtime.is_config() && no_runtime.to_string().contains("tokio runtime"), "{no_runtime}");
    let mut bare = [Builder::new_current_thread(), Builder::new_current_thread(), Builder::new_current_thread()];
    bare[1].enable_time();
    bare[2].enable_io();
    for builder in &mut bare {
        let error = builder.build().unwrap().block_on(Node::builder().identity(support::identity("a")).start());
        let error = error.unwrap_err();
        assert!(error.is_config() && error.to_string().contains("enable_all"), "{error}");
    }
}

/// Checks that a node with threads of its own answers peers from memory, and stays connected, while the runtime of the user
/// is blocked.
#[test]
fn own_threads_answer_while_the_users_runtime_is_blocked() {
    let scene = Scene::start_with(&Limits::default(), 1);
    let keys: Vec<_> = (0..20).map(|n| scene.key_of(0, &format!("key-{n}"))).collect();
    for key in &keys {
        scene.runtime.block_on(scene.groups[0].get(key)).unwrap();
    }
    let _blocked = scene.block();
    // Longer than a silent peer is taken for reachable.
    let end = Instant::now() + Duration::from_secs(5);
    for key in keys.iter().cycle() {
        let (group, asked) = (scene.groups[1].clone(), key.clone());
        assert_eq!(On::CurrentThread.run("get", async move { group.get(&asked).await }).unwrap(), *key);
        if Instant::now() > end {
            break;
        }
    }
    let lost = scene.cluster.nodes.iter().map(|node| node.stats().lost).sum::<u64>();
    assert_eq!((lost, scene.groups[1].stats().loads), (0, 0));
}

/// Checks that loaders, providers and the `Drop` of values run on the runtime of the user and not on threads of the node.
#[test]
fn user_code_runs_beside_own_threads() {
    #[derive(Default)]
    struct Threads(Mutex<BTreeSet<String>>);

    impl Threads {
        fn note(&self) {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            self.0.lock().unwrap().insert(name);
        }
    }

    struct Noting(Arc<Threads>);

    #[async_trait]
    impl Provider for Noting {
        fn name(&self) -> &str {
            self.0.note();
            "noting"
        }

        fn trust(&self) -> Trust {
            self.0.note();
            Trust::Hints
        }

        async fn run(&self, _: ProviderContext) -> Result<(), ProviderError> {
            self.0.note();
            std::future::pending().await
        }
    }

    let threads = Arc::<Threads>::default();
    let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("of-user").enable_all().build().unwrap();
    runtime.block_on(async {
        let builder = Node::builder().identity(support::identity("a")).provider(Noting(Arc::clone(&threads)));
        let node = builder.serve_threads(1).start().await.unwrap();
        let load = async |threads: &Arc<Threads>, key: &str| {
            threads.note();
            tokio::time::sleep(Duration::from_millis(1)).await;
            threads.note();
            Ok::<_, BoxError>(key.to_owned())
        };
        let group = node.group::<String>("data").capacity_bytes(1 << 20).loader_with(Arc::clone(&threads), load);
        assert_eq!(group.build().unwrap().get("key").await.unwrap(), "key");
        let names = threads.0.lock().unwrap().clone();
        assert!(names.contains("of-user") && !names.iter().any(|name| name.starts_with("groupcache")), "{names:?}");
        node.shutdown().await.unwrap();
    });
}

/// Checks that the threads of a node end with it, also where a task of the user drops the node without a shutdown.
#[cfg(target_os = "linux")]
#[test]
fn own_threads_end_with_their_node() {
    let count = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.starts_with("groupcache-serv")).count()
    };
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let before = count();
        let start = |name| Node::builder().identity(support::identity(name)).serve_threads(3).start();
        let (first, second) = (start("a").await.unwrap(), start("b").await.unwrap());
        assert_eq!(count(), before + 6);
        first.shutdown().await.unwrap();
        drop(first);
        tokio::spawn(async move { drop(second) }).await.unwrap();
        support::eventually("the threads end", || count() == before).await;
    });
    let error = runtime.block_on(Node::builder().serve_threads(257).start()).unwrap_err();
    assert!(error.is_config() && error.to_string().contains("256"), "{error}");
}

/// Value that notes the threads on which it is dropped.
#[derive(Clone)]
struct Noted(Arc<Mutex<BTreeSet<String>>>);

impl Drop for Noted {
    fn drop(&mut self) {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        self.0.lock().unwrap().insert(name);
    }
}

impl Value for Noted {
    fn encode(&self, _: &mut BytesMut) -> Result<(), EncodeError> {
        Ok(())
    }

    fn decode(_: Bytes) -> Result<Self, DecodeError> {
        Err(DecodeError::new("this value is never decoded"))
    }

    fn weight(&self) -> usize {
        0
    }
}

/// Checks that the clear of a peer drops values on the runtime of the user.
#[test]
fn clear_of_a_peer_drops_values_beside_own_threads() {
    let threads = Arc::<Mutex<BTreeSet<String>>>::default();
    let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("of-user").enable_all().build().unwrap();
    let (noted, user) = (Arc::clone(&threads), runtime.handle().clone());
    let scene = async move {
        let cluster = Cluster::start_each(2, |_, node| node.serve_threads(1)).await;
        let load = async |noted: &Arc<Mutex<BTreeSet<String>>>, _: &str| Ok::<_, BoxError>(Noted(Arc::clone(noted)));
        let build =
            |_, node: &Node| node.group::<Noted>("data").capacity_bytes(1 << 20).loader_with(noted.clone(), load);
        let groups = cluster.group(build).await;
        for n in 0..100 {
            let key = format!("key-{n}");
            drop(groups[cluster.owner(&groups, &key)].get(&key).await.unwrap());
        }
        let _ = groups[0].clear().await.unwrap();
        support::eventually("the peer has dropped its values", || groups[1].inspect().entries() == 0).await;
        cluster.shutdown().await;
    };
    runtime.block_on(user.spawn(scene)).unwrap();
    runtime.shutdown_timeout(PATIENCE);
    assert_eq!(*threads.lock().unwrap(), BTreeSet::from(["of-user".to_owned()]));
}

/// Checks that a call which outlives a node with own threads ends without a panic.
#[test]
fn call_outlives_own_threads() {
    let scene = Scene::start_with(&Limits::default(), 1);
    let (group, key) = (scene.groups[0].clone(), scene.key_of(0, "key"));
    let outcome = scene.runtime.block_on(group.remove_with(&key, RemoveOptions::new().owner_only())).unwrap();
    let waiting = scene.runtime.spawn(async move { outcome.settled().await });
    let hanging = scene.key_of(0, "hangs");
    let (getting, asked) = (group.clone(), hanging.clone());
    let get = scene.runtime.spawn(async move { getting.get(&asked).await });
    scene.runtime.block_on(async {
        support::eventually("the load runs", || support::loads_of(&scene.cluster.nodes[0]).0 == 1).await;
        let _ = group.remove(&hanging).await.unwrap();
    });
    let Scene { runtime, cluster, groups } = scene;
    drop((cluster, groups, group));
    let (settled, got) = runtime.block_on(async { tokio::join!(waiting, get) });
    assert!(settled.is_ok() && got.expect("no panic").is_err());
}

/// Checks that a start that is given up gives back its port.
#[tokio::test]
async fn start_that_is_given_up_frees_its_port() {
    struct Silent;

    #[async_trait]
    impl Provider for Silent {
        fn name(&self) -> &str {
            "silent"
        }

        async fn run(&self, _: ProviderContext) -> Result<(), ProviderError> {
            std::future::pending().await
        }
    }

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let start = || Node::builder().identity(Identity::new(port)).serve_threads(1);
    let given_up = tokio::time::timeout(Duration::from_millis(100), start().provider(Silent).start()).await;
    assert!(given_up.is_err(), "the provider never answers");
    let begun = Instant::now();
    let node = loop {
        match start().start().await {
            Ok(node) => break node,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(1), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    node.shutdown().await.unwrap();
}

/// Checks that a node with own threads closes when the runtime of its user ends, without which it loads nothing.
#[test]
fn node_closes_with_the_runtime_of_its_user() {
    let Scene { runtime, cluster, groups } = Scene::start_with(&Limits::default(), 1);
    runtime.shutdown_background();
    let begun = Instant::now();
    while !futures_executor::block_on(groups[0].get("key")).is_err_and(|error| error.is_closed()) {
        assert!(begun.elapsed() < PATIENCE, "the node closes");
    }
    drop(cluster);
}
