//! Tasks that serve a connection and panic, or run slow code of the user: other requests go on.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::join_all;
use groupcache_core::{
    BoxError, Loaded, Node, Value,
    value::{DecodeError, EncodeError},
};
use tokio::time::{Instant, sleep, timeout};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
    util::SubscriberInitExt,
};

use crate::support::{Cluster, Gate, PATIENCE, eventually, gated};

/// Subscriber with a number of due panics, one for each of the next events `load.start`. A load begins in the task that
/// reads the connection of its request.
#[derive(Clone, Default)]
struct PanicsAtLoad(Arc<AtomicU64>);

impl PanicsAtLoad {
    /// Installs the subscriber on this thread, on which all nodes of the test run.
    fn install() -> (Self, DefaultGuard) {
        let panics = Self::default();
        (panics.clone(), tracing_subscriber::registry().with(panics).set_default())
    }
}

impl<S: Subscriber> Layer<S> for PanicsAtLoad {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message::default();
        event.record(&mut message);
        let owes = message.0 == "load.start" && !std::thread::panicking();
        let is_due = owes && self.0.fetch_update(Relaxed, Relaxed, |owed| owed.checked_sub(1)).is_ok();
        assert!(!is_due, "a subscriber that panics");
    }
}

/// Message of an event.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

/// Checks that a panic of the task that reads a connection ends that connection and nothing else. The caller notices
/// the panic at once and not by silence, and the key of the begun load is loaded again.
#[tokio::test]
async fn panic_in_reader_of_server_breaks_its_connection() {
    let (panics, _guard) = PanicsAtLoad::install();
    let (cluster, gate) = (Cluster::start(2).await, Gate::default());
    gate.open();
    let build =
        |_: usize, node: &Node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated);
    let groups = cluster.group(build).await;
    let key = cluster.key_of(&groups, 1);
    panics.0.store(1, Relaxed);
    timeout(PATIENCE, groups[0].get(&key)).await.expect("in time").expect("a value");
    assert_eq!((panics.0.load(Relaxed), cluster.nodes[0].stats().ping_timeouts), (0, 0));
    assert_eq!(cluster.nodes[1].stats().connection_panics, 1);
    eventually("the nodes are connected again", || groups[0].inspect().owner_of(&key) == cluster.nodes[1].id()).await;
    timeout(PATIENCE, groups[1].get(&key)).await.expect("the load that was begun is not left").expect("a value");
    cluster.shutdown().await;
}

/// Loads a key at node `a` at once, and at another node when its gate opens.
async fn slow_elsewhere((is_a, gate): &(bool, Gate), key: &str) -> Result<String, BoxError> {
    if *is_a { Ok("at a".to_owned()) } else { gated(gate, key).await }
}

/// Checks that a panic of the task that ends the requests of a lost connection leaves no get of the others without an
/// outcome, and that the peer is reached again.
#[tokio::test]
async fn panic_at_end_of_connection_leaves_no_get_waiting() {
    let (panics, _guard) = PanicsAtLoad::install();
    let ((cluster, path), gate) = (Cluster::start_with_proxy().await, Gate::default());
    let build = |n: usize, node: &Node| {
        node.group::<String>("data").capacity_bytes(1 << 20).loader_with((n == 0, gate.clone()), slow_elsewhere)
    };
    let groups = cluster.group(build).await;
    let all = (0..).map(|n| format!("key-{n}"));
    let keys: Vec<_> = all.filter(|key| cluster.owner(&groups, key) == 1).take(10).collect();
    let gets = join_all(keys.iter().map(|key| timeout(PATIENCE, groups[0].get(key))));
    let stopped = async {
        gate.begun(10).await;
        path.stop();
        panics.0.store(2, Relaxed);
    };
    let (gets, ()) = tokio::join!(gets, stopped);
    let values = gets.iter().filter(|get| matches!(get, Ok(Ok(_)))).count();
    assert!(values >= 8, "{gets:?}");
    assert_eq!(panics.0.load(Relaxed), 0);
    for key in &keys {
        timeout(PATIENCE, groups[0].get(key)).await.expect("no flight is left").expect("a value");
    }
    path.resume();
    gate.open();
    let sent = cluster.nodes[0].stats().requests_sent;
    let end = Instant::now() + PATIENCE;
    while cluster.nodes[0].stats().requests_sent == sent {
        assert!(Instant::now() < end, "the peer is asked again");
        let key = format!("later-{}", Instant::now().duration_since(end - PATIENCE).as_millis());
        _ = groups[0].get(&key).await;
        sleep(Duration::from_millis(20)).await;
    }
    cluster.shutdown().await;
}

/// Whether the threads that drop [`SlowToDrop`] values go on.
static MAY_DROP: AtomicBool = AtomicBool::new(true);

/// Value with a `Drop` that blocks its thread, unless the value is the clone of a caller.
struct SlowToDrop {
    is_slow: bool,
}

impl Clone for SlowToDrop {
    fn clone(&self) -> Self {
        Self { is_slow: false }
    }
}

impl Drop for SlowToDrop {
    fn drop(&mut self) {
        if self.is_slow {
            let end = Instant::now() + 2 * PATIENCE;
            while !MAY_DROP.load(Relaxed) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

impl Value for SlowToDrop {
    fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_u8(u8::from(self.is_slow));
        Ok(())
    }

    fn decode(_: Bytes) -> Result<Self, DecodeError> {
        Ok(Self { is_slow: false })
    }

    fn weight(&self) -> usize {
        0
    }
}

/// Loads a value that is slow to drop and not kept, or another one.
async fn slow_to_drop(_: &(), key: &str) -> Result<Loaded<SlowToDrop>, BoxError> {
    let is_slow = key.starts_with("slow-");
    let loaded = Loaded::new(SlowToDrop { is_slow });
    Ok(if is_slow { loaded.do_not_keep() } else { loaded })
}

/// Checks that the slow `Drop` of a value that is not kept delays no other request of the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn slow_drop_of_unkept_value_delays_no_request() {
    let cluster = Cluster::start(2).await;
    let build =
        |_: usize, node: &Node| node.group::<SlowToDrop>("data").capacity_bytes(1 << 20).loader_with((), slow_to_drop);
    let groups = cluster.group(build).await;
    let owned = |prefix: &str| {
        let all = (0..).map(|n| format!("{prefix}-{n}"));
        all.filter(|key| cluster.owner(&groups, key) == 1).take(3).collect::<Vec<_>>()
    };
    for (slow, quick) in owned("slow").iter().zip(owned("quick")) {
        MAY_DROP.store(false, Relaxed);
        timeout(PATIENCE, groups[0].get(slow)).await.expect("in time").expect("a value");
        timeout(PATIENCE, groups[0].get(&quick)).await.expect("in time").expect("a value");
        MAY_DROP.store(true, Relaxed);
    }
    assert_eq!(cluster.nodes[0].stats().ping_timeouts, 0);
    cluster.shutdown().await;
}
