//! Options of the providers: the pods, their port, and the access to the API server.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use kube::Client;

use crate::{
    error::KubernetesError,
    object::{Kind, Port},
    role,
    stats::{Counters, KubernetesStats},
};

/// Labels that must all have the name of the application as their value. Used unless a selector is set.
pub const APPLICATION_LABELS: [&str; 3] =
    ["app.kubernetes.io/part-of", "app.kubernetes.io/component", "app.kubernetes.io/name"];
/// Default name of the port on which nodes talk to each other.
pub const PORT_NAME: &str = "group-port";
/// Label that selects the endpoint slices of a service.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Default time without a good answer in any namespace after which the kubeconfig is read again.
const UNREACHABLE: Duration = Duration::from_secs(60);
/// Maximum number of namespaces, because each costs a watch.
const MAX_NAMESPACES: usize = 64;
/// Maximum length in bytes of a label value, and of the name of a namespace, a service or a port.
const MAX_LABEL: usize = 63;

/// Maximum length in bytes of the name of a port of a pod (RFC 6335, section 5.1).
const MAX_SERVICE_NAME: usize = 15;

/// A provider that finds peers among the pods of a namespace, by their labels.
///
/// A pod is a peer as long as the pod exists and has not ended, because **readiness is health, not membership**:
///
/// - A pod that is not ready stays a peer. The node itself reports whether it is Joining, Ready or Draining.
/// - A pod that is being deleted is published as Draining.
/// - A pod that is deleted, has Failed or has Succeeded is removed.
/// - A pod without an address or without the port becomes a peer once it has both, and is counted as
///   [`waiting`](KubernetesStats::waiting) until then.
///
/// The id of a peer is the name of its pod: set `POD_NAME` (or `NODE_NAME`) to `metadata.name`, see
/// [`Identity::from_env`](groupcache_core::Identity::from_env). No failure of the API server ever removes a peer.
#[derive(Clone)]
pub struct Pods(pub(crate) Options);

/// A provider that finds peers among the endpoints of a service.
///
/// A `Service` needs fewer rights than [`Pods`] (endpoint slices hold no secrets of pods), and its lists have a ninth
/// to a twentieth of the bytes. The Kubernetes service should be headless and have `publishNotReadyAddresses: true`, so that nodes find each
/// other while they start. As with [`Pods`], readiness is health, and the id of a peer is the name of its pod. An
/// endpoint that is no pod is published as an address to dial, without an id.
#[derive(Clone)]
pub struct Service(pub(crate) Options);

/// Options of either provider.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) kind: Kind,
    /// Label selector. `None` if the name of the application or the service is invalid.
    pub(crate) selector: Option<String>,
    pub(crate) port: Port,
    /// Namespaces in the given order. An empty name is the namespace of this pod.
    pub(crate) namespaces: Vec<String>,
    pub(crate) access: Access,
    pub(crate) is_streaming: bool,
    pub(crate) page: u32,
    pub(crate) unreachable: Duration,
    pub(crate) counters: Counters,
}

/// Access to the API server.
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
            page: 500,
            unreachable: UNREACHABLE,
            counters: Counters::default(),
        }
    }

    /// Checks that the API server can understand the options.
    fn check(&self, no_name: &str) -> Result<(), KubernetesError> {
        match self.selector.as_deref() {
            None => return Err(KubernetesError::new(no_name)),
            Some(selector) if selector.trim().is_empty() => {
                let text = "the selector is empty, so that every pod would be a peer; write label=value";
                return Err(KubernetesError::new(text));
            }
            Some(_) => {}
        }
        if self.namespaces.len() > MAX_NAMESPACES {
            return Err(KubernetesError::new(format!(
                "{} namespaces exceed the limit of {MAX_NAMESPACES}; name only those that hold peers",
                self.namespaces.len()
            )));
        }
        if let Some(bad) = self.namespaces.iter().find(|name| !name.is_empty() && !is_name(name)) {
            return Err(KubernetesError::new(format!(
                "{bad:?} is not a namespace; write lower-case letters, digits and -, or \"\" for that of this pod"
            )));
        }
        self.check_port()
    }

    /// Checks that pods or slices can have the port.
    fn check_port(&self) -> Result<(), KubernetesError> {
        match &self.port {
            Port::Number(0) => {
                Err(KubernetesError::new("the port is 0; write a number from 1 to 65535, or the name of a port"))
            }
            Port::Named(name) if !is_port_name(name, self.kind) => Err(KubernetesError::new(format!(
                "{name:?} is neither a port number from 1 to 65535 nor a port name; write a number such as 7946 or a \
                 name such as {PORT_NAME}"
            ))),
            _ => Ok(()),
        }
    }

    /// Adds a namespace, unless it is listed already.
    fn namespace(&mut self, namespace: String) {
        if !self.namespaces.contains(&namespace) {
            self.namespaces.push(namespace);
        }
    }
}

