//! Announcements of nodes: their JSON encoding, which is versioned and small, and the checks when one is read.

use std::time::Duration;

use groupcache_core::{
    PeerId,
    discovery::{Address, Incarnation, Me, NodeState, Peer},
};
use serde::{Deserialize, Serialize};

/// Version that is written, and the only one that is read.
const VERSION: u32 = 1;
/// Maximum length of a message, in bytes.
pub(crate) const MAX_BYTES: usize = 1024;
/// Maximum number of addresses of one peer. Further addresses are left out.
const MAX_ADDRESSES: usize = 8;
/// Range of the time to live. A value outside of it is read as the nearer end.
const TTL: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(300);

/// Announcement of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Announcement {
    pub(crate) id: PeerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) addresses: Vec<Address>,
    pub(crate) state: NodeState,
    pub(crate) zone: String,
    pub(crate) weight: u8,
    /// Time for which the node counts as present after this message, unless another message arrives.
    pub(crate) ttl: Duration,
    /// Random name of the provider run that wrote the message, by which a node recognises its own messages.
    pub(crate) from: String,
}

/// Form on the wire. Unknown fields are ignored, and optional fields have a default.
#[derive(Serialize, Deserialize)]
struct Written {
    v: u32,
    id: String,
    inc: u64,
    addrs: Vec<String>,
    state: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    zone: String,
    #[serde(default = "one")]
    weight: u8,
    ttl_ms: u64,
    #[serde(default)]
    from: String,
}

fn one() -> u8 {
    1
}

impl Announcement {
    pub(crate) fn of(me: &Me, ttl: Duration, from: &str) -> Self {
        Self {
            id: me.id.clone(),
            incarnation: me.incarnation,
            addresses: me.addresses.iter().take(MAX_ADDRESSES).cloned().collect(),
            state: me.state,
            zone: me.zone.to_string(),
            weight: me.weight,
            ttl,
            from: from.to_owned(),
        }
    }

