//! Real nodes at the addresses of pods: discovery, ring and remote gets in combination.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use discovery_kubernetes::{SERVICE_LABEL, Service};
use groupcache_core::{Group, Identity, Node, discovery::Provider};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::{
    NAMESPACE, Scratch, Simulated, World, eventually, kubeconfig, running,
    wire::{Listening, listen},
};

/// A node with the id and the address of a pod.
pub(crate) struct Pod {
    pub(crate) node: Node,
    group: Group<String>,
    loads: Arc<AtomicU64>,
}

/// Port of all nodes. Each pod has its own loopback address, so the port is free even while other tests run.
const PORT: u16 = 7946;

/// Starts a node as the pod `name`, with a group that counts its loads.
pub(crate) async fn start(world: &impl World, name: &str, ip: &str) -> Pod {
    start_with(world.pods(), name, ip).await
}

/// Starts a node as the pod `name`, with this provider.
async fn start_with(provider: impl Provider, name: &str, ip: &str) -> Pod {
    let listen = SocketAddr::new(ip.parse().unwrap(), PORT);
    let identity = Identity::new(listen).with_id(name).unwrap();
    let node = Node::builder().identity(identity).provider(provider).start().await.unwrap();
    let loads = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&loads);
    let group = node.group::<String>("keys").capacity_bytes(1 << 20);
    let load = async |loads: &Arc<AtomicU64>, key: &str| {
        loads.fetch_add(1, Relaxed);
        Ok::<_, std::io::Error>(format!("value of {key}"))
    };
    let group = group.loader_with(counted, load).build().unwrap();
    Pod { node, group, loads }
}

/// Returns whether each node sees this number of reachable members.
pub(crate) fn all_see(pods: &[Pod], members: usize) -> bool {
    pods.iter().all(|pod| {
        let all = pod.node.members();
        all.len() == members && all.iter().all(|member| member.reachable)
    })
}

/// The fake API server over TCP: in real time, with a client per node.
pub(crate) struct OverTcp {
    pub(crate) simulated: Simulated,
    listening: Listening,
    scratch: Scratch,
}

impl OverTcp {
    pub(crate) async fn new() -> Self {
        let simulated = Simulated::new();
        let listening = listen(&simulated.fake, None).await;
        Self { simulated, listening, scratch: Scratch::new() }
    }
}

impl World for OverTcp {
    fn pods(&self) -> discovery_kubernetes::Pods {
        let path =
            kubeconfig(&self.scratch, &format!("http://127.0.0.1:{}", self.listening.port), "t0ken-of-users", None);
        discovery_kubernetes::Pods::new(NAMESPACE, "users").kubeconfig(path)
    }

    async fn create(&mut self, name: &str) {
        self.simulated.create(name).await;
    }

    async fn status(&mut self, name: &str, status: serde_json::Value) {
        self.simulated.status(name, status).await;
    }

    async fn terminate(&mut self, name: &str) {
        self.simulated.terminate(name).await;
    }

    async fn delete(&mut self, name: &str) {
        self.simulated.delete(name).await;
    }

    async fn revoke(&mut self) {
        self.simulated.revoke().await;
    }

    async fn grant(&mut self) {
        self.simulated.grant().await;
    }

    async fn down(&mut self) {
        self.simulated.down().await;
    }

    async fn up(&mut self) {
        self.simulated.up().await;
    }

    fn outage(&self) -> Duration {
        Duration::from_secs(9) // longer than the grace of a missing peer and the pings after that
    }
}

/// Checks a cluster of pods on the fake API server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_on_the_fake_form_a_cluster() {
    let mut world = OverTcp::new().await;
    pods_form_a_cluster(&mut world).await;
    let (_, most) = world.simulated.fake.watches();
    // A question of a node ends a watch and begins the next, and the server notices the end a little later.
    assert!((4..=8).contains(&most), "one watch per node, and {most} were open");
}

/// Checks that pods form a cluster, join late, keep their keys while no pod is ready and the API server is down, and
/// leave.
pub(crate) async fn pods_form_a_cluster(world: &mut impl World) {
    let ips = ["127.0.81.1", "127.0.81.2", "127.0.81.3", "127.0.81.4"];
    let mut pods = Vec::new();
    for (n, ip) in ips.iter().take(3).enumerate() {
        world.start(&format!("users-{n}"), ip).await;
        pods.push(start(world, &format!("users-{n}"), ip).await);
    }
    eventually("the three nodes see each other", async || all_see(&pods, 3)).await;
    for pod in &pods {
        pod.node.ready(3).await.unwrap();
    }
    get_all(&pods, "the-1st-token").await;

    // A fourth node starts before its pod has an address, as in Kubernetes.
    world.create("users-3").await;
    let late = start(world, "users-3", ips[3]).await;
    let begun = Instant::now();
    world.status("users-3", running(&[ips[3]], false)).await;
    eventually("the late node is in all rings", async || all_see(&pods, 4)).await;
    println!("in all rings {:?} after the pod had an address (target: 1 s)", begun.elapsed());
    pods.push(late);
    eventually("the late node sees all members", async || all_see(&pods, 4)).await;
    get_all(&pods, "the-2nd-token").await;

    // No pod is ready and the API server is down, and no key moves.
    let rings: Vec<_> = pods.iter().map(|pod| pod.node.fingerprint()).collect();
    for (n, ip) in ips.iter().enumerate() {
        world.status(&format!("users-{n}"), running(&[ip], false)).await;
    }
    world.down().await;
    tokio::time::sleep(world.outage()).await; // longer than the time after which a missing peer leaves the ring
    get_all(&pods, "third").await;
    world.up().await;
    let now: Vec<_> = pods.iter().map(|pod| pod.node.fingerprint()).collect();
    assert_eq!(rings, now, "no key has moved");

    // A pod is deleted as in Kubernetes: marked as terminating, stopped, removed.
    world.terminate("users-0").await;
    let leaver = pods.remove(0);
    let begun = Instant::now();
    leaver.node.shutdown().await.unwrap();
    world.delete("users-0").await;
    eventually("the stopped node is in no ring", async || all_see(&pods, 3)).await;
    println!("out of all rings {:?} after the shutdown began", begun.elapsed());
    get_all(&pods, "fourth").await;
    for pod in pods {
        pod.node.shutdown().await.unwrap();
    }
}

