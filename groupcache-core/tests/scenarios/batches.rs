//! Batch loaders: many keys are one query, and each key is one load.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::{Cluster, Gate, PATIENCE, eventually};
use groupcache_core::{Group, GroupBuilder, Limits, LoadError, Loaded, Node, loader::BatchLoader};
use tokio::time::timeout;

/// Batch loader that records the number of keys of each query.
#[derive(Clone, Default)]
struct Database {
    gate: Gate,
    queries: Arc<Mutex<Vec<usize>>>,
}

impl BatchLoader<String> for Database {
    async fn load_many(&self, keys: &[&str]) -> Result<Vec<Result<Loaded<String>, LoadError>>, LoadError> {
        self.queries.lock().unwrap().push(keys.len());
        for key in keys {
            self.gate.loads.begin(key);
        }
        if keys.iter().any(|key| key.starts_with("slow-")) {
            self.gate.pass().await;
        }
        match keys[0] {
            "all-fail" => return Err(LoadError::transient("the database is down")),
            "panic-1" => panic!("at the loader"),
            "short-1" => return Ok(Vec::new()),
            "hang-1" => std::future::pending().await,
            _ => {}
        }
        let one = |key: &&str| match key.split('-').next() {
            Some("none") => Ok(Loaded::not_found()),
            Some("bad") => Err(LoadError::permanent("no such row")),
            _ => Ok(Loaded::new(format!("row {key}"))),
        };
        Ok(keys.iter().map(one).collect())
    }
}

impl Database {
    /// Returns the sizes of the queries since the last call.
    fn queries(&self) -> Vec<usize> {
        std::mem::take(&mut *self.queries.lock().unwrap())
    }
}

fn group(node: &Node, database: &Database) -> GroupBuilder<String> {
    node.group::<String>("data").capacity_bytes(16 << 20).batch_loader(database.clone())
}

fn keys(n: usize) -> Vec<String> {
    (0..n).map(|n| format!("key-{n}")).collect()
}

async fn get_many(group: &Group<String>, keys: &[impl AsRef<str>]) -> Vec<Result<String, groupcache_core::Error>> {
    timeout(PATIENCE, group.get_many(keys)).await.expect("in time")
}

/// Checks that the missing keys of one `get_many` are split into queries of at most `max_batch` keys, and that a single
/// get is a query of one key.
#[tokio::test]
async fn keys_of_one_call_share_queries_up_to_max_batch() {
    let (node, database) = (Node::builder().start().await.unwrap(), Database::default());
    let group = group(&node, &database).max_batch(40).build().unwrap();
    let values = get_many(&group, &keys(100)).await;
    assert!(values.iter().zip(keys(100)).all(|(value, key)| *value.as_ref().unwrap() == format!("row {key}")));
    assert_eq!(database.queries(), [40, 40, 20]);
    let stats = group.stats();
    assert_eq!((stats.loads, stats.batches), (100, 3));
    get_many(&group, &keys(100)).await;
    assert_eq!(database.queries(), [0; 0], "from memory");
    assert_eq!(group.get("key-100").await.unwrap(), "row key-100");
    assert_eq!((database.queries(), crate::support::loads_of(&node)), (vec![1], (0, 0)));
}

/// Checks that 1,000 keys requested by a peer at the same time need a few queries at each owner, 20 at most on five
/// nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simultaneous_requests_share_a_query_at_each_owner() {
    let (cluster, database) = (Cluster::start(5).await, Database::default());
    let groups = cluster.group(|_, node| group(node, &database).max_batch(1000)).await;
    for value in get_many(&groups[0], &keys(1000)).await {
        value.unwrap();
    }
    let queries = database.queries();
    assert_eq!(queries.iter().sum::<usize>(), 1000, "each key once");
    assert!(queries.len() <= 20, "{queries:?}: more than a few per owner");
    cluster.shutdown().await;
}

/// Checks that concurrent `get_many` calls at two nodes share one load per key, and that missing and failing keys of a
/// batch have outcomes of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batched_key_has_one_load_and_its_own_outcome() {
    let (cluster, database) = (Cluster::start(2).await, Database::default());
    let groups = cluster.group(|_, node| group(node, &database)).await;
    let slow: Vec<_> = (0..20).map(|n| format!("slow-{n}")).collect();
    let tasks: Vec<_> = (0..20)
        .map(|at| {
            let (group, slow) = (groups[at % 2].clone(), slow.clone());
            tokio::spawn(async move { group.get_many(slow).await })
        })
        .collect();
    database.gate.begun(20).await;
    database.gate.open();
    for task in tasks {
        assert!(task.await.unwrap().iter().all(Result::is_ok));
    }
    assert_eq!(database.gate.loads.total(), 20, "one load per key");

    let values = get_many(&groups[0], &["key-1", "none-1", "bad-1", "key-2"]).await;
    assert!(values[0].is_ok() && values[3].is_ok());
    assert!(values[1].as_ref().is_err_and(|e| e.is_not_found()));
    assert!(values[2].as_ref().is_err_and(|e| e.is_load_failed() && !e.is_transient()));
    cluster.shutdown().await;
}

