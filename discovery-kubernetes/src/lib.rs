//! Discovery of pods for groupcache: by their labels, or by the endpoint slices of a service.
//!
//! Applications name it through `groupcache-discovery`, as `groupcache_discovery::kubernetes`.
//!
//! It lists, then watches: a pod that is made is known within milliseconds of the event, and one that is deleted is
//! too. **The API server is not part of the cache**: while it is down, refuses or hangs, the nodes keep the peers they
//! know, and go on. **Readiness is not membership**: a pod that is not ready keeps its keys, since those whose
//! database is down would otherwise all lose theirs at once; what a node can do it says itself, to its peers.
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
//! | reads | pods with the labels [`APPLICATION_LABELS`] | endpoint slices of one service |
//! | may list and watch | `pods` | `endpointslices` of `discovery.k8s.io` |
//! | port | of a container | of the service |
//! | zone | the label [`ZONE_LABEL`] of the pod, or of its machine | in the slice |
//!
//! # Pods and rights
//!
//! A pod tells its node who it is; without that it would not find itself among its peers:
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
//! Its service account needs a Role in each namespace that is looked in; [`Pods::role`] and [`Service::role`] print
//! it. Where it is missing, discovery is stale and says which verb on which resource in which namespace is refused,
//! with what to apply.
//!
//! # What it asks of the API server
//!
//! One watch for each namespace and node, which lives 60 to 120 s and then goes on where it was; a list at the start,
//! every 10 minutes (± 20 %), when the API server has forgotten where the watch was, and when the node doubts what it
//! knows (once a second at most). After a failure it waits 250 ms, then longer up to 30 s, with jitter. A known pod
//! costs about 1 KiB, the set that the node was given included.
//!
//! Inside of a cluster it signs in with the service account, outside with the kubeconfig; the token is read again
//! every minute. TLS is rustls with `ring`. A proxy that the kubeconfig names (`proxy-url`, or else `HTTPS_PROXY`;
//! http, https or socks5) is used outside only; `NO_PROXY` exempts no API server from it (kube compares it with the
//! proxy's own name). A program that it names for credentials (`exec`) is run without a
//! terminal and may take 30 s.

mod api;
mod connect;
mod ending;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod object;
mod options;
mod provider;
mod role;
mod session;
mod stats;
mod table;
mod watch;
mod zones;

pub use crate::{
    error::KubernetesError,
    options::{APPLICATION_LABELS, PORT_NAME, Pods, SERVICE_LABEL, Service, ZONE_LABEL},
    stats::KubernetesStats,
};
