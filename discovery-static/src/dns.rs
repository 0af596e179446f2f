//! Peers from DNS names that are resolved again and again.

use std::{collections::BTreeSet, net::SocketAddr, str::FromStr, time::Duration};

use groupcache_core::{Address, Health, Peer, PeerSet, Provider, ProviderContext, ProviderError, Signal, async_trait};
use hickory_resolver::proto::rr::Name;
use tokio::time::{Instant, timeout_at};

use crate::{
    list::ParseError,
    lookup::{Found, Resolver, Sought},
};

/// Between which times a name is resolved again, whatever its records say of their time to live.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(30);
/// A node that doubts a set is not answered more often than this.
const ASKED: Duration = Duration::from_secs(1);

/// A provider whose peers are what DNS names resolve to.
///
/// - `dns+host:port` is each address (A and AAAA) of the host, at that port: a headless Kubernetes service, without any
///   permission to ask the API server (`dns+users.default.svc.cluster.local:7946`).
/// - `dnssrv+name` is each target of the SRV records, at its own port (`dnssrv+_group._tcp.users.default.svc.cluster.local`).
///
/// A name is resolved again when its records expire, but not more often than every 5 s nor less often than every 30 s.
/// **No answer is no news**: NXDOMAIN, no records, SERVFAIL and time-outs keep the last addresses of that name and of
/// that kind of record, for a name server that is restarted must not take the cluster with it. (That a host has no more
/// addresses of one kind, while it has some of the other, is believed when it is said twice.) So a service that has
/// lost its last pod keeps its addresses until there are others; nodes notice by themselves that nobody answers there.
/// Only a node that knows of nobody yet takes NXDOMAIN for what it says, or the first pods of a service would wait for
/// each other. (`publishNotReadyAddresses: true` lets peers find each other before they are ready.)
///
/// Addresses are places to dial: the Hello tells who is there, and that two of them are one peer. A node finds out
/// that one of them is itself. The name servers are those of the system, and so is the search list for names without a
/// dot at their end; when one of the names that may be meant cannot be asked for, no other is taken for it.
///
/// ```no_run
/// use discovery_static::Dns;
/// use groupcache_core::{Identity, Node};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let peers: Dns = "dns+users.default.svc.cluster.local:7946".parse()?;
/// let node = Node::builder().identity(Identity::from_env()?).provider(peers).start().await?;
/// # node.shutdown().await?; Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Dns {
    names: Vec<Sought>,
    name_server: Option<SocketAddr>,
    search: Vec<Name>,
    shortest: Duration,
    longest: Duration,
}

/// Reads names as text, separated by commas; white space around them is ignored.
impl FromStr for Dns {
    type Err = ParseError;

    fn from_str(list: &str) -> Result<Self, ParseError> {
        let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
        let names = items.map(sought).collect::<Result<Vec<_>, _>>()?;
        if names.is_empty() {
            return Err(ParseError::name(list, None));
        }
        Ok(Self { names, name_server: None, search: Vec::new(), shortest: SHORTEST, longest: LONGEST })
    }
}

impl Dns {
    /// Asks this name server only, over UDP and TCP, instead of those of the system.
    pub fn name_server(mut self, address: SocketAddr) -> Self {
        self.name_server = Some(address);
        self
    }

    /// Where names may be that this name server is asked for, as in the system's search list; none by default.
    #[doc(hidden)]
    pub fn search(mut self, domain: &str) -> Self {
        self.search.extend(domain.parse::<Name>());
        self
    }

    /// Between which times a name is resolved again; default 5 s and 30 s.
    pub fn between(mut self, shortest: Duration, longest: Duration) -> Self {
        self.shortest = shortest.max(Duration::from_millis(50));
        self.longest = longest.max(self.shortest);
        self
    }
}

fn sought(item: &str) -> Result<Sought, ParseError> {
    if let Some(name) = item.strip_prefix("dnssrv+") {
        // A name has the form of an address without its port.
        let checked = Address::new(format!("{name}:1"));
        return checked.map(|_| Sought::Services(name.to_owned())).map_err(|e| ParseError::name(item, Some(e)));
    }
    let Some(place) = item.strip_prefix("dns+") else { return Err(ParseError::name(item, None)) };
    let address = Address::new(place).map_err(|e| ParseError::name(item, Some(e)))?;
    let host_and_port = address.as_str().rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = host_and_port.ok_or_else(|| ParseError::name(item, None))?;
    Ok(Sought::Hosts(host.to_owned(), port))
}

#[async_trait]
impl Provider for Dns {
    fn name(&self) -> &str {
        "dns"
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        let me = cx.me();
        let mut rng = fastrand::Rng::with_seed(me.id.as_str().bytes().fold(me.incarnation.0, |seed, byte| {
            seed.wrapping_mul(31).wrapping_add(u64::from(byte)) // nodes that start together look at different times
        }));
        let mut resolver = Resolver::new(self.name_server, &self.search);
        let mut last: Vec<Option<Found>> = vec![None; self.names.len()];
        let mut published: Option<BTreeSet<Address>> = None;
        let mut said = None;
        let mut is_asked = false;
        loop {
            let looked = Instant::now();
            let round = tokio::select! {
                biased;
                round = resolver.round(&self.names, &mut last) => round,
                () = cx.leaving() => return Ok(()),
            };
            self.publish(&cx, &last, &mut published, is_asked && round.problem.is_none());
            let health = match &round.problem {
                None => Health::Connected,
                Some(why) => Health::Stale(why.clone()),
            };
            if said.as_ref() != Some(&health) {
                cx.report(health.clone());
                said = Some(health);
            }
            if round.problem.is_some() {
                // The system's name servers may be others by now.
                resolver = Resolver::new(self.name_server, &self.search);
            }
            let ttl = round.ttl.unwrap_or(self.shortest).clamp(self.shortest, self.longest);
            let again = looked + ttl.mul_f64(0.8 + 0.2 * rng.f64());
            is_asked = loop {
                match timeout_at(again, cx.next()).await {
                    Ok(Signal::Leaving) => return Ok(()),
                    Ok(Signal::Resolve(_)) => {
                        let pause = timeout_at((looked + ASKED.min(self.shortest)).min(again), cx.leaving());
                        if pause.await.is_ok() {
                            return Ok(());
                        }
                        break true;
                    }
                    Ok(Signal::MeChanged) => {}
                    Err(_) => break false,
                }
            };
        }
    }
}

impl Dns {
    /// Everyone who is known, complete once each name has been resolved.
    fn publish(
        &self,
        cx: &ProviderContext,
        last: &[Option<Found>],
        published: &mut Option<BTreeSet<Address>>,
        is_answer: bool,
    ) {
        let all: BTreeSet<Address> = last.iter().flatten().flat_map(Found::addresses).collect();
        let peers = || all.iter().filter_map(|address| Peer::at(address).ok()).collect();
        if last.iter().any(Option::is_none) {
            if !all.is_empty() {
                cx.publish(PeerSet::partial(peers()));
            }
        } else if is_answer || published.as_ref() != Some(&all) {
            cx.publish(PeerSet::complete(peers()));
            *published = Some(all);
        }
    }
}
