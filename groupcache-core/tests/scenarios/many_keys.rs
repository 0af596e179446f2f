//! Writes of many keys at once, looking without loading, and peers that catch up on what they have missed.

use std::time::Duration;

use crate::support::{self, Cluster, Gate, Loads, PATIENCE, Proxy, eventually, gated};
use groupcache_core::{BoxError, Group, Limits, Node};
use tokio::time::timeout;

/// The number of the load of this key.
async fn numbered(loads: &Loads, key: &str) -> Result<String, BoxError> {
    loads.begin(key);
    Ok(loads.of(key).to_string())
}

async fn cluster_of(n: usize) -> (Cluster, Vec<Group<String>>, Loads) {
    // Exchanges are counted: none that looks for what former owners may have.
    let cluster = Cluster::start_each(n, |_, builder| builder.hand_over(false)).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clear_drops_everything_everywhere_and_what_is_loaded_meanwhile_is_not_kept() {
    let (cluster, groups, loads) = cluster_of(3).await;
    for key in keys(300) {
        get(&groups[0], &key).await;
    }
    assert_eq!(groups.iter().map(Group::entries).sum::<usize>(), 300);
    let told = groups[1].clear().await.unwrap();
    assert!(told.is_complete(), "{told:?}");
    assert_eq!(groups.iter().map(Group::entries).sum::<usize>(), 0);
    for key in keys(300) {
        assert_eq!(get(&groups[2], &key).await, "2");
    }
    assert_eq!(loads.total(), 600);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_a_clear_has_passed_is_for_those_who_waited_and_nobody_else() {
    let (cluster, gate) = (Cluster::start(2).await, Gate::default());
    let group = |node: &Node| node.group::<String>("data").capacity_bytes(4 << 20).loader_with(gate.clone(), gated);
    let groups = cluster.group(|_, node| group(node)).await;
    let key = cluster.key_of(&groups, 0);
    let ask = || {
        let (group, key) = (groups[1].clone(), key.clone());
        tokio::spawn(async move { get(&group, &key).await })
    };
    let before = ask();
    gate.begun(1).await;
    assert!(groups[0].clear().await.unwrap().is_complete());
    let after = ask();
    gate.begun(2).await;
    gate.open();
    assert_eq!(before.await.unwrap(), format!("{key} by load 1"));
    assert_eq!(after.await.unwrap(), format!("{key} by load 2"));
    assert_eq!(get(&groups[0], &key).await, format!("{key} by load 2"));
    cluster.shutdown().await;
}

// On one thread, so that how many removes share a frame is not up to how busy the machine is.
#[tokio::test]
async fn many_keys_are_removed_side_by_side_and_a_bad_one_spoils_nothing() {
    let (cluster, groups, _) = cluster_of(3).await;
    for key in keys(1000) {
        get(&groups[0], &key).await;
    }
    let refused = groups[0].remove_many(["key-0", ""]).await.expect_err("a bad key");
    assert!(refused.is_bad_key());
    assert_eq!(get(&groups[0], "key-0").await, "1", "nothing was begun");
    let frames: u64 = cluster.nodes[0].stats().frames_sent;
    let told = groups[0].remove_many(keys(1000)).await.unwrap();
    assert!(told.is_complete());
    let frames = cluster.nodes[0].stats().frames_sent - frames;
    assert!(frames < 400, "{frames} frames for 2,000 removes");
    assert_eq!(groups.iter().map(Group::entries).sum::<usize>(), 0);
    assert!(groups[0].remove_many(Vec::<String>::new()).await.unwrap().is_complete());
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lazy_remove_is_one_message_and_leaves_copies_to_their_end() {
    let (cluster, groups, _) = cluster_of(3).await;
    let key = cluster.key_of(&groups, 0);
    for group in &groups[1..] {
        eventually("there is a copy", || true).await;
        while group.borrowed_entries() == 0 {
            get(group, &key).await;
        }
    }
    let sent: u64 = cluster.nodes[1].stats().requests_sent;
    groups[1].remove_lazy(&key).await.unwrap();
    assert_eq!(cluster.nodes[1].stats().requests_sent, sent + 1);
    assert_eq!(get(&groups[1], &key).await, "2");
    assert_eq!(get(&groups[0], &key).await, "2");
    assert_eq!(get(&groups[2], &key).await, "1", "its copy ends by itself");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looking_loads_nothing() {
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
    assert_eq!((loads.total(), groups[1].entries()), (1, 0), "nothing is kept either");
    assert!(groups[0].peek("").await.expect_err("bad").is_bad_key());
    cluster.nodes[0].shutdown().await.unwrap();
    assert!(groups[0].peek(&key).await.expect_err("closed").is_closed());
    assert_eq!(groups[1].peek(&key).await.unwrap(), None, "an owner that is gone has nothing");
}

/// What `a` says to `b` goes through a path that can be stopped.
async fn with_a_path() -> (Cluster, Vec<Group<String>>, Loads, Proxy) {
    let ((cluster, path), loads) = (Cluster::start_with_proxy().await, Loads::default());
    let group = |node: &Node| {
        let group = node.group::<String>("data").capacity_bytes(64 << 20).loader_with(loads.clone(), numbered);
        group.borrowed_time_to_live(Duration::from_secs(3600))
    };
    let groups = cluster.group(|_, node| group(node)).await;
    (cluster, groups, loads, path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_connected_again_hears_what_it_has_missed() {
    let (cluster, groups, _, path) = with_a_path().await;
    let mine: Vec<_> = keys(200).into_iter().filter(|key| cluster.owner(&groups, key) == 1).collect();
    for key in &mine {
        get(&groups[1], key).await;
    }
    path.stop();
    let (removed, untouched) = mine.split_at(mine.len() / 2);
    let told = groups[0].remove_many(removed).await.unwrap();
    assert_eq!(told.unreached().len(), 1, "b did not hear of it");
    assert_eq!(groups[1].entries(), mine.len());
    path.cut();
    path.resume();
    eventually("b hears what it has missed", || groups[1].entries() == untouched.len()).await;
    for key in removed {
        assert_eq!(get(&groups[1], key).await, "2");
    }
    for key in untouched {
        assert_eq!(get(&groups[1], key).await, "1");
    }
}

/// With nodes of its own: once the path was cut, `a` may have found `b` at the address that its Hello has told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_connected_again_hears_of_a_clear_that_it_has_missed() {
    let (cluster, groups, _, path) = with_a_path().await;
    let mine: Vec<_> = keys(200).into_iter().filter(|key| cluster.owner(&groups, key) == 1).collect();
    for key in &mine {
        get(&groups[1], key).await;
    }
    path.stop();
    let told = groups[0].clear().await.unwrap();
    assert_eq!(told.unreached().len(), 1, "b did not hear of it");
    assert_eq!(groups[1].entries(), mine.len());
    path.cut();
    path.resume();
    eventually("b hears of the clear", || groups[1].entries() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_keys_of_five_nodes_are_four_exchanges_in_order() {
    let (cluster, groups, loads) = cluster_of(5).await;
    let keys = keys(1000);
    let before = cluster.nodes[0].stats();
    let values = timeout(PATIENCE, groups[0].get_many(&keys)).await.expect("in time");
    let after = cluster.nodes[0].stats();
    assert!(values.iter().all(|value| value.as_deref().is_ok_and(|value| value == "1")));
    assert_eq!((values.len(), loads.total()), (1000, 1000), "each loaded once");
    assert_eq!(after.frames_sent - before.frames_sent, 4, "one to each of the others");
    let owned = keys.iter().filter(|key| cluster.owner(&groups, key) != 0).count() as u64;
    assert_eq!(after.requests_sent - before.requests_sent, owned);

    let again = timeout(PATIENCE, groups[1].get_many(&keys)).await.expect("in time");
    assert!(again.iter().all(Result::is_ok));
    assert_eq!(loads.total(), 1000);
    assert!(groups[0].get_many(Vec::<String>::new()).await.is_empty());
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_for_which_there_is_no_room_at_their_owner_are_told_so_and_the_rest_is_answered() {
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
    assert_eq!(loads.total(), 4, "none in its place");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_an_owner_that_is_known_to_be_gone_are_loaded_here_without_an_exchange() {
    let (cluster, groups, loads, path) = with_a_path().await;
    let theirs: Vec<_> = keys(40).into_iter().filter(|key| cluster.owner(&groups, key) == 1).collect();
    path.stop();
    get(&groups[0], &theirs[0]).await; // it is noticed by who waits
    eventually("its absence is noticed", || cluster.nodes[0].members().iter().any(|m| !m.is_reachable)).await;
    let before = cluster.nodes[0].stats().requests_sent;
    let values = timeout(PATIENCE, groups[0].get_many(&theirs)).await.expect("in time");
    assert!(values.iter().all(Result::is_ok), "{values:?}");
    assert_eq!((loads.total(), cluster.nodes[0].stats().requests_sent), (theirs.len() as u64, before));
    path.resume();
    cluster.shutdown().await;
}

/// What a key begins with decides what its loader does.
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_that_fails_or_is_late_does_not_spoil_the_rest() {
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
    assert_eq!(values[6].as_deref().unwrap(), "value of good-1", "a key may come twice");
    assert_eq!(gate.loads.of("good-1"), 1);
    gate.open();
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_get_and_a_get_of_many_share_a_load() {
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
    assert!(timeout(Duration::from_millis(50), dropped).await.is_err(), "given up");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_keys_than_may_wait_at_once_are_asked_for_in_turn() {
    let (cluster, groups, loads) = cluster_of(2).await;
    let values = timeout(PATIENCE, groups[0].get_many(keys(10_000))).await.expect("in time");
    assert!(values.iter().all(Result::is_ok));
    assert_eq!((values.len(), loads.total()), (10_000, 10_000));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_discovery_forgot_hears_what_was_written_meanwhile() {
    let (cluster, groups, loads) = cluster_of(3).await;
    let [a, b, c] = [0, 1, 2].map(|at| support::peer(&cluster.nodes[at]));
    let mine: Vec<_> = keys(100).into_iter().filter(|key| cluster.owner(&groups, key) == 1).collect();
    for key in &mine {
        get(&groups[1], key).await;
    }
    // Only the others lose it: it is well, and sees everybody.
    cluster.peers.set(vec![a.clone(), c.clone()]);
    eventually("the others are without b", || {
        cluster.nodes[0].members().len() == 2 && cluster.nodes[2].members().len() == 2
    })
    .await;
    for key in &mine {
        assert!(groups[0].remove(key).await.unwrap().is_complete(), "nobody of the view has it");
    }
    assert_eq!(groups[1].entries(), mine.len());
    cluster.peers.set(vec![a, b, c]);
    cluster.agree().await;
    eventually("b has heard of it", || groups[1].entries() == 0).await;
    assert_eq!(get(&groups[1], &mine[0]).await, "2");
    drop(loads);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_a_peer_had_no_room_for_is_told_again() {
    let mut limits = groupcache_core::Limits::default();
    limits.max_invalidations_per_second = 50;
    let (cluster, loads) = (Cluster::start_with(2, limits).await, Loads::default());
    let group = |node: &Node| node.group::<String>("data").capacity_bytes(4 << 20).loader_with(loads.clone(), numbered);
    let groups = cluster.group(|_, node| group(node)).await;
    let mine: Vec<_> = keys(400).into_iter().filter(|key| cluster.owner(&groups, key) == 1).collect();
    for key in &mine {
        get(&groups[1], key).await;
    }
    let told = groups[0].remove_many(&mine).await.unwrap();
    assert!(!told.is_complete() && groups[1].entries() > 0, "more than it takes in a second");
    eventually("it hears of all in the end", || groups[1].entries() == 0).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_whose_turn_does_not_come_in_time_are_not_asked_for() {
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

#[tokio::test]
async fn a_deadline_without_end_is_one_for_many_keys_too() {
    let (cluster, groups, _) = cluster_of(1).await;
    let patient = groups[0].with_deadline(Duration::MAX);
    let values = timeout(PATIENCE, patient.get_many(keys(3))).await.expect("in time");
    assert!(values.iter().all(Result::is_ok));
    assert!(timeout(PATIENCE, patient.remove_many(keys(3))).await.expect("in time").unwrap().is_complete());
    assert_eq!(timeout(PATIENCE, patient.peek("key-0")).await.expect("in time").unwrap(), None);
    cluster.shutdown().await;
}
