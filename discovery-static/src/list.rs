//! Provider of a list of peers that only the program itself changes, and lists as text.

use std::{error::Error, fmt, str::FromStr, sync::Arc};

use groupcache_core::{
    PeerId, async_trait,
    discovery::{Address, Peer, PeerSet, Provider, ProviderContext, ProviderError, Signal, Trust},
    environment::trimmed,
};
use tokio::sync::watch;

/// Provider of a list of peers that only the program itself changes.
///
/// Peers are members (`id@host:port`) or targets to dial (`host:port`). The Hello that answers at a target gives the
/// id. Prefer members, because a peer that is down when a node starts is then known by its id. Clones share one list,
/// so that one `Static` serves several nodes of a test. Default: the empty list, with which the node serves alone.
#[derive(Clone, Debug, Default)]
pub struct Static {
    handle: Handle,
}

impl Static {
    /// Returns a provider of peers of either kind.
    pub fn new(peers: impl IntoIterator<Item = Peer>) -> Self {
        let this = Self::default();
        this.handle.set(peers);
        this
    }

    /// Returns a provider of members.
    ///
    /// ```
    /// # use discovery_static::Static;
    /// # use groupcache_core::{discovery::Address, PeerId};
    /// let peers = Static::members([(PeerId::new("a")?, Address::new("10.0.0.7:7946")?)]);
    /// # Ok::<(), groupcache_core::Error>(())
    /// ```
    pub fn members(members: impl IntoIterator<Item = (PeerId, Address)>) -> Self {
        Self::new(members.into_iter().map(|(id, address)| Peer::member(id, [address])))
    }

    /// Returns a handle that changes the list, at any time and from any thread.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

#[async_trait]
impl Provider for Static {
    fn name(&self) -> &str {
        "static"
    }

    fn trust(&self) -> Trust {
        Trust::Authority
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        let mut peers = self.handle.peers.subscribe();
        loop {
            cx.publish(PeerSet::complete(peers.borrow_and_update().clone()));
            tokio::select! {
                biased; // a fixed order makes a simulation repeatable
                // No error can occur, because this provider holds the sender.
                changed = peers.changed() => changed?,
                // A resolve request is answered with the same list, which confirms that other peers are gone.
                signal = cx.next() => if signal == Signal::Leaving { return Ok(()) },
            }
        }
    }
}

/// Handle that changes the peers of a [`Static`] while nodes run on it.
///
/// Changes take effect at once and never wait. A slow node sees the latest list only. A peer that is removed leaves the
/// ring after a grace of some seconds, because a list may be wrong, and a peer that answers is present.
#[derive(Clone, Debug, Default)]
pub struct Handle {
    peers: Arc<watch::Sender<Vec<Peer>>>,
}

impl Handle {
    /// Replaces the list.
    pub fn set(&self, peers: impl IntoIterator<Item = Peer>) {
        self.peers.send_replace(peers.into_iter().collect());
    }

    /// Adds a peer. A member that is listed under the same id is replaced.
    pub fn add(&self, peer: Peer) {
        self.peers.send_modify(|peers| {
            peers.retain(|known| *known != peer && (known.id().is_none() || known.id() != peer.id()));
            peers.push(peer);
        });
    }

    /// Removes the member with that id. Returns whether there was one.
    pub fn remove(&self, id: &PeerId) -> bool {
        self.remove_if(|peer| peer.id() == Some(id))
    }

    /// Removes every peer that is listed at that address, with or without an id. Returns whether there was one.
    pub fn remove_at(&self, address: &Address) -> bool {
        self.remove_if(|peer| peer.addresses().contains(address))
    }

    /// Returns the current list.
    pub fn peers(&self) -> Vec<Peer> {
        self.peers.borrow().clone()
    }

    fn remove_if(&self, gone: impl Fn(&Peer) -> bool) -> bool {
        self.peers.send_if_modified(|peers| {
            let before = peers.len();
            peers.retain(|peer| !gone(peer));
            peers.len() < before
        })
    }
}

/// Reads a list as text: `host:port` or `id@host:port`, separated by commas.
///
/// White space around an item is ignored, and so is an empty item. An empty text is an empty list.
///
/// ```
/// # use discovery_static::Static;
/// let peers: Static = "127.0.0.1:7001,b@127.0.0.1:7002".parse()?;
/// assert_eq!(peers.handle().peers().len(), 2);
/// # Ok::<(), discovery_static::ParseError>(())
/// ```
impl FromStr for Static {
    type Err = ParseError;

