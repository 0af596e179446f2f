//! Three processes and a nats-server: a process joins, leaves and is killed, and the server stops and starts again.
#![expect(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test, helpers included, that drives processes from outside in real time"
)]

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Maximum time for a condition: long enough on a busy machine with two cores.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until a condition holds and returns how long that took. Panics with `what` after [`PATIENCE`].
fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    begun.elapsed()
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Returns the first of `n` consecutive free ports, below the range from which the system picks free ports.
fn free_ports(n: u16) -> u16 {
    let mut first = 9_000 + (std::process::id() % 500) as u16;
    while !(first..first + n).all(|port| TcpListener::bind(local(port)).is_ok()) {
        first += n;
    }
    first
}

/// Process that is killed on drop.
struct Process(Child);

impl Process {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(command: &mut Command) -> Process {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Process(child.unwrap_or_else(|e| panic!("cannot start {command:?}, install it with make deps: {e}")))
}

/// Ports and files of a test.
struct Stage {
    /// First of seven ports: three for HTTP of n1, n2 and n3, three for their peers, one for the server.
    ports: u16,
    scratch: PathBuf,
}

impl Stage {
    fn new() -> Self {
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("nats-{}", std::process::id()));
        fs::create_dir_all(&scratch).unwrap();
        Self { ports: free_ports(7), scratch }
    }

    fn server(&self) -> Process {
        let program = env::var("NATS_SERVER").unwrap_or_else(|_| "/usr/sbin/nats-server".to_owned());
        let port = (self.ports + 6).to_string();
        let server = spawn(Command::new(program).args(["-a", "127.0.0.1", "-p", &port]));
        eventually("the server answers", || TcpStream::connect(local(self.ports + 6)).is_ok());
        server
    }

    fn node(&self, n: u16) -> Process {
        let mut child = Command::new(env!("CARGO_BIN_EXE_cluster-nats"))
            .env("RUST_LOG", read_along::RUST_LOG)
            .env("NODE_NAME", format!("n{}", n + 1))
            .env("GROUP_PORT", (self.ports + 3 + n).to_string())
            .env("HTTP_ADDR", local(self.ports + n).to_string())
            .env("DATABASE", self.scratch.join("data.db"))
            .env("BACKEND_TIMEOUT_MS", "20000")
            .env("GROUPCACHE_DISCOVERY", "nats")
            .env("GROUPCACHE_NATS_APPLICATION", "cluster")
            .env("GROUPCACHE_NATS_URL", format!("nats://127.0.0.1:{}", self.ports + 6))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(|| {
            // Only the lines of the backend may name a key. All others are checked for keys and values.
            let lines = log.lines().map_while(Result::ok).filter(|line| !line.contains("fetching key from backend"));
            lines.for_each(|line| _ = read_along::says(&line));
        });
        Process(child)
    }

    fn get(&self, n: u16, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(local(self.ports + n)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
    }

    fn members(&self, n: u16) -> Option<Vec<Value>> {
        let (_, stats) = self.get(n, "/stats")?;
        serde_json::from_str::<Value>(&stats).ok()?.get("members")?.as_array().cloned()
    }

    /// Returns whether each of these processes sees exactly `members` members, all reachable owners of keys.
    fn agree(&self, nodes: &[u16], members: usize) -> bool {
        let is_owner = |member: &Value| {
            let is_true = |name: &str| member.get(name) == Some(&Value::Bool(true));
            is_true("is_reachable") && is_true("owns")
        };
        nodes.iter().all(|n| self.members(*n).is_some_and(|all| all.len() == members && all.iter().all(is_owner)))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

/// Checks that gets at two processes never fail while a third one joins, leaves, is killed and returns, and while the
/// server is down for 12 s. Without the server the processes keep each other.
#[test]
fn joins_leaves_kills_and_a_lost_server_fail_no_get() {
    let stage = Arc::new(Stage::new());
    let server = stage.server();
    let (_n1, _n2) = (stage.node(0), stage.node(1));
    eventually("n1 and n2 see each other", || stage.agree(&[0, 1], 2));

    let is_over = Arc::new(AtomicBool::new(false));
    let asker = {
        let (stage, is_over) = (Arc::clone(&stage), Arc::clone(&is_over));
        std::thread::spawn(move || {
            let (mut slowest, mut gets) = (Duration::ZERO, 0_u32);
            while !is_over.load(Relaxed) {
                for n in [0, 1] {
                    let begun = Instant::now();
                    let answer = stage.get(n, &format!("/data/row-{}", gets / 4));
                    assert_eq!(answer.as_ref().map(|(status, _)| *status), Some(200), "{answer:?}");
                    slowest = slowest.max(begun.elapsed());
                    gets += 1;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            (gets, slowest)
        })
    };

    let begun = Instant::now();
    let n3 = stage.node(2);
    eventually("n3 is in every ring", || stage.agree(&[0, 1, 2], 3));
    println!("in every ring {:?} after its start (figure: 1 s)", begun.elapsed());
    n3.signal(Signal::TERM);
    println!("SIGTERM: out of every ring after {:?}", eventually("n3 is in no ring", || stage.agree(&[0, 1], 2)));
    drop(n3);

    let n3 = stage.node(2);
    eventually("n3 is back", || stage.agree(&[0, 1, 2], 3));
    drop(n3); // SIGKILL
    let out = eventually("n3 is in no ring", || stage.agree(&[0, 1], 2));
    println!("SIGKILL: out of every ring after {out:?} (figure: 10 s)");
    assert!(out < Duration::from_secs(20));

    let _n3 = stage.node(2);
    eventually("n3 is back again", || stage.agree(&[0, 1, 2], 3));
    drop(server);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(12) {
        assert!(stage.agree(&[0, 1, 2], 3), "members are lost while the server is down: {:?}", stage.members(0));
        std::thread::sleep(Duration::from_millis(50));
    }
    let _server = stage.server();
    std::thread::sleep(Duration::from_secs(3));
    assert!(stage.agree(&[0, 1, 2], 3));

    is_over.store(true, Relaxed);
    let (gets, slowest) = asker.join().unwrap();
    println!("{gets} gets, none failed, the slowest took {slowest:?} (figure for a killed owner: 1 s)");
    assert!(slowest < Duration::from_secs(10));
}
