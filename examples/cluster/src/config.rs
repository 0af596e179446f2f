//! What the environment says.
use std::{env, ffi::OsString, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use groupcache_discovery::{BoxError, DiscoveryConfig, Identity, Provider, fixed::Static};

/// Everything that a process is told; the README lists the variables.
pub(crate) struct Config {
    pub(crate) identity: Identity,
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) http: SocketAddr,
    pub(crate) database: PathBuf,
    pub(crate) backend_timeout: Duration,
}

impl Config {
    /// Reads it; an error names the variable and says what to set it to.
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
        let database = env::var_os("DATABASE").filter(|path| !path.is_empty());
        let database = database.unwrap_or_else(|| OsString::from("cluster.db")).into();
        Ok(Self { identity, provider, http, database, backend_timeout })
    }
}

/// Who this process is, and who finds its peers: what `GROUPCACHE_DISCOVERY` says, or the list in `PEERS`.
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

/// A variable; an empty one is as good as none.
fn text(name: &str) -> Result<Option<String>, BoxError> {
    match env::var(name) {
        Ok(value) => Ok(Some(value.trim().to_owned()).filter(|value| !value.is_empty())),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(e) => Err(named(name, e)),
    }
}

fn named(name: &str, error: impl std::error::Error) -> BoxError {
    let cause = error.source().map(|cause| format!(" ({cause})")).unwrap_or_default();
    format!("{name} cannot be read: {error}{cause}").into()
}
