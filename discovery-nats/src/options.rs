//! What a user says: which servers, who we are to them, and which subject.

use std::{fmt, path::PathBuf, time::Duration};

use async_nats::{Client, ServerAddr};

use crate::{
    error::NatsError,
    stats::{Counters, NatsStats},
    subjects::{self, permission},
    table::Pace,
};

/// Most server addresses.
const MAX_SERVERS: usize = 32;
/// Shortest and longest time between two heartbeats.
const HEARTBEAT: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(60);

/// A provider that finds peers over NATS.
///
/// Nodes find each other when they have the same subject, the same application and the same cluster (the cluster is
/// part of the node's identity). Others on the same server do not see each other.
///
/// A server that cannot be reached is never an error: the node serves alone, or with the peers that it knows, and
/// joins when the server comes. What is wrong is logged, once, as a discovery that is stale.
#[derive(Clone)]
pub struct Nats {
    pub(crate) servers: Vec<ServerAddr>,
    pub(crate) client: Option<Client>,
    pub(crate) application: String,
    pub(crate) subject: String,
    pub(crate) login: Login,
    pub(crate) tls: Tls,
    pub(crate) pace: Pace,
    pub(crate) counters: Counters,
    #[cfg(feature = "kv")]
    pub(crate) bucket: Option<String>,
    #[cfg(feature = "micro")]
    pub(crate) is_micro: bool,
}

/// Who this node is to the server.
#[derive(Clone, Default)]
pub(crate) enum Login {
    #[default]
    Anonymous,
    Password(String, String),
    Token(String),
    #[cfg(feature = "credentials")]
    Nkey(String),
    #[cfg(feature = "credentials")]
    CredentialsFile(PathBuf),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Tls {
    pub(crate) is_required: bool,
    pub(crate) is_first: bool,
    pub(crate) roots: Vec<PathBuf>,
    pub(crate) client: Option<(PathBuf, PathBuf)>,
}

impl Nats {
    /// The name of the subject that is used where none is given.
    pub const SUBJECT: &str = "groupcache-gossip";

    /// Over the servers `nats://host:port`, separated by commas, for the nodes of one application.
    ///
    /// The port is 4222 where it is missing; `tls://` asks for TLS. Servers that these know of are used too. The first
    /// address with `user:password@` or `token@` says how to sign in to all of them; both as they are written there,
    /// so characters that an address cannot hold need [`user_and_password`](Self::user_and_password).
    ///
    /// # Errors
    /// When a server is no address, there is none or there are more than 32, or the application has no name.
    ///
    /// ```
    /// # use discovery_nats::Nats;
    /// assert!(Nats::new("10.0.0.5,nats://10.0.0.6:4222", "users").is_ok());
    /// assert!(Nats::new("http://10.0.0.5", "users").is_err());
    /// ```
    pub fn new(servers: impl AsRef<str>, application: impl Into<String>) -> Result<Self, NatsError> {
        let items = servers.as_ref().split(',').map(str::trim).filter(|item| !item.is_empty());
        let mut parsed = Vec::new();
        for item in items {
            let server: ServerAddr = item.parse().map_err(|_| bad_server(item))?;
            // An address with a user and a password must not be repeated in an error.
            if !matches!(server.scheme(), "nats" | "tls") || server.host().is_empty() {
                return Err(bad_server(item));
            }
            parsed.push(server);
        }
        if parsed.is_empty() || parsed.len() > MAX_SERVERS {
            return Err(NatsError::new(format!(
                "there are {} NATS servers: name 1 to {MAX_SERVERS}, such as nats://10.0.0.5:4222",
                parsed.len()
            )));
        }
        // The client takes no notice of what an address says of a user.
        let login = parsed.iter().find_map(|server| {
            let user = server.username().filter(|user| !user.is_empty())?.to_owned();
            Some(match server.password() {
                Some(password) => Login::Password(user, password.to_owned()),
                None => Login::Token(user),
            })
        });
        let this = Self::with(parsed, None, application.into())?;
        Ok(Self { login: login.unwrap_or_default(), ..this })
    }

    /// Over a client that the application has already; its servers, credentials and TLS are its own affair.
    ///
    /// It needs the permissions of [`permission`](Self::permission), and must not be closed or drained while the
    /// node lives. A client with `no_echo` cannot be used: a node must hear itself. This is the one place where a
    /// type of `async-nats` is named; it is that of version 0.51.
    ///
    /// # Errors
    /// When the application has no name.
    pub fn from_client(client: Client, application: impl Into<String>) -> Result<Self, NatsError> {
        Self::with(Vec::new(), Some(client), application.into())
    }

    fn with(servers: Vec<ServerAddr>, client: Option<Client>, application: String) -> Result<Self, NatsError> {
        if application.is_empty() || application.len() > 128 {
            return Err(NatsError::new(
                "the application has no name, or one of more than 128 bytes: give it a short one",
            ));
        }
        Ok(Self {
            servers,
            client,
            application,
            subject: Self::SUBJECT.to_owned(),
            login: Login::default(),
            tls: Tls::default(),
            pace: Pace::default(),
            counters: Counters::default(),
            #[cfg(feature = "kv")]
            bucket: None,
            #[cfg(feature = "micro")]
            is_micro: false,
        })
    }

