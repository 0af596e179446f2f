//! Attempts to connect: the bytes received, the identity of the server, and the first error.
//!
//! An [`Attempt`] is shared by the code that dials a peer and the stream of the connection, [`Watched`]. HTTP/2 and
//! tonic stand between the two and hide the reasons for a failure.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::sleep,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::transport::listener::CLOSE_DELAY;
use crate::{
    runtime::sync::Mutex,
    transport::handshake::{Caller, HandshakeError},
};

/// Record of one attempt to connect to a peer.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Number of bytes received on this connection and on other connections of the same link.
    bytes: Arc<AtomicU64>,
    state: Mutex<State>,
    given_up: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    server: Option<Caller>,
    trouble: Option<HandshakeError>,
}

impl Attempt {
    pub(crate) fn new(bytes: &Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self { bytes: Arc::clone(bytes), state: Mutex::default(), given_up: CancellationToken::new() })
    }

    /// Returns a guard that closes the connection [`CLOSE_DELAY`] after its drop, which leaves HTTP/2 time to send its
    /// last frames. HTTP/2 itself closes a connection only when the peer has read everything, and a peer that is gone
    /// reads nothing.
    pub(crate) fn of_use(&self) -> DropGuard {
        self.given_up.clone().drop_guard()
    }

    /// Records the identity of the server at the end of the handshake.
    pub(crate) fn answered_by(&self, server: Caller) {
        self.state.lock().server = Some(server);
    }

    /// Returns the identity of the server, which is unknown until the handshake has ended.
    pub(crate) fn server(&self) -> Caller {
        self.state.lock().server.clone().unwrap_or(Caller::Unknown)
    }

    /// Returns the first error of the connection. HTTP/2 reports only that the operation was cancelled.
    pub(crate) fn trouble(&self) -> Option<HandshakeError> {
        self.state.lock().trouble.clone()
    }

    /// Records an error, unless an earlier one is known.
    pub(crate) fn note(&self, trouble: HandshakeError) {
        self.state.lock().trouble.get_or_insert(trouble);
    }
}

/// Stream of an attempt, which counts the bytes read and records the first error. Bytes and not messages show that a
/// peer is alive, because a large value on a slow path is a single message for a long time.
pub(crate) struct Watched<Io> {
    io: Io,
    attempt: Arc<Attempt>,
    /// Whether the next byte is the first of a plain connection. The first byte shows whether the server speaks TLS.
    is_first: bool,
    /// Future that ends when the connection must close; `None` once it has ended.
    close: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<Io> Watched<Io> {
    pub(crate) fn new(io: Io, attempt: Arc<Attempt>, is_plain: bool) -> Self {
        let given_up = attempt.given_up.clone();
        let close = async move {
            given_up.cancelled_owned().await;
            sleep(CLOSE_DELAY).await;
        };
        Self { io, attempt, is_first: is_plain, close: Some(Box::pin(close)) }
    }

    /// Returns an error once the connection must close. Reads and writes both call this function, because a task that
    /// waits only for the peer to read would otherwise not be woken.
    fn check_open(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.close.as_mut().is_some_and(|close| close.as_mut().poll(cx).is_ready()) {
            self.close = None;
        }
        match self.close {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    /// Records the error of a read or a write.
    fn recorded<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(e)) = &result {
            self.attempt.note(HandshakeError::of(e));
        }
        result
    }
}

/// First byte of a TLS record with an alert, which is how a TLS server refuses.
pub(crate) const TLS_ALERT: u8 = 0x15;
/// First byte of a TLS record of a handshake.
pub(crate) const TLS_HANDSHAKE: u8 = 0x16;

impl<Io: AsyncRead + Unpin> AsyncRead for Watched<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check_open(cx)?;
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        let new = buf.filled().get(before..).unwrap_or_default();
        self.attempt.bytes.fetch_add(new.len() as u64, Relaxed);
        if self.is_first
            && let Some(first) = new.first()
        {
            self.is_first = false;
            if matches!(*first, TLS_ALERT | TLS_HANDSHAKE) {
                let trouble = HandshakeError::OneSideIsPlain { they_speak_tls: true };
                self.attempt.note(trouble.clone());
                return Poll::Ready(Err(trouble.into_io()));
            }
        }
        self.recorded(read)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Watched<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check_open(cx)?;
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.recorded(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_open(cx)?;
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.recorded(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_open(cx)?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    // Forwarded, because each frame is otherwise copied into one buffer before it is written.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_open(cx)?;
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.recorded(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
#[cfg(not(any(shuttle, simulation)))]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::{Instant, advance, timeout},
    };

    use super::*;

    /// Checks that a connection without its guard still sends for [`CLOSE_DELAY`], and that pending reads and writes
    /// then end with an error.
    #[tokio::test(start_paused = true)]
    async fn given_up_attempt_sends_last_bytes_then_closes() {
        let attempt = Attempt::new(&Arc::default());
        let of_use = attempt.of_use();
        let (local, mut remote) = duplex(8);
        let mut local = Watched::new(local, attempt, false);
        local.write_all(b"before").await.unwrap();
        advance(CLOSE_DELAY * 9).await;
        let given_up = Instant::now();
        drop(of_use);
        local.write_all(b"go").await.unwrap();
        // The server neither reads nor sends any more, and both waiting tasks are woken.
        let (read, written) = {
            let (mut from, mut to) = tokio::io::split(&mut local);
            let both = async { tokio::join!(from.read_u8(), to.write_all(b"later")) };
            timeout(CLOSE_DELAY * 9, both).await.expect("the read and the write end")
        };
        // A timer fires less than a millisecond late.
        assert_eq!(given_up.elapsed().as_millis() / 2, CLOSE_DELAY.as_millis() / 2);
        for ended in [read.unwrap_err(), written.unwrap_err()] {
            assert_eq!(ended.kind(), io::ErrorKind::ConnectionAborted);
        }
        assert!(local.flush().await.is_err() && local.shutdown().await.is_err());
        drop(local);
        let mut received = String::new();
        remote.read_to_string(&mut received).await.unwrap();
        assert_eq!(received, "beforego");
    }
}
