//! What the tests share: a world of pods that a test changes, and eyes that see what the provider makes of it.

pub(crate) mod fake;
pub(crate) mod wire;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use discovery_kubernetes::Pods;
use groupcache_core::{Health, NodeState, Peer, conformance::Bench};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use self::fake::{Fake, Mode};

/// Long enough for anything that works, on a busy machine with two cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The namespace of the tests.
pub(crate) const NAMESPACE: &str = "prod";

/// Waits for a condition and tells how long it took; says which one when it does not come.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(2)).await;
    }
    begun.elapsed()
}

/// A pod of the application `users` as it is when it was just made.
pub(crate) fn pod(name: &str, uid: &str) -> Value {
    let labels: serde_json::Map<_, _> =
        discovery_kubernetes::APPLICATION_LABELS.iter().map(|label| ((*label).to_owned(), json!("users"))).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE, "uid": uid, "labels": labels },
        "spec": { "containers": [{ "name": "main", "image": "users:1",
            "ports": [{ "name": "http", "containerPort": 8080 },
                      { "name": discovery_kubernetes::PORT_NAME, "containerPort": 7946 }] }] },
        "status": { "phase": "Pending" },
    })
}

/// The status of a pod that runs.
pub(crate) fn running(ips: &[&str], ready: bool) -> Value {
    let condition = if ready { "True" } else { "False" };
    let all: Vec<_> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({ "phase": "Running", "podIP": ips.first(), "podIPs": all,
            "conditions": [{ "type": "Ready", "status": condition }] })
}

/// Pods that a scenario makes and changes, on whatever API server.
pub(crate) trait World {
    fn pods(&self) -> Pods;
    /// Makes a pod that has no address yet.
    async fn create(&mut self, name: &str);
    /// Sets its status.
    async fn status(&mut self, name: &str, status: Value);
    /// Asks it to end: it has a deletion timestamp from now on.
    async fn terminate(&mut self, name: &str);
    /// It is gone.
    async fn delete(&mut self, name: &str);
    /// Nobody may list or watch pods any more, and again.
    async fn revoke(&mut self);
    async fn grant(&mut self);
    /// The API server is not there, and again.
    async fn down(&mut self);
    async fn up(&mut self);
    /// How long it is not.
    fn outage(&self) -> Duration;

    async fn start(&mut self, name: &str, ip: &str) {
        self.create(name).await;
        self.status(name, running(&[ip], true)).await;
    }
}

/// On the fake, in virtual time.
pub(crate) struct Simulated {
    pub(crate) fake: Fake,
    made: u32,
}

impl Simulated {
    pub(crate) fn new() -> Self {
        Self { fake: Fake::default(), made: 0 }
    }

    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut pod = self.fake.get("pods", NAMESPACE, name).unwrap();
        change(&mut pod);
        self.fake.put("pods", pod);
    }
}

impl World for Simulated {
    fn pods(&self) -> Pods {
        Pods::new(NAMESPACE, "users").client(wire::client(&self.fake))
    }

    async fn create(&mut self, name: &str) {
        self.made += 1;
        self.fake.put("pods", pod(name, &format!("uid-{}", self.made)));
    }

    async fn status(&mut self, name: &str, status: Value) {
        self.change(name, |pod| pod["status"] = status);
    }

    async fn terminate(&mut self, name: &str) {
        self.change(name, |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
    }

    async fn delete(&mut self, name: &str) {
        self.fake.delete("pods", NAMESPACE, name);
    }

    async fn revoke(&mut self) {
        self.fake.set(Mode::Refuses { verb: "", code: 403, body: None });
    }

    async fn grant(&mut self) {
        self.fake.set(Mode::Well);
    }

    async fn down(&mut self) {
        self.fake.set(Mode::Down);
    }

    async fn up(&mut self) {
        self.fake.set(Mode::Well);
    }

    fn outage(&self) -> Duration {
        Duration::from_secs(3_600)
    }
}

/// A provider on the bench, and what it publishes.
pub(crate) struct Eyes {
    pub(crate) bench: Bench,
    pub(crate) pods: Pods,
}

impl Eyes {
    pub(crate) fn open(pods: Pods) -> Self {
        Self { bench: Bench::start(Arc::new(pods.clone())).unwrap(), pods }
    }

