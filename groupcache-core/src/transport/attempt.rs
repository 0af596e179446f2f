//! One attempt to connect: what came on its connection, who the other side proved to be, and what went wrong.

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

/// One attempt to connect to a peer.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Bytes that came, on this connection and on others of the same link.
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

    /// For as long as its connection is of use; dropped, it closes the connection, once what was said last has had its
    /// time. HTTP/2 does so by itself only when all we have said has been taken, and a peer that is gone takes nothing.
    pub(crate) fn of_use(&self) -> DropGuard {
        self.given_up.clone().drop_guard()
    }

    /// The handshake is over, and this is who answered.
    pub(crate) fn answered_by(&self, server: Caller) {
        self.state.lock().server = Some(server);
    }

    /// Who answered.
    pub(crate) fn server(&self) -> Caller {
        self.state.lock().server.clone().unwrap_or(Caller::Unknown)
    }

    /// What went wrong first. HTTP/2 only says that the operation was cancelled.
    pub(crate) fn trouble(&self) -> Option<HandshakeError> {
        self.state.lock().trouble.clone()
    }

    pub(crate) fn note(&self, trouble: HandshakeError) {
        self.state.lock().trouble.get_or_insert(trouble);
    }
}

/// The stream of an attempt: counts what is read, and keeps the first error. Silence is judged by bytes: a large
/// value on a slow path is one message for a long time.
pub(crate) struct Watched<Io> {
    io: Io,
    attempt: Arc<Attempt>,
    /// Nothing was read yet, and what comes first tells whether the other side speaks TLS.
    is_first: bool,
    /// Comes when it is to be closed at once; gone when it has.
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

    /// Both directions ask: one that waits for the peer to take what we say would not notice otherwise.
    fn is_to_go_on(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.close.as_mut().is_some_and(|close| close.as_mut().poll(cx).is_ready()) {
            self.close = None;
        }
        match self.close {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    fn kept<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(e)) = &result {
            self.attempt.note(HandshakeError::of(e));
        }
        result
    }
}

/// First bytes of the records in which a TLS server refuses, or greets.
pub(crate) const TLS_ALERT: u8 = 0x15;
/// See [`TLS_ALERT`].
pub(crate) const TLS_HANDSHAKE: u8 = 0x16;

impl<Io: AsyncRead + Unpin> AsyncRead for Watched<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.is_to_go_on(cx)?;
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
        self.kept(read)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Watched<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.is_to_go_on(cx)?;
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.kept(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_to_go_on(cx)?;
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.kept(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_to_go_on(cx)?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    // Forwarded, or each frame would be copied into one buffer before it is written.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_to_go_on(cx)?;
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.kept(written)
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

    #[tokio::test(start_paused = true)]
    async fn what_was_given_up_may_say_its_last_and_is_closed_then() {
        let attempt = Attempt::new(&Arc::default());
        let of_use = attempt.of_use();
        let (ours, mut theirs) = duplex(8);
        let mut ours = Watched::new(ours, attempt, false);
        ours.write_all(b"before").await.unwrap();
        advance(CLOSE_DELAY * 9).await;
        let given_up = Instant::now();
        drop(of_use);
        ours.write_all(b"go").await.unwrap();
        // They take nothing more and say nothing, and whoever waits for that is woken.
        let (read, written) = {
            let (mut from, mut to) = tokio::io::split(&mut ours);
            let both = async { tokio::join!(from.read_u8(), to.write_all(b"later")) };
            timeout(CLOSE_DELAY * 9, both).await.expect("it ends")
        };
        // A timer is late by less than a millisecond.
        assert_eq!(given_up.elapsed().as_millis() / 2, CLOSE_DELAY.as_millis() / 2);
        for ended in [read.unwrap_err(), written.unwrap_err()] {
            assert_eq!(ended.kind(), io::ErrorKind::ConnectionAborted);
        }
        assert!(ours.flush().await.is_err() && ours.shutdown().await.is_err());
        drop(ours);
        let mut heard = String::new();
        theirs.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "beforego");
    }
}
