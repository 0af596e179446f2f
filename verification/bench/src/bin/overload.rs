//! Overload: the outcome of gets when an owner gets more requests than its source can load, and when all peers are gone
//! for 30 s. Each node is a process of its own. Requires a release build.
//!
//! `overload` prints all results in about two minutes.

use std::{
    error::Error,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use groupcache_core::{
    Group, Identity, Limits, Node, PeerId,
    discovery::{Address, Peer, Provider, poll},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

/// Number of concurrent loads of the owner's source.
const AT_ONCE: usize = 16;
/// Duration of a load.
const LOAD: Duration = Duration::from_millis(20);
/// Loads per second of the owner's source.
const CAPACITY: f64 = AT_ONCE as f64 / 0.020;

/// Time for which each rate of gets is measured.
const MEASURED: Duration = Duration::from_secs(8);
/// Time at the beginning of each rate that is not counted.
const SETTLING: Duration = Duration::from_secs(2);

/// Time for which all peers are gone.
const OUTAGE: Duration = Duration::from_secs(30);
const GETS_PER_SECOND: f64 = 1_000.0;

type Failed = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failed> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        match arguments.as_slice() {
            [id, listen, peers] => serve(id, listen.parse()?, peers).await,
            _ => {
                overload().await?;
                outage("killed", "-KILL").await?;
                outage("stopped", "-STOP").await
            }
        }
    })
}

/// Runs a node until the parent process has ended.
async fn serve(id: &str, listen: SocketAddr, peers: &str) -> Result<(), Failed> {
    let me = Identity::new(listen).with_id(id)?;
    let mut limits = Limits::default();
    limits.max_loads = AT_ONCE;
    let node = Node::builder().identity(me).limits(limits).provider(listed(peers)).start().await?;
    let _group = group(&node)?;
    println!("listening {}", node.address());
    let until_the_parent_is_gone = || std::io::stdin().read_to_end(&mut Vec::new());
    tokio::task::block_in_place(until_the_parent_is_gone)?;
    Ok(())
}

fn group(node: &Node) -> Result<Group<String>, Failed> {
    let load = async |key: &str| {
        // Only keys with the prefix `slow` take time. All others are loaded at once.
        if key.starts_with("slow") {
            sleep(LOAD).await;
        }
        Ok::<_, std::io::Error>(key.to_owned())
    };
    Ok(node.group::<String>("data").capacity_bytes(64 << 20).replicas(false).loader(load).build()?)
}

fn listed(peers: &str) -> impl Provider {
    let peer = |text: &str| {
        let (id, address) = text.split_once('@')?;
        Some(Peer::member(PeerId::new(id).ok()?, [Address::new(address).ok()?]))
    };
    let peers: Vec<Peer> = peers.split(',').filter_map(peer).collect();
    poll("list", Duration::from_secs(1), move || std::future::ready(Ok(peers.clone())))
}

struct Process {
    id: &'static str,
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start(id: &'static str, listen: SocketAddr, peers: &str) -> Result<Self, Failed> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([id, &listen.to_string(), peers])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("the output of the process is not piped")?)
            .lines()
            .map_while(Result::ok);
        let address = lines.find_map(|line| line.strip_prefix("listening ").map(str::parse));
        Ok(Self { id, child, address: address.ok_or("the process did not start")?? })
    }

    fn listed(&self) -> String {
        format!("{}@{}", self.id, self.address)
    }

