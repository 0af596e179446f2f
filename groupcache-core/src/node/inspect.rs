//! Inspection: what a node reports about its members, its discovery and its groups.

use std::time::Duration;

pub use crate::{
    cache::{EvictionEvent, EvictionEvents, EvictionReason},
    group::inspect::{Candidate, EntryInfo, Inspect, KeyPlacement},
};
use crate::{
    error::Error,
    identity::{Address, Incarnation, NodeState, PeerId},
};

/// A member of the cluster, as this node sees it now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberInfo {
    /// Its id.
    pub id: PeerId,
    /// What it says of itself.
    pub state: NodeState,
    /// Which life of that id.
    pub incarnation: Incarnation,
    /// Whether keys are its own.
    pub owns: bool,
    /// Whether requests can be sent to it now; always true for this node itself.
    pub reachable: bool,
    /// Whether it is this node.
    pub local: bool,
}

/// What discovery has said so far, and what was made of it; counts are since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiscoveryInfo {
    /// Since the last complete set that was believed; `None` before the first. A provider that publishes only
    /// changes may be silent for long and well.
    pub last_set_age: Option<Duration>,
    /// Sets that lost most peers at once and were held back.
    pub suspended_removals: u64,
    /// Goodbyes that were not acted upon at once, because the peer still answered or had started again.
    pub ignored_goodbyes: u64,
    /// New addresses of peers that still answered at their old ones.
    pub ignored_addresses: u64,
    /// Connections that one side refused: another cluster, another id, no common version.
    pub refusals: u64,
    /// Hellos of an older life of a connected peer.
    pub stale_incarnations: u64,
    /// Times that the provider was asked to look again.
    pub resolves: u64,
    /// Peers that left.
    pub removals: u64,
}

/// A peer that discovery names and that there is no connection to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UnreachablePeer {
    /// Its id, where discovery knows it.
    pub id: Option<PeerId>,
    /// Where it was dialled.
    pub addresses: Vec<Address>,
    /// Why the last attempt failed: [`is_unauthenticated`](Error::is_unauthenticated) when the two do not trust each
    /// other, [`is_unreachable`](Error::is_unreachable) otherwise. Attempts go on.
    pub error: Error,
}

/// Loads of a node at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadStats {
    /// Number of loads that run.
    pub running: usize,
    /// Number of loads that wait for a permit.
    pub queued: usize,
}
