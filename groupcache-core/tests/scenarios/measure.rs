//! Measurements of a node for exporters: complete, unique, of base units, and counters that never step back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use groupcache_core::{
    BoxError, GroupBuilder, Node,
    stats::{Family, Kind, Reading, Unit},
};

use crate::support::{Cluster, Gate, eventually, gated};

/// Name of a group that would break a label or a page without escapes.
const HOSTILE: &str = "a\"b\\c</script>\\";

fn strings(node: &Node, name: &str) -> GroupBuilder<String> {
    let load = async |key: &str| Ok::<_, BoxError>(format!("value of {key}"));
    node.group(name).capacity_bytes(1 << 20).loader(load)
}

/// Returns the measurements of whole and real numbers by family and labels.
fn numbers(families: &[Family]) -> BTreeMap<String, f64> {
    let of = |family: &Family| {
        let numbers = family.samples.iter().filter_map(|sample| {
            let number = match &sample.reading {
                Reading::Whole(number) => *number as f64,
                Reading::Real(number) => *number,
                _ => return None,
            };
            let labels: String = sample.labels.iter().map(|(name, value)| format!(" {name}={value}")).collect();
            Some((format!("{}{labels}", family.name), number))
        });
        numbers.collect::<Vec<_>>()
    };
    families.iter().flat_map(of).collect()
}

fn number(node: &Node, name: &str) -> f64 {
    let numbers = numbers(&node.measure());
    *numbers.get(name).unwrap_or_else(|| panic!("{name} is not measured: {numbers:#?}"))
}

/// Checks that each counter is measured once with its documentation, that labels tell samples apart, and that the name of
/// a group reaches the labels unchanged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn measurements_have_each_counter_once_with_help() {
    let cluster = Cluster::start(2).await;
    let users = cluster.group(|_, node| strings(node, "users")).await;
    let hostile = cluster.group(|_, node| strings(node, HOSTILE)).await;
    for at in 0..2 {
        let key = cluster.key_of(&users, at);
        users[0].get(&key).await.unwrap();
        users[0].get(&key).await.unwrap();
    }
    hostile[0].get("k").await.unwrap();
    let node = &cluster.nodes[0];
    let families = node.measure();
    let names: BTreeSet<_> = families.iter().map(|family| (&family.name, family.unit.suffix())).collect();
    assert_eq!(names.len(), families.len(), "a name appears twice");
    for family in &families {
        assert!(family.help.ends_with('.') && !family.help.starts_with(' '), "{}: {:?}", family.name, family.help);
        let labels: BTreeSet<_> = family.samples.iter().map(|sample| &sample.labels).collect();
        assert_eq!(labels.len(), family.samples.len(), "{}: two samples have equal labels", family.name);
        assert!(!family.name.ends_with("_ms") && !family.name.ends_with("_total"), "{}", family.name);
    }
    let measured = numbers(&families);
    for (group, stats) in [("users", users[0].stats()), (HOSTILE, hostile[0].stats())] {
        for (name, value) in stats.iter() {
            if let Some(reason) = name.strip_prefix("missed_") {
                let reason = format!("groupcache_miss_reasons group={group} reason={reason}");
                assert_eq!(measured[&reason], value as f64, "{name}");
                continue;
            }
            let name = name.strip_suffix("_bytes").unwrap_or(name);
            let family = families.iter().filter(|family| family.name == format!("groupcache_{name}")).count();
            let both = usize::from(matches!(name, "handover_sent" | "handover_received"));
            assert_eq!(family, 1 + both, "{name}");
            if both == 0 {
                assert_eq!(measured[&format!("groupcache_{name} group={group}")], value as f64, "{name}");
            }
        }
    }
    assert_eq!(measured["groupcache_gets group=users"], 4.0);
    let fetches = families.iter().find(|family| family.name == "groupcache_fetches").unwrap();
    assert_eq!(
        (fetches.help, fetches.kind, fetches.unit),
        (
            "Fetches that began for callers of this node. A fetch may send several requests.",
            Kind::Counter,
            Unit::Number
        )
    );
    cluster.shutdown().await;
}

