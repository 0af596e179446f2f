//! Sets from the endpoint slices of a service. In virtual time.

use discovery_kubernetes::{SERVICE_LABEL, Service};
use groupcache_core::{conformance::Bench, discovery::Health};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

use crate::support::{
    NAMESPACE, eventually,
    fake::{Fake, Mode},
    show, wire,
};

const SLICES: &str = "endpointslices";

fn slice(name: &str, family: &str, endpoints: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": name, "namespace": NAMESPACE, "labels": { SERVICE_LABEL: "users" } },
        "addressType": family,
        "ports": [{ "name": "group-port", "port": 7946, "protocol": "TCP" }],
        "endpoints": endpoints,
    })
}

fn endpoint(pod: &str, ip: &str, terminating: bool) -> Value {
    json!({ "addresses": [ip], "zone": "eu-1a", "targetRef": { "kind": "Pod", "name": pod, "uid": pod },
            "conditions": { "ready": true, "serving": !terminating, "terminating": terminating } })
}

/// Waits until these peers are published in a complete set.
async fn until(bench: &mut Bench, expected: &[&str]) {
    eventually(&format!("{expected:?}"), async || {
        let mut all: Vec<_> = bench.peers().iter().map(show).collect();
        all.sort();
        bench.sets() > 0 && all == expected
    })
    .await;
}

/// Checks merged address families, a peer that moves between slices, a terminating peer, an endpoint without a pod, and
/// the Role in the health.
#[tokio::test(start_paused = true)]
async fn slices_merge_into_peers() {
    let fake = Fake::default();
    fake.put(
        SLICES,
        slice("v4-a", "IPv4", json!([endpoint("p0", "10.0.0.1", false), endpoint("p1", "10.0.0.2", false)])),
    );
    fake.put(SLICES, slice("v6-a", "IPv6", json!([endpoint("p0", "fd00::1", false)])));
    let mut other = slice("other", "IPv4", json!([endpoint("unlisted", "10.0.0.9", false)]));
    other["metadata"]["labels"][SERVICE_LABEL] = json!("orders");
    fake.put(SLICES, other);
    let service = Service::new(NAMESPACE, "users").client(wire::client(&fake));
    let mut bench = Bench::start(Arc::new(service.clone())).unwrap();
    until(&mut bench, &["p0@10.0.0.1+[fd00::1]", "p1@10.0.0.2"]).await;
    eventually("the watch is open", async || bench.health() == Some(Health::Connected)).await;
    let sets = bench.sets();
    // `p1` moves to another slice and back, first added and then removed, then the other way round.
    fake.put(SLICES, slice("v4-b", "IPv4", json!([endpoint("p1", "10.0.0.2", false)])));
    fake.put(SLICES, slice("v4-a", "IPv4", json!([endpoint("p0", "10.0.0.1", false)])));
    fake.put(SLICES, slice("v4-b", "IPv4", json!([])));
    fake.put(
        SLICES,
        slice("v4-a", "IPv4", json!([endpoint("p0", "10.0.0.1", false), endpoint("p1", "10.0.0.2", false)])),
    );
    eventually("the events are read", async || service.stats().events >= 4).await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(bench.sets(), sets, "the peers have not changed");
    // With `publishNotReadyAddresses` an endpoint is ready while its pod terminates.
    fake.put(
        SLICES,
        slice("v4-a", "IPv4", json!([endpoint("p0", "10.0.0.1", false), endpoint("p1", "10.0.0.2", true)])),
    );
    until(&mut bench, &["p0@10.0.0.1+[fd00::1]", "p1!@10.0.0.2"]).await;
    fake.put(SLICES, slice("v4-a", "IPv4", json!([endpoint("p0", "10.0.0.1", false)])));
    until(&mut bench, &["p0@10.0.0.1+[fd00::1]"]).await;
    fake.put(SLICES, slice("v4-b", "IPv4", json!([{ "addresses": ["10.0.0.77"] }])));
    until(&mut bench, &["@10.0.0.77", "p0@10.0.0.1+[fd00::1]"]).await;
    assert!(fake.count_requests("kubernetes.io%2Fservice-name%3Dusers") >= 2);
    fake.set(Mode::Refuses { verb: "", code: 403, body: None });
    eventually("the health has the Role for slices", async || {
        matches!(bench.health(), Some(Health::Stale(why)) if why.contains("endpointslices in the namespace prod")
            && why.contains("create role endpointslice-reader --verb=list,watch --resource=endpointslices.discovery.k8s.io "))
    })
    .await;
}
