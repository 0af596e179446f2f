//! Byte stream of a connection: plain TCP or TLS, with a budget for reads.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::transport::{TcpStream, fairness::ReadBudget};

/// Byte stream of a connection, plain or encrypted, which yields to other connections.
pub(crate) struct Stream {
    io: Io,
    budget: ReadBudget,
}

enum Io {
    Plain(TcpStream),
    // Boxed, because the state of TLS takes about a kilobyte.
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::TlsStream<TcpStream>>),
}

macro_rules! either {
    ($self:expr, $io:ident => $call:expr) => {
        match &mut $self.io {
            Io::Plain($io) => $call,
            #[cfg(feature = "tls")]
            Io::Tls($io) => $call,
        }
    };
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self { io: Io::Plain(tcp), budget: ReadBudget::default() }
    }
}

#[cfg(feature = "tls")]
impl From<tokio_rustls::TlsStream<TcpStream>> for Stream {
    fn from(tls: tokio_rustls::TlsStream<TcpStream>) -> Self {
        Self { io: Io::Tls(Box::new(tls)), budget: ReadBudget::default() }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.budget.poll_read(cx));
        let read = either!(self, io => Pin::new(io).poll_read(cx, buf));
        if read.is_pending() {
            self.budget.reset();
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.budget.poll_write(cx));
        either!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => Pin::new(io).poll_shutdown(cx))
    }

    // Forwarded, because each frame is otherwise copied into one buffer before it is written.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.budget.poll_write(cx));
        either!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            #[cfg(feature = "tls")]
            Io::Tls(io) => io.is_write_vectored(),
        }
    }
}

#[cfg(test)]
#[cfg(not(any(shuttle, simulation)))]
mod tests {
    use std::future::poll_fn;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        task::yield_now,
        time::Instant,
    };

    use super::*;
    use crate::transport;

    /// Checks that a stream with a spent budget neither reads nor writes until other tasks have run, and loses no
    /// bytes.
    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "the test connects as a client")]
    async fn stream_with_spent_budget_yields_reads_and_writes() {
        let listener = transport::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut stream = Stream::from(listener.accept().await.unwrap().0);
        sender.write_all(b"ab").await.unwrap();
        let mut one = [0];
        stream.read_exact(&mut one).await.unwrap();
        assert!(matches!(stream.budget, ReadBudget::Reading(_)));
        stream.budget = ReadBudget::Reading(Instant::now() - std::time::Duration::from_secs(1));
        poll_fn(|cx| {
            assert!(Pin::new(&mut stream).poll_read(cx, &mut ReadBuf::new(&mut one)).is_pending());
            assert!(Pin::new(&mut stream).poll_write(cx, b"c").is_pending());
            assert!(Pin::new(&mut stream).poll_write_vectored(cx, &[io::IoSlice::new(b"c")]).is_pending());
            Poll::Ready(())
        })
        .await;
        yield_now().await;
        stream.write_all(b"c").await.unwrap();
        stream.read_exact(&mut one).await.unwrap();
        assert_eq!(one, *b"b", "no byte is lost");
        assert_eq!(sender.read_u8().await.unwrap(), b'c');
        poll_fn(|cx| {
            assert!(Pin::new(&mut stream).poll_read(cx, &mut ReadBuf::new(&mut one)).is_pending());
            Poll::Ready(())
        })
        .await;
        assert!(matches!(stream.budget, ReadBudget::Free), "the stream waits for its socket");
    }
}
