//! DNS names over real sockets, with a name server that the tests control.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use discovery_static::Dns;
use groupcache_core::{
    async_trait,
    conformance::{Bench, Cannot, Source, Timing, conform},
    discovery::{Health, Me, Provider},
};
use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, SRV},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinHandle,
    time::{Instant, sleep},
};

const SERVICE: &str = "users.test.";
const SRV_NAME: &str = "_group._tcp.users.test.";
/// Time between two resolutions, shorter than the default. Records have a time to live of 0 s, so that names are
/// resolved as often as this time allows.
const FAST: Duration = Duration::from_millis(200);

/// Number of invented SRV records that one message of 64 KiB holds beside those of the members.
const LYING_TARGETS: usize = 900;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Behaviour {
    Normal,
    Code(ResponseCode),
    Silent,
    Garbage,
}

struct Zone {
    records: BTreeMap<String, Vec<(RData, u32)>>,
    behaviour: Behaviour,
    /// Behaviour for one kind of record only.
    behaviour_for_kind: Option<(RecordType, Behaviour)>,
    /// Name that the behaviour is limited to; other names have the normal behaviour.
    behaviour_for_name: Option<&'static str>,
    /// Number of questions for IPv4 addresses that are answered with no records.
    denials: u32,
    asked: u32,
}

/// Name server of one test, over UDP, and over TCP for answers that are too long for UDP.
struct Server {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    tasks: [JoinHandle<()>; 2],
}

impl Server {
    async fn start() -> Self {
        let zone = Zone {
            records: BTreeMap::new(),
            behaviour: Behaviour::Normal,
            behaviour_for_kind: None,
            behaviour_for_name: None,
            denials: 0,
            asked: 0,
        };
        let zone = Arc::new(Mutex::new(zone));
        let (socket, listener) = both_sockets().await;
        let address = socket.local_addr().unwrap();
        let tasks =
            [tokio::spawn(over_udp(socket, Arc::clone(&zone))), tokio::spawn(over_tcp(listener, Arc::clone(&zone)))];
        Self { address, zone, tasks }
    }

    fn dns(&self, names: &str) -> Dns {
        names.parse::<Dns>().unwrap().name_server(self.address).between(FAST, FAST)
    }

    fn set(&self, change: impl FnOnce(&mut Zone)) {
        change(&mut self.zone.lock().unwrap());
    }

    fn addresses(&self, name: &str, ips: &[&str], ttl: u32) {
        let records = ips.iter().map(|ip| (address(ip.parse().unwrap()), ttl)).collect();
        self.set(|zone| _ = zone.records.insert(name.to_owned(), records));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Returns a UDP socket and a TCP listener on the same port.
async fn both_sockets() -> (UdpSocket, TcpListener) {
    loop {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "a name server's port, not the cache's")]
        if let Ok(listener) = TcpListener::bind(socket.local_addr().unwrap()).await {
            return (socket, listener);
        }
    }
}

async fn over_udp(socket: UdpSocket, zone: Arc<Mutex<Zone>>) {
    let mut buffer = [0; 2048];
    while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
        let answer = answer(&zone, buffer.get(..n).unwrap_or_default());
        let answer = answer.map(|full| if full.len() > 1200 { truncated(&full) } else { full });
        if let Some(answer) = answer {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

fn truncated(full: &[u8]) -> Vec<u8> {
    let mut answer = Message::from_vec(full).unwrap().truncate();
    answer.metadata.truncation = true;
    answer.to_vec().unwrap()
}

/// Serves one connection at a time, because there is one client.
async fn over_tcp(listener: TcpListener, zone: Arc<Mutex<Zone>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        while let Ok(length) = stream.read_u16().await {
            let mut question = vec![0; length.into()];
            if stream.read_exact(&mut question).await.is_err() {
                break;
            }
            let Some(answer) = answer(&zone, &question) else { break };
            let _ = stream.write_u16(answer.len().try_into().unwrap()).await;
            let _ = stream.write_all(&answer).await;
        }
    }
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

fn answer(zone: &Mutex<Zone>, question: &[u8]) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).ok()?;
    let query = question.queries.first()?;
    let mut zone = zone.lock().unwrap();
    zone.asked += 1;
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.add_query(query.clone());
    let name = query.name().to_ascii().to_lowercase();
    let behaviour = zone
        .behaviour_for_kind
        .filter(|(kind, _)| *kind == query.query_type())
        .map_or(zone.behaviour, |(_, behaviour)| behaviour);
    if query.query_type() == RecordType::A && zone.denials > 0 {
        zone.denials -= 1;
        return answer.to_vec().ok();
    }
    match if zone.behaviour_for_name.is_none_or(|at| at == name) { behaviour } else { Behaviour::Normal } {
        Behaviour::Silent => return None,
        Behaviour::Garbage => return Some(vec![7; 40]),
        Behaviour::Code(code) => answer.metadata.response_code = code,
        Behaviour::Normal => match zone.records.get(&name) {
            None => answer.metadata.response_code = ResponseCode::NXDomain,
            Some(records) => {
                for (data, ttl) in records.iter().filter(|(data, _)| data.record_type() == query.query_type()) {
                    answer.add_answer(Record::from_rdata(query.name().clone(), *ttl, data.clone()));
                }
            }
        },
    }
    answer.to_vec().ok()
}

