//! The text that Prometheus reads: each measurement once, fixed buckets, escaped labels, and documented names.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic at an unexpected outcome"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    process::{Command, Stdio},
};

use groupcache_core::{
    BoxError, Group, Node,
    stats::{GroupStats, NodeStats},
};
use groupcache_metrics::{
    NodeCollector,
    prometheus_client::{
        encoding::{prometheus_text, text},
        registry::Registry,
    },
};
use read_along as _;

/// Name of a group that would break a label without escapes.
const HOSTILE: &str = r#"a"b\c</script>{le="1"}\"#;

async fn node_with(names: &[&str]) -> (Node, Vec<Group<String>>) {
    let node = Node::builder().start().await.unwrap();
    let load = async |key: &str| Ok::<_, BoxError>(format!("value of {key}"));
    let group = |name: &&str| node.group(name).capacity_bytes(1 << 20).loader(load).build().unwrap();
    let groups = names.iter().map(group).collect();
    (node, groups)
}

fn openmetrics(collector: NodeCollector) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(collector));
    let mut written = String::new();
    text::encode(&mut written, &registry).unwrap();
    written
}

/// Returns the samples of a text: name with labels, and value.
fn samples(text: &str) -> Vec<(&str, f64)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').map(|(name, value)| (name, value.parse().unwrap())).unwrap()).collect()
}

fn families(text: &str) -> BTreeMap<&str, &str> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let families: Vec<_> = types.collect();
    let named: BTreeMap<_, _> = families.iter().copied().collect();
    assert_eq!(named.len(), families.len(), "a family appears twice");
    named
}

/// Checks that each sample appears once and belongs to the family before it, and that all buckets of two nodes have the same
/// ends, whatever they have counted.
#[tokio::test]
async fn text_has_each_sample_once_and_fixed_buckets() {
    let (node, groups) = node_with(&["users", "names"]).await;
    let (other, _) = node_with(&["users", "names"]).await;
    for _ in 0..3 {
        groups[0].get("12345").await.unwrap();
    }
    let [ours, theirs] = [&node, &other].map(|node| openmetrics(NodeCollector::new(node)));
    let (all, kinds) = (samples(&ours), families(&ours));
    assert_eq!(all.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len(), all.len(), "a sample appears twice");
    for (name, _) in &all {
        let name = name.split('{').next().unwrap();
        let of = |suffix| name.strip_suffix(suffix).and_then(|family| kinds.get(family).copied());
        let is_known = of("_total") == Some("counter")
            || ["_bucket", "_sum", "_count"].iter().any(|suffix| of(suffix) == Some("histogram"))
            || kinds.get(name) == Some(&"gauge");
        assert!(is_known, "{name} has no type: {kinds:?}");
    }
    let ends = |text: &str| -> BTreeSet<String> {
        samples(text).iter().filter(|(name, _)| name.contains("_bucket{")).map(|(name, _)| (*name).to_owned()).collect()
    };
    assert_eq!(ends(&ours), ends(&theirs));
    assert_eq!(ends(&ours).len(), 2 * (22 + 22 + 12));
    let all: BTreeMap<_, _> = all.into_iter().collect();
    let of_users = |name: &str| all[format!("groupcache_{name}{{group=\"users\"}}").as_str()];
    assert_eq!((of_users("gets_total"), of_users("hits_total"), of_users("loads_total")), (3.0, 2.0, 1.0));
    assert_eq!(all["groupcache_load_duration_seconds_bucket{le=\"+Inf\",group=\"users\"}"], 1.0);
    assert_eq!(of_users("load_duration_seconds_count"), 1.0);
    for node in [node, other] {
        node.shutdown().await.unwrap();
    }
}

/// Checks that a hostile name of a group is one escaped label in both formats, and adds no line.
#[tokio::test]
async fn hostile_group_name_is_one_escaped_label() {
    let (node, _) = node_with(&[HOSTILE]).await;
    let (plain, _) = node_with(&["plain"]).await;
    let escaped = r#"{group="a\"b\\c</script>{le=\"1\"}\\"}"#;
    let mut older = String::new();
    let mut registry = Registry::default();
    registry.register_collector(Box::new(NodeCollector::new(&node)));
    prometheus_text::encode(&mut older, &registry).unwrap();
    for text in [openmetrics(NodeCollector::new(&node)), older] {
        assert!(text.contains(&format!("\ngroupcache_gets_total{escaped} 0\n")), "{text}");
    }
    let lines = |node: &Node| openmetrics(NodeCollector::new(node)).lines().count();
    assert_eq!(lines(&node), lines(&plain));
    for node in [node, plain] {
        node.shutdown().await.unwrap();
    }
}

/// Checks that promtool finds no fault in names, units, types and help texts.
#[tokio::test]
async fn promtool_finds_no_fault() {
    let promtool =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut promtool) = promtool else { return segment::leave_out("needs promtool: make deps") };
    let (node, groups) = node_with(&["users", HOSTILE]).await;
    groups[0].get("12345").await.unwrap();
    let (mut text, mut registry) = (String::new(), Registry::default());
    registry.register_collector(Box::new(NodeCollector::new(&node)));
    prometheus_text::encode(&mut text, &registry).unwrap();
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    node.shutdown().await.unwrap();
}

/// Checks that no histogram is exported where they are turned off, and everything else is.
#[tokio::test]
async fn histograms_can_be_left_out() {
    let (node, _) = node_with(&["users"]).await;
    let [with, without] = [true, false].map(|shown| openmetrics(NodeCollector::new(&node).histograms(shown)));
    let left_out: Vec<_> =
        families(&with).into_iter().filter(|(name, _)| !families(&without).contains_key(name)).collect();
    assert!(left_out.len() == 3 && left_out.iter().all(|(_, kind)| *kind == "histogram"), "{left_out:?}");
    node.shutdown().await.unwrap();
}

/// Checks that the README names each family, or the type of its counter, and no other family.
#[tokio::test]
async fn readme_names_each_family_and_no_other() {
    let readme = include_str!("../README.md");
    let words = readme.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let named: BTreeSet<_> = words.filter(|word| word.starts_with("groupcache_") && !word.contains("NAME")).collect();
    let (node, _) = node_with(&["users"]).await;
    let text = openmetrics(NodeCollector::new(&node));
    let exported: BTreeSet<String> = families(&text)
        .into_iter()
        .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
        .collect();
    let counters = |prefix: &str, names: Vec<&str>| -> Vec<String> {
        let unit = |name: &str| name.strip_suffix("_ms").map_or(name.to_owned(), |name| format!("{name}_seconds"));
        names.into_iter().map(|name| format!("{prefix}{}_total", unit(name))).collect()
    };
    let mut generic = counters("groupcache_", GroupStats::default().iter().map(|(name, _)| name).collect());
    generic.extend(counters("groupcache_node_", NodeStats::default().iter().map(|(name, _)| name).collect()));
    generic.retain(|name| !name.starts_with("groupcache_missed_"));
    for name in &generic {
        assert!(exported.contains(name), "{name} is not exported");
    }
    let crates = ["groupcache_metrics"];
    for name in named.iter().filter(|name| !crates.contains(name)) {
        assert!(exported.contains(*name), "the README names {name}, which is not exported");
    }
    for name in exported.iter().filter(|name| !generic.contains(name)) {
        let is_of_discovery = name.starts_with("groupcache_discovery_") && name.ends_with("_total");
        assert!(named.contains(name.as_str()) || is_of_discovery, "{name} is not in the README");
    }
    node.shutdown().await.unwrap();
}
