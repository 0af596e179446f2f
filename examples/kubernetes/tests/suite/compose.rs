//! `deploy/compose.yml` in a Docker engine: three containers of the image behind nginx. A container is stopped and
//! started, and all of them are restarted one after the other.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::support::{
    eventually,
    kubelet::{FETCH, get},
    root,
};

const SERVERS: [&str; 3] = ["server-01", "server-02", "server-03"];
/// Number of users that send requests at the same time.
const USERS: u64 = 4;
/// Number of ids that the users request.
const IDS: u64 = 100;

/// Checks that three servers behind nginx load each row once, and that no request fails while one server stops and
/// starts, and while all of them restart one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Docker engine"]
async fn servers_behind_nginx_restart_without_failed_requests() {
    let stack = Stack::up().await;

    // All servers answer with the same row, and one server has loaded it.
    let (status, row) = stack.ask("/data/some-id").await.unwrap();
    assert_eq!(status, 200, "{row}");
    for _ in 0..12 {
        assert_eq!(stack.ask("/data/some-id").await, Some((200, row.clone())));
    }
    for port in stack.ports() {
        assert_eq!(get(port, "/data/some-id").await, Some((200, row.clone())));
    }
    let log = stack.log();
    assert_eq!(fetched(&log, "some-id"), 1, "{log}");
    let spread: Vec<_> = stack.gets().await;
    assert!(spread.iter().all(|gets| *gets > 2), "nginx sends requests to all servers: {spread:?}");

    // The script that the README names requests a hundred ids.
    let url = format!("http://127.0.0.1:{}", stack.variable("PORT"));
    print!("{}", run(Command::new(root().join("deploy/load")).env("URL", url)));
    let log = stack.log();
    assert!((0..100).all(|id| fetched(&log, &format!("load-{id}")) == 1), "each id is loaded once: {log}");

    // A server stops and starts again.
    let users = Users::of(&stack);
    stack.compose(&["stop", "server-02"]);
    eventually("the other two servers are one cluster", async || stack.agree(&["server-01", "server-03"]).await).await;
    assert_eq!(stack.exit_code("server-02"), "0", "{}", stack.log());
    for n in 0..20 {
        assert_eq!(stack.ask(&format!("/data/while-two-{n}")).await.unwrap().0, 200);
    }
    stack.compose(&["start", "server-02"]);
    eventually("all three servers are one cluster again", async || stack.agree(&SERVERS).await).await;
    users.assert_none_failed("a stop and a start").await;

    // All servers are restarted, one after the other.
    let users = Users::of(&stack);
    for server in SERVERS {
        let begun = Instant::now();
        stack.compose(&["restart", server]);
        eventually("the restarted server is back", async || stack.agree(&SERVERS).await).await;
        println!("{server} restarted in {:?}", begun.elapsed());
    }
    users.assert_none_failed("a rolling restart").await;
    assert_eq!(stack.ask("/data/some-id").await, Some((200, row)), "the row comes from the database");
    for line in stack.log().lines().filter(|line| !line.contains(FETCH)) {
        read_along::says(line);
    }
    stack.down();
    assert!(stack.containers().is_empty(), "{}", stack.containers());
}

/// Containers and the variables that they start with. The containers are removed by [`down`](Self::down), and on drop
/// after a panic.
struct Stack {
    project: String,
    variables: Vec<(String, String)>,
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.log());
            self.down();
        }
    }
}

impl Stack {
    /// Makes the images from files of this machine, starts all containers, and waits until the servers are one cluster.
    async fn up() -> Self {
        let id = std::process::id();
        let mut variables = vec![
            ("PREBUILT".to_owned(), env!("CARGO_BIN_EXE_cluster-kubernetes").to_owned()),
            ("IMAGE".to_owned(), format!("groupcache-example:test-{id}")),
            ("SUBNET".to_owned(), format!("172.30.{}", id % 250)),
            ("RUST_LOG".to_owned(), read_along::RUST_LOG.to_owned()),
            // A long time-out, so that a pause of the machine does not cause a second load.
            ("BACKEND_TIMEOUT_MS".to_owned(), "20000".to_owned()),
        ];
        for name in ["PORT", "PORT_1", "PORT_2", "PORT_3"] {
            let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
            variables.push((name.to_owned(), port.to_string()));
        }
        let stack = Self { project: format!("groupcache-test-{id}"), variables };
        let begun = Instant::now();
        stack.compose(&["up", "--detach", "--build"]);
        eventually("all servers are one cluster", async || stack.agree(&SERVERS).await).await;
        eventually("nginx answers", async || stack.ask("/healthz").await.is_some_and(|(status, _)| status == 200))
            .await;
        println!("up in {:?}", begun.elapsed());
        stack
    }

    fn down(&self) {
        self.compose(&["down", "--volumes", "--rmi", "local", "--timeout", "5"]);
        let image = self.variable("IMAGE");
        run(Command::new("docker").args(["image", "rm", "--force", image]));
    }

