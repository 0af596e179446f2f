//! Endpoint slices: reads the peers of one.

use std::sync::Arc;

use groupcache_core::PeerId;
use serde::Deserialize;

use super::{Content, Metadata, NamedPort, Object, Port, Record, addresses};

/// Assumed grace period in seconds. A slice does not contain the grace period of a pod, and few pods have a longer one.
const GRACE: u32 = 300;

#[derive(Deserialize)]
struct Slice {
    metadata: Metadata,
    #[serde(default)]
    endpoints: Option<Vec<Endpoint>>,
    #[serde(default)]
    ports: Option<Vec<NamedPort>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    #[serde(default)]
    addresses: Option<Vec<String>>,
    #[serde(default)]
    conditions: Option<Conditions>,
    #[serde(default)]
    target_ref: Option<Target>,
}

/// Conditions of an endpoint. `ready` and `serving` are not read, because they are health, not membership. With
/// `publishNotReadyAddresses` an endpoint is ready even while its pod terminates, so only `terminating` is reliable.
#[derive(Deserialize)]
struct Conditions {
    #[serde(default)]
    terminating: Option<bool>,
}

#[derive(Deserialize)]
struct Target {
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    uid: Option<String>,
}

/// Reads a slice with all of its endpoints.
pub(super) fn read(json: &str, port: &Port) -> Result<Object, serde_json::Error> {
    let Slice { metadata, endpoints, ports } = serde_json::from_str(json)?;
    let port = port.find(ports.iter().flatten());
    // The deletion timestamp of the slice is ignored, because other slices replace the slice, and the endpoints
    // continue to exist.
    let records = endpoints.into_iter().flatten().filter_map(|endpoint| record(endpoint, port)).collect();
    let version = metadata.resource_version.unwrap_or_default();
    Ok(Object { name: metadata.name.into(), version, content: Content::Read(records) })
}

/// Returns the peer of an endpoint, if the endpoint has a name or an address.
fn record(endpoint: Endpoint, port: Option<u16>) -> Option<Record> {
    let target = endpoint.target_ref.filter(|target| target.kind.as_deref().is_none_or(|kind| kind == "Pod"));
    let (name, uid) = target.map_or((None, None), |target| (target.name, target.uid));
    let id = name.and_then(|name| PeerId::new(name).ok());
    let addresses = addresses(endpoint.addresses.iter().flatten().map(String::as_str), port);
    let is_terminating = endpoint.conditions.and_then(|conditions| conditions.terminating) == Some(true);
    // An endpoint without a name and without an address can never become a peer.
    (id.is_some() || !addresses.is_empty()).then(|| Record {
        id,
        uid: uid.map(Arc::from),
        addresses,
        grace: is_terminating.then_some(GRACE),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn records(slice: Value) -> Vec<Record> {
        let object = read(&slice.to_string(), &Port::Named("group-port".into())).unwrap();
        match object.content {
            Content::Read(records) => records.into_vec(),
            Content::Garbage => panic!("garbage"),
        }
    }

    fn slice(endpoints: Value) -> Value {
        json!({
            "metadata": { "name": "users-abc", "resourceVersion": "7" },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 80 }, { "name": "group-port", "port": 7946, "protocol": "TCP" }],
            "endpoints": endpoints,
        })
    }

    /// Checks that an endpoint is the peer of its pod, whether or not the pod is ready, serving or terminating.
    #[test]
    fn endpoint_is_peer_regardless_of_health() {
        let found = records(slice(json!([
            { "addresses": ["10.0.0.7"], "zone": "a", "conditions": { "ready": true, "serving": true },
              "targetRef": { "kind": "Pod", "name": "users-0", "uid": "u0" } },
            { "addresses": ["10.0.0.8"], "conditions": { "ready": false, "serving": false },
              "targetRef": { "kind": "Pod", "name": "users-1", "uid": "u1" } },
            { "addresses": ["10.0.0.9"], "conditions": { "ready": true, "serving": true, "terminating": true },
              "targetRef": { "kind": "Pod", "name": "users-2", "uid": "u2" } },
            { "addresses": ["10.0.0.10"], "conditions": null },
            { "addresses": null }
        ])));
        let seen: Vec<_> = found
            .iter()
            .map(|r| (r.id.as_ref().map_or("", |id| id.as_str()), r.addresses[0].as_str(), r.grace))
            .collect();
        assert_eq!(
            seen,
            [
                ("users-0", "10.0.0.7:7946", None),
                ("users-1", "10.0.0.8:7946", None),
                ("users-2", "10.0.0.9:7946", Some(300)),
                ("", "10.0.0.10:7946", None)
            ]
        );
    }

    /// Checks that a slice without the port has peers without addresses, and a slice without pods has no peers.
    #[test]
    fn slice_without_port_or_endpoints_has_no_addresses() {
        let pod = json!([{ "addresses": ["10.0.0.7"], "targetRef": { "kind": "Pod", "name": "users-0" } }]);
        for ports in [json!(null), json!([]), json!([{ "name": "http", "port": 80 }]), json!([{ "port": 7946 }])] {
            let mut slice = slice(pod.clone());
            slice["ports"] = ports;
            assert!(matches!(&records(slice)[..], [one] if one.addresses.is_empty()));
        }
        assert_eq!(records(slice(json!(null))), []);
        assert_eq!(records(slice(json!([{ "addresses": [], "targetRef": { "kind": "Node", "name": "m1" } }]))), []);
    }
}
