//! Discovery by multicast DNS for groupcache: the nodes of one network segment find each other, given the name of their cluster.
//!
//! Applications use this crate through `groupcache-discovery`, as `groupcache_discovery::mdns`.
//!
//! Nodes with the same cluster name on one network segment (a laptop, a lab, an office) form one cluster, with no
//! server and no list of peers. Each node announces itself as a service of the type `_groupcache._tcp` (DNS-SD) and
//! browses for the others, so that a node is known within a second of its start. **Connections between the nodes decide
//! which peers are alive, multicast alone never does.** A connected peer stays when its record is lost. A peer that
//! cannot be reached is queried for, and dropped when no answer confirms its record, even if the time to live of the
//! record has not ended. While a node does not receive its own announcement, it drops no peer.
//!
//! ```no_run
//! use discovery_mdns::Mdns;
//! use groupcache_core::{Identity, Node};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Node::builder().identity(Identity::from_env()?).provider(Mdns::new()).start().await?;
//! # node.shutdown().await?; Ok(()) }
//! ```
//!
//! The node must listen on an address that its peers can dial. [`Mdns::address`] returns the address of this machine on
//! the network, and `DiscoveryConfig::identity` of `groupcache-discovery` uses that address where `NODE_IP` is not set.
//!
//! # Announced record
//!
//! The instance name is the id of the node. A hash is added where the id cannot be a name in DNS (capitals, dots) and
//! where the cluster is not `default`. The cluster is a subtype of the service. The TXT record has `txtvers`, `id`,
//! `cluster`, `inc` (the incarnation), `state`, `pv` (the protocol), `weight`, `tls` and `zone`. The commands
//! `avahi-browse -rt _groupcache._tcp` and `dns-sd -B _groupcache._tcp` show the announced records.
//!
//! # Accepted records
//!
//! Any machine on the segment can announce any record. A record without TXT, of another cluster, or without an address
//! that is private or link-local is ignored. Every other record names a target to dial. The handshake of the connection
//! decides whether the target is admitted: with a cluster key or certificates, only nodes that hold them are.
//!
//! # Networks without multicast
//!
//! Clouds, Kubernetes, Docker's default bridge and guests of many wireless networks have no multicast. The node reports
//! that in one line of the log and serves alone. Discovery over NATS, Kubernetes, DNS or a list works there.

mod daemon;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod interfaces;
mod options;
mod path;
mod provider;
mod record;
mod session;
mod stats;
mod subscription;
mod table;

pub use crate::{error::MdnsError, options::Mdns, stats::MdnsStats};
