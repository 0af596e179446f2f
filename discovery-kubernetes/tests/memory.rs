//! Memory per known pod, counted by the allocator in a separate process.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests, helpers included")]

#[expect(dead_code, reason = "the suite uses all of it")]
#[path = "suite/support/mod.rs"]
mod support;

use std::{alloc::System, time::Duration};

use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use crate::support::{Observer, Simulated, World, pod, running};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn live_bytes() -> usize {
    let stats = COUNTED.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

const PODS: usize = 1_000;

/// Checks the memory per known pod, with two addresses.
#[tokio::test(start_paused = true)]
async fn known_pod_costs_less_than_2_kib() {
    let world = Simulated::new();
    for n in 0..PODS {
        let mut pod = pod(&format!("users-7d9c5b8f6d-{n:05}"), &format!("6f1a2b3c-0000-4000-8000-{n:012}"));
        pod["metadata"]["managedFields"] = json!(vec!["x".repeat(100); 50]);
        let (v4, v6) = (format!("10.1.{}.{}", n / 250, n % 250), format!("fd00::{n:x}"));
        pod["status"] = running(&[&v4, &v6], true);
        world.fake.put("pods", pod);
    }
    world.fake.forget_requests();
    let before = live_bytes();
    let mut observer = Observer::start(world.pods());
    observer.until_connected().await;
    while observer.bench.peers().len() < PODS {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.fake.forget_requests();
    let each = live_bytes().saturating_sub(before) / PODS;
    println!("{each} bytes per known pod: its records, the last set, and the set that the node received");
    assert!(each <= 2_048, "{each} bytes");
    assert!(each >= 100, "{each} bytes: nothing was counted");
}
