//! Why a connection came to nothing before a word was said on it, as the side that noticed tells it.

use std::{fmt, io};

/// What both sides of a failed handshake should compare.
const COMPARE: &str = "compare on both nodes: cluster_key(...) or GROUPCACHE_CLUSTER_KEY, mutual_tls(...), insecure()";

/// Why a connection came to nothing before a word was said on it.
#[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "without TLS there are fewer"))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeError {
    /// It speaks TLS and we do not, or the reverse.
    OneSideIsPlain { they_speak_tls: bool },
    /// It speaks another TLS than ours: another version, no HTTP/2.
    OtherTls(String),
    /// Its certificate will not do, or it has none.
    Certificate(String),
    /// Its certificate is good, and not for a name that we let in.
    Name(String),
    /// It will not have our certificate.
    RefusesUs(String),
    /// It said nothing for too long.
    TooLate,
    /// It had to make room for others.
    CrowdedOut,
    /// It went away, or spoke what nobody understands.
    Broken(String),
}

impl HandshakeError {
    /// Whether the two will not come together until somebody changes a setting.
    pub(crate) fn is_about_trust(&self) -> bool {
        !matches!(self, Self::TooLate | Self::CrowdedOut | Self::Broken(_))
    }

    /// As an error of the stream, to be found again by [`HandshakeError::of`].
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, self)
    }

    /// What an error of a stream means.
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
