//! What a user says: which pods, which port of them, and how to reach the API server.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use kube::Client;

use crate::{
    error::KubernetesError,
    object::{Kind, Port},
    role,
    stats::{Counters, KubernetesStats},
};

/// The labels that carry the name of the application, where no selector is given.
pub const APPLICATION_LABELS: [&str; 3] =
    ["app.kubernetes.io/part-of", "app.kubernetes.io/component", "app.kubernetes.io/name"];
/// The name of the port on which nodes talk to each other, where no other is given.
pub const PORT_NAME: &str = "group-port";
/// The label by which the endpoint slices of a service are found.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// The label that holds the zone: of machines, and since Kubernetes 1.35 of pods too.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// A kubeconfig is read again when no namespace has had a good answer for so long.
const UNREACHABLE: Duration = Duration::from_secs(60);
/// Most namespaces; each costs a watch.
const MAX_NAMESPACES: usize = 64;
/// Longest value of a label, and longest name of a namespace or a service.
const MAX_LABEL: usize = 63;

/// A provider that finds peers among the pods of a namespace, by their labels.
///
/// A pod is a peer as long as it exists and runs: **readiness is health, not membership**. One that is not ready
/// stays (its node says itself whether it is Joining, Ready or Draining), one that is being deleted is told as
/// Draining, one that is deleted, has Failed or has Succeeded is gone. A pod without an address or without the port
/// is waited for, and counted.
///
/// The id of a peer is the name of its pod: set `POD_NAME` (or `NODE_NAME`) to `metadata.name`, see
/// [`Identity::from_env`](groupcache_core::Identity::from_env). A failure of the API server, whatever it is, never
/// takes a peer away.
#[derive(Clone)]
pub struct Pods(pub(crate) Options);

/// A provider that finds peers among the endpoints of a service.
///
/// It needs fewer rights than [`Pods`] (endpoint slices hold no secrets of pods) and knows the zone of each peer. The
/// service should be headless and have `publishNotReadyAddresses: true`, so that nodes find each other while they
/// start. What is said of [`Pods`] holds here too: readiness is health, the id is the name of the pod. An endpoint
/// that is no pod is an address to dial, whoever answers there.
#[derive(Clone)]
pub struct Service(pub(crate) Options);

#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) kind: Kind,
    /// None: the application or the service has no name that could be looked for.
    pub(crate) selector: Option<String>,
    pub(crate) port: Port,
    /// In the order given; an empty name is the namespace of this pod.
    pub(crate) namespaces: Vec<String>,
    pub(crate) access: Access,
    pub(crate) is_streaming: bool,
    pub(crate) zones_from_nodes: bool,
    pub(crate) page: u32,
    pub(crate) unreachable: Duration,
    pub(crate) counters: Counters,
}

/// How the API server is reached.
#[derive(Clone, Default)]
pub(crate) struct Access {
    pub(crate) client: Option<Client>,
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) context: Option<String>,
}

impl Options {
    fn new(kind: Kind, namespace: String, selector: Option<String>) -> Self {
        Self {
            kind,
            selector,
            port: Port::Named(PORT_NAME.into()),
            namespaces: vec![namespace],
            access: Access::default(),
            is_streaming: false,
            zones_from_nodes: false,
            page: 500,
            unreachable: UNREACHABLE,
            counters: Counters::default(),
        }
    }

    /// Whether the API server could understand them.
    fn check(&self, no_name: &str) -> Result<(), KubernetesError> {
        match self.selector.as_deref() {
            None => return Err(KubernetesError::new(no_name)),
            Some(selector) if selector.trim().is_empty() => {
                let text = "the selector is empty, so every pod would be a peer: write label=value";
                return Err(KubernetesError::new(text));
            }
            Some(_) => {}
        }
        if self.namespaces.len() > MAX_NAMESPACES {
            return Err(KubernetesError::new(format!(
                "{} namespaces are more than {MAX_NAMESPACES}: name those that hold peers",
                self.namespaces.len()
            )));
        }
        if let Some(bad) = self.namespaces.iter().find(|name| !name.is_empty() && !is_name(name)) {
            return Err(KubernetesError::new(format!(
                "{bad:?} is no namespace: write lower-case letters, digits and -, or nothing for that of this pod"
            )));
        }
        match &self.port {
            Port::Number(0) => Err(KubernetesError::new("the port is 0: write a number from 1 to 65535, or its name")),
            Port::Named(name) if name.is_empty() || name.len() > MAX_LABEL => {
                Err(KubernetesError::new(format!("{name:?} is no name of a port: write one such as {PORT_NAME}")))
            }
            _ => Ok(()),
        }
    }

