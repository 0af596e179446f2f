//! Messages: the requests, responses and Hellos of nodes as types of this crate, which `wire` encodes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    identity::{Address, Incarnation, Instance, NodeState, PeerId},
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
    /// Incarnation with which the process of the sender began, and which names its log of writes. A sender without a
    /// log has the default.
    pub(crate) log_incarnation: Incarnation,
}

impl Hello {
    /// Returns the sender in the incarnation that names its log, or in the present one if it has no log.
    pub(crate) fn instance(&self) -> Instance {
        let has_log = self.log_incarnation != Incarnation::default();
        let incarnation = if has_log { self.log_incarnation } else { self.incarnation };
        Instance { id: self.id.clone(), incarnation }
    }
}

/// Group as a Hello lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupName {
    pub(crate) index: u32,
    pub(crate) name: Arc<str>,
    pub(crate) format: u32,
    pub(crate) bounds: Bounds,
}

/// Times after which a node serves no value of a group that lacks a write, even if the node never hears of the write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Milliseconds after which no value that began to load before is served, with the deadline of a load; `None` = no
    /// limit.
    pub(crate) longest_ms: Option<u64>,
    /// Bound on the staleness of values, in milliseconds.
    pub(crate) max_staleness_ms: Option<u64>,
}

/// Write, named by its log and its number there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WriteName {
    pub(crate) writer: Instance,
    pub(crate) number: u64,
}

/// Position of a node in the log of a writer: the node has applied every write up to `number`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) writer: Instance,
    pub(crate) number: u64,
    /// Number at which the node began without having received the writes up to it.
    pub(crate) base: u64,
}

/// Nodes that a node tells of its writes, without the node itself, in the order of their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Company {
    pub(crate) version: u64,
    pub(crate) members: Vec<Instance>,
}

/// Acknowledgement of another node, which a peer passes on to the writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Relayed {
    pub(crate) node: Instance,
    pub(crate) number: u64,
    pub(crate) company: Company,
}

/// Knowledge of writes, as a node shows it to a peer with each ping and pong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Knowledge {
    /// Present when the company has changed since the last Knowledge of the connection.
    pub(crate) company: Option<Company>,
    pub(crate) positions: Vec<Position>,
    /// Whether further positions follow with the next Knowledge.
    pub(crate) is_partial: bool,
    /// Nodes of which the sender lacks acknowledgements.
    pub(crate) asked: Vec<PeerId>,
    pub(crate) relayed: Vec<Relayed>,
    /// Whether the discovery of the sender lists the receiver.
    pub(crate) lists_receiver: bool,
}

/// Key with the processes that ended while they loaded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Suspect {
    pub(crate) group: Arc<str>,
    pub(crate) key: Arc<str>,
    pub(crate) strikes: Strikes,
}

/// Strikes against a key, with ages in the place of times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Strikes {
    /// Number that grows when a load of the key has ended well.
    pub(crate) epoch: u32,
    pub(crate) strikes: Vec<Strike>,
    /// Milliseconds since the last trial began.
    pub(crate) trial_age_ms: Option<u64>,
    /// Milliseconds since the last change.
    pub(crate) changed_age_ms: u64,
}

/// End of a process while it loaded a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strike {
    pub(crate) process: Instance,
    pub(crate) age_ms: u64,
    /// Number of the changes of this strike: odd = the process has ended, even = it turned out to be alive.
    pub(crate) count: u32,
}

/// Writes of one log, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogPart {
    pub(crate) writer: Instance,
    /// Number up to which the part is complete.
    pub(crate) through: u64,
    /// Number up to which the sender lacks the writes.
    pub(crate) base: u64,
    pub(crate) entries: Vec<LogEntry>,
}

/// Write of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogEntry {
    pub(crate) number: u64,
    pub(crate) group: Arc<str>,
    /// Key of the write; `None` = all keys of the group.
    pub(crate) key: Option<Arc<str>>,
    pub(crate) age_ms: u64,
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
    /// Reads the writes after these, for each log.
    ReadLogs(Vec<WriteName>),
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
    /// Number of the write in the log of the requester; 0 = the request is no write, or the write is in no log.
    pub(crate) number: u64,
    /// Of a set: the writes of the key that the requester knew of. Of a get: those that this node has not said to have.
    pub(crate) known: Vec<WriteName>,
    /// Strikes against the key of a get.
    pub(crate) strikes: Option<Strikes>,
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
    /// The loader found nothing. The field is that of [`Encoded`].
    NotFound {
        as_of_age_ms: Option<u64>,
    },
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
    /// The load of a key with strikes waits for its turn; [`Begun`](Self::Begun) and the response follow.
    Held,
    /// The load of a key with strikes begins; its response follows.
    Begun,
    /// The key is in quarantine.
    Quarantined {
        retry_after: Duration,
    },
    WrongPeer,
    Unsupported,
    /// The write is done.
    Done,
    /// Page of a hand-over.
    Page(Page),
    Logs(Vec<LogPart>),
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
    /// Milliseconds before the arrival of the request, until which the value contains every write; `None` = `age_ms`.
    pub(crate) as_of_age_ms: Option<u64>,
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
    /// Positions of the sender, read before its first value.
    pub(crate) positions: Vec<Position>,
}

/// Entry of a [`Page`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handed {
    pub(crate) key: Bytes,
    pub(crate) bytes: Bytes,
    pub(crate) age_ms: u64,
    /// See [`Encoded`].
    pub(crate) as_of_age_ms: Option<u64>,
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
