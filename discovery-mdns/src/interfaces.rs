//! Interfaces: decides which network interfaces are used and which addresses of peers are accepted.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// Prefixes of the names of interfaces that belong to containers, virtual machines and tunnels. No peer is behind such
/// an interface, and its addresses are the same on many machines.
const SKIPPED: [&str; 30] = [
    "docker",
    "br-",
    "veth",
    "virbr",
    "vnet",
    "vmnet",
    "vboxnet",
    "vmenet",
    "bridge1",
    "podman",
    "cni",
    "flannel",
    "cali",
    "cilium",
    "lxc",
    "lxdbr",
    "kube",
    "weave",
    "nerdctl",
    "tun",
    "tap",
    "utun",
    "wg",
    "ppp",
    "zt",
    "tailscale",
    "ipsec",
    "gif",
    "awdl",
    "llw",
];

/// Rules of the user for interfaces and addresses.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// Names of the only interfaces to use. Empty means all interfaces that no rule skips.
    pub(crate) only: BTreeSet<String>,
    /// Names of interfaces to skip; they win over `only`.
    pub(crate) skip: BTreeSet<String>,
    pub(crate) has_loopback: bool,
    pub(crate) has_ipv4: bool,
    pub(crate) has_ipv6: bool,
    /// Whether public addresses are accepted.
    pub(crate) has_public: bool,
}

impl Default for Rules {
    fn default() -> Self {
        let none = BTreeSet::new;
        Self { only: none(), skip: none(), has_loopback: false, has_ipv4: true, has_ipv6: true, has_public: false }
    }
}

impl Rules {
    /// Returns whether the daemon uses this address of an interface.
    pub(crate) fn uses(&self, name: &str, ip: IpAddr) -> bool {
        let has_family = if ip.is_ipv4() { self.has_ipv4 } else { self.has_ipv6 };
        if !has_family || self.skip.contains(name) {
            return false;
        }
        if ip.is_loopback() {
            // Linux does not deliver IPv6 multicast on loopback back to the sending machine.
            return ip.is_ipv4() && (self.has_loopback || self.only.contains(name));
        }
        if !self.only.is_empty() {
            return self.only.contains(name);
        }
        !SKIPPED.iter().any(|begin| name.starts_with(begin))
    }

    /// Returns whether an address in a record is accepted.
    pub(crate) fn believes(&self, ip: IpAddr) -> bool {
        if ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return false;
        }
        if ip.is_loopback() {
            // For the reason in `uses`.
            return ip.is_ipv4() && self.has_ipv4 && self.listens_on_loopback();
        }
        match ip {
            IpAddr::V4(ip) => self.has_ipv4 && (self.has_public || ip.is_private() || ip.is_link_local()),
            IpAddr::V6(ip) => {
                // An IPv4-mapped address would evade the rules for IPv4.
                self.has_ipv6 && ip.to_ipv4_mapped().is_none() && (self.has_public || is_local(ip))
            }
        }
    }

    /// Returns the best of a machine's addresses to dial: an accepted one that needs no scope, with IPv4 link-local and
    /// loopback last. `None` where there is none.
    pub(crate) fn best(&self, ips: impl Iterator<Item = IpAddr>) -> Option<IpAddr> {
        let has_scope = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let is_last = |ip: &IpAddr| matches!(ip, IpAddr::V4(ip) if ip.is_link_local());
        ips.filter(|ip| self.believes(*ip) && !has_scope(ip)).min_by_key(|ip| (ip.is_loopback(), is_last(ip), *ip))
    }

    pub(crate) fn listens_on_loopback(&self) -> bool {
        self.has_loopback || self.only.iter().any(|name| matches!(name.as_str(), "lo" | "lo0"))
    }
}

fn is_local(ip: Ipv6Addr) -> bool {
    ip.is_unicast_link_local() || ip.is_unique_local()
}

/// Names of the interfaces that the daemon has used or skipped so far, for the log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Arc<Mutex<BTreeSet<(bool, String)>>>);

