//! Protection of the source: a limit of concurrent loads, retries, and a breaker, in virtual time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::support::{Gate, Loads};
use groupcache_core::{Error, Group, GroupBuilder, Load, LoadError, Loaded, Loader, Node};
use tokio::time::{Instant, sleep};

/// Loader that fails for its first `failures` loads.
#[derive(Clone, Default)]
struct Source {
    loads: Loads,
    failures: Arc<AtomicU64>,
    is_permanent: bool,
    gate: Option<Gate>,
    /// Number of loads that run.
    running: Arc<AtomicUsize>,
    /// Maximum of `running` so far.
    most_running: Arc<AtomicUsize>,
}

impl Loader<String> for Source {
    async fn load(&self, load: Load<'_, String>) -> Result<Loaded<String>, LoadError> {
        self.loads.begin(load.key());
        self.most_running.fetch_max(self.running.fetch_add(1, SeqCst) + 1, SeqCst);
        if let Some(gate) = &self.gate {
            gate.pass().await;
        }
        self.running.fetch_sub(1, SeqCst);
        let is_to_fail = self.failures.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok();
        match (is_to_fail, self.is_permanent) {
            (false, _) => Ok(Loaded::new(load.key())),
            (true, true) => Err(LoadError::permanent("no such table")),
            (true, false) => Err(LoadError::transient("the database restarts")),
        }
    }
}

/// Starts a node with the group `data` over this source.
async fn group(
    source: &Source,
    build: impl FnOnce(GroupBuilder<String>) -> GroupBuilder<String>,
) -> (Node, Group<String>) {
    let node = Node::builder().start().await.unwrap();
    let group = node.group::<String>("data").capacity_bytes(4 << 20).loader(source.clone());
    let group = build(group).build().unwrap();
    (node, group)
}

/// Checks that two transient errors are retried with a growing backoff, and that 100 waiters share the three attempts.
#[tokio::test(start_paused = true)]
async fn transient_error_is_retried_once_for_all_waiters() {
    let source = Source { failures: Arc::new(AtomicU64::new(2)), ..Source::default() };
    let (_node, group) = group(&source, |group| group.retries(3)).await;
    let begun = Instant::now();
    let all = futures_util::future::join_all((0..100).map(|_| group.get("key-1"))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!((source.loads.total(), group.stats().retries), (3, 2));
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(75) && took <= Duration::from_millis(160),
        "{took:?}, expected pauses of 25–50 and 50–100 ms"
    );
}

/// Checks that a permanent error is not retried, that a transient error ends the load after the last retry, and that
/// retries end by the deadline of the load.
#[tokio::test(start_paused = true)]
async fn permanent_and_repeated_errors_reach_the_caller() {
    let source = Source { failures: Arc::new(AtomicU64::new(100)), is_permanent: true, ..Source::default() };
    let (_node, with_three) = group(&source, |group| group.retries(3)).await;
    assert!(with_three.get("key-1").await.is_err_and(|e| e.is_load_failed() && !e.is_transient()));
    assert_eq!(source.loads.total(), 1);

    let source = Source { failures: Arc::new(AtomicU64::new(100)), ..Source::default() };
    let (_node, with_three) = group(&source, |group| group.retries(3)).await;
    assert!(with_three.get("key-1").await.is_err_and(|e| e.is_transient()));
    assert_eq!(source.loads.total(), 4);

    let source = Source { failures: Arc::new(AtomicU64::new(100)), ..Source::default() };
    let (_node, hasty) = group(&source, |group| group.retries(1000).load_deadline(Duration::from_secs(1))).await;
    let begun = Instant::now();
    assert!(hasty.get("key-1").await.is_err());
    assert!(begun.elapsed() <= Duration::from_secs(1), "the retries end by the deadline of the load");
}

/// Checks that at most `max_loads` loads of a group run at once, and that another group has its own limit.
#[tokio::test(start_paused = true)]
async fn max_loads_bounds_concurrent_loads_of_a_group() {
    let gate = Gate::default();
    let source = Source { gate: Some(gate.clone()), ..Source::default() };
    let (node, group) = group(&source, |group| group.max_loads(3)).await;
    let other = node.group::<String>("other").capacity_bytes(1 << 20);
    let other = other.loader(async |key: &str| Ok::<_, std::io::Error>(key.to_owned())).build().unwrap();
    let keys: Vec<_> = (0..20).map(|n| format!("key-{n}")).collect();
    let all = tokio::spawn({
        let (group, keys) = (group.clone(), keys.clone());
        async move { group.get_many(keys).await }
    });
    sleep(Duration::from_millis(50)).await;
    assert_eq!(source.loads.total(), 3);
    assert_eq!(other.get("key-1").await.unwrap(), "key-1", "another group has its own limit");
    gate.open();
    assert!(all.await.unwrap().iter().all(Result::is_ok));
    assert_eq!((source.most_running.load(SeqCst), source.loads.total()), (3, 20));
    assert_eq!(crate::support::loads_of(&node), (0, 0));
}

