//! Limits: the public [`Limits`] of a node with their defaults, and the internal limits with their reasons.

use std::time::Duration;

use crate::{
    error::{Error, Result},
    runtime::memory_limit,
};

/// Maximum length of a key in bytes. A key is 1 to 1,024 bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 1024;

/// Maximum number of groups of a node. Every Hello lists their names.
pub(crate) const MAX_GROUPS: usize = 1000;

/// Maximum depth of nested loads. Each request carries the hashes of the loads that wait for it.
pub(crate) const MAX_CHAIN: usize = 8;

/// Bytes of a message in addition to the largest value: keys, ids and the rest of a batch.
pub(crate) const FRAME_SLACK_BYTES: usize = 512 << 10;

/// Number of bytes at which a frame is complete, so that one large value does not delay the small ones behind it.
pub(crate) const BATCH_BYTES: usize = 256 << 10;

/// Maximum number of requests that this node sends in one frame: as many as a peer accepts, so that a get of many keys
/// is one frame to each owner.
pub(crate) const BATCH_REQUESTS: usize = MAX_REQUESTS_PER_FRAME;

/// Maximum number of requests that this node accepts in one frame.
pub(crate) const MAX_REQUESTS_PER_FRAME: usize = 1024;

/// Maximum bytes of values that wait for one peer, in sets without an answer. At 1 ms for an answer, these are 32 GiB of
/// values per second; a silent peer holds them for a second.
pub(crate) const VALUES_IN_FLIGHT_PER_PEER: usize = 32 << 20;

/// Maximum bytes of values that wait for all peers. A peer has at most as much as it leaves for others, so that four
/// silent peers have 25.6 MiB each and leave as much.
pub(crate) const VALUES_IN_FLIGHT: usize = 4 * VALUES_IN_FLIGHT_PER_PEER;

/// Maximum bytes of values in sets of one peer that wait to be decoded at this node: as many as the peer sends.
pub(crate) const VALUES_TO_DECODE_PER_PEER: usize = VALUES_IN_FLIGHT_PER_PEER;

/// Maximum bytes of values in sets of all peers that wait to be decoded at this node, shared out as
/// [`VALUES_IN_FLIGHT`] is. Values of 1 MiB decode within milliseconds.
pub(crate) const VALUES_TO_DECODE: usize = 4 * VALUES_TO_DECODE_PER_PEER;

/// Parts of the memory limit of a container. Received bytes, values in flight, values that wait to be decoded and unread
/// responses have at most one part each. With the connections, which have two, six are the most that peers take.
pub(crate) const MEMORY_PARTS: u64 = 8;

/// Connections of peers without a memory limit, and with the lowest one.
const MAX_CONNECTIONS: usize = 4096;
const LEAST_CONNECTIONS: usize = 64;

/// Memory of a connection without TLS, as measured with a message that is not finished.
const CONNECTION_BYTES: u64 = 48 << 10;

/// Interval at which deadlines and silence are checked, and the resolution of coarse time.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// Delay of a tick that shows that this process stood still. Silence of peers does not count then.
pub(crate) const LATE_TICK: Duration = Duration::from_millis(100);

/// Time after which an unanswered request gets a Pending response, so that a slow load is not mistaken for a dead
/// owner.
pub(crate) const PENDING_AFTER: Duration = Duration::from_millis(100);

/// Time without a byte, while a ping is outstanding, after which a connection is dead.
pub(crate) const SILENCE: Duration = Duration::from_secs(1);

/// Time after which a connection with an unanswered ping is dead although other bytes arrive, because a peer that talks
/// and reads nothing makes this node keep what it cannot send. A peer that answers a request reads, and owes its pong from
/// then on: a ping waits at the peer behind the frames that were sent before.
pub(crate) const PONG: Duration = Duration::from_secs(10);

/// Time without a byte after which a connection with outstanding requests is pinged; a new request carries the ping.
pub(crate) const QUIET: Duration = Duration::from_millis(100);

