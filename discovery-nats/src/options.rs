//! Options of the provider: servers, credentials, TLS, subject and heartbeat.

use std::{fmt, path::PathBuf, time::Duration};

use async_nats::{Client, ServerAddr};
use groupcache_core::{discovery::Trust, environment::trimmed};
use percent_encoding::percent_decode_str;

use crate::{
    error::NatsError,
    stats::{Counters, NatsStats},
    subjects::{self, permission},
    table::Pace,
};

/// Maximum number of server addresses.
const MAX_SERVERS: usize = 32;
/// Application of nodes for which none was chosen.
const DEFAULT_APPLICATION: &str = "default";
/// Range of the time between two heartbeats.
const HEARTBEAT: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(60);

/// Provider that finds peers over NATS.
///
/// Nodes find each other if they have the same subject, the same application and the same cluster. (The cluster is part
/// of the node's identity.) Other nodes on the same server do not see them.
///
/// A server that cannot be reached is never an error: the node serves alone, or with the peers that it knows, and joins
/// when the server comes up. The problem is logged, once, as stale discovery.
#[derive(Clone)]
pub struct Nats {
    pub(crate) servers: Vec<ServerAddr>,
    pub(crate) client: Option<Client>,
    pub(crate) application: String,
    /// Whether the application was chosen. Otherwise the name of the cluster alone keeps services apart.
    pub(crate) has_application: bool,
    pub(crate) trust: Trust,
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

/// Credentials of this node at the server.
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
    /// Default subject.
    pub const SUBJECT: &str = "groupcache-gossip";

    /// Returns a provider over the servers `nats://host:port`, separated by commas, for the nodes of one application.
    ///
    /// Default port: 4222. The scheme `tls://` requires TLS. Further servers that these servers report are used too.
    /// The first address with `user:password@` or `token@` gives the credentials for all servers. Characters that an
    /// address cannot hold are percent-encoded there, as for every NATS client: `p%40ss` is `p@ss`.
    ///
    /// # Errors
    /// Returns an error if a server is not an address, if there are no servers or more than 32, if decoded credentials
    /// are not UTF-8, or if the application has an empty name or one of more than 128 bytes.
    ///
    /// ```
    /// # use discovery_nats::Nats;
    /// assert!(Nats::new("10.0.0.5,nats://10.0.0.6:4222", "users").is_ok());
    /// assert!(Nats::new("http://10.0.0.5", "users").is_err());
    /// ```
    pub fn new(servers: impl AsRef<str>, application: impl Into<String>) -> Result<Self, NatsError> {
        Self::without_application(servers)?.application(application)
    }

    /// Returns a provider as [`new`](Self::new) does, for nodes that the name of their cluster alone keeps apart from
    /// other services on the server.
    ///
    /// A node without a [cluster](groupcache_core::Identity::with_cluster) of its own does not start with it, because
    /// each service that was given the same servers and nothing else would be one cluster.
    ///
    /// # Errors
    /// The errors of [`new`](Self::new).
    pub fn without_application(servers: impl AsRef<str>) -> Result<Self, NatsError> {
        let items = servers.as_ref().split(',').map(trimmed).filter(|item| !item.is_empty());
        let mut parsed = Vec::new();
        for item in items {
            let server: ServerAddr = item.parse().map_err(|_| bad_server(item))?;
            // The error must not repeat an address with a user and a password.
            if !matches!(server.scheme(), "nats" | "tls") || server.host().is_empty() {
                return Err(bad_server(item));
            }
            parsed.push(server);
        }
        if parsed.is_empty() || parsed.len() > MAX_SERVERS {
            return Err(NatsError::new(format!(
                "the list has {} NATS servers; name 1 to {MAX_SERVERS}, such as nats://10.0.0.5:4222",
                parsed.len()
            )));
        }
        // The client ignores the user in an address.
        let login = parsed.iter().find_map(|server| {
            let user = server.username().filter(|user| !user.is_empty())?;
            Some((user, server.password()))
        });
        let login = match login {
            None => Login::Anonymous,
            Some((user, Some(password))) => Login::Password(decoded(user)?, decoded(password)?),
            Some((token, None)) => Login::Token(decoded(token)?),
        };
        Ok(Self { login, ..Self::with(parsed, None) })
    }

    /// Sets the name of the application. Nodes of one application and one cluster find each other.
    ///
    /// # Errors
    /// Returns an error if the name is empty or longer than 128 bytes.
    pub fn application(mut self, application: impl Into<String>) -> Result<Self, NatsError> {
        self.application = application.into();
        if self.application.is_empty() || self.application.len() > 128 {
            return Err(NatsError::new(
                "the name of the application is empty or longer than 128 bytes; set a name of 1 to 128 bytes, such as users",
            ));
        }
        self.has_application = true;
        Ok(self)
    }

    /// Sets the trust in the announcements. Default: [`Trust::Hints`], because any program that may publish on the subject
    /// can announce any peer and say its goodbye. [`Trust::Authority`] suits a server on which only the nodes may
    /// publish: members that no longer announce themselves then leave although their connection is alive.
    pub fn trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    /// Returns a provider over a client of the application, for the nodes of one application. Servers, credentials and
    /// TLS remain those of the client.
    ///
    /// The client needs the permissions of [`permission`](Self::permission), and must not be closed or drained while
    /// the node lives. A client with `no_echo` cannot be used, because a node must receive its own messages. No other
    /// method names a type of `async-nats`. The version of `async-nats` is 0.51.
    ///
    /// # Errors
    /// Returns an error if the application has an empty name or one of more than 128 bytes.
    pub fn from_client(client: Client, application: impl Into<String>) -> Result<Self, NatsError> {
        Self::with(Vec::new(), Some(client)).application(application)
    }

