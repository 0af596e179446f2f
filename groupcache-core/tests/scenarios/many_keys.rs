//! Calls with many keys, clears, peeks, and the writes that a peer asks for.

use groupcache_core::RemoveOptions;
use std::time::Duration;

use crate::support::{self, Cluster, Gate, Loads, PATIENCE, Proxy, eventually, gated};
use groupcache_core::{BoxError, Group, Limits, Node};
use tokio::time::timeout;

/// Loads a key. The value is the number of loads of this key so far, this load included.
async fn numbered(loads: &Loads, key: &str) -> Result<String, BoxError> {
    loads.begin(key);
    Ok(loads.of(key).to_string())
}

/// Starts `n` nodes with the group `data`.
async fn cluster_of(n: usize) -> (Cluster, Vec<Group<String>>, Loads) {
    // The tests count frames and requests, so that the hand-over is off: previous-owner reads would be counted too.
    let cluster = Cluster::start_each(n, |_, builder| builder.handover(false)).await;
    let loads = Loads::default();
    let group =
        |node: &Node| node.group::<String>("data").capacity_bytes(64 << 20).loader_with(loads.clone(), numbered);
    let groups = cluster.group(|_, node| group(node)).await;
    (cluster, groups, loads)
}

fn keys(n: usize) -> Vec<String> {
    (0..n).map(|n| format!("key-{n}")).collect()
}

async fn get(group: &Group<String>, key: &str) -> String {
    timeout(PATIENCE, group.get(key)).await.expect("in time").expect("a value")
}

/// Checks that a clear at one node drops the entries of all nodes, and that each key is loaded once more afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clear_drops_the_entries_of_all_nodes() {
    let (cluster, groups, loads) = cluster_of(3).await;
    for key in keys(300) {
        get(&groups[0], &key).await;
    }
    assert_eq!(groups.iter().map(|group| group.inspect().entries()).sum::<usize>(), 300);
    let written = groups[1].clear().await.unwrap();
    assert!(written.is_complete(), "{written:?}");
    assert_eq!(groups.iter().map(|group| group.inspect().entries()).sum::<usize>(), 0);
    for key in keys(300) {
        assert_eq!(get(&groups[2], &key).await, "2");
    }
    assert_eq!(loads.total(), 600);
    cluster.shutdown().await;
}

/// Checks that a clear during a load detaches the flight: earlier waiters receive its value, later callers start a new
/// load, and only the value of the new load is cached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_detached_by_clear_serves_only_its_waiters() {
    let (cluster, gate) = (Cluster::start(2).await, Gate::default());
    let group = |node: &Node| node.group::<String>("data").capacity_bytes(4 << 20).loader_with(gate.clone(), gated);
    let groups = cluster.group(|_, node| group(node)).await;
    let key = cluster.key_of(&groups, 0);
    let get_at_b = || {
        let (group, key) = (groups[1].clone(), key.clone());
        tokio::spawn(async move { get(&group, &key).await })
    };
    let before = get_at_b();
    gate.begun(1).await;
    assert!(groups[0].clear().await.unwrap().is_complete());
    let after = get_at_b();
    gate.begun(2).await;
    gate.open();
    assert_eq!(before.await.unwrap(), format!("{key} by load 1"));
    assert_eq!(after.await.unwrap(), format!("{key} by load 2"));
    assert_eq!(get(&groups[0], &key).await, format!("{key} by load 2"));
    cluster.shutdown().await;
}

/// Checks that a bad key refuses the whole call before any removal, and that 1,000 keys take fewer than 400 frames to
/// two peers.
///
/// The test runs on one thread, because the number of removes that share a frame would otherwise depend on how busy the
/// machine is.
#[tokio::test]
async fn remove_many_shares_frames_and_refuses_a_bad_key() {
    let (cluster, groups, _) = cluster_of(3).await;
    for key in keys(1000) {
        get(&groups[0], &key).await;
    }
    let refused = groups[0].remove_many(["key-0", ""]).await.expect_err("a bad key");
    assert!(refused.is_bad_key());
    assert_eq!(get(&groups[0], "key-0").await, "1", "the refused call has removed nothing");
    let frames: u64 = cluster.nodes[0].stats().frames_sent;
    let written = groups[0].remove_many(keys(1000)).await.unwrap();
    assert!(written.is_complete());
    let frames = cluster.nodes[0].stats().frames_sent - frames;
    assert!(frames < 400, "{frames} frames for 2,000 removes");
    assert_eq!(groups.iter().map(|group| group.inspect().entries()).sum::<usize>(), 0);
    assert!(groups[0].remove_many(Vec::<String>::new()).await.unwrap().is_complete());
    cluster.shutdown().await;
}

