//! Generated from `proto/groupcache/v1/peer.proto` by `make proto`; do not edit.
#![expect(unreachable_pub, clippy::allow_attributes, reason = "generated")]

include!("groupcache.v1.rs");