/// Checks that an error, a panic, a result of the wrong length or a time-out of a batch fails all of its keys, and that
/// the keys can be loaded right afterwards.
#[tokio::test]
async fn failed_batch_fails_its_keys_and_later_gets_work() {
    let (node, database) = (Node::builder().start().await.unwrap(), Database::default());
    let group = group(&node, &database).load_deadline(Duration::from_millis(300)).build().unwrap();
    for (first, expected) in
        [("all-fail", "failed"), ("panic-1", "panicked"), ("short-1", "0 outcomes for 2"), ("hang-1", "took longer")]
    {
        let values = get_many(&group, &[first, "key-1"]).await;
        for value in values {
            let error = value.expect_err(first);
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
    assert_eq!((group.stats().load_errors, crate::support::loads_of(&node)), (8, (0, 0)));
    assert_eq!(group.get("key-1").await.unwrap(), "row key-1");
}

/// Checks that a set during a batch detaches the load of its own key, and that the values of the other keys are cached.
#[tokio::test]
async fn write_detaches_one_load_of_a_batch_only() {
    let (node, database) = (Node::builder().start().await.unwrap(), Database::default());
    let group = group(&node, &database).build().unwrap();
    let keys = ["slow-1".to_owned(), "slow-2".to_owned()];
    let many = tokio::spawn({
        let (group, keys) = (group.clone(), keys.clone());
        async move { group.get_many(keys).await }
    });
    database.gate.begun(2).await;
    group.set("slow-1", "written").await.unwrap().log_pending();
    database.gate.open();
    assert!(many.await.unwrap().iter().all(Result::is_ok));
    assert_eq!(group.get("slow-1").await.unwrap(), "written");
    assert_eq!(group.get("slow-2").await.unwrap(), "row slow-2");
    assert_eq!(database.gate.loads.total(), 2);
}

/// Checks that a group with two loaders, or with a `max_batch` of 0, is a configuration error.
#[tokio::test]
async fn two_loaders_or_max_batch_of_zero_are_refused() {
    let (node, database) = (Node::builder().start().await.unwrap(), Database::default());
    let two = group(&node, &database).loader(async |key: &str| Ok::<_, std::io::Error>(key.to_owned()));
    for (group, expected) in [(two, "two loaders"), (group(&node, &database).max_batch(0), "max_batch")] {
        let error = group.build().expect_err(expected);
        assert!(error.is_config() && error.to_string().contains(expected), "{error}");
    }
}

/// Checks that the breaker counts a batch in which every key fails as one failure of the source, and opens after three
/// of them.
#[tokio::test]
async fn batch_failing_for_all_keys_counts_for_the_breaker() {
    let (node, database) = (Node::builder().start().await.unwrap(), Database::default());
    let group = group(&node, &database).breaker(3, Duration::from_secs(60)).build().unwrap();
    for n in 0..5 {
        assert!(get_many(&group, &[format!("bad-{n}"), format!("bad-{n}-too")]).await.iter().all(Result::is_err));
    }
    assert_eq!(database.queries(), [2, 2, 2], "the breaker is open after three failures");
}

/// Checks that a load with the last permit does not wait forever for the second key of a batch that waits for a permit:
/// the batch runs first.
#[tokio::test]
async fn queued_batch_runs_before_a_load_needing_its_key() {
    let mut limits = Limits::default();
    limits.max_loads = 1;
    let (node, database) = (Node::builder().limits(limits).start().await.unwrap(), Database::default());
    let rows = group(&node, &database).build().unwrap();
    let pages = node.group::<String>("pages").capacity_bytes(1 << 20);
    let page = async |(gate, rows): &(Gate, Group<String>), key: &str| {
        gate.loads.begin(key);
        gate.pass().await;
        rows.get("key-1").await
    };
    let gate = Gate::default();
    let pages = pages.loader_with((gate.clone(), rows.clone()), page).build().unwrap();

    let page = tokio::spawn(async move { pages.get("page").await });
    gate.begun(1).await;
    let many = tokio::spawn(async move { get_many(&rows, &keys(3)).await });
    eventually("the batch waits", || crate::support::loads_of(&node) == (1, 1)).await;
    gate.open();
    assert_eq!(page.await.unwrap().expect("the load does not wait for itself"), "row key-1");
    assert!(many.await.unwrap().iter().all(Result::is_ok));
    assert_eq!(database.queries(), [3]);
}
