//! Hosts with processes of the service on them, and HTTP to ask them by.

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

/// Long enough for anything that works, on a busy machine with two cores.
const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_cluster-mdns");
/// Where each process serves HTTP, on the loopback of its host.
const HTTP: u16 = 8080;

/// Waits for a condition and tells how long it took.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
    begun.elapsed()
}

/// A process on a host; killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    name: String,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts the service under this name, with these variables besides those of the command.
    pub(crate) fn start(mut command: Command, name: &str, vars: &[(&str, &str)]) -> Self {
        let mut child = command
            .env("RUST_LOG", read_along::RUST_LOG)
            .env("NODE_NAME", name)
            .env("BACKEND_TIMEOUT_MS", "20000")
            .env("GROUPCACHE_DISCOVERY", "mdns")
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
                // What the backend does has to be seen with its key; nothing else has.
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

    /// What it has written so far.
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

/// Hosts on a segment, and the database that their processes share.
pub(crate) struct Lan {
    segment: Arc<Segment>,
    scratch: PathBuf,
}

impl Lan {
    /// So many hosts; `None` where there can be no segment, which has been said.
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

    /// With more variables, or other values of some.
    pub(crate) fn node_with(&self, host: usize, name: &str, vars: &[(&str, &str)]) -> Process {
        let mut command = self.host(host).command(PROGRAM);
        // No NODE_IP: it finds the address of its host by itself.
        command.env("GROUP_PORT", "7946").env("HTTP_ADDR", format!("127.0.0.1:{HTTP}"));
        command.env("GROUPCACHE_INSECURE", "1"); // nobody else is on this network
        command.env("DATABASE", self.scratch.join("data.db"));
        Process::start(command, name, vars)
    }

    /// The status and body of a GET to the process of a host; `None` when nobody answers.
    pub(crate) fn get(&self, host: usize, path: &str) -> Option<(u16, String)> {
        get(self.host(host), path)
    }

    pub(crate) fn stats(&self, host: usize) -> Option<Value> {
        let (_, body) = self.get(host, "/stats").filter(|(status, _)| *status == 200)?;
        serde_json::from_str(&body).ok()
    }

    /// Whether each of these sees so many members that own keys, and reaches them all.
    pub(crate) fn agree(&self, hosts: &[usize], members: usize) -> bool {
        hosts.iter().all(|host| is_in_cluster_of(members, &self.stats(*host).unwrap_or_default()))
    }

    /// Many rows are the same wherever they are asked for.
    pub(crate) fn rows_are_shared(&self, hosts: &[usize]) {
        for n in 0..20 {
            let path = format!("/data/row-{n}");
            let rows: Vec<_> = hosts.iter().map(|host| self.get(*host, &path).unwrap()).collect();
            assert!(rows.iter().all(|row| row.0 == 200 && *row == rows[0]), "{rows:?}");
        }
    }

    /// Asks each of these for keys, old and new, until it is told to end. No get may fail.
    pub(crate) fn ask_all_the_time(&self, hosts: &[usize]) -> Asker {
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
        Asker { is_over, task: Some(task) }
    }
}

/// Whether these are the figures of a process that sees so many members that own keys, and reaches them all.
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

pub(crate) struct Asker {
    is_over: Arc<AtomicBool>,
    task: Option<JoinHandle<(u64, Duration)>>,
}

impl Asker {
    pub(crate) fn end(mut self) {
        self.is_over.store(true, Relaxed);
        let (gets, slowest) = self.task.take().unwrap().join().unwrap();
        println!("{gets} gets, none failed, the slowest took {slowest:?}");
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        if let Some(task) = self.task.take() {
            let _ = task.join(); // it holds the segment
        }
    }
}

fn get(host: &Host, path: &str) -> Option<(u16, String)> {
    host.enter(|| get_at(HTTP, path))
}

/// The status and body of a GET to loopback.
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