    fn variable(&self, name: &str) -> &str {
        &self.variables.iter().find(|(one, _)| one == name).unwrap().1
    }

    fn compose(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(root().join("tools/compose"));
        command.args(arguments).env("COMPOSE_PROJECT_NAME", &self.project);
        run(command.envs(self.variables.iter().map(|(name, value)| (name, value))))
    }

    /// Returns the address of each server, without nginx.
    fn ports(&self) -> [&'static str; 3] {
        ["PORT_1", "PORT_2", "PORT_3"].map(|name| &*format!("127.0.0.1:{}", self.variable(name)).leak())
    }

    /// Sends a request to nginx, as users do.
    async fn ask(&self, path: &str) -> Option<(u16, String)> {
        get(&format!("127.0.0.1:{}", self.variable("PORT")), path).await
    }

    async fn stats(&self, server: &str) -> Option<Value> {
        let n = SERVERS.iter().position(|one| *one == server).unwrap();
        let (_, stats) = get(self.ports()[n], "/stats").await.filter(|(status, _)| *status == 200)?;
        serde_json::from_str(&stats).ok()
    }

    /// Returns the number of gets at each server.
    async fn gets(&self) -> Vec<u64> {
        let mut all = Vec::new();
        for server in SERVERS {
            all.push(self.stats(server).await.unwrap()["groups"]["data"]["counters"]["gets"].as_u64().unwrap());
        }
        all
    }

    /// Returns whether each of these servers sees exactly these servers, all reachable owners of keys.
    async fn agree(&self, servers: &[&str]) -> bool {
        for server in servers {
            let Some(stats) = self.stats(server).await else { return false };
            let members = stats["members"].as_array().unwrap();
            let all_are = |name: &str| members.iter().all(|member| member[name] == true);
            if members.len() != servers.len() || !all_are("owns") || !all_are("is_reachable") {
                return false;
            }
        }
        true
    }

    fn log(&self) -> String {
        self.compose(&["logs", "--no-color", "--no-log-prefix"])
    }

    fn exit_code(&self, server: &str) -> String {
        let container = self.compose(&["ps", "--all", "--quiet", server]);
        let inspect = ["inspect", "--format", "{{.State.ExitCode}}", container.trim()];
        run(Command::new("docker").args(inspect)).trim().to_owned()
    }

    fn containers(&self) -> String {
        let label = format!("label=com.docker.compose.project={}", self.project);
        run(Command::new("docker").args(["ps", "--all", "--quiet", "--filter", &label]))
    }
}

/// Returns how often the servers read a row from the database.
fn fetched(log: &str, id: &str) -> usize {
    log.lines().filter(|line| line.contains(FETCH) && line.contains(&format!("key=\"{id}\""))).count()
}

/// Runs a command and returns its standard output. Panics unless the command succeeds.
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// Users that request 100 ids from nginx, over and over.
struct Users {
    is_over: Arc<AtomicBool>,
    asking: Vec<JoinHandle<Asked>>,
}

/// Requests of one user, and their failures.
#[derive(Default)]
struct Asked {
    requests: u64,
    failed: Vec<String>,
    slowest: Duration,
}

impl Users {
    fn of(stack: &Stack) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let at = format!("127.0.0.1:{}", stack.variable("PORT"));
        let asking = (0..USERS).map(|n| tokio::spawn(ask(at.clone(), n * IDS / USERS, Arc::clone(&is_over))));
        Self { asking: asking.collect(), is_over }
    }

    /// Stops the users and checks that no request failed.
    async fn assert_none_failed(self, during: &str) {
        self.is_over.store(true, Relaxed);
        let mut all = Asked::default();
        for asking in self.asking {
            let asked = asking.await.unwrap();
            all.requests += asked.requests;
            all.failed.extend(asked.failed);
            all.slowest = all.slowest.max(asked.slowest);
        }
        println!("{} requests during {during}, {} failed, slowest {:?}", all.requests, all.failed.len(), all.slowest);
        assert!(all.requests > 5 * IDS, "only {} requests", all.requests);
        assert!(all.failed.is_empty(), "{:#?}", all.failed);
    }
}

async fn ask(at: String, first: u64, is_over: Arc<AtomicBool>) -> Asked {
    let (mut asked, mut rows) = (Asked::default(), BTreeMap::new());
    while !is_over.load(Relaxed) {
        let path = format!("/data/id-{}", (first + asked.requests) % IDS);
        let begun = Instant::now();
        match get(&at, &path).await {
            Some((200, row)) => {
                let before = rows.entry(path.clone()).or_insert_with(|| row.clone());
                if *before != row {
                    asked.failed.push(format!("{path}: {row} after {before}"));
                }
            }
            other => asked.failed.push(format!("{path}: {other:?}")),
        }
        asked.slowest = asked.slowest.max(begun.elapsed());
        asked.requests += 1;
    }
    asked
}
