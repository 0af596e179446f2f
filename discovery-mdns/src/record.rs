//! Record: writes the service record of this node and reads those of its peers, which are versioned, small and not
//! trusted.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use groupcache_core::{
    PeerId,
    discovery::{Address, Incarnation, Me, NodeState, Peer},
};
use mdns_sd::{ResolvedService, ScopedIp, ServiceInfo, TxtProperties};
use xxhash_rust::xxh3::xxh3_64;

use crate::{interfaces::Rules, options::Mdns};

/// Only version of the TXT record that is written and read.
const VERSION: &str = "1";
/// Version of the peer protocol, for people that read the record. Nodes agree on a version in the handshake.
const PROTOCOL: &str = "1";
/// Maximum number of addresses that are read per peer.
const MAX_ADDRESSES: usize = 8;
/// Maximum number of records of one id that are used. A renamed node has two for a while.
const MAX_INSTANCES: usize = 4;
/// Maximum bytes of a label in a DNS name.
const MAX_LABEL: usize = 63;
/// Maximum bytes of `key=value` in a TXT record.
const MAX_PROPERTY: usize = 255;
/// Cluster of nodes without a configured one; its instance names are ids alone.
const DEFAULT_CLUSTER: &str = "default";

/// Contents of the record of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) id: PeerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) state: NodeState,
    pub(crate) addresses: Vec<Address>,
    /// Whether the instance has the name that a node with this id takes.
    pub(crate) is_at_own_name: bool,
}

/// Reason why a record is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// Record of another cluster.
    Stranger,
    /// Record that cannot be read, with the reason.
    Garbage(&'static str),
}

impl Record {
    pub(crate) fn read(service: &ResolvedService, cluster: &str, rules: &Rules) -> Result<Self, Unusable> {
        let record = Self::from_parts(&service.txt_properties, service.port, places(service), cluster, rules)?;
        let rest = service.fullname.strip_prefix(&instance_name(record.id.as_str(), cluster));
        Ok(Self { is_at_own_name: rest.is_some_and(|rest| rest.starts_with('.')), ..record })
    }

    /// Reads the parts of a record, which any machine may have announced.
    fn from_parts(
        txt: &TxtProperties,
        port: u16,
        places: Vec<(IpAddr, u32)>,
        cluster: &str,
        rules: &Rules,
    ) -> Result<Self, Unusable> {
        let get = |key: &str| txt.get_property_val_str(key);
        match get("cluster") {
            None => return Err(Unusable::Garbage("there is no TXT record, or it names no cluster")),
            Some(other) if other != cluster => return Err(Unusable::Stranger),
            Some(_) => {}
        }
        if get("txtvers") != Some(VERSION) {
            return Err(Unusable::Garbage(
                "the TXT record has another version; run releases with a common version on all nodes",
            ));
        }
        let id =
            get("id").and_then(|id| PeerId::new(id).ok()).ok_or(Unusable::Garbage("the id is missing or invalid"))?;
        let incarnation = get("inc").and_then(|inc| inc.parse().ok()).map(Incarnation);
        let addresses = addresses(port, places, rules);
        if addresses.is_empty() {
            return Err(Unusable::Garbage(
                "there is no port or no accepted address; private and link-local ones are accepted by default",
            ));
        }
        Ok(Self {
            id,
            incarnation: incarnation.ok_or(Unusable::Garbage("the incarnation is missing or not a number"))?,
            state: match get("state") {
                Some("joining") => NodeState::Joining,
                Some("draining") => NodeState::Draining,
                // A state of a later release belongs to a live node, and the Hello of that node has the details.
                _ => NodeState::Ready,
            },
            addresses,
            is_at_own_name: false,
        })
    }

    /// Returns one peer of all records of an id. The first addresses of all of them come before their second ones, so
    /// that no record pushes out another. The records at the name of the node come first, because any machine may
    /// announce the id at other names.
    pub(crate) fn peer_of(mut of_id: Vec<&Self>) -> Option<Peer> {
        of_id.sort_by_key(|record| std::cmp::Reverse((record.is_at_own_name, record.incarnation)));
        of_id.truncate(MAX_INSTANCES);
        let first = *of_id.first()?;
        let rank = |at: usize| of_id.iter().filter_map(move |record| record.addresses.get(at));
        let mut addresses: Vec<Address> = Vec::new();
        for address in (0..MAX_ADDRESSES).flat_map(rank) {
            if addresses.len() < MAX_ADDRESSES && !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        let incarnation = of_id.iter().map(|record| record.incarnation).max()?;
        Some(Peer::member(first.id.clone(), addresses).with_incarnation(incarnation).with_state(first.state))
    }
}

/// Returns the addresses of a service, IPv6 ones with the index of the interface that received them.
fn places(service: &ResolvedService) -> Vec<(IpAddr, u32)> {
    let place = |ip: &ScopedIp| match ip {
        ScopedIp::V6(ip) => (IpAddr::V6(*ip.addr()), ip.scope_id().index),
        other => (other.to_ip_addr(), 0),
    };
    service.addresses.iter().map(place).collect()
}

/// Returns the accepted addresses, IPv4 first and those with a scope last. The order is the same for each reading.
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
        assert_eq!(Record::peer_of(vec![&record]).map(|peer| peer.addresses().len()), Some(1));
    }
}

