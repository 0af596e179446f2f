//! Which provider, and its options, as data: from a configuration file or from the environment.

mod environment;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod provider;
#[cfg(test)]
mod tests;

use std::{error::Error, fmt, path::PathBuf};

use serde::Deserialize;

/// Which provider finds the peers, and its options.
///
/// It is part of a configuration in any format that serde reads, tagged by the name of the provider; keys that are
/// not known are errors. Every provider can be written, whatever this build has: [`provider`](Self::provider) says
/// which feature is missing.
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
    /// The node is alone.
    #[default]
    None,
    /// A list that does not change; feature `static`.
    Static(StaticConfig),
    /// A file that is read again when it changes; feature `file`.
    File(FileConfig),
    /// DNS names; feature `dns`.
    Dns(DnsConfig),
    /// Pods of Kubernetes; feature `kubernetes`.
    Kubernetes(Box<KubernetesConfig>),
    /// Multicast DNS on the local network segment; feature `mdns`.
    Mdns(Box<MdnsConfig>),
    /// A NATS server; feature `nats`.
    Nats(Box<NatsConfig>),
}

/// A list that does not change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct StaticConfig {
    /// `host:port` or `id@host:port`, separated by commas.
    pub peers: String,
}

/// A file that is read again when it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FileConfig {
    /// Its lines are peers.
    pub path: PathBuf,
}

/// DNS names that are resolved again and again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct DnsConfig {
    /// `dns+host:port` or `dnssrv+name`, separated by commas.
    pub names: String,
}

/// Pods of Kubernetes: those of an application or of a selector, or the endpoints of a service. One of the three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct KubernetesConfig {
    /// Pods whose labels `app.kubernetes.io/part-of`, `component` and `name` carry this name.
    #[serde(default)]
    pub application: Option<String>,
    /// Pods that this label selector matches.
    #[serde(default)]
    pub selector: Option<String>,
    /// The endpoints of the service of this name.
    #[serde(default)]
    pub service: Option<String>,
    /// Where to look, separated by commas; the namespace of this pod where it is missing.
    #[serde(default)]
    pub namespaces: Option<String>,
    /// The name of the port on which nodes talk to each other, or its number; `group-port` where it is missing.
    #[serde(default)]
    pub port: Option<String>,
    /// A kubeconfig; the service account inside of a cluster, and what kubectl reads outside, where it is missing.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig; the current one where it is missing.
    #[serde(default)]
    pub context: Option<String>,
    /// The API server sends lists as a watch.
    #[serde(default)]
    pub streaming_lists: bool,
    /// Zones are asked of the machines; of pods only.
    #[serde(default)]
    pub zones_from_nodes: bool,
}

/// Multicast DNS on the local network segment. Everything may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MdnsConfig {
    /// The name of the service; `_groupcache._tcp` where it is missing.
    #[serde(default)]
    pub service: Option<String>,
    /// The UDP port; 5353 where it is missing.
    #[serde(default)]
    pub port: Option<u16>,
    /// Talk on these interfaces only, separated by commas.
    #[serde(default)]
    pub interfaces: Option<String>,
    /// Do not talk on these, separated by commas; those of containers and tunnels are left out anyway.
    #[serde(default)]
    pub skip_interfaces: Option<String>,
    /// Talk on loopback too.
    #[serde(default)]
    pub loopback: bool,
    /// `4` or `6` for one family of addresses only.
    #[serde(default)]
    pub ip: Option<String>,
    /// Believe addresses that are neither private nor link-local.
    #[serde(default)]
    pub public_addresses: bool,
    /// Announce the addresses of the interfaces instead of those of the identity.
    #[serde(default)]
    pub follow_interfaces: bool,
}

/// A NATS server over which the nodes announce themselves. One way to sign in, at most.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NatsConfig {
    /// `nats://host:port` or `tls://host:port`, separated by commas.
    pub servers: String,
    /// Nodes of one application find each other.
    pub application: String,
    /// Below which subject they talk; `groupcache-gossip` where it is missing.
    #[serde(default)]
    pub subject: Option<String>,
    /// A user, with a password.
    #[serde(default)]
    pub user: Option<String>,
    /// The password of the user.
    #[serde(default)]
    pub password: Option<String>,
    /// A token.
    #[serde(default)]
    pub token: Option<String>,
    /// The seed of an nkey; feature `nats-credentials`.
    #[serde(default)]
    pub nkey: Option<String>,
    /// A credentials file; feature `nats-credentials`.
    #[serde(default)]
    pub credentials_file: Option<PathBuf>,
    /// TLS or nothing.
    #[serde(default)]
    pub require_tls: bool,
    /// A PEM file with the authorities that are trusted; those of the system where it is missing.
    #[serde(default)]
    pub root_certificates: Option<PathBuf>,
    /// A PEM file with the certificate of this node.
    #[serde(default)]
    pub client_certificate: Option<PathBuf>,
    /// A PEM file with the key of the certificate.
    #[serde(default)]
    pub client_key: Option<PathBuf>,
    /// Milliseconds between two announcements; 2,000 where it is missing.
    #[serde(default)]
    pub heartbeat_ms: Option<u64>,
    /// A JetStream key-value bucket as the store of members; feature `nats-kv`.
    #[serde(default)]
    pub key_value: Option<String>,
    /// Each node as a micro service; feature `nats-micro`.
    #[serde(default)]
    pub micro_service: bool,
}

/// Without what is secret.
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

/// A configuration that cannot be used: what is wrong, and what to write or to add.
#[derive(Debug)]
pub struct ConfigError {
    text: String,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl ConfigError {
    fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), cause: None }
    }

    fn because(text: impl Into<String>, cause: impl Error + Send + Sync + 'static) -> Self {
        Self { text: text.into(), cause: Some(Box::new(cause)) }
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
