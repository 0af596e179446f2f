//! Values whose `Drop` panics: it is the user's code, and runs where a node lets go of the last of a value.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use groupcache_core::{BoxError, DecodeError, EncodeError, Group, Node, Value};
use tokio::time::sleep;

use crate::support::Cluster;

/// From then on the values of a test panic, each of which has one of these.
static IS_LIT: [AtomicBool; 2] = [AtomicBool::new(false), AtomicBool::new(false)];

/// Which of them.
#[derive(Clone)]
struct Explosive(u8);

impl Drop for Explosive {
    fn drop(&mut self) {
        // A second panic would end the process.
        let is_lit = IS_LIT[usize::from(self.0)].load(Relaxed) && !std::thread::panicking();
        assert!(!is_lit, "a value that panics when it is dropped");
    }
}

impl Value for Explosive {
    fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_u8(self.0);
        Ok(())
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        bytes.first().map(|fuse| Self(*fuse)).ok_or_else(|| DecodeError::new("empty"))
    }

    fn weight(&self) -> usize {
        0
    }
}

async fn load(fuse: &u8, _key: &str) -> Result<Explosive, BoxError> {
    Ok(Explosive(*fuse))
}

/// Until nothing panics any more: the test lets go of values itself.
struct Lit(u8);

impl Lit {
    fn now(fuse: u8) -> Self {
        IS_LIT[usize::from(fuse)].store(true, Relaxed);
        Self(fuse)
    }
}

impl Drop for Lit {
    fn drop(&mut self) {
        IS_LIT[usize::from(self.0)].store(false, Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_is_given_back_though_it_panics() {
    let node = Node::builder().start().await.unwrap();
    let group = node.group::<Explosive>("data").capacity_bytes(1 << 20).time_to_live(Duration::from_secs(1));
    let group = group.stale_while_revalidate(Duration::ZERO).stale_if_error(Duration::ZERO);
    let group: Group<Explosive> = group.loader_with(0_u8, load).build().unwrap();
    for key in ["a", "b", "c"] {
        group.get(key).await.unwrap();
    }
    let lit = Lit::now(0);
    sleep(Duration::from_secs(15)).await; // at least one sweep
    assert_eq!((group.entries(), group.stats().expired), (0, 3), "the first does not keep the others");
    drop(lit);
    group.get("a").await.unwrap();
    sleep(Duration::from_secs(15)).await;
    assert_eq!(group.entries(), 0, "and it goes on");
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_makes_a_peer_drop_what_panics_reaches_it_and_breaks_no_connection() {
    let cluster = Cluster::start(2).await;
    let build = |_: usize, node: &Node| node.group::<Explosive>("data").capacity_bytes(1 << 20).loader_with(1_u8, load);
    let groups = cluster.group(build).await;
    let all = (0..).map(|n| format!("key-{n}"));
    let keys: Vec<_> = all.filter(|key| groups[0].owner_of(key) == cluster.nodes[1].id()).take(2).collect();
    for key in &keys {
        groups[1].get(key).await.unwrap();
    }
    assert_eq!(groups[1].entries(), 2);
    let lit = Lit::now(1);
    for key in &keys {
        let told = groups[0].remove(key).await.unwrap();
        assert!(told.is_complete(), "{told:?}");
    }
    drop(lit);
    for key in &keys {
        groups[1].get(key).await.unwrap();
    }
    let lit = Lit::now(1);
    let told = groups[0].clear().await.unwrap();
    assert!(told.is_complete(), "two at once: {told:?}");
    drop(lit);
    assert_eq!(groups[1].entries(), 0);
    cluster.shutdown().await;
}
