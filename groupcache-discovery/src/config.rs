//! Choice of the provider and its options as data, from a configuration file or from the environment.

mod environment;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod provider;
#[cfg(test)]
mod tests;

use std::{error::Error, fmt, path::PathBuf};

use serde::Deserialize;

/// Provider that finds the peers, and its options.
///
/// The value is part of a configuration in any format that serde reads, tagged by the name of the provider. Unknown
/// keys are errors. Every provider can be written, whatever features this build has, and [`provider`](Self::provider)
/// names the feature that is missing.
///
/// ```toml
/// [discovery]
/// provider = "nats"
/// servers = "nats://10.0.0.5:4222,nats://10.0.0.6:4222"
/// application = "users"
/// user = "cache"
/// password = "secret"
/// ```
///
/// ```
/// use groupcache_discovery::{DiscoveryConfig, Node};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config: DiscoveryConfig = serde_json::from_str(r#"{ "provider": "static", "peers": "b@10.0.0.8:7946" }"#)?;
/// # let config = DiscoveryConfig::None;
/// let node = Node::builder().provider(config.provider()?).start().await?;
/// # node.shutdown().await?; Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(tag = "provider", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DiscoveryConfig {
    /// No provider, so that the node is alone.
    #[default]
    None,
    /// List that does not change. Feature: `static`.
    Static(StaticConfig),
    /// File that is read again when it changes. Feature: `file`.
    File(FileConfig),
    /// DNS names. Feature: `dns`.
    Dns(DnsConfig),
    /// Pods of Kubernetes. Feature: `kubernetes`.
    Kubernetes(Box<KubernetesConfig>),
    /// Multicast DNS on the local network segment. Feature: `mdns`.
    Mdns(Box<MdnsConfig>),
    /// NATS server. Feature: `nats`.
    Nats(Box<NatsConfig>),
}

/// Options of a list that does not change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct StaticConfig {
    /// Peers as `host:port` or `id@host:port`, separated by commas.
    pub peers: String,
}

/// Options of a file that is read again when it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FileConfig {
    /// Path of the file, with peers as its lines.
    pub path: PathBuf,
}

/// Options of DNS names that are resolved again and again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct DnsConfig {
    /// Names as `dns+host:port` or `dnssrv+name`, separated by commas.
    pub names: String,
}

/// Options of Kubernetes: the pods of an application or of a selector, or the endpoints of a service. Exactly one of
/// the three is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct KubernetesConfig {
    /// Name that the labels `app.kubernetes.io/part-of`, `component` and `name` of the pods all carry.
    #[serde(default)]
    pub application: Option<String>,
    /// Label selector of the pods.
    #[serde(default)]
    pub selector: Option<String>,
    /// Name of the service that has the endpoints.
    #[serde(default)]
    pub service: Option<String>,
    /// Namespaces to look in, separated by commas. Default: the namespace of this pod.
    #[serde(default)]
    pub namespaces: Option<String>,
    /// Name or number of the port on which nodes talk to each other. Default: `group-port`.
    #[serde(default)]
    pub port: Option<String>,
    /// Path of a kubeconfig. Default: the service account inside of a cluster, and outside what kubectl reads.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig. Default: the current one. With a context, the kubeconfig is used instead of the
    /// service account, also inside of a Kubernetes cluster.
    #[serde(default)]
    pub context: Option<String>,
    /// Whether the API server sends lists as a watch.
    #[serde(default)]
    pub streaming_lists: bool,
}

/// Options of multicast DNS on the local network segment. Every option may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MdnsConfig {
    /// Name of the service. Default: `_groupcache._tcp`, which needs a cluster name in the identity of the node.
    #[serde(default)]
    pub service: Option<String>,
    /// UDP port. Default: 5353. Range: 1 to 65,535.
    #[serde(default)]
    pub port: Option<u16>,
    /// Names of the only interfaces to use, separated by commas.
    #[serde(default)]
    pub interfaces: Option<String>,
    /// Names of interfaces not to use, separated by commas. Interfaces of containers and tunnels are left out anyway.
    #[serde(default)]
    pub skip_interfaces: Option<String>,
    /// Whether loopback is used too.
    #[serde(default)]
    pub loopback: bool,
    /// Family of addresses, `4` or `6`. Default: both.
    #[serde(default)]
    pub ip: Option<String>,
    /// Whether addresses that are neither private nor link-local are accepted.
    #[serde(default)]
    pub public_addresses: bool,
    /// Whether the addresses of the interfaces are announced instead of those of the identity.
    #[serde(default)]
    pub follow_interfaces: bool,
}

