//! Peers: the Hello, the client of one peer, its breaker, and the server that answers peers.

pub(crate) mod client;
pub(crate) mod group_service;
pub(crate) mod local;
pub mod mount;
pub(crate) mod server;
