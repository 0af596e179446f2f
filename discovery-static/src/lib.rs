//! Static discovery for groupcache: a list of peers, a file, DNS names, or a handle that your code sets.
//!
//! Applications reach this crate through `groupcache-discovery`, as `groupcache_discovery::list`.
//!
//! A list as text comes from a variable or a command line. Every process may be given the same list, itself included,
//! because a node recognises itself:
//!
//! ```
//! use discovery_static::Static;
//! use groupcache_core::Node;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let peers: Static = "a@127.0.0.1:7001, b@127.0.0.1:7002".parse()?;
//! # let peers = Static::default();
//! let node = Node::builder().provider(peers).start().await?;
//! # node.shutdown().await?; Ok(()) }
//! ```
//!
//! A set that changes while the program runs is for tests, and for applications that find their peers themselves:
//!
//! ```
//! use discovery_static::Static;
//! use groupcache_core::{Node, discovery::Peer};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), groupcache_core::Error> {
//! let peers = Static::default(); // no peers yet
//! let handle = peers.handle();
//! let node = Node::builder().provider(peers).start().await?;
//! # let other = Node::builder().start().await?;
//! # let address = other.address().to_string();
//! handle.add(Peer::at(address)?); // such as 10.0.0.8:7946
//! node.ready(2).await?;
//! # other.shutdown().await?; node.shutdown().await?; Ok(()) }
//! ```
//!
//! | feature | adds |
//! |---|---|
//! | `file` | `File`: the lines of a file, read again when it changes |
//! | `dns` | `Dns`: the addresses of DNS names (A, AAAA, SRV), resolved again and again |

#[cfg(feature = "dns")]
mod dns;
#[cfg(feature = "file")]
mod file;
#[cfg(feature = "dns")]
mod found;
mod list;
#[cfg(feature = "dns")]
mod lookup;

#[cfg(feature = "dns")]
pub use crate::dns::Dns;
#[cfg(feature = "file")]
pub use crate::file::File;
pub use crate::list::{Handle, ParseError, Static};
