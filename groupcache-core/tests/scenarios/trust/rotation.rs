//! Keys and authorities are changed while three processes make 1,000 gets a second: no get fails, every connection is
//! made anew within a minute, and who was not given what is new is out.

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
use groupcache_core::{Address, BoxError, ClusterKey, Group, MutualTls, Node, NodeBuilder, Peer, PeerId};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Set for a process of its own: what it is called, and where its key or its certificates are.
const ID: &str = "GROUPCACHE_TEST_TRUST_ID";
const KEY: &str = "GROUPCACHE_TEST_TRUST_KEY";
const CERTIFICATES: &str = "GROUPCACHE_TEST_TRUST_CERTIFICATES";

/// Between two gets of one process: three of them make 1,000 a second.
const PAUSE: Duration = Duration::from_millis(3);

/// Every connection is a new one after this long, with time to spare on a busy machine.
const RENEWED: Duration = Duration::from_secs(75);

async fn echo(_: &(), key: &str) -> Result<String, BoxError> {
    Ok(key.to_owned())
}

/// Not a test but a node: run by [`Process`], it does what its parent says.
#[test]
fn a_process_of_its_own() {
    let Ok(id) = std::env::var(ID) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let peers = Peers::default();
    let (node, group) = runtime.block_on(async {
        // Who is left behind owns nothing: keys of its own would be loaded elsewhere.
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
            ("load", _) => drop(runtime.spawn(get_on_and_on(id.clone(), group.clone(), Arc::clone(&failed)))),
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

async fn get_on_and_on(id: String, group: Group<String>, failed: Arc<AtomicU64>) {
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
    let reachable = members.iter().filter(|member| member.is_reachable && !member.is_me).count();
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
    says: Lines<BufReader<ChildStdout>>,
    told: ChildStdin,
    address: String,
}

impl Process {
    fn start(id: &'static str, secret: &str, path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["trust::rotation::a_process_of_its_own", "--exact", "--nocapture"])
            .envs([(ID, Path::new(id)), (secret, path)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (says, told) = (BufReader::new(child.stdout.take().unwrap()).lines(), child.stdin.take().unwrap());
        let mut process = Self { id, child, says, told, address: String::new() };
        process.address = process.hears("listening ");
        process
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.told, "{what}").unwrap();
    }

    /// The rest of the next line that begins so.
    fn hears(&mut self, begin: &str) -> String {
        let mut lines = self.says.by_ref().map_while(Result::ok);
        lines.find_map(|line| line.strip_prefix(begin).map(str::to_owned)).expect("it goes on")
    }

    fn report(&mut self) -> Report {
        self.tell("report");
        let line = format!("gets={}", self.hears("gets="));
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

/// Three processes under load, and a fourth that is not told what is new.
struct Scene {
    three: Vec<Process>,
    left_behind: Process,
}

impl Scene {
    async fn start(secret: &str, path_of: impl Fn(&str) -> PathBuf) -> Self {
        let mut all: Vec<_> = ["a", "b", "c", "d"].map(|id| Process::start(id, secret, &path_of(id))).into();
        let list: Vec<_> = all.iter().map(|process| format!("{}@{}", process.id, process.address)).collect();
        all.iter_mut().for_each(|process| process.tell(&format!("peers {}", list.join(","))));
        let left_behind = all.pop().unwrap();
        let mut scene = Self { three: all, left_behind };
        scene
            .until("all know each other", Duration::from_secs(20), |scene| {
                scene.all().all(|process| process.report()["offering"] == 3)
            })
            .await;
        scene.three.iter_mut().for_each(|process| process.tell("load"));
        scene
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Process> {
        self.three.iter_mut().chain([&mut self.left_behind])
    }

    /// Waits for a condition; the load goes on.
    async fn until(&mut self, what: &str, patience: Duration, mut holds: impl FnMut(&mut Self) -> bool) {
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

    /// Changes files, has the three read theirs one after the other, and waits until all their connections are new.
    async fn change(&mut self, what: &str, write: impl FnOnce()) {
        let count = |process: &mut Process| {
            let report = process.report();
            (report["connected"], report["accepted"])
        };
        let before: Vec<_> = self.three.iter_mut().map(count).collect();
        write();
        for process in &mut self.three {
            process.tell("reload");
            process.hears("reloaded "); // or it has read them by itself just before
            sleep(Duration::from_millis(300)).await; // they do not change in one moment
        }
        self.until(what, RENEWED, |scene| {
            scene.three.iter_mut().zip(&before).all(|(process, (connected, accepted))| {
                let now = process.report();
                now["connected"] >= connected + 2 && now["accepted"] >= accepted + 2 && now["reachable"] >= 2
            })
        })
        .await;
    }

    /// No get of the three has failed, or was loaded by somebody who should not; and the fourth is out.
    async fn ends_well(mut self) {
        self.until("who was left behind is out", RENEWED, |scene| {
            let left_behind = scene.left_behind.report();
            left_behind["untrusted"] == 3 && scene.three.iter_mut().all(|process| process.report()["reachable"] == 2)
        })
        .await;
        let mut gets = 0;
        for process in &mut self.three {
            let report = process.report();
            println!("{}: {report:?}", process.id);
            assert_eq!((report["failed"], report["elsewhere"]), (0, 0), "{}", process.id);
            gets += report["gets"];
        }
        assert!(gets > 5_000, "only {gets} gets");
    }
}

/// A folder for the files of a test.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    path
}

/// As an orchestrator does it: written beside, and moved into place.
fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(beside, path).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_cluster_key_changes_in_two_steps_and_no_get_fails() {
    let folder = folder("cluster-key");
    let path = |id: &str| folder.join(id);
    let [old, new] = [(); 2].map(|()| pki::cluster_key());
    ["a", "b", "c", "d"].iter().for_each(|id| replace(&path(id), &old));
    let mut scene = Scene::start(KEY, path).await;
    let write = |text: &str| ["a", "b", "c"].iter().for_each(|id| replace(&path(id), text));
    scene.change("the new key is known beside the old one", || write(&format!("{new}\n{old}\n"))).await;
    scene.change("the new key alone", || write(&new)).await;
    scene.ends_well().await;
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_authority_changes_in_three_steps_and_no_get_fails() {
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
    scene.change("both authorities are trusted", trust_both).await;
    let news = ["a", "b", "c"].map(|id| (id, new.issue(&format!("{id}.peers"))));
    let show_new = || news.iter().for_each(|(id, pem)| write(id, pem, &both));
    scene.change("certificates of the new one", show_new).await;
    let trust_new = || news.iter().for_each(|(id, pem)| write(id, pem, &new.pem()));
    scene.change("the new authority alone", trust_new).await;
    scene.ends_well().await;
    fs::remove_dir_all(folder).unwrap();
}
