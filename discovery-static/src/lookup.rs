//! Questions to name servers, and the effect of their answers on the known addresses.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::{
    StreamExt,
    future::{Either, select},
    stream,
};
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RData, RecordType},
    system_conf::read_system_conf,
};
use tokio::{sync::mpsc, time::timeout};

use crate::found::{Early, EarlyAnswers, Found, Host, Kind};

/// Maximum time for one attempt at a question.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Number of times that a failed question is asked again.
const ATTEMPTS: usize = 2;
/// Maximum number of names, and of targets of SRV records of one name, that are resolved at the same time.
const AT_ONCE: usize = 16;
/// Time after which the answer to one kind of question is used without that to the other kind. A name server answers
/// both within milliseconds of each other, unless it drops one (RFC 8305, section 3, waits 50 ms).
const LATE: Duration = Duration::from_millis(100);
/// Maximum number of targets of SRV records, of one name.
const MAX_TARGETS: usize = 2_000;

/// Name to resolve.
#[derive(Clone, Debug)]
pub(crate) enum Sought {
    /// Addresses of a host, with a port.
    Hosts(String, u16),
    /// Address that needs no look-up.
    Literal(SocketAddr),
    /// Targets of SRV records.
    Services(String),
}

/// Outcome of a round.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// Shortest time to live of all records.
    pub(crate) ttl: Option<Duration>,
    /// First failure of the round, and its consequence.
    pub(crate) problem: Option<String>,
    /// Whether a name or a host was not answered at all, so that the round is no answer to the node.
    pub(crate) is_failed: bool,
}

/// Answer to one question.
enum Answer<T> {
    Records(Vec<T>, Duration),
    /// Answer of the name server that there are no records.
    None,
    Failed(String),
}

pub(crate) struct Resolver(Result<System, String>);

struct System {
    resolver: TokioResolver,
    search: Search,
}

/// Search list for incomplete names, which have no dot at their end.
struct Search {
    /// Domains to append to such a name.
    domains: Vec<Name>,
    /// Number of dots from which on a name is tried first as it is written.
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
            options.cache_size = 0; // each question goes to a name server
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

    /// Asks for all names, at once, so that a name without an answer does not delay the others. A name without an answer
    /// keeps its addresses. The addresses of one kind go to `early` if the other kind is not answered soon.
    pub(crate) async fn round(
        &self,
        names: &[Sought],
        last: &mut [Option<Found>],
        early: &mpsc::Sender<Early>,
    ) -> Round {
        let each = names.iter().zip(last).enumerate().map(|(at, (sought, last))| self.name(sought, last, at, early));
        let rounds: Vec<_> = stream::iter(each.collect::<Vec<_>>()).buffered(AT_ONCE).collect().await;
        rounds.into_iter().fold(Round::default(), Round::and)
    }

    /// Asks for one name.
    async fn name(&self, sought: &Sought, last: &mut Option<Found>, at: usize, early: &mpsc::Sender<Early>) -> Round {
        let mut round = Round::default();
        let early = EarlyAnswers { name: at, early };
        match sought {
            Sought::Literal(address) => *last = Some(Found::literal(*address)),
            Sought::Hosts(host, port) => {
                let hosts = BTreeMap::from([(host.clone(), vec![*port])]);
                self.hosts(&hosts, last, &mut round, early).await;
            }
            Sought::Services(name) => match self.services(name).await {
                Answer::Records(targets, ttl) => {
                    round.saw(ttl);
                    let mut hosts: BTreeMap<String, Vec<u16>> = BTreeMap::new();
                    for (target, port) in targets.into_iter().take(MAX_TARGETS) {
                        hosts.entry(target).or_default().push(port);
                    }
                    self.hosts(&hosts, last, &mut round, early).await;
                }
                Answer::None => {
                    nobody_yet(last);
                    round.failed(name, "there are no SRV records");
                }
                Answer::Failed(why) => round.failed(name, &why),
            },
        }
        round
    }

    /// Resolves hosts, and replaces the known addresses by those that are found. A host keeps its last addresses of a
    /// kind that fails. If no address at all is found, all addresses stay.
    async fn hosts(
        &self,
        hosts: &BTreeMap<String, Vec<u16>>,
        last: &mut Option<Found>,
        round: &mut Round,
        early: EarlyAnswers<'_>,
    ) {
        let asked: Vec<_> = hosts.iter().map(|(host, ports)| self.both_kinds(host.clone(), ports, early)).collect();
        let answers: Vec<_> = stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
        let mut found = Found::default();
        let mut is_any_found = false;
        let mut is_any_failed = false;
        for (host, v4, v6) in answers {
            let ports = hosts.get(&host).cloned().unwrap_or_default();
            let known = last.as_ref().and_then(|last| last.0.get(&host));
            if matches!((&v4, &v6), (Answer::None, Answer::None)) {
                round.failed(&host, "the host has no addresses");
                found.0.extend(known.map(|known| (host, known.clone())));
                continue;
            }
            is_any_failed |= matches!(v4, Answer::Failed(_)) || matches!(v6, Answer::Failed(_));
            let has_v4 = matches!(v4, Answer::Records(..));
            let has_v6 = matches!(v6, Answer::Records(..));
            is_any_found |= has_v4 || has_v6;
            let v4 = round.take(&host, "A", v4, known.map(|known| &known.v4), has_v6);
            let v6 = round.take(&host, "AAAA", v6, known.map(|known| &known.v6), has_v4);
            found.0.insert(host, Host { v4, v6, ports });
        }
        if is_any_found {
            *last = Some(found);
        } else if !is_any_failed {
            nobody_yet(last);
        }
    }

