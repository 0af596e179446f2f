//! A distributed read-through cache in the processes of your own service, with peer discovery: the one crate to add.
//!
//! The crate re-exports `groupcache-core` as a whole, and adds one module for each way to find peers. A provider is
//! passed to [`NodeBuilder::provider`]. A provider of your own is one method of [`Provider`](discovery::Provider), or a
//! function passed to [`poll`](discovery::poll).
//!
//! | feature | default | module | finds peers by |
//! |---|---|---|---|
//! | `static` | yes | [`list`](#modules) | a list in the program or its environment, or a handle that the program sets |
//! | `file` | | `list` | the lines of a file, read again when it changes |
//! | `dns` | | `list` | DNS names, resolved again and again, such as a headless Kubernetes service |
//! | `kubernetes` | | `kubernetes` | pods by their labels, or the endpoint slices of a service |
//! | `mdns` | | `mdns` | multicast DNS on the local network segment, without a server |
//! | `nats` | | `nats` | announcements over a NATS server (`nats-credentials`, `nats-kv`, `nats-micro` add to it) |
//!
//! The provider and its options may also come from a configuration file or from the environment, as a
//! [`DiscoveryConfig`]. Two providers become one by [`merge`](discovery::merge). The feature `testing` adds the
//! conformance suite of providers.
//!
//! With the feature `tls` peers prove their identity, by `cluster_key` or `mutual_tls` of the builder.
//!
//! ```
//! use groupcache_discovery::{Identity, Node, list::Static};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let peers = std::env::var("PEERS").unwrap_or_default(); // "a@10.0.0.7:7946,b@10.0.0.8:7946"
//! let node = Node::builder()
//!     .identity(Identity::from_env()?) // NODE_NAME, NODE_IP, GROUP_PORT
//!     .provider(peers.parse::<Static>()?)
//!     .start()
//!     .await?;
//! let greetings = node
//!     .group::<String>("greetings")
//!     .capacity_bytes(1 << 20)
//!     .loader(async |key: &str| Ok::<_, std::io::Error>(format!("hello {key}")))
//!     .build()?;
//! assert_eq!(greetings.get("world").await?, "hello world"); // loaded once in the whole cluster
//! node.shutdown().await?;
//! # Ok(()) }
//! ```

mod config;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub use config::fuzz;

pub use groupcache_core::*;

pub use crate::config::{
    ConfigError, DiscoveryConfig, DnsConfig, FileConfig, KubernetesConfig, MdnsConfig, NatsConfig, StaticConfig,
};

/// Peers from a list, a file, DNS names, or a handle that the program sets. Feature: `static`.
///
/// The feature and the crate `discovery-static` have the name that people look for. The module has another one, because
/// `static` is a keyword of Rust.
#[cfg(feature = "static")]
pub mod list {
    #[cfg(feature = "dns")]
    pub use discovery_static::Dns;
    #[cfg(feature = "file")]
    pub use discovery_static::File;
    pub use discovery_static::{Handle, ParseError, Static};
}

/// Peers that are pods of Kubernetes. Feature: `kubernetes`.
#[cfg(feature = "kubernetes")]
pub mod kubernetes {
    pub use discovery_kubernetes::{
        APPLICATION_LABELS, KubernetesError, KubernetesStats, PORT_NAME, Pods, SERVICE_LABEL, Service,
    };
}

/// Peers on the same network segment. Feature: `mdns`.
#[cfg(feature = "mdns")]
pub mod mdns {
    pub use discovery_mdns::{Mdns, MdnsError, MdnsStats};
}

/// Peers that announce themselves over a NATS server. Feature: `nats`.
#[cfg(feature = "nats")]
pub mod nats {
    pub use discovery_nats::{Nats, NatsError, NatsStats};
}
