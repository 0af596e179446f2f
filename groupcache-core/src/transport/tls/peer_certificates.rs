//! Certificates that a peer presented to the TLS server of the user.

use std::{fmt, sync::Arc};

use rustls::pki_types::CertificateDer;

/// Certificates that a peer presented in the handshake, for a [`PeerService`](crate::mount::PeerService) that is
/// mounted in a server with TLS of its own.
///
/// Insert the certificates into the extensions of every request of a connection. The TLS server must ask for a client
/// certificate and check that the client holds its private key, as every TLS server does that accepts client
/// certificates. The node checks authority, dates and names against its own [`MutualTls`](crate::tls::MutualTls). With
/// the TLS server of tonic, nothing needs to be inserted.
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
    /// Takes the chain in DER, beginning with the certificate of the peer. An empty chain counts as no certificate.
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
