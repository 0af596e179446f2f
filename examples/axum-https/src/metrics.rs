//! Metrics for Prometheus: requests of users, and the counters of the cache.
use axum::http::StatusCode;
use groupcache_discovery::Node;
use groupcache_metrics::NodeCollector;
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

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
    pub(crate) fn new(node: &Node) -> Self {
        let (mut registry, requests) = (Registry::default(), Family::default());
        registry.register("http_requests", "Requests of users by page and status", Family::clone(&requests));
        registry.register_collector(Box::new(NodeCollector::new(node)));
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
