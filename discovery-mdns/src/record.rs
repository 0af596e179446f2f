//! What nodes say of themselves, as a service record: versioned, small, and read with suspicion.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use groupcache_core::{Address, Incarnation, Me, NodeState, Peer, PeerId};
use mdns_sd::{ResolvedService, ScopedIp, ServiceInfo, TxtProperties};
use xxhash_rust::xxh3::xxh3_64;

use crate::{interfaces::Rules, options::Mdns};

/// The one version of the TXT record that is written and read.
const VERSION: &str = "1";
/// The protocol between the nodes, for people who look: nodes agree on it when they shake hands.
const PROTOCOL: &str = "1";
/// Most addresses that are read of one peer.
const MAX_ADDRESSES: usize = 8;
/// Most bytes of a label of a DNS name.
const MAX_LABEL: usize = 63;
/// Most bytes of `key=value` in a TXT record.
const MAX_PROPERTY: usize = 255;
/// The cluster of nodes that name none; its instances are called by the id alone.
const DEFAULT_CLUSTER: &str = "default";

/// One peer, as its record tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) id: PeerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) state: NodeState,
    pub(crate) zone: String,
    pub(crate) addresses: Vec<Address>,
}

/// Why a record is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// It is of another cluster.
    Stranger,
    Garbage(&'static str),
}

impl Record {
    pub(crate) fn read(service: &ResolvedService, cluster: &str, rules: &Rules) -> Result<Self, Unusable> {
        Self::from_parts(&service.txt_properties, service.port, places(service), cluster, rules)
    }

    /// Reads what anybody may have announced.
    fn from_parts(
        txt: &TxtProperties,
        port: u16,
        places: Vec<(IpAddr, u32)>,
        cluster: &str,
        rules: &Rules,
    ) -> Result<Self, Unusable> {
        let get = |key: &str| txt.get_property_val_str(key);
        match get("cluster") {
            None => return Err(Unusable::Garbage("its TXT record names no cluster, or there is none")),
            Some(other) if other != cluster => return Err(Unusable::Stranger),
            Some(_) => {}
        }
        if get("txtvers") != Some(VERSION) {
            return Err(Unusable::Garbage("its TXT record is of another version; nodes need releases that overlap"));
        }
        let id = get("id").and_then(|id| PeerId::new(id).ok()).ok_or(Unusable::Garbage("its id is none"))?;
        let incarnation = get("inc").and_then(|inc| inc.parse().ok()).map(Incarnation);
        let addresses = addresses(port, places, rules);
        if addresses.is_empty() {
            return Err(Unusable::Garbage("it has no port, or no address that is private or link-local"));
        }
        Ok(Self {
            id,
            incarnation: incarnation.ok_or(Unusable::Garbage("its incarnation is no number"))?,
            state: match get("state") {
                Some("joining") => NodeState::Joining,
                Some("draining") => NodeState::Draining,
                // One that a later release adds is of a node that is there; its Hello says the rest.
                _ => NodeState::Ready,
            },
            zone: get("zone").unwrap_or_default().to_owned(),
            addresses,
        })
    }

    pub(crate) fn peer(&self) -> Peer {
        let peer = Peer::member(self.id.clone(), self.addresses.iter().cloned());
        let peer = peer.with_incarnation(self.incarnation).with_state(self.state);
        if self.zone.is_empty() { peer } else { peer.with_zone(self.zone.as_str()) }
    }
}

/// The addresses of a service, each with the interface that it was heard on.
fn places(service: &ResolvedService) -> Vec<(IpAddr, u32)> {
    let place = |ip: &ScopedIp| match ip {
        ScopedIp::V6(ip) => (IpAddr::V6(*ip.addr()), ip.scope_id().index),
        other => (other.to_ip_addr(), 0),
    };
    service.addresses.iter().map(place).collect()
}

/// Those that are believed, IPv4 first, then those that need no scope; in one order at every look.
fn addresses(port: u16, mut places: Vec<(IpAddr, u32)>, rules: &Rules) -> Vec<Address> {
    if port == 0 {
        return Vec::new();
    }
    let is_scoped = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    places.retain(|(ip, _)| rules.believes(*ip));
    places.sort_by_key(|(ip, scope)| (is_scoped(ip), *ip, *scope));
    let socket = |(ip, scope): (IpAddr, u32)| match ip {
        IpAddr::V6(v6) if is_scoped(&ip) => SocketAddr::V6(SocketAddrV6::new(v6, port, 0, scope)),
        ip => SocketAddr::new(ip, port),
    };
    let mut addresses: Vec<_> = places.into_iter().map(socket).map(Address::from).collect();
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let Some(([high, low, ip @ ..], txt)) = bytes.split_first_chunk::<6>() else { return };
    let places = vec![(IpAddr::from(*ip), 0)];
    let (txt, rules) = (TxtProperties::from(txt), Rules::default());
    if let Ok(record) = Record::from_parts(&txt, u16::from_be_bytes([*high, *low]), places, "default", &rules) {
        assert_eq!(record.peer().addresses().len(), 1);
    }
}