/// Checks that a remove with `owner_only` sends one request, to the owner, and drops the local replica, while a replica
/// at a third node stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owner_only_remove_is_one_request_and_leaves_replicas() {
    let (cluster, groups, _) = cluster_of(3).await;
    let key = cluster.key_of(&groups, 0);
    for group in &groups[1..] {
        let replicated = async {
            while group.inspect().replicas() == 0 {
                get(group, &key).await;
            }
        };
        timeout(PATIENCE, replicated).await.expect("a replica exists");
    }
    let sent: u64 = cluster.nodes[1].stats().requests_sent;
    let outcome = groups[1].remove_with(&key, RemoveOptions::new().owner_only()).await.unwrap();
    assert!(!outcome.is_complete(), "the node that is not notified is pending: {outcome:?}");
    assert_eq!(cluster.nodes[1].stats().requests_sent, sent + 1);
    assert_eq!(get(&groups[1], &key).await, "2");
    assert_eq!(get(&groups[0], &key).await, "2");
    assert_eq!(get(&groups[2], &key).await, "1", "the replica of the third node stays");
    cluster.shutdown().await;
}

/// Checks that `peek` and `contains` read the memory of the owner, load nothing and cache nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peek_and_contains_load_nothing() {
    let (cluster, groups, loads) = cluster_of(2).await;
    let key = cluster.key_of(&groups, 0);
    for group in &groups {
        assert_eq!((group.peek(&key).await.unwrap(), group.contains(&key).await.unwrap()), (None, false));
    }
    assert_eq!(loads.total(), 0);
    get(&groups[0], &key).await;
    for group in &groups {
        assert_eq!(group.peek(&key).await.unwrap().as_deref(), Some("1"));
        assert!(group.contains(&key).await.unwrap());
    }
    assert_eq!((loads.total(), groups[1].inspect().entries()), (1, 0), "a peek caches nothing");
    assert!(groups[0].peek("").await.expect_err("bad").is_bad_key());
    cluster.nodes[0].shutdown().await.unwrap();
    assert!(groups[0].peek(&key).await.expect_err("closed").is_closed());
    assert_eq!(groups[1].peek(&key).await.unwrap(), None, "an owner that is shut down holds nothing");
}

/// Starts nodes `a` and `b`. Requests from `a` to `b` pass through a proxy that the test can stop.
async fn start_with_path() -> (Cluster, Vec<Group<String>>, Loads, Proxy) {
    let ((cluster, path), loads) = (Cluster::start_with_proxy().await, Loads::default());
    let group = |node: &Node| {
        let group = node.group::<String>("data").capacity_bytes(64 << 20).loader_with(loads.clone(), numbered);
        group.replica_time_to_live(Duration::from_secs(3600))
    };
    let groups = cluster.group(|_, node| group(node)).await;
    (cluster, groups, loads, path)
}

/// Waits until a write has settled.
async fn settle(written: &groupcache_core::WriteOutcome) {
    timeout(PATIENCE, written.settled())
        .await
        .unwrap_or_else(|_| panic!("not settled within {PATIENCE:?}: {written:?}"));
}

/// Checks that a peer asks for the removes that do not reach it, and that its other entries stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_asks_for_removes_that_do_not_arrive() {
    let (cluster, groups, _, path) = start_with_path().await;
    let mine: Vec<_> = keys(200).into_iter().filter(|key| cluster.owner(&groups, key) == 1).collect();
    for key in &mine {
        get(&groups[1], key).await;
    }
    path.stop();
    let (removed, untouched) = mine.split_at(mine.len() / 2);
    settle(&groups[0].remove_many(removed).await.unwrap()).await;
    assert_eq!(groups[1].inspect().entries(), untouched.len());
    assert!(cluster.nodes[1].stats().pulled_writes > 0);
    path.cut();
    path.resume();
    for key in removed {
        assert_eq!(get(&groups[1], key).await, "2");
    }
    for key in untouched {
        assert_eq!(get(&groups[1], key).await, "1");
    }
}

