//! Shared parts of the tests: a world of pods that a test changes, and an observer of the publications.

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
use groupcache_core::{
    conformance::Bench,
    discovery::{Health, NodeState, Peer},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use self::fake::{Fake, Mode};

/// Time limit of each wait: generous for a busy machine with two cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The namespace of the tests.
pub(crate) const NAMESPACE: &str = "prod";

/// Waits for a condition. Returns the time that it took; panics with `what` after [`PATIENCE`].
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(2)).await;
    }
    begun.elapsed()
}

/// Returns a new pod of the application `users`, without an address.
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

/// Returns the status of a running pod.
pub(crate) fn running(ips: &[&str], ready: bool) -> Value {
    let condition = if ready { "True" } else { "False" };
    let all: Vec<_> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({ "phase": "Running", "podIP": ips.first(), "podIPs": all,
            "conditions": [{ "type": "Ready", "status": condition }] })
}

/// Pods of a scenario on some API server.
pub(crate) trait World {
    /// Returns a provider of the pods.
    fn pods(&self) -> Pods;
    /// Creates a pod without an address.
    async fn create(&mut self, name: &str);
    /// Sets the status of a pod.
    async fn status(&mut self, name: &str, status: Value);
    /// Marks a pod as terminating, with a deletion timestamp.
    async fn terminate(&mut self, name: &str);
    /// Deletes a pod.
    async fn delete(&mut self, name: &str);
    /// Revokes the right to list and watch pods.
    async fn revoke(&mut self);
    /// Grants the right again.
    async fn grant(&mut self);
    /// Stops the API server.
    async fn down(&mut self);
    /// Starts the API server again.
    async fn up(&mut self);
    /// Returns the length of an outage.
    fn outage(&self) -> Duration;

    /// Creates a pod that runs and is ready.
    async fn start(&mut self, name: &str, ip: &str) {
        self.create(name).await;
        self.status(name, running(&[ip], true)).await;
    }
}

/// Pods on the fake API server, in virtual time.
pub(crate) struct Simulated {
    pub(crate) fake: Fake,
    made: u32,
}

impl Simulated {
    pub(crate) fn new() -> Self {
        Self { fake: Fake::default(), made: 0 }
    }

    /// Changes a pod.
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
        self.fake.set(Mode::Normal);
    }

    async fn down(&mut self) {
        self.fake.set(Mode::Down);
    }

    async fn up(&mut self) {
        self.fake.set(Mode::Normal);
    }

    fn outage(&self) -> Duration {
        Duration::from_secs(3_600)
    }
}

/// A provider on a test bench, with its publications.
pub(crate) struct Observer {
    pub(crate) bench: Bench,
    pub(crate) pods: Pods,
}

impl Observer {
    pub(crate) fn start(pods: Pods) -> Self {
        Self { bench: Bench::start(Arc::new(pods.clone())).unwrap(), pods }
    }

    /// Returns the published peers as `name@address+address`, with a `!` after the name of a draining peer.
    pub(crate) fn set(&mut self) -> Vec<String> {
        let mut all: Vec<_> = self.bench.peers().iter().map(show).collect();
        all.sort();
        all
    }

    /// Returns the departures that were reported since the last call.
    pub(crate) fn left(&mut self) -> Vec<String> {
        self.bench.left().into_iter().map(|(id, _)| id.to_string()).collect()
    }

    /// Waits until exactly these peers are published, after at least one complete set.
    pub(crate) async fn until(&mut self, expected: &[&str]) -> Duration {
        let begun = Instant::now();
        while self.bench.sets() == 0 || self.set() != expected {
            let (set, health) = (self.set(), self.bench.health());
            assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {expected:?}, but {set:?}, {health:?}");
            sleep(Duration::from_millis(1)).await;
        }
        begun.elapsed()
    }

    /// Waits until the provider has read this number of events more than `before`, and has published them.
    pub(crate) async fn until_read(&mut self, before: u64, events: u64) {
        let pods = self.pods.clone();
        eventually("the events are read", async || pods.stats().events >= before + events).await;
        sleep(Duration::from_millis(60)).await; // longer than the delay of a publication
    }

    /// Waits until the health is stale for a reason with these words. Returns the reason.
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

    /// Waits until the health is connected.
    pub(crate) async fn until_connected(&mut self) -> Duration {
        eventually("the provider is connected", async || self.bench.health() == Some(Health::Connected)).await
    }
}

/// Returns two pods and a provider that has published them.
pub(crate) async fn two_pods(pods: impl FnOnce(Pods) -> Pods) -> (Simulated, Observer) {
    two_pods_with(|_| (), pods).await
}

/// Returns two pods and a provider that has published them, on a fake API server that `prepare` has changed.
pub(crate) async fn two_pods_with(
    prepare: impl FnOnce(&Simulated),
    pods: impl FnOnce(Pods) -> Pods,
) -> (Simulated, Observer) {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    world.start("p2", "10.0.0.2").await;
    prepare(&world);
    let mut observer = Observer::start(pods(world.pods()));
    observer.until(&["p1@10.0.0.1", "p2@10.0.0.2"]).await;
    observer.until_connected().await;
    (world, observer)
}

pub(crate) const TWO: [&str; 2] = ["p1@10.0.0.1", "p2@10.0.0.2"];
pub(crate) const THREE: [&str; 3] = ["p1@10.0.0.1", "p2@10.0.0.2", "p3@10.0.0.3"];

/// Returns a peer as `name@address+address`, with a `!` after the name of a draining peer.
pub(crate) fn show(peer: &Peer) -> String {
    let at: Vec<_> = peer.addresses().iter().map(|at| at.as_str().trim_end_matches(":7946").to_owned()).collect();
    let draining = if peer.state() == Some(NodeState::Draining) { "!" } else { "" };
    format!("{}{draining}@{}", peer.id().map_or("", |id| id.as_str()), at.join("+"))
}

/// A temporary directory, removed on drop.
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

/// Writes a kubeconfig for a server, with the token in a separate file.
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