/// Gets every key at every node, and checks that each key is loaded once in the cluster.
async fn get_all(pods: &[Pod], what: &str) {
    let before: u64 = pods.iter().map(|pod| pod.loads.load(Relaxed)).sum();
    for n in 0..30 {
        let key = format!("{what}-{n}");
        for pod in pods {
            assert_eq!(pod.group.get(&key).await.unwrap(), format!("value of {key}"));
        }
    }
    let loads = pods.iter().map(|pod| pod.loads.load(Relaxed)).sum::<u64>() - before;
    assert_eq!(loads, 30, "one load per key of {what}");
}

/// Time after which an unlisted member leaves, the tries of an answer included.
const UNLISTED: Duration = Duration::from_secs(7);

/// Returns the slice of the service with these pods as endpoints.
fn slice(pods: &[(String, String)]) -> Value {
    let endpoint = |(name, ip): &(String, String)| {
        json!({ "addresses": [ip], "conditions": { "ready": true },
                "targetRef": { "kind": "Pod", "name": name, "uid": name } })
    };
    let endpoints: Vec<_> = pods.iter().map(endpoint).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "users-1", "namespace": NAMESPACE, "labels": { SERVICE_LABEL: "users" } },
        "ports": [{ "name": "group-port", "port": PORT, "protocol": "TCP" }], "endpoints": endpoints,
    })
}

/// Checks that no node leaves when the Service selects other pods, selects none, and is deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistyped_selector_of_service_removes_no_member() {
    let world = OverTcp::new().await;
    let fake = &world.simulated.fake;
    let all: Vec<_> = (0..3).map(|n| (format!("users-{n}"), format!("127.0.82.{}", n + 1))).collect();
    let path = kubeconfig(&world.scratch, &format!("http://127.0.0.1:{}", world.listening.port), "t0ken", None);
    fake.put("endpointslices", slice(&all));
    let mut pods = Vec::new();
    for (name, ip) in &all {
        pods.push(start_with(Service::new(NAMESPACE, "users").kubeconfig(&path), name, ip).await);
    }
    eventually("the three nodes see each other", async || all_see(&pods, 3)).await;
    get_all(&pods, "before").await;
    let rings: Vec<_> = pods.iter().map(|pod| pod.node.fingerprint()).collect();
    let others = [("orders-0".to_owned(), "127.0.82.9".to_owned())];
    for (what, listed) in [("others", &others[..]), ("others again", &others[..]), ("none", &[])] {
        fake.put("endpointslices", slice(listed));
        sleep(UNLISTED).await;
        assert!(all_see(&pods, 3), "the service selects {what}");
    }
    fake.delete("endpointslices", NAMESPACE, "users-1");
    sleep(UNLISTED).await;
    assert!(all_see(&pods, 3), "the service is deleted");
    let now: Vec<_> = pods.iter().map(|pod| pod.node.fingerprint()).collect();
    assert_eq!(rings, now, "no key has moved");
    get_all(&pods, "meanwhile").await;
    for pod in &pods {
        assert!(pod.node.discovery().suspended_removals > 0, "{:?}", pod.node.discovery());
    }
    // A pod that is gone leaves all the same, and the right list ends the suspension.
    fake.put("endpointslices", slice(&all[..2]));
    pods.pop().unwrap().node.shutdown().await.unwrap();
    eventually("the node that is gone has left", async || all_see(&pods, 2)).await;
}

/// Checks that no node leaves when all pods lose their labels at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relabelled_pods_stay_members() {
    let mut world = OverTcp::new().await;
    let all: Vec<_> = (0..3).map(|n| (format!("users-{n}"), format!("127.0.84.{}", n + 1))).collect();
    let mut pods = Vec::new();
    for (name, ip) in &all {
        world.start(name, ip).await;
        pods.push(start(&world, name, ip).await);
    }
    eventually("the three nodes see each other", async || all_see(&pods, 3)).await;
    for (name, _) in &all {
        world.simulated.change(name, |pod| pod["metadata"]["labels"] = json!({ "app": "users" }));
    }
    sleep(UNLISTED).await;
    sleep(UNLISTED).await;
    assert!(all_see(&pods, 3));
    get_all(&pods, "unlabelled").await;
    for pod in &pods {
        assert!(pod.node.discovery().suspended_removals > 0, "{:?}", pod.node.discovery());
    }
}
