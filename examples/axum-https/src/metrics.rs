//! Metrics for Prometheus: requests of users, and the counters of the cache.
use std::fmt;

use axum::http::StatusCode;
use groupcache_discovery::{Group, Json, Node};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
    },
    registry::Registry,
};

use crate::pages::Prime;

pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    page: String,
    status: u16,
}

impl Metrics {
    pub(crate) fn new(node: Node, primes: Group<Json<Prime>>) -> Self {
        let (mut registry, requests) = (Registry::default(), Family::default());
        registry.register("http_requests", "Requests of users by page and status", Family::clone(&requests));
        registry.register_collector(Box::new(Cache { node, primes }));
        Self { registry, requests }
    }

    pub(crate) fn count(&self, page: String, status: StatusCode) {
        self.requests.get_or_create(&Labels { page, status: status.as_u16() }).inc();
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}

/// Counters of the node and of its group, read at each request for the metrics.
#[derive(Debug)]
struct Cache {
    node: Node,
    primes: Group<Json<Prime>>,
}

impl Collector for Cache {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let members = self.node.members();
        let gauges = [
            ("groupcache_members", "Members in the view of this node, itself included", members.len() as u64),
            ("groupcache_entries", "Entries in memory", self.primes.inspect().entries() as u64),
            ("groupcache_bytes", "Bytes that the entries take", self.primes.inspect().bytes()),
            ("groupcache_capacity_bytes", "Bytes that the entries may take", self.primes.inspect().capacity_bytes()),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::<i64>::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let (node, group) = (self.node.stats(), self.primes.stats());
        let node = node.iter().map(|(name, n)| (format!("groupcache_node_{name}"), n));
        for (name, n) in node.chain(group.iter().map(|(name, n)| (format!("groupcache_{name}"), n))) {
            let counter = ConstCounter::new(n);
            let help = "See NodeStats or GroupStats";
            counter.encode(encoder.encode_descriptor(&name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
