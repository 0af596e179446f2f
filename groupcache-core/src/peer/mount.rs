//! The peer service of a node in a server of the user.

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

/// Peer service of a node for a server of your own, so that one port serves your routes and the peers.
///
/// A node that receives the service by [`NodeBuilder::mount`](crate::NodeBuilder::mount) does not listen itself. The
/// service is a `tower` service: mount it in an axum router under [`PATH`](Self::PATH), or add it to a tonic server.
/// The server must speak HTTP/2. Until the node has started, and after its shutdown, requests receive the status
/// `UNAVAILABLE`. A service serves one node at a time.
///
/// The node authenticates the sender of each request, whatever your server accepts. With `NodeBuilder::mutual_tls`, the
/// node checks the certificates that the peer presented to your server (see `PeerCertificates`). Without certificates,
/// the node answers only if [`insecure`](crate::NodeBuilder::insecure) is set, and then answers everyone.
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
    /// Route of the service in an axum router.
    pub const PATH: &'static str = "/groupcache.v1.Peer/{*method}";

    /// Gives the service to a node that starts. Returns `false` if another node has the service.
    pub(crate) fn begins(&self, server: &Server) -> bool {
        let previous = self.server.compare_and_swap(&None::<Arc<Server>>, Some(Arc::new(server.clone())));
        previous.is_none()
    }

    /// Takes the service from a node that has ended, so that another node may use it.
    pub(crate) fn ends(&self, server: &Server) {
        self.server.rcu(|current| current.clone().filter(|current| !current.is(server)));
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
                None => Status::unavailable("no node runs here, because it has not started or has ended; retry later")
                    .into_http(),
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

/// Body of the responses of a [`PeerService`].
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