/// Checks that an owner that cannot be reached receives a remove with `owner_only` too, because gets go to this owner
/// again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreached_owner_receives_owner_only_removes() {
    let (cluster, groups, _, path) = start_with_path().await;
    let mine: Vec<_> = keys(40).into_iter().filter(|key| cluster.owner(&groups, key) == 1).collect();
    for key in &mine {
        get(&groups[1], key).await;
    }
    path.stop();
    let remove = RemoveOptions::new().owner_only();
    let removes = mine.iter().map(|key| groups[0].remove_with(key, remove));
    for written in futures_util::future::join_all(removes).await {
        settle(&written.unwrap()).await;
    }
    assert_eq!(groups[1].inspect().entries(), 0);
}

/// Checks that a peer asks for a clear that does not reach it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_asks_for_a_clear_that_does_not_arrive() {
    let (cluster, groups, _, path) = start_with_path().await;
    let mine: Vec<_> = keys(200).into_iter().filter(|key| cluster.owner(&groups, key) == 1).collect();
    for key in &mine {
        get(&groups[1], key).await;
    }
    path.stop();
    settle(&groups[0].clear().await.unwrap()).await;
    assert_eq!(groups[1].inspect().entries(), 0);
}

/// Checks that a get of 1,000 keys of five nodes sends one frame to each of the four other owners, loads each key once,
/// and returns the values in the order of the keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_many_sends_one_frame_to_each_owner() {
    let (cluster, groups, loads) = cluster_of(5).await;
    let keys = keys(1000);
    let before = cluster.nodes[0].stats();
    let values = timeout(PATIENCE, groups[0].get_many(&keys)).await.expect("in time");
    let after = cluster.nodes[0].stats();
    assert!(values.iter().all(|value| value.as_deref().is_ok_and(|value| value == "1")));
    assert_eq!((values.len(), loads.total()), (1000, 1000), "each key is loaded once");
    assert_eq!(after.frames_sent - before.frames_sent, 4, "one frame to each other node");
    let owned = keys.iter().filter(|key| cluster.owner(&groups, key) != 0).count() as u64;
    assert_eq!(after.requests_sent - before.requests_sent, owned);

    let again = timeout(PATIENCE, groups[1].get_many(&keys)).await.expect("in time");
    assert!(again.iter().all(Result::is_ok));
    assert_eq!(loads.total(), 1000);
    assert!(groups[0].get_many(Vec::<String>::new()).await.is_empty());
    cluster.shutdown().await;
}

/// Checks that `max_in_flight_per_peer` refuses the keys beyond it as overloaded, without a fallback load, and that the
/// keys within it have their values.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_many_above_the_per_peer_limit_is_overloaded() {
    let mut limits = Limits::default();
    limits.max_in_flight_per_peer = 4;
    let (cluster, loads) = (Cluster::start_with(2, limits).await, Loads::default());
    let group =
        |node: &Node| node.group::<String>("data").capacity_bytes(64 << 20).loader_with(loads.clone(), numbered);
    let groups = cluster.group(|_, node| group(node)).await;
    let theirs: Vec<_> = keys(100).into_iter().filter(|key| cluster.owner(&groups, key) == 1).take(10).collect();
    let values = timeout(PATIENCE, groups[0].get_many(&theirs)).await.expect("in time");
    assert!(values[..4].iter().all(Result::is_ok), "{values:?}");
    assert!(values[4..].iter().all(|value| value.as_ref().is_err_and(|e| e.is_overloaded())), "{values:?}");
    assert_eq!(loads.total(), 4, "no fallback load");
    cluster.shutdown().await;
}