    /// Encodes the message. A message over [`MAX_BYTES`] loses its zone first, and then its last addresses.
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut written = Written {
            v: VERSION,
            id: self.id.to_string(),
            inc: self.incarnation.0,
            addrs: self.addresses.iter().map(Address::to_string).collect(),
            state: self.state.to_string(),
            zone: self.zone.clone(),
            weight: self.weight,
            ttl_ms: u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX),
            from: self.from.clone(),
        };
        loop {
            // Encoding fails only for a map with keys that are not strings, and `Written` has no map.
            let bytes = serde_json::to_vec(&written).unwrap_or_default();
            if bytes.len() <= MAX_BYTES {
                return bytes;
            }
            if !written.zone.is_empty() {
                written.zone.clear();
            } else if written.addrs.pop().is_none() {
                return bytes; // not reached: the rest is an id of at most 253 bytes and some numbers
            }
        }
    }

    /// Decodes a message from any sender. The error is the reason for which the message is ignored.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() > MAX_BYTES {
            return Err("the message is longer than 1 KiB");
        }
        // Serde reads a JSON array as the fields in their order, so anything but an object is refused here.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err("the message is not a JSON object with a version");
        }
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        let Version { v } =
            serde_json::from_slice(bytes).map_err(|_| "the message is not a JSON object with a version")?;
        if v != VERSION {
            return Err(
                "the message has another version; run releases that share a version on all nodes of the cluster",
            );
        }
        let written: Written =
            serde_json::from_slice(bytes).map_err(|_| "a field of the message is missing or has another type")?;
        let id = PeerId::new(&written.id).map_err(|_| "the message has an invalid peer id")?;
        let addresses = written.addrs.iter().take(MAX_ADDRESSES).filter_map(|a| Address::new(a).ok());
        let mut distinct: Vec<Address> = Vec::new();
        for address in addresses {
            if !distinct.contains(&address) {
                distinct.push(address);
            }
        }
        if distinct.is_empty() {
            return Err("the message has no valid address");
        }
        Ok(Self {
            id,
            incarnation: Incarnation(written.inc),
            addresses: distinct,
            state: match written.state.as_str() {
                "joining" => NodeState::Joining,
                "draining" => NodeState::Draining,
                // A state that a later release adds belongs to a node that is present. The Hello of the node carries
                // its state.
                _ => NodeState::Ready,
            },
            zone: written.zone,
            weight: written.weight,
            ttl: Duration::from_millis(written.ttl_ms).clamp(*TTL.start(), *TTL.end()),
            from: written.from,
        })
    }

    pub(crate) fn peer(&self) -> Peer {
        let peer = Peer::member(self.id.clone(), self.addresses.iter().cloned());
        peer.with_incarnation(self.incarnation).with_state(self.state)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn announcement() -> Announcement {
        Announcement {
            id: PeerId::new("users-0").unwrap(),
            incarnation: Incarnation(7),
            addresses: vec![Address::new("10.0.0.7:7946").unwrap(), Address::new("[fd00::7]:7946").unwrap()],
            state: NodeState::Draining,
            zone: "a".to_owned(),
            weight: 2,
            ttl: Duration::from_secs(8),
            from: "n0".to_owned(),
        }
    }

    #[test]
    fn encoded_announcement_decodes_to_itself() {
        let bytes = announcement().write();
        assert_eq!(
            String::from_utf8(bytes.clone()).unwrap(),
            r#"{"v":1,"id":"users-0","inc":7,"addrs":["10.0.0.7:7946","[fd00::7]:7946"],"state":"draining","zone":"a","weight":2,"ttl_ms":8000,"from":"n0"}"#,
        );
        assert_eq!(Announcement::read(&bytes).unwrap(), announcement());
    }

    /// Checks that a message of a later release, with more fields and another state, is read.
    #[test]
    fn unknown_fields_and_states_are_accepted() {
        let more =
            br#"{"v":1,"id":"a","inc":1,"addrs":["h:1"],"state":"asleep","ttl_ms":1,"mood":{"deep":[1]},"zone":"z"}"#;
        let read = Announcement::read(more).unwrap();
        assert_eq!((read.state, read.weight), (NodeState::Ready, 1));
        assert_eq!(read.ttl, Duration::from_millis(100), "a shorter time to live would end between two heartbeats");
    }

    #[test]
    fn garbage_is_refused_with_a_reason() {
        let bad: &[(&[u8], &str)] = &[
            (b"", "not a JSON object"),
            (b"hello", "not a JSON object"),
            (b"[1]", "not a JSON object"),
            (b"{}", "not a JSON object"),
            (br#"{"v":2,"id":"a"}"#, "another version"),
            (br#"{"v":1,"id":"a"}"#, "missing"),
            (br#"{"v":1,"id":"two words","inc":1,"addrs":["h:1"],"state":"ready","ttl_ms":1}"#, "peer id"),
            (br#"{"v":1,"id":"a","inc":-1,"addrs":["h:1"],"state":"ready","ttl_ms":1}"#, "type"),
            (br#"{"v":1,"id":"a","inc":1,"addrs":["h","x:0"],"state":"ready","ttl_ms":1}"#, "no valid address"),
            (br#"{"v":1,"id":"a","inc":1,"addrs":[],"state":"ready","ttl_ms":1}"#, "no valid address"),
            (&[b'['; 1000], "not a JSON object"),
            (&[b'{'; 2000], "1 KiB"),
        ];
        for (bytes, why) in bad {
            let error = Announcement::read(bytes).unwrap_err();
            assert!(error.contains(why), "{:?}: {error}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn long_announcement_is_cut_to_the_limit() {
        let long =
            |n: usize| Address::new(format!("{}.host-{n}.example:7946", vec!["x".repeat(60); 3].join("."))).unwrap();
        let mut announcement = announcement();
        announcement.id = PeerId::new("i".repeat(253)).unwrap();
        announcement.zone = "z".repeat(253);
        announcement.addresses = (0..8).map(long).collect();
        let bytes = announcement.write();
        assert!(bytes.len() <= MAX_BYTES, "{}", bytes.len());
        let read = Announcement::read(&bytes).unwrap();
        assert_eq!(read.addresses.first(), announcement.addresses.first(), "the first address is the best and stays");
        assert_eq!(read.zone, "");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn arbitrary_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..1_200)) {
            let _ = Announcement::read(&bytes);
        }

        #[test]
        fn damaged_message_is_read_within_limits_or_refused(
            at in 0_usize..140, byte in any::<u8>(), cut in 0_usize..160,
        ) {
            let mut bytes = announcement().write();
            if let Some(damaged) = bytes.get_mut(at) {
                *damaged = byte;
            }
            bytes.truncate(bytes.len().min(cut));
            if let Ok(read) = Announcement::read(&bytes) {
                prop_assert!(!read.addresses.is_empty() && read.addresses.len() <= MAX_ADDRESSES);
                prop_assert!(TTL.contains(&read.ttl));
                let again = read.write();
                prop_assert!(again.len() <= MAX_BYTES);
                prop_assert_eq!(Announcement::read(&again).unwrap(), read);
            }
        }
    }
}
