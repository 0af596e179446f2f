//! What protects a source from its cache: loads at once, other attempts, and a breaker. In virtual time.

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

/// Fails the first so many times.
#[derive(Clone, Default)]
struct Source {
    loads: Loads,
    failures: Arc<AtomicU64>,
    is_permanent: bool,
    gate: Option<Gate>,
    at_once: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Loader<String> for Source {
    async fn load(&self, load: Load<'_, String>) -> Result<Loaded<String>, LoadError> {
        self.loads.begin(load.key());
        self.most.fetch_max(self.at_once.fetch_add(1, SeqCst) + 1, SeqCst);
        if let Some(gate) = &self.gate {
            gate.pass().await;
        }
        self.at_once.fetch_sub(1, SeqCst);
        let is_to_fail = self.failures.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok();
        match (is_to_fail, self.is_permanent) {
            (false, _) => Ok(Loaded::new(load.key())),
            (true, true) => Err(LoadError::permanent("no such table")),
            (true, false) => Err(LoadError::transient("the database restarts")),
        }
    }
}

async fn group(
    source: &Source,
    build: impl FnOnce(GroupBuilder<String>) -> GroupBuilder<String>,
) -> (Node, Group<String>) {
    let node = Node::builder().start().await.unwrap();
    let group = node.group::<String>("data").capacity_bytes(4 << 20).loader(source.clone());
    let group = build(group).build().unwrap();
    (node, group)
}

#[tokio::test(start_paused = true)]
async fn a_transient_error_is_tried_again_and_those_who_wait_share_that_too() {
    let source = Source { failures: Arc::new(AtomicU64::new(2)), ..Source::default() };
    let (_node, group) = group(&source, |group| group.retries(3)).await;
    let begun = Instant::now();
    let all = futures_util::future::join_all((0..100).map(|_| group.get("key-1"))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!((source.loads.total(), group.stats().retries), (3, 2));
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(75) && took <= Duration::from_millis(160), "{took:?}: 25–50 and 50–100 ms");
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_and_too_many_transient_ones_are_the_answer() {
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
    assert!(begun.elapsed() <= Duration::from_secs(1), "within the load's deadline");
}

#[tokio::test(start_paused = true)]
async fn no_more_loads_of_a_group_run_at_once_than_it_may_have() {
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
    assert_eq!(other.get("key-1").await.unwrap(), "key-1", "another group has its own");
    gate.open();
    assert!(all.await.unwrap().iter().all(Result::is_ok));
    assert_eq!((source.most.load(SeqCst), source.loads.total()), (3, 20));
    assert_eq!(node.loads(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_every_time_is_left_alone_until_it_is_back() {
    let source = Source { failures: Arc::new(AtomicU64::new(u64::MAX)), ..Source::default() };
    let (_node, group) = group(&source, |group| group.breaker(5, Duration::from_secs(10))).await;
    let fails = async |n: usize| -> Error { group.get(&format!("key-{n}")).await.expect_err("fails") };
    for n in 0..100 {
        assert!(fails(n).await.is_transient());
    }
    assert_eq!((source.loads.total(), group.stats().not_admitted), (5, 95));
    assert!(fails(0).await.to_string().contains("again and again"));
    sleep(Duration::from_secs(10)).await;
    for n in 0..10 {
        fails(n).await;
    }
    assert_eq!(source.loads.total(), 6, "one to see whether it is back");
    source.failures.store(0, SeqCst);
    sleep(Duration::from_secs(10)).await;
    for n in 0..10 {
        group.get(&format!("key-{n}")).await.unwrap();
    }
    assert_eq!(source.loads.total(), 16);
}

#[tokio::test(start_paused = true)]
async fn what_waits_when_the_breaker_opens_is_not_loaded() {
    let gate = Gate::default();
    let source = Source { failures: Arc::new(AtomicU64::new(u64::MAX)), gate: Some(gate.clone()), ..Source::default() };
    let (_node, group) = group(&source, |group| group.max_loads(2).breaker(3, Duration::from_secs(10))).await;
    let ask = || {
        let group = group.clone();
        let get = move |n: u64| {
            let group = group.clone();
            async move { group.get(&format!("key-{n}")).await }
        };
        tokio::spawn(futures_util::future::join_all((0..100).map(get)))
    };
    let all = ask();
    sleep(Duration::from_millis(10)).await;
    assert_eq!(source.loads.total(), 2, "the others wait for permits");
    gate.open();
    assert!(all.await.unwrap().iter().all(|value| value.as_ref().is_err_and(|e| e.is_load_failed())));
    assert!((3..=5).contains(&source.loads.total()), "{} loads", source.loads.total());
    // The probe is one of those that wait.
    sleep(Duration::from_secs(10)).await;
    let before = source.loads.total();
    assert!(ask().await.unwrap().iter().all(Result::is_err));
    assert_eq!(source.loads.total(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn while_the_breaker_is_open_old_values_are_served_where_they_may_be() {
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

#[tokio::test]
async fn limits_that_allow_nothing_are_refused() {
    let node = Node::builder().start().await.unwrap();
    let group = || node.group::<String>("data").capacity_bytes(1 << 20).loader(Source::default());
    for group in [group().max_loads(0), group().breaker(0, Duration::from_secs(1)), group().breaker(3, Duration::ZERO)]
    {
        assert!(group.build().expect_err("refused").is_config());
    }
}
