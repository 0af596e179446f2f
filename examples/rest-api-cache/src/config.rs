//! Configuration: reads `config.yaml` and the environment.
use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    time::Duration,
};

use axum::http::uri::Authority;
use config::{File, FileFormat};
use groupcache_discovery::{BoxError, environment::Variables};
use serde::{Deserialize, Deserializer, de::Error};

/// Settings of a process, without those of the provider.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) server: Server,
    pub(crate) target: Target,
    pub(crate) cache: Cache,
    pub(crate) org: Org,
    pub(crate) limit: Limit,
}

/// Address and port for clients.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Server {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    /// Names by which clients reach the service. A loopback address has the names of this machine too.
    #[serde(default)]
    pub(crate) hosts: Vec<String>,
}

/// The upstream, and the credentials for it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Target {
    pub(crate) scheme: Scheme,
    #[serde(deserialize_with = "authority")]
    pub(crate) url: Authority,
    pub(crate) token: Token,
    timeout: NonZeroU32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scheme {
    Http,
    Https,
}

/// Lifetimes of cached answers, in seconds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cache {
    refresh: NonZeroU32,
    stale: NonZeroU32,
}

/// Name of the organisation, and the paths that are cached.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Org {
    name: String,
    cached: Vec<String>,
}

/// Limits of one client.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limit {
    pub(crate) per_second: NonZeroU32,
    pub(crate) burst: NonZeroU32,
}

/// Secret token. The debug output does not show it.
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct Token(pub(crate) String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "***" })
    }
}

fn authority<'de, D: Deserializer<'de>>(from: D) -> Result<Authority, D::Error> {
    let text = String::deserialize(from)?;
    // The error leaves out the text, which may contain a password.
    let authority = text.parse().ok().filter(|authority: &Authority| !authority.as_str().contains('@'));
    authority.ok_or_else(|| D::Error::custom("write a host, or host:port, without a scheme or a path"))
}

/// Variables that override the file, and the settings that they override.
const VARIABLES: [(&str, &str); 11] = [
    ("SERVER_ADDRESS", "server.address"),
    ("SERVER_PORT", "server.port"),
    ("TARGET_SCHEME", "target.scheme"),
    ("TARGET_URL", "target.url"),
    ("GITHUB_API_TOKEN", "target.token"),
    ("TARGET_TIMEOUT", "target.timeout"),
    ("CACHE_REFRESH", "cache.refresh"),
    ("CACHE_STALE", "cache.stale"),
    ("ORG_NAME", "org.name"),
    ("LIMIT_PER_SECOND", "limit.per_second"),
    ("LIMIT_BURST", "limit.burst"),
];

/// Variables like those in [`VARIABLES`], each with a list separated by commas.
const LISTS: [(&str, &str); 2] = [("ORG_CACHED", "org.cached"), ("SERVER_HOSTS", "server.hosts")];

impl Config {
    /// Reads the file that `CONFIG` names, and the variables that override it.
    ///
    /// Default of `CONFIG`: `config.yaml`. An error names the file and the setting.
    pub(crate) fn read() -> Result<Self, BoxError> {
        let path = variable("CONFIG")?.unwrap_or_else(|| "config.yaml".to_owned());
        let mut all = config::Config::builder().add_source(File::new(&path, FileFormat::Yaml));
        for (name, key) in VARIABLES {
            all = all.set_override_option(key, variable(name)?)?;
        }
        for (name, key) in LISTS {
            let list = variable(name)?.map(|list| list.split(',').map(|item| item.trim().to_owned()).collect());
            all = all.set_override_option::<_, Vec<String>>(key, list)?;
        }
        let read = all.build().and_then(config::Config::try_deserialize);
        read.map_err(|e| {
            format!("the configuration {path}, or a variable that overrides it, cannot be used: {e}").into()
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (self.server.address, self.server.port).into()
    }

    /// Returns the maximum time for an answer of the upstream.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.target.timeout.get().into())
    }

    /// Returns the time between two refreshes of a path.
    pub(crate) fn refresh(&self) -> Duration {
        Duration::from_secs(self.cache.refresh.get().into())
    }

    /// Returns how long an answer is still served after its refresh was due.
    pub(crate) fn stale(&self) -> Duration {
        Duration::from_secs(self.cache.stale.get().into())
    }

    /// Returns the path of the repositories, from which the views are computed.
    pub(crate) fn repositories(&self) -> String {
        format!("/orgs/{}/repos", self.org.name)
    }

    /// Returns the paths that are cached. The path of the repositories is always among them.
    pub(crate) fn cached(&self) -> BTreeSet<String> {
        let paths = self.org.cached.iter().map(|path| path.replace("{org}", &self.org.name));
        paths.chain([self.repositories()]).collect()
    }
}

/// Returns the value of a variable, or `None` if the variable is missing or empty.
fn variable(name: &str) -> Result<Option<String>, BoxError> {
    Ok(Variables::of_process().text(name)?)
}
