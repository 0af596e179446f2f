//! Generated code of `proto/groupcache/v1/peer.proto`, which `make proto` writes; do not edit.
//!
//! A node uses the generated code for the Hello, its parts, the goodbye and the unary get. The module `wire` reads and
//! writes the other messages by hand, and its tests compare both.
#![expect(unreachable_pub, clippy::allow_attributes, reason = "generated")]
#![cfg_attr(not(any(test, fuzzing)), allow(dead_code, reason = "see above"))]

include!("groupcache.v1.rs");

/// The service, with the types of `wire` in the place of the messages.
pub mod service {
    include!("client.rs");
    include!("server.rs");
}

// The service with the messages, for tests that speak the protocol as no node would.
#[cfg(test)]
include!("plain.rs");
