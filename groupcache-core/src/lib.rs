//! A distributed read-through cache that runs in the processes of your own service.
//!
//! Each process starts a [`Node`]. A [`Provider`](discovery::Provider) reports the peers of the node, and each key has
//! one owner among the nodes. A missing value is loaded once in the whole cluster, and every caller gets the result. No
//! other server is needed. Applications add the crate `groupcache-discovery`, which contains this crate and the
//! providers.
//!
//! ```
//! use std::time::Duration;
//! use groupcache_core::{Error, Node};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Error> {
//! let node = Node::builder().start().await?; // alone; .provider(...) makes it one of a cluster
//! let users = node
//!     .group::<String>("users")
//!     .capacity_bytes(64 << 20)
//!     .time_to_live(Duration::from_secs(300))
//!     .loader(async |key: &str| Ok::<_, std::io::Error>(format!("user {key}, from the database")))
//!     .build()?;
//! assert_eq!(users.get("12345").await?, "user 12345, from the database");
//! users.remove("12345").await?.log_pending();
//! node.shutdown().await?;
//! # Ok(()) }
//! ```
//!
//! # A get, step by step
//!
//! 1. **Memory.** If the node holds the value, as an owned entry or as a replica, and the value has not expired, the
//!    caller gets a clone. A hit takes one or two lookups, waits for nothing, and holds no lock while it clones. A
//!    negative entry answers "not found". A hit that is due for a refresh begins one load in the background.
//! 2. **View.** The get takes the view once. The view names the owner of the key and its successors.
//! 3. **A peer is the owner.** The node sends one request, batched with the requests of other callers, and shares it
//!    between all callers of the key. A value, "not found", a loader's error and "overloaded" are answers. The request
//!    goes to the next successor only if a peer is unreachable, declines, or does not offer the group. The node loads
//!    the value itself, as in step 4, if it is the next candidate, if no candidate is left, or if too many second
//!    attempts were made lately.
//! 4. **The node itself is the owner.** The load runs in a task of its own, for every caller on this node and on peers.
//!    If the key moved to this node in the last 10 minutes and was neither written nor loaded here since, its previous
//!    owners are asked first, from memory only and for at most 20 ms in all. Memory keeps the value, unless a write
//!    came after the load began, a delete hold is in force, or the loader returns
//!    [`do_not_keep`](Loaded::do_not_keep). A value of a key that another node owns is kept for 60 s at most.
//!
//! A request from a peer takes steps 1 and 4 only, and replicas do not answer it. No node forwards such a request, so
//! that two nodes with different views cannot wait for each other.
//!
//! # Promises
//!
//! - **A single load.** While the nodes have equal views and reach each other, any number of concurrent gets of a missing
//!   key, on any nodes, cause one load, however slow it is until its deadline. The value must be one that memory keeps.
//!   A write separates: a get that begins after the write does not share a load with a get that began before it.
//! - **Bounded loads.** While views differ or the owner is unreachable, each node that must load runs one load of a key
//!   at a time, except that a write separates here too.
//! - **No hang.** Every get ends by its deadline (default: 10 s), whatever peers and loaders do. A loader must not
//!   block its thread.
//! - **Peers may die.** An unreachable peer is not an error of a get while the loader works on this node, this node is
//!   not overloaded, and no load of the key has ended a process before; see [`Error::is_quarantined`].
//! - **Overload is answered.** A full queue is an error at once, not a load on another node.
//! - **Bounded memory.** The accounted bytes of a group never exceed its budget.
//! - **Dropping is safe.** Any future may be dropped at any await. A panic of a loader is an error of its waiters.
//! - **Bad input.** Bad input from a peer is an error of its request or of its connection, never a panic, a hang or the
//!   end of the listener.
//! - **Writes.** Once [`Group::set`], [`Group::remove`] or [`Group::clear`] has returned an outcome that
//!   [is complete](WriteOutcome::is_complete), no get that starts afterwards, on any node of the view, yields a value
//!   of a load that began before the write.
//! - **Clocks.** Monotonic time decides expiry, time-outs and the removal of members. The wall clock orders the
//!   incarnations of a node and, with TLS, dates certificates.
//!
//! Not promised: exactly one load while the network is partitioned, linearizable reads, locks, counters, durability.

// The helpers of the integration tests use the name of the crate that users have.
#[cfg(test)]
extern crate self as groupcache_core;

// First, because the other modules use its macro `mutant!`, which puts known bugs into builds that ask for one.
#[macro_use]
mod testing;

mod cache;
mod context;
mod engine;
pub mod environment;
mod error;
#[doc(hidden)]
pub mod files;
mod flight;
mod group;
mod handover;
mod identity;
mod limits;
pub mod loader;
mod membership;
mod node;
mod peer;
mod protocol;
mod quarantine;
mod ring;
mod runtime;
mod telemetry;
mod transport;
pub mod value;
mod write;

// The helpers of the integration tests find the generated messages here as they do in their own crate.
#[cfg(test)]
pub(crate) use protocol::proto;

pub use async_trait::async_trait;
pub use bytes;

#[cfg(any(test, feature = "testing"))]
pub use crate::testing::conformance;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub use crate::testing::fuzz;
#[cfg(simulation)]
#[doc(hidden)]
pub use crate::testing::simulation;
#[cfg(feature = "tls")]
pub use crate::transport::tls;
pub use crate::{
    error::{BoxError, Error, Result},
    group::{Group, GroupBuilder},
    identity::{Identity, PeerId},
    limits::{Limits, MAX_KEY_BYTES},
    loader::{Load, LoadError, Loaded, Loader},
    membership::discovery,
    node::{Node, NodeBuilder, inspect},
    peer::mount,
    runtime::stats,
    value::{Json, Prost, Value},
    write::outcome::{RemoveOptions, WriteOutcome},
};
