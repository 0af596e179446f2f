//! The handshake of a connection: the identity that it proves, or the reason why it failed.

mod caller;
mod error;
#[cfg(feature = "tls")]
mod explain;

#[cfg(feature = "tls")]
pub(crate) use crate::transport::handshake::explain::explain;
pub(crate) use crate::transport::handshake::{caller::Caller, error::HandshakeError};
