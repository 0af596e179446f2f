//! The listener for peers: accepts connections, does their handshakes, and passes them on to HTTP/2.
//!
//! No connection can end the listener or keep another one waiting, because each handshake is a task of its own with a
//! deadline.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream as Incoming;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};
use tonic::transport::server::Connected;

use crate::transport::{
    TcpListener, TcpStream,
    attempt::{TLS_ALERT, TLS_HANDSHAKE},
    security::Security,
    session::{Session, Sessions},
    stream::Stream,
};
use crate::{
    limits::HANDSHAKE,
    runtime::{
        log_limit::LogRateLimit,
        stats::{Counter, NodeCounters},
    },
    transport::handshake::HandshakeError,
};

/// Maximum number of connections that wait for HTTP/2.
const ACCEPTED_QUEUE: usize = 16;

/// Pause between two sweeps of the connections.
const SWEEP: Duration = Duration::from_secs(1);

/// Pause after an error of the listener, which mostly is a want of descriptors for a moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Time that a connection keeps after the end of the node, and after it was given up, for what HTTP/2 has yet to send.
pub(crate) const CLOSE_DELAY: Duration = Duration::from_millis(500);

/// Time that a refused peer has to read the reason.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Refusal for a TLS client: the alert `handshake_failure` (RFC 8446, section 6).
const TLS_REFUSAL: [u8; 7] = [TLS_ALERT, 3, 3, 0, 2, 2, 40];

/// Refusal for a client without TLS: empty SETTINGS of HTTP/2 (RFC 9113, section 6.5), which no TLS client takes for TLS.
const PLAIN_REFUSAL: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Parts of a node that its listener uses.
pub(crate) struct ListenerConfig {
    pub(crate) security: Security,
    pub(crate) max_connections: usize,
    pub(crate) counters: Arc<NodeCounters>,
    pub(crate) tasks: TaskTracker,
    /// Token that ends the listener and running handshakes.
    pub(crate) stop: CancellationToken,
}

/// Begins to accept connections; the stream yields those whose handshake succeeded.
pub(crate) fn start(listener: TcpListener, keeper: ListenerConfig) -> Accepting {
    let (accepted, feed) = mpsc::channel(ACCEPTED_QUEUE);
    let sessions = Sessions::new(keeper.max_connections);
    let door = Arc::new(Listener { sessions, keeper, begun: Instant::now(), lines: LogRateLimit::default(), accepted });
    door.keeper.tasks.spawn(Arc::clone(&door).run(listener));
    Accepting(feed)
}

struct Listener {
    sessions: Sessions,
    keeper: ListenerConfig,
    begun: Instant,
    lines: LogRateLimit,
    accepted: mpsc::Sender<Accepted>,
}

impl Listener {
    async fn run(self: Arc<Self>, listener: TcpListener) {
        let mut sweeps = interval(SWEEP);
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.keeper.stop.cancelled() => {
                    // The last frames are on their way; a peer that does not read them would hold the connection for ever.
                    let _ = timeout(CLOSE_DELAY, self.sessions.all_gone()).await;
                    return self.sessions.cut_all();
                }
                _ = sweeps.tick() => self.sessions.sweep(self.now_ms(), self.keeper.security.generation()),
                accepted = listener.accept() => match accepted {
                    Ok((tcp, remote)) => self.admit(tcp, remote),
                    Err(e) => {
                        self.lines.write(|suppressed| {
                            tracing::warn!(error = %e, suppressed, "a connection could not be accepted; the listener goes on");
                        });
                        self.sessions.make_room();
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    fn admit(self: &Arc<Self>, tcp: TcpStream, remote: SocketAddr) {
        match self.sessions.admit(remote, self.now_ms()) {
            Ok((session, connections_evicted)) => {
                if let Some(connections_evicted) = connections_evicted {
                    self.refused(connections_evicted.remote, &HandshakeError::CrowdedOut);
                }
                let admitted = Admitted { door: Arc::clone(self), session };
                self.keeper.tasks.spawn(admitted.shake_hands(tcp));
            }
            Err(trouble) => self.refused(remote, &trouble),
        }
    }

    fn refused(&self, remote: SocketAddr, trouble: &HandshakeError) {
        counter(&self.keeper.counters, trouble).up();
        self.lines.write(|suppressed| {
            tracing::warn!(%remote, error = %trouble, suppressed, "refused a connection");
        });
    }

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }
}

fn counter<'a>(counters: &'a NodeCounters, trouble: &HandshakeError) -> &'a Counter {
    match trouble {
        HandshakeError::OneSideIsPlain { .. } => &counters.refused_plain,
        HandshakeError::OtherTls(_) => &counters.refused_tls,
        HandshakeError::Certificate(_) => &counters.refused_certificates,
        HandshakeError::Name(_) => &counters.refused_names,
        HandshakeError::RefusesUs(_) => &counters.refused_by_peers,
        HandshakeError::TooLate => &counters.handshake_timeouts,
        HandshakeError::CrowdedOut => &counters.connections_evicted,
        HandshakeError::Broken(_) => &counters.handshakes_broken,
    }
}