    async fn both_kinds(
        &self,
        host: String,
        ports: &[u16],
        early: EarlyAnswers<'_>,
    ) -> (String, Answer<IpAddr>, Answer<IpAddr>) {
        let read = |data: &RData| match data {
            RData::A(ip) => Some(IpAddr::V4(ip.0)),
            RData::AAAA(ip) => Some(IpAddr::V6(ip.0)),
            _ => None,
        };
        let tell = |ips: &[IpAddr]| early.send(&host, ports, ips);
        let (v4, v6) = self.ask(&host, RecordType::A, Some(RecordType::AAAA), read, tell).await;
        (host, v4, v6)
    }

    async fn services(&self, name: &str) -> Answer<(String, u16)> {
        let read = |data: &RData| match data {
            RData::SRV(srv) if srv.port > 0 && !srv.target.is_root() => Some((srv.target.to_ascii(), srv.port)),
            _ => None,
        };
        self.ask(name, RecordType::SRV, None, read, |_| {}).await.0
    }

    /// Asks for records of one kind, or of two, for each name that may be meant, until one has records.
    ///
    /// hickory goes through the search list too, but returns only the outcome of the last name. A failure for the right
    /// name is lost when the next name is known not to exist. After a failure only the name as it is written is asked
    /// for, because records of another name may belong to another service.
    async fn ask<T>(
        &self,
        name: &str,
        kind: RecordType,
        other: Option<RecordType>,
        read: impl Fn(&RData) -> Option<T>,
        early: impl Fn(&[T]),
    ) -> (Answer<T>, Answer<T>) {
        let failed = |why: String| (Answer::Failed(why.clone()), Answer::Failed(why));
        let system = match &self.0 {
            Ok(system) => system,
            Err(why) => return failed(why.clone()),
        };
        let mut written: Name = match name.parse() {
            Ok(name) => name,
            Err(e) => return failed(format!("the name is invalid ({e})")),
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
            let both = both_or_early(system.ask(&name, kind, &read), other, &early).await;
            match &both {
                (Answer::Records(..), _) | (_, Answer::Records(..)) => return both,
                (Answer::None, Answer::None) => {}
                _ => _ = failure.get_or_insert(both),
            }
        }
        failure.unwrap_or((Answer::None, Answer::None))
    }
}

/// Waits for both answers. An answer with records goes to `early` when the other one is [`LATE`].
async fn both_or_early<T>(
    first: impl Future<Output = Answer<T>>,
    second: impl Future<Output = Answer<T>>,
    early: impl Fn(&[T]),
) -> (Answer<T>, Answer<T>) {
    let tell = |answer: &Answer<T>| {
        if let Answer::Records(records, _) = answer {
            early(records);
        }
    };
    match select(std::pin::pin!(first), std::pin::pin!(second)).await {
        Either::Left((first, rest)) => {
            let second = or_late(rest, || tell(&first)).await;
            (first, second)
        }
        Either::Right((second, rest)) => {
            let first = or_late(rest, || tell(&second)).await;
            (first, second)
        }
    }
}

/// Waits for an answer, and calls `late` when it is [`LATE`].
async fn or_late<T>(mut answer: impl Future<Output = T> + Unpin, late: impl FnOnce()) -> T {
    match timeout(LATE, &mut answer).await {
        Ok(answer) => answer,
        Err(_) => {
            late();
            answer.await
        }
    }
}

impl Search {
    /// Returns the complete names that a name may stand for, in the order in which the system tries them.
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

/// Records that a name has no addresses, if none are known yet, because the first pods of a service must not wait for
/// each other to be listed. Known addresses stay.
fn nobody_yet(last: &mut Option<Found>) {
    last.get_or_insert_default();
}

/// Returns whether the name server has answered that there are no records, and has not merely failed.
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

    /// Returns the outcome of two parts of a round.
    fn and(mut self, other: Self) -> Self {
        other.ttl.into_iter().for_each(|ttl| self.saw(ttl));
        self.problem = self.problem.or(other.problem);
        self.is_failed |= other.is_failed;
        self
    }

    fn failed(&mut self, name: &str, why: &str) {
        self.is_failed = true;
        self.warn(name, why);
    }

    fn warn(&mut self, name: &str, why: &str) {
        self.problem.get_or_insert_with(|| format!("{name} cannot be resolved ({why}); its last addresses stay"));
    }

    /// Returns the addresses of one kind after an answer. `has_other` tells whether the host has addresses of the other
    /// kind.
    fn take(&mut self, host: &str, kind: &str, answer: Answer<IpAddr>, known: Option<&Kind>, has_other: bool) -> Kind {
        let known = known.cloned().unwrap_or_default();
        match answer {
            Answer::Records(ips, ttl) => {
                self.saw(ttl);
                Kind { ips, is_doubted: false }
            }
            // A host need not have both kinds. The loss of a known kind is believed at the second such answer.
            Answer::None if has_other && (known.is_doubted || known.ips.is_empty()) => Kind::default(),
            Answer::None => {
                self.saw(Duration::ZERO); // the name is resolved again soon
                Kind { is_doubted: has_other, ..known }
            }
            Answer::Failed(why) => {
                match has_other {
                    true => self.warn(host, &format!("its {kind} records: {why}; those of the other kind are used")),
                    false => self.failed(host, &why),
                }
                Kind { is_doubted: false, ..known }
            }
        }
    }
}