/// The record of this node.
pub(crate) fn announcement(me: &Me, options: &Mdns) -> Result<ServiceInfo, String> {
    let (port, ips) = published(me, options)?;
    let domain = format!("_{}._sub.{}", label(&me.cluster, &[]), options.domain());
    let txt = txt(me)?;
    let name = instance(me);
    let info = ServiceInfo::new(&domain, &name, &host(me), ips.as_deref().unwrap_or_default(), port, txt.as_slice());
    let info = info.map_err(|e| format!("this node cannot be announced: {e}"))?;
    Ok(if ips.is_none() { info.enable_addr_auto() } else { info })
}

/// The port, and the addresses; those of the interfaces where there are none.
fn published(me: &Me, options: &Mdns) -> Result<(u16, Option<Vec<IpAddr>>), String> {
    let sockets: Vec<SocketAddr> = me.addresses.iter().filter_map(|address| address.as_str().parse().ok()).collect();
    let Some(first) = sockets.first() else {
        return Err(format!(
            "this node is announced nowhere: multicast DNS tells IP addresses and no names, and its addresses are {:?}; \
             advertise one of this machine on the network",
            me.addresses
        ));
    };
    if options.follows_interfaces || first.ip().is_unspecified() {
        return Ok((first.port(), None));
    }
    // A service has one port.
    let ips: Vec<_> = sockets.iter().filter(|socket| socket.port() == first.port()).map(SocketAddr::ip).collect();
    if !ips.iter().any(|ip| options.rules.believes(*ip)) {
        return Err(if ips.iter().all(IpAddr::is_loopback) {
            format!(
                "this node is announced nowhere: it listens on {first}, where no other machine reaches it; connect this \
                 machine to a network and set NODE_IP to its address there, or switch loopback on (GROUPCACHE_MDNS_LOOPBACK=1) for \
                 processes of one machine"
            )
        } else {
            format!(
                "this node is announced nowhere: nobody believes its addresses {ips:?}; listen on a private one, or switch \
                 public addresses (GROUPCACHE_MDNS_PUBLIC_ADDRESSES=1) or the other family of addresses on, at all nodes"
            )
        });
    }
    Ok((first.port(), Some(ips)))
}

fn txt(me: &Me) -> Result<Vec<(&'static str, String)>, String> {
    let mut txt = vec![
        ("txtvers", VERSION.to_owned()),
        ("id", me.id.to_string()),
        ("cluster", me.cluster.to_string()),
        ("inc", me.incarnation.0.to_string()),
        ("state", me.state.to_string()),
        ("pv", PROTOCOL.to_owned()),
        ("weight", me.weight.to_string()),
        ("tls", u8::from(me.is_tls).to_string()),
    ];
    if !me.zone.is_empty() {
        txt.push(("zone", me.zone.to_string()));
    }
    let is_long = |(key, value): &(&str, String)| key.len() + 1 + value.len() > MAX_PROPERTY;
    // The zone is a hint, the others are not.
    txt.retain(|property| property.0 != "zone" || !is_long(property));
    match txt.iter().find(|property| is_long(property)) {
        Some((key, value)) => Err(format!(
            "this node is announced nowhere: its {key} has {} bytes, which is more than a TXT record holds; shorten it",
            value.len()
        )),
        None => Ok(txt),
    }
}

/// What the node is called among all services of this name: its id, with the cluster where that has a name.
fn instance(me: &Me) -> String {
    match &*me.cluster {
        DEFAULT_CLUSTER => label(me.id.as_str(), &[]),
        // The same id in two clusters of a segment is two nodes.
        cluster => label(me.id.as_str(), cluster.as_bytes()),
    }
}

/// Each life has a host name of its own, so that its addresses are not mixed with those of the last one.
fn host(me: &Me) -> String {
    let life = format!("{}\n{}\n{}", me.id, me.cluster, me.incarnation.0);
    format!("groupcache-{:016x}.local.", xxh3_64(life.as_bytes()))
}

/// A name as one label, or as much of it as can be one with a hash of it and of `more`.
///
/// Capitals are no difference in DNS; dots and backslashes are, and the library can neither ask nor answer for a name
/// with them.
fn label(name: &str, more: &[u8]) -> String {
    let is_good = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_' | ':');
    if more.is_empty() && name.len() < MAX_LABEL && name.chars().all(is_good) {
        return name.to_owned();
    }
    let good = name.to_ascii_lowercase().chars().map(|c| if is_good(c) { c } else { '-' }).take(40).collect::<String>();
    let whole = [name.as_bytes(), b"\n", more].concat();
    format!("{good}-{:016x}", xxh3_64(&whole))
}

/// Whether the library can ask the network for this instance: it takes each dot in its name for the end of a label.
pub(crate) fn can_be_asked_for(instance: &str, domain: &str) -> bool {
    instance.strip_suffix(domain).is_some_and(|rest| {
        let label = rest.strip_suffix('.').unwrap_or(rest);
        !label.contains(['.', '\\'])
    })
}

#[cfg(test)]
mod tests;