/// Checks that the keys of an owner known to be unreachable are loaded at the local node, and that no request is sent
/// for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_unreachable_owner_load_without_requests() {
    let (cluster, groups, loads, path) = start_with_path().await;
    let theirs: Vec<_> = keys(40).into_iter().filter(|key| cluster.owner(&groups, key) == 1).collect();
    path.stop();
    get(&groups[0], &theirs[0]).await; // a waiting request is needed to detect the silence
    eventually("a marks b unreachable", || cluster.nodes[0].members().iter().any(|m| !m.reachable)).await;
    let before = cluster.nodes[0].stats().requests_sent;
    let values = timeout(PATIENCE, groups[0].get_many(&theirs)).await.expect("in time");
    assert!(values.iter().all(Result::is_ok), "{values:?}");
    assert_eq!((loads.total(), cluster.nodes[0].stats().requests_sent), (theirs.len() as u64, before));
    path.resume();
    cluster.shutdown().await;
}

/// Loads a key as its prefix demands: `none` finds nothing, `error` fails, `slow` waits at the gate.
async fn by_key(gate: &Gate, key: &str) -> Result<Option<String>, BoxError> {
    gate.loads.begin(key);
    match key.split('-').next() {
        Some("none") => return Ok(None),
        Some("error") => return Err("the database is down".into()),
        Some("slow") => gate.pass().await,
        _ => {}
    }
    Ok(Some(format!("value of {key}")))
}

/// Checks that missing, bad, failed and late keys of one call have errors of their own, that the other keys have
/// values, and that a repeated key is loaded once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_many_returns_an_outcome_for_each_key() {
    let (cluster, gate) = (Cluster::start(3).await, Gate::default());
    let group = |node: &Node| node.group::<String>("data").capacity_bytes(4 << 20).loader_with(gate.clone(), by_key);
    let groups = cluster.group(|_, node| group(node)).await;
    let quick = groups[0].with_deadline(Duration::from_millis(700));
    let keys = ["good-1", "none-1", "", "error-1", "slow-1", "good-2", "good-1"];
    let values = timeout(PATIENCE, quick.get_many(keys)).await.expect("in time");
    assert_eq!(values[0].as_deref().unwrap(), "value of good-1");
    assert!(values[1].as_ref().is_err_and(|e| e.is_not_found()));
    assert!(values[2].as_ref().is_err_and(|e| e.is_bad_key()));
    assert!(values[3].as_ref().is_err_and(|e| e.is_load_failed()));
    assert!(values[4].as_ref().is_err_and(|e| e.is_timeout()));
    assert_eq!(values[5].as_deref().unwrap(), "value of good-2");
    assert_eq!(values[6].as_deref().unwrap(), "value of good-1", "a key may occur twice");
    assert_eq!(gate.loads.of("good-1"), 1);
    gate.open();
    cluster.shutdown().await;
}

/// Checks that gets and `get_many` calls at two nodes share the loads of two keys, and that a dropped `get_many` ends
/// none of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_and_get_many_share_a_load() {
    let (cluster, gate) = (Cluster::start(2).await, Gate::default());
    let group = |node: &Node| node.group::<String>("data").capacity_bytes(4 << 20).loader_with(gate.clone(), gated);
    let groups = cluster.group(|_, node| group(node)).await;
    let [mine, theirs] = [0, 1].map(|node| cluster.key_of(&groups, node));
    let many = tokio::spawn({
        let (group, keys) = (groups[0].clone(), [mine.clone(), theirs.clone()]);
        async move { group.get_many(keys).await }
    });
    gate.begun(2).await;
    let dropped = Box::pin(groups[0].get_many([&mine, &theirs]));
    assert!(
        timeout(Duration::from_millis(50), dropped).await.is_err(),
        "the call waits for the gate until it is dropped"
    );
    let one: Vec<_> = [&mine, &theirs]
        .map(|key| {
            let (group, key) = (groups[1].clone(), key.clone());
            tokio::spawn(async move { group.get(&key).await })
        })
        .into();
    gate.open();
    let many = many.await.unwrap();
    for (many, one) in many.into_iter().zip(one) {
        assert_eq!(many.unwrap(), one.await.unwrap().unwrap());
    }
    assert_eq!(gate.loads.total(), 2);
    cluster.shutdown().await;
}

/// Checks that a get of 10,000 keys succeeds, although at most 1,000 of them are requested at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_many_above_1000_keys_requests_them_in_chunks() {
    let (cluster, groups, loads) = cluster_of(2).await;
    let values = timeout(PATIENCE, groups[0].get_many(keys(10_000))).await.expect("in time");
    assert!(values.iter().all(Result::is_ok));
    assert_eq!((values.len(), loads.total()), (10_000, 10_000));
    cluster.shutdown().await;
}