/// Returns whether a namespace or a service can have this name: a DNS label.
fn is_name(name: &str) -> bool {
    let is_good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    name.len() <= MAX_LABEL && name.bytes().all(is_good) && !name.starts_with('-') && !name.ends_with('-')
}

/// Returns whether a port of these objects can have this name: a service name (RFC 6335) in a pod, and a DNS label in an
/// endpoint slice. Each name has a letter, so that digits are a number.
fn is_port_name(name: &str, kind: Kind) -> bool {
    let longest = match kind {
        Kind::Pods => MAX_SERVICE_NAME,
        Kind::Slices => MAX_LABEL,
    };
    let is_double = kind == Kind::Pods && name.contains("--");
    is_name(name) && name.len() <= longest && !is_double && name.bytes().any(|b| b.is_ascii_lowercase())
}

/// Returns whether the text is a value that a label can have.
fn is_label_value(value: &str) -> bool {
    let is_good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let is_end = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    value.len() <= MAX_LABEL && value.bytes().all(is_good) && is_end(bytes.first()) && is_end(bytes.last())
}

impl Pods {
    /// Creates a provider for the pods of an application in a namespace, at their port `group-port`.
    ///
    /// The pods of an application have its name as the value of the three labels `app.kubernetes.io/part-of`,
    /// `app.kubernetes.io/component` and `app.kubernetes.io/name`. An empty namespace stands for the namespace of this
    /// pod: `POD_NAMESPACE`, otherwise that of the service account or the kubeconfig.
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

    /// Sets a label selector instead of the three labels, such as `app=users,tier in (cache)`.
    pub fn selector(mut self, selector: impl Into<String>) -> Self {
        self.0.selector = Some(selector.into());
        self
    }

    /// Checks the options. The provider does the same when it starts.
    ///
    /// # Errors
    /// If the application, the selector, a namespace or the port is invalid, or there are more than 64 namespaces.
    pub fn check(&self) -> Result<(), KubernetesError> {
        self.0.check("the application has no name that a label can hold; write at most 63 letters, digits, -, _ and .")
    }
}

impl Service {
    /// Creates a provider for the endpoints of a service in a namespace, at their port `group-port`.
    ///
    /// An empty namespace stands for the namespace of this pod: `POD_NAMESPACE`, otherwise that of the service account
    /// or the kubeconfig.
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

    /// Checks the options. The provider does the same when it starts.
    ///
    /// # Errors
    /// If the service, a namespace or the port is invalid, or there are more than 64 namespaces.
    pub fn check(&self) -> Result<(), KubernetesError> {
        self.0.check("the name of the service is empty or not a DNS label; write the short name, such as users")
    }
}

