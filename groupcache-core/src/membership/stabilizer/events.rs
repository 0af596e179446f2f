//! What the stabilizer is told, and what it asks the node to do.

use std::{sync::Arc, time::Duration};

use crate::membership::stabilizer::members::MemberSet;
use crate::{
    identity::{Address, Incarnation, MAX_ADDRESSES, MAX_WEIGHT, NodeState, PeerId},
    membership::provider::PeerSet,
};

/// Names one dial target: one connection that the node keeps, redialling with its own back-off until `Hangup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DialId(pub(crate) u64);

/// What a Hello says, as far as membership needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HelloFacts {
    pub(crate) id: PeerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) state: NodeState,
    pub(crate) weight: u8,
    pub(crate) zone: Arc<str>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) fingerprint: u64,
}

impl HelloFacts {
    /// The same within the limits: a peer may be of a version with larger ones.
    pub(super) fn within_limits(mut self) -> Self {
        self.weight = self.weight.min(MAX_WEIGHT);
        self.addresses.truncate(MAX_ADDRESSES);
        self
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// A provider published a set. Failures are never sets.
    Set(PeerSet),
    /// Discovery says that a peer announced its leave: a hint.
    Left { id: PeerId, incarnation: Option<Incarnation> },
    /// A Hello came on our connection to this target: the first, or a later one that says what changed.
    Hello { dial: DialId, hello: HelloFacts },
    /// The target answered and the connection was refused, by either side.
    Refused { dial: DialId, why: Refusal },
    /// The target could not be connected to; the node goes on redialling.
    Failed { dial: DialId },
    /// A live connection broke or fell silent; the node goes on redialling.
    Lost { dial: DialId },
    /// A peer said on its own connection that it leaves for good.
    Goodbye { id: PeerId, incarnation: Incarnation },
    /// The answer to [`Action::Ping`].
    Pinged { id: PeerId, is_alive: bool },
    /// A frame of this peer carried another fingerprint than before.
    Fingerprint { id: PeerId, fingerprint: u64 },
    /// The view that the last [`Action::Install`] led to has this fingerprint.
    Installed { fingerprint: u64 },
    /// This node drains; there is no way back.
    Drain,
    /// Time passed; every 50 to 100 ms.
    Tick,
}

/// What the node should do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Keep a connection to this target, the first address that answers; for a known target, only the words change
    /// and a live connection stays.
    Dial { dial: DialId, expected: Option<PeerId>, addresses: Vec<Address> },
    /// Close the connection that has just said Hello and dial the same target again after the back-off.
    Redial { dial: DialId },
    /// Close and forget this target.
    Hangup { dial: DialId },
    /// Ask this peer for a sign of life, on its connection or by dialling, and report `Pinged`.
    Ping { id: PeerId },
    /// Ask the provider to look again and publish even if nothing changed.
    Resolve { ids: Vec<PeerId> },
    /// Make a view of these members.
    Install(MemberSet),
    /// This node is Ready now; once in its life.
    Ready,
    /// Take this incarnation, and announce it to peers and provider.
    RaiseIncarnation(Incarnation),
    /// Another live node answers under our id.
    DuplicateId { at: Vec<Address>, incarnation: Incarnation },
    /// Write one line to the log.
    Warn(Warning),
}

/// Why a connection was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It belongs to another cluster.
    OtherCluster,
    /// No version of the protocol is common.
    NoCommonVersion,
    /// Somebody else than expected answers there; who, where it is known.
    WrongId { found: Option<PeerId> },
    /// One side does not trust the other: certificates, keys, or TLS on one side only.
    Untrusted,
    /// Anything else, such as a limit.
    Rejected,
}

/// What deserves a line in the log; each comes seldom, however often its cause does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Warning {
    /// A set without most of the peers is not believed yet.
    Held { missing: usize, of: usize },
    /// No complete set has ever named this node: peers cannot find it.
    SelfNotListed,
    /// A set was larger than the limit; so many were left out.
    TooManyPeers { left_out: usize },
    /// A listed target refuses, or is refused.
    Refused { addresses: Vec<Address>, expected: Option<PeerId>, why: Refusal },
    /// Somebody else says that a peer left, or an older life of it did; it is asked instead.
    IgnoredGoodbye { id: PeerId },
    /// An older life of a peer answers while the newer one is connected.
    OldLife { id: PeerId, incarnation: Incarnation, known: Incarnation },
}

/// What has been counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Complete sets.
    pub(crate) sets: u64,
    /// Complete sets that were held because most peers were missing.
    pub(crate) holds: u64,
    /// Goodbyes and hints of leaving that were not acted upon at once.
    pub(crate) ignored_goodbyes: u64,
    /// New addresses from discovery for a peer that still answered at its old one.
    pub(crate) ignored_addresses: u64,
    /// Connections refused, by either side.
    pub(crate) refusals: u64,
    /// Hellos of an older life of a connected peer.
    pub(crate) old_lives: u64,
    /// Times that the provider was asked to look again.
    pub(crate) resolves: u64,
    /// Member lists installed.
    pub(crate) installs: u64,
    /// Peers that left.
    pub(crate) removals: u64,
    /// When the last complete set that was not held came, as time since the start.
    pub(crate) last_set_at: Option<Duration>,
}
