//! Hostile objects: each is read or refused, and none causes a panic.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Kind, Port, name_and_version};
use crate::table::Table;

fn pod() -> Value {
    json!({
        "metadata": { "name": "users-0", "uid": "u", "resourceVersion": "7", "deletionTimestamp": "2026-01-01T00:00:00Z",
            "labels": { "topology.kubernetes.io/zone": "a" } },
        "spec": { "nodeName": "m", "containers": [{ "ports": [
            { "name": "group-port", "containerPort": 7946, "protocol": "TCP" } ] }], "initContainers": [{}] },
        "status": { "phase": "Running", "podIP": "10.0.0.7", "podIPs": [{ "ip": "10.0.0.7" }, { "ip": "fd00::7" }] },
    })
}

fn slice() -> Value {
    json!({
        "metadata": { "name": "users-abc", "resourceVersion": "7" }, "addressType": "IPv4",
        "ports": [{ "name": "group-port", "port": 7946, "protocol": "TCP" }],
        "endpoints": [{ "addresses": ["10.0.0.7"], "zone": "a", "targetRef": { "kind": "Pod", "name": "p", "uid": "u" },
            "conditions": { "ready": true, "serving": true, "terminating": false } }],
    })
}

/// Generates a small piece of JSON, including unusual numbers and texts.
fn piece() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop_oneof![Just(0_u64), Just(65_535), Just(65_536), Just(u64::MAX)].prop_map(Value::from),
        any::<f64>().prop_map(|n| json!(n)),
        ".{0,20}".prop_map(Value::from),
        prop_oneof![Just("::"), Just("0.0.0.0"), Just("fe80::1%eth0"), Just("1.2.3"), Just("a b"), Just("[::1]")]
            .prop_map(Value::from),
        Just("x".repeat(300)).prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([[[{}]]])),
        Just(json!([{ "name": "group-port", "containerPort": 1, "port": 2 }])),
    ]
}

/// Sets or removes the value at the `at`-th place of the tree. Returns whether there is such a place.
fn mutate(value: &mut Value, at: &mut usize, new: Option<&Value>) -> bool {
    match value {
        Value::Object(map) => {
            let keys: Vec<_> = map.keys().cloned().collect();
            for key in keys {
                if *at == 0 {
                    match new {
                        Some(new) => map.insert(key, new.clone()),
                        None => map.remove(&key),
                    };
                    return true;
                }
                *at -= 1;
                if map.get_mut(&key).is_some_and(|inner| mutate(inner, at, new)) {
                    return true;
                }
            }
            false
        }
        Value::Array(items) => items.iter_mut().any(|item| mutate(item, at, new)),
        _ => false,
    }
}

/// Reads the text as each kind of object, and checks the peers that result.
fn check(json: &str) {
    for kind in [Kind::Pods, Kind::Slices] {
        for port in [Port::Named("group-port".into()), Port::Number(7946)] {
            let Ok(object) = kind.read(json, &port) else { continue };
            assert_eq!(name_and_version(json).map(|(name, _)| name).as_ref(), Some(&object.name));
            let mut table = Table::new(1);
            table.put(0, object);
            let merged = table.merge();
            assert!(merged.peers.iter().all(|peer| !peer.addresses().is_empty() && peer.addresses().len() <= 8));
        }
    }
    let _ = name_and_version(json);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Checks objects in which 1 to 3 values are replaced or removed.
    #[test]
    fn mutated_object_does_not_panic(
        is_pod in any::<bool>(),
        changes in prop::collection::vec((0_usize..30, prop::option::weighted(0.8, piece())), 1..4),
    ) {
        let mut object = if is_pod { pod() } else { slice() };
        for (mut at, new) in changes {
            mutate(&mut object, &mut at, new.as_ref());
        }
        check(&object.to_string());
    }

    /// Checks objects that are cut and have one byte replaced.
    #[test]
    fn damaged_bytes_do_not_panic(
        is_pod in any::<bool>(),
        cut in 0_usize..600,
        at in 0_usize..600,
        byte in any::<u8>(),
    ) {
        let text = if is_pod { pod() } else { slice() }.to_string();
        let mut bytes = text.into_bytes();
        bytes.truncate(cut.max(1));
        let at = at % bytes.len();
        bytes[at] = byte;
        check(&String::from_utf8_lossy(&bytes));
    }
}
