//! Questions to name servers, and what their answers change.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use groupcache_core::Address;
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RData, RecordType},
    system_conf::read_system_conf,
};

/// How long one question may take, and how often it is asked.
const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;
/// Targets of SRV records that are resolved at the same time, and at most.
const AT_ONCE: usize = 16;
const MAX_TARGETS: usize = 2_000;

/// A name that is resolved.
#[derive(Clone, Debug)]
pub(crate) enum Sought {
    /// The addresses of a host, with a port.
    Hosts(String, u16),
    /// The targets of SRV records.
    Services(String),
}

/// What is known of a name: of each host its addresses of each kind, and the ports there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found(BTreeMap<String, Host>);

#[derive(Clone, Debug, Default)]
struct Host {
    v4: Kind,
    v6: Kind,
    ports: Vec<u16>,
}

/// The addresses of one kind.
#[derive(Clone, Debug, Default)]
struct Kind {
    ips: Vec<IpAddr>,
    /// The last answer was that there are none.
    is_doubted: bool,
}

impl Found {
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

/// How a round went.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// The shortest time to live of all records.
    pub(crate) ttl: Option<Duration>,
    /// What did not answer, and what is done about it.
    pub(crate) problem: Option<String>,
}

/// An answer to one question.
enum Answer<T> {
    Records(Vec<T>, Duration),
    /// The name server says that there are none.
    None,
    Failed(String),
}

pub(crate) struct Resolver(Result<System, String>);

struct System {
    resolver: TokioResolver,
    search: Search,
}

/// Names that are not complete, which is to say without a dot at their end.
struct Search {
    /// They may be below each of these.
    domains: Vec<Name>,
    /// With so many dots in them they are more likely to be complete.
    dots: usize,
}

impl Resolver {
    pub(crate) fn new(name_server: Option<SocketAddr>, search: &[Name]) -> Self {
        let read = match name_server {
            None => read_system_conf().map_err(|e| e.to_string()),
            Some(address) => {
                let at = |mut connection: ConnectionConfig| {
                    connection.port = address.port();
                    connection
                };
                let connections = vec![at(ConnectionConfig::udp()), at(ConnectionConfig::tcp())];
                let server = NameServerConfig::new(address.ip(), true, connections);
                let mut options = ResolverOpts::default();
                options.use_hosts_file = ResolveHosts::Never;
                Ok((ResolverConfig::from_parts(None, search.to_vec(), vec![server]), options))
            }
        };
        let built = read.and_then(|(config, mut options)| {
            options.cache_size = 0; // a question is a question
            options.timeout = TIMEOUT;
            options.attempts = ATTEMPTS;
            let domains = config.domain().into_iter().chain(config.search()).cloned().collect();
            let search = Search { domains, dots: options.ndots };
            let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            let resolver = builder.with_options(options).build().map_err(|e| e.to_string())?;
            Ok(System { resolver, search })
        });
        Self(built.map_err(|e| format!("the name servers of the system cannot be read ({e}); check /etc/resolv.conf")))
    }

    /// Asks for all names; what is not answered stays as it was.
    pub(crate) async fn round(&self, names: &[Sought], last: &mut [Option<Found>]) -> Round {
        let mut round = Round::default();
        for (sought, last) in names.iter().zip(last) {
            match sought {
                Sought::Hosts(host, port) => {
                    let hosts = BTreeMap::from([(host.clone(), vec![*port])]);
                    self.hosts(&hosts, last, &mut round).await;
                }
                Sought::Services(name) => match self.services(name).await {
                    Answer::Records(targets, ttl) => {
                        round.saw(ttl);
                        let mut hosts: BTreeMap<String, Vec<u16>> = BTreeMap::new();
                        for (target, port) in targets.into_iter().take(MAX_TARGETS) {
                            hosts.entry(target).or_default().push(port);
                        }
                        self.hosts(&hosts, last, &mut round).await;
                    }
                    Answer::None => {
                        nobody_yet(last);
                        round.failed(name, "there are no SRV records");
                    }
                    Answer::Failed(why) => round.failed(name, &why),
                },
            }
        }
        round
    }

    /// Resolves hosts, and replaces what is known by what is found; what fails keeps its last addresses. When nothing
    /// at all is found, all stays.
    async fn hosts(&self, hosts: &BTreeMap<String, Vec<u16>>, last: &mut Option<Found>, round: &mut Round) {
        let asked: Vec<_> = hosts.keys().map(|host| self.both_kinds(host.clone())).collect();
        let answers: Vec<_> = stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
        let mut found = Found::default();
        let mut is_any_found = false;
        let mut is_any_failed = false;
        for (host, v4, v6) in answers {
            let ports = hosts.get(&host).cloned().unwrap_or_default();
            let known = last.as_ref().and_then(|last| last.0.get(&host));
            if matches!((&v4, &v6), (Answer::None, Answer::None)) {
                round.failed(&host, "it has no addresses");
                found.0.extend(known.map(|known| (host, known.clone())));
                continue;
            }
            is_any_failed |= matches!(v4, Answer::Failed(_)) || matches!(v6, Answer::Failed(_));
            let has_v4 = matches!(v4, Answer::Records(..));
            let has_v6 = matches!(v6, Answer::Records(..));
            is_any_found |= has_v4 || has_v6;
            let v4 = round.take(&host, v4, known.map(|known| &known.v4), has_v6);
            let v6 = round.take(&host, v6, known.map(|known| &known.v6), has_v4);
            found.0.insert(host, Host { v4, v6, ports });
        }
        if is_any_found {
            *last = Some(found);
        } else if !is_any_failed {
            nobody_yet(last);
        }
    }

