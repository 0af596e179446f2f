//! Inspection: the reports of a node about its members, its discovery, its loads and its groups.

use std::{sync::Arc, time::Duration};

pub use crate::{
    cache::{EvictionEvent, EvictionEvents, EvictionReason},
    group::inspect::{Candidate, EntryInfo, Inspect, KeyPlacement},
    quarantine::QuarantinedKey,
    telemetry::{GroupInfo, GroupLoads, LoadResult, RecentLoad, RunningLoad},
    write::horizon::HorizonInfo,
};
use crate::{
    error::Error,
    identity::{Address, Incarnation, NodeState, PeerId},
};

/// A member of the view of a node at one moment; see [`Node::members`](crate::Node::members).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberInfo {
    /// Id of the member.
    pub id: PeerId,
    /// State that the member reports.
    pub state: NodeState,
    /// Incarnation of the member: its number among the starts of this id.
    pub incarnation: Incarnation,
    /// Whether the member owns keys.
    pub owns: bool,
    /// Whether requests can be sent to the member at the moment. Always true for the local node.
    pub reachable: bool,
    /// Whether the member is the local node.
    pub local: bool,
}

/// Reports of discovery and the reactions of the node, counted since its start; see
/// [`Node::discovery`](crate::Node::discovery).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiscoveryInfo {
    /// Name of the provider; `None` for a node without one.
    pub provider: Option<Arc<str>>,
    /// Time since the last complete peer set that was accepted; `None` before the first. A healthy provider that
    /// publishes only changes may be silent for a long time.
    pub last_set_age: Option<Duration>,
    /// Number of complete peer sets that lacked most peers at once, so that removals were suspended.
    pub suspended_removals: u64,
    /// Number of goodbyes and departure notices that did not remove a peer at once, because the peer still answered or
    /// had started again.
    pub ignored_goodbyes: u64,
    /// Number of new addresses that were ignored, because the peer still answered at an earlier one.
    pub ignored_addresses: u64,
    /// Number of connections that one side refused: another cluster, another id, no common version, or no trust.
    pub refusals: u64,
    /// Number of Hellos of a stale incarnation of a connected peer.
    pub stale_incarnations: u64,
    /// Number of requests to the provider to read its source again.
    pub resolves: u64,
    /// Number of peers that have left the view.
    pub removals: u64,
    /// Peers that have been connected to this node for 5 s while discovery does not list them.
    pub unlisted: Vec<PeerId>,
    /// Number of listed targets where no peer has answered. [`Node::unconnected`](crate::Node::unconnected) names them.
    pub unanswered_targets: usize,
    /// Reason for which the source of the provider is stale at the moment.
    pub stale: Option<String>,
    /// Whether discovery listed this node before and does not list it now, so that removals are suspended.
    pub self_unlisted: bool,
    /// Age of this node's knowledge of writes, and the peer that holds it back.
    pub horizon: HorizonInfo,
}

/// Age of the knowledge of writes from which it counts as a fault: two lost pings.
const OLD_KNOWLEDGE: Duration = Duration::from_secs(3);

impl DiscoveryInfo {
    /// Returns a sentence for each fault of discovery at the moment, with its remedy. Empty when discovery is healthy.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if let Some(why) = &self.stale {
            faults.push(format!("discovery is stale, and the last set of peers stays: {why}"));
        }
        if self.self_unlisted {
            faults.push("discovery no longer lists this node: check its selector or labels".to_owned());
        }
        for id in &self.unlisted {
            faults.push(format!("{id} is connected and not in discovery: compare the lists of both nodes"));
        }
        let HorizonInfo { age, held_back_by } = &self.horizon;
        if let Some(peer) = held_back_by.as_ref().filter(|_| *age > OLD_KNOWLEDGE) {
            faults.push(format!(
                "writes of the last {age:?} may be unknown, because {peer} was not heard: check the path to it, remove it \
                 from discovery if it is gone, and compare the lists of both nodes"
            ));
        }
        faults
    }
}

/// A target that the node cannot connect to; see [`Node::unconnected`](crate::Node::unconnected).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UnreachablePeer {
    /// Id of the expected peer, if discovery knows it.
    pub id: Option<PeerId>,
    /// Addresses that were dialled.
    pub addresses: Vec<Address>,
    /// Reason of the last failure: [`is_unauthenticated`](Error::is_unauthenticated) when the two nodes do not trust
    /// each other, [`is_unreachable`](Error::is_unreachable) otherwise. The node goes on to connect.
    pub error: Error,
}

/// Loads of a node at one moment; see [`Node::loads`](crate::Node::loads).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadStats {
    /// Number of loads that run.
    pub running: usize,
    /// Number of loads that wait for a permit.
    pub queued: usize,
}
