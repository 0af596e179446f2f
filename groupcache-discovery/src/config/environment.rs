//! Configuration from variables of the environment.

use groupcache_core::environment::Variables;

use super::{
    ConfigError, DiscoveryConfig, DnsConfig, FileConfig, KubernetesConfig, MdnsConfig, NatsConfig, StaticConfig,
};

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
    /// | `GROUPCACHE_MDNS_SERVICE`, `_PORT` | mdns: name of the service, and the UDP port. Default: `_groupcache._tcp` and 5353. The name is needed unless `GROUPCACHE_CLUSTER` is set, because several services may share a segment |
    /// | `GROUPCACHE_MDNS_INTERFACES`, `_SKIP_INTERFACES` | mdns: names of interfaces to use, or not to use, separated by commas |
    /// | `GROUPCACHE_MDNS_LOOPBACK` | mdns: `1` uses loopback too, for processes of one machine |
    /// | `GROUPCACHE_MDNS_IP` | mdns: `4` or `6` for one family of addresses only |
    /// | `GROUPCACHE_MDNS_PUBLIC_ADDRESSES` | mdns: `1` accepts addresses that are neither private nor link-local |
    /// | `GROUPCACHE_MDNS_FOLLOW_INTERFACES` | mdns: `1` announces the addresses of the interfaces |
    /// | `GROUPCACHE_NATS_URL` | nats: `nats://host:port`, separated by commas |
    /// | `GROUPCACHE_NATS_APPLICATION` | nats: name of the application. Nodes of one application and one cluster find each other. Needed unless `GROUPCACHE_CLUSTER` is set, because several services may use one server |
    /// | `GROUPCACHE_NATS_SUBJECT` | nats: subject below which nodes exchange messages. Default: `groupcache-gossip` |
    /// | `GROUPCACHE_NATS_USER`, `_PASSWORD`, `_TOKEN`, `_NKEY`, `_CREDENTIALS` | nats: ways to sign in, the last of them a file |
    /// | `GROUPCACHE_NATS_TLS` | nats: `1` requires TLS |
    /// | `GROUPCACHE_NATS_ROOTS`, `_CERTIFICATE`, `_KEY` | nats: PEM files with the trusted authorities, the certificate of this node, and its key |
    /// | `GROUPCACHE_NATS_BUCKET` | nats: name of a JetStream key-value bucket |
    /// | `GROUPCACHE_NATS_MICRO` | nats: `1` makes the node a micro service |
    ///
    /// The rule of [`Variables`] holds for all of them: white space and invisible characters around a value are removed,
    /// an empty variable counts as not set, and a switch is `1`, `true`, `yes` or `on`, or the contrary.
    ///
    /// # Errors
    /// Returns an error that names the variable which is missing, or has a value that can never work.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_variables(&Variables::of_process())
    }

    /// Reads the configuration as [`from_env`](Self::from_env) does, from any source of variables.
    ///
    /// # Errors
    /// Returns an error that names the variable which is missing, or has a value that can never work.
    ///
    /// ```
    /// # use groupcache_discovery::DiscoveryConfig;
    /// let vars = |name: &str| (name == "GROUPCACHE_DISCOVERY").then(|| "dns".to_owned());
    /// let error = DiscoveryConfig::from_vars(vars).unwrap_err();
    /// assert!(error.to_string().contains("GROUPCACHE_DNS"));
    /// ```
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        Self::from_variables(&Variables::from_fn(var))
    }

    fn from_variables(vars: &Variables<'_>) -> Result<Self, ConfigError> {
        let default = if vars.text("GROUPCACHE_PEERS")?.is_some() { "static" } else { "none" };
        let provider = vars.text("GROUPCACHE_DISCOVERY")?.unwrap_or_else(|| default.to_owned());
        let needed = |name: &str, example: &str| {
            vars.text(name)?.ok_or_else(|| {
                ConfigError::new(format!(
                    "GROUPCACHE_DISCOVERY is {provider}, and {name} is not set; set it, such as to {example}"
                ))
            })
        };
        let config = match provider.to_ascii_lowercase().as_str() {
            "none" => Self::None,
            "static" => {
                Self::Static(StaticConfig { peers: needed("GROUPCACHE_PEERS", "a@10.0.0.7:7946,b@10.0.0.8:7946")? })
            }
            "file" => Self::File(FileConfig { path: needed("GROUPCACHE_PEERS_FILE", "/etc/users/peers")?.into() }),
            "dns" => {
                Self::Dns(DnsConfig { names: needed("GROUPCACHE_DNS", "dns+users.default.svc.cluster.local:7946")? })
            }
            "kubernetes" => Self::Kubernetes(Box::new(kubernetes(vars)?)),
            "mdns" => Self::Mdns(Box::new(mdns(vars)?)),
            "nats" => Self::Nats(Box::new(nats(vars, needed("GROUPCACHE_NATS_URL", "nats://10.0.0.5:4222")?)?)),
            _ => {
                return Err(ConfigError::new(format!(
                    "GROUPCACHE_DISCOVERY is {provider:?}, which is not a provider; set it to none, static, file, dns, kubernetes, mdns or nats"
                )));
            }
        };
        match config.provider() {
            // A configuration may name a provider that this build does not have; `provider` says so.
            Err(e) if !e.is_missing_feature() => Err(e),
            _ => Ok(config),
        }
    }
}