/// Implements the options that both providers have.
macro_rules! common {
    ($provider:ident) => {
        impl $provider {
            /// Adds a namespace that holds peers. Each namespace has its own watch, and needs its own rights.
            ///
            /// The names of pods are ids and must be unique in all namespaces, so a StatefulSet that exists in several
            /// namespaces needs another name in each. If two pods have the same name, the pod of the first namespace is
            /// the peer.
            ///
            /// The peer set is complete once all namespaces have been listed. While a namespace cannot be listed, the
            /// peers of the others are published as a partial set, so that nodes dial them and remove no peer. A node
            /// that starts at that time, and finds peers that are Ready, stays Joining until all namespaces have been
            /// listed.
            pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
                self.0.namespace(namespace.into());
                self
            }

            /// Sets the name of the port on which nodes talk to each other. Default: [`PORT_NAME`].
            pub fn port_name(mut self, name: impl Into<Arc<str>>) -> Self {
                self.0.port = Port::Named(name.into());
                self
            }

            /// Checks the port alone.
            ///
            /// # Errors
            /// If no pod or slice can have the port.
            #[doc(hidden)]
            pub fn check_port(&self) -> Result<(), KubernetesError> {
                self.0.check_port()
            }

            /// Sets the number of the port, regardless of the ports that pods or slices list.
            pub fn port(mut self, number: u16) -> Self {
                self.0.port = Port::Number(number);
                self
            }

            /// Uses this kubeconfig, also inside of a Kubernetes cluster. Default: the service account inside of a
            /// Kubernetes cluster, and `KUBECONFIG` or `~/.kube/config` outside.
            pub fn kubeconfig(mut self, path: impl Into<PathBuf>) -> Self {
                self.0.access.kubeconfig = Some(path.into());
                self
            }

            /// Uses this context of the kubeconfig instead of the current one. Default: the current context. With a
            /// context, the kubeconfig is used instead of the service account, also inside of a Kubernetes cluster.
            pub fn context(mut self, context: impl Into<String>) -> Self {
                self.0.access.context = Some(context.into());
                self
            }

            /// Uses a client of the application. The client itself is responsible for its credentials, and the
            /// kubeconfig and the context have no effect. Default: the provider creates its own client.
            ///
            /// No other public item names a type of `kube`; the type is that of version 5.
            pub fn client(mut self, client: Client) -> Self {
                self.0.access.client = Some(client);
                self
            }

            /// Requests the first state as a watch (`sendInitialEvents`), which costs the API server less memory than a
            /// list. Default: off. An API server without support, as a rule before Kubernetes 1.34, is sent a list
            /// request instead.
            pub fn streaming_lists(mut self) -> Self {
                self.0.is_streaming = true;
                self
            }

            /// Sets the number of objects in one page of a list. Default: 500. Range: 10 to 10,000; other values are
            /// clamped. A page may have at most 32 MiB.
            pub fn page_size(mut self, objects: u32) -> Self {
                self.0.page = objects.clamp(10, 10_000);
                self
            }

            /// Sets the time without a good answer in any namespace after which the kubeconfig is read again. Default:
            /// 60 s.
            #[doc(hidden)]
            pub fn unreachable_for(mut self, time: Duration) -> Self {
                self.0.unreachable = time;
                self
            }

            /// Returns the Role that this provider needs in a namespace, as YAML.
            pub fn role(&self, namespace: &str) -> String {
                role::of(self.0.kind, namespace)
            }

            /// Returns the current counters.
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

    /// Checks the selectors of an application and of a service, the default port, and the order of the namespaces.
    #[test]
    fn application_is_selected_by_three_labels() {
        let pods = Pods::new("default", "users");
        let selector = "app.kubernetes.io/part-of=users,app.kubernetes.io/component=users,app.kubernetes.io/name=users";
        assert_eq!((pods.0.selector.as_deref(), &pods.0.port), (Some(selector), &Port::Named("group-port".into())));
        assert_eq!(Service::new("", "users").0.selector.as_deref(), Some("kubernetes.io/service-name=users"));
        assert_eq!(pods.selector("app=u").namespace("a").namespace("default").0.namespaces, ["default", "a"]);
    }

    /// Checks that `check` refuses options that the API server cannot understand, and names the option.
    #[test]
    fn invalid_options_fail_check() {
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
            (pods().port_name("tcp://10.96.7.7:7946"), "neither a port number"),
            (pods().port_name("70000"), "neither a port number"),
            (pods().port_name("7946/TCP"), "neither a port number"),
            (pods().port_name("Group-Port"), "neither a port number"),
            (pods().port_name("sixteen-letters-"), "neither a port number"),
            (pods().port_name("a234567890123456"), "neither a port number"),
        ];
        for (pods, what) in bad {
            let error = pods.check().unwrap_err().to_string();
            assert!(error.contains(what), "{pods:?}: {error}");
        }
        for good in [pods(), Pods::new("", "a.b_c-1"), pods().port(7946), pods().selector("app in (a, b)")] {
            good.check().unwrap();
        }
        for (name, is_good) in
            [("peers", true), ("a23456789012345", true), ("a-name-longer-than-a-pod-allows", true), ("70000", false)]
        {
            assert_eq!(Service::new("default", "users").port_name(name).check().is_ok(), is_good, "{name}");
        }
        for (name, is_good) in [("users", true), ("users-1", true), ("", false), ("a.b", false), ("Users", false)] {
            assert_eq!(Service::new("default", name).check().is_ok(), is_good, "{name}");
        }
    }
}
