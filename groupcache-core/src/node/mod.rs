//! A node: one process of the service, with its groups, its peers and its server.

mod builder;
mod handover;
pub mod inspect;
mod lifecycle;
mod membership;
mod replay;
mod security;
mod supervise;
#[cfg(test)]
mod tests;
mod tick;

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use crate::node::builder::NodeBuilder;
use crate::node::inspect::{DiscoveryInfo, LoadStats, MemberInfo, UnreachablePeer};
use crate::node::membership::{Command, Status};
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

/// How often the groups of the peers are looked at while a node waits to be ready.
const READY_LOOK: Duration = Duration::from_millis(10);

/// One process of a service, as a member of the cluster.
///
/// A cheap handle; the node lives until [`shutdown`](Self::shutdown), or until the last handle is dropped, which
/// ends it without a word to its peers.
///
/// ```
/// # use groupcache_core::Node;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), groupcache_core::Error> {
/// let node = Node::builder().start().await?; // alone on a free port of loopback
/// println!("{} answers peers on {}", node.id(), node.address());
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
    server: Server,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
    /// Tells the provider to withdraw.
    leaving: watch::Sender<bool>,
    /// Cancelled when the provider has withdrawn.
    withdrawn: CancellationToken,
    /// Stops the listener and ends the connections that are left.
    stop_serving: CancellationToken,
    /// Where its peer service is mounted, if it does not listen itself.
    mounted: Option<PeerService>,
}

impl Node {
    /// Begins to build a node; every setting has a default.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    /// Begins to build a group of this node.
    ///
    /// All nodes of a service build the same groups. One that is built later, or on some nodes only, works: a
    /// node asks only those peers that have it.
    pub fn group<V: Value>(&self, name: &str) -> GroupBuilder<V> {
        GroupBuilder::new(Arc::clone(&self.inner.context), name)
    }

    /// Takes a group out of the node; its memory is freed, a moment later where there are many entries, and who waits for
    /// it gets an error with [`is_closed`](Error::is_closed). Returns whether there was one.
    pub fn remove_group(&self, name: &str) -> bool {
        let context = &self.inner.context;
        let Some(group) = context.registry.remove(name) else { return false };
        group.close();
        context.local.change(|hello| hello.groups = context.registry.names());
        true
    }

    /// The id that the ring places it by.
    pub fn id(&self) -> PeerId {
        self.inner.identity.id()
    }

    /// Where it listens for peers.
    pub fn address(&self) -> SocketAddr {
        self.inner.identity.listen()
    }

    /// What it says of itself now.
    pub fn state(&self) -> NodeState {
        self.inner.context.local.hello().state
    }

    /// The limits that it was started with.
    pub fn limits(&self) -> &Limits {
        &self.inner.context.local.limits
    }

    /// Everyone in the view, sorted by id; this node is always among them.
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

    /// Peers that discovery names and that there is no connection to, each with the reason. Empty when all is well.
    pub fn unconnected(&self) -> Vec<UnreachablePeer> {
        let failures = self.inner.context.links().into_iter().filter_map(|link| link.failure());
        failures
            .map(|(target, error)| UnreachablePeer { id: target.expected, addresses: target.addresses, error })
            .collect()
    }

    /// Reads the files with certificates and keys again, instead of waiting up to 10 s for it. New connections use them at
    /// once, those made before end one by one within 50 s. Returns whether there was anything new.
    ///
    /// # Errors
    /// [`is_config`](Error::is_config) when they cannot be used; those in use stay. Also without TLS.
    #[cfg(feature = "tls")]
    pub async fn reload_tls(&self) -> Result<bool> {
        self.keeper()?.reload().await
    }

    /// Puts other certificates, authorities or names in the place of those in use, as [`reload_tls`](Self::reload_tls).
    ///
    /// # Errors
    /// As [`reload_tls`](Self::reload_tls).
    #[cfg(feature = "tls")]
    pub async fn set_mutual_tls(&self, tls: MutualTls) -> Result<bool> {
        self.keeper()?.take(Source::Certificates(tls)).await
    }