/// Checks what the gauges say of two nodes that agree, and after one of them has left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gauges_show_agreement_shares_and_lost_peers() {
    let cluster = Cluster::start(2).await;
    let groups = cluster.group(|_, node| strings(node, "users")).await;
    groups[0].set("k", "v").await.unwrap().settled().await;
    let [a, b] = [0, 1].map(|at| numbers(&cluster.nodes[at].measure()));
    assert_eq!(a["groupcache_ring_hash"], b["groupcache_ring_hash"]);
    assert!((a["groupcache_ring_share"] + b["groupcache_ring_share"] - 1.0).abs() < 1e-9);
    assert_eq!(a["groupcache_members state=ready"], 2.0);
    assert_eq!(a["groupcache_members state=draining"], 0.0);
    assert_eq!((a["groupcache_peers_unreachable"], a["groupcache_pending_writes"]), (0.0, 0.0));
    assert_eq!(a["groupcache_discovery_healthy provider=test"], 1.0);
    assert_eq!(a["groupcache_node_info id=a cluster=default zone= version=0.2.0"], 1.0);
    let memory = |numbers: &BTreeMap<String, f64>| numbers["groupcache_memory group=users"];
    assert!(memory(&a) + memory(&b) > 0.0, "the value is at its owner");
    assert_eq!(a["groupcache_entries group=users kind=owned"], groups[0].inspect().entries() as f64);

    let node = &cluster.nodes[0];
    cluster.nodes[1].shutdown_within(Duration::ZERO).await.unwrap();
    // The list of the test still has the node that has left, so that its target stays.
    eventually("the peer is not connected", || number(node, "groupcache_peers_unreachable") == 1.0).await;
    node.shutdown().await.unwrap();
}

/// Checks that the oldest load, the running loads and the durations are those of the loader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_are_measured_while_they_run_and_after() {
    let (gate, node) = (Gate::default(), Node::builder().start().await.unwrap());
    let group = node.group::<String>("users").capacity_bytes(1 << 20).loader_with(gate.clone(), gated).build().unwrap();
    assert_eq!(number(&node, "groupcache_oldest_load group=users"), 0.0);
    let get = tokio::spawn(async move { group.get("k").await.unwrap() });
    gate.begun(1).await;
    assert_eq!(number(&node, "groupcache_loads_running"), 1.0);
    eventually("the load grows older", || number(&node, "groupcache_oldest_load group=users") > 0.05).await;
    gate.open();
    get.await.unwrap();
    eventually("no load runs", || number(&node, "groupcache_oldest_load group=users") == 0.0).await;
    let families = node.measure();
    let durations = families.iter().find(|family| family.name == "groupcache_load_duration").unwrap();
    let Reading::Distribution(loads) = &durations.samples[0].reading else { panic!("{durations:?}") };
    assert!(loads.count == 1 && loads.sum >= Duration::from_millis(50), "{loads:?}");
    let ends: Vec<_> = loads.buckets.iter().map(|(end, _)| end.as_micros()).collect();
    assert_eq!((ends.len(), ends[0], ends[20]), (21, 64, 1 << 26));
    assert_eq!(loads.buckets.iter().map(|(_, count)| count).sum::<u64>(), 1);
    node.shutdown().await.unwrap();
}

