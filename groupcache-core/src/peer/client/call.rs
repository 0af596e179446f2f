//! Call: a request to a peer with its receiver, and the ends that a call may have.

use std::sync::Arc;

use crate::{
    identity::Instance,
    peer::client::receiver::Receiver,
    protocol::{
        chain::LoadChain,
        message::{Op, Response, Strikes, WriteName},
    },
};

/// A request to a peer, until it is answered.
pub(crate) struct Call {
    pub(crate) op: Op,
    /// Index of the group in this node's Hello.
    pub(crate) group: u32,
    pub(crate) key: Arc<str>,
    /// Deadline in coarse time.
    pub(crate) deadline_ms: u64,
    /// Rank at which the peer is asked: 0 as the owner, n as the n-th successor.
    pub(crate) rank: usize,
    pub(crate) chain: LoadChain,
    /// Number of the write in this node's log; 0 = the request is no write, or the write is in no log.
    pub(crate) number: u64,
    /// Writes of the key that this node has heard of; see [`RequestRef::known`](crate::protocol::wire::RequestRef::known).
    pub(crate) known: Vec<WriteName>,
    /// Strikes against the key of a get.
    pub(crate) strikes: Option<Box<Strikes>>,
    pub(crate) reply: Receiver,
}

/// End of a call.
#[derive(Debug)]
pub(crate) enum Outcome {
    Answered(Response),
    /// The peer is unreachable; a successor may be asked.
    Unreachable,
    /// The peer is unreachable, and its process has ended while it had the request.
    Died {
        process: Instance,
        /// Whether a load of the key may have run. The load of a key with strikes runs only after a notice.
        has_run: bool,
    },
    /// The deadline passed while the peer was alive; no other peer is asked.
    Expired,
}

/// Reason why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotSent {
    /// The breaker is open.
    Open,
    /// The maximum number of calls, or of bytes of values, waits for this peer or for all.
    Full,
}

/// Ended calls with their receivers, which are called outside of the lock.
pub(crate) type Ended = Vec<(Receiver, Outcome)>;
