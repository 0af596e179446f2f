//! Configuration: reads the settings of the process from its environment.
use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf};

use groupcache_discovery::{BoxError, Identity, environment::Variables, list::Static};

use crate::tls::Files;

/// Settings of one process. The README lists the variables.
pub(crate) struct Config {
    pub(crate) identity: Identity,
    pub(crate) peers: Static,
    pub(crate) files: Files,
    /// Maximum number of connections of users and peers together, handshakes included.
    pub(crate) max_connections: usize,
}

/// Default of `MAX_CONNECTIONS`.
const MAX_CONNECTIONS: usize = 4_096;

impl Config {
    /// Reads the settings. An error names the variable and a value that works.
    pub(crate) fn from_env() -> Result<Self, BoxError> {
        let identity = Identity::from_env()?;
        if identity.listen().port() == 0 {
            return Err("GROUP_PORT is not set: set it to the port for users and peers, such as 8443".into());
        }
        let vars = Variables::of_process();
        let peers = vars.text("PEERS")?.unwrap_or_default();
        let peers = peers.parse().map_err(|e| format!("PEERS cannot be read: {e}"))?;
        let directory = vars.text("CERTIFICATES")?.unwrap_or_else(|| "certificates".into());
        let files = Files::of(&PathBuf::from(directory), identity.id().as_str());
        let max = vars.parsed("MAX_CONNECTIONS", "a number from 1 on", "4096")?;
        let max_connections = max.map_or(MAX_CONNECTIONS, NonZeroUsize::get);
        Ok(Self { identity, peers, files, max_connections })
    }

    /// Returns the address on which the process listens for users and peers.
    pub(crate) fn address(&self) -> SocketAddr {
        self.identity.listen()
    }
}
