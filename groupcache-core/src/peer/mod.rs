//! Peers: the Hello, the client of one peer, its breaker, and the server that answers peers.

pub(crate) mod breaker;
pub(crate) mod client;
mod connection;
pub(crate) mod hello;
pub(crate) mod link;
mod outbox;
pub(crate) mod server;
pub(crate) mod table;
