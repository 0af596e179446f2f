//! Program behind `make run`: starts several processes of the example on loopback, shows their logs, and ends them all.
//!
//! `NODES` (3) processes serve HTTP on `HTTP_PORT` (8080) and the ports after it, and peers on `GROUP_PORT` (7946) and
//! the ports after it. By default the processes find each other by a list. With `NATS_PORT` they use a nats-server that
//! the launcher starts on that port. With `MDNS` they use multicast DNS on loopback. For NATS or multicast DNS,
//! `PROGRAM` (cluster) must name a program that is built with that provider.
#[path = "../stop.rs"]
mod stop;

use std::{
    env, fs,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::stop::Stop;

/// Name of the loopback interface.
const LOOPBACK: &str = if cfg!(target_os = "linux") { "lo" } else { "lo0" };
/// Interval between two looks at the processes.
const LOOK: Duration = Duration::from_millis(100);
/// Maximum time until all processes are one cluster.
const STARTING: Duration = Duration::from_secs(30);
/// Maximum time until all processes have ended. A process that still runs is killed.
const ENDING: Duration = Duration::from_secs(8);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("launch: {e}");
            ExitCode::FAILURE
        }
    }
}

type Error = Box<dyn std::error::Error>;

async fn run() -> Result<(), Error> {
    let plan = Plan::from_env()?;
    let mut stop = Stop::listen()?;
    let scratch = Scratch::create()?;
    let mut cluster = Cluster::default();
    let outcome = tokio::select! {
        outcome = cluster.live(&plan, &scratch.0) => outcome,
        () = stop.asked() => Ok(()),
    };
    tokio::select! {
        () = cluster.end() => {}
        // A second signal ends the wait and kills the processes.
        () = stop.asked() => cluster.kill().await,
    }
    outcome
}

/// Number of processes, and their ports.
struct Plan {
    nodes: u16,
    http_port: u16,
    group_port: u16,
    nats_port: Option<u16>,
    has_mdns: bool,
}

impl Plan {
    fn from_env() -> Result<Self, Error> {
        let plan = Self {
            nodes: number("NODES", 3)?,
            http_port: number("HTTP_PORT", 8080)?,
            group_port: number("GROUP_PORT", 7946)?,
            nats_port: Some(number("NATS_PORT", 0)?).filter(|port| *port > 0), // 0 = not set
            has_mdns: env::var_os("MDNS").is_some_and(|value| !value.is_empty()),
        };
        for (name, first) in [("HTTP_PORT", plan.http_port), ("GROUP_PORT", plan.group_port)] {
            if first.checked_add(plan.nodes - 1).is_none() {
                return Err(
                    format!("{name} is {first}, set it lower: {} ports from there exceed 65535", plan.nodes).into()
                );
            }
        }
        if plan.http_port.abs_diff(plan.group_port) < plan.nodes {
            return Err("HTTP_PORT and GROUP_PORT are too close to each other: set them at least NODES apart".into());
        }
        Ok(plan)
    }

    fn nodes(&self) -> impl Iterator<Item = (String, SocketAddr, SocketAddr)> {
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (http, group) = (self.http_port, self.group_port);
        (0..self.nodes).map(move |n| (format!("n{}", n + 1), at(http + n), at(group + n)))
    }
}

fn number(name: &str, default: u16) -> Result<u16, Error> {
    let Some(value) = env::var_os(name).filter(|value| !value.is_empty()) else { return Ok(default) };
    let number = value.to_str().and_then(|text| text.trim().parse().ok()).filter(|number| *number > 0);
    number.ok_or_else(|| format!("{name} is {value:?}, which is not a number from 1 to 65535").into())
}

