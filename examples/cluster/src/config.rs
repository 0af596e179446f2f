//! Configuration: reads the settings of the process from its environment.
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use groupcache_discovery::{
    BoxError, DiscoveryConfig, Identity, discovery::Provider, environment::Variables, list::Static,
};

/// Settings of one process. The README lists the variables.
pub(crate) struct Config {
    pub(crate) identity: Identity,
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) http: SocketAddr,
    pub(crate) database: PathBuf,
    pub(crate) backend_timeout: Duration,
}

impl Config {
    /// Reads the settings. An error names the variable and a value that works.
    pub(crate) fn from_env() -> Result<Self, BoxError> {
        let (identity, provider) = discovery()?;
        let http = text("HTTP_ADDR")?.unwrap_or_else(|| "127.0.0.1:8080".into());
        let http = http.parse().map_err(|_| {
            format!("HTTP_ADDR is {http:?}, which is not an address: write ip:port, such as 127.0.0.1:8080")
        })?;
        let millis = text("BACKEND_TIMEOUT_MS")?.unwrap_or_else(|| "250".into());
        let backend_timeout = millis.parse().ok().filter(|ms| *ms > 0).map(Duration::from_millis).ok_or_else(|| {
            format!("BACKEND_TIMEOUT_MS is {millis:?}, which is not a time: set it to milliseconds, such as 250")
        })?;
        let database = text("DATABASE")?.unwrap_or_else(|| "cluster.db".into()).into();
        Ok(Self { identity, provider, http, database, backend_timeout })
    }
}

/// Returns the identity of this process and its provider: the provider that `GROUPCACHE_DISCOVERY` names, otherwise the
/// list in `PEERS`.
fn discovery() -> Result<(Identity, Arc<dyn Provider>), BoxError> {
    if text("GROUPCACHE_DISCOVERY")?.is_some() {
        let config = DiscoveryConfig::from_env()?;
        return Ok((config.identity()?, config.provider()?));
    }
    let identity = Identity::from_env()?;
    let peers: Static = text("PEERS")?.unwrap_or_default().parse().map_err(|e| named("PEERS", e))?;
    if !peers.handle().peers().is_empty() && identity.listen().port() == 0 {
        return Err("PEERS is set and GROUP_PORT is not: set it to the port that the peers dial".into());
    }
    Ok((identity, Arc::new(peers)))
}

/// Returns the value of a variable, or `None` if the variable is missing or empty.
fn text(name: &str) -> Result<Option<String>, BoxError> {
    Ok(Variables::of_process().text(name)?)
}

/// Returns an error that names the variable.
fn named(name: &str, error: impl std::error::Error) -> BoxError {
    let cause = error.source().map(|cause| format!(" ({cause})")).unwrap_or_default();
    format!("{name} cannot be read: {error}{cause}").into()
}
