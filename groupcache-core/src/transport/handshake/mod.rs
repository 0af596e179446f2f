//! What the two sides of a connection learn of each other before a word is said: who is there, or why it came to nothing.

mod caller;
mod error;
#[cfg(feature = "tls")]
mod explain;

#[cfg(feature = "tls")]
pub(crate) use crate::transport::handshake::explain::explain;
pub(crate) use crate::transport::handshake::{caller::Caller, error::HandshakeError};