/// Guard of a connection's place, which is given back when the guard is dropped.
struct Admitted {
    door: Arc<Listener>,
    session: Arc<Session>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.door.sessions.forget(&self.session);
    }
}

impl Admitted {
    async fn shake_hands(self, mut tcp: TcpStream) {
        let ListenerConfig { security, stop, .. } = &self.door.keeper;
        let handshake = async {
            // Small responses must not wait for the acknowledgement of those before them.
            tcp.set_nodelay(true).map_err(|e| HandshakeError::of(&e))?;
            if let Err(trouble) = first_byte(security, &mut tcp).await {
                let words: &[u8] = if security.is_open() { &PLAIN_REFUSAL } else { &TLS_REFUSAL };
                send_refusal(&mut tcp, words).await;
                return Err(trouble);
            }
            match security.accept(tcp).await {
                Ok(accepted) => Ok(accepted),
                Err((trouble, tcp)) => {
                    if let Some(mut tcp) = tcp {
                        send_refusal(&mut tcp, &[]).await; // the alert has been sent
                    }
                    Err(trouble)
                }
            }
        };
        let cut = self.session.is_cut().clone();
        let shaken = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = cut.cancelled() => return, // the reason is logged already
            shaken = timeout(HANDSHAKE, handshake) => shaken.unwrap_or(Err(HandshakeError::TooLate)),
        };
        match shaken {
            Ok((stream, caller, generation)) => {
                self.session.authenticated_as(caller, generation);
                let accepted = self.door.accepted.clone();
                let _ = accepted.send(Accepted { stream, cut: Box::pin(cut.cancelled_owned()), place: self }).await;
            }
            Err(trouble) => self.door.refused(self.session.remote, &trouble),
        }
    }
}

/// Returns whether both sides speak TLS, or neither does.
async fn first_byte(security: &Security, tcp: &mut TcpStream) -> Result<(), HandshakeError> {
    let mut first = [0];
    if tcp.peek(&mut first).await.map_err(|e| HandshakeError::of(&e))? == 0 {
        return Err(HandshakeError::Broken("it was closed before anything was said".to_owned()));
    }
    let they_speak_tls = first == [TLS_HANDSHAKE];
    match they_speak_tls == security.is_open() {
        true => Err(HandshakeError::OneSideIsPlain { they_speak_tls }),
        false => Ok(()),
    }
}

/// Sends a refusal, and gives the other side time to read it. A connection that is closed with unread bytes is reset, and the
/// refusal would be lost.
async fn send_refusal(tcp: &mut TcpStream, words: &[u8]) {
    let said = async {
        tcp.write_all(words).await?;
        tcp.shutdown().await?;
        let mut rest = [0; 1024];
        while tcp.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // A peer that does not wait for the refusal does not need it.
    let _ = timeout(LAST_WORDS, said).await;
}

/// Stream of connections whose handshake succeeded.
pub(crate) struct Accepting(mpsc::Receiver<Accepted>);

impl Incoming for Accepting {
    type Item = io::Result<Accepted>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|accepted| accepted.map(Ok))
    }
}

/// A connection after its handshake, as HTTP/2 reads and writes it; every request on it finds its [`Session`].
pub(crate) struct Accepted {
    stream: Stream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    place: Admitted,
}

impl Accepted {
    /// Checked by both directions, because one that waits for the peer to read would not notice otherwise.
    fn is_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
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
        self.is_cut(cx)?;
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.place.session.read(buf.filled().len() - before);
        read
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.is_cut(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_cut(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_cut(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_cut(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
#[cfg(not(any(shuttle, simulation)))]
mod tests {
    use super::*;
    use crate::transport;

    fn keeper(stop: &CancellationToken) -> ListenerConfig {
        ListenerConfig {
            security: Security::Open { is_insecure: true },
            max_connections: 4,
            counters: Arc::default(),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
        }
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "somebody who knocks at the door")]
    async fn ending_listener_waits_briefly_for_its_connections() {
        for (linger, is_left) in [(Duration::ZERO, false), (CLOSE_DELAY, true)] {
            let listener = transport::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let stop = CancellationToken::new();
            let keeper = keeper(&stop);
            let tasks = keeper.tasks.clone();
            let mut accepting = start(listener, keeper);
            let mut peer = TcpStream::connect(address).await.unwrap();
            peer.write_all(b"PRI").await.unwrap();
            let accepted = accepting.0.recv().await.expect("it has shaken hands");
            let accepted = is_left.then_some(accepted);
            tokio::time::pause(); // no socket is read from here on
            let begun = Instant::now();
            stop.cancel();
            tasks.close();
            tasks.wait().await;
            // A timer is late by a millisecond at most.
            assert_eq!(begun.elapsed().as_millis() / 2, linger.as_millis() / 2);
            tokio::time::resume();
            assert!(accepted.is_none_or(|accepted| accepted.place.session.is_cut().is_cancelled()), "it is cut then");
        }
    }
}