/// Checks that a connected peer that discovery has dropped receives removes, and that no write is complete without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unlisted_peer_receives_writes_while_connected() {
    let (cluster, groups, loads) = cluster_of(3).await;
    let [a, b, c] = [0, 1, 2].map(|at| support::peer(&cluster.nodes[at]));
    let mine: Vec<_> = keys(100).into_iter().filter(|key| cluster.owner(&groups, key) == 1).collect();
    for key in &mine {
        get(&groups[1], key).await;
    }
    // Only the other nodes lose `b`: `b` itself runs and has all of them in its view.
    cluster.peers.set(vec![a.clone(), c.clone()]);
    eventually("a and c have removed b from their views", || {
        cluster.nodes[0].members().len() == 2 && cluster.nodes[2].members().len() == 2
    })
    .await;
    let (by_owner, by_all) = mine.split_at(mine.len() / 2);
    for key in by_owner {
        settle(&groups[0].remove_with(key, RemoveOptions::new().owner_only()).await.unwrap()).await;
    }
    settle(&groups[0].remove_many(by_all).await.unwrap()).await;
    assert_eq!(groups[1].inspect().entries(), 0, "b is connected, listed or not");
    cluster.peers.set(vec![a, b, c]);
    cluster.agree().await;
    assert_eq!(get(&groups[1], &mine[0]).await, "2");
    drop(loads);
    cluster.shutdown().await;
}

/// Checks that a peer asks for the removes that its rate limit (50 per second) has refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalidations_above_the_rate_limit_are_pulled() {
    let mut limits = groupcache_core::Limits::default();
    limits.max_invalidations_per_second = 50;
    let (cluster, loads) = (Cluster::start_with(2, limits).await, Loads::default());
    let group = |node: &Node| node.group::<String>("data").capacity_bytes(4 << 20).loader_with(loads.clone(), numbered);
    let groups = cluster.group(|_, node| group(node)).await;
    let mine: Vec<_> = keys(400).into_iter().filter(|key| cluster.owner(&groups, key) == 1).collect();
    for key in &mine {
        get(&groups[1], key).await;
    }
    settle(&groups[0].remove_many(&mine).await.unwrap()).await;
    assert_eq!(groups[1].inspect().entries(), 0);
    assert!(cluster.nodes[1].stats().pulled_writes > 0, "the peer accepts only a part of the removes at first");
    cluster.shutdown().await;
}

/// Checks that keys of the chunks that have not begun at the deadline (all but the first 1,000) time out without a
/// request or a load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_many_requests_no_keys_after_its_deadline() {
    let (cluster, gate) = (Cluster::start(2).await, Gate::default());
    let group = |node: &Node| node.group::<String>("data").capacity_bytes(4 << 20).loader_with(gate.clone(), gated);
    let groups = cluster.group(|_, node| group(node)).await;
    let quick = groups[0].with_deadline(Duration::from_millis(300));
    let values = timeout(PATIENCE, quick.get_many(keys(5000))).await.expect("in time");
    assert_eq!(values.len(), 5000);
    assert!(values.iter().all(|value| value.as_ref().is_err_and(|e| e.is_timeout())));
    let (stats, loads) = (groups[0].stats(), gate.loads.total());
    assert!(stats.fetches <= 1000 && loads <= 1000, "{} fetches, {loads} loads", stats.fetches);
    gate.open();
    cluster.shutdown().await;
}

/// Checks that `get_many`, `remove_many` and `peek` work with a deadline of `Duration::MAX`.
#[tokio::test]
async fn calls_of_many_keys_accept_an_infinite_deadline() {
    let (cluster, groups, _) = cluster_of(1).await;
    let patient = groups[0].with_deadline(Duration::MAX);
    let values = timeout(PATIENCE, patient.get_many(keys(3))).await.expect("in time");
    assert!(values.iter().all(Result::is_ok));
    assert!(timeout(PATIENCE, patient.remove_many(keys(3))).await.expect("in time").unwrap().is_complete());
    assert_eq!(timeout(PATIENCE, patient.peek("key-0")).await.expect("in time").unwrap(), None);
    cluster.shutdown().await;
}
