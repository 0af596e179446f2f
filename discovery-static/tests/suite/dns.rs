//! DNS names, asked of a name server that does what the test wants, over real sockets.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use discovery_static::Dns;
use groupcache_core::{
    Health, Me, Provider, async_trait,
    conformance::{Bench, Cannot, Source, Timing, conform},
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
/// Faster than the default: records live for 0 s, and are asked for as often as is allowed.
const FAST: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Well,
    Says(ResponseCode),
    Silent,
    Nonsense,
}

struct Zone {
    records: BTreeMap<String, Vec<(RData, u32)>>,
    mood: Mood,
    /// Of one kind of record only.
    mood_of: Option<(RecordType, Mood)>,
    /// And of one name only: all is well with the others.
    mood_at: Option<&'static str>,
    /// So many questions for IPv4 addresses are answered with none.
    denials: u32,
    asked: u32,
}

/// A name server of a test's own, over UDP, and over TCP for answers that are too long for that.
struct Server {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    tasks: [JoinHandle<()>; 2],
}

impl Server {
    async fn start() -> Self {
        let zone =
            Zone { records: BTreeMap::new(), mood: Mood::Well, mood_of: None, mood_at: None, denials: 0, asked: 0 };
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

/// On one and the same port.
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

/// One connection at a time: there is one client.
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
    let mood = zone.mood_of.filter(|(kind, _)| *kind == query.query_type()).map_or(zone.mood, |(_, mood)| mood);
    if query.query_type() == RecordType::A && zone.denials > 0 {
        zone.denials -= 1;
        return answer.to_vec().ok();
    }
    match if zone.mood_at.is_none_or(|at| at == name) { mood } else { Mood::Well } {
        Mood::Silent => return None,
        Mood::Nonsense => return Some(vec![7; 40]),
        Mood::Says(code) => answer.metadata.response_code = code,
        Mood::Well => match zone.records.get(&name) {
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

/// A service whose members are its addresses, or the targets of its SRV records.
struct Service {
    server: Server,
    members: BTreeMap<String, Me>,
    has_targets: bool,
}

impl Service {
    async fn fresh(has_targets: bool) -> Self {
        Self { server: Server::start().await, members: BTreeMap::new(), has_targets }
    }

    fn write(&self) {
        self.server.set(|zone| {
            zone.mood = Mood::Well;
            zone.records.clear();
            for (name, member) in &self.members {
                let sockets: Vec<SocketAddr> = member.addresses.iter().map(|a| a.as_str().parse().unwrap()).collect();
                let target = format!("{name}.users.test.");
                let data = sockets.iter().map(|socket| (address(socket.ip()), 0));
                if self.has_targets {
                    let name: Name = target.parse().unwrap();
                    let srv = RData::SRV(SRV::new(0, 0, sockets.first().unwrap().port(), name));
                    zone.records.entry(SRV_NAME.to_owned()).or_default().push((srv, 0));
                    zone.records.insert(target, data.collect());
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
        Err(Cannot("a name server does not know who is alive"))
    }

    async fn fail(&mut self) -> Result<(), Cannot> {
        self.server.set(|zone| zone.mood = Mood::Silent);
        Ok(())
    }

    async fn refuse(&mut self) -> Result<(), Cannot> {
        self.server.set(|zone| zone.mood = Mood::Says(ResponseCode::Refused));
        Ok(())
    }

    async fn mend(&mut self, members: &[Me]) {
        for member in members {
            self.members.insert(member.id.to_string(), member.clone());
        }
        self.write();
    }

    async fn garbage(&mut self) -> Result<(), Cannot> {
        self.server.set(|zone| zone.mood = Mood::Nonsense);
        Ok(())
    }

    fn knows_incarnations(&self) -> Result<(), Cannot> {
        Err(Cannot("a name server holds addresses"))
    }

    fn knows_dual_stack(&self) -> Result<(), Cannot> {
        Err(Cannot("which addresses are of one peer tells the Hello"))
    }
}

#[tokio::test]
async fn the_addresses_of_a_name_conform() {
    println!("{}", conform(async || Service::fresh(false).await).await.passed().unwrap());
}

#[tokio::test]
async fn the_targets_of_services_conform() {
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
async fn whatever_is_no_answer_keeps_the_last_addresses() {
    let server = Server::start().await;
    server.addresses(SERVICE, &["10.0.0.1", "fd00::1"], 0);
    let mut bench = Bench::start(Arc::new(server.dns(&format!("dns+{SERVICE}:1")))).unwrap();
    let both = ["10.0.0.1:1", "[fd00::1]:1"];
    until_listed(&mut bench, &both).await;
    let moods =
        [ResponseCode::NXDomain, ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NoError].map(Mood::Says);
    for mood in moods {
        server.set(|zone| zone.mood = mood);
        until_stale(&mut bench).await;
        sleep(FAST * 3).await;
        assert_eq!(listed(&mut bench), both, "{mood:?}");
        server.set(|zone| zone.mood = Mood::Well);
        let begun = Instant::now();
        while bench.health() != Some(Health::Connected) {
            assert!(begun.elapsed() < Duration::from_secs(20));
            sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn one_kind_of_record_that_fails_keeps_its_own_addresses_while_the_other_goes_on() {
    let server = Server::start().await;
    server.addresses(SERVICE, &["10.0.0.1", "fd00::1"], 0);
    let mut bench = Bench::start(Arc::new(server.dns(&format!("dns+{SERVICE}:1")))).unwrap();
    until_listed(&mut bench, &["10.0.0.1:1", "[fd00::1]:1"]).await;
    server.set(|zone| zone.mood_of = Some((RecordType::AAAA, Mood::Says(ResponseCode::ServFail))));
    server.addresses(SERVICE, &["10.0.0.2"], 0);
    until_listed(&mut bench, &["10.0.0.2:1", "[fd00::1]:1"]).await;
    server.set(|zone| zone.mood_of = None);
    until_listed(&mut bench, &["10.0.0.2:1"]).await;
}

#[tokio::test]
async fn a_failure_is_not_taken_for_nobody_though_no_search_domain_has_the_name() {
    let server = Server::start().await;
    server.addresses(SERVICE, &["10.0.0.1", "fd00::1"], 0);
    server.set(|zone| (zone.mood, zone.mood_at) = (Mood::Says(ResponseCode::ServFail), Some(SERVICE)));
    // The first has a dot and is tried as it is at first, the second at last.
    for name in ["users.test", "users"] {
        let dns = server.dns(&format!("dns+{name}:1")).search("test.").search("elsewhere.test.");
        let mut bench = Bench::start(Arc::new(dns)).unwrap();
        until_stale(&mut bench).await;
        sleep(FAST * 3).await;
        assert_eq!(bench.sets(), 0, "{name}: it does not know that it is alone");
        server.set(|zone| zone.mood = Mood::Well);
        until_listed(&mut bench, &["10.0.0.1:1", "[fd00::1]:1"]).await;
        server.set(|zone| zone.mood = Mood::Says(ResponseCode::ServFail));
        bench.stop().await;
    }
}

#[tokio::test]
async fn a_kind_of_record_that_fails_keeps_its_own_addresses_though_no_search_domain_has_the_name() {
    let server = Server::start().await;
    server.addresses(SERVICE, &["10.0.0.1", "fd00::1"], 0);
    let dns = server.dns("dns+users.test:1").search("elsewhere.test.");
    let mut bench = Bench::start(Arc::new(dns)).unwrap();
    until_listed(&mut bench, &["10.0.0.1:1", "[fd00::1]:1"]).await;
    server.set(|zone| {
        zone.mood_of = Some((RecordType::A, Mood::Says(ResponseCode::ServFail)));
        zone.mood_at = Some(SERVICE);
    });
    server.addresses(SERVICE, &["10.0.0.2", "fd00::2"], 0);
    until_listed(&mut bench, &["10.0.0.1:1", "[fd00::2]:1"]).await;
    sleep(FAST * 4).await;
    assert_eq!(listed(&mut bench), ["10.0.0.1:1", "[fd00::2]:1"]);
    server.set(|zone| zone.mood_of = None);
    until_listed(&mut bench, &["10.0.0.2:1", "[fd00::2]:1"]).await;
}

#[tokio::test]
async fn that_there_is_none_of_one_kind_is_believed_when_it_is_said_twice() {
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
async fn a_name_that_fails_does_not_keep_the_others_from_being_known() {
    let server = Server::start().await;
    server.addresses(SERVICE, &["10.0.0.1"], 0);
    server.set(|zone| zone.mood_of = Some((RecordType::AAAA, Mood::Says(ResponseCode::ServFail))));
    let names = format!("dns+{SERVICE}:1, dns+later.test.:2");
    let mut bench = Bench::start(Arc::new(server.dns(&names))).unwrap();
    let begun = Instant::now();
    while listed(&mut bench) != ["10.0.0.1:1"] {
        assert!(begun.elapsed() < Duration::from_secs(20));
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(bench.sets(), 0, "an addition: the other name may know more");
    server.set(|zone| zone.mood_of = None);
    server.addresses("later.test.", &["10.0.0.9"], 0);
    until_listed(&mut bench, &["10.0.0.1:1", "10.0.0.9:2"]).await;
}

#[tokio::test]
async fn a_name_is_asked_for_again_when_its_records_expire_and_within_the_bounds() {
    let server = Server::start().await;
    server.addresses(SERVICE, &["10.0.0.1"], 3600);
    let dns = format!("dns+{SERVICE}:1").parse::<Dns>().unwrap().name_server(server.address);
    let mut bench =
        Bench::start(Arc::new(dns.between(Duration::from_millis(100), Duration::from_millis(800)))).unwrap();
    until_listed(&mut bench, &["10.0.0.1:1"]).await;
    server.addresses(SERVICE, &["10.0.0.2"], 0);
    let begun = Instant::now();
    until_listed(&mut bench, &["10.0.0.2:1"]).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "an hour of life is cut to the upper bound");
    let before = server.zone.lock().unwrap().asked;
    sleep(Duration::from_secs(1)).await;
    let asked = server.zone.lock().unwrap().asked - before;
    assert!((8..=30).contains(&asked), "{asked} questions in a second, two in each round, at most one round in 80 ms");
}

#[tokio::test]
async fn names_are_checked() {
    for bad in ["", "users:7946", "dns+users", "dns+users:0", "dns+two words:1", "dnssrv+", "dnssrv+a b", "dns+a:1,b:2"]
    {
        let error = bad.parse::<Dns>().unwrap_err().to_string();
        assert!(error.contains("dns+host:port"), "{bad}: {error}");
    }
}
