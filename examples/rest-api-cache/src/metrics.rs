//! Metrics for Prometheus: requests of clients, requests to the upstream, the cache, and the process.
use std::{fmt, fs, sync::OnceLock, time::Duration};

use axum::http::StatusCode;
use groupcache_metrics::NodeCollector;
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

/// Upper bounds of the buckets, in seconds: from a hit in memory to a slow upstream.
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
        registry.register("http_request_seconds", "Time until the answer", seconds.clone());
        registry.register("upstream_requests", "Requests to the upstream by status", Family::clone(&upstream));
        registry.register(
            "upstream_rate_limit_remaining",
            "Requests left, as last reported by the upstream",
            remaining.clone(),
        );
        registry.register_collector(Box::new(cache));
        registry.register_collector(Box::new(Process));
        Self { registry, requests, seconds, upstream, remaining }
    }

    pub(crate) fn request(&self, endpoint: String, status: StatusCode, took: Duration) {
        self.requests.get_or_create(&Request { endpoint: endpoint.clone(), status: status.as_u16() }).inc();
        self.seconds.get_or_create(&Endpoint { endpoint }).observe(took.as_secs_f64());
    }

    /// Begins a request to the upstream, which the returned guard counts.
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

/// Guard of a request to the upstream. The drop of the guard counts the request, with status `none` without an answer.
pub(crate) struct Asked<'a> {
    metrics: &'a Metrics,
    status: Option<StatusCode>,
}

impl Asked<'_> {
    /// Records the status of the answer, and the rest of the rate limit if the upstream reports it.
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

/// Collector of the node and its groups, which is set once the node has started.
#[derive(Debug, Default)]
pub(crate) struct Cache(pub(crate) std::sync::Arc<OnceLock<NodeCollector>>);

impl Collector for Cache {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.get().map_or(Ok(()), |node| node.encode(encoder))
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: usize) -> fmt::Result {
    let gauge = ConstGauge::<i64>::new(i64::try_from(value).unwrap_or(i64::MAX));
    gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

/// Collector of memory and processor time of this process, from `/proc`. On other systems than Linux it has no metrics.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(pages) = number_in("/proc/self/statm", 1) {
            let bytes = usize::try_from(pages).unwrap_or(0) * rustix::param::page_size();
            gauge(&mut encoder, "process_resident_memory_bytes", "Memory in use", bytes)?;
        }
        // Fields 13 and 14, counted from 0, are the time in user mode and in the kernel, in clock ticks.
        if let (Some(user), Some(system)) = (number_in("/proc/self/stat", 13), number_in("/proc/self/stat", 14)) {
            let ticks = rustix::param::clock_ticks_per_second().max(1);
            let counter = ConstCounter::new((user + system) as f64 / ticks as f64);
            let (name, help) = ("process_cpu_seconds", "Processor time of this process");
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        Ok(())
    }
}

/// Reads a number from a file of `/proc`, by its place among the fields. Fields are separated by blanks, and the name
/// of this program, which is a field, contains none.
fn number_in(file: &str, place: usize) -> Option<u64> {
    fs::read_to_string(file).ok()?.split_ascii_whitespace().nth(place)?.parse().ok()
}
