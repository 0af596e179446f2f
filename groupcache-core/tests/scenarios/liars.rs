//! A liar between discovery and three nodes that prove themselves with a cluster key: whatever the liar publishes, no
//! member leaves that is alive, no get fails, and the log stays readable.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::support::{self, Gate, eventually, gated, identity, name, warnings::Warnings};
use groupcache_core::{
    Group, Node, PeerId, async_trait,
    discovery::{Address, Incarnation, Peer, PeerSet, Provider, ProviderContext, ProviderError, Signal},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

/// Time for which each lie is told: longer than the grace of a missing member.
const LIE: Duration = Duration::from_secs(8);
/// Time before the first lie, for comparison.
const QUIET: Duration = Duration::from_secs(3);
/// Deadline of each get. Beyond it, a get has failed.
const DEADLINE: Duration = Duration::from_secs(5);
/// Maximum number of lines in the log of one node per minute.
const LINES_PER_MINUTE: usize = 100;

/// The set and the departures that the liar publishes at the moment.
#[derive(Clone, Default)]
struct Lie {
    set: Vec<Peer>,
    departed: Vec<PeerId>,
}

/// Provider of hints that publishes each lie as it is, and again when it is asked.
#[derive(Clone, Default)]
struct Liar(Arc<watch::Sender<Lie>>);

impl Liar {
    fn says(&self, set: Vec<Peer>) {
        self.0.send_replace(Lie { set, departed: Vec::new() });
    }
}

#[async_trait]
impl Provider for Liar {
    fn name(&self) -> &str {
        "liar"
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        let mut lies = self.0.subscribe();
        loop {
            let lie = lies.borrow_and_update().clone();
            cx.publish(PeerSet::complete(lie.set));
            for id in lie.departed {
                cx.left(id, Some(Incarnation(u64::MAX)));
            }
            tokio::select! {
                changed = lies.changed() => changed?,
                signal = cx.next() => if signal == Signal::Leaving { return Ok(()) },
            }
        }
    }
}

/// The gets of a test.
#[derive(Default)]
struct Gets {
    /// Time that each get took, in their order.
    took: Vec<Duration>,
    failed: Vec<String>,
}

/// Three nodes that the liar feeds, with gets that go on all the time.
struct Deceived {
    nodes: Vec<Node>,
    liar: Liar,
    gets: JoinHandle<Gets>,
    is_over: Arc<AtomicBool>,
    warnings: Warnings,
    begun: Instant,
    /// Number of gets before the first lie, and the resident memory then.
    quiet_gets: usize,
    quiet_mib: u64,
}

impl Deceived {
    async fn start(warnings: Warnings) -> Self {
        let (liar, mut nodes) = (Liar::default(), Vec::new());
        #[cfg(feature = "tls")]
        let key = crate::support::pki::cluster_key();
        for at in 0..3 {
            let builder = Node::builder().identity(identity(&name(at))).provider(liar.clone());
            #[cfg(feature = "tls")]
            let builder = builder.cluster_key(groupcache_core::tls::ClusterKey::new(&key).unwrap());
            nodes.push(builder.start().await.unwrap());
        }
        liar.says(nodes.iter().map(support::peer).collect());
        eventually("all nodes are together", || is_whole(&nodes)).await;
        let gate = Gate::default();
        gate.open();
        let group = |node: &Node| {
            node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated).build().unwrap()
        };
        let groups: Vec<_> = nodes.iter().map(group).collect();
        eventually("all nodes know the group", || nodes.iter().all(|node| node.peers_with_group("data") == 2)).await;
        let is_over = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicUsize::new(0));
        let gets = tokio::spawn(get_until_over(groups, Arc::clone(&is_over), Arc::clone(&count)));
        sleep(QUIET).await;
        let quiet_gets = count.load(SeqCst);
        let quiet_mib = resident_mib();
        Self { nodes, liar, gets, is_over, warnings, begun: Instant::now(), quiet_gets, quiet_mib }
    }

    fn truth(&self) -> Vec<Peer> {
        self.nodes.iter().map(support::peer).collect()
    }

    /// Tells a lie and checks, all the time that it is told, that no member has left.
    async fn lie(&self, what: &str, set: Vec<Peer>) {
        self.liar.says(set);
        self.stay_together(what).await;
    }

    async fn stay_together(&self, what: &str) {
        let until = Instant::now() + LIE;
        while Instant::now() < until {
            assert!(is_whole(&self.nodes), "{what}: a member left: {:?}", members(&self.nodes));
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn end(self) {
        self.is_over.store(true, SeqCst);
        let memory = resident_mib();
        let Gets { took, failed } = self.gets.await.unwrap();
        let (quiet, during) = took.split_at(self.quiet_gets.min(took.len()));
        println!(
            "{} gets, {} failed, p99 {:?} before and {:?} during, resident {} MiB before and {memory} MiB during",
            took.len(),
            failed.len(),
            p99(&quiet[quiet.len() / 2..]),
            p99(during),
            self.quiet_mib
        );
        assert!(failed.is_empty(), "{} gets failed: {:?}", failed.len(), failed.first_chunk::<3>());
        // The nodes of a test write to one log.
        let minutes = (self.begun.elapsed().as_secs_f64() / 60.0).max(1.0);
        let allowed = (LINES_PER_MINUTE * self.nodes.len()) as f64 * minutes;
        let lines = self.warnings.lines_with("");
        assert!(
            lines.len() as f64 <= allowed,
            "{} lines in {minutes} min: {:?}",
            lines.len(),
            lines.first_chunk::<20>()
        );
        for node in &self.nodes {
            node.shutdown_within(Duration::from_secs(1)).await.unwrap();
        }
    }
}

/// Returns whether each node has all three nodes in its view.
fn is_whole(nodes: &[Node]) -> bool {
    nodes.iter().all(|node| node.members().iter().filter(|member| member.id.as_str().len() == 1).count() == 3)
}

fn members(nodes: &[Node]) -> Vec<Vec<String>> {
    nodes.iter().map(|node| node.members().iter().map(|member| member.id.to_string()).collect()).collect()
}

/// Gets keys at each node in turn, until it is over. `count` follows the number of gets.
async fn get_until_over(groups: Vec<Group<String>>, is_over: Arc<AtomicBool>, count: Arc<AtomicUsize>) -> Gets {
    let mut gets = Gets::default();
    while !is_over.load(SeqCst) {
        let number = gets.took.len();
        let (group, key) = (&groups[number % groups.len()], format!("key-{}", number % 500));
        let begun = Instant::now();
        match tokio::time::timeout(DEADLINE, group.get(&key)).await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => gets.failed.push(e.to_string()),
            Err(_) => gets.failed.push("after its deadline".to_owned()),
        }
        gets.took.push(begun.elapsed());
        count.store(gets.took.len(), SeqCst);
        sleep(Duration::from_millis(2)).await;
    }
    gets
}

