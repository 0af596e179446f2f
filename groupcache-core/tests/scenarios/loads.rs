//! Promises P3 and P7: loaders that panic, fail, hang or nest, cancelled callers, and stalled nodes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::support::{self, Cluster, Gate, Loads, PATIENCE, eventually, identity};
use groupcache_core::{BoxError, Error, Group, Limits, Load, LoadError, Loaded, Loader, Node};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

/// Source with a version that writes raise, and loads that wait at a gate.
#[derive(Clone, Default)]
struct Versions {
    gate: Gate,
    version: Arc<AtomicU64>,
    running: Arc<AtomicU64>,
    most_running: Arc<AtomicU64>,
}

impl Versions {
    /// Returns the version of the beginning of the load, after the gate.
    async fn load(&self, key: &str) -> Result<String, BoxError> {
        self.gate.loads.begin(key);
        let version = self.version.load(SeqCst);
        self.most_running.fetch_max(self.running.fetch_add(1, SeqCst) + 1, SeqCst);
        self.gate.pass().await;
        self.running.fetch_sub(1, SeqCst);
        Ok(version.to_string())
    }
}

/// Checks that a key that is written while it loads has three loads side by side at most, whatever the number of writes,
/// that each get has a value of a load that began after the last write before it, and that another key is not delayed.
#[tokio::test]
async fn key_written_while_it_loads_has_three_loads() {
    let (node, source) = (single_node().await, Versions::default());
    let group = node.group::<String>("data").capacity_bytes(1 << 20);
    let group = group.loader_with(source.clone(), Versions::load).build().unwrap();
    let mut gets = tokio::task::JoinSet::new();
    for version in 1..=50 {
        source.version.store(version, SeqCst);
        group.remove("key").await.unwrap().log_pending();
        let reading = group.clone();
        gets.spawn(async move { (version, reading.get("key").await) });
        tokio::time::sleep(Duration::from_millis(1)).await; // the get begins before the next write
    }
    let other = group.clone();
    let other = tokio::spawn(async move { other.get("other").await });
    eventually("the other key loads", || source.gate.loads.of("other") == 1).await;
    let (loads, most) = (source.gate.loads.of("key"), source.most_running.load(SeqCst));
    assert!(loads == 3 && most <= 4, "{loads} loads of the key begun, {most} at once");
    source.gate.open();
    assert!(other.await.unwrap().is_ok());
    for (written, value) in gets.join_all().await {
        let loaded: u64 = value.expect("the get succeeds").parse().unwrap();
        assert!(loaded >= written, "a load of version {loaded} for a get after the write of {written}");
    }
    assert!(source.gate.loads.of("key") <= 4, "those that waited share one load");
    assert_eq!(group.get("key").await.unwrap(), "50");
}

/// Checks that a load that waits for a slot begins at once when another load needs it, because the loads with slots may wait
/// for a permit that the other load holds.
#[tokio::test]
async fn load_that_another_load_needs_waits_for_no_slot() {
    let (node, source) = (single_node().await, Versions::default());
    let group = node.group::<String>("data").capacity_bytes(1 << 20);
    let group = group.loader_with(source.clone(), Versions::load).build().unwrap();
    let mut gets = tokio::task::JoinSet::new();
    for version in 1..=4 {
        source.version.store(version, SeqCst);
        group.remove("key").await.unwrap().log_pending();
        let reading = group.clone();
        gets.spawn(async move { reading.get("key").await });
        eventually("the get has begun its load", || group.stats().misses == version).await;
        eventually("the slots are taken", || source.gate.loads.of("key") == version.min(3)).await;
    }
    let outer = node.group::<String>("outer").capacity_bytes(1 << 20);
    let outer = outer.loader_with(group.clone(), async |group: &Group<String>, _: &str| group.get("key").await);
    let outer = outer.build().unwrap();
    gets.spawn(async move { outer.get("view").await });
    eventually("the load that waited begins", || source.gate.loads.of("key") == 4).await;
    source.gate.open();
    assert!(gets.join_all().await.iter().all(Result::is_ok));
}

