//! Every limit, with its default and the reason for it.

use std::time::Duration;

use crate::error::{Error, Result};

/// Longest key in bytes; keys are 1 to 1,024 bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 1024;

/// Groups of a node: their names are said to every peer.
pub(crate) const MAX_GROUPS: usize = 1000;

/// Longest chain of nested loads; the hashes of all of them travel with each request.
pub(crate) const MAX_CHAIN: usize = 8;

/// Values of one frame on top of the largest value: keys, ids and the rest of a batch.
pub(crate) const FRAME_SLACK_BYTES: usize = 512 << 10;

/// A batch is closed when it holds this many bytes, so that one large value does not delay the small ones behind it.
pub(crate) const BATCH_BYTES: usize = 256 << 10;

/// Requests of one frame that we send: as many as are accepted, so that a get of many keys is one frame to each owner.
pub(crate) const BATCH_REQUESTS: usize = MAX_REQUESTS_PER_FRAME;

/// Requests of one frame that we accept.
pub(crate) const MAX_REQUESTS_PER_FRAME: usize = 1024;

/// How often deadlines, Pending and silence are looked at, and the resolution of coarse time.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// A tick that is later than this means that we stood still ourselves; silence is not held against peers then.
pub(crate) const LATE_TICK: Duration = Duration::from_millis(100);

/// A request that is not answered by then gets a Pending, so that a slow load is not taken for a dead owner.
pub(crate) const PENDING_AFTER: Duration = Duration::from_millis(100);

/// No byte for this long while a ping is outstanding: the connection is dead.
pub(crate) const SILENCE: Duration = Duration::from_secs(1);

/// A connection from which nothing came for this long is pinged together with the next request.
pub(crate) const QUIET: Duration = Duration::from_millis(100);

/// An idle connection is pinged this often, so that its death is known before a caller meets it.
pub(crate) const IDLE_PING: Duration = Duration::from_secs(1);

/// A connection to a live host in the same data centre takes about a millisecond.
pub(crate) const CONNECT: Duration = Duration::from_secs(1);

/// From connected to the peer's Hello.
pub(crate) const HELLO: Duration = Duration::from_secs(1);

/// How long a connection that a peer opened may take to shake hands.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(5);

/// How long a server waits for a client's Hello before it gives the connection up.
pub(crate) const CLIENT_HELLO: Duration = Duration::from_secs(5);

/// How long a peer that was refused an answer should wait before it asks again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(100);

/// First and longest pause between two attempts to connect. The longest counts its jitter and leaves a second for the
/// attempt: five seconds after a peer is back it is asked again, however long it was away.
pub(crate) const RECONNECT_MIN: Duration = Duration::from_millis(50);
/// See [`RECONNECT_MIN`].
pub(crate) const RECONNECT_MAX: Duration = Duration::from_secs(4);

/// Values that a node loads though another owns them are kept this long at first, and longer the longer the
/// owner stays away.
pub(crate) const FALLBACK_CAP_MIN: Duration = Duration::from_secs(5);
/// See [`FALLBACK_CAP_MIN`].
pub(crate) const FALLBACK_CAP_MAX: Duration = Duration::from_secs(60);

/// Second attempts within one get: this many per second, and one for each [`FALLBACK_SHARE`] gets sent to peers.
pub(crate) const FALLBACK_PER_SECOND: u32 = 10;
/// See [`FALLBACK_PER_SECOND`].
pub(crate) const FALLBACK_SHARE: u32 = 10;

/// Longest text of a loader's error that crosses the wire.
pub(crate) const MAX_ERROR_TEXT: usize = 1024;

/// How long a write waits for the other nodes to drop their copies.
pub(crate) const INVALIDATION: Duration = Duration::from_secs(1);

/// How long `drain` waits for the peers to know.
pub(crate) const DRAIN: Duration = Duration::from_secs(3);

/// How long a node that leaves waits until others have taken over what it has: a third of what Kubernetes gives a pod.
pub(crate) const HANDOVER: Duration = Duration::from_secs(10);

/// How long a provider may take to withdraw its announcement.
pub(crate) const WITHDRAW: Duration = Duration::from_secs(1);

/// How long `start` waits for the first peers before it serves with those it has.
pub(crate) const START: Duration = Duration::from_secs(2);

const MILLISECOND: Duration = Duration::from_millis(1);

