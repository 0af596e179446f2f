//! Connections to the servers, one after the other, each with the errors that were reported on it.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerError};
use groupcache_core::files;
use tokio::sync::watch;
use tracing::{Dispatch, instrument::WithSubscriber};

use crate::options::{Login, Nats};

/// Maximum time for one server to answer and to authenticate this node.
const CONNECT: Duration = Duration::from_secs(2);
/// Interval at which the client pings a silent server. Two pings without an answer end the connection.
const PING: Duration = Duration::from_secs(5);
/// Maximum number of unread messages of a subscription; 2,000 peers send fewer in 2 s.
const QUEUE: usize = 4_096;
/// Maximum size of a file with credentials or certificates.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Maximum random delay before each attempt of the client to reconnect, because all nodes lose a server at once.
const SPREAD: Duration = Duration::from_millis(250);

/// Errors and warnings of a connection since it was made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Noted {
    /// Last error that the server sent.
    pub(crate) problem: Option<String>,
    /// Number of reports that messages were dropped because this node reads too slowly.
    pub(crate) dropped: u64,
    /// Whether the server is about to shut down.
    pub(crate) is_lame_duck: bool,
}

/// Failure of a round of all servers.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) why: String,
    /// Whether the server has refused the credentials of this node.
    pub(crate) is_refused: bool,
}

impl Failure {
    pub(crate) fn other(why: String) -> Self {
        Self { why, is_refused: false }
    }
}

/// Connection to a server. When it is lost, the client tries each server once more, and then the provider makes a new
/// connection. A client that reconnects for ever does not notice that its handle was dropped, and does not report why a
/// server refuses it.
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) noted: watch::Receiver<Noted>,
}

impl Nats {
    /// Connects once, to the first server that answers.
    pub(crate) async fn connect(&self, inbox: &str, name: &str, seed: u64) -> Result<Connection, Failure> {
        if let Some(client) = &self.client {
            return Ok(Connection { client: client.clone(), noted: watch::channel(Noted::default()).1 });
        }
        let (note, noted) = watch::channel(Noted::default());
        let note = Arc::new(note);
        let was_connected = Arc::new(AtomicBool::new(false));
        let (connected, spread) = (Arc::clone(&was_connected), was_connected);
        self.check_tls_files().await.map_err(Failure::other)?;
        let options = self.login().await.map_err(Failure::other)?;
        let mut options = options
            .name(name)
            .custom_inbox_prefix(inbox)
            .connection_timeout(CONNECT)
            .ping_interval(PING)
            .subscription_capacity(QUEUE)
            // The client makes one round of all servers and gives up. The provider then begins again.
            .max_reconnects(self.servers.len())
            .reconnect_delay_callback(move |attempt| {
                let is_first = !spread.load(Relaxed);
                if is_first { Duration::ZERO } else { jitter(seed ^ attempt as u64, SPREAD) }
            })
            .event_callback(move |event| {
                let (note, connected) = (Arc::clone(&note), Arc::clone(&connected));
                async move {
                    if matches!(event, Event::Connected) {
                        connected.store(true, Relaxed);
                    }
                    take_note(&note, event);
                }
            });
        if self.tls.is_required {
            options = options.require_tls(true);
        }
        if self.tls.is_first {
            options = options.tls_first();
        }
        for path in &self.tls.roots {
            options = options.add_root_certificates(path.clone());
        }
        if let Some((certificate, key)) = &self.tls.client {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        // The client logs each failed attempt, and the health of discovery reports the same once.
        let connecting = options.connect(self.servers.clone()).with_subscriber(Dispatch::none());
        match connecting.await {
            Ok(client) => Ok(Connection { client, noted }),
            Err(e) => {
                let is_refused =
                    matches!(e.kind(), ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication);
                Err(Failure { why: self.explain(&e), is_refused })
            }
        }
    }

    /// Checks that the files for TLS answer, because the client reads them on threads that a runtime waits for.
    async fn check_tls_files(&self) -> Result<(), String> {
        let client = self.tls.client.iter().flat_map(|(certificate, key)| [certificate, key]);
        for path in self.tls.roots.iter().chain(client) {
            files::read(path, MAX_FILE_BYTES).await.map_err(|e| {
                format!(
                    "TLS with the NATS server: {} cannot be read ({e}); check the path of the root certificates and of \
                     the client certificate",
                    path.display()
                )
            })?;
        }
        Ok(())
    }

    async fn login(&self) -> Result<ConnectOptions, String> {
        let options = ConnectOptions::new();
        Ok(match &self.login {
            Login::Anonymous => options,
            Login::Password(user, password) => options.user_and_password(user.clone(), password.clone()),
            Login::Token(token) => options.token(token.clone()),
            #[cfg(feature = "credentials")]
            Login::Nkey(seed) => options.nkey(seed.clone()),
            #[cfg(feature = "credentials")]
            Login::CredentialsFile(path) => {
                let read = files::read(path, MAX_FILE_BYTES).await;
                let text = read.and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other));
                let used = text.and_then(|text| options.credentials(text.trim_start_matches('\u{feff}')));
                used.map_err(|e| {
                    format!(
                        "the NATS credentials file {} cannot be used ({e}); check its path and content",
                        path.display()
                    )
                })?
            }
        })
    }

    /// Describes a connection error and its remedy.
    fn explain(&self, error: &ConnectError) -> String {
        let causes = std::iter::successors(error.source(), |cause| (*cause).source());
        let text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
        let servers: Vec<_> = self.servers.iter().map(|s| format!("{}:{}", s.host(), s.port())).collect();
        let at = servers.join(", ");
        let is_certificate = ["certificate", "Certificate", "TLS", "tls"].iter().any(|word| text.contains(word));
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation => format!(
                "the NATS server at {at} refuses the credentials of this node; check user, password, token or credentials file"
            ),
            ConnectErrorKind::Authentication => {
                format!("cannot sign in to the NATS server at {at} ({text}); check the nkey or the credentials file")
            }
            ConnectErrorKind::Tls => tls(&at, &text),
            ConnectErrorKind::Io if is_certificate => tls(&at, &text),
            _ => format!("cannot reach a NATS server at {at} ({text}); check the addresses and that it runs"),
        }
    }
}