fn kubernetes(vars: &Variables<'_>) -> Result<KubernetesConfig, ConfigError> {
    let config = KubernetesConfig {
        application: vars.text("GROUPCACHE_K8S_APPLICATION")?,
        selector: vars.text("GROUPCACHE_K8S_SELECTOR")?,
        service: vars.text("GROUPCACHE_K8S_SERVICE")?,
        namespaces: vars.text("GROUPCACHE_K8S_NAMESPACES")?,
        port: vars.text("GROUPCACHE_K8S_PORT")?,
        kubeconfig: vars.text("GROUPCACHE_K8S_KUBECONFIG")?.map(Into::into),
        context: vars.text("GROUPCACHE_K8S_CONTEXT")?,
        streaming_lists: vars.switch("GROUPCACHE_K8S_STREAMING_LISTS")?,
    };
    if config.application.is_none() && config.selector.is_none() && config.service.is_none() {
        return Err(ConfigError::new(
            "GROUPCACHE_DISCOVERY is kubernetes, and none of GROUPCACHE_K8S_APPLICATION, GROUPCACHE_K8S_SERVICE and \
             GROUPCACHE_K8S_SELECTOR is set; set one, such as GROUPCACHE_K8S_APPLICATION to users",
        ));
    }
    Ok(config)
}

fn mdns(vars: &Variables<'_>) -> Result<MdnsConfig, ConfigError> {
    Ok(MdnsConfig {
        service: vars.text("GROUPCACHE_MDNS_SERVICE")?,
        port: vars.parsed("GROUPCACHE_MDNS_PORT", "a UDP port from 1 to 65535", "5353")?,
        interfaces: vars.text("GROUPCACHE_MDNS_INTERFACES")?,
        skip_interfaces: vars.text("GROUPCACHE_MDNS_SKIP_INTERFACES")?,
        loopback: vars.switch("GROUPCACHE_MDNS_LOOPBACK")?,
        ip: vars.text("GROUPCACHE_MDNS_IP")?,
        public_addresses: vars.switch("GROUPCACHE_MDNS_PUBLIC_ADDRESSES")?,
        follow_interfaces: vars.switch("GROUPCACHE_MDNS_FOLLOW_INTERFACES")?,
    })
}

fn nats(vars: &Variables<'_>, servers: String) -> Result<NatsConfig, ConfigError> {
    Ok(NatsConfig {
        servers,
        application: vars.text("GROUPCACHE_NATS_APPLICATION")?,
        subject: vars.text("GROUPCACHE_NATS_SUBJECT")?,
        user: vars.text("GROUPCACHE_NATS_USER")?,
        password: vars.text("GROUPCACHE_NATS_PASSWORD")?,
        token: vars.text("GROUPCACHE_NATS_TOKEN")?,
        nkey: vars.text("GROUPCACHE_NATS_NKEY")?,
        credentials_file: vars.text("GROUPCACHE_NATS_CREDENTIALS")?.map(Into::into),
        require_tls: vars.switch("GROUPCACHE_NATS_TLS")?,
        root_certificates: vars.text("GROUPCACHE_NATS_ROOTS")?.map(Into::into),
        client_certificate: vars.text("GROUPCACHE_NATS_CERTIFICATE")?.map(Into::into),
        client_key: vars.text("GROUPCACHE_NATS_KEY")?.map(Into::into),
        heartbeat_ms: None,
        key_value: vars.text("GROUPCACHE_NATS_BUCKET")?,
        micro_service: vars.switch("GROUPCACHE_NATS_MICRO")?,
    })
}
