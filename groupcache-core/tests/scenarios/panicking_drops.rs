//! Values with a `Drop` or a `Clone` that panics: this user code runs where a node drops the last reference to a value,
//! and where it clones a value for a caller or a loader.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use groupcache_core::{
    BoxError, Group, LoadError, Loaded, Node, Value,
    loader::BatchLoader,
    value::{DecodeError, EncodeError},
};
use tokio::time::{sleep, timeout};

use crate::support::{Cluster, Loads, PATIENCE};

/// Switches that let values panic when they are dropped: one for each test.
static DROP_PANICS: [AtomicBool; 5] = [const { AtomicBool::new(false) }; 5];

/// Whether the next clone of a value panics.
static CLONE_PANICS: AtomicBool = AtomicBool::new(false);

/// Value with the index of its switch. Its `Drop` panics while the switch is on.
struct PanickingValue(u8);

impl Clone for PanickingValue {
    fn clone(&self) -> Self {
        assert!(!CLONE_PANICS.swap(false, Relaxed), "a value that panics when it is cloned");
        Self(self.0)
    }
}

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

/// Starts a node with a group of values that are loaded again after a second and kept for longer, for loads that fail.
async fn alone_with_previous(switch: u8) -> (Node, Group<PanickingValue>) {
    let node = Node::builder().start().await.unwrap();
    let group = node.group::<PanickingValue>("data").capacity_bytes(1 << 20).time_to_live(Duration::from_secs(1));
    let group = group.stale_while_revalidate(Duration::ZERO).stale_if_error(Duration::from_secs(600));
    let group = group.loader_with(switch, load).build().unwrap();
    (node, group)
}

/// Checks that a panic while the previous value is cloned for the loader is a failure of the load, so that the previous
/// value is served.
#[tokio::test(start_paused = true)]
async fn panic_of_previous_clone_is_failure_of_load() {
    let (node, group) = alone_with_previous(2).await;
    group.get("a").await.unwrap();
    sleep(Duration::from_secs(2)).await;
    CLONE_PANICS.store(true, Relaxed);
    group.get("a").await.expect("the previous value");
    let stats = group.stats();
    assert_eq!((stats.load_errors, stats.stale_on_error, stats.loads), (1, 1, 1));
    node.shutdown().await.unwrap();
}

/// Checks that a load succeeds although the clone of the previous value, which the loader was shown, panics when it is
/// dropped.
#[tokio::test(start_paused = true)]
async fn load_succeeds_although_shown_previous_panics() {
    let (node, group) = alone_with_previous(3).await;
    group.get("a").await.unwrap();
    sleep(Duration::from_secs(2)).await;
    let switched_on = SwitchedOn::now(3);
    let loaded = group.get("a").await;
    drop(switched_on);
    loaded.expect("the loaded value");
    let stats = group.stats();
    assert_eq!((stats.load_errors, stats.stale_on_error, stats.loads), (0, 0, 2));
    node.shutdown().await.unwrap();
}

/// Batch loader that returns one outcome too many, and counts its calls.
struct OneTooMany(Loads);

impl BatchLoader<PanickingValue> for OneTooMany {
    async fn load_many(&self, keys: &[&str]) -> Result<Vec<Result<Loaded<PanickingValue>, LoadError>>, LoadError> {
        keys.iter().for_each(|key| _ = self.0.begin(key));
        Ok((0..=keys.len()).map(|_| Ok(Loaded::new(PanickingValue(4)))).collect())
    }
}

/// Checks that a panic while outcomes of a batch loader are dropped is an error of the load, which no other node
/// repeats.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panic_of_surplus_batch_value_is_error_of_load() {
    let (cluster, loads) = (Cluster::start(2).await, Loads::default());
    let build = |_: usize, node: &Node| {
        let group = node.group::<PanickingValue>("data").capacity_bytes(1 << 20);
        group.batch_loader(OneTooMany(loads.clone()))
    };
    let groups = cluster.group(build).await;
    let key = cluster.key_of(&groups, 1);
    let switched_on = SwitchedOn::now(4);
    for group in &groups {
        let error = timeout(PATIENCE, group.get(&key)).await.unwrap().err().expect("the load fails");
        assert!(error.is_load_failed() && !error.is_closed(), "{error:?}");
    }
    drop(switched_on);
    assert_eq!((loads.of(&key), groups[0].stats().fallback_loads), (2, 0), "one load for each get");
    cluster.shutdown().await;
}
