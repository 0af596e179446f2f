//! Generated from `proto/groupcache/v1/peer.proto` by `make proto`; do not edit.
//!
//! Of the messages a Hello, its parts and the unary get are used. The others are read and written by hand, in `wire`; its
//! tests compare.
#![expect(unreachable_pub, clippy::allow_attributes, reason = "generated")]
#![cfg_attr(not(any(test, fuzzing)), allow(dead_code, reason = "see above"))]

include!("groupcache.v1.rs");

/// The service, with what `wire` reads and writes in the place of the messages.
pub mod service {
    include!("client.rs");
    include!("server.rs");
}

// And with the messages, for tests that speak the protocol as no node would.
#[cfg(test)]
include!("plain.rs");
