//! Connection after its handshake, as HTTP/2 reads and writes it: the end of the connection, and the bytes that are
//! received and not taken.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

use crate::transport::{
    handshake::HandshakeError,
    listener::{Admitted, Listener},
    received::StreamBytes,
    room::Room,
    session::Session,
    stream::Stream,
};

/// Connection after its handshake, as HTTP/2 reads and writes it. Each request on the connection has its [`Session`].
pub(crate) struct Accepted {
    stream: Stream,
    bytes: StreamBytes,
    room: Room,
    close: Pin<Box<WaitForCancellationFutureOwned>>,
    place: Admitted,
}

impl Accepted {
    /// Makes the connection. `close` ends once the connection must close.
    pub(super) fn new(stream: Stream, close: Pin<Box<WaitForCancellationFutureOwned>>, place: Admitted) -> Self {
        Self { stream, bytes: StreamBytes::default(), room: Room::default(), close, place }
    }

    #[cfg(test)]
    pub(super) fn session(&self) -> &Session {
        &self.place.session
    }

    /// Returns an error once the connection must close. Reads and writes both call this function, because a task that
    /// waits only for the peer to read would otherwise not be woken.
    fn check_open(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.close.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl Connected for Accepted {
    type ConnectInfo = Arc<Session>;

    fn connect_info(&self) -> Arc<Session> {
        Arc::clone(&self.place.session)
    }
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check_open(cx)?;
        let this = &mut *self;
        let Admitted { listener, session } = &this.place;
        ready!(this.room.poll(cx, session, &listener.sessions, |closed| report(listener, &closed)));
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        let bytes = buf.filled().get(before..).unwrap_or_default();
        session.read(bytes.len());
        if session.held().add(this.bytes.count(bytes)) {
            report(listener, &listener.sessions.relieve());
        }
        if this.bytes.is_oversized() {
            listener.refused(session.remote, &HandshakeError::LargeFrame);
            return Poll::Ready(Err(HandshakeError::LargeFrame.into_io()));
        }
        self.check_open(cx)?;
        read
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check_open(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_open(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_open(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_open(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Counts and logs the connections that have ended for others.
fn report(listener: &Listener, closed: &[Arc<Session>]) {
    for session in closed {
        listener.refused(session.remote, &HandshakeError::OverBudget);
    }
}
