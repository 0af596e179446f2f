//! The peer service in a server that the user has.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tonic::{
    Status,
    body::Body as TonicBody,
    codegen::{Body, Service, http},
    server::NamedService,
};

use crate::error::BoxError;
use crate::peer::server::Server;

/// The peer service of a node, for a server that you have: one port for your own routes and for the peers.
///
/// A node to which it is given by [`NodeBuilder::mount`](crate::NodeBuilder::mount) does not listen itself. It is
/// a service of the `tower` kind: mount it in an axum router under [`PATH`](Self::PATH), or add it to a tonic
/// server. The server must speak HTTP/2. Until the node has started, and after it was shut down, peers are told that
/// it is unavailable.
///
/// Each request is checked for who sent it, whatever your server lets in: with
/// `NodeBuilder::mutual_tls`, by the certificates that the peer showed to your server (see `PeerCertificates`);
/// otherwise only [`insecure`](crate::NodeBuilder::insecure) answers anybody.
///
/// ```
/// # use groupcache_core::{Identity, Node, mount::PeerService};
/// # use axum::routing::get;
/// # async fn f(me: Identity) -> Result<(), groupcache_core::Error> {
/// let peers = PeerService::default();
/// let app: axum::Router =
///     axum::Router::new().route("/", get(async || "hello")).route_service(PeerService::PATH, peers.clone());
/// let node = Node::builder().identity(me).mount(&peers).insecure().start().await?; // or mutual_tls(...)
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct PeerService {
    server: Arc<ArcSwapOption<Server>>,
}

impl PeerService {
    /// Where axum routes it.
    pub const PATH: &'static str = "/groupcache.v1.Peer/{*method}";

    /// A node has started; `false` when another one has the service.
    pub(crate) fn begins(&self, server: &Server) -> bool {
        let before = self.server.compare_and_swap(&None::<Arc<Server>>, Some(Arc::new(server.clone())));
        before.is_none()
    }

    /// The node has ended, and another one may take the service.
    pub(crate) fn ends(&self, server: &Server) {
        self.server.rcu(|now| now.clone().filter(|now| !now.is(server)));
    }
}

impl NamedService for PeerService {
    const NAME: &'static str = "groupcache.v1.Peer";
}

impl<B> Service<http::Request<B>> for PeerService
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send + 'static,
{
    type Response = http::Response<PeerBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let server = self.server.load_full();
        Box::pin(async move {
            let response = match server {
                Some(server) => server.service().call(request).await?,
                None => Status::unavailable("there is no node here: it has not started yet, or has ended").into_http(),
            };
            Ok(response.map(PeerBody))
        })
    }
}

impl fmt::Debug for PeerService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerService").field("has_node", &self.server.load().is_some()).finish()
    }
}

/// What a [`PeerService`] answers with.
#[derive(Debug)]
pub struct PeerBody(TonicBody);

impl Body for PeerBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.0).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.size_hint()
    }
}