/// Returns the time that 99 of 100 gets did not exceed.
fn p99(took: &[Duration]) -> Duration {
    let mut sorted = took.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() * 99 / 100).copied().unwrap_or_default()
}

/// Returns the resident memory of this process in MiB.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn invented(n: usize, address: impl Fn(usize) -> String) -> Vec<Peer> {
    let peer = |n| Peer::member(PeerId::new(format!("invented-{n}")).unwrap(), [Address::new(address(n)).unwrap()]);
    (0..n).map(peer).collect()
}

/// Checks a source that is right and then empty twice, one that names only others, and one that flaps.
#[tokio::test]
async fn sets_without_the_living_remove_nobody() {
    let (warnings, _guard) = Warnings::capture();
    let deceived = Deceived::start(warnings).await;
    deceived.lie("empty", Vec::new()).await;
    deceived.lie("empty again", Vec::new()).await;
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    deceived.lie("only others", invented(5, |_| dead.to_string())).await;
    for _ in 0..40 {
        deceived.liar.says(Vec::new());
        sleep(Duration::from_millis(50)).await;
        deceived.liar.says(deceived.truth());
        sleep(Duration::from_millis(50)).await;
    }
    deceived.stay_together("flapping").await;
    deceived.end().await;
}

/// Checks departures of the living with the highest incarnation, and a record of each node's own id with a higher
/// incarnation at a dead address.
#[tokio::test]
async fn false_departures_and_incarnations_remove_nobody() {
    let (warnings, _guard) = Warnings::capture();
    let deceived = Deceived::start(warnings).await;
    let ids: Vec<_> = deceived.nodes.iter().map(Node::id).collect();
    for _ in 0..20 {
        deceived.liar.0.send_replace(Lie { set: deceived.truth(), departed: ids.clone() });
        sleep(Duration::from_millis(100)).await;
    }
    deceived.stay_together("departures").await;
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let claims = |incarnation| {
        let claim = |id: &PeerId| Peer::member(id.clone(), [dead.into()]).with_incarnation(Incarnation(incarnation));
        ids.iter().map(claim).collect::<Vec<_>>()
    };
    deceived.lie("a higher incarnation", claims(u64::MAX - 10)).await;
    deceived.lie("the highest incarnation", claims(u64::MAX)).await;
    deceived.liar.says(deceived.truth());
    deceived.stay_together("the truth again").await;
    deceived.end().await;
}

/// Checks floods of 10,000 invented ids: at dead addresses, with names that no name server knows, and at the address of
/// one member.
#[tokio::test]
async fn floods_of_invented_ids_remove_nobody() {
    let (warnings, _guard) = Warnings::capture();
    let deceived = Deceived::start(warnings).await;
    let aimed = deceived.nodes[0].address().to_string();
    let floods = [
        ("dead addresses", invented(10_000, |n| format!("127.0.{}.{}:9", n / 250, n % 250 + 1))),
        ("names", invented(10_000, |n| format!("name-{n}.invalid:7946"))),
        ("one address", invented(10_000, |_| aimed.clone())),
    ];
    for (what, flood) in floods {
        let before = deceived.nodes[0].stats().accepted;
        deceived.lie(what, flood.clone()).await;
        deceived.lie(what, [deceived.truth(), flood].concat()).await;
        println!("{what}: {} connections at the first member", deceived.nodes[0].stats().accepted - before);
    }
    deceived.end().await;
}
