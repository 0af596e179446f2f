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
use tokio::sync::watch;

use crate::options::{Login, Nats};

/// Maximum time for one server to answer and to authenticate this node.
const CONNECT: Duration = Duration::from_secs(2);
/// Interval at which the client pings a silent server. Two pings without an answer end the connection.
const PING: Duration = Duration::from_secs(5);
/// Maximum number of unread messages of a subscription; 2,000 peers send fewer in 2 s.
const QUEUE: usize = 4_096;
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

/// Connection to a server. When it is lost, the client tries each server once more, and then the provider makes a new
/// connection. A client that reconnects for ever does not notice that its handle was dropped, and does not report why a
/// server refuses it.
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) noted: watch::Receiver<Noted>,
}

impl Nats {
    /// Connects once, to the first server that answers.
    pub(crate) async fn connect(&self, inbox: &str, name: &str, seed: u64) -> Result<Connection, String> {
        if let Some(client) = &self.client {
            return Ok(Connection { client: client.clone(), noted: watch::channel(Noted::default()).1 });
        }
        let (note, noted) = watch::channel(Noted::default());
        let note = Arc::new(note);
        let was_connected = Arc::new(AtomicBool::new(false));
        let (connected, spread) = (Arc::clone(&was_connected), was_connected);
        let options = self.login().await?;
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
        match options.connect(self.servers.clone()).await {
            Ok(client) => Ok(Connection { client, noted }),
            Err(e) => Err(self.explain(&e)),
        }
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
            Login::CredentialsFile(path) => options.credentials_file(path).await.map_err(|e| {
                format!("the NATS credentials file {} cannot be used ({e}); check its path and content", path.display())
            })?,
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

/// Returns the pause before another round of all servers: a random 50 % to 100 % of 100 ms, doubled for each round up
/// to 1 s.
pub(crate) fn pause(round: u32, rng: &mut fastrand::Rng) -> Duration {
    let longest = Duration::from_secs(1);
    let full = Duration::from_millis(100).saturating_mul(2_u32.saturating_pow(round.min(8))).min(longest);
    full.mul_f64(0.5 + rng.f64() / 2.0)
}
