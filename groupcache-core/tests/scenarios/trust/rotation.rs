//! Rotation of keys and authorities while three processes make 1,000 gets a second: no get fails, every connection is
//! replaced (promised within 50 s, tested with 75 s for busy machines), and a node without the new secret is excluded.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Lines, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::support::{
    Peers, identity, pki,
    pki::{Authority, Pem},
};
use groupcache_core::{
    BoxError, Group, Node, NodeBuilder, PeerId,
    discovery::{Address, Peer},
    tls::{ClusterKey, MutualTls},
};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Environment variable with the id of a child process.
const ID: &str = "GROUPCACHE_TEST_TRUST_ID";
/// Environment variable with the path of its cluster key.
const KEY: &str = "GROUPCACHE_TEST_TRUST_KEY";
/// Environment variable with the folder of its certificates.
const CERTIFICATES: &str = "GROUPCACHE_TEST_TRUST_CERTIFICATES";

/// Pause between two gets of one process: three processes make 1,000 gets a second.
const PAUSE: Duration = Duration::from_millis(3);

/// Time limit for the replacement of all connections, with time to spare on a busy machine.
const RENEWED: Duration = Duration::from_secs(75);

async fn echo(_: &(), key: &str) -> Result<String, BoxError> {
    Ok(key.to_owned())
}

/// Runs a node when it is started by [`Process`], and obeys the lines on standard input. Returns at once as a test.
#[test]
fn child_process_runs_a_node() {
    let Ok(id) = std::env::var(ID) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let peers = Peers::default();
    let (node, group) = runtime.block_on(async {
        // Node d, which does not get the new secret, owns no keys, because those would be loaded elsewhere.
        let me = identity(&id).with_weight(u8::from(id != "d")).unwrap();
        let node = trusting(Node::builder()).identity(me).provider(peers.clone()).start().await.unwrap();
        let group = node.group::<String>("data").capacity_bytes(64 << 20).loader_with((), echo).build().unwrap();
        (node, group)
    });
    println!("\nlistening {}", node.address());
    let failed = Arc::new(AtomicU64::new(0));
    for line in std::io::stdin().lines().map_while(Result::ok) {
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("peers", list) => peers.set(list.split(',').map(peer).collect()),
            ("load", _) => drop(runtime.spawn(get_continuously(id.clone(), group.clone(), Arc::clone(&failed)))),
            ("reload", _) => println!("reloaded {}", runtime.block_on(node.reload_tls()).unwrap()),
            ("report", _) => println!("{}", report(&node, &group, &failed)),
            other => panic!("{other:?}"),
        }
    }
}

fn trusting(builder: NodeBuilder) -> NodeBuilder {
    if let Ok(path) = std::env::var(KEY) {
        return builder.cluster_key(ClusterKey::from_file(path));
    }
    let at = PathBuf::from(std::env::var(CERTIFICATES).unwrap());
    let tls = MutualTls::from_files(at.join("tls.crt"), at.join("tls.key"), at.join("ca.crt"));
    builder.mutual_tls(tls.peer_names(["{id}.peers"]).unwrap())
}

fn peer(text: &str) -> Peer {
    let (id, address) = text.split_once('@').unwrap();
    Peer::member(PeerId::new(id).unwrap(), [Address::new(address).unwrap()])
}

async fn get_continuously(id: String, group: Group<String>, failed: Arc<AtomicU64>) {
    let mut ticks = interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for n in 0_u64.. {
        ticks.tick().await;
        let (group, failed, key) = (group.clone(), Arc::clone(&failed), format!("{id}-{n}"));
        tokio::spawn(async move {
            if let Err(error) = group.get(&key).await {
                eprintln!("failed: {error:?}");
                failed.fetch_add(1, SeqCst);
            }
        });
    }
}

fn report(node: &Node, group: &Group<String>, failed: &AtomicU64) -> String {
    let (gets, stats) = (group.stats(), node.stats());
    let members = node.members();
    let reachable = members.iter().filter(|member| member.reachable && !member.local).count();
    let untrusted = node.unconnected().iter().filter(|peer| peer.error.is_unauthenticated()).count();
    let offering = node.peers_with_group("data");
    format!(
        "gets={} failed={} elsewhere={} connected={} accepted={} lost={} reachable={reachable} offering={offering} untrusted={untrusted}",
        gets.gets,
        failed.load(SeqCst),
        gets.fallback_loads,
        stats.connected,
        stats.accepted,
        stats.lost,
    )
}

struct Process {
    id: &'static str,
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    stdin: ChildStdin,
    address: String,
}