    /// Puts other cluster keys in the place of those in use, as [`reload_tls`](Self::reload_tls).
    ///
    /// # Errors
    /// As [`reload_tls`](Self::reload_tls).
    #[cfg(feature = "tls")]
    pub async fn set_cluster_key(&self, key: ClusterKey) -> Result<bool> {
        if self.inner.mounted.is_some() {
            return Err(Error::config(
                "a peer service that is mounted shows your server's certificate: set_mutual_tls(...)",
            ));
        }
        self.keeper()?.take(Source::Key(key)).await
    }

    #[cfg(feature = "tls")]
    fn keeper(&self) -> Result<&CredentialStore> {
        match &self.inner.context.local.security {
            Security::Tls(keeper) => Ok(keeper),
            Security::Open { .. } => Err(Error::config(
                "this node was started without TLS; start it with cluster_key(...) or mutual_tls(...)",
            )),
        }
    }

    /// How many connected peers have this group, in any format.
    pub fn peers_with_group(&self, name: &str) -> usize {
        self.inner.context.links().iter().filter(|link| link.admits() && link.offers_any(name)).count()
    }

    /// The fingerprint of its ring: two nodes with the same one give every key the same owner.
    pub fn fingerprint(&self) -> u64 {
        self.inner.context.view_ref().fingerprint()
    }

    /// How many views there have been; a number of this node alone.
    pub fn epoch(&self) -> u64 {
        self.inner.context.view_ref().epoch
    }

    /// What has been counted since the start.
    pub fn stats(&self) -> NodeStats {
        self.inner.context.local.counters.snapshot()
    }

    /// What discovery has said so far, and what was made of it.
    pub fn discovery(&self) -> DiscoveryInfo {
        let context = &self.inner.context;
        let counted = *context.membership.lock();
        let now = context.local.clock.elapsed();
        DiscoveryInfo {
            last_set_age: counted.last_set_at.map(|at| now.saturating_sub(at)),
            suspended_removals: counted.holds,
            ignored_goodbyes: counted.ignored_goodbyes,
            ignored_addresses: counted.ignored_addresses,
            refusals: counted.refusals,
            stale_incarnations: counted.old_lives,
            resolves: counted.resolves,
            removals: counted.removals,
        }
    }

    /// Returns how many loads run on this node now, and how many wait for a permit.
    pub fn loads(&self) -> LoadStats {
        let context = &self.inner.context;
        let (running, queued) = context.permits.in_use(context.local.limits.max_loads);
        LoadStats { running, queued }
    }

    /// Requests of this node that peers have not answered yet.
    pub fn in_flight(&self) -> usize {
        self.inner.context.links().iter().map(|link| link.in_flight()).sum()
    }

    /// Waits until this node is Ready, sees at least `members` Ready members, itself included, and the groups that
    /// it has are known to be on as many.
    ///
    /// Until then a key may be loaded by more than one node. It waits as long as that takes: bound it by a
    /// time-out. Dropping the future is safe.
    ///
    /// # Errors
    /// [`is_closed`](Error::is_closed) when the node is shut down meanwhile, or was before.
    pub async fn ready(&self, members: usize) -> Result<()> {
        let context = &self.inner.context;
        let mut status = self.inner.status.clone();
        loop {
            let waited = status.wait_for(|s| s.is_ready && s.ready_members >= members).await;
            waited.map(drop).map_err(|_| self.closed())?;
            // The last status outlives the task that set it.
            if context.is_closed() {
                return Err(self.closed());
            }
            let groups = context.registry.names();
            let has_all = |link: &Arc<Link>| link.admits() && groups.iter().all(|g| link.offers(&g.name, g.format));
            if context.links().iter().filter(|link| has_all(link)).count() + 1 >= members {
                return Ok(());
            }
            tokio::time::sleep(READY_LOOK).await;
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