fn tls(at: &str, text: &str) -> String {
    format!("TLS with the NATS server at {at} fails ({text}); check the root certificates and the client certificate")
}

fn take_note(note: &watch::Sender<Noted>, event: Event) {
    note.send_if_modified(|noted| {
        match event {
            // The client may leave out some of these events, so one is reason enough to ask all peers again.
            Event::ServerError(ServerError::SlowConsumer(_)) | Event::SlowConsumer(_) => noted.dropped += 1,
            Event::ServerError(error) => noted.problem = Some(error.to_string()),
            Event::LameDuckMode => noted.is_lame_duck = true,
            _ => return false,
        }
        true
    });
}

/// Returns a part of `most` that depends on the seed alone.
pub(crate) fn jitter(seed: u64, most: Duration) -> Duration {
    most.mul_f64(fastrand::Rng::with_seed(seed).f64())
}

/// Pauses between rounds of all servers, which double from round to round.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    lost: u32,
    refused: u32,
}

impl Pauses {
    /// Begins again with the shortest pause, after a connection that was good.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Returns the pause after a round, a random 50 % to 100 % of the full one, and the time from the beginning of the
    /// round after which a question of the node ends the pause.
    ///
    /// The full pause is 100 ms to 1 s. A server that refuses the credentials knows them by the first attempt, and may
    /// lock an account after many, so that the full pause is 2 s to a minute then.
    pub(crate) fn next(&mut self, is_refused: bool, rng: &mut fastrand::Rng) -> (Duration, Duration) {
        let (rounds, first, longest, hurried) = if is_refused {
            (&mut self.refused, Duration::from_secs(2), Duration::from_secs(60), Duration::from_secs(15))
        } else {
            self.refused = 0;
            (&mut self.lost, Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(1))
        };
        let full = first.saturating_mul(2_u32.saturating_pow(*rounds)).min(longest);
        *rounds = (*rounds + 1).min(8);
        (full.mul_f64(0.5 + rng.f64() / 2.0), hurried)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_after_refusals_grow_to_a_minute() {
        let (mut pauses, mut rng) = (Pauses::default(), fastrand::Rng::with_seed(1));
        let refused: Duration = (0..10).map(|_| pauses.next(true, &mut rng).0).sum();
        // 88 attempts a minute were made without the longer pauses.
        assert!(refused > Duration::from_secs(120), "{refused:?}");
        assert!((0..20).all(|_| pauses.next(true, &mut rng).0 <= Duration::from_secs(60)));
        assert!((0..20).all(|_| pauses.next(false, &mut rng).0 <= Duration::from_secs(1)));
        assert!(pauses.next(true, &mut rng).0 <= Duration::from_secs(2), "another failure ends the row");
    }
}
