//! Certificates that a peer showed to a TLS server of the user.

use std::{fmt, sync::Arc};

use rustls::pki_types::CertificateDer;

/// The certificates that a peer showed in the handshake, for a [`PeerService`](crate::mount::PeerService) that is mounted
/// in a server with TLS of its own.
///
/// Insert it into the extensions of every request of a connection. The TLS server must have asked for a client
/// certificate and have checked that the client has its key, as every TLS server does that accepts one; authority,
/// dates and names are checked here, by the node's own [`MutualTls`](crate::tls::MutualTls). With tonic's TLS
/// server nothing needs to be inserted.
///
/// ```
/// # use groupcache_core::tls::PeerCertificates;
/// # fn f(request: &mut tonic::codegen::http::Request<()>, connection: &rustls::ServerConnection) {
/// let shown = connection.peer_certificates().unwrap_or_default();
/// request.extensions_mut().insert(PeerCertificates::from_der(shown.iter().map(|der| der.to_vec())));
/// # }
/// ```
#[derive(Clone)]
pub struct PeerCertificates(Arc<[CertificateDer<'static>]>);

impl PeerCertificates {
    /// Returns the certificates of a chain in DER, the peer's own first. An empty chain identifies nobody.
    pub fn from_der(chain: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self(chain.into_iter().map(CertificateDer::from).collect())
    }

    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0
    }
}

impl fmt::Debug for PeerCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PeerCertificates").field(&self.0.len()).finish()
    }
}
