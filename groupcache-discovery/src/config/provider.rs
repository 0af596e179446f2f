//! Conversion of the configuration into the provider, or into the name of the feature that is missing.

use std::{net::IpAddr, sync::Arc};

use groupcache_core::{
    Identity, async_trait,
    discovery::{PeerSet, Provider, ProviderContext, ProviderError, Signal, Trust},
    environment,
};

use super::{ConfigError, DiscoveryConfig};

impl DiscoveryConfig {
    /// Returns the provider that this configuration describes.
    ///
    /// # Errors
    /// Returns an error if an option cannot be used, or if this build does not have the provider. In that case the text
    /// names the feature to add.
    pub fn provider(&self) -> Result<Arc<dyn Provider>, ConfigError> {
        match self {
            Self::None => Ok(Arc::new(Alone)),
            Self::Static(config) => fixed(&config.peers),
            Self::File(config) => file(config),
            Self::Dns(config) => dns(&config.names),
            Self::Kubernetes(config) => kubernetes(config),
            Self::Mdns(config) => mdns(config),
            Self::Nats(config) => nats(config),
        }
    }
}

impl DiscoveryConfig {
    /// Returns the identity of this node, from the environment ([`Identity::from_env`]).
    ///
    /// With `mdns`, a node without an address in the environment (`NODE_IP`, `POD_IP`) takes that of this machine on
    /// the network, so that peers can dial it. With every other provider such a node is on
    /// loopback.
    ///
    /// # Errors
    /// Returns the errors of `Identity::from_env`, and those of [`provider`](Self::provider).
    pub fn identity(&self) -> Result<Identity, ConfigError> {
        self.identity_from(self.address()?, &environment::Variables::of_process())
    }

    pub(super) fn identity_from(
        &self,
        address: Option<IpAddr>,
        vars: &environment::Variables<'_>,
    ) -> Result<Identity, ConfigError> {
        let identity = Identity::from_variables(vars)
            .map_err(|e| ConfigError::because(format!("the identity of the node cannot be read: {e}"), e))?;
        Ok(match address {
            Some(ip) if vars.first(&["POD_IP", "NODE_IP"])?.is_none() => identity.listening_on(ip),
            _ => identity,
        })
    }

    /// Checks that a node of that identity can start with this configuration: each option can work, this build has the
    /// provider, and a medium that several services may share has a name of the application or of the cluster.
    ///
    /// [`NodeBuilder::start`](groupcache_core::NodeBuilder::start) makes the same check.
    ///
    /// # Errors
    /// Returns an error that names the option and its variable.
    pub fn check(&self, identity: &Identity) -> Result<(), ConfigError> {
        self.provider()?.check_for(identity).map_err(|e| ConfigError::new(e.to_string()))
    }

    pub(super) fn address(&self) -> Result<Option<IpAddr>, ConfigError> {
        match self {
            #[cfg(feature = "mdns")]
            Self::Mdns(config) => Ok(multicast_dns(config)?.address()),
            _ => Ok(None),
        }
    }
}

/// Provider of a node without peers.
struct Alone;

#[async_trait]
impl Provider for Alone {
    fn name(&self) -> &str {
        "none"
    }

    fn trust(&self) -> Trust {
        Trust::Authority
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        loop {
            cx.publish(PeerSet::complete(Vec::new()));
            if cx.next().await == Signal::Leaving {
                return Ok(());
            }
        }
    }
}

/// Returns the error for a provider, or for an option of it, that this build does not have.
#[cfg_attr(
    all(
        feature = "file",
        feature = "dns",
        feature = "kubernetes",
        feature = "mdns",
        feature = "nats-credentials",
        feature = "nats-kv",
        feature = "nats-micro"
    ),
    expect(dead_code, reason = "this build has everything")
)]
fn missing(what: &str, feature: &str) -> ConfigError {
    let text = format!(
        "this build has no discovery by {what}; add the feature {feature:?} to groupcache-discovery in Cargo.toml"
    );
    ConfigError { is_missing_feature: true, ..ConfigError::new(text) }
}

#[cfg(feature = "static")]
fn fixed(peers: &str) -> Result<Arc<dyn Provider>, ConfigError> {
    let list: discovery_static::Static =
        peers.parse().map_err(|e| ConfigError::option("peers", "GROUPCACHE_PEERS", e))?;
    Ok(Arc::new(list))
}

#[cfg(not(feature = "static"))]
fn fixed(_: &str) -> Result<Arc<dyn Provider>, ConfigError> {
    Err(missing("a list", "static"))
}

#[cfg(feature = "file")]
fn file(config: &super::FileConfig) -> Result<Arc<dyn Provider>, ConfigError> {
    Ok(Arc::new(discovery_static::File::new(&config.path)))
}

#[cfg(not(feature = "file"))]
fn file(_: &super::FileConfig) -> Result<Arc<dyn Provider>, ConfigError> {
    Err(missing("a file", "file"))
}