/// Checks that a key is loaded again although three loaders of it block their threads past their deadlines.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn loaders_that_block_do_not_end_their_key() {
    #[derive(Default)]
    struct Blocks {
        loads: Loads,
        is_over: (std::sync::Mutex<bool>, std::sync::Condvar),
    }
    async fn load(source: &Arc<Blocks>, key: &str) -> Result<String, BoxError> {
        let number = source.loads.begin(key);
        if number <= 3 {
            let is_over = source.is_over.0.lock().unwrap();
            drop(source.is_over.1.wait_while(is_over, |is_over| !*is_over).unwrap());
        }
        Ok(number.to_string())
    }
    /// Ends the blocking also when the test fails, because the runtime waits for its threads.
    struct EndOnDrop(Arc<Blocks>);
    impl Drop for EndOnDrop {
        fn drop(&mut self) {
            *self.0.is_over.0.lock().unwrap() = true;
            self.0.is_over.1.notify_all();
        }
    }
    let (node, source) = (single_node().await, Arc::<Blocks>::default());
    let end = EndOnDrop(Arc::clone(&source));
    let group = node.group::<String>("data").capacity_bytes(1 << 20).load_deadline(Duration::from_millis(100));
    let group = group.loader_with(Arc::clone(&source), load).build().unwrap();
    let mut gets = tokio::task::JoinSet::new();
    for number in 1..=3 {
        let reading = group.clone();
        gets.spawn(async move { reading.get("key").await });
        eventually("the loader blocks", || source.loads.of("key") == number).await;
        group.remove("key").await.unwrap().log_pending();
    }
    assert_eq!(timeout(PATIENCE, group.get("key")).await.expect("the get ends").unwrap(), "4");
    drop(end);
    gets.join_all().await;
}

async fn single_node() -> Node {
    Node::builder().start().await.expect("the node starts")
}

/// Loads a value, or panics, fails or hangs at the first load, as the prefix of the key says.
async fn by_key(loads: &Loads, key: &str) -> Result<String, LoadError> {
    let number = loads.begin(key);
    tokio::time::sleep(Duration::from_millis(20)).await;
    match key.split(':').next() {
        Some("panics") if number == 1 => panic!("on purpose"),
        Some("fails") if number == 1 => Err(LoadError::transient("the database is unreachable")),
        Some("hangs") if number == 1 => std::future::pending().await,
        _ => Ok(format!("load {number}")),
    }
}

fn group(node: &Node, loads: &Loads) -> Group<String> {
    let group = node.group::<String>("data").capacity_bytes(1 << 20).load_deadline(Duration::from_millis(300));
    group.loader_with(loads.clone(), by_key).build().expect("the group is valid")
}

/// Gets one key with a thousand concurrent callers.
async fn get_with_thousand_callers(group: &Group<String>, key: &'static str) -> Vec<Result<String, Error>> {
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let group = group.clone();
        callers.spawn(async move { group.get(key).await });
    }
    callers.join_all().await
}

/// Checks that a thousand waiters of a load that fails, panics or hangs get one error, and that the next get loads at
/// once.
#[tokio::test]
async fn failed_load_gives_all_waiters_one_error() {
    let node = single_node().await;
    for (key, is_expected) in [
        ("fails", (|e: &Error| e.is_load_failed() && e.is_transient()) as fn(&Error) -> bool),
        ("panics", |e| e.is_load_failed() && !e.is_transient()),
        ("hangs", |e| e.is_timeout()),
    ] {
        let loads = Loads::default();
        let group = group(&node, &loads);
        let answers = timeout(PATIENCE, get_with_thousand_callers(&group, key)).await.expect("the gets end in time");
        for answer in answers {
            let error = answer.expect_err("the load fails");
            assert!(is_expected(&error), "{key}: {error:?}");
        }
        assert_eq!(loads.total(), 1, "{key}");
        assert_eq!(group.get(key).await.expect("the second load succeeds"), "load 2", "{key}");
        assert!(node.remove_group("data"));
    }
    node.shutdown().await.unwrap();
}

#[tokio::test]
async fn hung_load_returns_its_permit() {
    let mut limits = Limits::default();
    limits.max_loads = 1;
    let node = Node::builder().limits(limits).start().await.unwrap();
    let loads = Loads::default();
    let group = group(&node, &loads);
    let hung = tokio::spawn({
        let group = group.clone();
        async move { group.get("hangs").await }
    });
    eventually("the load runs", || node.loads().running == 1).await;
    // The hung load has the only permit until it is aborted at its deadline.
    let other = group.get("other").await.expect_err("its deadline is as short");
    assert!(other.is_overloaded() || other.is_timeout(), "{other:?}");
    assert!(hung.await.unwrap().expect_err("the hung load is aborted").is_timeout());
    assert_eq!(support::loads_of(&node), (0, 0));
    assert!(group.get("other").await.is_ok());
}

