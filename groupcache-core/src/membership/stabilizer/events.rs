//! Inputs of the stabilizer, and the actions that it returns to the node.

use std::time::Duration;

use crate::membership::stabilizer::inbound::InboundPeer;
use crate::membership::stabilizer::members::{DialId, HelloFacts, MemberSet};
use crate::{
    identity::{Address, Incarnation, PeerId},
    membership::provider::PeerSet,
};

/// An event from providers, links or the node.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// A set that a provider published. A failure of a provider is never a set.
    Set(PeerSet),
    /// A hint from discovery that a peer has announced its departure.
    Left { id: PeerId, incarnation: Option<Incarnation> },
    /// A Hello from this target: the first on its connection, or a later one after a change.
    Hello { dial: DialId, hello: HelloFacts },
    /// A connection to a target that answered, refused by either side.
    Refused { dial: DialId, why: Refusal },
    /// A failed attempt to connect to the target. The node continues to dial.
    Failed { dial: DialId },
    /// A broken or silent connection that was live. The node continues to dial.
    Lost { dial: DialId },
    /// The goodbye of a peer on its own connection.
    Goodbye { id: PeerId, incarnation: Incarnation },
    /// The result of [`Action::Ping`].
    Pinged { id: PeerId, is_alive: bool },
    /// A changed fingerprint in a frame of this peer.
    Fingerprint { id: PeerId, fingerprint: u64 },
    /// A change of the peers that are connected to the local node, with all of them.
    Inbound(Vec<InboundPeer>),
    /// The addresses of the nodes behind a listed name without an id. Empty if a single node answers there.
    Resolved { name: Address, addresses: Vec<Address> },
    /// The failure of a dial to a target without an id, which is the port of the local node at an address of its machine.
    OwnAddress { dial: DialId },
    /// The fingerprint of the view made by the last [`Action::Install`].
    Installed { fingerprint: u64 },
    /// The start of draining, which is final.
    Drain,
    /// The passing of time, every 50 to 100 ms.
    Tick,
}

/// An instruction to the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Keep a connection to this target, at the first address that answers. For a known target the new addresses
    /// replace the old ones, and a live connection stays.
    Dial { dial: DialId, expected: Option<PeerId>, addresses: Vec<Address> },
    /// Close the connection that has just sent a Hello, and dial the same target again after the backoff.
    Redial { dial: DialId },
    /// Close and forget this target.
    Hangup { dial: DialId },
    /// Ping this peer, on its connection or by dialling, and report [`Input::Pinged`].
    Ping { id: PeerId },
    /// Ask the provider to look again, and to publish even if nothing has changed.
    Resolve { ids: Vec<PeerId> },
    /// Make a view of these members.
    Install(MemberSet),
    /// Announce that this node is Ready. Returned once.
    Ready,
    /// Use this incarnation, and announce it to peers and to the provider.
    RaiseIncarnation(Incarnation),
    /// Report that another live node answers with the id of this node.
    DuplicateId { at: Vec<Address>, incarnation: Incarnation },
    /// Write one line to the log.
    Warn(Warning),
}

/// The reason for which a connection was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A node of another cluster.
    OtherCluster,
    /// No common version of the protocol.
    NoCommonVersion,
    /// Another peer than the expected one, with its id where known.
    WrongId { found: Option<PeerId> },
    /// Missing trust between the two sides: certificates, keys, or TLS on one side only.
    Untrusted,
    /// Any other reason, such as a limit.
    Rejected,
}

impl Refusal {
    /// Returns the kind of the refusal, as the limit of log lines counts it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::OtherCluster => "other cluster",
            Self::NoCommonVersion => "no common version",
            Self::WrongId { .. } => "wrong id",
            Self::Untrusted => "untrusted",
            Self::Rejected => "rejected",
        }
    }
}

/// An event for the log, written rarely even if its cause is frequent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Warning {
    /// A complete set without more than half of the members, which suspends removals.
    Held { missing: usize, of: usize },
    /// A complete set of an authority that lacks this node, which an earlier set listed. Removals are suspended.
    SelfUnlisted { missing: usize, of: usize },
    /// Peers that are connected and that discovery does not list.
    UnlistedPeers { ids: Vec<PeerId> },
    /// No complete set has listed this node, so that peers may not find it.
    SelfNotListed,
    /// A set larger than the limit, with the number of entries left out.
    TooManyPeers { left_out: usize },
    /// A connection to a listed target, refused by either side.
    Refused { addresses: Vec<Address>, expected: Option<PeerId>, why: Refusal },
    /// A reported departure of a connected peer, or a goodbye or report of another incarnation.
    IgnoredGoodbye { id: PeerId },
    /// A Hello of a stale incarnation while the newer one is connected.
    OldLife { id: PeerId, incarnation: Incarnation, known: Incarnation },
}

/// The counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Number of complete sets.
    pub(crate) sets: u64,
    /// Number of complete sets that suspended removals, because more than half of the members were missing.
    pub(crate) holds: u64,
    /// Number of goodbyes and reported departures that removed no member at once.
    pub(crate) ignored_goodbyes: u64,
    /// Number of listings with a new address for a peer that still answered at its old one.
    pub(crate) ignored_addresses: u64,
    /// Number of connections refused, by either side.
    pub(crate) refusals: u64,
    /// Number of Hellos of a stale incarnation of a connected peer.
    pub(crate) stale_incarnations: u64,
    /// Number of peers that were connected for 5 s while discovery did not list them.
    pub(crate) unlisted: u64,
    /// Number of requests to the provider to look again.
    pub(crate) resolves: u64,
    /// Number of installed member lists.
    pub(crate) installs: u64,
    /// Number of removed members.
    pub(crate) removals: u64,
    /// Time since the start at which the last complete set arrived that did not suspend removals.
    pub(crate) last_set_at: Option<Duration>,
}

/// The counts since the start, and what is wrong with discovery now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiscoveryReport {
    pub(crate) counters: Counters,
    /// Reason for which the source of the provider is stale.
    pub(crate) stale: Option<String>,
    /// Peers that are connected and that discovery does not list.
    pub(crate) unlisted: Vec<PeerId>,
    /// Number of targets where no peer is connected and none was admitted.
    pub(crate) unanswered_targets: usize,
    /// Whether an authority has ceased to list this node.
    pub(crate) is_self_unlisted: bool,
}