    fn signal(&self, name: &str) -> Result<(), Failed> {
        let done = Command::new("kill").args([name, &self.child.id().to_string()]).status()?.success();
        if done { Ok(()) } else { Err("the signal could not be sent".into()) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a node in this process, and waits until the node reaches the other processes.
async fn node(weight: u8, processes: &[&Process]) -> Result<(Node, Group<String>), Failed> {
    let me = Identity::default().with_id("b")?.with_weight(weight)?;
    let peers: Vec<_> = processes.iter().map(|process| process.listed()).collect();
    let node = Node::builder().identity(me).provider(listed(&peers.join(","))).start().await?;
    let group = group(&node)?;
    while node.peers_with_group("data") < processes.len() {
        sleep(Duration::from_millis(10)).await;
    }
    Ok((node, group))
}

/// Outcomes of gets, each with its time.
#[derive(Default)]
struct Outcomes {
    values: Vec<Duration>,
    overloaded: Vec<Duration>,
    failed: u64,
    /// Error of the first get that failed.
    why: Option<String>,
}

fn p99(times: &mut [Duration]) -> String {
    times.sort();
    let at = times.len() * 99 / 100;
    times.get(at).map_or("none".to_owned(), |p99| format!("{:.2} ms", p99.as_secs_f64() * 1000.0))
}

/// Makes `per_second` gets of new keys per second until `end` resolves, whether earlier gets have ended or not. Gets
/// that begin after `settling` are counted.
async fn gets(group: &Group<String>, prefix: &str, per_second: f64, settling: Duration, end: impl Future) -> Outcomes {
    let outcomes = Arc::<Mutex<Outcomes>>::default();
    let begun = Instant::now();
    let generate = async {
        let (mut ticks, mut sent) = (interval(Duration::from_millis(1)), 0_u64);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let due = (begun.elapsed().as_secs_f64() * per_second) as u64;
            for n in sent..due {
                let (group, outcomes, key) = (group.clone(), Arc::clone(&outcomes), format!("{prefix}-{n}"));
                let is_counted = begun.elapsed() >= settling;
                tokio::spawn(async move {
                    let at = Instant::now();
                    let got = group.get(&key).await;
                    let took = at.elapsed();
                    let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                    match got {
                        _ if !is_counted => {}
                        Ok(_) => outcomes.values.push(took),
                        Err(e) if e.is_overloaded() => outcomes.overloaded.push(took),
                        Err(e) => {
                            outcomes.failed += 1;
                            outcomes.why.get_or_insert(e.to_string());
                        }
                    }
                });
            }
            sent = due;
        }
    };
    tokio::select! {
        () = generate => {}
        _ = end => {}
    }
    // Gets that still wait get their time. A queue lasts some seconds at most.
    sleep(2 * SETTLING).await;
    std::mem::take(&mut *outcomes.lock().unwrap_or_else(PoisonError::into_inner))
}

async fn overload() -> Result<(), Failed> {
    println!("An owner with a source of {CAPACITY:.0} loads/s, with the gets of one other node:\n");
    println!("| gets / capacity | values/s | of the peak | p99 of values | refused/s | p99 of refusals | failed |");
    println!("|---|---|---|---|---|---|---|");
    let mut peak = 0.0_f64;
    for times in [0.5, 1.0, 2.0, 10.0, 1.0] {
        // Each rate has a new owner, because the queue of the last owner may not be empty.
        let owner = Process::start("a", ([127, 0, 0, 1], 0).into(), "")?;
        let (node, group) = node(0, &[&owner]).await?;
        let mut got = gets(&group, "slow", times * CAPACITY, SETTLING, sleep(MEASURED + SETTLING)).await;
        let seconds = MEASURED.as_secs_f64();
        let (values, refused) = (got.values.len() as f64 / seconds, got.overloaded.len() as f64 / seconds);
        peak = peak.max(values);
        let (of_values, of_refusals) = (p99(&mut got.values), p99(&mut got.overloaded));
        let share = 100.0 * values / peak;
        println!(
            "| {times} | {values:.0} | {share:.0} % | {of_values} | {refused:.0} | {of_refusals} | {} |",
            got.failed
        );
        node.shutdown_within(Duration::from_secs(1)).await?;
    }
    Ok(())
}

async fn outage(what: &str, signal: &str) -> Result<(), Failed> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut peers = vec![Process::start("a", any, "")?, Process::start("c", any, "")?];
    let (node, group) = node(1, &peers.iter().collect::<Vec<_>>()).await?;
    let getting = tokio::spawn({
        let group = group.clone();
        async move { gets(&group, "fast", GETS_PER_SECOND, Duration::ZERO, sleep(OUTAGE + 6 * SETTLING)).await }
    });
    sleep(SETTLING).await;
    let (gets_before, sent_before) = (group.stats().gets, node.stats().requests_sent);
    for peer in &peers {
        peer.signal(signal)?;
    }
    sleep(OUTAGE).await;
    let attempts = (node.stats().requests_sent - sent_before) as f64 / (group.stats().gets - gets_before) as f64;
    for peer in &mut peers {
        if signal == "-STOP" {
            peer.signal("-CONT")?;
        } else {
            *peer = Process::start(peer.id, peer.address, "")?;
        }
    }
    let (back, mut last, mut loads) = (Instant::now(), Duration::ZERO, group.stats().fallback_loads);
    // The cluster has recovered when the last fallback load has ended.
    while back.elapsed() < 4 * SETTLING {
        sleep(Duration::from_millis(10)).await;
        let now = group.stats().fallback_loads;
        if now > loads {
            (last, loads) = (back.elapsed(), now);
        }
    }
    let mut got = getting.await?;
    println!(
        "\nAll peers {what} for {OUTAGE:?}, {GETS_PER_SECOND:.0} gets/s of new keys: {} values (p99 {}), \
         {} overloaded, {} failed{}; {attempts:.3} requests sent per get meanwhile; last fallback load {:.2} s after \
         the return of the peers",
        got.values.len(),
        p99(&mut got.values),
        got.overloaded.len(),
        got.failed,
        got.why.map(|why| format!(" ({why})")).unwrap_or_default(),
        last.as_secs_f64(),
    );
    node.shutdown_within(Duration::from_secs(1)).await?;
    Ok(())
}
