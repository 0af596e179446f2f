//! Who a node is: its id, its incarnation, its state, where it listens and what it is allowed to be called.

use std::{borrow::Borrow, env, fmt, net::SocketAddr, str::FromStr, sync::Arc};

use crate::error::{Error, Result};

/// Longest id, cluster or zone name in bytes: that of a DNS name, which is what pods and hosts are called.
pub(crate) const MAX_NAME_BYTES: usize = 253;

/// Highest weight. A peer of weight 16 carries sixteen times the keys of a peer of weight 1; what differs by
/// more should not share a ring.
pub const MAX_WEIGHT: u8 = 16;

/// The name of a peer: stable over restarts, unique in its cluster, and not its address.
///
/// The ring is placed by ids alone, so a pod that comes back under its old name gets its old keys, whatever
/// address it has by then. 1 to 253 bytes, no white space and no control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(Arc<str>);

impl PeerId {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`is_config`](crate::Error::is_config) when the name is empty, longer than 253 bytes, or holds white
    /// space or control characters.
    ///
    /// ```
    /// # use groupcache_core::PeerId;
    /// assert_eq!(PeerId::new("users-0")?.as_str(), "users-0");
    /// assert!(PeerId::new("two words").is_err());
    /// # Ok::<(), groupcache_core::Error>(())
    /// ```
    pub fn new(id: impl AsRef<str>) -> Result<Self> {
        let id = id.as_ref();
        check_name("peer id", id)?;
        Ok(Self(id.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for PeerId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for PeerId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Orders the lives of one id: a node that restarts has a higher incarnation than before.
///
/// It is the wall clock in milliseconds at start, or one more than the highest that was ever heard for the
/// id, whichever is larger; so a clock that was set back orders correctly too. Nothing but this order is
/// ever read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Incarnation(pub u64);

/// What a node says of itself; nobody else can say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeState {
    /// Started, and not yet sure of its peers: it owns keys only while no member is [`Ready`](Self::Ready).
    Joining,
    /// Owns its share of the keys.
    Ready,
    /// Leaving: owns nothing, answers from memory and from loads that run already.
    Draining,
}

/// Where a peer can be reached: `host:port`, with a name, an IPv4 or a bracketed IPv6 address as host.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(Arc<str>);

impl Address {
    /// Checks and takes `host:port`.
    ///
    /// # Errors
    /// [`is_config`](crate::Error::is_config) when there is no host, no port, or a port of 0.
    ///
    /// ```
    /// # use groupcache_core::discovery::Address;
    /// assert!(Address::new("10.0.0.7:7946").is_ok());
    /// assert!(Address::new("[fe80::1]:7946").is_ok());
    /// assert!(Address::new("10.0.0.7").unwrap_err().is_config());
    /// ```
    pub fn new(address: impl AsRef<str>) -> Result<Self> {
        let text = address.as_ref().trim();
        let bad = |why: &str| {
            Error::config(format!("{text:?} is not an address: {why}; write host:port, such as 10.0.0.7:7946"))
        };
        if let Ok(socket) = SocketAddr::from_str(text) {
            return if socket.port() == 0 { Err(bad("the port is 0")) } else { Ok(Self(text.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| bad("there is no port"))?;
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || host.len() > MAX_NAME_BYTES || !host.chars().all(named) {
            return Err(bad("the host is neither a name nor an IP address (IPv6 needs brackets)"));
        }
        match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(Self(text.into())),
            _ => Err(bad("the port is not a number from 1 to 65535")),
        }
    }

    /// The address as `host:port`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Address {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl From<SocketAddr> for Address {
    fn from(socket: SocketAddr) -> Self {
        Self(socket.to_string().into())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a node is called and where it listens.
///
/// Everything has a default: [`Identity::default`] listens on a free port of loopback and is called by that
/// address.
///
/// ```
/// # use groupcache_core::Identity;
/// let me = Identity::new("127.0.0.1:7946".parse()?).with_id("users-0")?.with_cluster("users")?;
/// assert_eq!(me.id().as_str(), "users-0");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Identity {
    id: Option<PeerId>,
    cluster: Arc<str>,
    listen: SocketAddr,
    advertised: Vec<Address>,
    weight: u8,
    zone: Arc<str>,
}

impl Default for Identity {
    fn default() -> Self {
        Self::new(SocketAddr::from(([127, 0, 0, 1], 0)))
    }
}

impl Identity {
    /// A node that listens on `listen`; port 0 takes a free one.
    ///
    /// Its cluster is `default`, its weight 1, its zone empty, and its id its address until
    /// [`with_id`](Self::with_id) says otherwise.
    pub fn new(listen: SocketAddr) -> Self {
        Self { id: None, cluster: "default".into(), listen, advertised: Vec::new(), weight: 1, zone: "".into() }
    }

    /// Reads `NODE_NAME`, `NODE_IP` and `GROUP_PORT`.
    ///
    /// `NODE_IP` is 127.0.0.1 and `GROUP_PORT` is 0 (a free port) where they are unset; the id is `NODE_NAME`, or
    /// `NODE_IP:GROUP_PORT` where the name is unset or is the address itself. `GROUPCACHE_CLUSTER` names
    /// the cluster, `GROUPCACHE_ZONE` the failure domain.
    ///
    /// In Kubernetes the name is `metadata.name` and the address `status.podIP` of the pod. `POD_NAME` and `POD_IP`
    /// mean the same and win, since many manifests call the machine `NODE_NAME` (`spec.nodeName`).
    ///
    /// # Errors
    /// [`is_config`](crate::Error::is_config) naming the variable that cannot be read.
    pub fn from_env() -> Result<Self> {
        for name in VARIABLES {
            if let Err(env::VarError::NotUnicode(_)) = env::var(name) {
                return Err(Error::config(format!("{name} is not UTF-8; set it to plain text, or unset it")));
            }
        }
        Self::from_vars(|name| env::var(name).ok())
    }

    /// As [`from_env`](Self::from_env), from any source of variables.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| var(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let first_of = |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, set(name)?)));
        let (ip_variable, ip) = first_of(["POD_IP", "NODE_IP"]).unwrap_or(("NODE_IP", "127.0.0.1".to_owned()));
        let addr = ip.parse().map_err(|_| {
            Error::config(format!(
                "{ip_variable} is {ip:?}, which is not an IP address; set it to the address that peers dial, such as 10.0.0.7"
            ))
        })?;
        let port = set("GROUP_PORT").unwrap_or_else(|| "0".to_owned());
        let port = port.parse().map_err(|_| {
            Error::config(format!(
                "GROUP_PORT is {port:?}, which is not a port; set it to a number from 1 to 65535, or 0 for a free one"
            ))
        })?;
        let mut me = Self::new(SocketAddr::new(addr, port));
        // A name that is only the address again says nothing that the address does not.
        if let Some((_, name)) = first_of(["POD_NAME", "NODE_NAME"]).filter(|(_, name)| *name != ip) {
            me = me.with_id(name)?;
        }
        if let Some(cluster) = set("GROUPCACHE_CLUSTER") {
            me = me.with_cluster(cluster)?;
        }
        if let Some(zone) = set("GROUPCACHE_ZONE") {
            me = me.with_zone(zone)?;
        }
        Ok(me)
    }

    /// The name of this node; it must be the same after a restart and unique in the cluster.
    pub fn with_id(mut self, id: impl AsRef<str>) -> Result<Self> {
        self.id = Some(PeerId::new(id)?);
        Ok(self)
    }

    /// The cluster that this node belongs to; nodes of other clusters are refused. Default `default`.
    pub fn with_cluster(mut self, cluster: impl AsRef<str>) -> Result<Self> {
        check_name("cluster name", cluster.as_ref())?;
        self.cluster = cluster.as_ref().into();
        Ok(self)
    }

    /// Where peers dial, best first, when that is not the address it listens on (NAT, published ports). At most 8.
    pub fn with_advertised(mut self, addresses: impl IntoIterator<Item = Address>) -> Result<Self> {
        self.advertised = addresses.into_iter().collect();
        if self.advertised.len() > MAX_ADDRESSES {
            return Err(Error::config(format!(
                "{} advertised addresses are more than {MAX_ADDRESSES}; name those that peers dial",
                self.advertised.len()
            )));
        }
        Ok(self)
    }

    /// Share of the keys, relative to the other nodes: 0 to [`MAX_WEIGHT`], default 1. Weight 0 asks others and owns nothing.
    pub fn with_weight(mut self, weight: u8) -> Result<Self> {
        if weight > MAX_WEIGHT {
            return Err(Error::config(format!("a weight of {weight} is more than {MAX_WEIGHT}")));
        }
        self.weight = weight;
        Ok(self)
    }

    /// Failure domain that this node runs in, such as `eu-west-1a`. Default empty.
    pub fn with_zone(mut self, zone: impl AsRef<str>) -> Result<Self> {
        if !zone.as_ref().is_empty() {
            check_name("zone", zone.as_ref())?;
        }
        self.zone = zone.as_ref().into();
        Ok(self)
    }

    /// The name of this node; its address where it was given none.
    pub fn id(&self) -> PeerId {
        self.id.clone().unwrap_or_else(|| PeerId(self.listen.to_string().into()))
    }

    /// The cluster that this node belongs to.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The address that this node listens on.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Where peers dial, best first.
    pub fn addresses(&self) -> Vec<Address> {
        if self.advertised.is_empty() { vec![self.listen.into()] } else { self.advertised.clone() }
    }

    /// Share of the keys, relative to the other nodes.
    pub fn weight(&self) -> u8 {
        self.weight
    }

    /// Failure domain; empty when unknown.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// Whether peers can tell it apart and dial it without its listening address.
    pub(crate) fn is_named_and_advertised(&self) -> bool {
        self.id.is_some() && !self.advertised.is_empty()
    }

    /// Once the listener is bound, a port of 0 has become a real one.
    pub(crate) fn bound_to(&mut self, listen: SocketAddr) {
        self.listen = listen;
    }
}

/// The variables that an identity is read from.
const VARIABLES: [&str; 7] =
    ["POD_NAME", "NODE_NAME", "POD_IP", "NODE_IP", "GROUP_PORT", "GROUPCACHE_CLUSTER", "GROUPCACHE_ZONE"];

/// Most addresses that one peer may have: two families on a few interfaces.
pub(crate) const MAX_ADDRESSES: usize = 8;

pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(Error::config(format!("a {what} has 1 to {MAX_NAME_BYTES} bytes, this one has {}", name.len())));
    }
    if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Error::config(format!("the {what} {name:?} holds white space or control characters")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(vars: &[(&str, &str)]) -> Result<Identity> {
        Identity::from_vars(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn the_id_is_the_name_or_the_address() {
        let me = from(&[("NODE_NAME", "users-0"), ("NODE_IP", "10.0.0.7"), ("GROUP_PORT", "7946")]).unwrap();
        assert_eq!(me.id().as_str(), "users-0");
        let same = from(&[("NODE_NAME", "10.0.0.7"), ("NODE_IP", "10.0.0.7"), ("GROUP_PORT", "7946")]).unwrap();
        assert_eq!(same.id().as_str(), "10.0.0.7:7946");
        assert_eq!(from(&[]).unwrap().listen(), SocketAddr::from(([127, 0, 0, 1], 0)));
    }

    #[test]
    fn a_pod_is_called_by_its_own_name_whatever_the_machine_is_called() {
        let pod = [("POD_NAME", "users-0"), ("POD_IP", "10.0.0.7"), ("GROUP_PORT", "7946")];
        let machine = [("NODE_NAME", "worker-3"), ("NODE_IP", "192.168.0.3")];
        let me = from(&[&pod[..], &machine[..]].concat()).unwrap();
        assert_eq!((me.id().as_str(), me.listen().to_string().as_str()), ("users-0", "10.0.0.7:7946"));
        let me = from(&[("POD_NAME", "10.0.0.7"), ("POD_IP", "10.0.0.7"), ("GROUP_PORT", "7946")]).unwrap();
        assert_eq!(me.id().as_str(), "10.0.0.7:7946", "a name that is the address is none, as ever");
        let empty = from(&[("POD_NAME", ""), ("POD_IP", " "), ("NODE_NAME", "n1"), ("NODE_IP", "::1")]).unwrap();
        assert_eq!((empty.id().as_str(), empty.listen().ip().to_string().as_str()), ("n1", "::1"));
        let zone = from(&[("GROUPCACHE_ZONE", "eu-west-1a")]).unwrap();
        assert_eq!(zone.zone(), "eu-west-1a");
        assert!(from(&[("GROUPCACHE_ZONE", "a b")]).is_err());
        assert!(from(&[("POD_IP", "ten")]).unwrap_err().to_string().contains("POD_IP"));
    }

    #[test]
    fn a_bad_variable_is_named() {
        let ip = from(&[("NODE_IP", "ten")]).unwrap_err();
        assert!(ip.is_config() && ip.to_string().contains("NODE_IP"));
        let port = from(&[("GROUP_PORT", "70000")]).unwrap_err();
        assert!(port.to_string().contains("GROUP_PORT"));
    }

    #[test]
    fn addresses_are_checked() {
        for good in ["10.0.0.7:7946", "[::1]:1", "users-0.users:7946", " users:1 "] {
            assert!(Address::new(good).is_ok(), "{good}");
        }
        for bad in
            ["", "users", "users:", ":7946", "users:0", "users:65536", "::1:7946", "http://users:1", "10.0.0.7:0"]
        {
            assert!(Address::new(bad).unwrap_err().is_config(), "{bad}");
        }
    }

    #[test]
    fn names_are_bounded() {
        assert!(PeerId::new("x".repeat(253)).is_ok());
        for bad in ["", "a b", "a\n", &"x".repeat(254)] {
            assert!(PeerId::new(bad).is_err(), "{bad:?}");
        }
    }
}
