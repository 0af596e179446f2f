//! How fast it is: printed, beside what it should be. What is asserted is that it was done at all, with the one watch
//! and the lists that it takes; memory is in `memory.rs`.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::nodes::{self, OverTcp};
use crate::support::{
    Eyes, NAMESPACE, Scratch, Simulated, World, eventually, kubeconfig, pod, running,
    wire::{Listening, listen},
};

/// A pod as long as real ones are: an API server adds managed fields, volumes, conditions.
fn long_pod(n: usize) -> Value {
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

async fn over_tcp(world: &Simulated, scratch: &Scratch) -> (Listening, Eyes) {
    let listening = listen(&world.fake, None).await;
    let path = kubeconfig(scratch, &format!("http://127.0.0.1:{}", listening.port), "t0ken-of-users", None);
    let eyes = Eyes::open(discovery_kubernetes::Pods::new(NAMESPACE, "users").kubeconfig(path));
    (listening, eyes)
}

#[tokio::test]
async fn from_an_event_to_the_set_that_shows_it() {
    let (mut world, scratch) = (Simulated::new(), Scratch::new());
    world.start("p0", "10.0.0.1").await;
    let (_listening, mut eyes) = over_tcp(&world, &scratch).await;
    eyes.until(&["p0@10.0.0.1"]).await;
    eyes.until_well().await;
    let mut took = (Vec::new(), Vec::new());
    for _ in 0..100 {
        world.create("p1").await;
        let begun = Instant::now();
        world.status("p1", running(&["10.0.0.2"], false)).await;
        eyes.until(&["p0@10.0.0.1", "p1@10.0.0.2"]).await;
        took.0.push(begun.elapsed());
        let begun = Instant::now();
        world.delete("p1").await;
        eyes.until(&["p0@10.0.0.1"]).await;
        took.1.push(begun.elapsed());
    }
    took.0.sort();
    took.1.sort();
    println!("added → published: median {:?}, 99th {:?} (figure: 100 ms)", took.0[50], took.0[98]);
    println!("deleted → hinted and published: median {:?}, 99th {:?} (figure: 250 ms)", took.1[50], took.1[98]);
    assert_eq!(world.fake.watches().1, 1);
    assert_eq!(eyes.pods.stats().lists, 1, "all of it by the one watch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_an_address_to_the_ring_of_every_node() {
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
    eventually("the first see each other", async || nodes::sees(&pods[..FIRST], FIRST)).await;
    let mut took = Vec::new();
    for n in FIRST..ALL {
        let begun = Instant::now();
        world.status(&name(n), running(&[&ip(n)], true)).await;
        eventually("it is in the ring of all", async || nodes::sees(&pods[..n], n + 1)).await;
        took.push(begun.elapsed());
    }
    took.sort();
    let (median, last) = (took[took.len() / 2], took[took.len() - 1]);
    println!("address → in the ring of every node: median {median:?}, worst of {} {last:?} (figure: 1 s)", took.len());
    assert!(world.simulated.fake.watches().1 <= ALL, "one watch of each node");
}

/// Processor time of this thread so far: the provider and its client are all there is on it.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap())
}

#[tokio::test]
async fn a_list_of_a_thousand_long_pods() {
    let (world, scratch) = (Simulated::new(), Scratch::new());
    for n in 0..1_000 {
        world.fake.put("pods", long_pod(n));
    }
    let bytes = world.fake.get("pods", NAMESPACE, "users-7d9c5b8f6d-00000").unwrap().to_string().len();
    // The server is on a thread of its own, so that its time is not counted.
    let (tell, told) = std::sync::mpsc::channel();
    let fake = world.fake.clone();
    let server = scratch_server(fake, tell);
    let port = told.recv().unwrap();
    let path = kubeconfig(&scratch, &format!("http://127.0.0.1:{port}"), "t0ken-of-users", None);
    let mut eyes = Eyes::open(discovery_kubernetes::Pods::new(NAMESPACE, "users").kubeconfig(path));
    eyes.until_well().await;
    eventually("all are published", async || eyes.bench.peers().len() == 1_000).await;
    tokio::time::sleep(Duration::from_millis(1_100)).await; // lists that are asked for are a second apart
    world.fake.forget_requests();
    let published = eyes.pods.stats().published;
    let (before, begun) = (processor_time(), Instant::now());
    eyes.bench.ask();
    // Not `sets`: each look at those copies a thousand peers, on this thread.
    while eyes.pods.stats().published == published {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let used = processor_time() - before;
    println!(
        "relist of 1,000 pods of {bytes} bytes: {used:?} of processor, {:?} in all (figure: 100 ms)",
        begun.elapsed()
    );
    assert_eq!(eyes.pods.stats().lists, 2);
    drop(server);
}

/// The fake on a thread and a runtime of its own, until what is returned is dropped.
fn scratch_server(
    fake: crate::support::fake::Fake,
    tell: std::sync::mpsc::Sender<u16>,
) -> tokio::sync::oneshot::Sender<()> {
    let (stop, stopped) = tokio::sync::oneshot::channel();
    #[expect(clippy::disallowed_methods, reason = "the server's time is not the provider's")]
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listening = listen(&fake, None).await;
            tell.send(listening.port).unwrap();
            let _ = stopped.await;
        });
    });
    stop
}
