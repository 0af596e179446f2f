//! A TCP connection, in TLS or not.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{TcpStream, turn::Turn};

/// A TCP connection, in TLS or not.
pub(crate) struct Stream {
    io: Io,
    turn: Turn,
}

enum Io {
    Plain(TcpStream),
    // Boxed: the state of TLS is a kilobyte.
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
        Self { io: Io::Plain(tcp), turn: Turn::default() }
    }
}

#[cfg(feature = "tls")]
impl From<tokio_rustls::TlsStream<TcpStream>> for Stream {
    fn from(tls: tokio_rustls::TlsStream<TcpStream>) -> Self {
        Self { io: Io::Tls(Box::new(tls)), turn: Turn::default() }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.turn.poll_mine(cx));
        let read = either!(self, io => Pin::new(io).poll_read(cx, buf));
        if read.is_pending() {
            self.turn.over();
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.turn.poll_others(cx));
        either!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => Pin::new(io).poll_shutdown(cx))
    }

    // Forwarded, or each frame would be copied into one buffer before it is written.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.turn.poll_others(cx));
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
