//! Configuration from variables of the environment.

use std::env;

use super::{
    ConfigError, DiscoveryConfig, DnsConfig, FileConfig, KubernetesConfig, MdnsConfig, NatsConfig, StaticConfig,
};

/// Names of all variables that are read.
const VARIABLES: [&str; 34] = [
    "GROUPCACHE_DISCOVERY",
    "GROUPCACHE_PEERS",
    "GROUPCACHE_PEERS_FILE",
    "GROUPCACHE_DNS",
    "GROUPCACHE_K8S_APPLICATION",
    "GROUPCACHE_K8S_SELECTOR",
    "GROUPCACHE_K8S_SERVICE",
    "GROUPCACHE_K8S_NAMESPACES",
    "GROUPCACHE_K8S_PORT",
    "GROUPCACHE_K8S_KUBECONFIG",
    "GROUPCACHE_K8S_CONTEXT",
    "GROUPCACHE_K8S_STREAMING_LISTS",
    "GROUPCACHE_MDNS_SERVICE",
    "GROUPCACHE_MDNS_PORT",
    "GROUPCACHE_MDNS_INTERFACES",
    "GROUPCACHE_MDNS_SKIP_INTERFACES",
    "GROUPCACHE_MDNS_LOOPBACK",
    "GROUPCACHE_MDNS_IP",
    "GROUPCACHE_MDNS_PUBLIC_ADDRESSES",
    "GROUPCACHE_MDNS_FOLLOW_INTERFACES",
    "GROUPCACHE_NATS_URL",
    "GROUPCACHE_NATS_APPLICATION",
    "GROUPCACHE_NATS_SUBJECT",
    "GROUPCACHE_NATS_USER",
    "GROUPCACHE_NATS_PASSWORD",
    "GROUPCACHE_NATS_TOKEN",
    "GROUPCACHE_NATS_NKEY",
    "GROUPCACHE_NATS_CREDENTIALS",
    "GROUPCACHE_NATS_TLS",
    "GROUPCACHE_NATS_ROOTS",
    "GROUPCACHE_NATS_CERTIFICATE",
    "GROUPCACHE_NATS_KEY",
    "GROUPCACHE_NATS_BUCKET",
    "GROUPCACHE_NATS_MICRO",
];

