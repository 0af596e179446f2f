//! Known addresses of a name, and the effect of early answers on them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use groupcache_core::discovery::Address;
use tokio::sync::mpsc;

/// Answer to one kind of question about a host, while the other kind is not answered.
#[derive(Debug)]
pub(crate) struct Early {
    /// Index of the name among those of the round.
    pub(crate) name: usize,
    pub(crate) host: String,
    pub(crate) ports: Vec<u16>,
    pub(crate) ips: Vec<IpAddr>,
}

/// Known addresses of a name: for each host the addresses of each kind, and the ports there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found(pub(crate) BTreeMap<String, Host>);

#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub(crate) v4: Kind,
    pub(crate) v6: Kind,
    pub(crate) ports: Vec<u16>,
}

/// Addresses of one kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kind {
    pub(crate) ips: Vec<IpAddr>,
    /// Whether the last answer was that there are none, while the host has addresses of the other kind.
    pub(crate) is_doubted: bool,
}

impl Found {
    pub(crate) fn literal(address: SocketAddr) -> Self {
        let kind = |is_it: bool| Kind { ips: is_it.then(|| address.ip()).into_iter().collect(), is_doubted: false };
        let host = Host { v4: kind(address.is_ipv4()), v6: kind(address.is_ipv6()), ports: vec![address.port()] };
        Self(BTreeMap::from([(address.to_string(), host)]))
    }

    /// Replaces the addresses of one kind, and keeps those of the other kind and of other hosts.
    pub(crate) fn take_early(&mut self, answer: Early) {
        let host = self.0.entry(answer.host).or_default();
        host.ports = answer.ports;
        let is_v4 = answer.ips.first().is_some_and(IpAddr::is_ipv4);
        let kind = if is_v4 { &mut host.v4 } else { &mut host.v6 };
        *kind = Kind { ips: answer.ips, is_doubted: false };
    }

    pub(crate) fn addresses(&self) -> Vec<Address> {
        let of = |host: &Host| {
            let ips: Vec<_> = host.v4.ips.iter().chain(&host.v6.ips).copied().collect();
            let ports = host.ports.clone();
            ips.into_iter()
                .flat_map(move |ip| ports.clone().into_iter().map(move |port| SocketAddr::new(ip, port).into()))
        };
        self.0.values().flat_map(of).collect()
    }
}

/// Channel for the early answers about one name.
#[derive(Clone, Copy)]
pub(crate) struct EarlyAnswers<'a> {
    pub(crate) name: usize,
    pub(crate) early: &'a mpsc::Sender<Early>,
}

impl EarlyAnswers<'_> {
    /// Sends an answer, unless the channel is full.
    pub(crate) fn send(&self, host: &str, ports: &[u16], ips: &[IpAddr]) {
        let (host, ports, ips) = (host.to_owned(), ports.to_vec(), ips.to_vec());
        let _ = self.early.try_send(Early { name: self.name, host, ports, ips });
    }
}
