//! What a user says: which service, which interfaces, which addresses.

use std::{fmt, net::IpAddr};

use crate::{
    error::MdnsError,
    interfaces::Rules,
    stats::{Counters, MdnsStats},
};

/// Longest name of a service, without the underscore (RFC 6763).
const MAX_SERVICE: usize = 15;
/// The port of multicast DNS.
const PORT: u16 = 5353;
/// The one domain of multicast DNS (RFC 6762).
const DOMAIN: &str = "local";

/// A provider that finds peers on the local network segment.
///
/// Nodes find each other when they have the same service name and the same cluster (the cluster is part of the node's
/// identity), and are on the same segment. Everything has a default. A network without multicast is never an error:
/// the node serves alone, and says so once.
#[derive(Clone)]
pub struct Mdns {
    pub(crate) service: String,
    pub(crate) port: u16,
    pub(crate) rules: Rules,
    pub(crate) follows_interfaces: bool,
    pub(crate) counters: Counters,
}

impl Mdns {
    /// The service name that is used where none is given.
    pub const SERVICE: &str = "_groupcache._tcp";

    /// Over all interfaces but those of containers, tunnels and loopback.
    pub fn new() -> Self {
        Self {
            service: Self::SERVICE.to_owned(),
            port: PORT,
            rules: Rules::default(),
            follows_interfaces: false,
            counters: Counters::default(),
        }
    }

    /// Under which name the nodes announce themselves, such as `_users._tcp`; default [`SERVICE`](Self::SERVICE).
    ///
    /// # Errors
    /// When it is none: 1 to 15 letters, digits and single hyphens, at least one letter, between `_` and `._tcp`. It may end in
    /// the domain `.local`; multicast DNS knows no other.
    ///
    /// ```
    /// # use discovery_mdns::Mdns;
    /// assert!(Mdns::new().service("_users._tcp").is_ok());
    /// assert!(Mdns::new().service("_users._tcp.example.org").is_err());
    /// ```
    pub fn service(mut self, name: impl AsRef<str>) -> Result<Self, MdnsError> {
        let given = name.as_ref();
        let bad = |why: &str| {
            MdnsError::new(format!("{given:?} is no service name: {why}; write one such as {}", Self::SERVICE))
        };
        let text = given.trim().trim_end_matches('.').to_ascii_lowercase();
        let (service, domain) = text.split_once("._tcp").ok_or_else(|| bad("it has no ._tcp"))?;
        if !matches!(domain.strip_prefix('.').unwrap_or(domain), "" | DOMAIN) {
            return Err(bad("the domain of multicast DNS is local, and no other"));
        }
        let name = service.strip_prefix('_').ok_or_else(|| bad("it does not begin with _"))?;
        if name.is_empty() || name.len() > MAX_SERVICE {
            return Err(bad("it has more than 15 characters, or none"));
        }
        let is_good = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if !name.chars().all(is_good) || !name.chars().any(|c| c.is_ascii_alphabetic()) {
            return Err(bad("it has other characters than letters, digits and hyphens, or no letter"));
        }
        if name.starts_with('-') || name.ends_with('-') || name.contains("--") {
            return Err(bad("a hyphen stands between letters or digits"));
        }
        self.service = format!("_{name}._tcp");
        Ok(self)
    }

    /// The UDP port; default 5353, on which everybody else speaks multicast DNS. Nodes with another one find each
    /// other and are seen by nobody else.
    ///
    /// # Errors
    /// When it is 0.
    pub fn port(mut self, port: u16) -> Result<Self, MdnsError> {
        if port == 0 {
            return Err(MdnsError::new("port 0 is no port that nodes could share: leave it at 5353, or name another"));
        }
        self.port = port;
        Ok(self)
    }

    /// Talks on these interfaces and on no others, whatever they are: `["eth0"]`. `lo` is loopback.
    pub fn interfaces(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.rules.only = names.into_iter().map(Into::into).collect();
        self
    }

    /// Does not talk on these interfaces. Those of containers, virtual machines and tunnels are left out anyway.
    pub fn skip_interfaces(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.rules.skip = names.into_iter().map(Into::into).collect();
        self
    }

    /// Talks on loopback too: for processes of one machine that listen on 127.0.0.1.
    pub fn loopback(mut self) -> Self {
        self.rules.has_loopback = true;
        self
    }

    /// Does not use IPv6.
    pub fn ipv4_only(mut self) -> Self {
        (self.rules.has_ipv4, self.rules.has_ipv6) = (true, false);
        self
    }

    /// Does not use IPv4.
    pub fn ipv6_only(mut self) -> Self {
        (self.rules.has_ipv4, self.rules.has_ipv6) = (false, true);
        self
    }

    /// Believes records with any address. Default: private and link-local ones only, since anybody on the segment can
    /// announce anything.
    pub fn public_addresses(mut self) -> Self {
        self.rules.has_public = true;
        self
    }

    /// Announces the addresses of the interfaces, as they are at any time, instead of those that the node's identity
    /// has: for a node that listens on all of them, on a machine whose addresses change. The port is that of the
    /// identity.
    pub fn follow_interfaces(mut self) -> Self {
        self.follows_interfaces = true;
        self
    }

    /// An address of this machine that others on the segment can dial: the best of those that
    /// [`follow_interfaces`](Self::follow_interfaces) would announce and that needs no scope, IPv4 first. `None` where
    /// there is none.
    ///
    /// For a node that is told nothing, and listens there. An address that is given to the machine later needs a new
    /// start.
    pub fn address(&self) -> Option<IpAddr> {
        let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
        let usable = interfaces.iter().filter(|i| i.is_oper_up() && !i.is_p2p() && self.rules.uses(&i.name, i.ip()));
        self.rules.best(usable.map(|interface| interface.ip()))
    }

    /// What has been counted so far.
    pub fn stats(&self) -> MdnsStats {
        self.counters.read()
    }

    /// The service with its domain, as the daemon wants it.
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

    #[test]
    fn a_service_name_is_checked_and_may_have_its_domain() {
        let service = |name: &str| Mdns::new().service(name).map(|mdns| mdns.domain());
        assert_eq!(Mdns::new().domain(), "_groupcache._tcp.local.");
        for good in ["_users._tcp", " _Users._tcp.local ", "_users._tcp.local."] {
            assert_eq!(service(good).unwrap(), "_users._tcp.local.", "{good}");
        }
        assert!(service("_a2345678901234-._tcp").is_err() && service("_a23456789012345._tcp").is_ok());
        for (bad, why) in [
            ("", "no ._tcp"),
            ("users._tcp", "begin with _"),
            ("_users._udp", "no ._tcp"),
            ("_._tcp", "or none"),
            ("_a234567890123456._tcp", "more than 15"),
            ("_two words._tcp", "letters"),
            ("_a.b._tcp", "letters"),
            ("_12._tcp", "no letter"),
            ("_a--b._tcp", "hyphen"),
            ("_users._tcp.example.org", "local, and no other"),
        ] {
            let error = service(bad).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("_groupcache._tcp"), "{bad}: {error}");
        }
        assert!(Mdns::new().port(0).is_err() && Mdns::new().port(5354).is_ok());
    }
}