#[tokio::test]
async fn cancelled_first_caller_does_not_end_the_load() {
    let node = single_node().await;
    let loads = Loads::default();
    let group = group(&node, &loads);
    let first = tokio::spawn({
        let group = group.clone();
        async move { group.get("plain").await }
    });
    eventually("the load runs", || loads.total() == 1).await;
    let second = tokio::spawn({
        let group = group.clone();
        async move { group.get("plain").await }
    });
    tokio::task::yield_now().await;
    first.abort();
    assert_eq!(second.await.unwrap().unwrap(), "load 1");
    assert_eq!(loads.total(), 1);
}

#[tokio::test]
async fn caller_deadline_may_be_shorter_than_the_load() {
    let node = single_node().await;
    let loads = Loads::default();
    let group = group(&node, &loads);
    let quick = group.with_deadline(Duration::from_millis(50));
    assert!(quick.get("hangs").await.expect_err("the deadline of the caller passes").is_timeout());
    assert!(group.get("hangs").await.expect_err("this caller joins the same load").is_timeout());
    assert_eq!(loads.total(), 1);
}

#[tokio::test]
async fn full_load_queue_is_reported_at_once() {
    let mut limits = Limits::default();
    limits.max_loads = 1;
    limits.max_queued_loads = 2;
    let node = Node::builder().limits(limits).start().await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let held = async |gate: &Arc<Semaphore>, key: &str| {
        gate.acquire().await?.forget();
        Ok::<_, BoxError>(key.to_owned())
    };
    let group =
        node.group::<String>("data").capacity_bytes(1 << 20).loader_with(Arc::clone(&gate), held).build().unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|n| {
            let group = group.clone();
            tokio::spawn(async move { group.get(&format!("key-{n}")).await })
        })
        .collect();
    eventually("one runs and two wait", || support::loads_of(&node) == (1, 2)).await;
    let began = Instant::now();
    let refused = group.get("one more").await.expect_err("the queue is full");
    assert!(refused.is_overloaded() && refused.is_transient(), "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(1), "reported at once, not at a deadline");
    gate.add_permits(3);
    for waiter in waiting {
        waiter.await.unwrap().expect("queued callers are served");
    }
}

/// A loader that gets its key from another group.
struct GetFromNext {
    next: Arc<std::sync::OnceLock<Group<String>>>,
    calls: Arc<AtomicU64>,
    /// Whether the get runs in a task of its own.
    in_a_task: bool,
}

impl Loader<String> for GetFromNext {
    async fn load(&self, load: Load<'_, String>) -> Result<Loaded<String>, LoadError> {
        self.calls.fetch_add(1, SeqCst);
        let (next, key) = (self.next.get().expect("set").clone(), load.key().to_owned());
        let get = load.scope(async move { next.get(&key).await });
        let value = if self.in_a_task { tokio::spawn(get).await? } else { get.await };
        Ok(Loaded::new(value?))
    }
}

/// Returns the texts of an error and of all its sources.
fn with_sources(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", with_sources(source)),
        None => error.to_string(),
    }
}