/// Returns the record of this node. The error says why the node cannot be announced and what to change.
pub(crate) fn announcement(me: &Me, options: &Mdns) -> Result<ServiceInfo, String> {
    let (port, ips) = published(me, options)?;
    let domain = format!("_{}._sub.{}", label(&me.cluster, &[]), options.domain());
    let txt = txt(me)?;
    let name = instance(me);
    let info = ServiceInfo::new(&domain, &name, &host(me), ips.as_deref().unwrap_or_default(), port, txt.as_slice());
    let info = info.map_err(|e| format!("cannot announce this node: {e}"))?;
    Ok(if ips.is_none() { info.enable_addr_auto() } else { info })
}

/// Returns the port and the addresses to announce. `None` means the current addresses of the interfaces.
fn published(me: &Me, options: &Mdns) -> Result<(u16, Option<Vec<IpAddr>>), String> {
    let sockets: Vec<SocketAddr> = me.addresses.iter().filter_map(|address| address.as_str().parse().ok()).collect();
    let Some(first) = sockets.first() else {
        return Err(format!(
            "cannot announce this node: multicast DNS carries IP addresses and no names, but the node has only {:?}; \
             advertise an IP address of this machine on the network",
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
                "cannot announce this node: it listens on {first}, which no other machine reaches; connect this \
                 machine to a network and set NODE_IP to its address there, or enable loopback \
                 (GROUPCACHE_MDNS_LOOPBACK=1) for processes of one machine"
            )
        } else {
            format!(
                "cannot announce this node: peers do not accept its addresses {ips:?}; listen on a private address, or \
                 enable public addresses (GROUPCACHE_MDNS_PUBLIC_ADDRESSES=1) or the other address family on all nodes"
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
        ("tls", u8::from(me.tls).to_string()),
    ];
    if !me.zone.is_empty() {
        txt.push(("zone", me.zone.to_string()));
    }
    let is_long = |(key, value): &(&str, String)| key.len() + 1 + value.len() > MAX_PROPERTY;
    // Only the zone is a hint, so only the zone may be left out.
    txt.retain(|property| property.0 != "zone" || !is_long(property));
    match txt.iter().find(|property| is_long(property)) {
        Some((key, value)) => Err(format!(
            "cannot announce this node: its {key} has {} bytes, but a TXT record has room for {MAX_PROPERTY} with the \
             key; shorten it",
            value.len()
        )),
        None => Ok(txt),
    }
}

/// Returns the instance name of the node: its id, with a hash of id and cluster unless the cluster is the default.
fn instance(me: &Me) -> String {
    instance_name(me.id.as_str(), &me.cluster)
}

fn instance_name(id: &str, cluster: &str) -> String {
    match cluster {
        DEFAULT_CLUSTER => label(id, &[]),
        // Two clusters on one segment may have nodes of equal ids.
        cluster => label(id, cluster.as_bytes()),
    }
}

/// Returns the host name, which differs for each incarnation so that addresses of two incarnations are not mixed.
fn host(me: &Me) -> String {
    let life = format!("{}\n{}\n{}", me.id, me.cluster, me.incarnation.0);
    format!("groupcache-{:016x}.local.", xxh3_64(life.as_bytes()))
}

/// Returns `name` if it is a valid label and `more` is empty. Otherwise returns its first 40 characters, with invalid
/// ones replaced, and a hash of `name` and `more`.
///
/// DNS ignores case, so capitals would not tell two names apart. The library can neither query for a name with dots or
/// backslashes nor answer for it.
fn label(name: &str, more: &[u8]) -> String {
    let is_good = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_' | ':');
    if more.is_empty() && name.len() < MAX_LABEL && name.chars().all(is_good) {
        return name.to_owned();
    }
    let good = name.to_ascii_lowercase().chars().map(|c| if is_good(c) { c } else { '-' }).take(40).collect::<String>();
    let whole = [name.as_bytes(), b"\n", more].concat();
    format!("{good}-{:016x}", xxh3_64(&whole))
}

/// Returns whether the library can query the network for this instance. The library takes each dot in the name for the
/// end of a label.
pub(crate) fn can_be_asked_for(instance: &str, domain: &str) -> bool {
    instance.strip_suffix(domain).is_some_and(|rest| {
        let label = rest.strip_suffix('.').unwrap_or(rest);
        !label.contains(['.', '\\'])
    })
}

#[cfg(test)]
mod tests;
