//! Authentication of requests: the identity that a connection proves, on the node's own listener or in a server of the
//! user.

use std::sync::Arc;

use tonic::{Extensions, Status};

use crate::transport::{Security, Session, handshake::Caller};

/// Text of the status for a request without an authenticated sender.
const UNAUTHENTICATED: &str = "the sender is not authenticated, and this node answers authenticated peers only: set \
    cluster_key(...) or mutual_tls(...) on both nodes; if the peer service is mounted in another server, insert the \
    certificates into each request as PeerCertificates; or call .insecure() on this node to answer everyone";

/// Sender of an accepted request.
pub(crate) struct Sender {
    /// Identity that the connection proves; [`Caller::Unknown`] on a node that answers everyone.
    pub(crate) caller: Caller,
    /// Connection of the request, if the node's own listener accepted it.
    pub(crate) session: Option<Arc<Session>>,
}

/// Returns the sender of a request, or the status with which the request is refused.
///
/// The node's own listener has authenticated its connections already. A request of another server is authenticated
/// here, by the certificates in its extensions.
pub(crate) fn authenticate(security: &Security, extensions: &Extensions) -> Result<Sender, Status> {
    if let Some(session) = extensions.get::<Arc<Session>>() {
        return Ok(Sender { caller: session.caller(), session: Some(Arc::clone(session)) });
    }
    let caller = match security {
        Security::Open { is_insecure: true } => Caller::Unknown,
        Security::Open { is_insecure: false } => return Err(Status::unauthenticated(UNAUTHENTICATED)),
        #[cfg(feature = "tls")]
        Security::Tls(keeper) => {
            let presented = certificates(extensions).filter(|presented| !presented.chain().is_empty());
            let presented = presented.ok_or_else(|| Status::unauthenticated(UNAUTHENTICATED))?;
            keeper.check(&presented).map_err(|trouble| {
                // The peer receives this text, so that "this node" names the server.
                Status::unauthenticated(format!("this node refuses the peer: {trouble}"))
            })?
        }
    };
    Ok(Sender { caller, session: None })
}

/// Returns the certificates that the peer presented to a server of the user.
#[cfg(feature = "tls")]
fn certificates(extensions: &Extensions) -> Option<crate::transport::tls::PeerCertificates> {
    use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

    if let Some(presented) = extensions.get::<crate::transport::tls::PeerCertificates>() {
        return Some(presented.clone());
    }
    let presented = extensions.get::<TlsConnectInfo<TcpConnectInfo>>()?.peer_certs()?;
    Some(crate::transport::tls::PeerCertificates::from_der(presented.iter().map(|der| der.to_vec())))
}