    /// Who is published: `name@address+address`, with a `!` after the name of one that drains.
    pub(crate) fn set(&mut self) -> Vec<String> {
        let mut all: Vec<_> = self.bench.peers().iter().map(show).collect();
        all.sort();
        all
    }

    /// Who was said to have left since this was asked last.
    pub(crate) fn left(&mut self) -> Vec<String> {
        self.bench.left().into_iter().map(|(id, _)| id.to_string()).collect()
    }

    /// Waits until these are published, and complete.
    pub(crate) async fn until(&mut self, expected: &[&str]) -> Duration {
        let begun = Instant::now();
        while self.bench.sets() == 0 || self.set() != expected {
            let (set, health) = (self.set(), self.bench.health());
            assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {expected:?}, but {set:?}, {health:?}");
            sleep(Duration::from_millis(1)).await;
        }
        begun.elapsed()
    }

    /// Waits until the provider has read so many more events than it had when `before` was taken, and published.
    pub(crate) async fn reads(&mut self, before: u64, events: u64) {
        let pods = self.pods.clone();
        eventually("the events are read", async || pods.stats().events >= before + events).await;
        sleep(Duration::from_millis(60)).await; // what is published is published by then
    }

    pub(crate) async fn until_stale(&mut self, words: &[&str]) -> String {
        let begun = Instant::now();
        loop {
            match self.bench.health() {
                Some(Health::Stale(why)) if words.iter().all(|word| why.contains(word)) => return why,
                health => assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {words:?}, but {health:?}"),
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) async fn until_well(&mut self) -> Duration {
        eventually("it is well", async || self.bench.health() == Some(Health::Connected)).await
    }
}

/// A world of two pods, which the provider has published.
pub(crate) async fn settled(pods: impl FnOnce(Pods) -> Pods) -> (Simulated, Eyes) {
    settled_with(|_| (), pods).await
}

pub(crate) async fn settled_with(
    prepare: impl FnOnce(&Simulated),
    pods: impl FnOnce(Pods) -> Pods,
) -> (Simulated, Eyes) {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    world.start("p2", "10.0.0.2").await;
    prepare(&world);
    let mut eyes = Eyes::open(pods(world.pods()));
    eyes.until(&["p1@10.0.0.1", "p2@10.0.0.2"]).await;
    eyes.until_well().await;
    (world, eyes)
}

pub(crate) const BOTH: [&str; 2] = ["p1@10.0.0.1", "p2@10.0.0.2"];
pub(crate) const THREE: [&str; 3] = ["p1@10.0.0.1", "p2@10.0.0.2", "p3@10.0.0.3"];

pub(crate) fn show(peer: &Peer) -> String {
    let at: Vec<_> = peer.addresses().iter().map(|at| at.as_str().trim_end_matches(":7946").to_owned()).collect();
    let draining = if peer.state() == Some(NodeState::Draining) { "!" } else { "" };
    let zone = peer.zone().map(|zone| format!(" in {zone}")).unwrap_or_default();
    format!("{}{draining}@{}{zone}", peer.id().map_or("", |id| id.as_str()), at.join("+"))
}

/// A directory of a test's own, removed at its end.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("groupcache-k8s-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A kubeconfig for a server, with a token in a file of its own.
pub(crate) fn kubeconfig(scratch: &Scratch, server: &str, token: &str, authority: Option<&str>) -> PathBuf {
    read_along::is_secret(token);
    let token = scratch.write("token", token);
    let authority = authority.map(|pem| {
        let path = scratch.write("ca.pem", pem);
        format!("\n      certificate-authority: {}", path.display())
    });
    let text = format!(
        "apiVersion: v1
kind: Config
current-context: test
clusters:
  - name: test
    cluster:
      server: {server}{}
users:
  - name: test
    user:
      tokenFile: {}
contexts:
  - name: test
    context: {{ cluster: test, user: test, namespace: {NAMESPACE} }}
",
        authority.unwrap_or_default(),
        token.display()
    );
    scratch.write("kubeconfig", text)
}