    fn from_str(list: &str) -> Result<Self, ParseError> {
        let items = list.split(',').map(trimmed).filter(|item| !item.is_empty());
        items.map(peer).collect::<Result<Vec<_>, _>>().map(Self::new)
    }
}

pub(crate) fn peer(item: &str) -> Result<Peer, ParseError> {
    let parsed = match item.rsplit_once('@') {
        None => Peer::at(item),
        Some((id, address)) => PeerId::new(id).and_then(|id| Ok(Peer::member(id, [Address::new(address)?]))),
    };
    parsed.map_err(|cause| ParseError { item: item.to_owned(), is_name: false, cause: Some(cause) })
}

/// Error of an item in a list that cannot be read. The source of the error is the reason.
#[derive(Clone, Debug)]
pub struct ParseError {
    item: String,
    is_name: bool,
    cause: Option<groupcache_core::Error>,
}

#[cfg(feature = "dns")]
impl ParseError {
    /// Returns the error of an item in a list of DNS names.
    pub(crate) fn name(item: &str, cause: Option<groupcache_core::Error>) -> Self {
        Self { item: item.to_owned(), is_name: true, cause }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_name {
            return write!(
                f,
                "{:?} is not a DNS name; write dns+host:port or dnssrv+name, separated by commas",
                self.item
            );
        }
        write!(f, "{:?} is not a peer; write host:port or id@host:port, separated by commas", self.item)
    }
}

impl Error for ParseError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(|cause| cause as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &str) -> Vec<Peer> {
        list.parse::<Static>().unwrap().handle().peers()
    }

    fn member(id: &str, address: &str) -> Peer {
        Peer::member(PeerId::new(id).unwrap(), [Address::new(address).unwrap()])
    }

    #[test]
    fn list_has_members_and_addresses() {
        let peers = parsed("127.0.0.1:7001, b@127.0.0.1:7002,c@[::1]:7003 ,users-3.users:7004");
        let expected = [
            Peer::at("127.0.0.1:7001").unwrap(),
            member("b", "127.0.0.1:7002"),
            member("c", "[::1]:7003"),
            Peer::at("users-3.users:7004").unwrap(),
        ];
        assert_eq!(peers, expected);
    }

    #[test]
    fn id_may_hold_an_at_sign() {
        assert_eq!(parsed("a@b@127.0.0.1:7001"), [member("a@b", "127.0.0.1:7001")]);
    }

    #[test]
    fn empty_list_and_empty_items_are_no_peers() {
        assert_eq!(parsed(""), []);
        assert_eq!(parsed(" , ,"), []);
        assert_eq!(parsed("a@127.0.0.1:7001,").len(), 1);
    }

    #[test]
    fn invalid_item_is_named_with_its_cause() {
        let bad = [
            ("nonsense", "no port"),
            ("b@nonsense", "no port"),
            ("b@127.0.0.1:0", "port is 0"),
            ("127.0.0.1:99999", "1 to 65535"),
            ("@127.0.0.1:7001", "peer id"),
            ("two words@127.0.0.1:7001", "white space"),
            ("127.0.0.1:7001 127.0.0.1:7002", "neither a name"),
            ("users..example:7001", "is empty"),
            ("b@-users:7001", "hyphen"),
            ("10.0.0.256:7001", "complete IP address"),
        ];
        for (item, why) in bad {
            let error = format!("a@127.0.0.1:7000,{item}").parse::<Static>().unwrap_err();
            assert!(error.to_string().contains(&format!("{item:?}")), "{error}");
            assert!(error.source().unwrap().to_string().contains(why), "{item}: {:?}", error.source());
        }
    }

    #[test]
    fn handle_changes_the_list_of_all_clones() {
        let peers = Static::members([(PeerId::new("a").unwrap(), Address::new("10.0.0.1:1").unwrap())]);
        let handle = peers.clone().handle();
        handle.add(member("b", "10.0.0.2:1"));
        handle.add(Peer::at("10.0.0.3:1").unwrap());
        handle.add(Peer::at("10.0.0.3:1").unwrap());
        assert_eq!(peers.handle().peers().len(), 3, "an address is listed once");

        handle.add(member("a", "10.0.0.9:1"));
        assert_eq!(peers.handle().peers().len(), 3, "an id is listed once");
        assert!(peers.handle().peers().contains(&member("a", "10.0.0.9:1")), "at its new address");

        assert!(handle.remove(&PeerId::new("b").unwrap()));
        assert!(!handle.remove(&PeerId::new("b").unwrap()), "the member is removed already");
        assert!(handle.remove_at(&Address::new("10.0.0.3:1").unwrap()));
        assert_eq!(peers.handle().peers(), [member("a", "10.0.0.9:1")]);
        handle.set([]);
        assert_eq!(peers.handle().peers(), []);
    }
}
