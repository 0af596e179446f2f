//! The only door to the network: another pair of functions, and the node runs inside a simulator.

use std::{fmt, io, net::SocketAddr, sync::Arc};

use tonic::transport::{Channel, Endpoint, server::TcpIncoming};

use crate::config::{CONNECT, Limits};

/// How to reach a peer. Lazy: it returns at once and connects at first use.
pub(crate) type Dial = Arc<dyn Fn(&Endpoint) -> Channel + Send + Sync>;

/// Window of one stream and of a connection. The data plane is one stream, so the two are nearly one; both must
/// hold several of the largest values, or a large answer stalls the small ones behind it.
const MIN_WINDOW: u32 = 1 << 20;

/// How a node connects.
#[derive(Clone)]
pub(crate) struct Net {
    dial: Dial,
}

impl Net {
    /// Over TCP, with tonic's own connector, whose `TCP_NODELAY` is on by default.
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    pub(crate) fn tcp() -> Self {
        Self { dial: Arc::new(Endpoint::connect_lazy) }
    }

    /// One new connection to `address`, made at first use.
    pub(crate) fn channel(&self, address: &str, limits: &Limits) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT)
            .initial_stream_window_size(stream_window(limits))
            .initial_connection_window_size(stream_window(limits).saturating_mul(2));
        Ok((self.dial)(&endpoint))
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

/// Listens over TCP. `Server::tcp_nodelay` is ignored once `incoming` is given, so it is set here; without it
/// small answers wait 40 ms for the peer's delayed acknowledgement.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpIncoming> {
    Ok(TcpIncoming::bind(address)?.with_nodelay(Some(true)))
}
