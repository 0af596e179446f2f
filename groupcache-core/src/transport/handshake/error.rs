//! Errors of a handshake, in the words of the side that noticed them.

use std::{fmt, io};

/// Hint for the operator: the settings that both sides of a failed handshake should compare.
const COMPARE: &str = "compare on both nodes: cluster_key(...) or GROUPCACHE_CLUSTER_KEY, mutual_tls(...), insecure()";

/// Reason why a connection failed before its first message.
#[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "without TLS there are fewer"))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeError {
    /// The other side speaks TLS and this node does not, or the reverse.
    OneSideIsPlain { they_speak_tls: bool },
    /// The other side speaks another TLS: another version, or no HTTP/2.
    OtherTls(String),
    /// The certificate of the other side is refused, or missing.
    Certificate(String),
    /// The certificate of the other side is valid, and none of its names is admitted.
    Name(String),
    /// The other side refuses this node's certificate.
    RefusesUs(String),
    /// The other side did not finish in time.
    TooLate,
    /// The connection was evicted to make room for others.
    CrowdedOut,
    /// The connection broke, or the other side spoke another protocol.
    Broken(String),
}

impl HandshakeError {
    /// Returns whether the two sides cannot connect until a setting changes.
    pub(crate) fn is_about_trust(&self) -> bool {
        !matches!(self, Self::TooLate | Self::CrowdedOut | Self::Broken(_))
    }

    /// Wraps the error as one of the stream, in which [`HandshakeError::of`] finds it again.
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, self)
    }

    /// Returns the handshake error in an error of a stream.
    pub(crate) fn of(error: &io::Error) -> Self {
        let inner = error.get_ref();
        if let Some(trouble) = inner.and_then(|inner| inner.downcast_ref::<Self>()) {
            return trouble.clone();
        }
        #[cfg(feature = "tls")]
        if let Some(tls) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return super::explain::explain(tls);
        }
        Self::Broken(error.to_string())
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OneSideIsPlain { they_speak_tls: true } => {
                write!(f, "it speaks TLS and this node does not; {COMPARE}")
            }
            Self::OneSideIsPlain { they_speak_tls: false } => {
                write!(f, "it does not speak TLS and this node does; {COMPARE}")
            }
            Self::OtherTls(why) | Self::Certificate(why) | Self::Name(why) | Self::RefusesUs(why) => f.write_str(why),
            Self::TooLate => f.write_str("it did not finish its handshake in time"),
            Self::CrowdedOut => f.write_str("it had to make room for other connections"),
            Self::Broken(why) => write!(f, "the connection broke during the handshake: {why}"),
        }
    }
}

impl std::error::Error for HandshakeError {}
