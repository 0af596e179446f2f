//! Options: the service, the interfaces and the addresses that the user chooses.

use std::{fmt, net::IpAddr};

use groupcache_core::discovery::Trust;

use crate::{
    error::MdnsError,
    interfaces::Rules,
    stats::{Counters, MdnsStats},
};

/// Maximum length of a service name in bytes, without the underscore (RFC 6763).
const MAX_SERVICE: usize = 15;
/// Port of multicast DNS.
const PORT: u16 = 5353;
/// Only domain of multicast DNS (RFC 6762).
const DOMAIN: &str = "local";

/// A provider that finds peers on the local network segment.
///
/// Nodes find each other when they have the same service name and the same cluster (the cluster is part of the node's
/// identity), and are on the same segment. A node starts only if the [service](Self::service) or the
/// [cluster](groupcache_core::Identity::with_cluster) was chosen, because several services may share a segment. A network without multicast is never an error,
/// because the node then serves alone and logs that once.
#[derive(Clone)]
pub struct Mdns {
    pub(crate) service: String,
    /// Whether the service was chosen. Otherwise the name of the cluster alone keeps services apart.
    pub(crate) has_service: bool,
    pub(crate) trust: Trust,
    pub(crate) port: u16,
    pub(crate) rules: Rules,
    pub(crate) follows_interfaces: bool,
    pub(crate) counters: Counters,
}

impl Mdns {
    /// Default service name.
    pub const SERVICE: &str = "_groupcache._tcp";

    /// Creates a provider that uses all interfaces except loopback and the interfaces of containers, virtual machines
    /// and tunnels.
    pub fn new() -> Self {
        Self {
            service: Self::SERVICE.to_owned(),
            has_service: false,
            trust: Trust::Hints,
            port: PORT,
            rules: Rules::default(),
            follows_interfaces: false,
            counters: Counters::default(),
        }
    }

    /// Sets the service name under which the nodes announce themselves, such as `_users._tcp`. Default:
    /// [`SERVICE`](Self::SERVICE).
    ///
    /// A name has 1 to 15 letters, digits and single hyphens, with at least one letter, between `_` and `._tcp`. The
    /// domain `.local` may follow, because multicast DNS has no other domain.
    ///
    /// # Errors
    /// Returns an error for an invalid name. The text names the broken rule.
    ///
    /// ```
    /// # use discovery_mdns::Mdns;
    /// assert!(Mdns::new().service("_users._tcp").is_ok());
    /// assert!(Mdns::new().service("_users._tcp.example.org").is_err());
    /// ```
    pub fn service(mut self, name: impl AsRef<str>) -> Result<Self, MdnsError> {
        let given = name.as_ref();
        let bad = |why: &str| {
            MdnsError::new(format!("invalid service name {given:?}: {why}; use a name such as {}", Self::SERVICE))
        };
        let text = given.trim().trim_end_matches('.').to_ascii_lowercase();
        let (service, domain) = text.split_once("._tcp").ok_or_else(|| bad("there is no ._tcp"))?;
        if !matches!(domain.strip_prefix('.').unwrap_or(domain), "" | DOMAIN) {
            return Err(bad("the only domain of multicast DNS is local"));
        }
        let name = service.strip_prefix('_').ok_or_else(|| bad("the first character is not _"))?;
        if name.is_empty() || name.len() > MAX_SERVICE {
            return Err(bad("the part before ._tcp has more than 15 characters or none"));
        }
        let is_good = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if !name.chars().all(is_good) || !name.chars().any(|c| c.is_ascii_alphabetic()) {
            return Err(bad("only letters, digits and hyphens are allowed, with at least one letter"));
        }
        if name.starts_with('-') || name.ends_with('-') || name.contains("--") {
            return Err(bad("a hyphen must stand between letters or digits"));
        }
        self.service = format!("_{name}._tcp");
        self.has_service = true;
        Ok(self)
    }

    /// Sets the UDP port. Default: 5353, the port of all multicast DNS software. Range: 1 to 65,535. Nodes with another
    /// port find only each other, and no other software sees them.
    ///
    /// # Errors
    /// Returns an error for port 0.
    pub fn port(mut self, port: u16) -> Result<Self, MdnsError> {
        if port == 0 {
            return Err(MdnsError::new(
                "invalid port 0: nodes cannot share it; leave the port at 5353 or choose another one",
            ));
        }
        self.port = port;
        Ok(self)
    }

