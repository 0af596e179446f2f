//! Peers: the Hello, the client of one peer, its breaker, and the server that answers peers.

mod authenticate;
pub(crate) mod breaker;
pub(crate) mod client;
mod connection;
mod first_look;
pub(crate) mod hello;
pub(crate) mod link;
mod outbox;
mod rate;
pub(crate) mod server;
pub(crate) mod service;
pub(crate) mod table;
