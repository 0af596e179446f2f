//! Files of peers, and their faults.

use std::{
    collections::BTreeMap,
    env, fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use discovery_static::File;
use groupcache_core::{
    Node, async_trait,
    conformance::{Bench, Cannot, Source, Timing, conform},
    discovery::{Health, Me, Provider},
};
use tokio::time::{Instant, sleep};

const LOOK: Duration = Duration::from_millis(50);

/// Directory of one test, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("groupcache-file-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("peers")
    }

    /// Replaces the file as configuration management does: a new file is written, and renamed over the old one.
    fn replace(&self, text: &str) {
        let beside = self.0.join("peers.new");
        fs::write(&beside, text).unwrap();
        fs::rename(beside, self.file()).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Lines {
    scratch: Scratch,
    lies: Vec<String>,
    members: BTreeMap<String, String>,
}

impl Lines {
    fn fresh() -> Self {
        let this = Self { scratch: Scratch::new(), lies: Vec::new(), members: BTreeMap::new() };
        this.write();
        this
    }

    fn write(&self) {
        let lines: Vec<_> = self.lies.iter().chain(self.members.values()).map(String::as_str).collect();
        self.scratch.replace(&format!("# members\n{}\n", lines.join("\n")));
    }
}

fn line_of(member: &Me) -> String {
    let items: Vec<_> = member.addresses.iter().map(|address| format!("{}@{address}", member.id)).collect();
    items.join(", ")
}

#[async_trait]
impl Source for Lines {
    fn provider(&mut self) -> Arc<dyn Provider> {
        Arc::new(File::new(self.scratch.file()).every(LOOK))
    }

    fn timing(&self) -> Timing {
        Timing { outage: LOOK * 10, ..Timing::default() }
    }

    async fn join(&mut self, member: &Me) -> Result<(), Cannot> {
        self.members.insert(member.id.to_string(), line_of(member));
        self.write();
        Ok(())
    }

    async fn leave(&mut self, member: &Me) -> Result<(), Cannot> {
        self.members.remove(member.id.as_str());
        self.write();
        Ok(())
    }

    async fn crash(&mut self, _: &Me) -> Result<(), Cannot> {
        Err(Cannot("a file cannot report a crash"))
    }

    async fn fail(&mut self) -> Result<(), Cannot> {
        let _ = fs::remove_file(self.scratch.file());
        Ok(())
    }

    async fn refuse(&mut self) -> Result<(), Cannot> {
        // Root may read every file, so that a directory in its place stands for an unreadable file.
        fs::remove_file(self.scratch.file()).unwrap();
        fs::create_dir(self.scratch.file()).unwrap();
        Ok(())
    }

    async fn mend(&mut self, members: &[Me]) {
        let _ = fs::remove_dir(self.scratch.file());
        for member in members {
            let _ = self.join(member).await;
        }
        self.write();
    }

    async fn lie(&mut self, lies: &[Me]) -> Result<(), Cannot> {
        self.lies = lies.iter().map(line_of).collect();
        self.write();
        Ok(())
    }

    async fn garbage(&mut self) -> Result<(), Cannot> {
        self.scratch.replace("member-0@127.0.0.1:7946\nwhat is this\n");
        Ok(())
    }

    fn knows_incarnations(&self) -> Result<(), Cannot> {
        Err(Cannot("a file holds only ids and addresses"))
    }

    fn knows_dual_stack(&self) -> Result<(), Cannot> {
        Err(Cannot("the node itself joins two records with one id"))
    }
}

#[tokio::test]
async fn file_conforms() {
    let report = conform(async || Lines::fresh()).await;
    println!("{}", report.passed().unwrap());
}

async fn until(bench: &mut Bench, what: &str, condition: impl Fn(usize, &Option<Health>) -> bool) {
    let begun = Instant::now();
    loop {
        let (peers, health) = (bench.peers().len(), bench.health());
        if condition(peers, &health) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {peers} peers, {health:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn is_stale(health: &Option<Health>, words: &[&str]) -> bool {
    matches!(health, Some(Health::Stale(why)) if words.iter().all(|word| why.contains(word)))
}

#[tokio::test]
async fn broken_file_keeps_the_last_set_and_names_the_line() {
    let scratch = Scratch::new();
    scratch.replace("a@10.0.0.1:1 # the first\n\n  10.0.0.2:1, b@10.0.0.3:1\r\n");
    let mut bench = Bench::start(Arc::new(File::new(scratch.file()).every(LOOK))).unwrap();
    until(&mut bench, "three peers", |peers, _| peers == 3).await;

    scratch.replace("a@10.0.0.1:1\n# two\nnonsense\n");
    until(&mut bench, "the line is named", |_, health| is_stale(health, &["line 3", "nonsense"])).await;
    assert_eq!(bench.peers().len(), 3);
    scratch.replace("\u{0}\u{1}@@@");
    until(&mut bench, "the line is named", |_, health| is_stale(health, &["line 1"])).await;
    fs::write(scratch.file(), [b'a', b'\n', 0xff, 0xfe]).unwrap();
    until(&mut bench, "the line is named", |_, health| is_stale(health, &["line 1"])).await;
    fs::write(scratch.file(), "").unwrap();
    until(&mut bench, "an empty file is reported", |_, health| is_stale(health, &["is empty"])).await;
    fs::remove_file(scratch.file()).unwrap();
    until(&mut bench, "the missing file is reported", |_, health| is_stale(health, &["check that it exists"])).await;
    assert_eq!(bench.peers().len(), 3, "no fault is taken for a list without peers");

    scratch.replace("# nobody\n");
    until(&mut bench, "no peers", |peers, health| peers == 0 && *health == Some(Health::Connected)).await;
}

#[tokio::test]
async fn byte_order_mark_and_invisible_characters_are_ignored() {
    let scratch = Scratch::new();
    scratch.replace("\u{feff}a@10.0.0.1:1\r\n\u{200b}b@10.0.0.2:1\u{200b},\r\n");
    let mut bench = Bench::start(Arc::new(File::new(scratch.file()).every(LOOK))).unwrap();
    until(&mut bench, "two peers", |peers, health| peers == 2 && *health == Some(Health::Connected)).await;
    let mut ids: Vec<_> = bench.peers().iter().map(|peer| peer.id().unwrap().to_string()).collect();
    ids.sort();
    assert_eq!(ids, ["a", "b"]);
}

/// Checks that a pipe is reported, and that neither the start nor the end of a node waits for its writer.
#[test]
fn pipe_is_reported_and_holds_no_runtime() {
    let scratch = Scratch::new();
    assert!(std::process::Command::new("mkfifo").arg(scratch.file()).status().unwrap().success());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut bench = Bench::start(Arc::new(File::new(scratch.file()).every(LOOK))).unwrap();
        until(&mut bench, "the pipe is named", |_, health| is_stale(health, &["peers", "not a regular file"])).await;
        bench.stop().await;
        let node = Node::builder().provider(File::new(scratch.file())).start().await.unwrap();
        node.shutdown().await.unwrap();
    });
    drop(runtime); // returns, because no thread of the runtime reads the pipe
}

#[tokio::test]
async fn slowly_written_file_is_not_taken_halfway() {
    use std::io::Write;
    let scratch = Scratch::new();
    scratch.replace("a@10.0.0.1:1\nb@10.0.0.2:1\n");
    let mut bench = Bench::start(Arc::new(File::new(scratch.file()).every(Duration::from_millis(10)))).unwrap();
    until(&mut bench, "two peers", |peers, _| peers == 2).await;
    let sets = bench.sets();
    let mut file = fs::File::create(scratch.file()).unwrap();
    for n in 1..=10 {
        writeln!(file, "c{n}@10.0.1.{n}:1").unwrap();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(30) {
            let peers = bench.peers().len();
            assert!(peers == 2 || peers == 10, "{peers} peers of a file that is being written");
            sleep(Duration::from_millis(2)).await;
        }
    }
    until(&mut bench, "ten peers", |peers, _| peers == 10).await;
    assert_eq!(bench.sets(), sets + 1);
}