/// Checks that counters and buckets only grow from one walk to the next while gets, writes and evictions run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_under_load_never_step_back() {
    let cluster = Cluster::start(2).await;
    let groups = cluster.group(|_, node| strings(node, "users").capacity_bytes(64 << 10)).await;
    let work = groups.into_iter().map(|group| {
        tokio::spawn(async move {
            for n in 0..4_000 {
                let key = format!("key-{}", n * 7919 % 900);
                group.get(&key).await.unwrap();
                if n % 50 == 0 {
                    group.remove(&key).await.unwrap().log_pending();
                }
            }
        })
    });
    let work: Vec<_> = work.collect();
    let counters = |node: &Node| {
        let mut counters = BTreeMap::new();
        for family in node.measure().iter().filter(|family| family.kind != Kind::Gauge) {
            for sample in &family.samples {
                let name = format!("{} {:?} {:?}", family.name, family.unit, sample.labels);
                match &sample.reading {
                    Reading::Whole(count) => drop(counters.insert(name, *count as f64)),
                    Reading::Real(amount) => drop(counters.insert(name, *amount)),
                    Reading::Distribution(durations) => {
                        counters.insert(format!("{name} count"), durations.count as f64);
                        counters.insert(format!("{name} sum"), durations.sum.as_secs_f64());
                        for (end, count) in &durations.buckets {
                            counters.insert(format!("{name} {end:?}"), *count as f64);
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        counters
    };
    let mut before = counters(&cluster.nodes[0]);
    while work.iter().any(|work| !work.is_finished()) {
        let now = counters(&cluster.nodes[0]);
        for (name, value) in &before {
            assert!(now[name] >= *value, "{name} stepped from {value} to {}", now[name]);
        }
        before = now;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for work in work {
        work.await.unwrap();
    }
    assert!(number(&cluster.nodes[0], "groupcache_evictions group=users") > 0.0);
    cluster.shutdown().await;
}

/// Checks that each lookup without an answer has one reason: a key of another node, a new key, an evicted one, an
/// expired one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_miss_has_one_reason() {
    let time_to_live = Duration::from_secs(2);
    let cluster = Cluster::start(2).await;
    let build = |_: usize, node: &Node| strings(node, "users").time_to_live(time_to_live).jitter(0.0);
    let groups = cluster.group(build).await;
    let small = cluster.group(|_, node| strings(node, "small").capacity_bytes(8 << 10).replicas(false)).await;
    let key = cluster.key_of(&groups, 1);
    groups[0].get(&key).await.unwrap();
    let [a, b] = [0, 1].map(|at| groups[at].stats());
    assert_eq!((a.missed_remote, a.missed_absent, b.missed_absent, b.misses), (1, 0, 1, 0), "{a:?} {b:?}");
    tokio::time::sleep(time_to_live + Duration::from_millis(50)).await;
    groups[1].get(&key).await.unwrap();
    let b = groups[1].stats();
    // The sweep may have come first, after which nothing shows that there was an entry.
    assert_eq!((b.missed_expired + b.missed_absent, b.misses), (2, 1), "{b:?}");
    assert!(b.missed_expired == 1 || b.expired == 1, "{b:?}");

    let mine: Vec<_> =
        (0..).map(|n| format!("key-{n}")).filter(|key| cluster.owner(&small, key) == 0).take(60).collect();
    for key in mine.iter().chain(&mine) {
        small[0].get(key).await.unwrap();
    }
    let stats = small[0].stats();
    assert!(stats.missed_evicted > 0 && stats.missed_absent == 60, "{stats:?}");
    assert_eq!(stats.missed_absent + stats.missed_evicted, stats.misses, "{stats:?}");
    assert!(stats.evicted_unread > 0 && stats.evicted_unread <= stats.evictions, "{stats:?}");
    // A caller is woken before the evictions for its value are counted.
    eventually("each eviction has an age", || {
        let group = cluster.nodes[0].groups().into_iter().find(|group| &*group.name == "small").unwrap();
        group.eviction_ages.count() == group.stats.evictions
    })
    .await;
    cluster.shutdown().await;
}

/// Checks that an entry that was read since it was stored does not count as evicted unread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entry_that_was_read_is_not_evicted_unread() {
    let node = Node::builder().start().await.unwrap();
    let group = strings(&node, "small").capacity_bytes(8 << 10).replicas(false).build().unwrap();
    for n in 0..60 {
        let key = format!("key-{n}");
        group.get(&key).await.unwrap();
        group.get(&key).await.unwrap();
    }
    let stats = group.stats();
    assert!(stats.evictions > 10 && stats.evicted_unread == 0, "{stats:?}");
    node.shutdown().await.unwrap();
}