#[cfg(feature = "dns")]
fn dns(names: &str) -> Result<Arc<dyn Provider>, ConfigError> {
    let dns: discovery_static::Dns = names.parse().map_err(|e| ConfigError::option("names", "GROUPCACHE_DNS", e))?;
    Ok(Arc::new(dns))
}

#[cfg(not(feature = "dns"))]
fn dns(_: &str) -> Result<Arc<dyn Provider>, ConfigError> {
    Err(missing("DNS", "dns"))
}

#[cfg(not(feature = "kubernetes"))]
fn kubernetes(_: &super::KubernetesConfig) -> Result<Arc<dyn Provider>, ConfigError> {
    Err(missing("Kubernetes", "kubernetes"))
}

/// Applies the options that pods and services have in common.
#[cfg(feature = "kubernetes")]
macro_rules! with_options {
    ($provider:expr, $config:expr, $namespaces:expr) => {{
        let mut provider = $namespaces.fold($provider, |provider, name| provider.namespace(name));
        match $config.port.as_deref().map(environment::trimmed).filter(|port| !port.is_empty()) {
            // No port name is all digits, so that digits are a number.
            Some(port) => {
                provider = match port.parse() {
                    Ok(number) => provider.port(number),
                    Err(_) => provider.port_name(port),
                };
                provider.check_port().map_err(|e| ConfigError::option("port", "GROUPCACHE_K8S_PORT", e))?;
            }
            None => {}
        }
        if let Some(path) = &$config.kubeconfig {
            provider = provider.kubeconfig(path);
        }
        if let Some(context) = &$config.context {
            provider = provider.context(context);
        }
        if $config.streaming_lists {
            provider = provider.streaming_lists();
        }
        let why = |e: discovery_kubernetes::KubernetesError| {
            ConfigError::because(
                format!(
                    "GROUPCACHE_K8S_APPLICATION, _SELECTOR, _SERVICE or _NAMESPACES: the options of Kubernetes cannot be used: {e}"
                ),
                e,
            )
        };
        provider.check().map_err(why)?;
        Ok(Arc::new(provider))
    }};
}

#[cfg(feature = "kubernetes")]
fn kubernetes(config: &super::KubernetesConfig) -> Result<Arc<dyn Provider>, ConfigError> {
    use discovery_kubernetes::{Pods, Service};

    let mut namespaces = config
        .namespaces
        .iter()
        .flat_map(|names| names.split(','))
        .map(environment::trimmed)
        .filter(|name| !name.is_empty());
    let first = namespaces.next().unwrap_or_default();
    let pods = match (&config.application, &config.selector, &config.service) {
        (Some(application), None, None) => Pods::new(first, application),
        (None, Some(selector), None) => Pods::new(first, "").selector(selector),
        (None, None, Some(service)) => return with_options!(Service::new(first, service), config, namespaces),
        _ => {
            return Err(ConfigError::new(
                "discovery by Kubernetes needs an application, a selector or a service, and only one of them; name one",
            ));
        }
    };
    with_options!(pods, config, namespaces)
}

#[cfg(not(feature = "mdns"))]
fn mdns(_: &super::MdnsConfig) -> Result<Arc<dyn Provider>, ConfigError> {
    Err(missing("multicast DNS", "mdns"))
}

#[cfg(feature = "mdns")]
fn mdns(config: &super::MdnsConfig) -> Result<Arc<dyn Provider>, ConfigError> {
    Ok(Arc::new(multicast_dns(config)?))
}

#[cfg(feature = "mdns")]
fn multicast_dns(config: &super::MdnsConfig) -> Result<discovery_mdns::Mdns, ConfigError> {
    let names = |text: &Option<String>| -> Vec<String> {
        let names = text.iter().flat_map(|names| names.split(',')).map(environment::trimmed);
        names.filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect()
    };
    let mut mdns = discovery_mdns::Mdns::new();
    if let Some(service) = &config.service {
        mdns = mdns.service(service).map_err(|e| ConfigError::option("service", "GROUPCACHE_MDNS_SERVICE", e))?;
    }
    if let Some(port) = config.port {
        mdns = mdns.port(port).map_err(|e| ConfigError::option("port", "GROUPCACHE_MDNS_PORT", e))?;
    }
    mdns = mdns.interfaces(names(&config.interfaces)).skip_interfaces(names(&config.skip_interfaces));
    if config.loopback {
        mdns = mdns.loopback();
    }
    mdns = match config.ip.as_deref() {
        None => mdns,
        Some("4") => mdns.ipv4_only(),
        Some("6") => mdns.ipv6_only(),
        Some(other) => {
            return Err(ConfigError::new(format!(
                "GROUPCACHE_MDNS_IP (in a file: ip) is {other:?}, which is no address family; write 4 or 6, or leave it out for both"
            )));
        }
    };
    if config.public_addresses {
        mdns = mdns.public_addresses();
    }
    if config.follow_interfaces {
        mdns = mdns.follow_interfaces();
    }
    Ok(mdns)
}

