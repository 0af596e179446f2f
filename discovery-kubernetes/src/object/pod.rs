//! Pods: reads one as at most one peer.

use std::sync::Arc;

use groupcache_core::PeerId;
use serde::Deserialize;

use super::{Content, Metadata, NamedPort, Object, Port, Record, addresses};

/// Default grace period of Kubernetes in seconds.
const GRACE: u32 = 30;

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    spec: Option<Spec>,
    #[serde(default)]
    status: Option<Status>,
}

// Go writes an empty list as null or leaves it out, so every list is optional.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    containers: Option<Vec<Container>>,
    /// Init containers. A sidecar, which continues to run beside the containers, may have the port.
    init_containers: Option<Vec<Container>>,
}

#[derive(Deserialize)]
struct Container {
    #[serde(default)]
    ports: Option<Vec<NamedPort>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Deserialize)]
struct PodIp {
    #[serde(default)]
    ip: Option<String>,
}

/// Reads a pod. A pod that has Failed or Succeeded has no peer.
pub(super) fn read(json: &str, port: &Port) -> Result<Object, serde_json::Error> {
    let Pod { metadata, spec, status } = serde_json::from_str(json)?;
    let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
    let name: Arc<str> = metadata.name.into();
    let version = metadata.resource_version.unwrap_or_default();
    // A pod in these phases has ended for good: Kubernetes starts another pod or none. Conditions are not read, because
    // readiness is health, not membership.
    let has_ended = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
    let Some(id) = PeerId::new(&name).ok().filter(|_| !has_ended) else {
        return Ok(Object { name, version, content: Content::Read(Box::default()) });
    };
    let containers = spec.containers.iter().chain(&spec.init_containers).flatten();
    let port = port.find(containers.filter_map(|container| container.ports.as_ref()).flatten());
    // `podIPs` has the addresses of all families and begins with `podIP`. Servers of one family may leave it out.
    let all = status.pod_ips.iter().flatten().filter_map(|one| one.ip.as_deref());
    let ips = status.pod_ip.as_deref().into_iter().chain(all).filter(|ip| !ip.is_empty());
    let record = Record {
        id: Some(id),
        uid: metadata.uid.map(Arc::from),
        addresses: addresses(ips, port),
        grace: metadata.deletion_timestamp.map(|_| metadata.deletion_grace_period_seconds.unwrap_or(GRACE)),
    };
    Ok(Object { name, version, content: Content::Read(Box::new([record])) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(change: impl FnOnce(&mut serde_json::Value)) -> Vec<Record> {
        let mut pod = json!({
            "metadata": { "name": "users-0", "uid": "u1", "resourceVersion": "7" },
            "spec": { "nodeName": "m1", "containers": [{ "ports": [
                { "name": "http", "containerPort": 80 },
                { "name": "group-port", "containerPort": 7946, "protocol": "TCP" } ] }] },
            "status": { "phase": "Running", "podIP": "10.0.0.7", "podIPs": [{ "ip": "10.0.0.7" }] },
        });
        change(&mut pod);
        let object = read(&pod.to_string(), &Port::Named("group-port".into())).unwrap();
        assert_eq!((&*object.name, object.version.as_str()), ("users-0", "7"));
        match object.content {
            Content::Read(records) => records.into_vec(),
            Content::Garbage => panic!("garbage"),
        }
    }

    fn addresses(change: impl FnOnce(&mut serde_json::Value)) -> Vec<String> {
        pod(change).iter().flat_map(|record| record.addresses.iter().map(ToString::to_string)).collect()
    }

    /// Checks that a pod is a peer at all of its IP addresses, at the container port with the name. A sidecar may have
    /// the port.
    #[test]
    fn pod_is_peer_at_its_addresses_and_named_port() {
        let [record] = &pod(|_| ())[..] else { panic!() };
        assert_eq!(record.id.as_ref().map(PeerId::as_str), Some("users-0"));
        assert_eq!(record.uid.as_deref(), Some("u1"));
        assert_eq!(addresses(|_| ()), ["10.0.0.7:7946"]);
        let both = addresses(|p| p["status"]["podIPs"] = json!([{ "ip": "10.0.0.7" }, { "ip": "fd00::7" }]));
        assert_eq!(both, ["10.0.0.7:7946", "[fd00::7]:7946"]);
        assert_eq!(addresses(|p| p["status"]["podIPs"] = json!(null)), ["10.0.0.7:7946"]);
        let sidecar = json!([{ "ports": [{ "name": "group-port", "containerPort": 1 }] }]);
        let moved = addresses(|p| {
            p["spec"]["containers"] = json!(null);
            p["spec"]["initContainers"] = sidecar;
        });
        assert_eq!(moved, ["10.0.0.7:1"]);
    }

    /// Checks that a pod without a usable address or without the port is known and has no address to dial.
    #[test]
    fn pod_without_address_or_port_has_no_addresses() {
        let waiting: [fn(&mut serde_json::Value); 7] = [
            |p| p["status"] = json!({ "phase": "Pending" }),
            |p| p["status"] = json!(null),
            |p| p["status"] = json!({ "podIP": "", "podIPs": [{}] }),
            |p| p["status"] = json!({ "podIP": "0.0.0.0" }),
            |p| p["spec"] = json!({}),
            |p| p["spec"]["containers"][0]["ports"][1]["protocol"] = json!("UDP"),
            |p| p["spec"]["containers"][0]["ports"][1]["containerPort"] = json!(0),
        ];
        for (n, change) in waiting.into_iter().enumerate() {
            let records = pod(change);
            assert!(matches!(&records[..], [one] if one.addresses.is_empty()), "{n}: {records:?}");
        }
    }

    /// Checks that a pod has no peer only after it has Failed or Succeeded, and that a deletion sets the grace period.
    #[test]
    fn only_ended_pod_has_no_peer() {
        for phase in ["Failed", "Succeeded"] {
            assert_eq!(pod(|p| p["status"]["phase"] = json!(phase)), []);
        }
        for phase in ["Pending", "Running", "Unknown", "Later"] {
            let [record] = &pod(|p| p["status"]["phase"] = json!(phase))[..] else { panic!("{phase}") };
            assert!(!record.is_terminating());
        }
        let grace = |at: serde_json::Value, seconds: serde_json::Value| {
            let [record] = &pod(|p| {
                p["metadata"]["deletionTimestamp"] = at;
                p["metadata"]["deletionGracePeriodSeconds"] = seconds;
            })[..] else {
                panic!()
            };
            record.grace
        };
        assert_eq!(grace(json!("2026-01-01T00:00:00Z"), json!(null)), Some(30));
        assert_eq!(grace(json!("2026-01-01T00:00:00Z"), json!(300)), Some(300));
        assert_eq!(grace(json!(null), json!(300)), None);
    }
}
