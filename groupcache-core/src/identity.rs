//! Identity of a node: id, incarnation, state, addresses, cluster, weight and zone.

mod names;

use std::{
    borrow::Borrow,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use crate::{
    environment::{Variables, trimmed},
    error::{Error, Result},
    identity::names::{host_error, named},
};

pub(crate) use names::check_name;

/// Maximum weight of a node.
///
/// A node of weight 16 owns 16 times the keys of a node of weight 1. Machines that differ by more should not share a
/// ring.
pub const MAX_WEIGHT: u8 = 16;

/// The id of a node: unique in its cluster, stable over restarts, and independent of addresses.
///
/// The id alone decides about the positions of a node on the ring, so that a pod that returns under its old name owns
/// its old keys at any address.
///
/// Length: 1 to 253 bytes, without white space, control characters and invisible characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(Arc<str>);

impl PeerId {
    /// Creates an id from a name.
    ///
    /// # Errors
    /// [`is_config`](crate::Error::is_config) if the name is empty, longer than 253 bytes, or contains white space,
    /// control characters or invisible characters.
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

    /// Returns the id as text.
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

/// A number that orders the starts of one id: a restarted node has a higher incarnation.
///
/// The number is the wall clock at the start in milliseconds. If discovery has a higher incarnation for the id, the
/// node raises its own to one above it, so that a clock that was set back does not matter. Nodes read only the order of
/// incarnations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Incarnation(pub u64);

/// Node in one incarnation: the one with which its process began, which stays the same when the process raises the
/// incarnation that it announces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Instance {
    pub(crate) id: PeerId,
    pub(crate) incarnation: Incarnation,
}

/// The state of a node, which only the node itself reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeState {
    /// Started, before the first peers are known. A joining node owns keys only while no ready member has a weight
    /// above 0.
    Joining,
    /// In service, with its share of the keys.
    Ready,
    /// Leaving. A draining node owns no keys, unless all members drain. Peers get answers from its memory and from
    /// loads that already run.
    Draining,
}

/// An address at which a node is dialled: `host:port`.
///
/// The host is a DNS name, an IPv4 address, or an IPv6 address in brackets. The port is 1 to 65,535.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(Arc<str>);