/// Service with members as its addresses, or as the targets of its SRV records.
struct Service {
    server: Server,
    /// Records that stand before those of the members.
    lies: Vec<Me>,
    members: BTreeMap<String, Me>,
    has_targets: bool,
}

impl Service {
    async fn fresh(has_targets: bool) -> Self {
        Self { server: Server::start().await, lies: Vec::new(), members: BTreeMap::new(), has_targets }
    }

    fn write(&self) {
        self.server.set(|zone| {
            zone.behaviour = Behaviour::Normal;
            zone.records.clear();
            for member in self.lies.iter().chain(self.members.values()) {
                let sockets: Vec<SocketAddr> = member.addresses.iter().map(|a| a.as_str().parse().unwrap()).collect();
                let target = format!("{}.users.test.", member.id);
                let data = sockets.iter().map(|socket| (address(socket.ip()), 0));
                if self.has_targets {
                    let name: Name = target.parse().unwrap();
                    let srv = RData::SRV(SRV::new(0, 0, sockets.first().unwrap().port(), name));
                    zone.records.entry(SRV_NAME.to_owned()).or_default().push((srv, 0));
                    zone.records.entry(target).or_default().extend(data);
                } else {
                    zone.records.entry(SERVICE.to_owned()).or_default().extend(data);
                }
            }
        });
    }
}

#[async_trait]
impl Source for Service {
    fn provider(&mut self) -> Arc<dyn Provider> {
        let names = if self.has_targets { format!("dnssrv+{SRV_NAME}") } else { format!("dns+{SERVICE}:7946") };
        Arc::new(self.server.dns(&names))
    }

    fn timing(&self) -> Timing {
        Timing { outage: Duration::from_secs(7), recovery: Duration::from_secs(10), ..Timing::default() }
    }

    async fn join(&mut self, member: &Me) -> Result<(), Cannot> {
        self.members.insert(member.id.to_string(), member.clone());
        self.write();
        Ok(())
    }

    async fn leave(&mut self, member: &Me) -> Result<(), Cannot> {
        self.members.remove(member.id.as_str());
        self.write();
        Ok(())
    }

    async fn crash(&mut self, _: &Me) -> Result<(), Cannot> {
        Err(Cannot("a name server cannot report a crash"))
    }

    async fn fail(&mut self) -> Result<(), Cannot> {
        self.server.set(|zone| zone.behaviour = Behaviour::Silent);
        Ok(())
    }

    async fn refuse(&mut self) -> Result<(), Cannot> {
        self.server.set(|zone| zone.behaviour = Behaviour::Code(ResponseCode::Refused));
        Ok(())
    }

    async fn mend(&mut self, members: &[Me]) {
        for member in members {
            self.members.insert(member.id.to_string(), member.clone());
        }
        self.write();
    }

    async fn lie(&mut self, lies: &[Me]) -> Result<(), Cannot> {
        // The last ones, because the first have the addresses of members.
        let fitting = if self.has_targets { LYING_TARGETS } else { usize::MAX };
        self.lies = lies.iter().skip(lies.len().saturating_sub(fitting)).cloned().collect();
        self.write();
        Ok(())
    }

    async fn garbage(&mut self) -> Result<(), Cannot> {
        self.server.set(|zone| zone.behaviour = Behaviour::Garbage);
        Ok(())
    }

    fn knows_incarnations(&self) -> Result<(), Cannot> {
        Err(Cannot("a name server holds only addresses"))
    }

