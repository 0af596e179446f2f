//! Helpers of the tests: real processes, the recorded upstream, and an HTTP client.
pub(crate) mod recorded;
pub(crate) mod upstream;

use std::{
    io::{Read, Write},
    net::TcpStream,
    ops::{Deref, DerefMut},
    time::Duration,
};

use process::{PATIENCE, Start};
pub(crate) use process::{eventually, free_ports, local};
use serde_json::Value;

use self::upstream::{Mood, Upstream};

/// Token of the same length as one of GitHub. No log may contain it.
pub(crate) const TOKEN: &str = "ghp_9aK2xQ7vLmR4tYw8ZcB1nD5sF3hJ6pG0eUoi";

pub(crate) const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config.yaml");

/// Process of the service, with one log for both outputs.
pub(crate) struct Process {
    pub(crate) port: u16,
    process: process::Process,
}

impl Process {
    /// Starts a process with the recorded upstream and waits until it is ready. A refresh is due every second, and an
    /// answer may take two seconds. `vars` override these settings.
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

    /// Starts a process with these variables only.
    pub(crate) fn spawn(port: u16, vars: &[(&str, &str)]) -> Self {
        let reads = |line: &str| {
            assert!(!line.contains(TOKEN), "the log contains the token: {line}");
            read_along::says(line)
        };
        let start = Start::program(env!("CARGO_BIN_EXE_rest-api-cache")).vars([("RUST_LOG", read_along::RUST_LOG)]);
        Self { port, process: start.vars(vars.iter().copied()).one_log().reads(reads).spawn() }
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.out.lines()
    }

    pub(crate) fn said(&self, text: &str) -> bool {
        self.out.said(text)
    }

    /// Waits until the process has ended and its log is complete. Returns whether the exit code is 0.
    pub(crate) fn exits_with_success(&mut self) -> bool {
        self.ends_within(PATIENCE).success()
    }

    /// Sends a GET and returns the answer, or `None` when no answer comes.
    pub(crate) fn ask(&self, path: &str) -> Option<Answer> {
        ask(self.port, &format!("GET {path} HTTP/1.1"), &[])
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask(path).unwrap_or_else(|| panic!("no answer: {:#?}", self.log()))
    }

    /// Returns the JSON of a GET. Panics unless the status is 200.
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

impl Deref for Process {
    type Target = process::Process;

    fn deref(&self) -> &Self::Target {
        &self.process
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.process
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
    ask_host(port, "localhost", line, headers)
}

/// Sends a request under this host.
pub(crate) fn ask_host(port: u16, host: &str, line: &str, headers: &[&str]) -> Option<Answer> {
    let mut stream = TcpStream::connect_timeout(&local(port), Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    stream.write_all(format!("{line}\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// Starts an upstream that works, and a process that uses it.
pub(crate) fn stage(vars: &[(&str, &str)]) -> (Upstream, Process) {
    let upstream = Upstream::start(Mood::Well);
    let process = Process::start(&upstream, vars);
    (upstream, process)
}
