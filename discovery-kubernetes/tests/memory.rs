//! What a pod costs that is known: counted by the allocator, in a process of its own.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests, helpers included")]

#[expect(dead_code, reason = "that of the suite")]
#[path = "suite/support/mod.rs"]
mod support;

use std::{alloc::System, time::Duration};

use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use crate::support::{Eyes, Simulated, World, pod, running};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn live_bytes() -> usize {
    let stats = COUNTED.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

const PODS: usize = 1_000;

#[tokio::test(start_paused = true)]
async fn a_pod_costs_less_than_2_kib() {
    let world = Simulated::new();
    for n in 0..PODS {
        let mut pod = pod(&format!("users-7d9c5b8f6d-{n:05}"), &format!("6f1a2b3c-0000-4000-8000-{n:012}"));
        pod["metadata"]["managedFields"] = json!(vec!["x".repeat(100); 50]);
        pod["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!("eu-west-1a");
        let (v4, v6) = (format!("10.1.{}.{}", n / 250, n % 250), format!("fd00::{n:x}"));
        pod["status"] = running(&[&v4, &v6], true);
        world.fake.put("pods", pod);
    }
    world.fake.forget_requests();
    let before = live_bytes();
    let mut eyes = Eyes::open(world.pods());
    eyes.until_well().await;
    while eyes.bench.peers().len() < PODS {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.fake.forget_requests();
    let each = live_bytes().saturating_sub(before) / PODS;
    println!("{each} bytes for each known pod: what is kept of it, the last set, and the set that the node was given");
    assert!(each <= 2_048, "{each} bytes");
    assert!(each >= 100, "{each} bytes: nothing was counted");
}
