//! Who sent a request: what the connection proves, by our own listener or by a server that the user has.

use std::sync::Arc;

use tonic::{Extensions, Status};

use crate::transport::{Security, Session, handshake::Caller};

/// What a request without a known sender is told.
const NOBODY: &str = "this node answers its peers only, and nothing tells who this is: a peer shows a certificate \
    (cluster_key(...) or mutual_tls(...) on both nodes); a peer service that is mounted in another server is handed the \
    certificates with each request as PeerCertificates; .insecure() answers everyone";

/// A sender who is known, or need not be.
pub(crate) struct Sender {
    pub(crate) caller: Caller,
    /// The connection, where our own listener accepted it.
    pub(crate) session: Option<Arc<Session>>,
}

pub(crate) fn authenticate(security: &Security, extensions: &Extensions) -> Result<Sender, Status> {
    if let Some(session) = extensions.get::<Arc<Session>>() {
        return Ok(Sender { caller: session.caller(), session: Some(Arc::clone(session)) });
    }
    let caller = match security {
        Security::Open { is_insecure: true } => Caller::Unknown,
        Security::Open { is_insecure: false } => return Err(Status::unauthenticated(NOBODY)),
        #[cfg(feature = "tls")]
        Security::Tls(keeper) => {
            let shown = certificates(extensions).filter(|shown| !shown.chain().is_empty());
            let shown = shown.ok_or_else(|| Status::unauthenticated(NOBODY))?;
            keeper.check(&shown).map_err(|trouble| {
                // What is wrong is said from where the peer stands: it reads this.
                Status::unauthenticated(format!("this node does not let the peer in: {trouble}"))
            })?
        }
    };
    Ok(Sender { caller, session: None })
}

/// What the peer showed to a server that is not ours.
#[cfg(feature = "tls")]
fn certificates(extensions: &Extensions) -> Option<crate::transport::tls::PeerCertificates> {
    use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

    if let Some(shown) = extensions.get::<crate::transport::tls::PeerCertificates>() {
        return Some(shown.clone());
    }
    let shown = extensions.get::<TlsConnectInfo<TcpConnectInfo>>()?.peer_certs()?;
    Some(crate::transport::tls::PeerCertificates::from_der(shown.iter().map(|der| der.to_vec())))
}
