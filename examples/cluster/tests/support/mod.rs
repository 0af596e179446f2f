//! Real processes of the example, what they log, and HTTP to ask them by.
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;

/// Long enough for anything that works, on a busy machine with two cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What the backend logs for each row that it is asked for.
pub(crate) const FETCH: &str = "fetching key from backend";

/// Waits for a condition, and says which one when it does not come.
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(within(PATIENCE, condition), "not within {PATIENCE:?}: {what}");
}

/// Whether a condition comes true in time.
pub(crate) fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The first of so many consecutive ports of loopback that nobody listens on and no other test of this file takes.
///
/// They are below those that the system gives to whoever asks for a free one.
pub(crate) fn free_ports(n: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = 10_000 + (std::process::id() % 1000) as u16 * 20;
    loop {
        let first = begin + NEXT.fetch_add(n, Relaxed) % 2_000;
        if (first..first + n).all(is_free) {
            return first;
        }
    }
}

pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind(local(port)).is_ok()
}

pub(crate) fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// The status and body of a GET; `None` when nobody answers.
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

/// The JSON of an answer that must be 200.
pub(crate) fn json(port: u16, path: &str) -> Value {
    let (status, body) = get(port, path).unwrap_or_else(|| panic!("nobody answers on {port}"));
    assert_eq!(status, 200, "{path} on {port}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|e| panic!("{body} is not JSON: {e}"))
}

/// Whether the process on that port is ready, reaches all of so many members, and all have the group.
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

/// Lines that processes wrote, of all their lives.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, text: &str) -> usize {
        self.lines().iter().filter(|line| line.contains(text)).count()
    }

    fn follow(&self, from: impl Read + Send + 'static) -> JoinHandle<()> {
        let log = self.0.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                // What the backend of this example does has to be seen with its key, and the launcher says what to
                // type; nothing else names one.
                let names_a_key = [FETCH, "  curl http://"].iter().any(|text| line.contains(text));
                if names_a_key || read_along::says(&line) {
                    log.lock().unwrap().push(line);
                }
            }
        })
    }
}

/// A process and everything that it started; killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    readers: Vec<JoinHandle<()>>,
    pub(crate) out: Log,
    pub(crate) err: Log,
}

impl Process {
    /// Starts it in a process group of its own, with no variable of ours but `PATH`.
    pub(crate) fn start(program: &str, vars: &[(&str, &str)], out: &Log) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", path)
            .env("RUST_LOG", read_along::RUST_LOG)
            .envs(vars.iter().copied())
            .process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{program} does not start: {e}"));
        let (out, err) = (out.clone(), Log::default());
        let readers = vec![out.follow(child.stdout.take().unwrap()), err.follow(child.stderr.take().unwrap())];
        Self { child, readers, out, err }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub(crate) fn signal_group(&self, signal: Signal) {
        kill_process_group(self.pid(), signal).unwrap();
    }

    /// Waits until it has ended and everything that it wrote is in the log.
    pub(crate) fn ends_within(&mut self, limit: Duration) -> ExitStatus {
        let mut status = None;
        let ended = within(limit, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(ended, "still runs after {limit:?}; it wrote {:#?} {:#?}", self.out.lines(), self.err.lines());
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        status.unwrap()
    }

    /// The processes that it started itself.
    pub(crate) fn children(&self) -> Vec<String> {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().map(ToOwned::to_owned).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// A directory of one test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(test: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Three processes `n1`, `n2`, `n3` that share a database, and what they log.
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

    /// With more variables for each process.
    pub(crate) fn start_with(test: &str, vars: &[(&'static str, &str)]) -> Self {
        let vars = vars.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let (http, group) = (free_ports(3), free_ports(3));
        let (log, scratch) = (Log::default(), Scratch::new(test));
        let mut cluster = Self { processes: Vec::new(), log, vars, http, group, scratch };
        cluster.processes = (0..3).map(|n| cluster.process(n)).collect();
        cluster.agree();
        cluster
    }

    pub(crate) fn http(&self, n: u16) -> u16 {
        self.http + n
    }

    /// One of the three; again, when it has ended.
    pub(crate) fn process(&self, n: u16) -> Process {
        self.process_with(n, &[])
    }

    /// With other values of some variables.
    pub(crate) fn process_with(&self, n: u16, others: &[(&'static str, &str)]) -> Process {
        let peers: Vec<_> = (0..3).map(|n| local(self.group + n).to_string()).collect();
        let vars = [
            ("NODE_NAME", format!("n{}", n + 1)),
            ("NODE_IP", "127.0.0.1".into()),
            ("GROUP_PORT", (self.group + n).to_string()),
            ("PEERS", peers.join(",")),
            ("HTTP_ADDR", local(self.http(n)).to_string()),
            ("DATABASE", self.scratch.path("data.db")),
            // A machine that stands still for a quarter of a second must not make a second load of one.
            ("BACKEND_TIMEOUT_MS", "20000".into()),
        ];
        let mut vars: Vec<_> = vars.iter().chain(&self.vars).map(|(name, value)| (*name, value.as_str())).collect();
        vars.extend(others); // the last value of a name stands
        Process::start(env!("CARGO_BIN_EXE_cluster"), &vars, &self.log)
    }

    /// Waits until all three are one cluster.
    pub(crate) fn agree(&self) {
        for n in 0..3 {
            let what = format!("n{} reaches three members", n + 1);
            eventually(&what, || is_in_cluster_of(3, self.http(n)));
        }
    }
}
