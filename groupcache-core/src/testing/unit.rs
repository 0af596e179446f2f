//! Helpers of unit tests: the test clusters of the scenarios, and a Hello.

#[path = "../../tests/scenarios/support/mod.rs"]
pub(crate) mod support;

use crate::{
    identity::{Incarnation, NodeState, PeerId},
    membership::provider::Me,
    protocol::message::Hello,
};

/// Returns a Hello of a Ready node without groups, with default settings.
pub(crate) fn hello(id: &str) -> Hello {
    Hello {
        cluster: "default".into(),
        id: PeerId::new(id).expect("a good id"),
        expected: None,
        incarnation: Incarnation(1),
        state: NodeState::Ready,
        weight: 1,
        zone: "".into(),
        addresses: Vec::new(),
        ring_algorithm: crate::ring::ALGORITHM,
        fingerprint: 0,
        max_requests_per_frame: 1024,
        max_value_bytes: 1 << 20,
        groups: Vec::new(),
        features: 0,
        log_incarnation: Incarnation(0),
    }
}

/// Returns the node that a provider announces, with default settings.
pub(crate) fn me(id: &str) -> Me {
    let hello = hello(id);
    Me {
        id: hello.id,
        cluster: hello.cluster.as_str().into(),
        incarnation: hello.incarnation,
        state: hello.state,
        addresses: hello.addresses,
        weight: hello.weight,
        zone: hello.zone,
        tls: false,
    }
}
