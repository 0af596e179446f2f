//! A distributed read-through cache in the processes of your own service, found by its peers: the one crate to add.
//!
//! It is `groupcache-core`, re-exported whole, with one module for each way to find peers. A provider is handed to
//! [`NodeBuilder::provider`]; your own is one method of [`Provider`], or a function given to [`poll`].
//!
//! | feature | default | module | finds peers by |
//! |---|---|---|---|
//! | `static` | yes | [`fixed`](#modules) | a list in the program or its environment, or a handle that the program sets |
//! | `file` | | `fixed` | the lines of a file, read again when it changes |
//! | `dns` | | `fixed` | DNS names, resolved again and again: a headless Kubernetes service, for instance |
//! | `kubernetes` | | `kubernetes` | pods by their labels, or the endpoint slices of a service |
//! | `mdns` | | `mdns` | multicast DNS on the local network segment, with no configuration |
//! | `nats` | | `nats` | announcements over a NATS server (`nats-credentials`, `nats-kv`, `nats-micro` add to it) |
//!
//! Which of them, and its options, may also come from a configuration file or from the environment:
//! [`DiscoveryConfig`]. Two are made one by [`merge`]. The feature `testing` has what every provider must pass.
//!
//! The feature `tls` lets peers prove who they are: `cluster_key` and `mutual_tls` of the builder.
//!
//! ```
//! use groupcache_discovery::{Identity, Node, fixed::Static};
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

/// Peers from a list, a file, DNS names, or a handle that the program sets; feature `static`.
///
/// The feature and the crate `discovery-static` are called by the word that people look for; the module cannot be,
/// since `static` is a keyword of Rust.
#[cfg(feature = "static")]
pub mod fixed {
    #[cfg(feature = "dns")]
    pub use discovery_static::Dns;
    #[cfg(feature = "file")]
    pub use discovery_static::File;
    pub use discovery_static::{Handle, ParseError, Static};
}

/// Peers that are pods of Kubernetes; feature `kubernetes`.
#[cfg(feature = "kubernetes")]
pub mod kubernetes {
    pub use discovery_kubernetes::{
        APPLICATION_LABELS, KubernetesError, KubernetesStats, PORT_NAME, Pods, SERVICE_LABEL, Service, ZONE_LABEL,
    };
}

/// Peers on the same network segment; feature `mdns`.
#[cfg(feature = "mdns")]
pub mod mdns {
    pub use discovery_mdns::{Mdns, MdnsError, MdnsStats};
}

/// Peers that announce themselves over a NATS server; feature `nats`.
#[cfg(feature = "nats")]
pub mod nats {
    pub use discovery_nats::{Nats, NatsError, NatsStats};
}