    /// Below which subject the nodes talk; default [`SUBJECT`](Self::SUBJECT).
    ///
    /// # Errors
    /// When it is none: it has wildcards, white space or an empty part.
    pub fn subject(mut self, subject: impl Into<String>) -> Result<Self, NatsError> {
        self.subject = subject.into();
        subjects::check(&self.subject)?;
        Ok(self)
    }

    /// Signs in with a user and a password.
    pub fn user_and_password(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.login = Login::Password(user.into(), password.into());
        self
    }

    /// Signs in with a token.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.login = Login::Token(token.into());
        self
    }

    /// Signs in with an nkey, given as its seed.
    #[cfg(feature = "credentials")]
    pub fn nkey(mut self, seed: impl Into<String>) -> Self {
        self.login = Login::Nkey(seed.into());
        self
    }

    /// Signs in with a credentials file (a JWT and its nkey); read again for each new connection.
    #[cfg(feature = "credentials")]
    pub fn credentials_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.login = Login::CredentialsFile(path.into());
        self
    }

    /// Talks TLS or not at all. (A server that asks for TLS gets it in any case.)
    pub fn require_tls(mut self) -> Self {
        self.tls.is_required = true;
        self
    }

    /// Begins with TLS, for servers with `handshake_first`.
    pub fn tls_first(mut self) -> Self {
        self.tls.is_required = true;
        self.tls.is_first = true;
        self
    }

    /// Trusts the certificates of this PEM file, and no others, to sign those of servers; read again for each new
    /// connection. Default: those that the system trusts.
    pub fn root_certificates(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls.roots.push(path.into());
        self
    }

    /// Shows servers this certificate (mTLS); both are PEM files.
    pub fn client_certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls.client = Some((certificate.into(), key.into()));
        self
    }

    /// How often this node announces itself: 50 ms to 60 s, default 2 s; ± 20 % each time. It is gone for the others
    /// when four in a row are missing. Nodes may differ in it.
    pub fn heartbeat(mut self, every: Duration) -> Self {
        self.pace = Pace::every(every.clamp(*HEARTBEAT.start(), *HEARTBEAT.end()));
        self
    }

    /// Uses a JetStream key-value bucket as the store of members, made when it is not there (in one that is, keys may
    /// outlive their nodes; those are not taken for members): who is in the cluster can
    /// then be looked at with `nats kv`. Needs JetStream of a server 2.11 or newer; with an older one discovery stays
    /// stale and says so.
    ///
    /// The account also needs to publish `$JS.API.>`, `$JS.FC.>` and `$KV.<bucket>.>`. All nodes of a cluster must agree: those
    /// with a bucket do not hear those without.
    ///
    /// # Errors
    /// When it is no name of a bucket: letters, digits, `-` and `_`.
    #[cfg(feature = "kv")]
    pub fn key_value(mut self, bucket: impl Into<String>) -> Result<Self, NatsError> {
        let bucket = bucket.into();
        let is_good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if bucket.is_empty() || bucket.len() > 64 || !bucket.bytes().all(is_good) {
            return Err(NatsError::new(format!("{bucket:?} is no bucket: write letters, digits, - and _")));
        }
        self.bucket = Some(bucket);
        Ok(self)
    }

    /// Registers the node as a NATS micro service named after the application, so that `nats micro ls` lists the
    /// nodes. The account also needs to subscribe to `$SRV.>` and to publish `_INBOX.>`.
    #[cfg(feature = "micro")]
    pub fn micro_service(mut self) -> Self {
        self.is_micro = true;
        self
    }

    /// The subject that the account of the nodes must be allowed to publish and to subscribe, such as
    /// `groupcache-gossip.users.>`.
    pub fn permission(&self) -> String {
        permission(&self.subject, &self.application)
    }

    /// What has been counted so far.
    pub fn stats(&self) -> NatsStats {
        self.counters.read()
    }
}

/// Without what was written: it may hold a password.
fn bad_server(item: &str) -> NatsError {
    let shown = item.rsplit_once('@').map_or(item, |(_, host)| host);
    NatsError::new(format!(
        "{shown:?} is no NATS server: write nats://host:port or tls://host:port, separated by commas"
    ))
}

/// Without credentials.
impl fmt::Debug for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<_> = self.servers.iter().map(|s| format!("{}:{}", s.host(), s.port())).collect();
        f.debug_struct("Nats")
            .field("servers", &servers)
            .field("application", &self.application)
            .field("subject", &self.subject)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_checked_and_no_secret_is_shown() {
        let good = Nats::new(" nats://user:secret@10.0.0.5 , tls://b.example:4223,c", "users").unwrap();
        assert_eq!(good.servers.len(), 3);
        assert_eq!(good.permission(), "groupcache-gossip.users.>");
        let shown = format!("{:?}", good.user_and_password("user", "secret").token("secret"));
        assert!(shown.contains("10.0.0.5:4222") && !shown.contains("secret"), "{shown}");

        let many = vec!["h"; 33].join(",");
        for bad in ["", " , ", "http://h:1", "nats://", "nats://user:secret@h:99999", &many] {
            let error = Nats::new(bad, "users").unwrap_err().to_string();
            assert!(error.contains("nats://") && !error.contains("secret"), "{bad}: {error}");
        }
        assert!(Nats::new("h", "").is_err());
        assert!(Nats::new("h", "users").unwrap().subject("a.*").is_err());
    }
}
