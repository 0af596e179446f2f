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

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    handshake::{Caller, Trouble},
    sync::Mutex,
};

/// One attempt to connect to a peer.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Bytes that came, on this connection and on others of the same link.
    bytes: Arc<AtomicU64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    server: Option<Caller>,
    trouble: Option<Trouble>,
}

impl Attempt {
    pub(crate) fn new(bytes: &Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self { bytes: Arc::clone(bytes), state: Mutex::default() })
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
    pub(crate) fn trouble(&self) -> Option<Trouble> {
        self.state.lock().trouble.clone()
    }

    pub(crate) fn note(&self, trouble: Trouble) {
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
}

impl<Io> Watched<Io> {
    pub(crate) fn new(io: Io, attempt: Arc<Attempt>, is_plain: bool) -> Self {
        Self { io, attempt, is_first: is_plain }
    }

    fn kept<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(e)) = &result {
            self.attempt.note(Trouble::of(e));
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
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        let new = buf.filled().get(before..).unwrap_or_default();
        self.attempt.bytes.fetch_add(new.len() as u64, Relaxed);
        if self.is_first
            && let Some(first) = new.first()
        {
            self.is_first = false;
            if matches!(*first, TLS_ALERT | TLS_HANDSHAKE) {
                let trouble = Trouble::OneSideIsPlain { they_speak_tls: true };
                self.attempt.note(trouble.clone());
                return Poll::Ready(Err(trouble.into_io()));
            }
        }
        self.kept(read)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Watched<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.kept(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.kept(flushed)
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
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.kept(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