    fn knows_dual_stack(&self) -> Result<(), Cannot> {
        Err(Cannot("only the Hello shows which addresses belong to one peer"))
    }
}

#[tokio::test]
async fn addresses_of_a_name_conform() {
    println!("{}", conform(async || Service::fresh(false).await).await.passed().unwrap());
}

#[tokio::test]
async fn targets_of_srv_records_conform() {
    println!("{}", conform(async || Service::fresh(true).await).await.passed().unwrap());
}

fn listed(bench: &mut Bench) -> Vec<String> {
    let mut all: Vec<_> = bench.peers().iter().flat_map(|p| p.addresses().to_vec()).map(|a| a.to_string()).collect();
    all.sort();
    all
}

async fn until_listed(bench: &mut Bench, expected: &[&str]) {
    let begun = Instant::now();
    while listed(bench) != expected || bench.sets() == 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}, {:?}", listed(bench), bench.health());
        sleep(Duration::from_millis(5)).await;
    }
}

async fn until_stale(bench: &mut Bench) {
    let begun = Instant::now();
    while !matches!(bench.health(), Some(Health::Stale(_))) {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", bench.health());
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn failed_answer_keeps_the_last_addresses() {
    let server = Server::start().await;
    server.addresses(SERVICE, &["10.0.0.1", "fd00::1"], 0);
    let mut bench = Bench::start(Arc::new(server.dns(&format!("dns+{SERVICE}:1")))).unwrap();
    let both = ["10.0.0.1:1", "[fd00::1]:1"];
    until_listed(&mut bench, &both).await;
    let behaviours = [ResponseCode::NXDomain, ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NoError]
        .map(Behaviour::Code);
    for behaviour in behaviours {
        server.set(|zone| zone.behaviour = behaviour);
        until_stale(&mut bench).await;
        sleep(FAST * 3).await;
        assert_eq!(listed(&mut bench), both, "{behaviour:?}");
        server.set(|zone| zone.behaviour = Behaviour::Normal);
        let begun = Instant::now();
        while bench.health() != Some(Health::Connected) {
            assert!(begun.elapsed() < Duration::from_secs(20));
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Checks that a kind of record that fails keeps its own addresses, while those of the other kind change.
#[tokio::test]
async fn failed_kind_of_record_keeps_its_addresses() {
    let server = Server::start().await;
    server.addresses(SERVICE, &["10.0.0.1", "fd00::1"], 0);
    let mut bench = Bench::start(Arc::new(server.dns(&format!("dns+{SERVICE}:1")))).unwrap();
    until_listed(&mut bench, &["10.0.0.1:1", "[fd00::1]:1"]).await;
    server.set(|zone| zone.behaviour_for_kind = Some((RecordType::AAAA, Behaviour::Code(ResponseCode::ServFail))));
    server.addresses(SERVICE, &["10.0.0.2"], 0);
    until_listed(&mut bench, &["10.0.0.2:1", "[fd00::1]:1"]).await;
    server.set(|zone| zone.behaviour_for_kind = None);
    until_listed(&mut bench, &["10.0.0.2:1"]).await;
}

/// Checks that the failure of a name is not taken for an empty set, although no search domain has the name.
#[tokio::test]
async fn failed_name_is_not_empty_if_search_domains_lack_it() {
    let server = Server::start().await;
    server.addresses(SERVICE, &["10.0.0.1", "fd00::1"], 0);
    server.set(|zone| {
        (zone.behaviour, zone.behaviour_for_name) = (Behaviour::Code(ResponseCode::ServFail), Some(SERVICE))
    });
    // The first name has a dot and is tried first as it is written, the second one last.
    for name in ["users.test", "users"] {
        let dns = server.dns(&format!("dns+{name}:1")).search("test.").search("elsewhere.test.");
        let mut bench = Bench::start(Arc::new(dns)).unwrap();
        until_stale(&mut bench).await;
        sleep(FAST * 3).await;
        assert_eq!(bench.sets(), 0, "{name}: no complete set without an answer");
        server.set(|zone| zone.behaviour = Behaviour::Normal);
        until_listed(&mut bench, &["10.0.0.1:1", "[fd00::1]:1"]).await;
        server.set(|zone| zone.behaviour = Behaviour::Code(ResponseCode::ServFail));
        bench.stop().await;
    }
}

/// Checks that a kind of record that fails keeps its own addresses, although no search domain has the name.
#[tokio::test]
async fn failed_kind_keeps_addresses_if_search_domains_lack_name() {
    let server = Server::start().await;
    server.addresses(SERVICE, &["10.0.0.1", "fd00::1"], 0);
    let dns = server.dns("dns+users.test:1").search("elsewhere.test.");
    let mut bench = Bench::start(Arc::new(dns)).unwrap();
    until_listed(&mut bench, &["10.0.0.1:1", "[fd00::1]:1"]).await;
    server.set(|zone| {
        zone.behaviour_for_kind = Some((RecordType::A, Behaviour::Code(ResponseCode::ServFail)));
        zone.behaviour_for_name = Some(SERVICE);
    });
    server.addresses(SERVICE, &["10.0.0.2", "fd00::2"], 0);
    until_listed(&mut bench, &["10.0.0.1:1", "[fd00::2]:1"]).await;
    sleep(FAST * 4).await;
    assert_eq!(listed(&mut bench), ["10.0.0.1:1", "[fd00::2]:1"]);
    server.set(|zone| zone.behaviour_for_kind = None);
    until_listed(&mut bench, &["10.0.0.2:1", "[fd00::2]:1"]).await;
}

/// Checks that a host keeps its addresses of one kind until a second answer in a row has none of them.
#[tokio::test]
async fn loss_of_a_kind_is_believed_at_the_second_answer() {
    let server = Server::start().await;
    server.addresses(SERVICE, &["10.0.0.1", "fd00::1"], 0);
    let mut bench = Bench::start(Arc::new(server.dns(&format!("dns+{SERVICE}:1")))).unwrap();
    let both = ["10.0.0.1:1", "[fd00::1]:1"];
    until_listed(&mut bench, &both).await;
    let before = server.zone.lock().unwrap().asked;
    server.set(|zone| zone.denials = 1);
    while server.zone.lock().unwrap().asked < before + 8 {
        assert_eq!(listed(&mut bench), both);
        sleep(Duration::from_millis(5)).await;
    }
    server.addresses(SERVICE, &["fd00::1"], 0);
    until_listed(&mut bench, &["[fd00::1]:1"]).await;
}

#[tokio::test]
async fn failed_name_leaves_others_in_a_partial_set() {
    let server = Server::start().await;
    server.addresses(SERVICE, &["10.0.0.1"], 0);
    server.set(|zone| zone.behaviour_for_kind = Some((RecordType::AAAA, Behaviour::Code(ResponseCode::ServFail))));
    let names = format!("dns+{SERVICE}:1, dns+later.test.:2");
    let mut bench = Bench::start(Arc::new(server.dns(&names))).unwrap();
    let begun = Instant::now();
    while listed(&mut bench) != ["10.0.0.1:1"] {
        assert!(begun.elapsed() < Duration::from_secs(20));
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(bench.sets(), 0, "a partial set, because the other name may have more addresses");
    server.set(|zone| zone.behaviour_for_kind = None);
    server.addresses("later.test.", &["10.0.0.9"], 0);
    until_listed(&mut bench, &["10.0.0.1:1", "10.0.0.9:2"]).await;
}

#[tokio::test]
async fn name_is_resolved_on_expiry_within_the_bounds() {
    let server = Server::start().await;
    server.addresses(SERVICE, &["10.0.0.1"], 3600);
    let dns = format!("dns+{SERVICE}:1").parse::<Dns>().unwrap().name_server(server.address);
    let mut bench =
        Bench::start(Arc::new(dns.between(Duration::from_millis(100), Duration::from_millis(800)))).unwrap();
    until_listed(&mut bench, &["10.0.0.1:1"]).await;
    server.addresses(SERVICE, &["10.0.0.2"], 0);
    let begun = Instant::now();
    until_listed(&mut bench, &["10.0.0.2:1"]).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "a time to live of one hour is cut to the upper bound");
    let before = server.zone.lock().unwrap().asked;
    sleep(Duration::from_secs(1)).await;
    let asked = server.zone.lock().unwrap().asked - before;
    assert!((8..=30).contains(&asked), "{asked} questions in a second, two in each round, at most one round in 80 ms");
}

/// Checks that a name server that drops questions for IPv6 addresses delays no IPv4 address: these are published while
/// the question is still open, which takes 6 s.
#[tokio::test]
async fn dropped_kind_of_question_delays_no_other_kind() {
    let server = Server::start().await;
    server.addresses(SERVICE, &["10.0.0.1"], 0);
    server.set(|zone| zone.behaviour_for_kind = Some((RecordType::AAAA, Behaviour::Silent)));
    let mut bench = Bench::start(Arc::new(server.dns(&format!("dns+{SERVICE}:1")))).unwrap();
    until_listed(&mut bench, &["10.0.0.1:1"]).await;
    assert_eq!(bench.health(), None, "the set does not wait for the end of the round");
    until_stale(&mut bench).await;
    let health = format!("{:?}", bench.health());
    assert!(health.contains("its AAAA records") && health.contains(SERVICE), "{health}");
}

/// Checks that an early answer with fewer addresses neither removes one nor answers a question of the node, because the
/// node takes the answer as the confirmation of a set that it doubts. The end of the round does both.
#[tokio::test]
async fn early_answer_confirms_no_loss_of_addresses() {
    let server = Server::start().await;
    server.addresses(SERVICE, &["10.0.0.1", "10.0.0.2", "fd00::1"], 0);
    let (seldom, all) = (Duration::from_secs(60), ["10.0.0.1:1", "10.0.0.2:1", "[fd00::1]:1"]);
    let dns = server.dns(&format!("dns+{SERVICE}:1")).between(seldom, seldom);
    let mut bench = Bench::start(Arc::new(dns)).unwrap();
    until_listed(&mut bench, &all).await;
    server.set(|zone| zone.behaviour_for_kind = Some((RecordType::AAAA, Behaviour::Silent)));
    server.addresses(SERVICE, &["10.0.0.1"], 0);
    let (sets, begun) = (bench.sets(), Instant::now());
    bench.ask();
    // The end of the round makes the health stale, together with its set.
    while bench.health() == Some(Health::Connected) {
        assert_eq!((listed(&mut bench), bench.sets()), (all.map(str::to_owned).to_vec(), sets));
        assert!(begun.elapsed() < Duration::from_secs(40), "the round ends");
        bench.ask(); // while the early answer is known, too
        sleep(Duration::from_millis(5)).await;
    }
    until_listed(&mut bench, &["10.0.0.1:1", "[fd00::1]:1"]).await;
    assert!(bench.sets() > sets);
}

/// Checks that a failure of one kind is said with its kind, and that a question of the node is answered all the same.
#[tokio::test]
async fn failed_kind_is_named_and_does_not_silence_answers() {
    let server = Server::start().await;
    server.addresses(SERVICE, &["10.0.0.1"], 0);
    server.set(|zone| zone.behaviour_for_kind = Some((RecordType::AAAA, Behaviour::Code(ResponseCode::ServFail))));
    let mut bench = Bench::start(Arc::new(server.dns(&format!("dns+{SERVICE}:1")))).unwrap();
    until_listed(&mut bench, &["10.0.0.1:1"]).await;
    until_stale(&mut bench).await;
    let health = format!("{:?}", bench.health());
    assert!(health.contains("its AAAA records") && health.contains(SERVICE), "{health}");
    let (sets, begun) = (bench.sets(), Instant::now());
    bench.ask();
    while bench.sets() == sets {
        assert!(begun.elapsed() < Duration::from_secs(20), "the question is answered");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn literal_address_is_taken_without_a_question() {
    let server = Server::start().await;
    let mut bench = Bench::start(Arc::new(server.dns("dns+10.0.0.7:7946, dns+[fd00::7]:7946"))).unwrap();
    until_listed(&mut bench, &["10.0.0.7:7946", "[fd00::7]:7946"]).await;
    assert_eq!(server.zone.lock().unwrap().asked, 0);
}

#[tokio::test]
async fn invalid_names_are_refused() {
    for bad in [
        "",
        "users:7946",
        "dns+users",
        "dns+users:0",
        "dns+two words:1",
        "dnssrv+",
        "dnssrv+a b",
        "dns+a:1,b:2",
        "dns+a..b:1",
        "dns+-:1",
        "dns+10.0.0.256:1",
        "dnssrv+a..b",
        "dnssrv+-a",
    ] {
        let error = bad.parse::<Dns>().unwrap_err().to_string();
        assert!(error.contains("dns+host:port"), "{bad}: {error}");
    }
}
