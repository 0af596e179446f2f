//! The protocol: messages between nodes, and their encoding.

pub(crate) mod chain;
pub(crate) mod codec;
pub(crate) mod message;
pub(crate) mod proto;
pub(crate) mod wire;
