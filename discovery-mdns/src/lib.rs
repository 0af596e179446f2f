//! Discovery by multicast DNS for groupcache: the nodes of one network segment find each other with no configuration.
//!
//! Applications name it through `groupcache-discovery`, as `groupcache_discovery::mdns`.
//!
//! A laptop, a lab, an office: what is on one segment is one cluster, with no server and no list. Each node announces
//! itself as a service of the type `_groupcache._tcp` (DNS-SD) and browses for the others; one that starts is known
//! within a second. **Who is alive is decided by the connections between the nodes, never by multicast alone**: a
//! peer that is connected stays when its record is lost, and one that cannot be reached is asked for, and gone when
//! nobody answers for it, however long its record would live. While this node does not hear itself, it drops nobody.
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
//! The node must listen where its peers can dial: [`Mdns::address`] is the address of the machine on the network, and what
//! `DiscoveryConfig::identity` of `groupcache-discovery` takes where `NODE_IP` says nothing.
//!
//! # What is announced
//!
//! The instance is called by the id of the node; with a hash where the id cannot be a name in DNS (capitals, dots), and where
//! the cluster is not `default`. The cluster is a subtype of the service. The TXT record has `txtvers`, `id`,
//! `cluster`, `inc` (its incarnation), `state`, `pv` (the protocol), `weight`, `tls` and `zone`. It can be looked at with
//! `avahi-browse -rt _groupcache._tcp`, or `dns-sd -B _groupcache._tcp`.
//!
//! # What is believed
//!
//! Anybody on the segment can announce anything. A record without TXT, of another cluster, or without an address that
//! is private or link-local is ignored; the others are places to dial. Who gets in is decided by the handshake of the
//! connection: with a cluster key or certificates, nobody else does.
//!
//! # Where it does not work
//!
//! Where there is no multicast: clouds, Kubernetes, Docker's default bridge, and guests of many wireless networks. The
//! node says so in one line, and serves alone. Discovery over NATS, Kubernetes, DNS or a list works there.

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
