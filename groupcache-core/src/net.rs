//! The only door to the network: another pair of functions, and the node runs inside a simulator.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tonic::{
    codegen::{Service, http::Uri},
    transport::{Channel, Endpoint, server::TcpIncoming},
};

use crate::config::{CONNECT, Limits};

/// How to reach a peer. Lazy: it returns at once and connects at first use. Bytes that come are added to the counter.
pub(crate) type Dial = Arc<dyn Fn(&Endpoint, Arc<AtomicU64>) -> Channel + Send + Sync>;

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
    pub(crate) fn tcp() -> Self {
        Self { dial: Arc::new(|endpoint, bytes| endpoint.connect_with_connector_lazy(Tcp { bytes })) }
    }

    /// One new connection to `address`, made at first use. What is read from it is added to `bytes`.
    pub(crate) fn channel(
        &self,
        address: &str,
        limits: &Limits,
        bytes: &Arc<AtomicU64>,
    ) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT)
            .initial_stream_window_size(stream_window(limits))
            .initial_connection_window_size(stream_window(limits).saturating_mul(2));
        Ok((self.dial)(&endpoint, Arc::clone(bytes)))
    }
}

/// Connects over TCP. tonic's own connector gives no account of what arrives, and silence is judged by bytes: a
/// large value on a slow path is one message for a long time.
#[derive(Clone)]
struct Tcp {
    bytes: Arc<AtomicU64>,
}

impl Service<Uri> for Tcp {
    type Response = TokioIo<Counted<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    fn call(&mut self, uri: Uri) -> Self::Future {
        let bytes = Arc::clone(&self.bytes);
        Box::pin(async move {
            let authority = uri.authority().ok_or_else(|| io::Error::other("the address has no host"))?;
            let stream = TcpStream::connect(authority.as_str()).await?;
            // Small requests must not wait for the acknowledgement of those before them.
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(Counted { io: stream, bytes }))
        })
    }
}

/// A stream that counts what is read from it.
pub(crate) struct Counted<Io> {
    io: Io,
    bytes: Arc<AtomicU64>,
}

impl<Io: AsyncRead + Unpin> AsyncRead for Counted<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        self.bytes.fetch_add((buf.filled().len() - before) as u64, Relaxed);
        read
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Counted<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    // Forwarded, or each frame would be copied into one buffer before it is written.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
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