/// Interval of pings on an idle connection, so that its death is known before a caller needs it.
pub(crate) const IDLE_PING: Duration = Duration::from_secs(1);

/// Time for connecting. A connection to a live host in the same data centre takes about 1 ms.
pub(crate) const CONNECT: Duration = Duration::from_secs(1);

/// Time from a connection to the peer's Hello.
pub(crate) const HELLO: Duration = Duration::from_secs(1);

/// Time for the handshake of a connection that a peer opened.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(5);

/// Time that a server waits for the Hello of a client before it closes the connection.
pub(crate) const CLIENT_HELLO: Duration = Duration::from_secs(5);

/// Pause that an `overloaded` response asks of the peer before the next attempt.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Shortest pause between two attempts to connect; the longest is [`RECONNECT_MAX`]. An attempt to a peer that does not
/// answer takes [`CONNECT`], which counts as part of the pause after it, so that a peer that returns is dialled within a
/// second, and asks for the writes that it missed.
pub(crate) const RECONNECT_MIN: Duration = Duration::from_millis(50);
/// See [`RECONNECT_MIN`].
pub(crate) const RECONNECT_MAX: Duration = Duration::from_secs(1);

/// Longest pause between two attempts to connect to a target that has never answered, with its jitter. Such a target may
/// be an invention, and a peer that comes up is dialled early, because it connects to this node.
pub(crate) const UNMET_MAX: Duration = Duration::from_secs(120);

/// Shortest time that a node keeps the value of a fallback load. The time grows with the absence of the owner, up to
/// [`FALLBACK_CAP_MAX`].
pub(crate) const FALLBACK_CAP_MIN: Duration = Duration::from_secs(5);
/// See [`FALLBACK_CAP_MIN`].
pub(crate) const FALLBACK_CAP_MAX: Duration = Duration::from_secs(60);

/// Number of second attempts within gets that are allowed per second, with one more for each [`FALLBACK_SHARE`]
/// requests to peers.
pub(crate) const FALLBACK_PER_SECOND: u32 = 10;
/// See [`FALLBACK_PER_SECOND`].
pub(crate) const FALLBACK_SHARE: u32 = 10;

/// Maximum length in bytes of an error text in a response.
pub(crate) const MAX_ERROR_TEXT: usize = 1024;

/// Time that a write waits for the other nodes to drop the old value.
pub(crate) const INVALIDATION: Duration = Duration::from_secs(1);

/// Maximum time that a drain waits until the peers know that this node drains.
pub(crate) const DRAIN: Duration = Duration::from_secs(3);

/// Maximum time that a shutdown waits until the new owners have received the values of this node: a third of the 30 s
/// that Kubernetes gives a pod.
pub(crate) const HANDOVER: Duration = Duration::from_secs(10);

/// Time for a provider to withdraw its announcement.
pub(crate) const WITHDRAW: Duration = Duration::from_secs(1);

/// Time that `start` waits for the first peers before the node serves with the peers that it has.
pub(crate) const START: Duration = Duration::from_secs(2);

const MILLISECOND: Duration = Duration::from_millis(1);

/// Maximum of [`Limits::max_value_bytes`].
const MAX_VALUE_CEILING: usize = 64 << 20;

