//! What Prometheus reads: requests of clients and of the upstream, the cache, the process.
use std::{fmt, fs, sync::OnceLock, time::Duration};

use axum::http::StatusCode;
use groupcache_discovery::{Group, GroupStats, Json, Node, Prost};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::Registry,
};

use crate::{documents::Document, views::Ranking};

/// Ends of buckets, in seconds: from a hit in memory to an upstream that takes its time.
const BUCKETS: [f64; 10] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0, 15.0];

type Seconds = Family<Endpoint, Histogram, fn() -> Histogram>;

pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    seconds: Seconds,
    upstream: Family<Outcome, Counter>,
    remaining: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    endpoint: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Endpoint {
    endpoint: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    status: String,
}

impl Metrics {
    pub(crate) fn new(cache: Cache) -> Self {
        let (mut registry, requests, upstream) = (Registry::default(), Family::default(), Family::default());
        let (seconds, remaining) = (Seconds::new_with_constructor(|| Histogram::new(BUCKETS)), Gauge::default());
        registry.register("http_requests", "Requests of clients by endpoint and status", Family::clone(&requests));
        registry.register("http_request_seconds", "How long they took", seconds.clone());
        registry.register("upstream_requests", "Requests of the upstream by status", Family::clone(&upstream));
        registry.register("upstream_rate_limit_remaining", "What is left, as said last", remaining.clone());
        registry.register_collector(Box::new(cache));
        registry.register_collector(Box::new(Process));
        Self { registry, requests, seconds, upstream, remaining }
    }

    pub(crate) fn request(&self, endpoint: String, status: StatusCode, took: Duration) {
        self.requests.get_or_create(&Request { endpoint: endpoint.clone(), status: status.as_u16() }).inc();
        self.seconds.get_or_create(&Endpoint { endpoint }).observe(took.as_secs_f64());
    }

    /// A request of the upstream has begun.
    pub(crate) fn upstream(&self) -> Asked<'_> {
        Asked { metrics: self, status: None }
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}

/// Counts a request of the upstream when it has ended, or was given up.
pub(crate) struct Asked<'a> {
    metrics: &'a Metrics,
    status: Option<StatusCode>,
}

impl Asked<'_> {
    pub(crate) fn ends(mut self, status: StatusCode, remaining: Option<u64>) {
        self.status = Some(status);
        if let Some(remaining) = remaining.and_then(|number| number.try_into().ok()) {
            self.metrics.remaining.set(remaining);
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let status = self.status.map_or("none".to_owned(), |status| status.as_u16().to_string());
        self.metrics.upstream.get_or_create(&Outcome { status }).inc();
    }
}

/// The node and its groups, once they are there.
#[derive(Debug, Default)]
pub(crate) struct Cache(pub(crate) std::sync::Arc<OnceLock<Parts>>);

/// What is counted in them.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) node: Node,
    pub(crate) documents: Group<Prost<Document>>,
    pub(crate) views: Group<Json<Ranking>>,
}

impl Collector for Cache {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(Parts { node, documents, views }) = self.0.get() else { return Ok(()) };
        gauge(&mut encoder, "groupcache_members", "Nodes that this one knows, itself included", node.members().len())?;
        let bytes = usize::try_from(documents.bytes() + views.bytes()).unwrap_or(usize::MAX);
        gauge(&mut encoder, "groupcache_bytes", "Bytes that entries take", bytes)?;
        for (name, value) in node.stats().iter() {
            let counter = ConstCounter::new(value);
            let name = format!("groupcache_node_{name}");
            counter.encode(encoder.encode_descriptor(&name, "See NodeStats", None, MetricType::Counter)?)?;
        }
        let (documents, views) = (documents.stats(), views.stats());
        for ((name, of_documents), (_, of_views)) in GroupStats::iter(&documents).zip(views.iter()) {
            let name = format!("groupcache_{name}");
            let mut family = encoder.encode_descriptor(&name, "See GroupStats", None, MetricType::Counter)?;
            for (group, value) in [("documents", of_documents), ("views", of_views)] {
                ConstCounter::new(value).encode(family.encode_family(&[("group", group)])?)?;
            }
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: usize) -> fmt::Result {
    let gauge = ConstGauge::<i64>::new(i64::try_from(value).unwrap_or(i64::MAX));
    gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

/// What Linux says of this process; nothing elsewhere.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(pages) = number_in("/proc/self/statm", 1) {
            let bytes = usize::try_from(pages).unwrap_or(0) * rustix::param::page_size();
            gauge(&mut encoder, "process_resident_memory_bytes", "Memory in use", bytes)?;
        }
        // Behind the name of the program in brackets: user and system, in ticks of the clock.
        if let (Some(user), Some(system)) = (number_in("/proc/self/stat", 13), number_in("/proc/self/stat", 14)) {
            let ticks = rustix::param::clock_ticks_per_second().max(1);
            let counter = ConstCounter::new((user + system) as f64 / ticks as f64);
            let (name, help) = ("process_cpu_seconds", "Time that it has computed");
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        Ok(())
    }
}

/// A number of a file of `/proc`, by its place; the name of this program has no blank.
fn number_in(file: &str, place: usize) -> Option<u64> {
    fs::read_to_string(file).ok()?.split_ascii_whitespace().nth(place)?.parse().ok()
}
