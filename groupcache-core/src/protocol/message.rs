//! What nodes say to each other, in our own words; `wire` turns it into bytes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    identity::{Address, Incarnation, NodeState, PeerId},
    limits::MAX_KEY_BYTES,
    protocol::chain::LoadChain,
};

/// Who speaks, and what it offers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Hello {
    pub(crate) cluster: String,
    pub(crate) id: PeerId,
    /// Whom the sender wants to talk to; `None` when it knows an address only.
    pub(crate) expected: Option<PeerId>,
    pub(crate) incarnation: Incarnation,
    pub(crate) state: NodeState,
    pub(crate) weight: u8,
    pub(crate) zone: Arc<str>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) ring_algorithm: u32,
    pub(crate) fingerprint: u64,
    pub(crate) max_requests_per_frame: usize,
    /// Largest value that it takes and sends.
    pub(crate) max_value_bytes: usize,
    pub(crate) groups: Vec<GroupName>,
    /// Behaviour that the sender understands; bits are in `wire`.
    pub(crate) features: u64,
}

/// A group as a Hello lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupName {
    pub(crate) index: u32,
    pub(crate) name: Arc<str>,
    pub(crate) format: u32,
}

/// The cursor that asks for no page: nothing more is wanted.
pub(crate) const NO_MORE: u64 = u64::MAX;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Get,
    /// Store this, as the acting owner: the source has changed to it.
    Set(Bytes),
    /// Drop what is held, and let nothing that is under way be stored, nor what is loaded within `hold`.
    Remove {
        hold: Duration,
    },
    /// The same for all keys of the group.
    Clear,
    /// As Get, from memory only; on the wire it is a Get with a flag.
    Peek,
    /// What is in memory of a key that the asker owns now, with all that is left of its time; on the wire it is a Get with
    /// a flag and a role.
    ReadAsPreviousOwner,
    /// A page of what the asker owns now, from there on.
    ReadPage {
        cursor: u64,
    },
    /// Of a newer version of the protocol.
    Unknown(u32),
}

/// A request as it arrived.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) op: Op,
    pub(crate) group: u32,
    /// As it came; see [`key`].
    pub(crate) key: Bytes,
    /// How long the asker waits from now on.
    pub(crate) wait: Option<Duration>,
    pub(crate) chain: LoadChain,
    pub(crate) no_load: bool,
}

/// Checks the bytes of a key.
pub(crate) fn key(bytes: &[u8]) -> Result<&str, BadKey> {
    match bytes.len() {
        0 => Err(BadKey::Empty),
        n if n > MAX_KEY_BYTES => Err(BadKey::TooLong),
        _ => std::str::from_utf8(bytes).map_err(|_| BadKey::NotUtf8),
    }
}

/// Why bytes are no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadKey {
    Empty,
    TooLong,
    NotUtf8,
}

impl BadKey {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Empty => "the key is empty; keys are 1 to 1,024 bytes",
            Self::TooLong => "the key is longer than 1,024 bytes",
            Self::NotUtf8 => "the key is not UTF-8",
        }
    }
}

/// What is answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Response {
    Value(Encoded),
    NotFound,
    LoadFailed {
        is_transient: bool,
        text: String,
    },
    Overloaded {
        retry_after: Duration,
    },
    /// Not by this node; the next successor may.
    Declined(Decline),
    /// It is not held here, and this peer owned the key before.
    Referred(PeerId),
    TooLarge,
    /// Still working on it; the answer follows.
    Pending,
    /// A deadline has passed.
    Deadline(DeadlineOwner),
    WrongPeer,
    Unsupported,
    /// Of a write.
    Done,
    /// Of a hand-off.
    Page(Page),
    BadRequest(String),
}

/// Whose deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeadlineOwner {
    /// That of the request: the load goes on, and who may wait longer asks again.
    Asker,
    /// That of the load, which is over.
    Load,
}

/// An encoded value and its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub(crate) bytes: Bytes,
    pub(crate) age_ms: u64,
    /// How long it may still be kept; `None` = without limit.
    pub(crate) remaining_ms: Option<u64>,
    /// How long the asker may keep a copy of its own; 0 = not at all.
    pub(crate) borrow_ms: u64,
    /// Many peers ask for it.
    pub(crate) is_hot: bool,
    pub(crate) source: Source,
}

/// Values that change hands, the most wanted first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) entries: Vec<Handed>,
    /// The cursor of the next page; 0 = that was all.
    pub(crate) next: u64,
    /// How many have not been sent yet.
    pub(crate) left: u64,
}

/// A value that changes hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handed {
    pub(crate) key: Bytes,
    pub(crate) bytes: Bytes,
    pub(crate) age_ms: u64,
    /// How long it may still be kept; `None` = without limit.
    pub(crate) remaining_ms: Option<u64>,
}

/// Where the answering node had a value from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Memory,
    Loaded,
}

/// Why a node does not answer for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decline {
    UnknownGroup,
    Draining,
    OtherFormat,
    /// Asked for what is in memory, and it is not.
    NotCached,
    Closing,
    /// A reason or a status of a newer version of the protocol.
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_checked() {
        assert_eq!(key(b""), Err(BadKey::Empty));
        assert_eq!(key(&[b'k'; MAX_KEY_BYTES + 1]), Err(BadKey::TooLong));
        assert_eq!(key(&[0xff]), Err(BadKey::NotUtf8));
        assert_eq!(key(&[b'k'; MAX_KEY_BYTES]).unwrap().len(), MAX_KEY_BYTES);
    }
}
