//! Communication with peers: the client of each peer, the server that answers peers, and what both share.
//!
//! [`client`] keeps one link to each peer and knows nothing of groups. [`server`] answers requests through
//! [`group_service`], the object-safe view of a group. Client and server use the Hello, the limits and the counters of [`local`].
//! [`mount`] serves the peers in a server of the user.

pub(crate) mod client;
pub(crate) mod group_service;
pub(crate) mod local;
pub mod mount;
pub(crate) mod server;
pub(crate) mod witnesses;
