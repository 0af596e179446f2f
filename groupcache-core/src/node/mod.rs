//! The node: starts, runs and ends everything that one process of the cache needs.
//!
//! [`builder`] has the settings of a node, and `start` makes the node of them. [`membership`] turns the actions of the
//! stabilizer into connections and views, `serving` answers peers, `tick` checks deadlines and silence, [`handover`]
//! receives values of previous owners, `pull` asks for writes that did not arrive, and [`lifecycle`] lets the node leave.
//! The state that they share with the groups is the [`NodeContext`].
//!
//! All tasks of this module end with the node, at the latest when its last handle is dropped.

mod builder;
mod channels;
mod group_mismatch;
mod groups;
mod handover;
pub mod inspect;
mod lifecycle;
mod measure;
mod membership;
mod names;
mod pull;
mod security;
mod serve_threads;
mod serving;
mod start;
mod supervise;
#[cfg(test)]
mod tests;
mod tick;
mod warnings;

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use crate::node::builder::NodeBuilder;
use crate::node::channels::{Command, Status};
use crate::node::inspect::{DiscoveryInfo, HorizonInfo, LoadStats, MemberInfo, QuarantinedKey, UnreachablePeer};
use crate::node::serve_threads::ServeThreads;
#[cfg(feature = "tls")]
use crate::transport::{
    Security,
    tls::{ClusterKey, CredentialStore, MutualTls, Source},
};
use crate::{
    context::NodeContext,
    error::{Error, Kind, Result},
    group::GroupBuilder,
    identity::{Identity, NodeState, PeerId},
    limits::Limits,
    peer::{client::link::Link, mount::PeerService, server::Server},
    runtime::stats::NodeStats,
    value::Value,
};

/// Interval at which [`Node::ready`] checks the groups of the peers.
const READY_POLL: Duration = Duration::from_millis(10);

/// A handle to a node: one process that takes part in the cache.
///
/// Clones are cheap and refer to the same node. The node runs until [`shutdown`](Self::shutdown), or until the last
/// handle is dropped. Dropping the last handle closes the node at once without a goodbye, so that peers take it for a
/// crash. Only the provider still withdraws the announcement. Groups do not keep the node alive.
///
/// ```
/// # use groupcache_core::Node;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), groupcache_core::Error> {
/// let node = Node::builder().start().await?; // alone, on a free port of loopback
/// println!("{} listens on {}", node.id(), node.address());
/// node.shutdown().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    context: Arc<NodeContext>,
    identity: Identity,
    /// Name of the provider; `None` for a node without one.
    provider: Option<Arc<str>>,
    server: Server,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
    /// Signal to the provider to withdraw its announcement; `true` once the node leaves.
    leaving: watch::Sender<bool>,
    /// Token that is cancelled when the provider has withdrawn its announcement.
    withdrawn: CancellationToken,
    /// Token that, once cancelled, stops the listener and ends the remaining connections.
    stop_serving: CancellationToken,
    /// Peer service in the user's server; `None` for a node that listens itself.
    mounted: Option<PeerService>,
    /// Threads that serve peers, if the node has any. Dropped last, after the tasks were told to end.
    _threads: Option<ServeThreads>,
}

impl Node {
    /// Returns a builder of a node. Every setting has a default.
    ///
    /// ```
    /// # use groupcache_core::Node;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), groupcache_core::Error> {
    /// let node = Node::builder().start().await?;
    /// assert!(node.address().ip().is_loopback());
    /// # Ok(()) }
    /// ```
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    /// Returns a builder of a group with this name.
    ///
    /// All nodes of a service should build the same groups. A group may also be built later, or on some nodes only,
    /// because a node sends requests only to peers that have the group.
    ///
    /// ```
    /// # use groupcache_core::Node;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), groupcache_core::Error> {
    /// # let node = Node::builder().start().await?;
    /// let loader = async |key: &str| Ok::<_, std::io::Error>(format!("user {key}"));
    /// let users = node.group::<String>("users").capacity_bytes(64 << 20).loader(loader).build()?;
    /// assert_eq!(users.get("7").await?, "user 7");
    /// # Ok(()) }
    /// ```
    pub fn group<V: Value>(&self, name: &str) -> GroupBuilder<V> {
        GroupBuilder::new(Arc::clone(&self.inner.context), name)
    }

    /// Removes a group from the node and returns whether the node had it.
    ///
    /// Callers that wait for the group get an error with [`is_closed`](Error::is_closed). The memory of the group is
    /// freed, in the background if there are many entries.
    pub fn remove_group(&self, name: &str) -> bool {
        let context = &self.inner.context;
        let Some(group) = context.registry.remove(name) else { return false };
        group.close();
        context.local.change(|hello| hello.groups = context.registry.names());
        true
    }