/// Largest value that a group may be allowed to hold.
const MAX_VALUE_CEILING: usize = 64 << 20;

/// What one node allows; every field has a default that suits a service on a small machine.
///
/// ```
/// # use groupcache_core::Limits;
/// let mut limits = Limits::default();
/// limits.max_loads = 32; // as many as the database pool has connections
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// How long a get may take. Default 10 s.
    pub get_deadline: Duration,
    /// How long a load may take, the wait for its permit included; it is then aborted. Default 30 s.
    pub load_deadline: Duration,
    /// Loads that run at once on this node, for each depth of nesting. Default 256.
    pub max_loads: usize,
    /// Loads that wait for a permit, for each depth; more are answered `overloaded`. Default 1,024.
    pub max_queued_loads: usize,
    /// Largest encoded value. Default 1 MiB, at most 64 MiB; all nodes of a cluster should agree.
    pub max_value_bytes: usize,
    /// Requests that wait for one peer; more are answered `overloaded`. Default 8,192.
    pub max_in_flight_per_peer: usize,
    /// Requests that wait for all peers together, as counted every 10 ms; more are answered `overloaded`. Default 65,536.
    pub max_in_flight: usize,
    /// Requests of one connection that wait here for loads, or for values to be stored; more are answered `overloaded`.
    /// Default 8,192.
    pub max_serving_per_peer: usize,
    /// The same of all peers together. Default 65,536.
    pub max_serving: usize,
    /// Keys that one connection may declare changed here, by `set` and `remove`, per second; for more, the writer is told that
    /// this node was not reached. Default 50,000.
    pub max_invalidations_per_second: u32,
    /// Bytes of answers that wait for one peer to read them; 256 KiB and one answer may come on top. What else it asks for
    /// waits as long as it goes on to read, and is answered `overloaded` when it has read nothing for a second. Answers
    /// of loads that end meanwhile may be four times as many. Default 8 MiB.
    pub max_queued_answer_bytes: usize,
    /// Connections that peers may hold open here. Default 4,096.
    pub max_connections: usize,
    /// Bytes of values that this node hands over to others in a second when keys move, and as many that it takes over.
    /// Default 256 MiB.
    pub handover_bytes_per_second: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            get_deadline: Duration::from_secs(10),
            load_deadline: Duration::from_secs(30),
            max_loads: 256,
            max_queued_loads: 1024,
            max_value_bytes: 1 << 20,
            max_in_flight_per_peer: 8192,
            max_in_flight: 65_536,
            max_serving_per_peer: 8192,
            max_serving: 65_536,
            max_invalidations_per_second: 50_000,
            max_queued_answer_bytes: 8 << 20,
            max_connections: 4096,
            handover_bytes_per_second: 256 << 20,
        }
    }
}

impl Limits {
    pub(crate) fn check(&self) -> Result<()> {
        let positive = [
            // Times are kept in milliseconds: what is shorter is none.
            ("get_deadline", usize::from(self.get_deadline >= MILLISECOND)),
            ("load_deadline", usize::from(self.load_deadline >= MILLISECOND)),
            ("max_loads", self.max_loads),
            ("max_value_bytes", self.max_value_bytes),
            ("max_in_flight_per_peer", self.max_in_flight_per_peer),
            ("max_serving_per_peer", self.max_serving_per_peer),
            ("max_queued_answer_bytes", self.max_queued_answer_bytes),
            ("max_in_flight", self.max_in_flight),
            ("max_serving", self.max_serving),
            ("max_invalidations_per_second", self.max_invalidations_per_second as usize),
            ("max_connections", self.max_connections),
            ("handover_bytes_per_second", usize::from(self.handover_bytes_per_second > 0)),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, v)| *v == 0) {
            return Err(Error::config(format!("limits.{name} is 0; give it at least 1 (deadlines: 1 ms)")));
        }
        if self.max_value_bytes > MAX_VALUE_CEILING {
            return Err(Error::config(format!(
                "limits.max_value_bytes is {}; at most {MAX_VALUE_CEILING} bytes are carried in one value",
                self.max_value_bytes
            )));
        }
        Ok(())
    }

    /// Longest message that is sent or taken.
    pub(crate) fn max_message_bytes(&self) -> usize {
        self.max_value_bytes + FRAME_SLACK_BYTES
    }
}
