//! A nats-server for each test, and simulated members of a cluster on it.

use std::{
    env, fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use async_nats::Client;
use groupcache_core::discovery::Me;
use read_along::is_secret;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

/// Maximum time for anything that works, on a busy machine with two cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a condition and returns how long that took. Panics with the name of the condition if it does not come
/// true.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
    begun.elapsed()
}

/// Returns a loopback port without a listener, below the ports that the system assigns.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = 12_000 + (std::process::id() % 1000) as u16 * 16;
    loop {
        let port = begin + NEXT.fetch_add(1, Relaxed) % 4_000;
        if std::net::TcpListener::bind(local(port)).is_ok() {
            return port;
        }
    }
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Directory of one test, removed at its end.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("groupcache-nats-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Returns the program of the server.
pub(crate) fn program() -> String {
    env::var("NATS_SERVER").unwrap_or_else(|_| {
        let sbin = "/usr/sbin/nats-server";
        if Path::new(sbin).exists() { sbin.to_owned() } else { "nats-server".to_owned() }
    })
}

/// Returns the version of the server, such as (2, 9).
#[cfg(feature = "kv")]
pub(crate) fn version() -> (u32, u32) {
    let output = Command::new(program()).arg("--version").output();
    let output = output.expect("nats-server must be installed, by make deps, or named by NATS_SERVER");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Running nats-server, which ends with the test.
pub(crate) struct Broker {
    pub(crate) port: u16,
    /// Port at which the server starts again, for tests that move it.
    pub(crate) next_port: Option<u16>,
    config: String,
    scratch: Scratch,
    child: Option<Child>,
}

impl Broker {
    pub(crate) async fn start() -> Self {
        Self::with("").await
    }

    /// Starts a server with more configuration than a port.
    pub(crate) async fn with(config: &str) -> Self {
        let mut broker = Self::down(config);
        broker.up().await;
        broker
    }

    /// Returns a server that does not run yet.
    pub(crate) fn down(config: &str) -> Self {
        ["pa55-w0rd", "t0ken-of-cache"].into_iter().for_each(is_secret); // secrets with which nodes of tests sign in
        Self { port: free_port(), next_port: None, config: config.to_owned(), scratch: Scratch::new(), child: None }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Starts the server, on the port and with the configuration that it has at this moment.
    pub(crate) async fn up(&mut self) {
        let store = self.scratch.0.join("store").display().to_string();
        let config = self.config.replace("STORE", &store);
        let path = self.scratch.write("nats.conf", config);
        let log = self.scratch.0.join("nats.log");
        let mut command = Command::new(program());
        command.args(["-a", "127.0.0.1", "-p", &self.port.to_string(), "-c"]).arg(&path).arg("-l").arg(&log);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.child = Some(child.expect("nats-server must be installed, by make deps, or named by NATS_SERVER"));
        let begun = Instant::now();
        while TcpStream::connect(local(self.port)).is_err() {
            assert!(begun.elapsed() < PATIENCE, "the nats-server does not answer; see {}", log.display());
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Changes the configuration and restarts the server with it.
    pub(crate) async fn reconfigure(&mut self, config: &str) {
        self.config = config.to_owned();
        self.kill();
        self.up().await;
    }

    /// Returns what the server has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.scratch.0.join("nats.log")).unwrap()
    }

    pub(crate) fn move_to(&mut self, port: u16) {
        self.port = port;
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) fn is_down(&self) -> bool {
        self.child.is_none()
    }

    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // The process is not reaped yet, so that its number is still its own.
        let pid = self.child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed()));
        kill_process(pid.unwrap(), signal).unwrap();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Connects a client for simulated members.
pub(crate) async fn fake_client(url: &str) -> Client {
    let options = async_nats::ConnectOptions::new().user_and_password("fakes".to_owned(), "fakes".to_owned());
    options.connect(url).await.unwrap()
}

/// Returns the announcement of a node.
pub(crate) fn announcement(me: &Me, heartbeat: Duration) -> String {
    let addresses: Vec<_> = me.addresses.iter().map(|a| format!("\"{a}\"")).collect();
    format!(
        r#"{{"v":1,"id":"{}","inc":{},"addrs":[{}],"state":"{}","ttl_ms":{},"future":{{"x":[1]}}}}"#,
        me.id,
        me.incarnation.0,
        addresses.join(","),
        me.state,
        heartbeat.as_millis() * 4
    )
}

/// Simulated node, which announces itself and answers questions until it is dropped.
pub(crate) struct Fake {
    root: String,
    client: Client,
    message: String,
    task: JoinHandle<()>,
}

impl Fake {
    pub(crate) async fn join(url: &str, application: &str, me: &Me, heartbeat: Duration) -> Self {
        let client = fake_client(url).await;
        Self::on(client, application, me, heartbeat).await
    }

    pub(crate) async fn on(client: Client, application: &str, me: &Me, heartbeat: Duration) -> Self {
        let root = format!("groupcache-gossip.{application}.{}", me.cluster);
        let message = announcement(me, heartbeat);
        let (client2, root2, message2) = (client.clone(), root.clone(), message.clone());
        let task = tokio::spawn(async move {
            let (client, root, message) = (client2, root2, message2);
            let mut questions = client.subscribe(format!("{root}.q")).await.unwrap();
            let mut beats = tokio::time::interval(heartbeat);
            use futures_util::StreamExt;
            loop {
                tokio::select! {
                    Some(question) = questions.next() => {
                        if let Some(to) = question.reply {
                            let _ = client.publish(to, message.clone().into()).await;
                        }
                    }
                    _ = beats.tick() => {
                        let _ = client.publish(format!("{root}.hb"), message.clone().into()).await;
                    }
                }
            }
        });
        Self { root, client, message, task }
    }

    pub(crate) async fn leave(self) {
        self.task.abort();
        self.client.publish(format!("{}.bye", self.root), self.message.clone().into()).await.unwrap();
        self.client.flush().await.unwrap();
    }

    /// Ends without a goodbye.
    pub(crate) fn crash(self) {
        self.task.abort();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns a member of the cluster of the conformance suite.
pub(crate) fn member(name: &str) -> Me {
    Me {
        id: groupcache_core::PeerId::new(name).unwrap(),
        cluster: groupcache_core::conformance::CLUSTER.into(),
        incarnation: groupcache_core::discovery::Incarnation(1),
        state: groupcache_core::discovery::NodeState::Ready,
        addresses: vec![groupcache_core::discovery::Address::new("127.0.0.9:7946").unwrap()],
        weight: 1,
        zone: "".into(),
        tls: false,
    }
}
