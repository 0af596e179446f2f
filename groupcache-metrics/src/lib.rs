//! Metrics of a groupcache node and its groups for Prometheus, as a collector for [`prometheus_client`].
//!
//! The collector reads the node when Prometheus scrapes, and adds nothing to a get. Every measurement of
//! [`Node::measure`] is exported under its name, with the suffixes that Prometheus expects: counters end with `_total`,
//! and times and sizes with `_seconds` and `_bytes`.
//!
//! ```
//! use groupcache_core::Node;
//! use groupcache_metrics::{NodeCollector, prometheus_client::{encoding::text, registry::Registry}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Node::builder().start().await?;
//! let mut registry = Registry::default(); // with the metrics of your own service
//! registry.register_collector(Box::new(NodeCollector::new(&node)));
//!
//! let mut answer = String::new(); // of GET /metrics, with the content type of OpenMetrics
//! text::encode(&mut answer, &registry)?;
//! assert!(answer.contains("groupcache_members{state=\"ready\"} 1\n"));
//! # drop(registry);
//! # node.shutdown().await?;
//! # Ok(()) }
//! ```
//!
//! Labels are `group`, `kind`, `reason`, `state`, `provider`, and the names of the node in `groupcache_node_info`. Keys and
//! peers are never labels. A node has 59 series, and each group 111, of which 62 are those of three histograms.

use std::fmt;

use groupcache_core::{
    Node,
    stats::{Distribution, Family, Kind, Labels, Reading, Unit},
};
pub use prometheus_client;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry,
};

/// Collector of everything that a node measures.
///
/// The collector is a handle to the node, which runs until it is shut down or its last handle is dropped. A collector in
/// a [sub-registry](registry::Registry::sub_registry_with_label) gives all metrics a further label.
#[derive(Clone, Debug)]
pub struct NodeCollector {
    node: Node,
    has_histograms: bool,
}

impl NodeCollector {
    /// Creates the collector of a node and of its groups, also of those that are built later.
    pub fn new(node: &Node) -> Self {
        Self { node: node.clone(), has_histograms: true }
    }

    /// Sets whether histograms are exported: latencies of loads and of peers, and ages at eviction. They are 62 series of
    /// each group. Default: true.
    ///
    /// ```
    /// # fn f(node: &groupcache_core::Node) {
    /// let collector = groupcache_metrics::NodeCollector::new(node).histograms(false); // for hundreds of groups
    /// # }
    /// ```
    #[must_use]
    pub fn histograms(mut self, exported: bool) -> Self {
        self.has_histograms = exported;
        self
    }
}

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let families = self.node.measure();
        let is_wanted = |family: &&Family| self.has_histograms || family.kind != Kind::Histogram;
        families.iter().filter(is_wanted).try_for_each(|family| encode_family(&mut encoder, family))
    }
}

/// Encodes the measurements of a family. A family without measurements has no lines.
fn encode_family(encoder: &mut DescriptorEncoder<'_>, family: &Family) -> fmt::Result {
    if family.samples.is_empty() {
        return Ok(());
    }
    let kind = match family.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Histogram => MetricType::Histogram,
        _ => MetricType::Gauge,
    };
    let unit = match family.unit {
        Unit::Seconds => Some(registry::Unit::Seconds),
        Unit::Bytes => Some(registry::Unit::Bytes),
        other => other.suffix().map(|suffix| registry::Unit::Other(suffix.to_owned())),
    };
    let mut metrics = encoder.encode_descriptor(&family.name, family.help, unit.as_ref(), kind)?;
    for sample in &family.samples {
        let labels = labels(&sample.labels);
        encode_reading(metrics.encode_family(&labels)?, family.kind, &sample.reading)?;
    }
    Ok(())
}

fn encode_reading(mut metric: MetricEncoder<'_>, kind: Kind, reading: &Reading) -> fmt::Result {
    match (kind, reading) {
        (Kind::Counter, Reading::Whole(count)) => metric.encode_counter::<NoLabelSet, u64, f64>(count, None),
        (Kind::Counter, Reading::Real(amount)) => metric.encode_counter::<NoLabelSet, f64, f64>(amount, None),
        (_, Reading::Whole(number)) => metric.encode_gauge(number),
        (_, Reading::Real(number)) => metric.encode_gauge(number),
        (_, Reading::Distribution(durations)) => encode_distribution(metric, durations),
        // A later version of the core may have further readings.
        _ => Ok(()),
    }
}

fn encode_distribution(mut metric: MetricEncoder<'_>, durations: &Distribution) -> fmt::Result {
    let mut buckets: Vec<_> = durations.buckets.iter().map(|(end, count)| (end.as_secs_f64(), *count)).collect();
    let below: u64 = durations.buckets.iter().map(|(_, count)| count).sum();
    buckets.push((f64::INFINITY, durations.count.saturating_sub(below)));
    metric.encode_histogram::<NoLabelSet>(durations.sum.as_secs_f64(), durations.count, &buckets, None)
}

/// Returns the labels as the encoder takes them, which escapes their values.
fn labels(labels: &Labels) -> Vec<(&'static str, &str)> {
    labels.iter().map(|(name, value)| (*name, &**value)).collect()
}
