//! Provider of peers from DNS names, which are resolved again and again.

use std::{collections::BTreeSet, net::SocketAddr, str::FromStr, time::Duration};

use groupcache_core::{
    async_trait,
    discovery::{Address, Health, Peer, PeerSet, Provider, ProviderContext, ProviderError, Signal, Trust},
    environment::trimmed,
};
use hickory_resolver::proto::rr::Name;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::{
    found::{Early, Found},
    list::ParseError,
    lookup::{Resolver, Sought},
};

/// Minimum time between two resolutions of a name, whatever the time to live of its records.
const SHORTEST: Duration = Duration::from_secs(5);
/// Maximum time between two resolutions of a name, whatever the time to live of its records.
const LONGEST: Duration = Duration::from_secs(30);
/// Minimum time between a resolution and the next one for a node that doubts a set.
const ASKED: Duration = Duration::from_secs(1);

/// Number of early answers that have not been read. More are dropped, because the end of the round has them all.
const EARLY_ANSWERS: usize = 64;

/// Provider of the peers that DNS names resolve to.
///
/// - `dns+host:port` stands for each address (A and AAAA) of the host, at that port. An IP address in place of the host
///   stands for itself. An example is a headless
///   Kubernetes service, which needs no permission to ask the API server (`dns+users.default.svc.cluster.local:7946`).
/// - `dnssrv+name` stands for each target of the SRV records, at its own port
///   (`dnssrv+_group._tcp.users.default.svc.cluster.local`).
///
/// A name is resolved again when its records expire. Default: after 5 s at the earliest and 30 s at the latest, less up
/// to 20 % of jitter.
///
/// **A failure is not an empty answer.** NXDOMAIN, no records, SERVFAIL and time-outs keep the last addresses of that
/// name and of that kind of record, because a name server that is restarted must not remove the cluster. A kind that is
/// answered late or never does not delay the addresses of the other kind. Addresses that an answer lacks are removed once
/// all names are answered, or have failed. (If a host has
/// lost all addresses of one kind, and has some of the other, the second such answer is believed.) Therefore a service
/// that has lost its last pod keeps its addresses until there are others, and nodes notice by themselves that no peer
/// answers there. Only a node that knows no addresses yet takes NXDOMAIN or no records as an empty set, because
/// otherwise the first pods of a service would wait for each other. (`publishNotReadyAddresses: true` lets peers find
/// each other before they are ready.)
///
/// Addresses are targets to dial. The Hello of the peer at an address gives its id, and shows that two addresses belong
/// to one peer, or to the node itself. The name servers are those of the system, and so is the search list for names
/// without a dot at their end. If a name of the search list cannot be asked for, no other name of that list is taken in
/// its place.
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
    trust: Trust,
}

/// Reads names as text, separated by commas. White space around them is ignored.
impl FromStr for Dns {
    type Err = ParseError;

    fn from_str(list: &str) -> Result<Self, ParseError> {
        let items = list.split(',').map(trimmed).filter(|item| !item.is_empty());
        let names = items.map(sought).collect::<Result<Vec<_>, _>>()?;
        if names.is_empty() {
            return Err(ParseError::name(list, None));
        }
        Ok(Self {
            names,
            name_server: None,
            search: Vec::new(),
            shortest: SHORTEST,
            longest: LONGEST,
            trust: Trust::Hints,
        })
    }
}

impl Dns {
    /// Asks this name server only, over UDP and TCP. Default: the name servers of the system.
    pub fn name_server(mut self, address: SocketAddr) -> Self {
        self.name_server = Some(address);
        self
    }

    /// Adds a domain to the search list, for names that [`name_server`](Self::name_server) is asked for. Default: none.
    #[doc(hidden)]
    pub fn search(mut self, domain: &str) -> Self {
        self.search.extend(domain.parse::<Name>());
        self
    }

    /// Sets the minimum and the maximum time between two resolutions of a name. Default: 5 s and 30 s. Range: at least
    /// 50 ms, and the maximum is at least the minimum.
    pub fn between(mut self, shortest: Duration, longest: Duration) -> Self {
        self.shortest = shortest.max(Duration::from_millis(50));
        self.longest = longest.max(self.shortest);
        self
    }
}

impl Dns {
    /// Sets the trust in the answers. Default: [`Trust::Hints`], because an answer may leave out addresses that exist: a
    /// cache is old, a server answers with a part, or a pod is not ready. [`Trust::Authority`] suits a zone that names
    /// every node, with name servers that are trusted: members that are not resolved then leave although their
    /// connection is alive.
    pub fn trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }
}