    async fn both_kinds(&self, host: String) -> (String, Answer<IpAddr>, Answer<IpAddr>) {
        let read = |data: &RData| match data {
            RData::A(ip) => Some(IpAddr::V4(ip.0)),
            RData::AAAA(ip) => Some(IpAddr::V6(ip.0)),
            _ => None,
        };
        let (v4, v6) = self.ask(&host, RecordType::A, Some(RecordType::AAAA), read).await;
        (host, v4, v6)
    }

    async fn services(&self, name: &str) -> Answer<(String, u16)> {
        let read = |data: &RData| match data {
            RData::SRV(srv) if srv.port > 0 && !srv.target.is_root() => Some((srv.target.to_ascii(), srv.port)),
            _ => None,
        };
        self.ask(name, RecordType::SRV, None, read).await.0
    }

    /// Asks for records of one kind, or of two, of whichever name is meant.
    ///
    /// hickory goes through the search list too, but tells only what the last name has come to: that the real name
    /// could not be asked for is lost when the next one is known not to be there. After a failure only the name as it
    /// is written is left to be asked for: what another has may be somebody else's.
    async fn ask<T>(
        &self,
        name: &str,
        kind: RecordType,
        other: Option<RecordType>,
        read: impl Fn(&RData) -> Option<T>,
    ) -> (Answer<T>, Answer<T>) {
        let failed = |why: String| (Answer::Failed(why.clone()), Answer::Failed(why));
        let system = match &self.0 {
            Ok(system) => system,
            Err(why) => return failed(why.clone()),
        };
        let mut written: Name = match name.parse() {
            Ok(name) => name,
            Err(e) => return failed(format!("it is no name ({e})")),
        };
        let names = system.search.names(&written);
        written.set_fqdn(true);
        let mut failure = None;
        for name in names {
            if failure.is_some() && name != written {
                continue;
            }
            let other = async {
                match other {
                    Some(other) => system.ask(&name, other, &read).await,
                    None => Answer::None,
                }
            };
            let both = tokio::join!(system.ask(&name, kind, &read), other);
            match &both {
                (Answer::Records(..), _) | (_, Answer::Records(..)) => return both,
                (Answer::None, Answer::None) => {}
                _ => _ = failure.get_or_insert(both),
            }
        }
        failure.unwrap_or((Answer::None, Answer::None))
    }
}

impl Search {
    /// The complete names that one may stand for, in the order in which the system tries them.
    fn names(&self, name: &Name) -> Vec<Name> {
        let mut written = name.clone();
        written.set_fqdn(true);
        if name.is_fqdn() {
            return vec![written];
        }
        let longer = self.domains.iter().filter_map(|domain| name.clone().append_domain(domain).ok());
        let mut names: Vec<Name> = longer.collect();
        let is_first = usize::from(name.num_labels()) > self.dots || name.is_localhost();
        names.insert(if is_first { 0 } else { names.len() }, written);
        names
    }
}

impl System {
    async fn ask<T>(&self, name: &Name, kind: RecordType, read: impl Fn(&RData) -> Option<T>) -> Answer<T> {
        match self.resolver.lookup(name.clone(), kind).await {
            Ok(lookup) => {
                let read = |record: &hickory_resolver::proto::rr::Record| Some((read(&record.data)?, record.ttl));
                let (records, ttls): (Vec<_>, Vec<_>) = lookup.answers().iter().filter_map(read).unzip();
                match ttls.into_iter().min() {
                    Some(ttl) => Answer::Records(records, Duration::from_secs(ttl.into())),
                    None => Answer::None,
                }
            }
            Err(e) if is_none(&e) => Answer::None,
            Err(e) => Answer::Failed(e.to_string()),
        }
    }
}

/// The name server knows of nobody, and so did we: the first pods of a service must not wait for each other to be
/// listed. What is known already is not forgotten for such an answer.
fn nobody_yet(last: &mut Option<Found>) {
    last.get_or_insert_default();
}

/// Whether the name server has said that there is nothing, and not that it cannot tell.
fn is_none(error: &NetError) -> bool {
    use hickory_resolver::{net::DnsError, proto::op::ResponseCode};
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
        }
        _ => false,
    }
}

impl Round {
    fn saw(&mut self, ttl: Duration) {
        self.ttl = Some(self.ttl.map_or(ttl, |known| known.min(ttl)));
    }

    fn failed(&mut self, name: &str, why: &str) {
        self.problem.get_or_insert_with(|| format!("{name} cannot be resolved ({why}); its last addresses stay"));
    }

    /// What is known of one kind of address after an answer; `has_other`: the host has addresses of the other kind.
    fn take(&mut self, host: &str, answer: Answer<IpAddr>, known: Option<&Kind>, has_other: bool) -> Kind {
        let known = known.cloned().unwrap_or_default();
        match answer {
            Answer::Records(ips, ttl) => {
                self.saw(ttl);
                Kind { ips, is_doubted: false }
            }
            // A host need not have both, but one that had them is believed only when it says so again.
            Answer::None if has_other && (known.is_doubted || known.ips.is_empty()) => Kind::default(),
            Answer::None => {
                self.saw(Duration::ZERO); // it is asked for again soon
                Kind { is_doubted: has_other, ..known }
            }
            Answer::Failed(why) => {
                self.failed(host, &why);
                Kind { is_doubted: false, ..known }
            }
        }
    }
}