    fn with(servers: Vec<ServerAddr>, client: Option<Client>) -> Self {
        Self {
            servers,
            client,
            application: DEFAULT_APPLICATION.to_owned(),
            has_application: false,
            trust: Trust::Hints,
            subject: Self::SUBJECT.to_owned(),
            login: Login::default(),
            tls: Tls::default(),
            pace: Pace::default(),
            counters: Counters::default(),
            #[cfg(feature = "kv")]
            bucket: None,
            #[cfg(feature = "micro")]
            is_micro: false,
        }
    }

    /// Sets the subject below which the nodes exchange messages. Default: [`SUBJECT`](Self::SUBJECT).
    ///
    /// # Errors
    /// Returns an error if the subject has wildcards, white space, characters beyond ASCII, an empty part, the part
    /// `$SYS` or more than 128 bytes.
    pub fn subject(mut self, subject: impl Into<String>) -> Result<Self, NatsError> {
        self.subject = subject.into();
        subjects::check(&self.subject)?;
        Ok(self)
    }

    /// Signs in with a user and a password. Default: the credentials in the first address that has some, otherwise
    /// none. The last sign-in method that is called replaces the others.
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

    /// Signs in with a credentials file (a JWT and its nkey), which is read again for each new connection.
    #[cfg(feature = "credentials")]
    pub fn credentials_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.login = Login::CredentialsFile(path.into());
        self
    }

    /// Requires TLS. Default: TLS if an address begins with `tls://` or the server asks for it.
    pub fn require_tls(mut self) -> Self {
        self.tls.is_required = true;
        self
    }

    /// Begins each connection with TLS, for servers with `handshake_first`, and requires TLS. Default: off.
    pub fn tls_first(mut self) -> Self {
        self.tls.is_required = true;
        self.tls.is_first = true;
        self
    }

    /// Trusts the authorities in this PEM file, and no others, to sign the certificates of servers. The file is read
    /// again for each new connection. Several calls add files. Default: the authorities that the system trusts.
    pub fn root_certificates(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls.roots.push(path.into());
        self
    }

    /// Presents this certificate to servers (mTLS). Certificate and key are PEM files. Default: no certificate.
    pub fn client_certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls.client = Some((certificate.into(), key.into()));
        self
    }

    /// Sets how often this node announces itself. Default: 2 s. Range: 50 ms to 60 s. Values outside of the range
    /// become its nearer end, and each interval varies by ± 20 %. The other nodes expire this node when four
    /// announcements in a row are missing. Nodes of one cluster may have different intervals.
    pub fn heartbeat(mut self, every: Duration) -> Self {
        self.pace = Pace::every(every.clamp(*HEARTBEAT.start(), *HEARTBEAT.end()));
        self
    }

    /// Uses a JetStream key-value bucket as the store of members, so that `nats kv` shows the members of the cluster.
    /// Default: no bucket.
    /// The bucket is created if it does not exist. In an existing bucket keys may outlive their nodes, and such keys
    /// are not taken for members. A bucket needs JetStream of a server 2.11 or newer. With an older server discovery
    /// stays stale, and its health gives the reason.
    ///
    /// The account also needs to publish `$JS.API.>`, `$JS.FC.>` and `$KV.<bucket>.>`. All nodes of a cluster must use
    /// the same bucket or none, because nodes with a bucket and nodes without one do not see each other.
    ///
    /// # Errors
    /// Returns an error if the name is not one of a bucket: 1 to 64 letters, digits, `-` and `_`.
    #[cfg(feature = "kv")]
    pub fn key_value(mut self, bucket: impl Into<String>) -> Result<Self, NatsError> {
        let bucket = bucket.into();
        let is_good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if bucket.is_empty() || bucket.len() > 64 || !bucket.bytes().all(is_good) {
            return Err(NatsError::new(format!(
                "{bucket:?} is not a bucket name; write 1 to 64 letters, digits, - and _"
            )));
        }
        self.bucket = Some(bucket);
        Ok(self)
    }

    /// Registers the node as a NATS micro service named after the application, so that `nats micro ls` lists the
    /// nodes. The account also needs to subscribe to `$SRV.>` and to publish `_INBOX.>`. Default: off.
    #[cfg(feature = "micro")]
    pub fn micro_service(mut self) -> Self {
        self.is_micro = true;
        self
    }

    /// Returns the subject that the account of the nodes must be allowed to publish and to subscribe, such as
    /// `groupcache-gossip.users.>`.
    pub fn permission(&self) -> String {
        permission(&self.subject, &self.application)
    }

    /// Returns the counters of this provider and its clones.
    pub fn stats(&self) -> NatsStats {
        self.counters.read()
    }
}

/// Returns the error for an address, without its user part, because that may hold a password.
fn bad_server(item: &str) -> NatsError {
    let shown = item.rsplit_once('@').map_or(item, |(_, host)| host);
    NatsError::new(format!(
        "{shown:?} is not a NATS server; write nats://host:port or tls://host:port, separated by commas"
    ))
}

/// Leaves out the credentials.
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

/// Returns credentials of an address without their percent-encoding.
fn decoded(part: &str) -> Result<String, NatsError> {
    let text = percent_decode_str(part).decode_utf8();
    text.map(Into::into).map_err(|_| {
        NatsError::new(
            "the user, the password or the token in the address of a NATS server is not UTF-8 after percent-decoding; \
             write nats://user:p%40ss@10.0.0.5:4222 for the password p@ss",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_checked_without_showing_secrets() {
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
        let error = Nats::new("nats://user:%ff@h", "users").unwrap_err().to_string();
        assert!(error.contains("UTF-8") && !error.contains("%ff"), "{error}");
        assert!(Nats::new("h", "users").unwrap().subject("a.*").is_err());
    }
}