impl DiscoveryConfig {
    /// Reads the configuration from the environment.
    ///
    /// | variable | meaning |
    /// |---|---|
    /// | `GROUPCACHE_DISCOVERY` | `none`, `static`, `file`, `dns`, `kubernetes`, `mdns` or `nats`. Default: `static` if `GROUPCACHE_PEERS` is set, otherwise `none` |
    /// | `GROUPCACHE_PEERS` | static: `host:port` or `id@host:port`, separated by commas |
    /// | `GROUPCACHE_PEERS_FILE` | file: path of the file |
    /// | `GROUPCACHE_DNS` | dns: `dns+host:port` or `dnssrv+name`, separated by commas |
    /// | `GROUPCACHE_K8S_APPLICATION`, `_SELECTOR`, `_SERVICE` | kubernetes: the pods of an application, the pods of a label selector, or the endpoints of a service. Exactly one of the three is set |
    /// | `GROUPCACHE_K8S_NAMESPACES` | kubernetes: namespaces to look in, separated by commas. Default: that of this pod (`POD_NAMESPACE`, or that of the service account) |
    /// | `GROUPCACHE_K8S_PORT` | kubernetes: name or number of the port. Default: `group-port` |
    /// | `GROUPCACHE_K8S_KUBECONFIG`, `_CONTEXT` | kubernetes: path of a kubeconfig, and a context in it. Default: the service account inside of a Kubernetes cluster, and what kubectl reads outside or with a context |
    /// | `GROUPCACHE_K8S_STREAMING_LISTS` | kubernetes: `1` lets the API server send lists as a watch |
    /// | `GROUPCACHE_MDNS_SERVICE`, `_PORT` | mdns: name of the service, and the UDP port. Default: `_groupcache._tcp` and 5353 |
    /// | `GROUPCACHE_MDNS_INTERFACES`, `_SKIP_INTERFACES` | mdns: names of interfaces to use, or not to use, separated by commas |
    /// | `GROUPCACHE_MDNS_LOOPBACK` | mdns: `1` uses loopback too, for processes of one machine |
    /// | `GROUPCACHE_MDNS_IP` | mdns: `4` or `6` for one family of addresses only |
    /// | `GROUPCACHE_MDNS_PUBLIC_ADDRESSES` | mdns: `1` accepts addresses that are neither private nor link-local |
    /// | `GROUPCACHE_MDNS_FOLLOW_INTERFACES` | mdns: `1` announces the addresses of the interfaces |
    /// | `GROUPCACHE_NATS_URL` | nats: `nats://host:port`, separated by commas |
    /// | `GROUPCACHE_NATS_APPLICATION` | nats: name of the application. Nodes of one application find each other. Default: `default` |
    /// | `GROUPCACHE_NATS_SUBJECT` | nats: subject below which nodes exchange messages. Default: `groupcache-gossip` |
    /// | `GROUPCACHE_NATS_USER`, `_PASSWORD`, `_TOKEN`, `_NKEY`, `_CREDENTIALS` | nats: ways to sign in, the last of them a file |
    /// | `GROUPCACHE_NATS_TLS` | nats: `1` requires TLS |
    /// | `GROUPCACHE_NATS_ROOTS`, `_CERTIFICATE`, `_KEY` | nats: PEM files with the trusted authorities, the certificate of this node, and its key |
    /// | `GROUPCACHE_NATS_BUCKET` | nats: name of a JetStream key-value bucket |
    /// | `GROUPCACHE_NATS_MICRO` | nats: `1` makes the node a micro service |
    ///
    /// An empty variable counts as not set.
    ///
    /// # Errors
    /// Returns an error that names the variable which is missing or cannot be read. (The content of lists, names and
    /// options is checked by [`provider`](Self::provider).)
    pub fn from_env() -> Result<Self, ConfigError> {
        for name in VARIABLES {
            if let Err(env::VarError::NotUnicode(_)) = env::var(name) {
                return Err(ConfigError::new(format!("{name} is not UTF-8; set it to plain text, or unset it")));
            }
        }
        Self::from_vars(|name| env::var(name).ok())
    }

    /// Reads the configuration as [`from_env`](Self::from_env) does, from any source of variables.
    ///
    /// # Errors
    /// Returns an error that names the variable which is missing or cannot be read.
    ///
    /// ```
    /// # use groupcache_discovery::DiscoveryConfig;
    /// let vars = |name: &str| (name == "GROUPCACHE_DISCOVERY").then(|| "dns".to_owned());
    /// let error = DiscoveryConfig::from_vars(vars).unwrap_err();
    /// assert!(error.to_string().contains("GROUPCACHE_DNS"));
    /// ```
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let set = |name: &str| var(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let default = if set("GROUPCACHE_PEERS").is_some() { "static" } else { "none" };
        let provider = set("GROUPCACHE_DISCOVERY").unwrap_or_else(|| default.to_owned());
        let needed = |name: &str, example: &str| {
            set(name).ok_or_else(|| {
                ConfigError::new(format!(
                    "GROUPCACHE_DISCOVERY is {provider}, and {name} is not set; set it, such as to {example}"
                ))
            })
        };
        Ok(match provider.as_str() {
            "none" => Self::None,
            "static" => {
                Self::Static(StaticConfig { peers: needed("GROUPCACHE_PEERS", "a@10.0.0.7:7946,b@10.0.0.8:7946")? })
            }
            "file" => Self::File(FileConfig { path: needed("GROUPCACHE_PEERS_FILE", "/etc/users/peers")?.into() }),
            "dns" => {
                Self::Dns(DnsConfig { names: needed("GROUPCACHE_DNS", "dns+users.default.svc.cluster.local:7946")? })
            }
            "kubernetes" => Self::Kubernetes(Box::new(kubernetes(&set)?)),
            "mdns" => Self::Mdns(Box::new(mdns(&set)?)),
            "nats" => Self::Nats(Box::new(NatsConfig {
                servers: needed("GROUPCACHE_NATS_URL", "nats://10.0.0.5:4222")?,
                application: set("GROUPCACHE_NATS_APPLICATION").unwrap_or_else(|| "default".to_owned()),
                subject: set("GROUPCACHE_NATS_SUBJECT"),
                user: set("GROUPCACHE_NATS_USER"),
                password: set("GROUPCACHE_NATS_PASSWORD"),
                token: set("GROUPCACHE_NATS_TOKEN"),
                nkey: set("GROUPCACHE_NATS_NKEY"),
                credentials_file: set("GROUPCACHE_NATS_CREDENTIALS").map(Into::into),
                require_tls: switch("GROUPCACHE_NATS_TLS", set("GROUPCACHE_NATS_TLS"))?,
                root_certificates: set("GROUPCACHE_NATS_ROOTS").map(Into::into),
                client_certificate: set("GROUPCACHE_NATS_CERTIFICATE").map(Into::into),
                client_key: set("GROUPCACHE_NATS_KEY").map(Into::into),
                heartbeat_ms: None,
                key_value: set("GROUPCACHE_NATS_BUCKET"),
                micro_service: switch("GROUPCACHE_NATS_MICRO", set("GROUPCACHE_NATS_MICRO"))?,
            })),
            other => {
                return Err(ConfigError::new(format!(
                    "GROUPCACHE_DISCOVERY is {other:?}, which is not a provider; set it to none, static, file, dns, kubernetes, mdns or nats"
                )));
            }
        })
    }
}

