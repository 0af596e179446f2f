//! Outcome of a handshake: the identity of the other side, or the reason for the failure.
//!
//! [`Caller`] is the identity that the connection proves, and [`HandshakeError`] the reason, worded for the side that
//! reports the failure. `explain` translates the errors of the TLS library.

mod caller;
mod error;
#[cfg(feature = "tls")]
mod explain;

#[cfg(feature = "tls")]
pub(crate) use crate::transport::handshake::explain::explain;
pub(crate) use crate::transport::handshake::{caller::Caller, error::HandshakeError};
