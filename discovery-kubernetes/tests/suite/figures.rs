//! Timings of the provider, printed beside their targets. The tests assert only the results and the numbers of watches
//! and lists. The file `memory.rs` measures memory.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::nodes::{self, OverTcp};
use crate::support::{
    NAMESPACE, Observer, Scratch, Simulated, World, eventually, kubeconfig, pod, running,
    wire::{Listening, listen},
};

/// Returns a pod of a realistic size, because an API server adds managed fields, volumes and conditions.
fn realistic_pod(n: usize) -> Value {
    let mut pod = pod(&format!("users-7d9c5b8f6d-{n:05}"), &format!("6f1a2b3c-0000-4000-8000-{n:012}"));
    let fields: serde_json::Map<_, _> =
        (0..60).map(|n| (format!("f:field-{n}"), json!({ "f:x": {}, "f:y": {} }))).collect();
    pod["metadata"]["managedFields"] = json!([
        { "manager": "kube-controller-manager", "operation": "Update", "fieldsV1": fields },
        { "manager": "kubelet", "operation": "Update", "subresource": "status", "fieldsV1": fields },
    ]);
    let env: Vec<_> =
        (0..20).map(|n| json!({ "name": format!("VARIABLE_{n}"), "value": "some value of it" })).collect();
    pod["spec"]["containers"][0]["env"] = json!(env);
    pod["status"] = running(&[&format!("10.1.{}.{}", n / 250, n % 250)], true);
    pod
}

async fn over_tcp(world: &Simulated, scratch: &Scratch) -> (Listening, Observer) {
    let listening = listen(&world.fake, None).await;
    let path = kubeconfig(scratch, &format!("http://127.0.0.1:{}", listening.port), "t0ken-of-users", None);
    let observer = Observer::start(discovery_kubernetes::Pods::new(NAMESPACE, "users").kubeconfig(path));
    (listening, observer)
}

/// Measures the time from an event to the set that reflects the event.
#[tokio::test]
async fn pod_event_is_published_by_one_watch() {
    let (mut world, scratch) = (Simulated::new(), Scratch::new());
    world.start("p0", "10.0.0.1").await;
    let (_listening, mut observer) = over_tcp(&world, &scratch).await;
    observer.until(&["p0@10.0.0.1"]).await;
    observer.until_connected().await;
    let mut took = (Vec::new(), Vec::new());
    for _ in 0..100 {
        world.create("p1").await;
        let begun = Instant::now();
        world.status("p1", running(&["10.0.0.2"], false)).await;
        observer.until(&["p0@10.0.0.1", "p1@10.0.0.2"]).await;
        took.0.push(begun.elapsed());
        let begun = Instant::now();
        world.delete("p1").await;
        observer.until(&["p0@10.0.0.1"]).await;
        took.1.push(begun.elapsed());
    }
    took.0.sort();
    took.1.sort();
    println!("added → published: median {:?}, 99th {:?} (target: 100 ms)", took.0[50], took.0[98]);
    println!("deleted → reported and published: median {:?}, 99th {:?} (target: 250 ms)", took.1[50], took.1[98]);
    assert_eq!(world.fake.watches().1, 1);
    assert_eq!(observer.pods.stats().lists, 1, "one watch delivers all events");
}

/// Measures the time from the address of a pod to the rings of all nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_address_reaches_all_rings() {
    const FIRST: usize = 4;
    const ALL: usize = 14;
    let mut world = OverTcp::new().await;
    let (name, ip) = (|n: usize| format!("users-{n}"), |n: usize| format!("127.0.83.{}", n + 1));
    let mut pods = Vec::new();
    for n in 0..ALL {
        world.create(&name(n)).await;
        if n < FIRST {
            world.status(&name(n), running(&[&ip(n)], true)).await;
        }
        pods.push(nodes::start(&world, &name(n), &ip(n)).await);
    }
    eventually("the first nodes see each other", async || nodes::all_see(&pods[..FIRST], FIRST)).await;
    let mut took = Vec::new();
    for n in FIRST..ALL {
        let begun = Instant::now();
        world.status(&name(n), running(&[&ip(n)], true)).await;
        eventually("the new node is in all rings", async || nodes::all_see(&pods[..n], n + 1)).await;
        took.push(begun.elapsed());
    }
    took.sort();
    let (median, last) = (took[took.len() / 2], took[took.len() - 1]);
    println!("address → in all rings: median {median:?}, worst of {} {last:?} (target: 1 s)", took.len());
    // A node asks for a list while the pods of connected peers have no address yet, and its next watch follows the list.
    eventually("one watch per node", async || world.simulated.fake.watches().0 <= ALL).await;
}

/// Returns the processor time of this thread, which runs the provider and its client only.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap())
}

/// Measures the processor time of a requested list of 1,000 pods of realistic size, compressed and plain.
#[tokio::test]
async fn requested_list_of_a_thousand_pods_is_published() {
    let (zipped, plain) = (list_a_thousand_pods(false).await, list_a_thousand_pods(true).await);
    assert!(zipped < plain / 4, "a list is compressed: {zipped} of {plain} bytes");
}

