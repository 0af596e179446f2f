//! How a node proves who it is, and whom it lets in.

use crate::transport::handshake::{Caller, HandshakeError};
use crate::transport::{TcpStream, stream::Stream};

/// How a node proves who it is, and whom it lets in.
#[derive(Clone, Debug)]
pub(crate) enum Security {
    /// It does not, and everybody who reaches it.
    Open {
        /// Asked for in so many words, and not only because nobody but this machine reaches it.
        is_insecure: bool,
    },
    /// TLS 1.3 with certificates on both sides.
    #[cfg(feature = "tls")]
    Tls(std::sync::Arc<crate::transport::tls::CredentialStore>),
}

impl Security {
    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }

    /// Which certificates and keys are in use; connections of other generations are made anew.
    pub(crate) fn generation(&self) -> u64 {
        match self {
            Self::Open { .. } => 0,
            #[cfg(feature = "tls")]
            Self::Tls(keeper) => keeper.generation(),
        }
    }

    /// Returns when other certificates and keys are in use than those of a [`generation`](Self::generation), and never
    /// without them. `spread`, of a thousand, is when in the time that connections may live on after that: not all should
    /// end in one moment.
    #[cfg_attr(not(feature = "tls"), expect(unused_variables, reason = "there is nothing to replace"))]
    pub(crate) async fn replaced(&self, generation: u64, spread: u32) {
        match self {
            Self::Open { .. } => std::future::pending().await,
            #[cfg(feature = "tls")]
            Self::Tls(keeper) => {
                let _ = keeper.generations().wait_for(|current| *current != generation).await;
                tokio::time::sleep(super::session::RETIRE_WITHIN * spread / 1000).await;
            }
        }
    }

    /// The handshake of the side that connects.
    #[cfg_attr(not(feature = "tls"), expect(unused_variables, reason = "only TLS has a handshake"))]
    pub(crate) async fn connect(&self, tcp: TcpStream, host: &str) -> Result<(Stream, Caller), HandshakeError> {
        match self {
            Self::Open { .. } => Ok((tcp.into(), Caller::Unknown)),
            #[cfg(feature = "tls")]
            Self::Tls(keeper) => {
                let (tls, caller) = keeper.connect(tcp, host).await?;
                Ok((tls.into(), caller))
            }
        }
    }

    /// The handshake of the side that listens: who it is, and by which generation of certificates.
    ///
    /// A connection that is handed back with the trouble is to be closed when the other side has read what it was told.
    pub(crate) async fn accept(
        &self,
        tcp: TcpStream,
    ) -> Result<(Stream, Caller, u64), (HandshakeError, Option<TcpStream>)> {
        match self {
            Self::Open { .. } => Ok((tcp.into(), Caller::Unknown, 0)),
            #[cfg(feature = "tls")]
            Self::Tls(keeper) => {
                let (tls, caller, generation) = keeper.accept(tcp).await?;
                Ok((tls.into(), caller, generation))
            }
        }
    }
}
