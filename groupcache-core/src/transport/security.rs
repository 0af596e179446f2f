//! Security of connections: how a node proves its identity, and which peers it accepts.

use crate::transport::handshake::{Caller, HandshakeError};
use crate::transport::{TcpStream, stream::Stream};

/// Way in which a node proves its identity and decides which peers it accepts.
#[derive(Clone, Debug)]
pub(crate) enum Security {
    /// Plain TCP without any proof; every client that reaches the port is accepted.
    Open {
        /// Whether the user has asked for insecure mode. Otherwise the node is open because it listens on loopback
        /// only.
        is_insecure: bool,
    },
    /// TLS 1.3 with certificates on both sides.
    #[cfg(feature = "tls")]
    Tls(std::sync::Arc<crate::transport::tls::CredentialStore>),
}

impl Security {
    /// Returns whether connections are plain TCP.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }

    /// Returns the generation of the credentials in use; connections of other generations are replaced.
    pub(crate) fn generation(&self) -> u64 {
        match self {
            Self::Open { .. } => 0,
            #[cfg(feature = "tls")]
            Self::Tls(credentials) => credentials.generation(),
        }
    }

    /// Waits until the credentials of a [`generation`](Self::generation) are replaced, and then for `spread`
    /// thousandths of the time within which connections retire, so that they do not all end in one moment. Never
    /// returns without TLS.
    #[cfg_attr(not(feature = "tls"), expect(unused_variables, reason = "there is nothing to replace"))]
    pub(crate) async fn replaced(&self, generation: u64, spread: u32) {
        match self {
            Self::Open { .. } => std::future::pending().await,
            #[cfg(feature = "tls")]
            Self::Tls(credentials) => {
                let _ = credentials.generations().wait_for(|current| *current != generation).await;
                tokio::time::sleep(super::session::RETIRE_WITHIN * spread / 1000).await;
            }
        }
    }

    /// Performs the handshake of the side that connects, and returns the identity of the server.
    #[cfg_attr(not(feature = "tls"), expect(unused_variables, reason = "only TLS has a handshake"))]
    pub(crate) async fn connect(&self, tcp: TcpStream, host: &str) -> Result<(Stream, Caller), HandshakeError> {
        match self {
            Self::Open { .. } => Ok((tcp.into(), Caller::Unknown)),
            #[cfg(feature = "tls")]
            Self::Tls(credentials) => {
                let (tls, caller) = credentials.connect(tcp, host).await?;
                Ok((tls.into(), caller))
            }
        }
    }

    /// Performs the handshake of the side that listens, and returns the identity of the client and the generation of
    /// the credentials that accepted it.
    ///
    /// A TCP connection that is returned with the error must stay open until the client has read the alert.
    pub(crate) async fn accept(
        &self,
        tcp: TcpStream,
    ) -> Result<(Stream, Caller, u64), (HandshakeError, Option<TcpStream>)> {
        match self {
            Self::Open { .. } => Ok((tcp.into(), Caller::Unknown, 0)),
            #[cfg(feature = "tls")]
            Self::Tls(credentials) => {
                let (tls, caller, generation) = credentials.accept(tcp).await?;
                Ok((tls.into(), caller, generation))
            }
        }
    }
}