impl Seen {
    pub(crate) fn note(&self, name: &str, is_used: bool) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.iter().any(|(used, known)| *used == is_used && known == name) {
            seen.insert((is_used, name.to_owned()));
        }
    }

    /// Returns the interfaces with at least one used address, and the interfaces with none.
    pub(crate) fn names(&self) -> (Vec<String>, Vec<String>) {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let used: Vec<_> = seen.iter().filter(|(used, _)| *used).map(|(_, name)| name.clone()).collect();
        let skipped = seen.iter().filter(|(is_used, name)| !is_used && !used.contains(name));
        (used.clone(), skipped.map(|(_, name)| name.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Checks the default rules against names of physical interfaces and of skipped ones.
    #[test]
    fn container_tunnel_and_loopback_interfaces_are_skipped() {
        let rules = Rules::default();
        for name in ["eth0", "enp3s0", "wlan0", "en0", "eno1", "Ethernet", "br0"] {
            assert!(rules.uses(name, ip("192.168.1.7")) && rules.uses(name, ip("fe80::1")), "{name}");
        }
        for name in ["docker0", "br-0a1b2c3d4e5f", "veth12ab", "virbr0", "tun0", "wg0", "cni0", "tailscale0", "utun3"] {
            assert!(!rules.uses(name, ip("172.17.0.1")), "{name}");
        }
        assert!(!rules.uses("lo", ip("127.0.0.1")));
    }

    /// Checks the lists of names, the switches of the address families and both ways to use loopback.
    #[test]
    fn interfaces_are_chosen_by_name_and_family() {
        let only = Rules { only: ["docker0".to_owned()].into(), ..Rules::default() };
        assert!(only.uses("docker0", ip("172.17.0.1")) && !only.uses("eth0", ip("10.0.0.1")));
        let skip = Rules { skip: ["eth1".to_owned()].into(), ..Rules::default() };
        assert!(!skip.uses("eth1", ip("10.0.0.1")) && skip.uses("eth0", ip("10.0.0.1")));
        let both = Rules { only: ["eth0".to_owned()].into(), skip: ["eth0".to_owned()].into(), ..Rules::default() };
        assert!(!both.uses("eth0", ip("10.0.0.1")));
        let v4_only = Rules { has_ipv6: false, ..Rules::default() };
        assert!(v4_only.uses("eth0", ip("10.0.0.1")) && !v4_only.uses("eth0", ip("fe80::1")));
        assert!(!v4_only.believes(ip("fe80::1")));
        let v6_only = Rules { has_ipv4: false, ..Rules::default() };
        assert!(!v6_only.uses("eth0", ip("10.0.0.1")) && v6_only.uses("eth0", ip("fe80::1")));
        assert!(!v6_only.believes(ip("10.0.0.1")));
        for loopback in [
            Rules { has_loopback: true, ..Rules::default() },
            Rules { only: ["lo".to_owned()].into(), ..Rules::default() },
        ] {
            assert!(loopback.uses("lo", ip("127.0.0.1")) && !loopback.uses("lo", ip("::1")));
            assert!(loopback.believes(ip("127.0.0.1")) && !loopback.believes(ip("::1")));
            let v6_only = Rules { has_ipv4: false, ..loopback };
            assert!(!v6_only.uses("lo", ip("127.0.0.1")) && !v6_only.believes(ip("127.0.0.1")));
        }
    }

    /// Checks that private and link-local addresses are always accepted, public ones only with the switch, and
    /// unspecified, multicast, broadcast and IPv4-mapped ones never.
    #[test]
    fn public_addresses_are_accepted_only_if_enabled() {
        let private = ["10.1.2.3", "172.16.0.1", "192.168.1.7", "169.254.9.9", "fe80::1", "fd00::7"];
        let public = ["203.0.113.9", "8.8.8.8", "172.32.0.1", "2001:db8::1"];
        let never = ["0.0.0.0", "255.255.255.255", "224.0.0.251", "::", "ff02::fb", "::ffff:10.0.0.1"];
        let (rules, open) = (Rules::default(), Rules { has_public: true, ..Rules::default() });
        for address in private {
            assert!(rules.believes(ip(address)) && open.believes(ip(address)), "{address}");
        }
        for address in public {
            assert!(!rules.believes(ip(address)) && open.believes(ip(address)), "{address}");
        }
        for address in never {
            assert!(!rules.believes(ip(address)) && !open.believes(ip(address)), "{address}");
        }
        assert!(!open.believes(ip("127.0.0.1")) && !open.believes(ip("::1")), "loopback has a switch of its own");
    }

    /// Checks that IPv4 is preferred to IPv6, addresses without a scope to IPv4 link-local ones, and all to loopback.
    #[test]
    fn best_address_is_dialable_by_other_machines() {
        let best = |rules: &Rules, ips: &[&str]| rules.best(ips.iter().map(|text| ip(text)));
        let rules = Rules { has_loopback: true, ..Rules::default() };
        let all = ["127.0.0.1", "fe80::1", "fd00::7", "169.254.1.1", "192.168.1.7", "203.0.113.7"];
        assert_eq!(best(&rules, &all), Some(ip("192.168.1.7")));
        assert_eq!(best(&rules, &all[..4]), Some(ip("fd00::7")));
        assert_eq!(best(&rules, &all[..2]), Some(ip("127.0.0.1")));
        assert_eq!(best(&Rules::default(), &all[..2]), None);
    }

    /// Checks that an interface with a used and a skipped address is listed as used only.
    #[test]
    fn interface_with_a_used_address_is_not_listed_as_skipped() {
        let seen = Seen::default();
        for (name, is_used) in [("lo", false), ("eth0", true), ("eth0", false), ("docker0", false), ("lo", false)] {
            seen.note(name, is_used);
        }
        assert_eq!(seen.names(), (vec!["eth0".to_owned()], vec!["docker0".to_owned(), "lo".to_owned()]));
    }
}