/// Checks that the breaker opens after five failures, admits one load per pause of 10 s, and closes once a load
/// succeeds.
#[tokio::test(start_paused = true)]
async fn open_breaker_admits_one_load_per_pause_until_success() {
    let source = Source { failures: Arc::new(AtomicU64::new(u64::MAX)), ..Source::default() };
    let (_node, group) = group(&source, |group| group.breaker(5, Duration::from_secs(10))).await;
    let fails = async |n: usize| -> Error { group.get(&format!("key-{n}")).await.expect_err("fails") };
    for n in 0..100 {
        assert!(fails(n).await.is_transient());
    }
    assert_eq!((source.loads.total(), group.stats().breaker_rejections), (5, 95));
    assert!(fails(0).await.to_string().contains("again and again"));
    sleep(Duration::from_secs(10)).await;
    for n in 0..10 {
        fails(n).await;
    }
    assert_eq!(source.loads.total(), 6, "one probe");
    source.failures.store(0, SeqCst);
    sleep(Duration::from_secs(10)).await;
    for n in 0..10 {
        group.get(&format!("key-{n}")).await.unwrap();
    }
    assert_eq!(source.loads.total(), 16);
}

/// Checks that loads that wait for permits when the breaker opens fail without a call of the loader.
#[tokio::test(start_paused = true)]
async fn loads_waiting_when_the_breaker_opens_do_not_run() {
    let gate = Gate::default();
    let source = Source { failures: Arc::new(AtomicU64::new(u64::MAX)), gate: Some(gate.clone()), ..Source::default() };
    let (_node, group) = group(&source, |group| group.max_loads(2).breaker(3, Duration::from_secs(10))).await;
    let get_all = || {
        let group = group.clone();
        let get = move |n: u64| {
            let group = group.clone();
            async move { group.get(&format!("key-{n}")).await }
        };
        tokio::spawn(futures_util::future::join_all((0..100).map(get)))
    };
    let all = get_all();
    sleep(Duration::from_millis(10)).await;
    assert_eq!(source.loads.total(), 2, "the other loads wait for permits");
    gate.open();
    assert!(all.await.unwrap().iter().all(|value| value.as_ref().is_err_and(|e| e.is_load_failed())));
    assert!((3..=5).contains(&source.loads.total()), "{} loads", source.loads.total());
    // The probe is one of the waiting loads.
    sleep(Duration::from_secs(10)).await;
    let before = source.loads.total();
    assert!(get_all().await.unwrap().iter().all(Result::is_err));
    assert_eq!(source.loads.total(), before + 1);
}

/// Checks that stale values are served while the breaker is open, within `stale_if_error`, with at most one probe per
/// pause.
#[tokio::test(start_paused = true)]
async fn open_breaker_serves_stale_values() {
    let source = Source::default();
    let minute = Duration::from_secs(60);
    let (_node, group) =
        group(&source, |group| group.time_to_live(minute).jitter(0.0).stale_if_error(minute * 60).breaker(1, minute))
            .await;
    group.get("key-1").await.unwrap();
    source.failures.store(u64::MAX, SeqCst);
    sleep(minute).await;
    for _ in 0..30 {
        assert_eq!(group.get("key-1").await.unwrap(), "key-1");
        sleep(Duration::from_secs(2)).await;
    }
    assert!(source.loads.total() <= 3, "{} loads", source.loads.total());
}

/// Checks that a limit of no loads, a breaker of no failures and a breaker without a pause are configuration errors.
#[tokio::test]
async fn zero_limits_are_refused() {
    let node = Node::builder().start().await.unwrap();
    let group = || node.group::<String>("data").capacity_bytes(1 << 20).loader(Source::default());
    for group in [group().max_loads(0), group().breaker(0, Duration::from_secs(1)), group().breaker(3, Duration::ZERO)]
    {
        assert!(group.build().expect_err("refused").is_config());
    }
}
