//! Freshness: how values become stale, are refreshed and expire, on one node in virtual time.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::support::{Gate, Loads};
use groupcache_core::{
    BoxError, Error, Group, GroupBuilder, Load, LoadError, Loaded, Loader, Node, Value,
    bytes::{Buf, BufMut, Bytes, BytesMut},
    loader::LoadReason,
    value::{DecodeError, EncodeError},
};
use tokio::time::sleep;

const MINUTE: Duration = Duration::from_secs(60);

/// Outcome of the next loads.
#[derive(Clone, Copy, Default)]
enum Outcome {
    /// A value: the number of the load.
    #[default]
    Number,
    NotFound,
    Unchanged,
    Failure,
    Hang,
}

/// Reason of a load, and the previous value that the loader was given.
type Call = (LoadReason, Option<String>);

#[derive(Clone, Default)]
struct Source {
    loads: Loads,
    outcome: Arc<Mutex<Outcome>>,
    gate: Option<Gate>,
    /// Time to live that the loader sets, in milliseconds. 0 means the group's time to live.
    ttl_ms: Arc<AtomicU64>,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Source {
    fn set(&self, outcome: Outcome) {
        *self.outcome.lock().unwrap() = outcome;
    }

    /// Returns the calls since the last call of this function.
    fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

impl Loader<String> for Source {
    async fn load(&self, load: Load<'_, String>) -> Result<Loaded<String>, LoadError> {
        let number = self.loads.begin(load.key());
        self.calls.lock().unwrap().push((load.reason(), load.previous().cloned()));
        if let Some(gate) = &self.gate {
            gate.pass().await;
        }
        let outcome = *self.outcome.lock().unwrap();
        let loaded = match outcome {
            Outcome::Number => Loaded::new(number.to_string()),
            Outcome::NotFound => Loaded::not_found(),
            Outcome::Unchanged => Loaded::unchanged(),
            Outcome::Failure => return Err(LoadError::transient("the database is down")),
            Outcome::Hang => std::future::pending().await,
        };
        match self.ttl_ms.load(SeqCst) {
            0 => Ok(loaded),
            ms => Ok(loaded.time_to_live(Duration::from_millis(ms))),
        }
    }
}

/// Builds a node with a group: time to live one minute, no jitter.
async fn group(
    source: &Source,
    build: impl FnOnce(GroupBuilder<String>) -> GroupBuilder<String>,
) -> (Node, Group<String>) {
    let node = Node::builder().start().await.unwrap();
    let group = node.group::<String>("data").capacity_bytes(4 << 20).time_to_live(MINUTE).jitter(0.0);
    let group = build(group.loader(source.clone())).build().unwrap();
    (node, group)
}

async fn get(group: &Group<String>) -> Result<String, Error> {
    group.get("key-1").await
}

/// Lets time pass, and 50 ms more for tasks in the background.
async fn pass(time: Duration) {
    sleep(time).await;
    sleep(Duration::from_millis(50)).await;
}

#[tokio::test(start_paused = true)]
async fn time_to_live_comes_from_loader_or_group_up_to_maximum() {
    let source = Source::default();
    let (_node, group) = group(&source, |group| group.max_time_to_live(MINUTE * 2)).await;
    assert_eq!(get(&group).await.unwrap(), "1");
    pass(MINUTE - Duration::from_secs(1)).await;
    assert_eq!(get(&group).await.unwrap(), "1");
    pass(Duration::from_secs(1)).await;
    assert_eq!(get(&group).await.unwrap(), "2", "the group sets 60 s");

    source.ttl_ms.store(10_000, SeqCst);
    group.remove("key-1").await.unwrap().log_pending();
    assert_eq!(get(&group).await.unwrap(), "3");
    pass(Duration::from_secs(10)).await;
    assert_eq!(get(&group).await.unwrap(), "4", "the loader sets 10 s");

    source.ttl_ms.store(3_600_000, SeqCst);
    group.remove("key-1").await.unwrap().log_pending();
    assert_eq!(get(&group).await.unwrap(), "5");
    pass(MINUTE * 2).await;
    assert_eq!(get(&group).await.unwrap(), "6", "the group limits one hour to two minutes");
}

/// Checks a jitter of 10 %: values loaded together expire between 90 % and 100 % of their time to live.
#[tokio::test(start_paused = true)]
async fn jitter_spreads_expiry_of_values_loaded_together() {
    let source = Source::default();
    let (_node, group) = group(&source, |group| group.jitter(0.1)).await;
    let get_all = async || {
        for n in 0..200 {
            group.get(&format!("key-{n}")).await.unwrap();
        }
    };
    get_all().await;
    pass(Duration::from_secs(53)).await;
    get_all().await;
    assert_eq!(source.loads.total(), 200, "no value expires before 90 % of its time to live");
    sleep(Duration::from_secs(4)).await;
    get_all().await;
    let loads = source.loads.total() - 200;
    assert!((40..160).contains(&loads), "{loads} of 200 after 57 s");
    sleep(Duration::from_secs(3)).await;
    get_all().await;
    assert_eq!(source.loads.total(), 400, "all values have expired after 60 s");
}

#[tokio::test(start_paused = true)]
async fn not_found_is_cached_for_the_negative_time_to_live() {
    let source = Source::default();
    source.set(Outcome::NotFound);
    let (_node, group) = group(&source, |group| group.negative_time_to_live(Duration::from_secs(5))).await;
    for _ in 0..3 {
        assert!(get(&group).await.expect_err("the loader finds nothing").is_not_found());
        assert_eq!(group.get_opt("key-1").await.unwrap(), None);
    }
    assert_eq!((source.loads.total(), group.stats().hits), (1, 5));
    source.set(Outcome::Number);
    assert!(get(&group).await.is_err());
    pass(Duration::from_secs(5)).await;
    assert_eq!(get(&group).await.unwrap(), "2");

    source.set(Outcome::NotFound);
    group.remove("key-1").await.unwrap().log_pending();
    assert!(get(&group).await.is_err());
    group.set("key-1", "set").await.unwrap().log_pending();
    assert_eq!(get(&group).await.unwrap(), "set", "a write replaces the negative entry");
}

#[tokio::test(start_paused = true)]
async fn not_found_is_not_cached_by_default() {
    let source = Source::default();
    source.set(Outcome::NotFound);
    let (_node, group) = group(&source, |group| group).await;
    assert!(get(&group).await.is_err() && get(&group).await.is_err());
    assert_eq!((source.loads.total(), group.inspect().entries()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn stale_value_is_served_while_one_load_refreshes_it() {
    let gate = Gate::default();
    gate.open();
    let source = Source { gate: Some(gate.clone()), ..Source::default() };
    let (_node, group) = group(&source, |group| group.stale_while_revalidate(MINUTE)).await;
    assert_eq!(get(&group).await.unwrap(), "1");
    pass(MINUTE).await;
    gate.close();
    let before = tokio::time::Instant::now();
    let callers = (0..1000).map(|_| get(&group));
    for value in futures_util::future::join_all(callers).await {
        assert_eq!(value.unwrap(), "1");
    }
    assert_eq!(before.elapsed(), Duration::ZERO, "no caller waits");
    sleep(Duration::from_millis(1)).await;
    assert_eq!(source.loads.total(), 2, "one refresh for all callers");
    let stats = group.stats();
    assert_eq!((stats.stale_hits, stats.refreshes), (1000, 1));
    gate.open();
    pass(Duration::ZERO).await;
    assert_eq!(get(&group).await.unwrap(), "2");
    assert_eq!(source.take_calls()[1], (LoadReason::Refresh, Some("1".to_owned())));

    pass(MINUTE * 2).await;
    assert_eq!(get(&group).await.unwrap(), "3", "too old to be served, so that the get waits for the load");
}

#[tokio::test(start_paused = true)]
async fn failing_refresh_is_retried_each_second() {
    let source = Source::default();
    let (_node, group) = group(&source, |group| group.stale_while_revalidate(MINUTE)).await;
    get(&group).await.unwrap();
    source.set(Outcome::Failure);
    pass(MINUTE).await;
    for _ in 0..100 {
        assert_eq!(get(&group).await.unwrap(), "1");
        sleep(Duration::from_millis(100)).await;
    }
    let loads = source.loads.total() - 1;
    assert!((9..=11).contains(&loads), "{loads} loads in 10 s");
    pass(MINUTE).await;
    assert!(get(&group).await.expect_err("the value is too old").is_load_failed());
}

#[tokio::test(start_paused = true)]
async fn requested_value_is_refreshed_ahead_of_expiry() {
    let source = Source::default();
    let (_node, group) = group(&source, |group| group.refresh_ahead(Duration::from_secs(10))).await;
    get(&group).await.unwrap();
    pass(Duration::from_secs(49)).await;
    assert_eq!((get(&group).await.unwrap().as_str(), source.loads.total()), ("1", 1));
    pass(Duration::from_secs(1)).await;
    assert_eq!(get(&group).await.unwrap(), "1", "this get starts the refresh and returns the present value");
    pass(Duration::ZERO).await;
    assert_eq!(get(&group).await.unwrap(), "2");
    assert_eq!(group.stats().stale_hits, 0, "the value was always fresh");
    pass(MINUTE).await;
    assert_eq!(source.loads.total(), 2, "a value without gets is not refreshed");
}

#[tokio::test(start_paused = true)]
async fn expired_value_is_served_while_the_loader_fails() {
    let source = Source::default();
    let (_node, group) =
        group(&source, |group| group.stale_if_error(MINUTE * 10).load_deadline(Duration::from_secs(2))).await;
    get(&group).await.unwrap();
    for outcome in [Outcome::Failure, Outcome::Hang] {
        source.set(outcome);
        pass(MINUTE).await;
        let before = source.loads.total();
        assert_eq!(get(&group).await.unwrap(), "1");
        assert_eq!(get(&group).await.unwrap(), "1", "served without another load");
        assert_eq!(source.loads.total(), before + 1);
    }
    assert_eq!(group.stats().stale_on_error, 2);
    source.set(Outcome::NotFound);
    pass(Duration::from_secs(2)).await;
    assert!(get(&group).await.expect_err("not found is no failure").is_not_found());

    source.set(Outcome::Number);
    group.remove("key-1").await.unwrap().log_pending();
    let value = get(&group).await.unwrap();
    source.set(Outcome::Failure);
    pass(MINUTE * 5).await;
    assert_eq!(get(&group).await.unwrap(), value);
    group.remove("key-1").await.unwrap().log_pending();
    assert!(get(&group).await.is_err(), "a removed value is not served");
    pass(MINUTE * 20).await;
    assert!(get(&group).await.is_err(), "nor is a value that is too old");
}

/// A number that can be encoded only if it is even.
#[derive(Clone)]
struct Even(u64);

impl Value for Even {
    fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        if self.0 % 2 == 1 {
            return Err(EncodeError::new("the number is odd"));
        }
        out.put_u64(self.0);
        Ok(())
    }

    fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        Ok(Self(bytes.get_u64()))
    }

    fn weight(&self) -> usize {
        0
    }
}

/// Checks that a loaded value which cannot be encoded does not replace the value before it.
#[tokio::test(start_paused = true)]
async fn unencodable_value_does_not_replace_the_previous_one() {
    let node = Node::builder().start().await.unwrap();
    let loads = Loads::default();
    let count = async |loads: &Loads, key: &str| Ok::<_, BoxError>(Even(loads.begin(key) + 1));
    let group = node.group::<Even>("data").capacity_bytes(1 << 20).time_to_live(MINUTE).stale_if_error(MINUTE * 10);
    let group = group.loader_with(loads.clone(), count).build().unwrap();
    assert_eq!(group.get("key").await.unwrap().0, 2);
    pass(MINUTE).await;
    for _ in 0..2 {
        assert_eq!((group.get("key").await.unwrap().0, group.inspect().entries(), loads.total()), (2, 1, 2));
    }
    pass(MINUTE).await;
    assert_eq!((group.get("key").await.unwrap().0, loads.total()), (4, 3));
}

#[tokio::test(start_paused = true)]
async fn unchanged_keeps_the_value_for_another_time_to_live() {
    let source = Source::default();
    let (_node, group) = group(&source, |group| group.stale_if_error(MINUTE)).await;
    get(&group).await.unwrap();
    source.set(Outcome::Unchanged);
    pass(MINUTE).await;
    source.take_calls();
    assert_eq!(get(&group).await.unwrap(), "1");
    assert_eq!(source.take_calls(), [(LoadReason::Owner, Some("1".to_owned()))]);
    pass(MINUTE - Duration::from_secs(1)).await;
    assert_eq!((get(&group).await.unwrap().as_str(), source.loads.total()), ("1", 2));

    group.remove("key-1").await.unwrap().log_pending();
    let error = get(&group).await.expect_err("there is no previous value");
    assert!(error.is_load_failed() && error.to_string().contains("previous"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn refresh_overtaken_by_a_write_is_discarded() {
    let gate = Gate::default();
    gate.open();
    let source = Source { gate: Some(gate.clone()), ..Source::default() };
    let (_node, group) = group(&source, |group| group.stale_while_revalidate(MINUTE)).await;
    for outcome in [Outcome::Number, Outcome::Unchanged] {
        source.set(Outcome::Number);
        group.remove("key-1").await.unwrap().log_pending();
        get(&group).await.unwrap();
        pass(MINUTE).await;
        source.set(outcome);
        gate.close();
        get(&group).await.unwrap();
        let loads = source.loads.total();
        pass(Duration::ZERO).await;
        group.set("key-1", "set").await.unwrap().log_pending();
        gate.open();
        pass(Duration::from_secs(1)).await;
        assert_eq!(get(&group).await.unwrap(), "set");
        assert_eq!(source.loads.total(), loads + 1);
    }
}

#[tokio::test]
async fn invalid_times_and_jitter_are_refused() {
    let node = Node::builder().start().await.unwrap();
    let group = || node.group::<String>("data").capacity_bytes(4 << 20).loader(Source::default());
    for (group, text) in [
        (group().time_to_live(Duration::ZERO), "zero"),
        (group().max_time_to_live(Duration::ZERO), "zero"),
        (group().negative_time_to_live(Duration::ZERO), "zero"),
        (group().jitter(1.5), "jitter"),
        (group().jitter(f64::NAN), "jitter"),
    ] {
        let error = group.build().expect_err(text);
        assert!(error.is_config() && error.to_string().contains(text), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn stalled_node_without_peers_keeps_its_values() {
    let source = Source::default();
    let (node, group) = group(&source, |group| group).await;
    get(&group).await.unwrap();
    tokio::time::advance(Duration::from_secs(3)).await;
    pass(Duration::from_secs(20)).await;
    assert_eq!((get(&group).await.unwrap().as_str(), node.stats().late_ticks > 0), ("1", true));
}

#[tokio::test(start_paused = true)]
async fn expired_values_free_their_memory_without_a_get() {
    let source = Source::default();
    let (_node, group) = group(&source, |group| group.stale_if_error(MINUTE)).await;
    for n in 0..2000 {
        group.get(&format!("key-{n}")).await.unwrap();
    }
    group.set("key-young", "young").await.unwrap().log_pending();
    pass(MINUTE).await;
    group.set("key-young", "young").await.unwrap().log_pending();
    assert_eq!(group.inspect().entries(), 2001, "expired values are kept for a failing loader");
    pass(MINUTE - Duration::from_secs(1)).await;
    pass(Duration::from_secs(12)).await;
    assert_eq!((group.inspect().entries(), group.stats().expired), (1, 2000));
    assert!(group.inspect().bytes() < 1000);
}

#[tokio::test(start_paused = true)]
async fn uncached_not_found_removes_the_previous_value() {
    let source = Source::default();
    let (_node, group) = group(&source, |group| group.stale_while_revalidate(MINUTE).stale_if_error(MINUTE * 10)).await;
    get(&group).await.unwrap();
    pass(MINUTE).await;
    source.set(Outcome::NotFound);
    assert_eq!(get(&group).await.unwrap(), "1", "the stale value is served during the refresh");
    pass(Duration::ZERO).await;
    assert!(get(&group).await.expect_err("the loader found nothing").is_not_found());
    source.set(Outcome::Failure);
    assert!(get(&group).await.expect_err("the removed value is not served").is_load_failed());
}

/// Checks that times up to [`Duration::MAX`] overflow nowhere.
#[tokio::test(start_paused = true)]
async fn times_of_any_length_are_accepted() {
    for long in [Duration::MAX, Duration::from_secs(1 << 62), Duration::from_secs(60 * 86_400)] {
        let source = Source::default();
        let (_node, group) = group(&source, |group| {
            group
                .time_to_live(long)
                .stale_while_revalidate(long)
                .stale_if_error(long)
                .refresh_ahead(long)
                .breaker(1, long)
        })
        .await;
        assert_eq!(get(&group).await.unwrap(), "1");
        group.set("key-1", "set").await.unwrap().log_pending();
        pass(MINUTE).await;
        assert_eq!(get(&group).await.unwrap(), "set");
    }
}