impl Address {
    /// Creates an address from `host:port`. White space and invisible characters around it are removed.
    ///
    /// # Errors
    /// [`is_config`](crate::Error::is_config) if the host or the port is missing, the port is not 1 to 65,535, or the
    /// host is neither an IP address nor a name that DNS can hold. Underscores are allowed in names.
    ///
    /// ```
    /// # use groupcache_core::discovery::Address;
    /// assert!(Address::new("10.0.0.7:7946").is_ok());
    /// assert!(Address::new("[fe80::1]:7946").is_ok());
    /// assert!(Address::new("10.0.0.7").unwrap_err().is_config());
    /// ```
    pub fn new(address: impl AsRef<str>) -> Result<Self> {
        let text = trimmed(address.as_ref());
        let bad = |why: &str| {
            Error::config(format!("{text:?} is not an address: {why}; write host:port, such as 10.0.0.7:7946"))
        };
        if let Ok(socket) = SocketAddr::from_str(text) {
            return if socket.port() == 0 { Err(bad("the port is 0")) } else { Ok(Self(text.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| bad("there is no port"))?;
        if !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(bad("the port is not a number from 1 to 65535"));
        }
        host_error(host).map_or_else(|| Ok(Self(text.into())), |why| Err(bad(why)))
    }

    /// Returns the host, an IPv6 address in its brackets, and the port.
    pub(crate) fn host_and_port(&self) -> Option<(&str, u16)> {
        let (host, port) = self.0.rsplit_once(':')?;
        Some((host, port.parse().ok()?))
    }

    /// Returns the address as `host:port`.
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

/// The identity of a node: id, cluster, addresses, weight and zone.
///
/// | setting | default | set with |
/// |---|---|---|
/// | listening address | a free port of 127.0.0.1 | [`new`](Self::new) |
/// | id | the listening address | [`with_id`](Self::with_id) |
/// | cluster | `default` | [`with_cluster`](Self::with_cluster) |
/// | addresses that peers dial | the listening address | [`with_advertised`](Self::with_advertised) |
/// | weight | 1 | [`with_weight`](Self::with_weight) |
/// | zone | none | [`with_zone`](Self::with_zone) |
///
/// [`from_env`](Self::from_env) reads the settings of a process from environment variables.
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
    cluster: Option<Arc<str>>,
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
    /// Creates the identity of a node that listens on `listen`, with the defaults above. Port 0 takes a free port.
    pub fn new(listen: SocketAddr) -> Self {
        Self { id: None, cluster: None, listen, advertised: Vec::new(), weight: 1, zone: "".into() }
    }

    /// Reads an identity from environment variables.
    ///
    /// | variable | meaning | default |
    /// |---|---|---|
    /// | `POD_NAME`, otherwise `NODE_NAME` | id | the listening address |
    /// | `POD_IP`, otherwise `NODE_IP` | IP address to listen on | 127.0.0.1 |
    /// | `GROUP_PORT` | port to listen on | 0, a free port |
    /// | `GROUPCACHE_CLUSTER` | cluster | `default` |
    /// | `GROUPCACHE_ZONE` | zone | none |
    ///
    /// White space and invisible characters around a value are removed, and an empty value counts as unset, as
    /// [`Variables`] describes. A name that equals the IP address counts as unset too.
    ///
    /// In Kubernetes, set the name to `metadata.name` and the IP address to `status.podIP` of the pod. The `POD_`
    /// variables take precedence, because many manifests set `NODE_NAME` to the machine (`spec.nodeName`).
    ///
    /// # Errors
    /// [`is_config`](crate::Error::is_config) if a variable is not UTF-8, the IP address or the port cannot be read, or
    /// a name is not valid.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(&Variables::of_process())
    }

    /// Reads an identity as [`from_env`](Self::from_env) does, from any source of variables.
    ///
    /// # Errors
    /// [`is_config`](crate::Error::is_config) as for [`from_env`](Self::from_env).
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self> {
        Self::from_variables(&Variables::from_fn(var))
    }

    /// Reads an identity as [`from_env`](Self::from_env) does, from a reader of variables.
    ///
    /// # Errors
    /// [`is_config`](crate::Error::is_config) as for [`from_env`](Self::from_env).
    pub fn from_variables(vars: &Variables<'_>) -> Result<Self> {
        let ip = match vars.first(&["POD_IP", "NODE_IP"])? {
            Some((name, _)) => vars.parsed(name, "an IP address that peers dial", "10.0.0.7")?,
            None => None,
        };
        let ip = ip.unwrap_or(IpAddr::from([127, 0, 0, 1]));
        let port = vars.parsed("GROUP_PORT", "a port from 0 to 65535", "7946, or 0 for a free one")?;
        let mut identity = Self::new(SocketAddr::new(ip, port.unwrap_or(0)));
        // A name that equals the IP address would be an id without the port, and is ignored.
        let is_address = |name: &str| name.parse() == Ok(ip);
        if let Some((variable, name)) = vars.first(&["POD_NAME", "NODE_NAME"])?
            && !is_address(&name)
        {
            identity.id = vars.read(variable, |name| PeerId::new(name))?;
        }
        if let Some(cluster) = vars.read("GROUPCACHE_CLUSTER", |cluster| named("cluster name", cluster))? {
            identity.cluster = Some(cluster);
        }
        if let Some(zone) = vars.read("GROUPCACHE_ZONE", |zone| named("zone", zone))? {
            identity.zone = zone;
        }
        Ok(identity)
    }

    /// Sets the id of the node, which must be unique in the cluster and the same after a restart. Default: the
    /// listening address.
    ///
    /// # Errors
    /// [`is_config`](crate::Error::is_config) if the id is not valid, as for [`PeerId::new`].
    pub fn with_id(mut self, id: impl AsRef<str>) -> Result<Self> {
        self.id = Some(PeerId::new(id)?);
        Ok(self)
    }

    /// Sets the cluster of the node. Nodes of different clusters refuse each other. Default: `default`.
    ///
    /// # Errors
    /// [`is_config`](crate::Error::is_config) if the name is not valid. The rules are those of [`PeerId::new`].
    pub fn with_cluster(mut self, cluster: impl AsRef<str>) -> Result<Self> {
        self.cluster = Some(named("cluster name", cluster.as_ref())?);
        Ok(self)
    }

    /// Sets the addresses that peers dial, best first, for a node behind NAT or with a published port. Maximum: 8.
    /// Default: the listening address.
    ///
    /// # Errors
    /// [`is_config`](crate::Error::is_config) if there are more than 8 addresses.
    pub fn with_advertised(mut self, addresses: impl IntoIterator<Item = Address>) -> Result<Self> {
        self.advertised = addresses.into_iter().collect();
        if self.advertised.len() > MAX_ADDRESSES {
            return Err(Error::config(format!(
                "{} advertised addresses are more than the maximum of {MAX_ADDRESSES}; keep the addresses that peers dial",
                self.advertised.len()
            )));
        }
        Ok(self)
    }

    /// Sets the share of the keys relative to other nodes. Default: 1. Range: 0 to [`MAX_WEIGHT`].
    ///
    /// A node of weight 0 gets its values from other nodes. The node owns keys only while no joining or ready member
    /// has a weight above 0.
    ///
    /// # Errors
    /// [`is_config`](crate::Error::is_config) if the weight is above [`MAX_WEIGHT`].
    pub fn with_weight(mut self, weight: u8) -> Result<Self> {
        if weight > MAX_WEIGHT {
            return Err(Error::config(format!("the weight {weight} is above the maximum; choose 0 to {MAX_WEIGHT}")));
        }
        self.weight = weight;
        Ok(self)
    }

    /// Sets the zone (failure domain) of the node, such as `eu-west-1a`. Default: none. An empty text unsets the zone.
    ///
    /// # Errors
    /// [`is_config`](crate::Error::is_config) if the zone is not valid. The rules are those of [`PeerId::new`].
    pub fn with_zone(mut self, zone: impl AsRef<str>) -> Result<Self> {
        if !zone.as_ref().is_empty() {
            check_name("zone", zone.as_ref())?;
        }
        self.zone = zone.as_ref().into();
        Ok(self)
    }

    /// Returns the id of the node, or its listening address if no id is set.
    pub fn id(&self) -> PeerId {
        self.id.clone().unwrap_or_else(|| PeerId(self.listen.to_string().into()))
    }

    /// Returns the cluster of the node.
    pub fn cluster(&self) -> &str {
        self.cluster.as_deref().unwrap_or(DEFAULT_CLUSTER)
    }

    /// Returns whether the cluster was chosen, be it `default`. Providers over a medium that several services share
    /// ask for a choice.
    pub fn has_chosen_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    /// Returns the listening address of the node.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Returns the addresses that peers dial, best first.
    pub fn addresses(&self) -> Vec<Address> {
        if self.advertised.is_empty() { vec![self.listen.into()] } else { self.advertised.clone() }
    }

    /// Replaces the IP address of the listening address.
    #[doc(hidden)]
    pub fn listening_on(mut self, ip: IpAddr) -> Self {
        self.listen.set_ip(ip);
        self
    }

    /// Returns the share of the keys relative to other nodes.
    pub fn weight(&self) -> u8 {
        self.weight
    }

    /// Returns the zone (failure domain), or an empty text if no zone is set.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// Returns whether the node has an id and addresses that do not depend on its listening address.
    pub(crate) fn is_named_and_advertised(&self) -> bool {
        self.id.is_some() && !self.advertised.is_empty()
    }

    /// Replaces the listening address by the bound address, in which port 0 has become a real port.
    pub(crate) fn bound_to(&mut self, listen: SocketAddr) {
        self.listen = listen;
    }
}

/// Cluster of a node for which none was chosen.
const DEFAULT_CLUSTER: &str = "default";

/// Maximum number of addresses of one peer: two address families on a few interfaces.
pub(crate) const MAX_ADDRESSES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn from(vars: &[(&str, &str)]) -> Result<Identity> {
        Identity::from_vars(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    /// Checks that the id is the name, or the listening address if the name is unset or equals the IP address.
    #[test]
    fn id_defaults_to_listening_address() {
        let me = from(&[("NODE_NAME", "users-0"), ("NODE_IP", "10.0.0.7"), ("GROUP_PORT", "7946")]).unwrap();
        assert_eq!(me.id().as_str(), "users-0");
        let same = from(&[("NODE_NAME", "10.0.0.7"), ("NODE_IP", "10.0.0.7"), ("GROUP_PORT", "7946")]).unwrap();
        assert_eq!(same.id().as_str(), "10.0.0.7:7946");
        assert_eq!(from(&[]).unwrap().listen(), SocketAddr::from(([127, 0, 0, 1], 0)));
    }

    /// Checks that the `POD_` variables take precedence over the `NODE_` variables, and that empty values count as
    /// unset.
    #[test]
    fn pod_variables_take_precedence_over_node_variables() {
        let pod = [("POD_NAME", "users-0"), ("POD_IP", "10.0.0.7"), ("GROUP_PORT", "7946")];
        let machine = [("NODE_NAME", "worker-3"), ("NODE_IP", "192.168.0.3")];
        let me = from(&[&pod[..], &machine[..]].concat()).unwrap();
        assert_eq!((me.id().as_str(), me.listen().to_string().as_str()), ("users-0", "10.0.0.7:7946"));
        let me = from(&[("POD_NAME", "10.0.0.7"), ("POD_IP", "10.0.0.7"), ("GROUP_PORT", "7946")]).unwrap();
        assert_eq!(me.id().as_str(), "10.0.0.7:7946", "a name that equals the IP address is ignored");
        let empty = from(&[("POD_NAME", ""), ("POD_IP", " "), ("NODE_NAME", "n1"), ("NODE_IP", "::1")]).unwrap();
        assert_eq!((empty.id().as_str(), empty.listen().ip().to_string().as_str()), ("n1", "::1"));
        let zone = from(&[("GROUPCACHE_ZONE", "eu-west-1a")]).unwrap();
        assert_eq!(zone.zone(), "eu-west-1a");
        assert!(from(&[("GROUPCACHE_ZONE", "a b")]).is_err());
        assert!(from(&[("POD_IP", "ten")]).unwrap_err().to_string().contains("POD_IP"));
    }

    #[test]
    fn invalid_variable_is_named_in_error() {
        let ip = from(&[("NODE_IP", "ten")]).unwrap_err();
        assert!(ip.is_config() && ip.to_string().contains("NODE_IP"));
        let port = from(&[("GROUP_PORT", "70000")]).unwrap_err();
        assert!(port.to_string().contains("GROUP_PORT"));
    }

    #[test]
    fn address_without_valid_host_and_port_is_rejected() {
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
    fn host_that_dns_cannot_hold_is_rejected() {
        let label = "x".repeat(63);
        for good in ["a.b.", "_group._tcp.users", "my_host", "users-0", &label, "7", "a1", "1.example"] {
            assert!(Address::new(format!("{good}:1")).is_ok(), "{good}");
        }
        let long = "x".repeat(64);
        for bad in ["a..b", "-", "-a", "a-", "a.-b.c", ".", ".a", "a..", &long, "10.0.0.256", "10.0.0"] {
            assert!(Address::new(format!("{bad}:1")).unwrap_err().is_config(), "{bad}");
        }
    }

    /// Checks that invisible characters around a variable are removed, and that others are an error with the variable
    /// and the character.
    #[test]
    fn invisible_character_is_trimmed_or_an_error() {
        let me = from(&[("NODE_NAME", "\u{feff}users-0\u{200b}\r"), ("GROUPCACHE_CLUSTER", "\u{feff}users")]).unwrap();
        assert_eq!((me.id().as_str(), me.cluster()), ("users-0", "users"));
        for (name, value) in [("NODE_NAME", "users\u{200b}-0"), ("GROUPCACHE_CLUSTER", "us\u{feff}ers")] {
            let error = from(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("U+"), "{error}");
        }
        assert!(PeerId::new("a\u{202e}b").is_err());
        assert!(PeerId::new("\u{2603}\u{fe0f}").is_ok(), "a snowman is visible");
    }

    #[test]
    fn chosen_cluster_is_told_from_the_default() {
        assert!(!from(&[]).unwrap().has_chosen_cluster());
        let chosen = from(&[("GROUPCACHE_CLUSTER", "default")]).unwrap();
        assert!(chosen.has_chosen_cluster() && chosen.cluster() == "default");
    }

    #[test]
    fn invalid_peer_id_is_rejected() {
        assert!(PeerId::new("x".repeat(253)).is_ok());
        for bad in ["", "a b", "a\n", &"x".repeat(254)] {
            assert!(PeerId::new(bad).is_err(), "{bad:?}");
        }
    }
}