/// Limits of one node. Every field has a default that suits a service on a small machine.
///
/// Building a node fails with a configuration error when a field is outside of its range. A caller or a peer that
/// exceeds a limit gets an `overloaded` error ([`Error::is_overloaded`](crate::Error::is_overloaded)) unless the field
/// says otherwise.
///
/// ```
/// # use groupcache_core::Limits;
/// let mut limits = Limits::default();
/// limits.max_loads = 32; // as many as the database pool has connections
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Time that a get may take. A get that takes longer fails ([`Error::is_timeout`](crate::Error::is_timeout)).
    ///
    /// Default: 10 s. Range: 1 ms or more.
    pub get_deadline: Duration,
    /// Time that a load may take, including the wait for its permit and its retries. The loader is aborted
    /// afterwards, and the gets that wait for it fail ([`Error::is_timeout`](crate::Error::is_timeout)).
    ///
    /// Default: 30 s. Range: 1 ms or more. A group may have its own.
    pub load_deadline: Duration,
    /// Maximum number of concurrent loads on this node, for each depth of nesting. Further loads wait for a permit.
    ///
    /// Default: 256. Range: 1 or more. A group may have a lower limit of its own.
    pub max_loads: usize,
    /// Maximum number of loads that wait for a permit, for each depth of nesting.
    ///
    /// Default: 1,024. Range: 0 or more.
    pub max_queued_loads: usize,
    /// Maximum size of an encoded value in bytes. All nodes of a cluster should have the same limit.
    ///
    /// Default: 1 MiB. Range: 1 B to 64 MiB. A larger value is an error
    /// ([`Error::is_too_large`](crate::Error::is_too_large)).
    pub max_value_bytes: usize,
    /// Maximum number of requests of this node that wait for one peer.
    ///
    /// Default: 8,192. Range: 1 or more.
    pub max_in_flight_per_peer: usize,
    /// Maximum number of requests of this node that wait for all peers together, as counted every 10 ms.
    ///
    /// Default: 65,536. Range: 1 or more.
    pub max_in_flight: usize,
    /// Maximum number of requests of one connection that wait at this node for loads, or for values to be stored.
    ///
    /// Default: 8,192. Range: 1 or more.
    pub max_serving_per_peer: usize,
    /// Maximum number of requests of all peers together that wait at this node for loads, or for values to be stored.
    ///
    /// Default: 65,536. Range: 1 or more.
    pub max_serving: usize,
    /// Maximum number of writes (sets, removes and clears) per second that this node takes from one connection. This node
    /// asks for a refused write within about a second.
    ///
    /// Default: 50,000 per second, with a burst of one second. Range: 1 or more.
    pub max_invalidations_per_second: u32,
    /// Maximum bytes of responses that are queued for one peer.
    ///
    /// When the limit is reached, further requests from that peer wait while the peer keeps reading, and are answered
    /// `overloaded` once it has read nothing for 1 s. Responses of loads that end meanwhile may use four times this
    /// limit. The limit may be exceeded by one response plus 256 KiB.
    ///
    /// Default: 8 MiB. Range: 1 B or more.
    pub max_queued_answer_bytes: usize,
    /// Maximum number of open connections from peers. Beyond them, the party with most connections loses its
    /// oldest one. A party is the id that a certificate proves, or otherwise an address. If each party has one connection,
    /// the new one is refused.
    ///
    /// Default: 4,096, and in a container as many as take a quarter of its memory limit at 48 KiB each, so that
    /// many connections do not make the kernel end the process: 1,365 of 256 MiB. Range: 1 or more.
    pub max_connections: usize,
    /// Bytes per second that this node sends in hand-overs, and bytes per second that this node receives in hand-overs.
    ///
    /// Default: 256 MiB per second in each direction. Range: 1 B per second or more.
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
            max_connections: memory_limit::part(4 * CONNECTION_BYTES, MAX_CONNECTIONS).max(LEAST_CONNECTIONS),
            handover_bytes_per_second: 256 << 20,
        }
    }
}

impl Limits {
    /// Checks that each limit is within its range.
    pub(crate) fn check(&self) -> Result<()> {
        let positive = [
            // Times are kept in milliseconds, so that a shorter time would be none.
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
            return Err(Error::config(format!(
                "limits.{name} is too small; set it to at least 1, or 1 ms for a deadline"
            )));
        }
        if self.max_value_bytes > MAX_VALUE_CEILING {
            return Err(Error::config(format!(
                "limits.max_value_bytes is {}; set it to at most {MAX_VALUE_CEILING} bytes",
                self.max_value_bytes
            )));
        }
        Ok(())
    }

    /// Returns the size of the largest message that this node sends or accepts, in bytes.
    pub(crate) fn max_message_bytes(&self) -> usize {
        self.max_value_bytes + FRAME_SLACK_BYTES
    }
}
