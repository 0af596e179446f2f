//! `deploy/compose.yml` for real: three containers of the image behind nginx, one of them stopped and started, all of
//! them restarted one after the other.

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
/// How many users ask at the same time, for how many ids.
const USERS: u64 = 4;
const IDS: u64 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Docker engine"]
async fn three_servers_behind_nginx() {
    let stack = Stack::up().await;

    // Whichever server is asked, the row is the same, and one of them has loaded it.
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
    assert!(spread.iter().all(|gets| *gets > 2), "nginx asks all of them: {spread:?}");

    // A hundred ids, as people are told to ask for them.
    let url = format!("http://127.0.0.1:{}", stack.variable("PORT"));
    print!("{}", run(Command::new(root().join("deploy/load")).env("URL", url)));
    let log = stack.log();
    assert!((0..100).all(|id| fetched(&log, &format!("load-{id}")) == 1), "each is loaded once: {log}");

    // One is stopped and started.
    let users = Users::of(&stack);
    stack.compose(&["stop", "server-02"]);
    eventually("the others are two", async || stack.agree(&["server-01", "server-03"]).await).await;
    assert_eq!(stack.exit_code("server-02"), "0", "{}", stack.log());
    for n in 0..20 {
        assert_eq!(stack.ask(&format!("/data/while-two-{n}")).await.unwrap().0, 200);
    }
    stack.compose(&["start", "server-02"]);
    eventually("they are three again", async || stack.agree(&SERVERS).await).await;
    users.none_failed("a stop and a start").await;

    // All of them, one after the other.
    let users = Users::of(&stack);
    for server in SERVERS {
        let begun = Instant::now();
        stack.compose(&["restart", server]);
        eventually("it is back", async || stack.agree(&SERVERS).await).await;
        println!("{server} restarted in {:?}", begun.elapsed());
    }
    users.none_failed("a rolling restart").await;
    assert_eq!(stack.ask("/data/some-id").await, Some((200, row)), "it is in the database by now");
    for line in stack.log().lines().filter(|line| !line.contains(FETCH)) {
        read_along::says(line);
    }
    stack.down();
    assert!(stack.containers().is_empty(), "{}", stack.containers());
}

/// The containers, and what they are started with; taken down when it is dropped.
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
    /// Makes the images from what is on this machine, starts all, and waits until they are one cluster.
    async fn up() -> Self {
        let id = std::process::id();
        let mut variables = vec![
            ("PREBUILT".to_owned(), env!("CARGO_BIN_EXE_cluster-kubernetes").to_owned()),
            ("IMAGE".to_owned(), format!("groupcache-example:test-{id}")),
            ("SUBNET".to_owned(), format!("172.30.{}", id % 250)),
            ("RUST_LOG".to_owned(), read_along::RUST_LOG.to_owned()),
            // A machine that stands still for a quarter of a second must not make a second load of one.
            ("BACKEND_TIMEOUT_MS".to_owned(), "20000".to_owned()),
        ];
        for name in ["PORT", "PORT_1", "PORT_2", "PORT_3"] {
            let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
            variables.push((name.to_owned(), port.to_string()));
        }
        let stack = Self { project: format!("groupcache-test-{id}"), variables };
        let begun = Instant::now();
        stack.compose(&["up", "--detach", "--build"]);
        eventually("they are one cluster", async || stack.agree(&SERVERS).await).await;
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

    /// Where each server is asked without nginx.
    fn ports(&self) -> [&'static str; 3] {
        ["PORT_1", "PORT_2", "PORT_3"].map(|name| &*format!("127.0.0.1:{}", self.variable(name)).leak())
    }

    /// A request as users make it.
    async fn ask(&self, path: &str) -> Option<(u16, String)> {
        get(&format!("127.0.0.1:{}", self.variable("PORT")), path).await
    }

    async fn stats(&self, server: &str) -> Option<Value> {
        let n = SERVERS.iter().position(|one| *one == server).unwrap();
        let (_, stats) = get(self.ports()[n], "/stats").await.filter(|(status, _)| *status == 200)?;
        serde_json::from_str(&stats).ok()
    }

    /// How many requests each server has had.
    async fn gets(&self) -> Vec<u64> {
        let mut all = Vec::new();
        for server in SERVERS {
            all.push(self.stats(server).await.unwrap()["groups"]["data"]["counters"]["gets"].as_u64().unwrap());
        }
        all
    }

    /// Whether these, and no others, share the keys.
    async fn agree(&self, servers: &[&str]) -> bool {
        for server in servers {
            let Some(stats) = self.stats(server).await else { return false };
            let members = stats["members"].as_array().unwrap();
            let is_well = |name: &str| members.iter().all(|member| member[name] == true);
            if members.len() != servers.len() || !is_well("owns") || !is_well("is_reachable") {
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

/// How often a row was asked of the database, by whichever server.
fn fetched(log: &str, id: &str) -> usize {
    log.lines().filter(|line| line.contains(FETCH) && line.contains(&format!("key=\"{id}\""))).count()
}

/// What a command that must succeed prints.
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// Users who ask nginx for 100 ids, over and over.
struct Users {
    is_over: Arc<AtomicBool>,
    asking: Vec<JoinHandle<Asked>>,
}

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

    async fn none_failed(self, during: &str) {
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