/// Fresh directory for the shared database, removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn create() -> Result<Self, Error> {
        let name = format!("groupcache-cluster-{}", std::process::id());
        let mut names = (0..).map(|n| env::temp_dir().join(format!("{name}-{n}")));
        loop {
            let path = names.next().ok_or("no name is left for a temporary directory")?;
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(format!("cannot create the directory {}: {e}", path.display()).into()),
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Process {
    name: String,
    http: SocketAddr,
    child: Child,
}

/// Processes that have started and not ended, and the tasks that show their lines.
#[derive(Default)]
struct Cluster {
    processes: Vec<Process>,
    /// The nats-server, if the processes need one.
    server: Option<Child>,
    logs: JoinSet<()>,
}

impl Cluster {
    /// Starts all processes, waits until they are one cluster, and returns an error when no process is left.
    async fn live(&mut self, plan: &Plan, scratch: &Path) -> Result<(), Error> {
        self.start(plan, &scratch.join("data.db"))?;
        timeout(STARTING, self.up())
            .await
            .map_err(|_| format!("not all processes were ready within {STARTING:?}"))??;
        explain(plan);
        while !self.processes.is_empty() {
            sleep(LOOK).await;
            for (name, status) in self.ended()? {
                say(&format!("{name} ended ({status})"));
            }
        }
        Err("all processes have ended".into())
    }

    fn start(&mut self, plan: &Plan, database: &Path) -> Result<(), Error> {
        let program = env::var_os("PROGRAM").filter(|name| !name.is_empty()).unwrap_or_else(|| "cluster".into());
        let program = env::current_exe()?.with_file_name(program);
        let discovery = match plan.nats_port {
            Some(port) => self.start_server(port)?,
            None if plan.has_mdns => vec![
                ("GROUPCACHE_DISCOVERY", "mdns".to_owned()),
                ("GROUPCACHE_CLUSTER", "cluster".to_owned()),
                // On loopback no packet leaves this machine, so the processes join no cluster of another machine.
                ("GROUPCACHE_MDNS_INTERFACES", LOOPBACK.to_owned()),
            ],
            None => {
                let peers: Vec<_> = plan.nodes().map(|(name, _, group)| format!("{name}@{group}")).collect();
                vec![("PEERS", peers.join(","))]
            }
        };
        for (name, http, group) in plan.nodes() {
            let mut command = Command::new(&program);
            command
                .env("NODE_NAME", &name)
                .env("NODE_IP", group.ip().to_string())
                .env("GROUP_PORT", group.port().to_string())
                .envs(discovery.iter().map(|(name, value)| (*name, value.as_str())))
                .env("HTTP_ADDR", http.to_string())
                .env("DATABASE", database)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true);
            let mut child = command.spawn().map_err(|e| format!("cannot start {}: {e}", program.display()))?;
            self.show(&name, &mut child);
            self.processes.push(Process { name, http, child });
        }
        Ok(())
    }

    /// Starts a nats-server and returns the variables with which processes find each other over it. The processes may
    /// start before the server is ready.
    fn start_server(&mut self, port: u16) -> Result<Vec<(&'static str, String)>, Error> {
        let program = env::var_os("NATS_SERVER").filter(|path| !path.is_empty()).unwrap_or_else(|| {
            // Debian installs the server here, and most users do not have this directory on their path.
            let debian = Path::new("/usr/sbin/nats-server");
            if debian.exists() { debian.into() } else { "nats-server".into() }
        });
        let mut command = Command::new(&program);
        command.args(["-a", "127.0.0.1", "-p", &port.to_string()]).stdin(Stdio::null());
        // The server has a process group of its own, so that Ctrl-C does not end it: a process that leaves sends its
        // goodbye over the server.
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).process_group(0);
        let child = command.spawn();
        let mut child = child
            .map_err(|e| format!("cannot start {}, install it with make deps: {e}", Path::new(&program).display()))?;
        self.show("nats", &mut child);
        self.server = Some(child);
        Ok(vec![
            ("GROUPCACHE_DISCOVERY", "nats".to_owned()),
            ("GROUPCACHE_NATS_URL", format!("nats://127.0.0.1:{port}")),
            ("GROUPCACHE_NATS_APPLICATION", "cluster".to_owned()),
        ])
    }

    /// Shows the lines of a process under its name.
    fn show(&mut self, name: &str, child: &mut Child) {
        if let Some(stdout) = child.stdout.take() {
            self.logs.spawn(show(name.to_owned(), stdout, io::stdout()));
        }
        if let Some(stderr) = child.stderr.take() {
            self.logs.spawn(show(name.to_owned(), stderr, io::stderr()));
        }
    }

    /// Waits until every process is ready and connected to all others.
    async fn up(&mut self) -> Result<(), Error> {
        loop {
            let mut all_up = true;
            for process in &self.processes {
                all_up = all_up
                    && ask(process.http, "/readyz").await.is_some()
                    && ask(process.http, "/stats").await.is_some_and(|stats| knows_all(&stats, self.processes.len()));
            }
            // The check for ended processes comes last, because another program may answer on a port on which one of
            // these processes could not listen.
            if let Some((name, status)) = self.ended()?.first() {
                return Err(format!("{name} ended before it was ready ({status}), see the line of {name}").into());
            }
            if all_up {
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }

    /// Removes the processes that have ended and returns their names and exit statuses.
    fn ended(&mut self) -> io::Result<Vec<(String, std::process::ExitStatus)>> {
        let mut ended = Vec::new();
        let mut left = Vec::new();
        for mut process in self.processes.drain(..) {
            match process.child.try_wait()? {
                Some(status) => ended.push((process.name, status)),
                None => left.push(process),
            }
        }
        self.processes = left;
        Ok(ended)
    }

    /// Asks all processes to end, kills those that still run after [`ENDING`], and shows the last lines.
    async fn end(&mut self) {
        for process in &self.processes {
            // The process is not reaped yet, so its number belongs to no other process.
            if let Some(pid) = process.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
                let _ = kill_process(pid, Signal::INT);
            }
        }
        let end = Instant::now() + ENDING;
        while self.ended().is_ok() && !self.processes.is_empty() && Instant::now() < end {
            sleep(LOOK).await;
        }
        for process in &self.processes {
            say(&format!("{} did not end within {ENDING:?} and is killed", process.name));
        }
        self.kill().await;
    }

    /// Kills all processes and the server, and waits at most 1 s until their last lines are shown.
    async fn kill(&mut self) {
        for process in &mut self.processes {
            let _ = process.child.kill().await;
        }
        if let Some(server) = &mut self.server {
            let _ = server.kill().await;
        }
        let shown = async { while self.logs.join_next().await.is_some() {} };
        let _ = timeout(Duration::from_secs(1), shown).await;
    }
}

