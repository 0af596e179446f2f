//! Discovery over NATS for groupcache: the nodes announce themselves to each other.
//!
//! Applications reach this crate through `groupcache-discovery`, as `groupcache_discovery::nats`.
//!
//! The provider needs plain publish and subscribe of any NATS server of version 2, and no JetStream. Each node of an
//! application announces itself every 2 s. A peer expires 8 s after its last message, and leaves at once when it says
//! goodbye. **The broker is not part of the cache.** While the broker is down, paused or unreachable, the nodes keep
//! the peers that they know, and go on. A node expires peers only while its own announcements come back to it, because
//! otherwise silence proves nothing.
//!
//! ```no_run
//! use discovery_nats::Nats;
//! use groupcache_core::{Identity, Node};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let peers = Nats::new("nats://10.0.0.5:4222,nats://10.0.0.6:4222", "users")?.user_and_password("cache", "secret");
//! let node = Node::builder().identity(Identity::from_env()?).provider(peers).start().await?;
//! # node.shutdown().await?; Ok(()) }
//! ```
//!
//! # Permissions
//!
//! The account of the nodes must be allowed to publish and to subscribe below one subject, and nothing else: the
//! subject and the application, as in `groupcache-gossip.users.>`. [`Nats::permission`] returns this subject for a
//! provider. (A key-value bucket and a micro service need more: see the methods `key_value` and `micro_service`.)
//!
//! ```text
//! permissions: { publish: ["groupcache-gossip.users.>"], subscribe: ["groupcache-gossip.users.>"] }
//! ```
//!
//! | feature | adds |
//! |---|---|
//! | `credentials` | nkeys, and credentials files |
//! | `kv` | a JetStream key-value bucket as the store of members |
//! | `micro` | each node as a NATS micro service, for `nats micro ls` |

mod announcement;
mod bus;
mod connect;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
#[cfg(feature = "kv")]
mod kv;
#[cfg(feature = "micro")]
mod micro;
mod options;
mod path;
mod provider;
mod session;
mod stats;
mod subjects;
mod table;

pub use crate::{error::NatsError, options::Nats, stats::NatsStats};