/// Checks that a cycle of two groups, each of which loads from the other, fails at once.
async fn check_load_cycle(nodes: usize, in_a_task: bool) {
    let cluster = Cluster::start(nodes).await;
    let calls = Arc::new(AtomicU64::new(0));
    let mut firsts = Vec::new();
    for node in &cluster.nodes {
        let (to_second, to_first) = (Arc::default(), Arc::default());
        let loader = |next: &Arc<_>| GetFromNext { next: Arc::clone(next), calls: Arc::clone(&calls), in_a_task };
        let first = node.group("first").capacity_bytes(1 << 20).loader(loader(&to_second)).build().unwrap();
        let second = node.group("second").capacity_bytes(1 << 20).loader(loader(&to_first)).build().unwrap();
        let _ = (to_second.set(second.clone()), to_first.set(first.clone()));
        firsts.push((first, second));
    }
    cluster.wait_for_group("first").await;
    cluster.wait_for_group("second").await;
    // With two nodes, a key that has different owners in the two groups.
    let key = (0..)
        .map(|n| format!("key-{n}"))
        .find(|key| nodes == 1 || firsts[0].0.inspect().owner_of(key) != firsts[0].1.inspect().owner_of(key))
        .unwrap();
    for (first, second) in &firsts {
        for group in [first, second] {
            let began = Instant::now();
            let error = group.get(&key).await.expect_err("the cycle is detected");
            assert!(error.is_load_failed(), "{error:?}");
            let text = with_sources(&error);
            assert!(text.contains("needs, through other loads"), "the error names the cycle: {text}");
            assert!(began.elapsed() < Duration::from_secs(2), "at once, not at a deadline");
        }
    }
    // Gets of both groups at the same moment: the load that closes the cycle fails.
    let gets = firsts.iter().flat_map(|(a, b)| [a.clone(), b.clone()]).map(|group| {
        let key = format!("{key}-again");
        tokio::spawn(
            async move { timeout(Duration::from_secs(2), group.get(&key)).await.expect("the get ends at once") },
        )
    });
    for get in gets.collect::<Vec<_>>() {
        assert!(get.await.unwrap().expect_err("the cycle is detected").is_load_failed());
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn load_cycle_on_one_node_fails_at_once() {
    check_load_cycle(1, false).await;
    check_load_cycle(1, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_cycle_across_two_nodes_fails_at_once() {
    check_load_cycle(2, false).await;
    check_load_cycle(2, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_of_five_seconds_runs_once_and_opens_no_breaker() {
    let cluster = Cluster::start(5).await;
    let loads = Loads::default();
    let slow = async |loads: &Loads, key: &str| {
        loads.begin(key);
        tokio::time::sleep(Duration::from_secs(5)).await;
        Ok::<_, BoxError>("slow".to_owned())
    };
    let groups =
        cluster.group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(loads.clone(), slow));
    let groups = groups.await;
    let mut callers = tokio::task::JoinSet::new();
    for group in &groups {
        for _ in 0..20 {
            let group = group.clone();
            callers.spawn(async move { group.get("key").await });
        }
    }
    for value in callers.join_all().await {
        assert_eq!(value.expect("the get returns a value"), "slow");
    }
    assert_eq!(loads.total(), 1);
    for node in &cluster.nodes {
        let stats = node.stats();
        assert_eq!((stats.ping_timeouts, stats.lost, stats.fallback_attempts), (0, 0, 0), "no breaker opened");
    }
    let pending: u64 = cluster.nodes.iter().map(|node| node.stats().pending).sum();
    assert_eq!(pending, 4, "the owner reports once to each peer that the load is running");
    cluster.shutdown().await;
}

/// Checks that a node which stalls for 2 s during its fetch loads nothing itself and does not regard the owner as
/// silent or lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_caller_causes_no_second_load() {
    let cluster = Cluster::start(1).await;
    let loads = Loads::default();
    let slow = async |loads: &Loads, key: &str| {
        loads.begin(key);
        tokio::time::sleep(Duration::from_millis(2500)).await;
        Ok::<_, BoxError>("slow".to_owned())
    };
    let owner = cluster.nodes[0].group::<String>("data").capacity_bytes(1 << 20).loader_with(loads.clone(), slow);
    let owner = owner.build().unwrap();
    // The other node runs on a runtime of its own with one thread, which is blocked during the get.
    let (loads_there, peers, at_owner) = (loads.clone(), cluster.peers.clone(), support::peer(&cluster.nodes[0]));
    let stalled = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let node = Node::builder().identity(identity("b")).provider(peers.clone()).start().await.unwrap();
            peers.set(vec![at_owner, support::peer(&node)]);
            let group = node.group::<String>("data").capacity_bytes(1 << 20).loader_with(loads_there, slow);
            let group = group.build().unwrap();
            eventually("both are in the view", || node.members().len() == 2 && node.peers_with_group("data") == 1)
                .await;
            let key =
                (0..).map(|n| format!("key-{n}")).find(|key| group.inspect().owner_of(key).as_str() == "a").unwrap();
            let get = tokio::spawn({
                let (group, key) = (group.clone(), key.clone());
                async move { group.get(&key).await }
            });
            tokio::task::yield_now().await;
            eventually("the request is in flight", || node.in_flight() == 1).await;
            tokio::time::sleep(Duration::from_millis(150)).await; // sent, and perhaps a ping with it
            std::thread::sleep(Duration::from_secs(2));
            let value = get.await.unwrap().expect("the get returns a value");
            let stats = node.stats();
            (key, value, stats.ping_timeouts, stats.lost, stats.late_ticks)
        })
    });
    let (key, value, silent, lost, late) = tokio::task::spawn_blocking(move || stalled.join().unwrap()).await.unwrap();
    assert_eq!((value.as_str(), silent, lost), ("slow", 0, 0));
    assert!(late > 0, "the node stalled");
    assert_eq!(loads.of(&key), 1);
    drop(owner);
    cluster.shutdown().await;
}

