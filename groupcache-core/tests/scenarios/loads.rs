//! P3 and P7: loaders that panic, fail, hang or nest, callers that give up, nodes that stand still.

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

async fn alone() -> Node {
    Node::builder().start().await.expect("starts")
}

/// A loader that does what its key says.
async fn by_key(loads: &Loads, key: &str) -> Result<String, LoadError> {
    let number = loads.begin(key);
    tokio::time::sleep(Duration::from_millis(20)).await;
    match key.split(':').next() {
        Some("panics") if number == 1 => panic!("on purpose"),
        Some("fails") if number == 1 => Err(LoadError::transient("the database is away")),
        Some("hangs") if number == 1 => std::future::pending().await,
        _ => Ok(format!("load {number}")),
    }
}

fn group(node: &Node, loads: &Loads) -> Group<String> {
    let group = node.group::<String>("data").capacity_bytes(1 << 20).load_deadline(Duration::from_millis(300));
    group.loader_with(loads.clone(), by_key).build().expect("builds")
}

/// A thousand callers of one key at once.
async fn thousand(group: &Group<String>, key: &'static str) -> Vec<Result<String, Error>> {
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let group = group.clone();
        callers.spawn(async move { group.get(key).await });
    }
    callers.join_all().await
}

#[tokio::test]
async fn a_thousand_who_wait_for_a_failing_load_share_one_error_and_the_key_works_at_once() {
    let node = alone().await;
    for (key, is_expected) in [
        ("fails", (|e: &Error| e.is_load_failed() && e.is_transient()) as fn(&Error) -> bool),
        ("panics", |e| e.is_load_failed() && !e.is_transient()),
        ("hangs", |e| e.is_timeout()),
    ] {
        let loads = Loads::default();
        let group = group(&node, &loads);
        let answers = timeout(PATIENCE, thousand(&group, key)).await.expect("in time");
        for answer in answers {
            let error = answer.expect_err("an error");
            assert!(is_expected(&error), "{key}: {error:?}");
        }
        assert_eq!(loads.total(), 1, "{key}");
        assert_eq!(group.get(key).await.expect("a value"), "load 2", "{key}");
        assert!(node.remove_group("data"));
    }
    node.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_hung_load_gives_its_permit_back() {
    let mut limits = Limits::default();
    limits.max_loads = 1;
    let node = Node::builder().limits(limits).start().await.unwrap();
    let loads = Loads::default();
    let group = group(&node, &loads);
    let hung = tokio::spawn({
        let group = group.clone();
        async move { group.get("hangs").await }
    });
    eventually("the load runs", || node.loads().0 == 1).await;
    // The only permit is taken; it comes back when the hung load is aborted.
    let other = group.get("other").await.expect_err("its own deadline is as short");
    assert!(other.is_overloaded() || other.is_timeout(), "{other:?}");
    assert!(hung.await.unwrap().expect_err("aborted").is_timeout());
    assert_eq!(node.loads(), (0, 0));
    assert!(group.get("other").await.is_ok());
}

#[tokio::test]
async fn the_first_caller_may_give_up() {
    let node = alone().await;
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
async fn a_caller_may_wait_for_less_than_a_load_takes() {
    let node = alone().await;
    let loads = Loads::default();
    let group = group(&node, &loads);
    let quick = group.with_deadline(Duration::from_millis(50));
    assert!(quick.get("hangs").await.expect_err("too soon").is_timeout());
    assert!(group.get("hangs").await.expect_err("the same load").is_timeout());
    assert_eq!(loads.total(), 1);
}

#[tokio::test]
async fn when_the_queue_is_full_that_is_said_at_once() {
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
    eventually("one runs and two wait", || node.loads() == (1, 2)).await;
    let began = Instant::now();
    let refused = group.get("one more").await.expect_err("no room");
    assert!(refused.is_overloaded() && refused.is_transient(), "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(1), "said at once, not at a deadline");
    gate.add_permits(3);
    for waiter in waiting {
        waiter.await.unwrap().expect("those who had a place are served");
    }
}

/// A loader that gets its key, with another prefix, from another group.
struct Through {
    next: Arc<std::sync::OnceLock<Group<String>>>,
    calls: Arc<AtomicU64>,
    /// Spawns its get instead of awaiting it.
    in_a_task: bool,
}

impl Loader<String> for Through {
    async fn load(&self, load: Load<'_, String>) -> Result<Loaded<String>, LoadError> {
        self.calls.fetch_add(1, SeqCst);
        let (next, key) = (self.next.get().expect("set").clone(), load.key().to_owned());
        let get = load.scope(async move { next.get(&key).await });
        let value = if self.in_a_task { tokio::spawn(get).await? } else { get.await };
        Ok(Loaded::new(value?))
    }
}

/// An error and all that led to it.
fn causes(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", causes(cause)),
        None => error.to_string(),
    }
}

async fn a_circle(nodes: usize, in_a_task: bool) {
    let cluster = Cluster::start(nodes).await;
    let calls = Arc::new(AtomicU64::new(0));
    let mut firsts = Vec::new();
    for node in &cluster.nodes {
        let (to_second, to_first) = (Arc::default(), Arc::default());
        let through = |next: &Arc<_>| Through { next: Arc::clone(next), calls: Arc::clone(&calls), in_a_task };
        let first = node.group("first").capacity_bytes(1 << 20).loader(through(&to_second)).build().unwrap();
        let second = node.group("second").capacity_bytes(1 << 20).loader(through(&to_first)).build().unwrap();
        let _ = (to_second.set(second.clone()), to_first.set(first.clone()));
        firsts.push((first, second));
    }
    cluster.know("first").await;
    cluster.know("second").await;
    // On two nodes, a key whose two loads run on different ones.
    let key = (0..)
        .map(|n| format!("key-{n}"))
        .find(|key| nodes == 1 || firsts[0].0.owner_of(key) != firsts[0].1.owner_of(key))
        .unwrap();
    for (first, second) in &firsts {
        for group in [first, second] {
            let began = Instant::now();
            let error = group.get(&key).await.expect_err("it cannot be loaded");
            assert!(error.is_load_failed(), "{error:?}");
            let text = causes(&error);
            assert!(text.contains("needs, through other loads"), "it says what is wrong: {text}");
            assert!(began.elapsed() < Duration::from_secs(2), "at once, not at a deadline");
        }
    }
    // Both ends at the same moment: whoever closes the circle is told.
    let gets = firsts.iter().flat_map(|(a, b)| [a.clone(), b.clone()]).map(|group| {
        let key = format!("{key}-again");
        tokio::spawn(async move { timeout(Duration::from_secs(2), group.get(&key)).await.expect("at once") })
    });
    for get in gets.collect::<Vec<_>>() {
        assert!(get.await.unwrap().expect_err("it cannot be loaded").is_load_failed());
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_load_that_needs_itself_is_an_error_at_once_on_one_node() {
    a_circle(1, false).await;
    a_circle(1, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_needs_itself_is_an_error_at_once_on_two_nodes() {
    a_circle(2, false).await;
    a_circle(2, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_of_five_seconds_is_one_load_and_no_dead_owner() {
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
        assert_eq!(value.expect("a value"), "slow");
    }
    assert_eq!(loads.total(), 1);
    for node in &cluster.nodes {
        let stats = node.stats();
        assert_eq!((stats.silent, stats.lost, stats.fallback_attempts), (0, 0, 0), "no breaker opened");
    }
    let pending: u64 = cluster.nodes.iter().map(|node| node.stats().pending).sum();
    assert_eq!(pending, 4, "the owner said once to each that it is at work");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_stands_still_for_two_seconds_causes_no_second_load() {
    let cluster = Cluster::start(1).await;
    let loads = Loads::default();
    let slow = async |loads: &Loads, key: &str| {
        loads.begin(key);
        tokio::time::sleep(Duration::from_millis(2500)).await;
        Ok::<_, BoxError>("slow".to_owned())
    };
    let owner = cluster.nodes[0].group::<String>("data").capacity_bytes(1 << 20).loader_with(loads.clone(), slow);
    let owner = owner.build().unwrap();
    // The other node lives on a runtime of its own, with one thread, which is blocked while its get is under way.
    let (loads_there, peers, at_owner) = (loads.clone(), cluster.peers.clone(), support::peer(&cluster.nodes[0]));
    let standing = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let node = Node::builder().identity(identity("b")).provider(peers.clone()).start().await.unwrap();
            peers.set(vec![at_owner, support::peer(&node)]);
            let group = node.group::<String>("data").capacity_bytes(1 << 20).loader_with(loads_there, slow);
            let group = group.build().unwrap();
            eventually("both are in the view", || node.members().len() == 2 && node.peers_with_group("data") == 1)
                .await;
            let key = (0..).map(|n| format!("key-{n}")).find(|key| group.owner_of(key).as_str() == "a").unwrap();
            let get = tokio::spawn({
                let (group, key) = (group.clone(), key.clone());
                async move { group.get(&key).await }
            });
            tokio::task::yield_now().await;
            eventually("the request is on its way", || node.in_flight() == 1).await;
            tokio::time::sleep(Duration::from_millis(150)).await; // sent, and perhaps a ping with it
            std::thread::sleep(Duration::from_secs(2));
            let value = get.await.unwrap().expect("a value");
            let stats = node.stats();
            (key, value, stats.silent, stats.lost, stats.late_ticks)
        })
    });
    let (key, value, silent, lost, late) = tokio::task::spawn_blocking(move || standing.join().unwrap()).await.unwrap();
    assert_eq!((value.as_str(), silent, lost), ("slow", 0, 0));
    assert!(late > 0, "it did stand still");
    assert_eq!(loads.of(&key), 1);
    drop(owner);
    cluster.shutdown().await;
}

/// Users need the configuration, which needs the base.
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

/// Twenty loads that wait for one, which needs another: it is nested as deep as if one waited.
async fn many_loads_need_one(nodes: usize) {
    const USERS: usize = 20;
    let cluster = Cluster::start(nodes).await;
    let nested = Nested::default();
    let each: Vec<_> = cluster.nodes.iter().map(|_| Nested { own: Arc::default(), ..nested.clone() }).collect();
    let groups = cluster.group(|at, node| node.group("nested").capacity_bytes(1 << 20).loader(each[at].clone())).await;
    for (nested, group) in each.iter().zip(&groups) {
        let _ = nested.own.set(group.clone());
    }
    // The configuration is loaded where the users are; on two nodes, its base on the other.
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
    for value in timeout(PATIENCE, callers.join_all()).await.expect("in time") {
        assert_eq!(value.expect("nested three deep, however many wait"), "the base");
    }
    assert_eq!(nested.gate.loads.total(), USERS as u64 + 2);
    cluster.shutdown().await;
}

#[tokio::test]
async fn those_who_join_a_load_do_not_count_as_nesting_on_one_node() {
    many_loads_need_one(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_join_a_load_do_not_count_as_nesting_on_two_nodes() {
    many_loads_need_one(2).await;
}

/// A plain get waits for the base, whose owner has no permit left; then a load two deep comes to need it too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nested_get_of_what_is_being_fetched_tells_its_owner_how_deep_it_is() {
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
    nested.gate.begun(2).await; // the user, which has the only permit, and the configuration
    let plain = get(0, base);
    eventually("the base waits for a permit", || cluster.nodes[1].loads() == (1, 1)).await;
    nested.gate.open();
    for value in [user, plain] {
        assert_eq!(value.await.unwrap().expect("nobody waits for a permit that waits for him"), "the base");
    }
    assert_eq!(nested.gate.loads.total(), 3);
    cluster.shutdown().await;
}
