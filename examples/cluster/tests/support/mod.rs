//! Helpers of the tests: real processes of the example, their logs, and an HTTP client.
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

pub(crate) use process::{Log, PATIENCE, Process, Signal, eventually, free_ports, is_free, local};
use process::{Scratch, Start};
use serde_json::Value;

/// Text that the backend logs for each row that it reads.
pub(crate) const FETCH: &str = "fetching key from backend";

/// Starts a program of this example.
pub(crate) fn start(program: &str, vars: &[(&str, &str)], out: &Log) -> Process {
    let reads = |line: &str| {
        // Only two kinds of lines may name a key: those of the backend, which the tests count, and the requests that
        // the launcher prints.
        let names_a_key = [FETCH, "  curl http://"].iter().any(|text| line.contains(text));
        names_a_key || read_along::says(line)
    };
    Start::program(program)
        .vars([("RUST_LOG", read_along::RUST_LOG)])
        .vars(vars.iter().copied())
        .out(out)
        .reads(reads)
        .spawn()
}

/// Makes a directory for one test.
pub(crate) fn scratch(test: &str) -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), test)
}

/// Returns the status and the body of a GET, or `None` when no answer comes.
pub(crate) fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&local(port), Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some((status, body.to_owned()))
}

/// Returns the JSON of a GET. Panics unless the status is 200.
pub(crate) fn json(port: u16, path: &str) -> Value {
    let (status, body) = get(port, path).unwrap_or_else(|| panic!("no answer on port {port}"));
    assert_eq!(status, 200, "{path} on {port}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|e| panic!("{body} is not JSON: {e}"))
}

/// Returns whether the process on a port is ready, sees exactly `members` members, reaches all of them, and all of them
/// own keys and have the group.
pub(crate) fn is_in_cluster_of(members: usize, port: u16) -> bool {
    let stats = |body: String| serde_json::from_str::<Value>(&body).ok();
    let Some(stats) = get(port, "/stats").filter(|(status, _)| *status == 200).and_then(|(_, body)| stats(body)) else {
        return false;
    };
    let listed = stats["members"].as_array().is_some_and(|all| {
        all.len() == members && all.iter().all(|member| member["is_reachable"] == true && member["owns"] == true)
    });
    let is_ready = get(port, "/readyz").is_some_and(|(status, _)| status == 200);
    listed && is_ready && stats["groups"]["data"]["peers"] == members - 1
}

/// Three processes `n1`, `n2`, `n3` that share a database and a log.
pub(crate) struct Cluster {
    pub(crate) processes: Vec<Process>,
    pub(crate) log: Log,
    vars: Vec<(&'static str, String)>,
    http: u16,
    group: u16,
    scratch: Scratch,
}

impl Cluster {
    pub(crate) fn start(test: &str) -> Self {
        Self::start_with(test, &[])
    }

    /// Starts the processes with more variables for each of them.
    pub(crate) fn start_with(test: &str, vars: &[(&'static str, &str)]) -> Self {
        let vars = vars.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let (http, group) = (free_ports(3), free_ports(3));
        let (log, scratch) = (Log::default(), scratch(test));
        let mut cluster = Self { processes: Vec::new(), log, vars, http, group, scratch };
        cluster.processes = (0..3).map(|n| cluster.process(n)).collect();
        cluster.agree();
        cluster
    }

    pub(crate) fn http(&self, n: u16) -> u16 {
        self.http + n
    }

    /// Starts process `n`, which may have run before.
    pub(crate) fn process(&self, n: u16) -> Process {
        self.process_with(n, &[])
    }

    /// Starts process `n` with other values of some variables.
    pub(crate) fn process_with(&self, n: u16, others: &[(&'static str, &str)]) -> Process {
        let peers: Vec<_> = (0..3).map(|n| local(self.group + n).to_string()).collect();
        let vars = [
            ("NODE_NAME", format!("n{}", n + 1)),
            ("NODE_IP", "127.0.0.1".into()),
            ("GROUP_PORT", (self.group + n).to_string()),
            ("PEERS", peers.join(",")),
            ("HTTP_ADDR", local(self.http(n)).to_string()),
            ("DATABASE", self.scratch.path("data.db")),
            // A long time-out, so that a pause of the machine does not cause a second load.
            ("BACKEND_TIMEOUT_MS", "20000".into()),
        ];
        let mut vars: Vec<_> = vars.iter().chain(&self.vars).map(|(name, value)| (*name, value.as_str())).collect();
        vars.extend(others); // the last value of a name counts
        start(env!("CARGO_BIN_EXE_cluster"), &vars, &self.log)
    }

    /// Waits until all three processes are one cluster.
    pub(crate) fn agree(&self) {
        for n in 0..3 {
            let what = format!("n{} reaches three members", n + 1);
            eventually(&what, || is_in_cluster_of(3, self.http(n)));
        }
    }
}
