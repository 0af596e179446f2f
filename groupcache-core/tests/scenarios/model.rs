//! Model test of the promises P1, P2, P3, P6 and P9 and of freshness, under 100,000 random operations.
//!
//! Random callers get, peek, write and wait, and the loader fails in every way. A history records all operations in one
//! order, and afterwards an oracle judges every load and every get by the events before it. A single node runs in
//! virtual time. Five nodes use real sockets, which virtual time cannot drive: a paused clock advances whenever all
//! tasks wait, and tasks wait for the network too.
//!
//! The tests read their seed from `MODEL_SEED`, and a failure prints the command that repeats it.

mod history;
mod judge;
mod play;

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use self::{
    history::{Log, Origin, Outcome},
    judge::{Rules, judge},
    play::{AtNode, Backend, Play, act},
};
use crate::support::{Cluster, eventually};
use groupcache_core::{GroupBuilder, Limits, Node, loader::LoadReason};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

/// Guard that prints the command to repeat a failed test.
struct Repeat(&'static str, u64);

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(test, seed) = self;
            eprintln!("repeat with: MODEL_SEED={seed} cargo test -p groupcache-core --test scenarios model::{test}");
        }
    }
}

/// Returns the seeds 1 to `n`, or the seed in `MODEL_SEED`.
fn seeds(n: u64) -> Vec<u64> {
    let asked = std::env::var("MODEL_SEED").ok().map(|seed| seed.parse().expect("MODEL_SEED is a number"));
    asked.map_or_else(|| (1..=n).collect(), |seed| vec![seed])
}

/// Returns a builder of the group of one node, with the ages of the backend's rules.
fn group(node: &Node, name: &str, at: usize, backend: &Arc<Backend>) -> GroupBuilder<String> {
    let rules = backend.rules;
    let mut group = node.group::<String>(name).capacity_bytes(backend.play.capacity).jitter(0.0);
    if let Some(time_to_live) = rules.time_to_live {
        group = group.time_to_live(time_to_live);
    }
    if let Some(negative) = rules.negative {
        group = group.negative_time_to_live(negative);
    }
    group
        .stale_while_revalidate(rules.stale_while_revalidate)
        .stale_if_error(rules.stale_if_error)
        .refresh_ahead(rules.refresh_ahead)
        .loader(AtNode(at, Arc::clone(backend)))
        .load_deadline(backend.play.load_deadline)
}

fn all_ended(log: &Log) -> bool {
    log.sources.iter().all(|source| source.end.is_some() || source.origin == Origin::Set)
}

fn loads(log: &Log, is: impl Fn(LoadReason) -> bool) -> usize {
    log.sources.iter().filter(|source| matches!(source.origin, Origin::Load(reason) if is(reason))).count()
}

/// Judges the history, prints its size, and panics if a promise is broken.
fn verdict(backend: &Backend, what: &str) {
    let log = backend.history.log();
    let seen = |is: fn(&Outcome) -> bool| log.gets.iter().filter(|get| is(&get.seen)).count();
    println!(
        "{what}: {} operations, {} loads ({} refreshes, {} fallbacks), {} writes ({} not complete), gets: {} values, \
         {} not found, {} failed, {} timed out",
        backend.play.operations,
        loads(&log, |_| true),
        loads(&log, |reason| reason == LoadReason::Refresh),
        loads(&log, |reason| reason == LoadReason::Fallback),
        log.writes.len(),
        backend.incomplete.load(SeqCst),
        seen(|seen| matches!(seen, Outcome::Value(_))),
        seen(|seen| *seen == Outcome::Nothing),
        seen(|seen| *seen == Outcome::Failed),
        seen(|seen| *seen == Outcome::TimedOut),
    );
    if let Err(broken) = judge(&log, &backend.rules) {
        drop(log);
        panic!("{broken}");
    }
}

/// Returns the rules of a seed. The seeds cover each kind of age alone and in combination.
fn rules_of(seed: u64) -> Rules {
    let when = |bit: u64, time: Duration| if seed >> bit & 1 == 1 { time } else { Duration::ZERO };
    Rules {
        time_to_live: (!seed.is_multiple_of(5)).then_some(2 * SECOND),
        negative: (!seed.is_multiple_of(3)).then_some(SECOND / 2),
        stale_while_revalidate: when(0, SECOND),
        stale_if_error: when(1, 4 * SECOND),
        refresh_ahead: when(2, SECOND / 2),
        is_roomy: seed % 4 != 3,
        do_views_agree: true,
        has_replicas: false,
        late: Duration::from_millis(20),
    }
}

