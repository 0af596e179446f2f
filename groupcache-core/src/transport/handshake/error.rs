//! Reasons for a failed handshake, worded for the log and the errors of the side that reports them.

use std::{fmt, io};

/// Settings that an operator compares on both nodes after a failed handshake.
const COMPARE: &str = "compare on both nodes: cluster_key(...) or GROUPCACHE_CLUSTER_KEY, mutual_tls(...), insecure()";

/// Reason why a connection ended before its first request.
#[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "without the feature tls there are fewer reasons"))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeError {
    /// TLS on one side and plain TCP on the other.
    OneSideIsPlain {
        /// Whether the other side is the one that speaks TLS.
        they_speak_tls: bool,
    },
    /// Incompatible TLS of the other side: another version, or no HTTP/2.
    OtherTls(String),
    /// Unacceptable or missing certificate of the other side.
    Certificate(String),
    /// Valid certificate of the other side without a name that this node lets in.
    Name(String),
    /// Rejection of this node's certificate by the other side.
    RefusesUs(String),
    /// Handshake that did not end within its time limit.
    TooLate,
    /// Connection without a place among the open connections, or one that lost its place to another.
    CrowdedOut,
    /// Connection of the party that held most of the received bytes when they exceeded their budget.
    OverBudget,
    /// Connection on which a frame other than one with the bytes of a stream was too large.
    LargeFrame,
    /// Connection that the other side closed before its first byte, as health checks of a TCP port do.
    Probe,
    /// Connection that the other side closed, or on which it sent invalid data.
    Broken(String),
}

impl HandshakeError {
    /// Returns whether the nodes cannot connect until an operator changes a setting.
    pub(crate) fn is_about_trust(&self) -> bool {
        !matches!(
            self,
            Self::TooLate | Self::CrowdedOut | Self::OverBudget | Self::LargeFrame | Self::Probe | Self::Broken(_)
        )
    }

    /// Converts the reason into an error of a stream, from which [`HandshakeError::of`] restores it.
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, self)
    }

    /// Returns the reason that an error of a stream stands for.
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
                write!(f, "the other side speaks TLS and this node does not; {COMPARE}")
            }
            Self::OneSideIsPlain { they_speak_tls: false } => {
                write!(f, "the other side does not speak TLS and this node does; {COMPARE}")
            }
            Self::OtherTls(why) | Self::Certificate(why) | Self::Name(why) | Self::RefusesUs(why) => f.write_str(why),
            Self::TooLate => f.write_str("the other side did not finish its handshake in time"),
            Self::CrowdedOut => f.write_str(
                "the connection had to make room for others; raise limits.max_connections if these are peers, and \
                 otherwise look for what opens many connections from this address or with this certificate",
            ),
            Self::OverBudget => f.write_str(
                "the bytes received on all connections exceeded their budget, and this address or certificate held \
                 most of them; look for a client that leaves messages unfinished, or give this node more processor time",
            ),
            Self::LargeFrame => f.write_str(
                "the headers of a request, or another frame without a message, exceed 16 KiB; send less metadata",
            ),
            Self::Probe => f.write_str("the other side closed it before sending a byte"),
            Self::Broken(why) => write!(f, "the connection broke during the handshake: {why}"),
        }
    }
}

impl std::error::Error for HandshakeError {}