    /// Returns the id of the node. The id alone decides the node's place on the ring.
    pub fn id(&self) -> PeerId {
        self.inner.identity.id()
    }

    /// Returns the address on which the node listens for peers.
    ///
    /// A port of 0 in the [`Identity`] is replaced by the port that the node got. For a node with a mounted peer
    /// service, the address is that of the identity.
    pub fn address(&self) -> SocketAddr {
        self.inner.identity.listen()
    }

    /// Returns the state that the node reports to its peers at the moment.
    pub fn state(&self) -> NodeState {
        self.inner.context.local.hello().state
    }

    /// Returns the limits that the node was started with.
    pub fn limits(&self) -> &Limits {
        &self.inner.context.local.limits
    }

    /// Returns the members of the view, sorted by id. The local node is always one of them.
    pub fn members(&self) -> Vec<MemberInfo> {
        let context = &self.inner.context;
        let info = |member: &crate::membership::stabilizer::Member| MemberInfo {
            id: member.id.clone(),
            state: member.state,
            incarnation: member.incarnation,
            owns: member.share > 0,
            reachable: member.dial.is_none() || context.link(member).is_some_and(|link| link.admits()),
            local: member.dial.is_none(),
        };
        context.view().members().iter().map(info).collect()
    }

    /// Returns the targets that the node cannot connect to, each with the reason of the last failed attempt. Empty when
    /// the node is connected to every target that discovery reports.
    ///
    /// A target is absent until the first attempt has failed. Attempts go on for as long as discovery reports the
    /// target.
    pub fn unconnected(&self) -> Vec<UnreachablePeer> {
        let failures = self.inner.context.links().into_iter().filter_map(|link| link.failure());
        failures
            .map(|(target, error)| UnreachablePeer { id: target.expected, addresses: target.addresses, error })
            .collect()
    }

    /// Reloads the files with certificates and keys, and returns whether anything has changed.
    ///
    /// The node reloads them every 10 s by itself, and the call saves the wait. New connections use the new
    /// certificates and keys at once. Earlier connections end one after the other within 50 s.
    ///
    /// # Errors
    /// [`is_config`](Error::is_config) when a file cannot be read or used, and when the node was started without TLS.
    /// The certificates and keys in use stay.
    #[cfg(feature = "tls")]
    pub async fn reload_tls(&self) -> Result<bool> {
        self.credentials()?.reload().await
    }

    /// Replaces certificates, authorities and peer names, and returns whether anything has changed.
    ///
    /// Connections change over as described at [`reload_tls`](Self::reload_tls).
    ///
    /// # Errors
    /// [`is_config`](Error::is_config) when the new ones cannot be used, and when the node was started without TLS. The
    /// certificates and keys in use stay.
    #[cfg(feature = "tls")]
    pub async fn set_mutual_tls(&self, tls: MutualTls) -> Result<bool> {
        self.credentials()?.take(Source::Certificates(tls)).await
    }

    /// Replaces the cluster keys, and returns whether anything has changed.
    ///
    /// Connections change over as described at [`reload_tls`](Self::reload_tls).
    ///
    /// # Errors
    /// [`is_config`](Error::is_config) when the key cannot be used, when the node was started without TLS, and for a
    /// node with a mounted peer service, because the user's server presents its own certificate. The certificates and
    /// keys in use stay.
    #[cfg(feature = "tls")]
    pub async fn set_cluster_key(&self, key: ClusterKey) -> Result<bool> {
        if self.inner.mounted.is_some() {
            return Err(Error::config(
                "a mounted peer service presents the certificate of your server; use set_mutual_tls(...)",
            ));
        }
        self.credentials()?.take(Source::Key(key)).await
    }

    #[cfg(feature = "tls")]
    fn credentials(&self) -> Result<&CredentialStore> {
        match &self.inner.context.local.security {
            Security::Tls(credentials) => Ok(credentials),
            Security::Open { .. } => Err(Error::config(
                "this node was started without TLS; start it with cluster_key(...) or mutual_tls(...)",
            )),
        }
    }

    /// Returns the number of connected peers that have this group, in any format.
    pub fn peers_with_group(&self, name: &str) -> usize {
        self.inner.context.links().iter().filter(|link| link.admits() && link.offers_any(name)).count()
    }

    /// Returns the fingerprint of the ring. Two nodes with equal fingerprints agree about the owner of every key.
    pub fn fingerprint(&self) -> u64 {
        self.inner.context.view_ref().fingerprint()
    }

