//! The promises of the core as scenarios: real nodes on real sockets of loopback, some in processes of their own.
//!
//! `cargo test -p groupcache-core --test scenarios owner_lost` runs one of them.
#![allow(
    unreachable_pub,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test may stop at the first surprise, and the network is its own"
)]

mod ages;
mod answers;
mod batches;
mod deadlines;
mod drops;
mod floods;
mod formats;
mod former_owner;
mod holds;
mod hostile;
mod hot_copies;
mod limits;
mod loads;
mod looking;
mod many_keys;
mod membership;
mod memory;
mod model;
mod odd_peers;
mod one_load;
mod overload;
mod owner_lost;
mod protection;
mod removed_group;
mod secrecy;
mod shutdown;
mod support;
#[cfg(feature = "tls")]
mod trust;
mod wire_limits;
mod writes;
mod zones;

/// The messages themselves, for tests that speak the protocol as no node would.
///
/// Included and not a module by path: the formatter follows those, and the code must stay as it was generated.
#[allow(missing_docs, reason = "generated")]
mod proto {
    include!("../../src/protocol/proto/groupcache.v1.rs");
    include!("../../src/protocol/proto/plain.rs");
}
