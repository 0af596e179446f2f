//! A distributed read-through cache that lives in the processes of your own service.
//!
//! Each process starts a [`Node`]. A [`Provider`] tells the node who its peers are; every key has one owner among
//! them; a miss is loaded once in the whole cluster and handed to every caller. Nothing else has to run.
//! Applications add the crate `groupcache-discovery`, which is this one with the providers.
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
//! users.remove("12345").await?.log_unreached();
//! node.shutdown().await?;
//! # Ok(()) }
//! ```
//!
//! # A get, step by step
//!
//! 1. **Memory.** A value that is there and has not expired is cloned: one look-up, no lock held, no task.
//! 2. **The view** says who owns the key; it is taken once.
//! 3. **A peer owns it.** One request, sent together with those of all other callers, and shared by all callers of
//!    the key. Its answer is the answer: a value, not found, the loader's error, overloaded. Only a peer that cannot
//!    be reached, or that declines, sends the request to the next successor; when there is none, step 4.
//! 4. **This node owns it.** One load runs, in a task of its own, for everyone who asks. Its value is kept unless a
//!    write has passed it. When the key has moved here lately, its former owner is asked first, from memory only and
//!    for at most 20 ms.
//!
//! A request that came from a peer takes steps 1 and 4 only: it is never forwarded, so nodes that disagree about
//! the owner cannot wait for each other.
//!
//! # What is promised
//!
//! - One load: while the nodes agree, any number of gets of a missing key cause one call of the loader.
//! - No get outlives its deadline, whatever peers and loaders do.
//! - An unreachable peer is not the callers' error while the loader works here.
//! - The accounted bytes of a group never exceed its budget.
//! - Any future may be dropped at any time; a panic of a loader is an error for those who waited.
//! - Once [`Group::remove`] or [`Group::set`] has returned and names nobody as unreached, no get that starts then, on
//!   any node of the view, yields a value whose load began before it.
//!
//! Not promised: exactly one load while the network is split, linearizable reads, locks, counters, durability.

// The helpers of the integration tests name the crate as users do.
#[cfg(test)]
extern crate self as groupcache_core;

// First, because its macro puts bugs in where a build asks for them.
#[macro_use]
mod testing;

mod cache;
mod context;
mod engine;
mod error;
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
mod ring;
mod runtime;
mod transport;
pub mod value;
mod write;

// The helpers of the integration tests find the generated messages here and in their own crate.
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
