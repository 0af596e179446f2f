//! Helpers of the tests: hosts on a segment, processes of the service on the hosts, and an HTTP client.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use segment::{Families, Host, Segment};
use serde_json::Value;

/// Maximum time for a condition: long enough on a busy machine with two cores.
const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_cluster-mdns");
/// Port on which each process serves HTTP, on the loopback of its host.
const HTTP: u16 = 8080;

/// Waits until a condition holds and returns how long that took. Panics with `what` after [`PATIENCE`].
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
    begun.elapsed()
}

/// Process on a host, killed on drop.
pub(crate) struct Process {
    child: Child,
    name: String,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts the service with a name, and with more variables than the command has.
    pub(crate) fn start(mut command: Command, name: &str, vars: &[(&str, &str)]) -> Self {
        let mut child = command
            .env("RUST_LOG", read_along::RUST_LOG)
            .env("NODE_NAME", name)
            .env("BACKEND_TIMEOUT_MS", "20000")
            .env("GROUPCACHE_DISCOVERY", "mdns")
            .env("GROUPCACHE_CLUSTER", "default")
            .envs(vars.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (lines, log) = (Arc::default(), BufReader::new(child.stdout.take().unwrap()));
        let written: Arc<Mutex<Vec<String>>> = Arc::clone(&lines);
        thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                // Only the lines of the backend may name a key, because the tests read them.
                if line.contains("fetching key from backend") || read_along::says(&line) {
                    written.lock().unwrap().push(line);
                }
            }
        });
        Self { child, name: name.to_owned(), lines }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Returns the lines that the process has written so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            println!("{} wrote:\n{}", self.name, self.lines().join("\n"));
        }
    }
}

/// Hosts on a segment, with a database that their processes share.
pub(crate) struct Lan {
    segment: Arc<Segment>,
    scratch: PathBuf,
}

impl Lan {
    /// Returns a segment with `hosts` hosts, or `None` where no segment can be made. The crate `segment` prints the
    /// reason.
    pub(crate) fn of(hosts: u8, families: Families) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let segment = Arc::new(Segment::of(hosts, families)?);
        let name = format!("mdns-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&scratch).unwrap();
        Some(Self { segment, scratch })
    }

    pub(crate) fn host(&self, n: usize) -> &Host {
        &self.segment.hosts()[n]
    }

    pub(crate) fn node(&self, host: usize, name: &str) -> Process {
        self.node_with(host, name, &[])
    }

    /// Starts a node with more variables, or with other values of some.
    pub(crate) fn node_with(&self, host: usize, name: &str, vars: &[(&str, &str)]) -> Process {
        let mut command = self.host(host).command(PROGRAM);
        // Without NODE_IP the node finds the address of its host.
        command.env("GROUP_PORT", "7946").env("HTTP_ADDR", format!("127.0.0.1:{HTTP}"));
        command.env("GROUPCACHE_INSECURE", "1"); // the segment has no other hosts
        command.env("DATABASE", self.scratch.join("data.db"));
        Process::start(command, name, vars)
    }

    /// Returns the status and the body of a GET at a host, or `None` when no answer comes.
    pub(crate) fn get(&self, host: usize, path: &str) -> Option<(u16, String)> {
        get(self.host(host), path)
    }

    pub(crate) fn stats(&self, host: usize) -> Option<Value> {
        let (_, body) = self.get(host, "/stats").filter(|(status, _)| *status == 200)?;
        serde_json::from_str(&body).ok()
    }

    /// Returns whether each of these hosts sees exactly `members` members, all reachable owners of keys.
    pub(crate) fn agree(&self, hosts: &[usize], members: usize) -> bool {
        hosts.iter().all(|host| is_in_cluster_of(members, &self.stats(*host).unwrap_or_default()))
    }

    /// Checks that many rows are the same at all hosts.
    pub(crate) fn assert_rows_are_shared(&self, hosts: &[usize]) {
        for n in 0..20 {
            let path = format!("/data/row-{n}");
            let rows: Vec<_> = hosts.iter().map(|host| self.get(*host, &path).unwrap()).collect();
            assert!(rows.iter().all(|row| row.0 == 200 && *row == rows[0]), "{rows:?}");
        }
    }

    /// Starts a thread that gets old and new keys at each of these hosts. A get that fails panics in [`Requests::end`].
    pub(crate) fn start_requests(&self, hosts: &[usize]) -> Requests {
        let is_over = Arc::new(AtomicBool::new(false));
        let (segment, hosts, over) = (Arc::clone(&self.segment), hosts.to_vec(), Arc::clone(&is_over));
        let task = thread::spawn(move || {
            let (mut gets, mut slowest) = (0_u64, Duration::ZERO);
            while !over.load(Relaxed) {
                for host in &hosts {
                    let begun = Instant::now();
                    let answer = get(&segment.hosts()[*host], &format!("/data/asked-{}", gets / 4));
                    assert_eq!(answer.as_ref().map(|(status, _)| *status), Some(200), "{answer:?}");
                    slowest = slowest.max(begun.elapsed());
                    gets += 1;
                }
                thread::sleep(Duration::from_millis(20));
            }
            (gets, slowest)
        });
        Requests { is_over, task: Some(task) }
    }
}

/// Returns whether the `/stats` of a process show exactly `members` members, all reachable owners of keys.
pub(crate) fn is_in_cluster_of(members: usize, stats: &Value) -> bool {
    stats["members"]
        .as_array()
        .is_some_and(|all| all.len() == members && all.iter().all(|m| m["is_reachable"] == true && m["owns"] == true))
}

impl Drop for Lan {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

/// Thread that gets keys until [`end`](Self::end) or drop.
pub(crate) struct Requests {
    is_over: Arc<AtomicBool>,
    task: Option<JoinHandle<(u64, Duration)>>,
}

impl Requests {
    /// Ends the thread and prints the number of gets. Panics if one failed.
    pub(crate) fn end(mut self) {
        self.is_over.store(true, Relaxed);
        let (gets, slowest) = self.task.take().unwrap().join().unwrap();
        println!("{gets} gets, none failed, the slowest took {slowest:?}");
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        if let Some(task) = self.task.take() {
            let _ = task.join(); // the thread holds the segment
        }
    }
}

fn get(host: &Host, path: &str) -> Option<(u16, String)> {
    host.enter(|| get_at(HTTP, path))
}

/// Returns the status and the body of a GET to a port of loopback, or `None` when no answer comes.
pub(crate) fn get_at(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some((status, body.to_owned()))
}