    /// Uses these interfaces and no others, for example `["eth0"]`. Interfaces of containers and tunnels are used if
    /// named here. `lo` is loopback. Default: all interfaces except the ones that [`new`](Self::new) leaves out.
    pub fn interfaces(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.rules.only = names.into_iter().map(Into::into).collect();
        self
    }

    /// Leaves out these interfaces. Default: none beside loopback and the interfaces of containers, virtual machines
    /// and tunnels, which are left out without being named.
    pub fn skip_interfaces(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.rules.skip = names.into_iter().map(Into::into).collect();
        self
    }

    /// Uses loopback too, for processes of one machine that listen on 127.0.0.1. Default: off.
    pub fn loopback(mut self) -> Self {
        self.rules.has_loopback = true;
        self
    }

    /// Uses IPv4 and not IPv6. Default: both.
    pub fn ipv4_only(mut self) -> Self {
        (self.rules.has_ipv4, self.rules.has_ipv6) = (true, false);
        self
    }

    /// Uses IPv6 and not IPv4. Default: both.
    pub fn ipv6_only(mut self) -> Self {
        (self.rules.has_ipv4, self.rules.has_ipv6) = (false, true);
        self
    }

    /// Accepts records with public addresses too. Default: only private and link-local addresses are accepted, because
    /// any machine on the segment can announce any address.
    pub fn public_addresses(mut self) -> Self {
        self.rules.has_public = true;
        self
    }

    /// Announces the current addresses of the interfaces instead of the addresses in the node's identity. The port
    /// still comes from the identity. Default: off. Suits a node that listens on all interfaces of a machine with
    /// changing addresses.
    pub fn follow_interfaces(mut self) -> Self {
        self.follows_interfaces = true;
        self
    }

    /// Sets the trust in the records of the segment. Default: [`Trust::Hints`], because anybody on the segment can
    /// announce any record and lose any. [`Trust::Authority`] suits a segment of nodes alone: members without a record
    /// then leave although their connection is alive.
    pub fn trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    /// Returns an address of this machine that peers on the segment can dial, IPv4 first. `None` where there is none.
    ///
    /// The address is the best one among the addresses without a scope that
    /// [`follow_interfaces`](Self::follow_interfaces) would announce. A node without a configured address listens
    /// there. An address that the machine gets later takes effect only after a restart of the node.
    pub fn address(&self) -> Option<IpAddr> {
        let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
        let usable = interfaces.iter().filter(|i| i.is_oper_up() && !i.is_p2p() && self.rules.uses(&i.name, i.ip()));
        self.rules.best(usable.map(|interface| interface.ip()))
    }

    /// Returns the counts of this provider and its clones so far.
    pub fn stats(&self) -> MdnsStats {
        self.counters.read()
    }

    /// Returns the service name with its domain, in the form that the daemon expects.
    pub(crate) fn domain(&self) -> String {
        format!("{}.{DOMAIN}.", self.service)
    }
}

impl Default for Mdns {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Mdns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mdns")
            .field("service", &self.service)
            .field("port", &self.port)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that valid names get the domain and that each rule for names has a text of its own.
    #[test]
    fn service_name_is_checked_and_may_include_the_domain() {
        let service = |name: &str| Mdns::new().service(name).map(|mdns| mdns.domain());
        assert_eq!(Mdns::new().domain(), "_groupcache._tcp.local.");
        for good in ["_users._tcp", " _Users._tcp.local ", "_users._tcp.local."] {
            assert_eq!(service(good).unwrap(), "_users._tcp.local.", "{good}");
        }
        assert!(service("_a2345678901234-._tcp").is_err() && service("_a23456789012345._tcp").is_ok());
        for (bad, why) in [
            ("", "no ._tcp"),
            ("users._tcp", "first character"),
            ("_users._udp", "no ._tcp"),
            ("_._tcp", "or none"),
            ("_a234567890123456._tcp", "more than 15"),
            ("_two words._tcp", "letters"),
            ("_a.b._tcp", "letters"),
            ("_12._tcp", "at least one letter"),
            ("_a--b._tcp", "hyphen"),
            ("_users._tcp.example.org", "only domain"),
        ] {
            let error = service(bad).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("_groupcache._tcp"), "{bad}: {error}");
        }
        assert!(Mdns::new().port(0).is_err() && Mdns::new().port(5354).is_ok());
    }
}