    /// Returns the number of the current view: 1 for the empty view at the start, and one more with each change.
    ///
    /// Each node counts its own views, so that the numbers of two nodes cannot be compared.
    pub fn epoch(&self) -> u64 {
        self.inner.context.view_ref().epoch
    }

    /// Returns the counters of the node since its start.
    pub fn stats(&self) -> NodeStats {
        self.inner.context.local.counters.snapshot()
    }

    /// Returns a receiver of the age of this node's knowledge of writes, which changes about once a second.
    ///
    /// The age is the time within which a group with a bound on its staleness serves its values; see
    /// [`GroupBuilder::max_staleness`]. An age that grows names the peer that cannot be heard.
    ///
    /// ```
    /// # fn f(node: &groupcache_core::Node) {
    /// let horizon = node.horizon().borrow().clone();
    /// println!("the oldest knowledge is {:?} old, of {:?}", horizon.age, horizon.held_back_by);
    /// # }
    /// ```
    pub fn horizon(&self) -> watch::Receiver<HorizonInfo> {
        self.inner.context.local.writes.horizon()
    }

    /// Returns the keys that no node loads at present, because processes ended while they loaded them.
    ///
    /// A get of such a key fails with [`Error::is_quarantined`](crate::Error::is_quarantined). All nodes of the cluster
    /// show each other these keys, at most 64 of a group. Look into the loader: an abort, a stack overflow or too much
    /// memory ends the whole process.
    ///
    /// ```
    /// # fn f(node: &groupcache_core::Node) {
    /// for key in node.quarantined() {
    ///     eprintln!("{:?} of {:?} has ended {} processes", key.key, key.group, key.deaths);
    /// }
    /// # }
    /// ```
    pub fn quarantined(&self) -> Vec<QuarantinedKey> {
        let local = &self.inner.context.local;
        local.quarantine.list(local.clock.read_ms())
    }

    /// Returns what discovery has reported, and how the node has reacted, since its start.
    pub fn discovery(&self) -> DiscoveryInfo {
        let context = &self.inner.context;
        let report = context.membership.lock().clone();
        let counted = report.counters;
        let now = context.local.clock.elapsed();
        DiscoveryInfo {
            provider: self.inner.provider.clone(),
            last_set_age: counted.last_set_at.map(|at| now.saturating_sub(at)),
            suspended_removals: counted.holds,
            ignored_goodbyes: counted.ignored_goodbyes,
            ignored_addresses: counted.ignored_addresses,
            refusals: counted.refusals,
            stale_incarnations: counted.stale_incarnations,
            resolves: counted.resolves,
            removals: counted.removals,
            unlisted: report.unlisted,
            unanswered_targets: report.unanswered_targets,
            stale: report.stale,
            self_unlisted: report.is_self_unlisted,
            horizon: context.local.writes.horizon().borrow().clone(),
        }
    }

    /// Returns the number of loads that run on this node, and the number that wait for a permit.
    pub fn loads(&self) -> LoadStats {
        let context = &self.inner.context;
        let (running, queued) = context.permits.in_use(context.local.limits.max_loads);
        LoadStats { running, queued }
    }

    /// Returns the number of requests of this node that peers have not answered yet.
    pub fn in_flight(&self) -> usize {
        self.inner.context.links().iter().map(|link| link.in_flight()).sum()
    }

    /// Waits until the node is Ready, the view has at least `members` Ready members, and at least `members` nodes have
    /// all groups of this node. The two numbers include the local node.
    ///
    /// Before that, a key may be loaded by more than one node. The wait has no limit, so bound it with a time-out.
    /// Dropping the future is safe.
    ///
    /// ```
    /// # async fn f(node: groupcache_core::Node) -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// tokio::time::timeout(Duration::from_secs(30), node.ready(3)).await??;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`is_closed`](Error::is_closed) when the node is shut down, before the call or during it.
    pub async fn ready(&self, members: usize) -> Result<()> {
        let context = &self.inner.context;
        let mut status = self.inner.status.clone();
        loop {
            let waited = status.wait_for(|s| s.is_ready && s.ready_members >= members).await;
            waited.map(drop).map_err(|_| self.closed())?;
            // The last status stays readable after the membership task has ended.
            if context.is_closed() {
                return Err(self.closed());
            }
            let groups = context.registry.names();
            let has_all = |link: &Arc<Link>| link.admits() && groups.iter().all(|g| link.offers(&g.name, g.format));
            if context.links().iter().filter(|link| has_all(link)).count() + 1 >= members {
                return Ok(());
            }
            context.timers.sleep(READY_POLL).await;
        }
    }

    fn closed(&self) -> Error {
        Error::new(Kind::Closed, format!("node {} was shut down", self.id()))
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.id())
            .field("address", &self.address())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
