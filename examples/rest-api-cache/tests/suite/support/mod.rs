//! Real processes, the recorded upstream that they ask, and HTTP to ask them by.
pub(crate) mod recorded;
pub(crate) mod upstream;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use self::upstream::{Mood, Upstream};

/// Long enough for anything that works, on a busy machine with two cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// As long as a token of GitHub; the log must not have it.
pub(crate) const TOKEN: &str = "ghp_9aK2xQ7vLmR4tYw8ZcB1nD5sF3hJ6pG0eUoi";

pub(crate) const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config.yaml");

/// Waits for a condition, and says which one when it does not come.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// The first of so many consecutive ports that nobody listens on and no other test of this file takes; they are below
/// those that the system gives to whoever asks for a free one.
pub(crate) fn free_ports(n: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = 11_000 + (std::process::id() % 1000) as u16 * 18;
    loop {
        let first = begin + NEXT.fetch_add(n, Relaxed) % 2_000;
        if (first..first + n).all(|port| TcpListener::bind(local(port)).is_ok()) {
            return first;
        }
    }
}

/// A process, and what it logs; killed when it is dropped.
pub(crate) struct Process {
    pub(crate) port: u16,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// One that answers, with the recorded upstream, a refresh every second and two seconds for an answer; the last value
    /// of a variable stands.
    pub(crate) fn start(upstream: &Upstream, vars: &[(&str, &str)]) -> Self {
        let (port, target) = (free_ports(1), upstream.address.to_string());
        let number = port.to_string();
        let mut all = vec![
            ("CONFIG", CONFIG),
            ("SERVER_PORT", number.as_str()),
            ("TARGET_SCHEME", "http"),
            ("TARGET_URL", target.as_str()),
            ("TARGET_TIMEOUT", "2"),
            ("CACHE_REFRESH", "1"),
            ("LIMIT_PER_SECOND", "1000"),
            ("LIMIT_BURST", "1000"),
        ];
        all.extend(vars);
        let process = Self::spawn(port, &all);
        eventually("the process is up", || process.ask("/readyz").is_some_and(|answer| answer.status == 200));
        process
    }

    /// With these variables and no others.
    pub(crate) fn spawn(port: u16, vars: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rest-api-cache"));
        command.env_clear().env("RUST_LOG", read_along::RUST_LOG).envs(vars.iter().copied());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let follow = |from: Box<dyn Read + Send>| {
            let lines = Arc::clone(&lines);
            std::thread::spawn(move || {
                for line in BufReader::new(from).lines().map_while(Result::ok) {
                    assert!(!line.contains(TOKEN), "the token, at any level: {line}");
                    if read_along::says(&line) {
                        lines.lock().unwrap().push(line);
                    }
                }
            })
        };
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let readers = vec![follow(Box::new(out)), follow(Box::new(err))];
        Self { port, child, lines, readers }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    pub(crate) fn said(&self, text: &str) -> bool {
        self.log().iter().any(|line| line.contains(text))
    }

    /// Waits for its end; whether it was a good one. What it logged has been read, then.
    pub(crate) fn ends(&mut self) -> bool {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.readers.drain(..).for_each(|reader| reader.join().unwrap());
                return status.success();
            }
            assert!(Instant::now() < end, "still runs: {:#?}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `None` when nobody answers.
    pub(crate) fn ask(&self, path: &str) -> Option<Answer> {
        ask(self.port, &format!("GET {path} HTTP/1.1"), &[])
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask(path).unwrap_or_else(|| panic!("nobody answers: {:#?}", self.log()))
    }

    /// The JSON of an answer that must be 200.
    pub(crate) fn json(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let text = self.get("/metrics").body;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A line that no test may see is seen here at the latest.
        let read = self.readers.drain(..).map(JoinHandle::join).all(|read| read.is_ok());
        assert!(read || std::thread::panicking(), "a line had the token");
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn age(&self) -> u64 {
        self.header("age").unwrap().parse().unwrap()
    }
}

pub(crate) fn ask(port: u16, line: &str, headers: &[&str]) -> Option<Answer> {
    let mut stream = TcpStream::connect_timeout(&local(port), Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    stream.write_all(format!("{line}\r\nhost: test\r\nconnection: close\r\n{headers}\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// An upstream that is well, and a process that asks it.
pub(crate) fn stage(vars: &[(&str, &str)]) -> (Upstream, Process) {
    let upstream = Upstream::start(Mood::Well);
    let process = Process::start(&upstream, vars);
    (upstream, process)
}