/// Copies the lines of a process, each with the name of the process in front.
async fn show(name: String, from: impl AsyncRead + Unpin, mut to: impl Write) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while matches!(from.read_until(b'\n', &mut line).await, Ok(n) if n > 0) {
        // Each line is one write, so that lines do not mix. After a failed write reading goes on, because the process
        // would block on a full pipe.
        let text = format!("{name} | {}\n", String::from_utf8_lossy(&line).trim_end());
        let _ = to.write_all(text.as_bytes());
        line.clear();
    }
}

/// Returns whether a process shares the keys with all others: all own keys, are connected, and have the group.
fn knows_all(stats: &str, processes: usize) -> bool {
    let owners = stats.matches("\"owns\":true").count();
    owners == processes && stats.contains(&format!("\"peers\":{},", processes - 1))
}

/// Returns the answer to a GET if its status is 200.
async fn ask(address: SocketAddr, path: &str) -> Option<String> {
    let get = async {
        #[expect(clippy::disallowed_methods, reason = "the launcher calls the service over HTTP, as users do")]
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = timeout(Duration::from_secs(1), get).await.ok()?.ok()?;
    answer.split_once(' ').is_some_and(|(_, status)| status.starts_with("200 ")).then_some(answer)
}

fn explain(plan: &Plan) {
    let curls: String = plan.nodes().map(|(_, http, _)| format!("  curl http://{http}/data/some-id\n")).collect();
    say(&format!(
        "
{} processes share one cache. In another terminal, get the same row from each:

{curls}
All have the same date_created, and \"fetching key from backend\" appears once, at the process that loads the row.
Counters and members of a process: curl http://127.0.0.1:{}/stats
Ctrl-C ends all processes.
",
        plan.nodes, plan.http_port
    ));
}

fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}