/// Checks the promises on one node in virtual time, with ten seeds of 5,000 operations each.
#[tokio::test(start_paused = true)]
async fn fifty_thousand_operations_on_one_node_keep_every_promise() {
    const SEEDS: u64 = 10;
    for seed in seeds(SEEDS) {
        let _repeat = Repeat("fifty_thousand_operations_on_one_node", seed);
        let rules = rules_of(seed);
        let play = Play {
            operations: 5_008,
            callers: 16,
            keys: 24,
            writes: 120,
            clear_in: 40,
            pause: (5, 3 * SECOND),
            deadline: 5 * SECOND,
            gives_up: true,
            slow: SECOND / 5,
            hangs_in: 60,
            load_deadline: 2 * SECOND,
            largest: 6_000,
            capacity: if rules.is_roomy { 4 << 20 } else { 40 << 10 },
        };
        let backend = Backend::new(play, rules, seed);
        let mut limits = Limits::default();
        limits.max_value_bytes = 16 << 10;
        limits.get_deadline = play.deadline;
        let node = Node::builder().limits(limits).seed(seed).start().await.unwrap();
        let group = group(&node, "data", 0, &backend).build().unwrap();
        act(std::slice::from_ref(&group), &backend).await;

        // No load is left, and every key has a value.
        backend.is_calm.store(true, SeqCst);
        sleep(3 * SECOND).await;
        assert_eq!((crate::support::loads_of(&node), node.in_flight()), ((0, 0), 0));
        assert!(all_ended(&backend.history.log()), "no load runs");
        let begin = Instant::now();
        for n in 0..play.keys {
            group.get(&format!("key-{n}")).await.expect("a value");
        }
        assert!(begin.elapsed() <= play.slow * play.keys as u32);
        let stats = group.stats();
        assert_eq!((stats.evictions == 0, stats.overdue_loads), (backend.rules.is_roomy, 0));
        verdict(&backend, &format!("one node, seed {seed}"));
    }
}

/// Checks the promises on five nodes with three groups: one with room for all entries, one that evicts all the time,
/// and one for the time in which a node is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_thousand_operations_on_five_nodes_keep_every_promise() {
    for seed in seeds(1) {
        let _repeat = Repeat("fifty_thousand_operations_on_five_nodes", seed);
        let play = Play {
            operations: 36_000,
            callers: 8,
            keys: 96,
            writes: 30,
            clear_in: 200,
            pause: (1, Duration::from_millis(40)),
            deadline: 10 * SECOND,
            gives_up: false,
            slow: Duration::from_millis(4),
            hangs_in: 400,
            load_deadline: SECOND / 5,
            largest: 2_000,
            capacity: 16 << 20,
        };
        let rules = Rules {
            time_to_live: None,
            negative: Some(SECOND / 5),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            refresh_ahead: Duration::ZERO,
            is_roomy: true,
            do_views_agree: true,
            has_replicas: true,
            late: 2 * SECOND,
        };
        let roomy = Backend::new(play, rules, seed);
        let tight =
            Play { operations: 10_000, keys: 30, writes: 60, clear_in: 3, largest: 8_000, capacity: 24 << 10, ..play };
        let tight = Backend::new(tight, Rules { is_roomy: false, ..rules }, seed);
        let missing = Play { operations: 4_000, writes: 0, ..play };
        let missing =
            Backend::new(missing, Rules { time_to_live: Some(SECOND / 10), do_views_agree: false, ..rules }, seed);

        let mut limits = Limits::default();
        limits.max_value_bytes = 16 << 10;
        let mut cluster = Cluster::start_with(5, limits).await;
        let mut groups = Vec::new();
        for (name, backend) in [("roomy", &roomy), ("tight", &tight), ("missing", &missing)] {
            let built = cluster.group(|at, node| group(node, name, at, backend)).await;
            groups.push(built.iter().map(|group| group.with_deadline(play.deadline)).collect::<Vec<_>>());
        }

        let begin = Instant::now();
        act(&groups[0], &roomy).await;
        let borrowed: u64 = groups[0].iter().map(|group| group.stats().replica_hits).sum();
        verdict(&roomy, &format!("five nodes, {:?}, {borrowed} replica hits", begin.elapsed()));
        assert!(borrowed > 0, "replicas of hot values take part");
        act(&groups[1], &tight).await;
        verdict(&tight, &format!("five nodes without room, {:?}", begin.elapsed()));
        let evictions: u64 = groups[1].iter().map(|group| group.stats().evictions).sum();
        assert!(evictions > 0, "the group without room evicts");
        for backend in [&roomy, &tight] {
            let (log, incomplete) = (backend.history.log(), backend.incomplete.load(SeqCst));
            let fallbacks = loads(&log, |reason| reason == LoadReason::Fallback);
            assert!(incomplete * 20 <= log.writes.len(), "{incomplete} writes were not complete");
            assert!(fallbacks * 20 <= log.sources.len(), "{fallbacks} fallback loads");
        }

        // P2: one node ends without a goodbye, and each other node loads a missing key once at a time.
        let last = cluster.nodes.pop();
        let gone = tokio::spawn(async move {
            sleep(Duration::from_millis(200)).await;
            drop(last);
        });
        act(&groups[2][..4], &missing).await;
        gone.await.unwrap();
        verdict(&missing, &format!("four nodes of five, {:?}", begin.elapsed()));

        for backend in [&roomy, &tight, &missing] {
            eventually("no load runs", || all_ended(&backend.history.log())).await;
        }
        let at_rest = |node: &Node| (crate::support::loads_of(node), node.in_flight()) == ((0, 0), 0);
        eventually("no load or request is left", || cluster.nodes.iter().all(at_rest)).await;
        cluster.shutdown().await;
    }
}
