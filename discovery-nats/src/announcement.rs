//! What nodes say of themselves, as JSON: versioned, small, and read with suspicion.

use std::time::Duration;

use groupcache_core::{Address, Incarnation, Me, NodeState, Peer, PeerId};
use serde::{Deserialize, Serialize};

/// The one version that is written and read.
const VERSION: u32 = 1;
/// Longest message.
pub(crate) const MAX_BYTES: usize = 1024;
/// Most addresses that are read of one peer.
const MAX_ADDRESSES: usize = 8;
/// What the time to live of a message is taken for, at least and at most.
const TTL: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(300);

/// One node, as it announces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Announcement {
    pub(crate) id: PeerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) addresses: Vec<Address>,
    pub(crate) state: NodeState,
    pub(crate) zone: String,
    pub(crate) weight: u8,
    /// How long it is there after this message, unless it is heard again.
    pub(crate) ttl: Duration,
    /// The run of the provider that wrote it: how a node knows its own messages.
    pub(crate) from: String,
}

/// The form on the wire. Fields that are not known are ignored, those that may be missing have a default.
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

    /// The message. One that would be too long goes without its zone, then without its last addresses.
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
            // It has no map with keys that are no strings, which is what could fail.
            let bytes = serde_json::to_vec(&written).unwrap_or_default();
            if bytes.len() <= MAX_BYTES {
                return bytes;
            }
            if !written.zone.is_empty() {
                written.zone.clear();
            } else if written.addrs.pop().is_none() {
                return bytes; // not reached: what is left has 253 bytes of id and some numbers
            }
        }
    }

    /// Reads a message of anybody.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() > MAX_BYTES {
            return Err("it is longer than 1 KiB");
        }
        // A list would be read as the fields in their order.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err("it is no JSON object with a version");
        }
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        let Version { v } = serde_json::from_slice(bytes).map_err(|_| "it is no JSON object with a version")?;
        if v != VERSION {
            return Err("it is of another version; all nodes of a cluster need releases that overlap");
        }
        let written: Written = serde_json::from_slice(bytes).map_err(|_| "a field is missing or of another type")?;
        let id = PeerId::new(&written.id).map_err(|_| "its id is none")?;
        let addresses = written.addrs.iter().take(MAX_ADDRESSES).filter_map(|a| Address::new(a).ok());
        let mut distinct: Vec<Address> = Vec::new();
        for address in addresses {
            if !distinct.contains(&address) {
                distinct.push(address);
            }
        }
        if distinct.is_empty() {
            return Err("it has no address");
        }
        Ok(Self {
            id,
            incarnation: Incarnation(written.inc),
            addresses: distinct,
            state: match written.state.as_str() {
                "joining" => NodeState::Joining,
                "draining" => NodeState::Draining,
                // One that a later release adds is of a node that is there; its Hello says the rest.
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
    fn what_is_written_is_read() {
        let bytes = announcement().write();
        assert_eq!(
            String::from_utf8(bytes.clone()).unwrap(),
            r#"{"v":1,"id":"users-0","inc":7,"addrs":["10.0.0.7:7946","[fd00::7]:7946"],"state":"draining","zone":"a","weight":2,"ttl_ms":8000,"from":"n0"}"#,
        );
        assert_eq!(Announcement::read(&bytes).unwrap(), announcement());
    }

    #[test]
    fn a_later_release_may_say_more() {
        let more =
            br#"{"v":1,"id":"a","inc":1,"addrs":["h:1"],"state":"asleep","ttl_ms":1,"mood":{"deep":[1]},"zone":"z"}"#;
        let read = Announcement::read(more).unwrap();
        assert_eq!((read.state, read.weight), (NodeState::Ready, 1));
        assert_eq!(read.ttl, Duration::from_millis(100), "too short a time to live would expire between heartbeats");
    }

    #[test]
    fn garbage_is_refused_with_a_reason() {
        let bad: &[(&[u8], &str)] = &[
            (b"", "no JSON"),
            (b"hello", "no JSON"),
            (b"[1]", "no JSON"),
            (b"{}", "no JSON"),
            (br#"{"v":2,"id":"a"}"#, "another version"),
            (br#"{"v":1,"id":"a"}"#, "missing"),
            (br#"{"v":1,"id":"two words","inc":1,"addrs":["h:1"],"state":"ready","ttl_ms":1}"#, "id"),
            (br#"{"v":1,"id":"a","inc":-1,"addrs":["h:1"],"state":"ready","ttl_ms":1}"#, "type"),
            (br#"{"v":1,"id":"a","inc":1,"addrs":["h","x:0"],"state":"ready","ttl_ms":1}"#, "no address"),
            (br#"{"v":1,"id":"a","inc":1,"addrs":[],"state":"ready","ttl_ms":1}"#, "no address"),
            (&[b'['; 1000], "no JSON"),
            (&[b'{'; 2000], "1 KiB"),
        ];
        for (bytes, why) in bad {
            let error = Announcement::read(bytes).unwrap_err();
            assert!(error.contains(why), "{:?}: {error}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_message_is_never_longer_than_it_may_be() {
        let long = |n: usize| Address::new(format!("{}.example:7946", "x".repeat(180 + n))).unwrap();
        let mut announcement = announcement();
        announcement.id = PeerId::new("i".repeat(253)).unwrap();
        announcement.zone = "z".repeat(253);
        announcement.addresses = (0..8).map(long).collect();
        let bytes = announcement.write();
        assert!(bytes.len() <= MAX_BYTES, "{}", bytes.len());
        let read = Announcement::read(&bytes).unwrap();
        assert_eq!(read.addresses.first(), announcement.addresses.first(), "the best address stays");
        assert_eq!(read.zone, "");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_an_announcement_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..1_200)) {
            let _ = Announcement::read(&bytes);
        }

        #[test]
        fn a_damaged_message_is_an_announcement_within_the_limits_or_an_error(
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
