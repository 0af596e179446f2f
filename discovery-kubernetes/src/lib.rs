//! Kubernetes discovery for groupcache: finds peers as pods by label, or through the endpoint slices of a service.
//!
//! Applications name this crate through `groupcache-discovery`, as `groupcache_discovery::kubernetes`.
//!
//! A provider lists, then watches: nodes learn of a created or deleted pod within milliseconds of the event. **The
//! API server is not part of the cache**: while the API server is down, refuses requests or hangs, the nodes keep the
//! peers that they know and continue. **Readiness is not membership**: a pod that is not ready keeps its keys, because
//! otherwise all pods would lose their keys at once when their database is down. A node itself reports to its peers
//! whether it is joining, ready or draining.
//!
//! ```no_run
//! use discovery_kubernetes::Pods;
//! use groupcache_core::{Identity, Node};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let peers = Pods::new("default", "users"); // or Service::new("default", "users")
//! let node = Node::builder().identity(Identity::from_env()?).provider(peers).start().await?;
//! # node.shutdown().await?; Ok(()) }
//! ```
//!
//! | | [`Pods`] | [`Service`] |
//! |---|---|---|
//! | objects | pods with the labels [`APPLICATION_LABELS`] | endpoint slices of one service |
//! | rights | list and watch `pods` | list and watch `endpointslices` of `discovery.k8s.io` |
//! | port | a container port | a port of the slice |
//!
//! # Pods and rights
//!
//! The environment of a pod gives the node its identity. The id must be the name of the pod; otherwise the node does
//! not find itself among its peers. Without an IP address the node listens at 127.0.0.1, and without a port at a free
//! one:
//!
//! ```yaml
//! env:
//!   - { name: POD_NAME, valueFrom: { fieldRef: { fieldPath: metadata.name } } }
//!   - { name: POD_IP, valueFrom: { fieldRef: { fieldPath: status.podIP } } }
//!   - { name: GROUP_PORT, value: "7946" }
//! ports:
//!   - { name: group-port, containerPort: 7946 }
//! ```
//!
//! The service account of the pod needs a Role in each namespace that holds peers; [`Pods::role`] and
//! [`Service::role`] print the Role. Without a Role, discovery is stale, and its health names the refused verb, the
//! resource, the namespace and the YAML to apply.
//!
//! # Load on the API server
//!
//! - Each node has one watch per namespace. A watch lives 60 to 120 s; the next one continues from the same version.
//! - Lists: at the start, every 10 minutes (± 20 %), after the API server has forgotten the version of the watch, after
//!   repeated failures of the watch, after a watch without an event or a bookmark for 60 s, and when the node doubts its
//!   peers (at most once a second).
//! - After a failure the provider waits 250 ms, then longer, up to 30 s, with jitter. A doubt of the node is tried at
//!   once.
//!
//! Memory: about 1 KiB per known pod, including the peer set that the node receives.
//!
//! Inside of a Kubernetes cluster the provider signs in with the service account, outside with the kubeconfig. The
//! token is read again every minute. TLS is rustls with `ring`. A proxy (schemes: http, https, socks5) is used outside
//! only, as kubectl does: `proxy-url` of the kubeconfig, otherwise `HTTPS_PROXY` (`HTTP_PROXY` for an API server without
//! TLS), unless `NO_PROXY` has the API server or the server is on this machine. A credential program of the kubeconfig
//! (`exec`) runs without a terminal and may take 30 s.

mod api;
mod connect;
mod ending;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod kubeconfig;
mod object;
mod options;
mod provider;
mod proxies;
mod role;
mod session;
mod stats;
mod table;
mod watch;

pub use crate::{
    error::KubernetesError,
    options::{APPLICATION_LABELS, PORT_NAME, Pods, SERVICE_LABEL, Service},
    stats::KubernetesStats,
};
