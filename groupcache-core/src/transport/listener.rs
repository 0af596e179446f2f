//! Listener for peers: accepts connections, performs their handshakes, and passes them to the HTTP/2 server.
//!
//! Each handshake is a task of its own with a deadline, so that no connection ends the listener or delays another
//! connection. The limits of open connections are in `session`.

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
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::transport::{
    TcpListener, TcpStream,
    accepted::Accepted,
    attempt::{TLS_ALERT, TLS_HANDSHAKE},
    received::ReceivedBytes,
    security::Security,
    session::{Session, Sessions},
};
use crate::{
    limits::{HANDSHAKE, Limits},
    runtime::{
        log_limit::LogRateLimit,
        stats::{Counter, NodeCounters},
    },
    transport::handshake::HandshakeError,
};

/// Number of connections with a finished handshake that wait for the HTTP/2 server.
const ACCEPTED_QUEUE: usize = 16;

/// Interval at which unused, silent and outdated connections are closed.
const SWEEP: Duration = Duration::from_secs(1);

/// Pause after an error of the listener, because the usual reason is a temporary want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Time for HTTP/2 to send its last frames: on all connections after the node stops, and on an outgoing connection
/// after its attempt is given up.
pub(crate) const CLOSE_DELAY: Duration = Duration::from_millis(500);

/// Maximum time for a refused client to read the reason.
const REFUSAL_TIME: Duration = Duration::from_millis(200);

/// Refusal for a client without TLS at a node with TLS: the alert `handshake_failure` (RFC 8446, section 6).
const TLS_REFUSAL: [u8; 7] = [TLS_ALERT, 3, 3, 0, 2, 2, 40];

/// Refusal for a client with TLS at a node without TLS: an empty SETTINGS frame of HTTP/2 (RFC 9113, section 6.5),
/// which no TLS client mistakes for TLS.
const PLAIN_REFUSAL: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Settings of a listener, and the parts of the node that the listener uses.
pub(crate) struct ListenerConfig {
    pub(crate) security: Security,
    pub(crate) limits: Limits,
    /// Budget of the bytes that connections have received and nobody has taken.
    pub(crate) received: Arc<ReceivedBytes>,
    pub(crate) counters: Arc<NodeCounters>,
    pub(crate) tasks: TaskTracker,
    /// Token that stops the listener and all running handshakes.
    pub(crate) stop: CancellationToken,
}

/// Starts to accept connections. The returned stream yields each connection after its handshake.
pub(crate) fn start(listener: TcpListener, config: ListenerConfig) -> Accepting {
    let (accepted, feed) = mpsc::channel(ACCEPTED_QUEUE);
    let sessions = Sessions::new(config.limits.max_connections, Arc::clone(&config.received));
    let acceptor =
        Arc::new(Listener { sessions, config, started: Instant::now(), log_limit: LogRateLimit::default(), accepted });
    acceptor.config.tasks.spawn(Arc::clone(&acceptor).run(listener));
    Accepting(feed)
}

pub(super) struct Listener {
    pub(super) sessions: Sessions,
    config: ListenerConfig,
    started: Instant,
    log_limit: LogRateLimit,
    accepted: mpsc::Sender<Accepted>,
}

