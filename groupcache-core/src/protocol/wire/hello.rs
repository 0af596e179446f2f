//! Hello: reading and writing the first message of a connection, and checking one that was received.

use crate::protocol::wire::{VERSION, proto};
use crate::{
    identity::{Address, Incarnation, MAX_ADDRESSES, MAX_WEIGHT, NodeState, PeerId, check_name},
    limits::{FRAME_SLACK_BYTES, MAX_GROUPS, MAX_KEY_BYTES},
    protocol::message::{Bounds, GroupName, Hello},
};

/// Reason for which a Hello is refused; the text is sent to the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadHello(pub(crate) String);

pub(crate) fn write(hello: &Hello, max_in_flight: usize) -> proto::Hello {
    proto::Hello {
        min_version: VERSION,
        max_version: VERSION,
        features: hello.features,
        cluster: hello.cluster.clone(),
        id: hello.id.to_string(),
        expected_id: hello.expected.as_ref().map(ToString::to_string).unwrap_or_default(),
        incarnation: hello.incarnation.0,
        state: state_number(hello.state),
        weight: u32::from(hello.weight),
        zone: hello.zone.to_string(),
        addresses: hello.addresses.iter().map(ToString::to_string).collect(),
        ring_algorithm: hello.ring_algorithm,
        fingerprint: hello.fingerprint,
        limits: Some(proto::Limits {
            max_frame_bytes: hello.max_value_bytes.saturating_add(FRAME_SLACK_BYTES) as u64,
            max_requests_per_frame: hello.max_requests_per_frame as u32,
            max_value_bytes: hello.max_value_bytes as u64,
            max_key_bytes: MAX_KEY_BYTES as u32,
            max_in_flight: max_in_flight as u32,
        }),
        groups: hello
            .groups
            .iter()
            .map(|g| proto::Group {
                index: g.index,
                name: g.name.to_string(),
                format: g.format,
                longest_ms: g.bounds.longest_ms,
                max_staleness_ms: g.bounds.max_staleness_ms.unwrap_or(0),
            })
            .collect(),
        log_incarnation: hello.log_incarnation.0,
    }
}

pub(crate) fn read(hello: proto::Hello) -> Result<Hello, BadHello> {
    if hello.min_version > VERSION || hello.max_version < VERSION {
        return Err(BadHello(format!(
            "the peer speaks protocol versions {} to {} and this node {VERSION}; run releases that share a version",
            hello.min_version, hello.max_version
        )));
    }
    let bad = |e: crate::Error| BadHello(e.to_string());
    if !hello.zone.is_empty() {
        check_name("zone", &hello.zone).map_err(bad)?;
    }
    check_name("cluster name", &hello.cluster).map_err(bad)?;
    let limits = hello.limits.unwrap_or_default();
    Ok(Hello {
        id: PeerId::new(&hello.id).map_err(bad)?,
        expected: match hello.expected_id.as_str() {
            "" => None,
            id => Some(PeerId::new(id).map_err(bad)?),
        },
        cluster: hello.cluster,
        incarnation: Incarnation(hello.incarnation),
        // A state of a newer version is read as Joining, because this node cannot know whether it owns keys.
        state: read_state(hello.state).unwrap_or(NodeState::Joining),
        weight: u8::try_from(hello.weight).unwrap_or(u8::MAX).min(MAX_WEIGHT),
        zone: hello.zone.into(),
        addresses: hello.addresses.iter().take(MAX_ADDRESSES).filter_map(|a| Address::new(a).ok()).collect(),
        ring_algorithm: hello.ring_algorithm,
        fingerprint: hello.fingerprint,
        max_requests_per_frame: limits.max_requests_per_frame.max(1) as usize,
        // An absent limit means no limit.
        max_value_bytes: match limits.max_value_bytes {
            0 => usize::MAX,
            max => usize::try_from(max).unwrap_or(usize::MAX),
        },
        groups: hello
            .groups
            .into_iter()
            .take(MAX_GROUPS)
            .map(|g| GroupName {
                index: g.index,
                name: g.name.into(),
                format: g.format,
                bounds: Bounds {
                    longest_ms: g.longest_ms,
                    max_staleness_ms: Some(g.max_staleness_ms).filter(|bound_ms| *bound_ms > 0),
                },
            })
            .collect(),
        features: hello.features,
        log_incarnation: Incarnation(hello.log_incarnation),
    })
}

fn state_number(state: NodeState) -> u32 {
    match state {
        NodeState::Joining => 1,
        NodeState::Ready => 2,
        NodeState::Draining => 3,
    }
}

fn read_state(number: u32) -> Option<NodeState> {
    match number {
        1 => Some(NodeState::Joining),
        2 => Some(NodeState::Ready),
        3 => Some(NodeState::Draining),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello_of(change: impl FnOnce(&mut proto::Hello)) -> Result<Hello, BadHello> {
        let mut message = proto::Hello {
            min_version: 1,
            max_version: 3,
            cluster: "users".into(),
            id: "a".into(),
            state: 2,
            weight: 1,
            ..proto::Hello::default()
        };
        change(&mut message);
        read(message)
    }

    #[test]
    fn hello_of_newer_node_is_accepted() {
        let hello = hello_of(|h| {
            h.state = 9;
            h.weight = 70_000;
            h.features = u64::MAX;
            h.addresses = vec!["10.0.0.7:1".into(), "no address".into()];
        })
        .unwrap();
        assert_eq!((hello.state, hello.weight), (NodeState::Joining, MAX_WEIGHT));
        assert_eq!(hello.addresses.len(), 1);
    }

    #[test]
    fn unacceptable_hello_is_refused() {
        assert!(hello_of(|h| h.min_version = 2).unwrap_err().0.contains("versions 2 to 3"));
        assert!(hello_of(|h| h.id.clear()).is_err());
        assert!(hello_of(|h| h.zone = "a b".into()).is_err());
    }
}