fn kubernetes(set: &impl Fn(&str) -> Option<String>) -> Result<KubernetesConfig, ConfigError> {
    let (application, selector, service) =
        (set("GROUPCACHE_K8S_APPLICATION"), set("GROUPCACHE_K8S_SELECTOR"), set("GROUPCACHE_K8S_SERVICE"));
    if application.is_none() && selector.is_none() && service.is_none() {
        return Err(ConfigError::new(
            "GROUPCACHE_DISCOVERY is kubernetes, and none of GROUPCACHE_K8S_APPLICATION, GROUPCACHE_K8S_SERVICE and \
             GROUPCACHE_K8S_SELECTOR is set; set one, such as GROUPCACHE_K8S_APPLICATION to users",
        ));
    }
    let flag = |name: &str| switch(name, set(name));
    Ok(KubernetesConfig {
        application,
        selector,
        service,
        namespaces: set("GROUPCACHE_K8S_NAMESPACES"),
        port: set("GROUPCACHE_K8S_PORT"),
        kubeconfig: set("GROUPCACHE_K8S_KUBECONFIG").map(Into::into),
        context: set("GROUPCACHE_K8S_CONTEXT"),
        streaming_lists: flag("GROUPCACHE_K8S_STREAMING_LISTS")?,
    })
}

fn mdns(set: &impl Fn(&str) -> Option<String>) -> Result<MdnsConfig, ConfigError> {
    let flag = |name: &str| switch(name, set(name));
    let port = |text: String| {
        text.parse().map_err(|_| ConfigError::new(format!("GROUPCACHE_MDNS_PORT is {text:?}; set it to a UDP port")))
    };
    Ok(MdnsConfig {
        service: set("GROUPCACHE_MDNS_SERVICE"),
        port: set("GROUPCACHE_MDNS_PORT").map(port).transpose()?,
        interfaces: set("GROUPCACHE_MDNS_INTERFACES"),
        skip_interfaces: set("GROUPCACHE_MDNS_SKIP_INTERFACES"),
        loopback: flag("GROUPCACHE_MDNS_LOOPBACK")?,
        ip: set("GROUPCACHE_MDNS_IP"),
        public_addresses: flag("GROUPCACHE_MDNS_PUBLIC_ADDRESSES")?,
        follow_interfaces: flag("GROUPCACHE_MDNS_FOLLOW_INTERFACES")?,
    })
}

fn switch(name: &str, value: Option<String>) -> Result<bool, ConfigError> {
    match value.as_deref() {
        None | Some("0" | "false") => Ok(false),
        Some("1" | "true") => Ok(true),
        Some(other) => Err(ConfigError::new(format!("{name} is {other:?}; set it to 1 or 0"))),
    }
}