    fn namespace(&mut self, namespace: String) {
        if !self.namespaces.contains(&namespace) {
            self.namespaces.push(namespace);
        }
    }
}

/// What a namespace and a service may be called: a DNS label.
fn is_name(name: &str) -> bool {
    let is_good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    name.len() <= MAX_LABEL && name.bytes().all(is_good) && !name.starts_with('-') && !name.ends_with('-')
}

/// What the value of a label may be.
fn is_label_value(value: &str) -> bool {
    let is_good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let is_end = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    value.len() <= MAX_LABEL && value.bytes().all(is_good) && is_end(bytes.first()) && is_end(bytes.last())
}

impl Pods {
    /// The pods of an application in a namespace: those whose labels `app.kubernetes.io/part-of`,
    /// `app.kubernetes.io/component` and `app.kubernetes.io/name` all carry its name, at their port `group-port`.
    ///
    /// An empty namespace is that of this pod: `POD_NAMESPACE`, or what the service account says, or the kubeconfig.
    ///
    /// ```
    /// # use discovery_kubernetes::Pods;
    /// assert!(Pods::new("default", "users").check().is_ok());
    /// assert!(Pods::new("default", "two words").check().is_err());
    /// ```
    pub fn new(namespace: impl Into<String>, application: impl Into<String>) -> Self {
        let application = application.into();
        let selector = APPLICATION_LABELS.map(|label| format!("{label}={application}")).join(",");
        Self(Options::new(Kind::Pods, namespace.into(), is_label_value(&application).then_some(selector)))
    }

    /// Any label selector instead of the three labels, such as `app=users,tier in (cache)`.
    pub fn selector(mut self, selector: impl Into<String>) -> Self {
        self.0.selector = Some(selector.into());
        self
    }

    /// Where a pod says nothing of its zone, asks for that of its machine: one request for each, ten a second at most. It takes the
    /// right to get nodes, which only a ClusterRole can give; without it pods have no zone, and a log says so.
    ///
    /// Since Kubernetes 1.35 pods carry the label themselves, and this is of no use.
    pub fn zones_from_nodes(mut self) -> Self {
        self.0.zones_from_nodes = true;
        self
    }

    /// Whether the options can be used: the provider says the same as soon as it runs.
    ///
    /// # Errors
    /// When the application, the selector, a namespace or the port is none.
    pub fn check(&self) -> Result<(), KubernetesError> {
        self.0.check("the application has no name that a label can hold: write at most 63 letters, digits, -, _ and .")
    }
}

impl Service {
    /// The endpoints of a service in a namespace, at their port `group-port`.
    ///
    /// An empty namespace is that of this pod: `POD_NAMESPACE`, or what the service account says, or the kubeconfig.
    ///
    /// ```
    /// # use discovery_kubernetes::Service;
    /// assert!(Service::new("default", "users").check().is_ok());
    /// assert!(Service::new("default", "users.default.svc").check().is_err());
    /// ```
    pub fn new(namespace: impl Into<String>, service: impl Into<String>) -> Self {
        let service = service.into();
        let is_good = is_name(&service) && !service.is_empty();
        Self(Options::new(Kind::Slices, namespace.into(), is_good.then(|| format!("{SERVICE_LABEL}={service}"))))
    }

    /// Whether the options can be used: the provider says the same as soon as it runs.
    ///
    /// # Errors
    /// When the service, a namespace or the port is none.
    pub fn check(&self) -> Result<(), KubernetesError> {
        self.0.check("the service has no name, or a whole DNS name: write its name alone, such as users")
    }
}