impl Process {
    fn start(id: &'static str, secret: &str, path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["trust::rotation::child_process_runs_a_node", "--exact", "--nocapture"])
            .envs([(ID, Path::new(id)), (secret, path)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdout, stdin) = (BufReader::new(child.stdout.take().unwrap()).lines(), child.stdin.take().unwrap());
        let mut process = Self { id, child, stdout, stdin, address: String::new() };
        process.address = process.read_line("listening ");
        process
    }

    fn send(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").unwrap();
    }

    /// Waits for a line that begins with `begin` and returns the rest of it.
    fn read_line(&mut self, begin: &str) -> String {
        let mut lines = self.stdout.by_ref().map_while(Result::ok);
        lines.find_map(|line| line.strip_prefix(begin).map(str::to_owned)).expect("the child goes on")
    }

    fn report(&mut self) -> Report {
        self.send("report");
        let line = format!("gets={}", self.read_line("gets="));
        let pairs = line.split(' ').map(|pair| pair.split_once('=').unwrap());
        Report(pairs.map(|(name, n)| (name.to_owned(), n.parse().unwrap())).collect())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
struct Report(BTreeMap<String, u64>);

impl std::ops::Index<&str> for Report {
    type Output = u64;

    fn index(&self, name: &str) -> &u64 {
        &self.0[name]
    }
}

/// Three processes under load, which receive each new secret, and a fourth, `d`, which does not.
struct Scene {
    updated: Vec<Process>,
    outdated: Process,
}

impl Scene {
    async fn start(secret: &str, path_of: impl Fn(&str) -> PathBuf) -> Self {
        let mut all: Vec<_> = ["a", "b", "c", "d"].map(|id| Process::start(id, secret, &path_of(id))).into();
        let list: Vec<_> = all.iter().map(|process| format!("{}@{}", process.id, process.address)).collect();
        all.iter_mut().for_each(|process| process.send(&format!("peers {}", list.join(","))));
        let outdated = all.pop().unwrap();
        let mut scene = Self { updated: all, outdated };
        scene
            .wait_until("all processes know each other", Duration::from_secs(20), |scene| {
                scene.all().all(|process| process.report()["offering"] == 3)
            })
            .await;
        scene.updated.iter_mut().for_each(|process| process.send("load"));
        scene
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Process> {
        self.updated.iter_mut().chain([&mut self.outdated])
    }

    /// Waits for a condition while the load goes on.
    async fn wait_until(&mut self, what: &str, patience: Duration, mut holds: impl FnMut(&mut Self) -> bool) {
        let step = Duration::from_millis(200);
        for _ in 0..patience.as_millis() / step.as_millis() {
            if holds(self) {
                return;
            }
            sleep(step).await;
        }
        let reports: Vec<_> = self.all().map(|process| process.report()).collect();
        panic!("not within {patience:?}: {what}: {reports:#?}");
    }

    /// Changes files, makes the three processes read theirs one after the other, and waits until all their connections
    /// are new.
    async fn change(&mut self, what: &str, write: impl FnOnce()) {
        let count = |process: &mut Process| {
            let report = process.report();
            (report["connected"], report["accepted"])
        };
        let before: Vec<_> = self.updated.iter_mut().map(count).collect();
        write();
        for process in &mut self.updated {
            process.send("reload");
            process.read_line("reloaded "); // with either answer: the process may have read the files by itself
            sleep(Duration::from_millis(300)).await; // so that the processes do not change at the same moment
        }
        self.wait_until(what, RENEWED, |scene| {
            scene.updated.iter_mut().zip(&before).all(|(process, (connected, accepted))| {
                let now = process.report();
                now["connected"] >= connected + 2 && now["accepted"] >= accepted + 2 && now["reachable"] >= 2
            })
        })
        .await;
    }

    /// Checks that no get of the three processes has failed or was loaded by a node other than the owner, and that the
    /// fourth process is excluded.
    async fn check_end(mut self) {
        self.wait_until("process d is excluded", RENEWED, |scene| {
            let outdated = scene.outdated.report();
            outdated["untrusted"] == 3 && scene.updated.iter_mut().all(|process| process.report()["reachable"] == 2)
        })
        .await;
        let mut gets = 0;
        for process in &mut self.updated {
            let report = process.report();
            println!("{}: {report:?}", process.id);
            assert_eq!((report["failed"], report["elsewhere"]), (0, 0), "{}", process.id);
            gets += report["gets"];
        }
        assert!(gets > 5_000, "only {gets} gets");
    }
}

/// Creates a folder for the files of a test.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    path
}

/// Replaces a file as an orchestrator does: writes a new file beside it and renames that file.
fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(beside, path).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn cluster_key_changes_in_two_steps_without_a_failed_get() {
    let folder = folder("cluster-key");
    let path = |id: &str| folder.join(id);
    let [old, new] = [(); 2].map(|()| pki::cluster_key());
    ["a", "b", "c", "d"].iter().for_each(|id| replace(&path(id), &old));
    let mut scene = Scene::start(KEY, path).await;
    let write = |text: &str| ["a", "b", "c"].iter().for_each(|id| replace(&path(id), text));
    scene.change("new and old key", || write(&format!("{new}\n{old}\n"))).await;
    scene.change("new key only", || write(&new)).await;
    scene.check_end().await;
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn authority_changes_in_three_steps_without_a_failed_get() {
    let folder = folder("authority");
    let path = |id: &str| folder.join(id);
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let write = |id: &str, certificate: &Pem, authorities: &str| {
        fs::create_dir_all(path(id)).unwrap();
        replace(&path(id).join("tls.crt"), &certificate.certificate);
        replace(&path(id).join("tls.key"), &certificate.key);
        replace(&path(id).join("ca.crt"), authorities);
    };
    let both = format!("{}{}", old.pem(), new.pem());
    let olds = ["a", "b", "c", "d"].map(|id| (id, old.issue(&format!("{id}.peers"))));
    olds.iter().for_each(|(id, pem)| write(id, pem, &old.pem()));
    let mut scene = Scene::start(CERTIFICATES, path).await;
    let trust_both = || olds.iter().take(3).for_each(|(id, pem)| write(id, pem, &both));
    scene.change("trust in both authorities", trust_both).await;
    let news = ["a", "b", "c"].map(|id| (id, new.issue(&format!("{id}.peers"))));
    let show_new = || news.iter().for_each(|(id, pem)| write(id, pem, &both));
    scene.change("certificates of the new authority", show_new).await;
    let trust_new = || news.iter().for_each(|(id, pem)| write(id, pem, &new.pem()));
    scene.change("trust in the new authority only", trust_new).await;
    scene.check_end().await;
    fs::remove_dir_all(folder).unwrap();
}
