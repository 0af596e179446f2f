//! HTTPS server: does for HTTPS what `axum::serve` does for plain HTTP, and passes on the certificates of clients.
use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router, middleware::from_fn_with_state};
use groupcache_discovery::{BoxError, tls::PeerCertificates};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use crate::places::{Place, Places, hold};

/// Maximum time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Maximum time in which a client sends the headers of an HTTP/1.1 request.
const HEADERS: Duration = Duration::from_secs(10);
/// Pause after a connection could not be accepted. A system without free descriptors has none for a while.
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, BoxError> {
    #[expect(clippy::disallowed_methods, reason = "this is the service's own port, which the peers share")]
    let bound = TcpListener::bind(address).await;
    bound.map_err(|e| format!("cannot listen on {address}, set NODE_IP and GROUP_PORT to a free address: {e}").into())
}

/// Running server. A server that is dropped stops accepting connections, as a closed one does.
pub(crate) struct Server {
    accepting: JoinHandle<GracefulShutdown>,
    close: watch::Sender<bool>,
}

impl Server {
    /// Starts a server with at most `max` connections.
    pub(crate) fn start(
        listener: TcpListener,
        tls: watch::Receiver<Arc<ServerConfig>>,
        app: Router,
        max: usize,
    ) -> Self {
        let (close, closed) = watch::channel(false);
        Self { accepting: tokio::spawn(accept(listener, tls, app, Places::new(max), closed)), close }
    }

    /// Stops accepting connections. Open connections go on.
    ///
    /// The first poll of the returned future asks every open connection to close after its running requests, and the
    /// future completes when all of them are closed. Dropping the future asks the connections too, and waits for none.
    pub(crate) async fn close(self) -> impl Future<Output = ()> {
        self.close.send_replace(true);
        // The task does not panic. After a panic there would be no connection to wait for.
        let connections = self.accepting.await.unwrap_or_default();
        connections.shutdown()
    }
}

async fn accept(
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    app: Router,
    places: Places,
    mut closed: watch::Receiver<bool>,
) -> GracefulShutdown {
    let connections = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = closed.wait_for(|closed| *closed) => return connections,
        };
        match accepted {
            Ok((tcp, _)) => {
                let Some(place) = places.take() else { continue };
                let acceptor = TlsAcceptor::from(Arc::clone(&tls.borrow()));
                tokio::spawn(serve(tcp, acceptor, app.clone(), connections.watcher(), place));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted; the server goes on after a pause");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn serve(tcp: TcpStream, acceptor: TlsAcceptor, app: Router, watcher: Watcher, place: Arc<Place>) {
    let serving = serve_requests(tcp, acceptor, app, watcher, Arc::clone(&place));
    tokio::select! {
        () = serving => {}
        () = place.is_lost() => {}
    }
}

async fn serve_requests(tcp: TcpStream, acceptor: TlsAcceptor, app: Router, watcher: Watcher, place: Arc<Place>) {
    let Ok(Ok(tls)) = timeout(HANDSHAKE, acceptor.accept(tcp)).await else { return };
    // The node checks these certificates on each request to the peer service. A user without one gets the pages only.
    let shown = tls.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|der| der.to_vec());
    let app = app.layer(Extension(PeerCertificates::from_der(shown))).layer(from_fn_with_state(place, hold));
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    let connection = server.serve_connection(TokioIo::new(tls), TowerToHyperService::new(app));
    let _ = watcher.watch(connection).await;
}
