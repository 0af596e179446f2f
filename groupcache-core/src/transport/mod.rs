//! Transport: the connections between nodes, from the socket to the authenticated byte stream of HTTP/2.
//!
//! All TCP sockets of the crate are opened in this module, so that a simulation can replace them. Connections that the
//! local node opens begin in [`Dialling`], which has names from the [`Resolver`], and an [`Attempt`] records the
//! outcome. Connections that peers open begin in the `listener`, and a [`Session`] records their use. `received` bounds
//! the bytes that nobody has taken, and `room` makes connections wait for them. `security` chooses between plain TCP and
//! TLS, `handshake` names the reasons for a failed handshake, `tls` keeps the credentials, and `fairness` bounds the time
//! that one connection reads while others wait.

mod accepted;
mod attempt;
mod dialling;
mod fairness;
pub(crate) mod handshake;
mod listener;
mod received;
#[cfg(not(simulation))]
mod resolver;
mod room;
mod security;
mod session;
mod stream;
#[cfg(feature = "tls")]
pub mod tls;

use std::{fmt, io, net::SocketAddr, pin::Pin, sync::Arc};

use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tonic::{
    codegen::http::Uri,
    transport::{Channel, Endpoint},
};
use tower_service::Service;

// The sockets of tokio, or those of the simulated network.
#[cfg(not(simulation))]
pub(crate) use tokio::net::{TcpListener, TcpStream};
#[cfg(simulation)]
pub(crate) use turmoil::net::{TcpListener, TcpStream};

// The names of the system, or those of the simulated network.
#[cfg(simulation)]
pub(crate) use crate::testing::simulation::Resolver;
#[cfg(not(simulation))]
pub(crate) use crate::transport::resolver::Resolver;

#[cfg(feature = "tls")]
pub(crate) use crate::transport::session::RETIRE_WITHIN;
pub(crate) use crate::transport::{
    attempt::Attempt,
    dialling::{Connected, Dialling},
    listener::{ListenerConfig, start},
    received::{Body, ReceivedBytes},
    security::Security,
    session::{IDLE_LIMIT, RequestGuard, Session},
};
use crate::transport::{attempt::Watched, stream::Stream};
use crate::{
    limits::{CONNECT, Limits},
    runtime::sync::Mutex,
    transport::handshake::HandshakeError,
};

/// Minimum flow-control window of a stream in bytes. The data plane of a connection is one stream, so the windows of
/// the stream and of the connection bound nearly the same bytes. Each holds several of the largest values, because a
/// large response otherwise stalls the small ones behind it.
const MIN_WINDOW: u32 = 1 << 20;

/// Maximum bytes of a frame of HTTP/2 in both directions. A get of a value of 64 KiB costs 30 % less processor time than
/// with frames of 16 KiB, which each need a read; frames of 256 KiB save 4 % more. HTTP/2 reserves a frame upon its header,
/// and memory is taken as the bytes come, which are counted. An answer on another stream waits for one frame.
pub(crate) const MAX_FRAME: u32 = 64 << 10;

/// Connector of a node: looks names up, and makes channels to peers.
#[derive(Clone)]
pub(crate) struct Net {
    pub(crate) resolver: Resolver,
    security: Security,
}

impl Net {
    /// Returns a connector over TCP, with a handshake as `security` demands.
    pub(crate) fn tcp(security: Security) -> Self {
        Self { resolver: Resolver::of_process(), security }
    }

    /// Returns the addresses of a host with this port; see [`Resolver::lookup`].
    pub(crate) async fn lookup(&self, host: &str, port: u16) -> io::Result<Arc<[SocketAddr]>> {
        self.resolver.lookup(host, port).await
    }

    /// Returns a channel over this connection to `address`, which performs the handshake at its first use. The attempt
    /// records the outcome.
    pub(crate) fn channel(
        &self,
        address: &str,
        tcp: TcpStream,
        limits: &Limits,
        attempt: &Arc<Attempt>,
    ) -> Result<Channel, tonic::transport::Error> {
        // The scheme is `http` with TLS too, because `https` makes tonic look for its own TLS settings.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .max_frame_size(MAX_FRAME)
            .initial_stream_window_size(stream_window(limits))
            .initial_connection_window_size(stream_window(limits).saturating_mul(2));
        // HTTP/2 measures with the real clock for how long it remembers streams that were reset.
        #[cfg(simulation)]
        let endpoint = endpoint.http2_reset_stream_duration(std::time::Duration::from_secs(3600));
        let tcp = Arc::new(Mutex::new(Some(tcp)));
        let connector = Connector { attempt: Arc::clone(attempt), security: self.security.clone(), tcp };
        Ok(endpoint.connect_with_connector_lazy(connector))
    }
}

/// Connector that performs the handshake on an open connection. The connector of tonic is not used, because it reports
/// neither the bytes that arrive nor the reason for a failure, and its certificates cannot be replaced later.
#[derive(Clone)]
struct Connector {
    attempt: Arc<Attempt>,
    security: Security,
    /// The connection until it is used. A channel has one.
    tcp: Arc<Mutex<Option<TcpStream>>>,
}

impl Connector {
    async fn connect(self, uri: Uri) -> io::Result<TokioIo<Watched<Stream>>> {
        let authority = uri.authority().ok_or_else(|| io::Error::other("the address has no host"))?;
        let tcp = self.tcp.lock().take().ok_or(io::ErrorKind::NotConnected)?;
        // The time limit of tonic is not used, because its error does not name the reason.
        let handshake = timeout(CONNECT, self.security.connect(tcp, authority.host())).await;
        let (stream, server) = handshake.unwrap_or(Err(HandshakeError::TooLate)).map_err(|trouble| {
            self.attempt.note(trouble.clone());
            trouble.into_io()
        })?;
        self.attempt.answered_by(server);
        Ok(TokioIo::new(Watched::new(stream, self.attempt, self.security.is_open())))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Watched<Stream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Net")
    }
}

/// Returns the flow-control window of a stream in bytes: twice the largest message. Range: 1 MiB to 1 GiB.
pub(crate) fn stream_window(limits: &Limits) -> u32 {
    // HTTP/2 windows are below 2^31.
    let wanted = (limits.max_message_bytes() * 2).min(1 << 30);
    u32::try_from(wanted).unwrap_or(MIN_WINDOW).max(MIN_WINDOW)
}

/// Opens a TCP listener at `address`.
#[cfg_attr(not(simulation), expect(clippy::disallowed_methods, reason = "sockets are opened here"))]
pub(crate) async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}
