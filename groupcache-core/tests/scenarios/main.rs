//! Scenarios: tests of the core's promises with real nodes on loopback sockets, some nodes in processes of their own.
//!
//! `cargo test -p groupcache-core --test scenarios owner_lost` runs the scenarios of one module.
#![allow(
    unreachable_pub,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test may panic at an unexpected outcome, and opens sockets of its own"
)]

mod ages;
mod batches;
mod deadlines;
mod delete_holds;
mod discovery;
mod error_propagation;
mod floods;
mod formats;
mod hostile;
mod inspect;
mod inventions;
mod liars;
mod limits;
mod loads;
mod log_redaction;
mod many_keys;
mod measure;
mod membership;
mod memory;
mod misbehaving_peers;
mod model;
mod names;
mod one_load;
mod overload;
mod owner_lost;
mod panicking_drops;
mod panicking_tasks;
mod poison;
mod previous_owner;
mod protection;
mod received_bytes;
mod removed_group;
mod replicas;
mod settling;
mod shutdown;
mod support;
mod threads;
#[cfg(feature = "tls")]
mod trust;
mod wire_limits;
mod writes;
mod zones;

/// The protocol messages, for tests that send frames no node would send.
///
/// The files are included instead of declared as modules by path, because rustfmt follows such modules and generated
/// code must stay unchanged.
#[allow(missing_docs, dead_code, reason = "generated")]
mod proto {
    include!("../../src/protocol/proto/groupcache.v1.rs");
    include!("../../src/protocol/proto/plain.rs");
}