/// Options of a NATS server over which the nodes announce themselves. At most one way to sign in is given.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NatsConfig {
    /// Servers as `nats://host:port` or `tls://host:port`, separated by commas.
    pub servers: String,
    /// Name of the application. Nodes of one application and one cluster find each other. Default: none, which needs
    /// a cluster name in the identity of the node.
    #[serde(default)]
    pub application: Option<String>,
    /// Subject below which nodes exchange messages. Default: `groupcache-gossip`.
    #[serde(default)]
    pub subject: Option<String>,
    /// User to sign in with, together with a password.
    #[serde(default)]
    pub user: Option<String>,
    /// Password of the user.
    #[serde(default)]
    pub password: Option<String>,
    /// Token to sign in with.
    #[serde(default)]
    pub token: Option<String>,
    /// Seed of an nkey to sign in with. Feature: `nats-credentials`.
    #[serde(default)]
    pub nkey: Option<String>,
    /// Path of a credentials file to sign in with. Feature: `nats-credentials`.
    #[serde(default)]
    pub credentials_file: Option<PathBuf>,
    /// Whether TLS is required.
    #[serde(default)]
    pub require_tls: bool,
    /// PEM file with the authorities that are trusted. Default: those of the system.
    #[serde(default)]
    pub root_certificates: Option<PathBuf>,
    /// PEM file with the certificate of this node, which needs [`client_key`](Self::client_key). Default: none.
    #[serde(default)]
    pub client_certificate: Option<PathBuf>,
    /// PEM file with the key of [`client_certificate`](Self::client_certificate).
    #[serde(default)]
    pub client_key: Option<PathBuf>,
    /// Milliseconds between two announcements. Default: 2,000. Range: 50 to 60,000; other values become the nearer end.
    #[serde(default)]
    pub heartbeat_ms: Option<u64>,
    /// JetStream key-value bucket as the store of members. Default: none. Feature: `nats-kv`.
    #[serde(default)]
    pub key_value: Option<String>,
    /// Whether each node is a NATS micro service. Feature: `nats-micro`.
    #[serde(default)]
    pub micro_service: bool,
}

/// Leaves out the secrets.
impl fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = self.servers.split(',').map(|server| server.rsplit_once('@').map_or(server, |(_, host)| host));
        f.debug_struct("NatsConfig")
            .field("servers", &hosts.collect::<Vec<_>>())
            .field("application", &self.application)
            .field("subject", &self.subject)
            .finish_non_exhaustive()
    }
}

/// Error of a configuration that cannot be used. The text names the problem, and the value to write or the feature to
/// add.
#[derive(Debug)]
pub struct ConfigError {
    text: String,
    cause: Option<Box<dyn Error + Send + Sync>>,
    is_missing_feature: bool,
}

impl ConfigError {
    fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), cause: None, is_missing_feature: false }
    }

    fn because(text: impl Into<String>, cause: impl Error + Send + Sync + 'static) -> Self {
        Self { cause: Some(Box::new(cause)), ..Self::new(text) }
    }

    /// Returns the error of an option, which names its key and its variable.
    #[cfg_attr(
        not(any(feature = "static", feature = "kubernetes", feature = "mdns", feature = "nats")),
        expect(dead_code, reason = "this build has no provider with options")
    )]
    fn option(key: &str, variable: &str, cause: impl Error + Send + Sync + 'static) -> Self {
        Self::because(format!("{variable} (in a file: {key}) cannot be used: {cause}"), cause)
    }

    /// Returns whether this build lacks the provider or an option of it.
    fn is_missing_feature(&self) -> bool {
        self.is_missing_feature
    }
}

impl From<groupcache_core::Error> for ConfigError {
    fn from(error: groupcache_core::Error) -> Self {
        Self::because(error.to_string(), error)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for ConfigError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(|cause| &**cause as _)
    }
}