/// A loader with keys that need other keys: users need the configuration, and the configuration needs the base.
#[derive(Clone, Default)]
struct Nested {
    keys: Arc<std::sync::OnceLock<(String, String)>>,
    own: Arc<std::sync::OnceLock<Group<String>>>,
    gate: Gate,
}

impl Loader<String> for Nested {
    async fn load(&self, load: Load<'_, String>) -> Result<Loaded<String>, LoadError> {
        self.gate.loads.begin(load.key());
        let (config, base) = self.keys.get().expect("set");
        let own = self.own.get().expect("set");
        let value = match load.key() {
            key if key == base => "the base".to_owned(),
            key if key == config => {
                self.gate.pass().await; // until all users wait for it
                own.get(base).await?
            }
            _ => own.get(config).await?,
        };
        Ok(Loaded::new(value))
    }
}

/// Checks that a nested load is as deep with twenty waiting loads as with one. Twenty users need the configuration,
/// which needs the base.
async fn check_shared_nested_load(nodes: usize) {
    const USERS: usize = 20;
    let cluster = Cluster::start(nodes).await;
    let nested = Nested::default();
    let each: Vec<_> = cluster.nodes.iter().map(|_| Nested { own: Arc::default(), ..nested.clone() }).collect();
    let groups = cluster.group(|at, node| node.group("nested").capacity_bytes(1 << 20).loader(each[at].clone())).await;
    for (nested, group) in each.iter().zip(&groups) {
        let _ = nested.own.set(group.clone());
    }
    // Users and configuration have the same owner. With two nodes the base has the other owner.
    let last = nodes - 1;
    let keys = |prefix: &'static str, owner: usize| {
        let keys = (0..).map(move |n| format!("{prefix}-{n}"));
        keys.filter(|key| cluster.owner(&groups, key) == owner).take(USERS).collect::<Vec<_>>()
    };
    let _ = nested.keys.set((keys("config", last)[0].clone(), keys("base", 0)[0].clone()));

    let mut callers = tokio::task::JoinSet::new();
    for user in keys("user", last) {
        let group = groups[0].clone();
        callers.spawn(async move { group.get(&user).await });
    }
    let all_wait = || groups[last].stats().shared_flights == USERS as u64 - 1;
    eventually("all users wait for the configuration", all_wait).await;
    nested.gate.open();
    for value in timeout(PATIENCE, callers.join_all()).await.expect("the gets end in time") {
        assert_eq!(value.expect("three levels are allowed for any number of waiters"), "the base");
    }
    assert_eq!(nested.gate.loads.total(), USERS as u64 + 2);
    cluster.shutdown().await;
}

#[tokio::test]
async fn waiters_do_not_deepen_a_load_chain_on_one_node() {
    check_shared_nested_load(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_do_not_deepen_a_load_chain_on_two_nodes() {
    check_shared_nested_load(2).await;
}

/// Checks that a fetch reports a greater nesting depth to the owner when a nested load joins it. A plain get waits for
/// the base at an owner without a free permit, and then a load of depth two needs the base too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nested_get_raises_the_depth_of_a_running_fetch() {
    let mut limits = Limits::default();
    limits.max_loads = 1;
    let cluster = Cluster::start_with(2, limits).await;
    let nested = Nested::default();
    let each: Vec<_> = cluster.nodes.iter().map(|_| Nested { own: Arc::default(), ..nested.clone() }).collect();
    let groups = cluster.group(|at, node| node.group("nested").capacity_bytes(1 << 20).loader(each[at].clone())).await;
    for (nested, group) in each.iter().zip(&groups) {
        let _ = nested.own.set(group.clone());
    }
    let key = |prefix: &'static str, owner: usize| {
        let mut keys = (0..).map(|n| format!("{prefix}-{n}"));
        keys.find(|key| cluster.owner(&groups, key) == owner).unwrap()
    };
    let (user, config, base) = (key("user", 1), key("config", 0), key("base", 1));
    let _ = nested.keys.set((config, base.clone()));

    let get = |at: usize, key: String| {
        let group: Group<String> = groups[at].clone();
        tokio::spawn(async move { group.get(&key).await })
    };
    let user = get(1, user);
    nested.gate.begun(2).await; // the user, which has the only permit of its node, and the configuration
    let plain = get(0, base);
    eventually("the base waits for a permit", || support::loads_of(&cluster.nodes[1]) == (1, 1)).await;
    nested.gate.open();
    for value in [user, plain] {
        assert_eq!(value.await.unwrap().expect("no load waits for a permit of a load that waits for it"), "the base");
    }
    assert_eq!(nested.gate.loads.total(), 3);
    cluster.shutdown().await;
}
