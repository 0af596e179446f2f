//! Messages: the requests, responses and Hellos of nodes as types of this crate, which `wire` encodes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    identity::{Address, Incarnation, NodeState, PeerId},
    limits::MAX_KEY_BYTES,
    protocol::chain::LoadChain,
};

/// Introduction of a node: its identity, its state and its groups.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Hello {
    pub(crate) cluster: String,
    pub(crate) id: PeerId,
    /// Id of the node that the sender means to reach; `None` when the sender knows an address only.
    pub(crate) expected: Option<PeerId>,
    pub(crate) incarnation: Incarnation,
    pub(crate) state: NodeState,
    pub(crate) weight: u8,
    pub(crate) zone: Arc<str>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) ring_algorithm: u32,
    pub(crate) fingerprint: u64,
    pub(crate) max_requests_per_frame: usize,
    /// Size of the largest value that the sender receives and sends, in bytes.
    pub(crate) max_value_bytes: usize,
    pub(crate) groups: Vec<GroupName>,
    /// Optional behaviour that the sender supports; the bits are in `wire::features`.
    pub(crate) features: u64,
}

/// Group as a Hello lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupName {
    pub(crate) index: u32,
    pub(crate) name: Arc<str>,
    pub(crate) format: u32,
}

/// Cursor which says that no further page is wanted.
pub(crate) const NO_MORE: u64 = u64::MAX;

/// Operation of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Get,
    /// Stores this value at the acting owner, because the source has changed to it.
    Set(Bytes),
    /// Drops the entry. No running flight caches a value afterwards, and no load that begins within `hold` does.
    Remove {
        hold: Duration,
    },
    /// Drops the entries of all keys of the group, in the same way without a hold.
    Clear,
    /// Reads memory only; on the wire a Get with a flag.
    Peek,
    /// Reads the cached value of a key that the requester owns now, with its remaining time to live, and never loads;
    /// on the wire a Get with a flag and a role.
    ReadAsPreviousOwner,
    /// Reads a page of the entries that the requester owns now, from `cursor` on.
    ReadPage {
        cursor: u64,
    },
    /// Number of an operation of a newer version of the protocol.
    Unknown(u32),
}

/// Request as it arrived.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) op: Op,
    pub(crate) group: u32,
    /// Bytes as they arrived; [`key`] checks them.
    pub(crate) key: Bytes,
    /// Time that the requester waits from now on.
    pub(crate) wait: Option<Duration>,
    pub(crate) chain: LoadChain,
    pub(crate) no_load: bool,
}

/// Checks the bytes of a key and returns the key.
pub(crate) fn key(bytes: &[u8]) -> Result<&str, BadKey> {
    match bytes.len() {
        0 => Err(BadKey::Empty),
        n if n > MAX_KEY_BYTES => Err(BadKey::TooLong),
        _ => std::str::from_utf8(bytes).map_err(|_| BadKey::NotUtf8),
    }
}

/// Reason for which bytes are no key.
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

/// Response to a request.
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
    /// The peer does not serve the request, and the requester asks the next candidate.
    Declined(Decline),
    /// The value is not in memory, and this peer owned the key before.
    Referred(PeerId),
    TooLarge,
    /// The request is still being worked on; its response follows.
    Pending,
    /// A deadline has passed.
    Deadline(DeadlineOwner),
    WrongPeer,
    Unsupported,
    /// The write is done.
    Done,
    /// Page of a hand-over.
    Page(Page),
    BadRequest(String),
}

/// Owner of the deadline that has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeadlineOwner {
    /// The deadline of the request has passed. The load goes on, and a requester with more time asks again.
    Asker,
    /// The deadline of the load has passed, and the load is over.
    Load,
}

/// Encoded value with its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub(crate) bytes: Bytes,
    pub(crate) age_ms: u64,
    /// Milliseconds for which the value may still be kept; `None` = without limit.
    pub(crate) remaining_ms: Option<u64>,
    /// Milliseconds for which the requester may keep a replica; 0 = not at all.
    pub(crate) borrow_ms: u64,
    /// Whether many peers request the value.
    pub(crate) is_hot: bool,
    pub(crate) source: Source,
}

/// Entries that a hand-over moves, the most used first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) entries: Vec<Handed>,
    /// Cursor of the next page; 0 = no further page.
    pub(crate) next: u64,
    /// Number of entries that have not been sent yet.
    pub(crate) left: u64,
}

/// Entry of a [`Page`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handed {
    pub(crate) key: Bytes,
    pub(crate) bytes: Bytes,
    pub(crate) age_ms: u64,
    /// Milliseconds for which the value may still be kept; `None` = without limit.
    pub(crate) remaining_ms: Option<u64>,
}

/// Origin of the value of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Memory,
    Loaded,
}

/// Reason for which a node declines a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decline {
    UnknownGroup,
    Draining,
    OtherFormat,
    /// The request is for memory only, and memory has no value.
    NotCached,
    Closing,
    /// A reason or a status of a newer version of the protocol.
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_outside_limits_is_refused() {
        assert_eq!(key(b""), Err(BadKey::Empty));
        assert_eq!(key(&[b'k'; MAX_KEY_BYTES + 1]), Err(BadKey::TooLong));
        assert_eq!(key(&[0xff]), Err(BadKey::NotUtf8));
        assert_eq!(key(&[b'k'; MAX_KEY_BYTES]).unwrap().len(), MAX_KEY_BYTES);
    }
}
