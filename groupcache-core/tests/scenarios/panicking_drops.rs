//! Values with a `Drop` that panics: this user code runs where a node drops the last reference to a value.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use groupcache_core::{
    BoxError, Group, Node, Value,
    value::{DecodeError, EncodeError},
};
use tokio::time::sleep;

use crate::support::Cluster;

/// Switches that let values panic when they are dropped: one for each test.
static DROP_PANICS: [AtomicBool; 2] = [AtomicBool::new(false), AtomicBool::new(false)];

/// Value with the index of its switch. Its `Drop` panics while the switch is on.
#[derive(Clone)]
struct PanickingValue(u8);

impl Drop for PanickingValue {
    fn drop(&mut self) {
        // A second panic would end the process.
        let panics = DROP_PANICS[usize::from(self.0)].load(Relaxed) && !std::thread::panicking();
        assert!(!panics, "a value that panics when it is dropped");
    }
}

impl Value for PanickingValue {
    fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_u8(self.0);
        Ok(())
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        bytes.first().map(|switch| Self(*switch)).ok_or_else(|| DecodeError::new("empty"))
    }

    fn weight(&self) -> usize {
        0
    }
}

/// Loads a value with this switch.
async fn load(switch: &u8, _key: &str) -> Result<PanickingValue, BoxError> {
    Ok(PanickingValue(*switch))
}

/// Guard that keeps a switch on until it is dropped, because the test itself drops values afterwards.
struct SwitchedOn(u8);

impl SwitchedOn {
    /// Turns the switch on.
    fn now(switch: u8) -> Self {
        DROP_PANICS[usize::from(switch)].store(true, Relaxed);
        Self(switch)
    }
}

impl Drop for SwitchedOn {
    fn drop(&mut self) {
        DROP_PANICS[usize::from(self.0)].store(false, Relaxed);
    }
}

/// Checks that the sweep frees all expired entries although each of them panics when it is dropped, and that later
/// sweeps still run.
#[tokio::test(start_paused = true)]
async fn expired_entries_are_freed_although_they_panic() {
    let node = Node::builder().start().await.unwrap();
    let group = node.group::<PanickingValue>("data").capacity_bytes(1 << 20).time_to_live(Duration::from_secs(1));
    let group = group.stale_while_revalidate(Duration::ZERO).stale_if_error(Duration::ZERO);
    let group: Group<PanickingValue> = group.loader_with(0_u8, load).build().unwrap();
    for key in ["a", "b", "c"] {
        group.get(key).await.unwrap();
    }
    let switched_on = SwitchedOn::now(0);
    sleep(Duration::from_secs(15)).await; // at least one sweep
    assert_eq!((group.inspect().entries(), group.stats().expired), (0, 3), "a panic does not keep the other entries");
    drop(switched_on);
    group.get("a").await.unwrap();
    sleep(Duration::from_secs(15)).await;
    assert_eq!(group.inspect().entries(), 0, "later sweeps run");
    node.shutdown().await.unwrap();
}

/// Checks that removes and a clear are complete although the values that the peer drops for them panic, and that the
/// connection stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_is_complete_although_the_dropped_value_panics() {
    let cluster = Cluster::start(2).await;
    let build =
        |_: usize, node: &Node| node.group::<PanickingValue>("data").capacity_bytes(1 << 20).loader_with(1_u8, load);
    let groups = cluster.group(build).await;
    let all = (0..).map(|n| format!("key-{n}"));
    let keys: Vec<_> = all.filter(|key| groups[0].inspect().owner_of(key) == cluster.nodes[1].id()).take(2).collect();
    for key in &keys {
        groups[1].get(key).await.unwrap();
    }
    assert_eq!(groups[1].inspect().entries(), 2);
    let switched_on = SwitchedOn::now(1);
    for key in &keys {
        let written = groups[0].remove(key).await.unwrap();
        assert!(written.is_complete(), "{written:?}");
    }
    drop(switched_on);
    for key in &keys {
        groups[1].get(key).await.unwrap();
    }
    let switched_on = SwitchedOn::now(1);
    let written = groups[0].clear().await.unwrap();
    assert!(written.is_complete(), "two values panic at once: {written:?}");
    drop(switched_on);
    assert_eq!(groups[1].inspect().entries(), 0);
    cluster.shutdown().await;
}
