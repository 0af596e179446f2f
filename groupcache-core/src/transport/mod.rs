//! The only door to the network: with other sockets behind it, the node runs inside a simulator.

mod attempt;
mod fairness;
pub(crate) mod handshake;
mod listener;
mod security;
mod session;
mod stream;
#[cfg(feature = "tls")]
pub mod tls;

use std::{fmt, io, net::SocketAddr, pin::Pin, sync::Arc};

use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};
use tonic::{
    codegen::http::Uri,
    transport::{Channel, Endpoint},
};
use tower_service::Service;

// What everything here is made of, and what a simulation puts in its place.
#[cfg(not(simulation))]
pub(crate) use tokio::net::{TcpListener, TcpStream};
#[cfg(simulation)]
pub(crate) use turmoil::net::{TcpListener, TcpStream};

#[cfg(feature = "tls")]
pub(crate) use crate::transport::session::RETIRE_WITHIN;
pub(crate) use crate::transport::{
    attempt::Attempt,
    listener::{ListenerConfig, start},
    security::Security,
    session::{IDLE_LIMIT, RequestGuard, Session},
};
use crate::transport::{attempt::Watched, stream::Stream};
use crate::{
    limits::{CONNECT, Limits},
    transport::handshake::HandshakeError,
};

/// How to reach a peer. Lazy: it returns at once and connects at first use. What becomes of it is noted in the attempt.
pub(crate) type Dial = Arc<dyn Fn(&Endpoint, Arc<Attempt>) -> Channel + Send + Sync>;

/// Window of one stream and of a connection. The data plane is one stream, so the two are nearly one; both must
/// hold several of the largest values, or a large answer stalls the small ones behind it.
const MIN_WINDOW: u32 = 1 << 20;

/// How a node connects.
#[derive(Clone)]
pub(crate) struct Net {
    dial: Dial,
}

impl Net {
    /// Over TCP.
    pub(crate) fn tcp(security: Security) -> Self {
        let connector = move |attempt| Connector { attempt, security: security.clone() };
        Self { dial: Arc::new(move |endpoint, attempt| endpoint.connect_with_connector_lazy(connector(attempt))) }
    }

    /// One new connection to `address`, made at first use.
    pub(crate) fn channel(
        &self,
        address: &str,
        limits: &Limits,
        attempt: &Arc<Attempt>,
    ) -> Result<Channel, tonic::transport::Error> {
        // Without the `s` in TLS too: tonic would look for its own settings of it.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .initial_stream_window_size(stream_window(limits))
            .initial_connection_window_size(stream_window(limits).saturating_mul(2));
        // HTTP/2 forgets streams that were reset by the real clock.
        #[cfg(simulation)]
        let endpoint = endpoint.http2_reset_stream_duration(std::time::Duration::from_secs(3600));
        Ok((self.dial)(&endpoint, Arc::clone(attempt)))
    }
}

/// Connects over TCP, and shakes hands. tonic's own connector tells neither what arrives nor what went wrong, and
/// its certificates are those of the day it was built.
#[derive(Clone)]
struct Connector {
    attempt: Arc<Attempt>,
    security: Security,
}

impl Connector {
    #[cfg_attr(not(simulation), expect(clippy::disallowed_methods, reason = "this is the door"))]
    async fn connect(self, uri: Uri) -> io::Result<TokioIo<Watched<Stream>>> {
        let authority = uri.authority().ok_or_else(|| io::Error::other("the address has no host"))?;
        // Not tonic's time limit: who meets that one learns nothing but that there was an error.
        let end = Instant::now() + CONNECT;
        let tcp = timeout_at(end, TcpStream::connect(authority.as_str())).await;
        let silent = |_| io::Error::new(io::ErrorKind::TimedOut, format!("nobody answers within {CONNECT:?}"));
        let tcp = tcp.map_err(silent)??;
        // Small requests must not wait for the acknowledgement of those before them.
        tcp.set_nodelay(true)?;
        let shaken = timeout_at(end, self.security.connect(tcp, authority.host())).await;
        let (stream, server) = shaken.unwrap_or(Err(HandshakeError::TooLate)).map_err(|trouble| {
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

/// Window of a stream: a few of the largest messages.
pub(crate) fn stream_window(limits: &Limits) -> u32 {
    // HTTP/2 windows are below 2^31.
    let wanted = (limits.max_message_bytes() * 2).min(1 << 30);
    u32::try_from(wanted).unwrap_or(MIN_WINDOW).max(MIN_WINDOW)
}

/// Listens over TCP.
#[cfg_attr(not(simulation), expect(clippy::disallowed_methods, reason = "this is the door"))]
pub(crate) async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}