impl Listener {
    async fn run(self: Arc<Self>, listener: TcpListener) {
        let mut sweeps = interval(SWEEP);
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.config.stop.cancelled() => {
                    // A peer that does not read the last frames would otherwise hold its connection forever.
                    let _ = timeout(CLOSE_DELAY, self.sessions.wait_until_empty()).await;
                    return self.sessions.close_all();
                }
                _ = sweeps.tick() => self.sessions.sweep(self.now_ms(), self.config.security.generation()),
                accepted = listener.accept() => match accepted {
                    Ok((tcp, remote)) => self.admit(tcp, remote),
                    Err(e) => {
                        self.log_limit.write(|suppressed| {
                            tracing::warn!(
                                error = %e,
                                suppressed,
                                "a connection could not be accepted; check the limit of open files"
                            );
                        });
                        self.sessions.make_room();
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    fn admit(self: &Arc<Self>, tcp: TcpStream, remote: SocketAddr) {
        let (session, evicted) = self.sessions.admit(remote, self.now_ms());
        if let Some(evicted) = evicted {
            self.refused(evicted.remote, &HandshakeError::CrowdedOut);
        }
        let admitted = Admitted { listener: Arc::clone(self), session };
        self.config.tasks.spawn(admitted.shake_hands(tcp));
    }

    pub(super) fn refused(&self, remote: SocketAddr, trouble: &HandshakeError) {
        counter(&self.config.counters, trouble).up();
        if *trouble == HandshakeError::Probe {
            tracing::debug!(%remote, "a connection was closed before its first byte, as by a probe of the port");
            return;
        }
        self.log_limit.write(|suppressed| {
            tracing::warn!(%remote, error = %trouble, suppressed, "refused a connection");
        });
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// Returns the counter of a reason for a refusal.
fn counter<'a>(counters: &'a NodeCounters, trouble: &HandshakeError) -> &'a Counter {
    match trouble {
        HandshakeError::OneSideIsPlain { .. } => &counters.refused_plain,
        HandshakeError::OtherTls(_) => &counters.refused_tls,
        HandshakeError::Certificate(_) => &counters.refused_certificates,
        HandshakeError::Name(_) => &counters.refused_names,
        HandshakeError::RefusesUs(_) => &counters.refused_by_peers,
        HandshakeError::TooLate => &counters.handshake_timeouts,
        HandshakeError::CrowdedOut => &counters.connections_evicted,
        HandshakeError::OverBudget => &counters.connections_over_budget,
        HandshakeError::LargeFrame => &counters.large_frames,
        HandshakeError::Probe => &counters.probes,
        HandshakeError::Broken(_) => &counters.handshakes_broken,
    }
}

/// Connection that holds a place among the open connections until its drop.
pub(super) struct Admitted {
    pub(super) listener: Arc<Listener>,
    pub(super) session: Arc<Session>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.listener.sessions.remove(&self.session);
    }
}

impl Admitted {
    async fn shake_hands(self, mut tcp: TcpStream) {
        let ListenerConfig { security, stop, .. } = &self.listener.config;
        let handshake = async {
            // Small responses must not wait for the acknowledgement of earlier responses.
            tcp.set_nodelay(true).map_err(|e| HandshakeError::of(&e))?;
            if let Err(trouble) = check_first_byte(security, &mut tcp).await {
                let refusal: &[u8] = if security.is_open() { &PLAIN_REFUSAL } else { &TLS_REFUSAL };
                send_refusal(&mut tcp, refusal).await;
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
        let close = self.session.close_token().clone();
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = close.cancelled() => return, // the reason has been logged
            outcome = timeout(HANDSHAKE, handshake) => outcome.unwrap_or(Err(HandshakeError::TooLate)),
        };
        match outcome {
            Ok((stream, caller, generation)) => {
                for evicted in self.listener.sessions.authenticated(&self.session, caller, generation) {
                    self.listener.refused(evicted.remote, &HandshakeError::CrowdedOut);
                }
                let accepted = self.listener.accepted.clone();
                let close = Box::pin(close.cancelled_owned());
                let _ = accepted.send(Accepted::new(stream, close, self)).await;
            }
            Err(trouble) => self.listener.refused(self.session.remote, &trouble),
        }
    }
}

/// Peeks at the first byte and checks that both sides speak TLS, or that neither side does.
async fn check_first_byte(security: &Security, tcp: &mut TcpStream) -> Result<(), HandshakeError> {
    let mut first = [0];
    match tcp.peek(&mut first).await {
        Ok(0) => return Err(HandshakeError::Probe),
        Ok(_) => {}
        // Some load balancers end their probes with a reset.
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(HandshakeError::Probe),
        Err(e) => return Err(HandshakeError::of(&e)),
    }
    let they_speak_tls = first == [TLS_HANDSHAKE];
    match they_speak_tls == security.is_open() {
        true => Err(HandshakeError::OneSideIsPlain { they_speak_tls }),
        false => Ok(()),
    }
}

/// Sends a refusal, and waits until the other side has closed the connection, for [`REFUSAL_TIME`] at most. A
/// connection that is closed with unread bytes is reset, and the refusal would be lost.
async fn send_refusal(tcp: &mut TcpStream, refusal: &[u8]) {
    let sent = async {
        tcp.write_all(refusal).await?;
        tcp.shutdown().await?;
        let mut rest = [0; 1024];
        while tcp.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // Errors are ignored, because the other side need not wait for the reason.
    let _ = timeout(REFUSAL_TIME, sent).await;
}

/// Stream of the connections that have finished their handshake.
pub(crate) struct Accepting(mpsc::Receiver<Accepted>);

impl Incoming for Accepting {
    type Item = io::Result<Accepted>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|accepted| accepted.map(Ok))
    }
}

#[cfg(test)]
#[cfg(not(any(shuttle, simulation)))]
mod tests {
    use super::*;
    use crate::transport;

    fn config(stop: &CancellationToken) -> ListenerConfig {
        ListenerConfig {
            security: Security::Open { is_insecure: true },
            limits: Limits { max_connections: 4, ..Limits::default() },
            received: Arc::new(ReceivedBytes::of(&Limits::default())),
            counters: Arc::default(),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
        }
    }

    /// Checks that a listener ends at once without connections, and closes the remaining ones after [`CLOSE_DELAY`].
    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "the test connects as a client")]
    async fn stopped_listener_waits_briefly_for_connections() {
        for (delay, is_left) in [(Duration::ZERO, false), (CLOSE_DELAY, true)] {
            let listener = transport::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let stop = CancellationToken::new();
            let config = config(&stop);
            let tasks = config.tasks.clone();
            let mut accepting = start(listener, config);
            let mut peer = TcpStream::connect(address).await.unwrap();
            peer.write_all(b"PRI").await.unwrap();
            let accepted = accepting.0.recv().await.expect("the handshake succeeds");
            let accepted = is_left.then_some(accepted);
            tokio::time::pause(); // no more bytes arrive from a socket
            let stopped = Instant::now();
            stop.cancel();
            tasks.close();
            tasks.wait().await;
            // A timer fires less than a millisecond late.
            assert_eq!(stopped.elapsed().as_millis() / 2, delay.as_millis() / 2);
            tokio::time::resume();
            assert!(
                accepted.is_none_or(|accepted| accepted.session().close_token().is_cancelled()),
                "the connection is closed"
            );
        }
    }
}