/// What both have.
macro_rules! common {
    ($provider:ident) => {
        impl $provider {
            /// One more namespace to look in. Each has a watch of its own, and needs the rights in it.
            ///
            /// The names of pods are ids, so no two of them may be equal: where a StatefulSet is in several
            /// namespaces, it needs another name in each. (If they are, the first namespace has the peer.)
            ///
            /// Who is there is known when all of them have been listed. While one cannot be, the peers of the others
            /// are additions to what is known: they are dialled, and nobody is missed. A node that starts then, and
            /// meets others that are Ready, stays Joining until all have been listed.
            pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
                self.0.namespace(namespace.into());
                self
            }

            /// The name of the port on which nodes talk to each other; default [`PORT_NAME`].
            pub fn port_name(mut self, name: impl Into<Arc<str>>) -> Self {
                self.0.port = Port::Named(name.into());
                self
            }

            /// The number of that port, whatever the pods say of their ports.
            pub fn port(mut self, number: u16) -> Self {
                self.0.port = Port::Number(number);
                self
            }

            /// Reads this kubeconfig, also inside of a cluster. Default: the service account inside of a cluster,
            /// and outside `KUBECONFIG` or `~/.kube/config`.
            pub fn kubeconfig(mut self, path: impl Into<PathBuf>) -> Self {
                self.0.access.kubeconfig = Some(path.into());
                self
            }

            /// Takes another context of the kubeconfig than the current one.
            pub fn context(mut self, context: impl Into<String>) -> Self {
                self.0.access.context = Some(context.into());
                self
            }

            /// Uses a client that the application has already; how it signs in is its own affair.
            ///
            /// This is the one place where a type of `kube` is named; it is that of version 5.
            pub fn client(mut self, client: Client) -> Self {
                self.0.access.client = Some(client);
                self
            }

            /// Has the API server send the first state as a watch (`sendInitialEvents`), which costs it less memory
            /// than a list. One that cannot (before Kubernetes 1.34, as a rule) is asked for a list instead.
            pub fn streaming_lists(mut self) -> Self {
                self.0.is_streaming = true;
                self
            }

            /// How many objects the API server puts into one page of a list: 10 to 10,000, default 500. A page may have 32 MiB.
            pub fn page_size(mut self, objects: u32) -> Self {
                self.0.page = objects.clamp(10, 10_000);
                self
            }

            /// How long no namespace may have had a good answer until the kubeconfig is read again; default a minute.
            #[doc(hidden)]
            pub fn unreachable_for(mut self, time: Duration) -> Self {
                self.0.unreachable = time;
                self
            }

            /// The Role to apply in a namespace so that this provider may do what it does, as YAML.
            pub fn role(&self, namespace: &str) -> String {
                role::of(self.0.kind, namespace)
            }

            /// What has been counted so far.
            pub fn stats(&self) -> KubernetesStats {
                self.0.counters.read()
            }
        }

        impl fmt::Debug for $provider {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($provider))
                    .field("namespaces", &self.0.namespaces)
                    .field("selector", &self.0.selector)
                    .field("port", &self.0.port)
                    .finish_non_exhaustive()
            }
        }
    };
}

common!(Pods);
common!(Service);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_is_found_by_its_three_labels() {
        let pods = Pods::new("default", "users");
        let selector = "app.kubernetes.io/part-of=users,app.kubernetes.io/component=users,app.kubernetes.io/name=users";
        assert_eq!((pods.0.selector.as_deref(), &pods.0.port), (Some(selector), &Port::Named("group-port".into())));
        assert_eq!(Service::new("", "users").0.selector.as_deref(), Some("kubernetes.io/service-name=users"));
        assert_eq!(pods.selector("app=u").namespace("a").namespace("default").0.namespaces, ["default", "a"]);
    }

    #[test]
    fn what_the_api_server_would_not_understand_is_told_before_it_is_asked() {
        let pods = || Pods::new("default", "users");
        let bad = [
            (Pods::new("default", ""), "the application has no name"),
            (Pods::new("default", "a,b"), "application"),
            (Pods::new("default", "-a"), "application"),
            (Pods::new("default", "x".repeat(64)), "application"),
            (Pods::new("Default", "users"), "namespace"),
            (pods().namespace("a/b"), "namespace"),
            ((0..70).fold(pods(), |pods, n| pods.namespace(format!("n{n}"))), "namespaces"),
            (pods().selector(" "), "the selector is empty"),
            (pods().selector(""), "the selector is empty"),
            (pods().port(0), "port"),
            (pods().port_name(""), "port"),
        ];
        for (pods, what) in bad {
            let error = pods.check().unwrap_err().to_string();
            assert!(error.contains(what), "{pods:?}: {error}");
        }
        for good in [pods(), Pods::new("", "a.b_c-1"), pods().port(7946), pods().selector("app in (a, b)")] {
            good.check().unwrap();
        }
        for (name, is_good) in [("users", true), ("users-1", true), ("", false), ("a.b", false), ("Users", false)] {
            assert_eq!(Service::new("default", name).check().is_ok(), is_good, "{name}");
        }
    }
}