/// Lists 1,000 pods twice, and returns the bytes of a list as they were sent.
async fn list_a_thousand_pods(disable_compression: bool) -> usize {
    let (world, scratch) = (Simulated::new(), Scratch::new());
    for n in 0..1_000 {
        world.fake.put("pods", realistic_pod(n));
    }
    let bytes = world.fake.get("pods", NAMESPACE, "users-7d9c5b8f6d-00000").unwrap().to_string().len();
    // The server runs on a separate thread, so that its time is not counted.
    let (sender, receiver) = std::sync::mpsc::channel();
    let fake = world.fake.clone();
    let server = start_server_thread(fake, sender);
    let port = receiver.recv().unwrap();
    let server_line = format!("http://127.0.0.1:{port}\n      disable-compression: {disable_compression}");
    let path = kubeconfig(&scratch, &server_line, "t0ken-of-users", None);
    let mut observer = Observer::start(discovery_kubernetes::Pods::new(NAMESPACE, "users").kubeconfig(path));
    observer.until_connected().await;
    eventually("all pods are published", async || observer.bench.peers().len() == 1_000).await;
    tokio::time::sleep(Duration::from_millis(1_100)).await; // requested lists are at least 1 s apart
    world.fake.forget_requests();
    let published = observer.pods.stats().published;
    let (before, begun) = (processor_time(), Instant::now());
    observer.bench.ask();
    // `sets` is not used, because each call copies 1,000 peers on this thread.
    while observer.pods.stats().published == published {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let used = processor_time() - before;
    println!(
        "list of 1,000 pods of {bytes} bytes: {used:?} of processor time, {:?} in all (target: 100 ms)",
        begun.elapsed()
    );
    assert_eq!(observer.pods.stats().lists, 2);
    let sent = world.fake.state().list_bytes / 2;
    println!("{sent} bytes of a list are sent");
    assert_eq!(world.fake.state().zipped_watches, 0, "no proxy keeps events of a watch back");
    drop(server);
    sent
}

/// Returns an endpoint slice of a realistic size.
fn realistic_slice(endpoints: usize) -> Value {
    let endpoints: Vec<_> = (0..endpoints)
        .map(|n| {
            json!({ "addresses": [format!("10.1.{}.{}", n / 250, n % 250)], "zone": "eu-west-1a",
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": "ip-10-0-101-23.eu-west-1.compute.internal",
                "targetRef": { "kind": "Pod", "namespace": NAMESPACE, "name": format!("users-7d9c5b8f6d-{n:05}"),
                               "uid": format!("6f1a2b3c-0000-4000-8000-{n:012}") } })
        })
        .collect();
    let fields: serde_json::Map<_, _> =
        (0..20).map(|n| (format!("f:field-{n}"), json!({ "f:x": {}, "f:y": {} }))).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "users-peers-x7k2p", "namespace": NAMESPACE, "labels": { "a": "users", "b": "users" },
            "managedFields": [{ "manager": "kube-controller-manager", "operation": "Update", "fieldsV1": fields }] },
        "ports": [{ "name": "group-port", "port": 7946, "protocol": "TCP" }], "endpoints": endpoints,
    })
}

/// Computes the bytes that one node receives for a list and for the replacement of one pod, from pods and from endpoint
/// slices, and checks which source is the smaller one.
#[test]
fn slices_have_smaller_lists_than_pods() {
    /// Events of a pod: created, scheduled, starting, with an address, ready; marked, not ready, ended, deleted.
    const POD_EVENTS: usize = 9;
    /// Events of a slice: added, serving; terminating, not serving, removed.
    const SLICE_EVENTS: usize = 5;
    /// Maximum number of endpoints in a slice.
    const SLICE: usize = 100;
    let (pod, slice) = (realistic_pod(0).to_string().len(), |n: usize| realistic_slice(n).to_string().len());
    println!("a pod has {pod} bytes, an endpoint {}", slice(SLICE) / SLICE);
    for pods in [3, 10, 30, 100, 300, 1_000] {
        let lists = (pods * pod, pods / SLICE * slice(SLICE) + if pods % SLICE > 0 { slice(pods % SLICE) } else { 0 });
        let replaced = (POD_EVENTS * pod, SLICE_EVENTS * slice(pods.min(SLICE)));
        println!(
            "{pods} pods: a list has {} and {} bytes, a replaced pod {} and {}",
            lists.0, lists.1, replaced.0, replaced.1
        );
        assert!(lists.1 * 4 < lists.0, "{lists:?}");
        assert!(replaced.1 < 3 * replaced.0, "{replaced:?}");
    }
    let even = (1..=SLICE).take_while(|n| SLICE_EVENTS * slice(*n) <= POD_EVENTS * pod).count();
    println!("up to {even} pods, a replaced pod too costs fewer bytes in slices");
    assert!((20..SLICE).contains(&even), "{even}");
}

/// Runs the fake API server on a separate thread and runtime until the returned sender is dropped.
fn start_server_thread(
    fake: crate::support::fake::Fake,
    port: std::sync::mpsc::Sender<u16>,
) -> tokio::sync::oneshot::Sender<()> {
    let (stop, stopped) = tokio::sync::oneshot::channel();
    #[expect(clippy::disallowed_methods, reason = "the server's time is not the provider's")]
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listening = listen(&fake, None).await;
            port.send(listening.port).unwrap();
            let _ = stopped.await;
        });
    });
    stop
}