#[cfg(not(feature = "nats"))]
fn nats(_: &super::NatsConfig) -> Result<Arc<dyn Provider>, ConfigError> {
    Err(missing("NATS", "nats"))
}

#[cfg(feature = "nats")]
fn nats(config: &super::NatsConfig) -> Result<Arc<dyn Provider>, ConfigError> {
    let mut nats = discovery_nats::Nats::without_application(&config.servers)
        .map_err(|e| ConfigError::option("servers", "GROUPCACHE_NATS_URL", e))?;
    if let Some(application) = &config.application {
        nats = nats
            .application(application)
            .map_err(|e| ConfigError::option("application", "GROUPCACHE_NATS_APPLICATION", e))?;
    }
    if let Some(subject) = &config.subject {
        nats = nats.subject(subject).map_err(|e| ConfigError::option("subject", "GROUPCACHE_NATS_SUBJECT", e))?;
    }
    nats = sign_in(nats, config)?;
    if config.require_tls {
        nats = nats.require_tls();
    }
    if let Some(path) = &config.root_certificates {
        nats = nats.root_certificates(path);
    }
    match (&config.client_certificate, &config.client_key) {
        (Some(certificate), Some(key)) => nats = nats.client_certificate(certificate, key),
        (None, None) => {}
        _ => {
            return Err(ConfigError::new(
                "a client certificate for NATS needs its key, and a key its certificate; name both, such as by \
                 GROUPCACHE_NATS_CERTIFICATE=/tls/tls.crt and GROUPCACHE_NATS_KEY=/tls/tls.key",
            ));
        }
    }
    if let Some(ms) = config.heartbeat_ms {
        nats = nats.heartbeat(std::time::Duration::from_millis(ms));
    }
    if let Some(bucket) = &config.key_value {
        nats = key_value(nats, bucket)?;
    }
    if config.micro_service {
        nats = micro_service(nats)?;
    }
    Ok(Arc::new(nats))
}

#[cfg(feature = "nats")]
fn sign_in(nats: discovery_nats::Nats, config: &super::NatsConfig) -> Result<discovery_nats::Nats, ConfigError> {
    let ways =
        [config.user.is_some(), config.token.is_some(), config.nkey.is_some(), config.credentials_file.is_some()];
    if ways.into_iter().filter(|way| *way).count() > 1 {
        return Err(ConfigError::new(
            "the options have several ways to sign in to NATS; name only one of a user, a token, an nkey and a credentials \
             file (GROUPCACHE_NATS_USER, _TOKEN, _NKEY, _CREDENTIALS)",
        ));
    }
    match (&config.user, &config.password) {
        (Some(user), Some(password)) => return Ok(nats.user_and_password(user, password)),
        (None, None) => {}
        _ => {
            return Err(ConfigError::new(
                "a user of NATS needs a password, and a password its user; name both, GROUPCACHE_NATS_USER and \
                 GROUPCACHE_NATS_PASSWORD",
            ));
        }
    }
    if let Some(token) = &config.token {
        return Ok(nats.token(token));
    }
    credentials(nats, config)
}

#[cfg(feature = "nats-credentials")]
fn credentials(nats: discovery_nats::Nats, config: &super::NatsConfig) -> Result<discovery_nats::Nats, ConfigError> {
    Ok(match (&config.nkey, &config.credentials_file) {
        (Some(seed), _) => nats.nkey(seed),
        (None, Some(path)) => nats.credentials_file(path),
        (None, None) => nats,
    })
}

#[cfg(all(feature = "nats", not(feature = "nats-credentials")))]
fn credentials(nats: discovery_nats::Nats, config: &super::NatsConfig) -> Result<discovery_nats::Nats, ConfigError> {
    if config.nkey.is_some() || config.credentials_file.is_some() {
        return Err(missing("NATS with an nkey or a credentials file", "nats-credentials"));
    }
    Ok(nats)
}

#[cfg(feature = "nats-kv")]
fn key_value(nats: discovery_nats::Nats, bucket: &str) -> Result<discovery_nats::Nats, ConfigError> {
    nats.key_value(bucket).map_err(|e| ConfigError::option("key_value", "GROUPCACHE_NATS_BUCKET", e))
}

#[cfg(all(feature = "nats", not(feature = "nats-kv")))]
fn key_value(_: discovery_nats::Nats, _: &str) -> Result<discovery_nats::Nats, ConfigError> {
    Err(missing("a key-value bucket of NATS", "nats-kv"))
}

#[cfg(feature = "nats-micro")]
fn micro_service(nats: discovery_nats::Nats) -> Result<discovery_nats::Nats, ConfigError> {
    Ok(nats.micro_service())
}

#[cfg(all(feature = "nats", not(feature = "nats-micro")))]
fn micro_service(_: discovery_nats::Nats) -> Result<discovery_nats::Nats, ConfigError> {
    Err(missing("NATS with a micro service", "nats-micro"))
}