fn sought(item: &str) -> Result<Sought, ParseError> {
    if let Some(name) = item.strip_prefix("dnssrv+") {
        // A service name is checked as an address, with a port behind it.
        let checked = Address::new(format!("{name}:1"));
        return checked.map(|_| Sought::Services(name.to_owned())).map_err(|e| ParseError::name(item, Some(e)));
    }
    let Some(place) = item.strip_prefix("dns+") else { return Err(ParseError::name(item, None)) };
    let address = Address::new(place).map_err(|e| ParseError::name(item, Some(e)))?;
    if let Ok(literal) = address.as_str().parse() {
        return Ok(Sought::Literal(literal));
    }
    let host_and_port = address.as_str().rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = host_and_port.ok_or_else(|| ParseError::name(item, None))?;
    Ok(Sought::Hosts(host.to_owned(), port))
}

#[async_trait]
impl Provider for Dns {
    fn name(&self) -> &str {
        "dns"
    }

    fn trust(&self) -> Trust {
        self.trust
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        let me = cx.me();
        let mut rng = fastrand::Rng::with_seed(me.id.as_str().bytes().fold(me.incarnation.0, |seed, byte| {
            seed.wrapping_mul(31).wrapping_add(u64::from(byte)) // nodes that start together resolve at different times
        }));
        let mut resolver = Resolver::new(self.name_server, &self.search);
        let mut last: Vec<Option<Found>> = vec![None; self.names.len()];
        let mut published: Option<BTreeSet<Address>> = None;
        let mut said = None;
        let mut is_asked = false;
        loop {
            let looked = Instant::now();
            let round = {
                let (early, mut answers) = mpsc::channel(EARLY_ANSWERS);
                let mut so_far = last.clone();
                let mut round = std::pin::pin!(resolver.round(&self.names, &mut last, &early));
                loop {
                    tokio::select! {
                        biased;
                        round = &mut round => break round,
                        Some(answer) = answers.recv() => {
                            so_far = with_early(so_far, answer);
                            publish_more(&cx, &so_far, &mut published);
                        }
                        signal = cx.next() => match signal {
                            Signal::Leaving => return Ok(()),
                            // Answered at the end of the round, because the node takes the answer as a confirmation.
                            Signal::Resolve(_) => is_asked = true,
                            Signal::MeChanged => {}
                        },
                    }
                }
            };
            publish(&cx, &last, addresses(&last), &mut published, is_asked && !round.is_failed);
            let health = match &round.problem {
                None => Health::Connected,
                Some(why) => Health::Stale(why.clone()),
            };
            if said.as_ref() != Some(&health) {
                cx.report(health.clone());
                said = Some(health);
            }
            if round.problem.is_some() {
                // The name servers of the system may have changed.
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

/// Adds an early answer to what is known.
fn with_early(mut known: Vec<Option<Found>>, answer: Early) -> Vec<Option<Found>> {
    if let Some(found) = known.get_mut(answer.name) {
        found.get_or_insert_default().take_early(answer);
    }
    known
}

/// Returns all known addresses.
fn addresses(known: &[Option<Found>]) -> BTreeSet<Address> {
    known.iter().flatten().flat_map(Found::addresses).collect()
}

/// Publishes the addresses that early answers have added. The answers that are still to come may list the addresses
/// that an early one lacks, so that none is removed before the end of the round.
fn publish_more(cx: &ProviderContext, so_far: &[Option<Found>], published: &mut Option<BTreeSet<Address>>) {
    let mut all = addresses(so_far);
    all.extend(published.iter().flatten().cloned());
    publish(cx, so_far, all, published, false);
}

/// Publishes a set of addresses, as a complete set once each name has been resolved. An unchanged set is published if it
/// is an answer to the node.
fn publish(
    cx: &ProviderContext,
    known: &[Option<Found>],
    all: BTreeSet<Address>,
    published: &mut Option<BTreeSet<Address>>,
    is_answer: bool,
) {
    let peers = || all.iter().filter_map(|address| Peer::at(address).ok()).collect();
    if known.iter().any(Option::is_none) {
        if !all.is_empty() {
            cx.publish(PeerSet::partial(peers()));
        }
    } else if is_answer || published.as_ref() != Some(&all) {
        cx.publish(PeerSet::complete(peers()));
        *published = Some(all);
    }
}
