//! Writes around a previous-owner read: the value of the previous owner never comes back after a write.

use groupcache_core::RemoveOptions;
use std::time::Duration;

use super::stub::{Scene, value};
use crate::proto::Answer;
use crate::support::eventually;

/// A write of one key or of all keys at `b`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Write {
    Remove,
    Set,
    Clear,
}

const WRITES: [Write; 3] = [Write::Remove, Write::Set, Write::Clear];

impl Write {
    async fn at_b(self, scene: &Scene, key: &str) {
        let written = match self {
            Self::Remove => scene.group.remove(key).await,
            Self::Set => scene.group.set(key, "set").await,
            Self::Clear => scene.group.clear().await,
        };
        assert!(written.unwrap().is_complete());
    }

    /// Whether a get after this write may return `value`.
    fn allows(self, value: &str) -> bool {
        if self == Self::Set { value == "set" } else { value.contains("by load") }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_written_since_it_moved_is_not_requested() {
    for write in WRITES {
        let scene = Scene::start().await;
        let keys = scene.keys_of_a(2);
        scene.stub.answer_with(|_| Some(value("from a")));
        scene.drain_a().await;
        assert_eq!(scene.group.get(&keys[1]).await.unwrap(), "from a", "the previous owner has values");
        write.at_b(&scene, &keys[0]).await;
        assert!(write.allows(&scene.group.get(&keys[0]).await.unwrap()), "{write:?}");
        assert_eq!(scene.stub.reads().len(), 1, "{write:?}");
    }
}

/// Checks that a key is not read from a previous owner of an earlier release after a write, because the previous owner
/// cannot say whether it has heard of the write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_written_before_it_moved_is_not_requested() {
    for write in [Write::Remove, Write::Clear] {
        let scene = Scene::start().await;
        let key = &scene.keys_of_a(1)[0];
        scene.stub.answer_with(|_| Some(value("from a")));
        write.at_b(&scene, key).await;
        scene.drain_a().await;
        let got = scene.group.get(key).await.unwrap();
        assert!(write.allows(&got), "{write:?}: {got}");
        assert_eq!(scene.stub.reads().len(), 0, "{write:?}");
    }
}

/// Checks a write during a previous-owner read: callers that waited for the read get its outcome, and the value is not
/// cached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_overtaken_by_a_write_is_not_cached() {
    for write in WRITES {
        let scene = Scene::start().await;
        let key = &scene.keys_of_a(1)[0];
        scene.stub.answer_with(|_| None);
        scene.drain_a().await;
        let before = scene.get(key);
        eventually("b reads the key from a", || scene.stub.reads().len() == 1).await;
        write.at_b(&scene, key).await;
        let after = scene.get(key).await.unwrap();
        assert!(write.allows(&after), "{write:?}: {after}");
        scene.stub.send_answer(Answer { id: scene.stub.reads()[0].id, ..value("from a") });
        before.await.unwrap();
        let now = scene.group.get(key).await.unwrap();
        assert!(write.allows(&now), "{write:?}: {now}");
        assert_eq!(scene.stub.reads().len(), 1, "{write:?}: one read at a time, and none after a write");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_written_after_its_read_is_not_requested_again() {
    for write in WRITES {
        let scene = Scene::start().await;
        let key = &scene.keys_of_a(1)[0];
        scene.stub.answer_with(|_| Some(value("from a")));
        scene.drain_a().await;
        assert_eq!(scene.group.get(key).await.unwrap(), "from a");
        write.at_b(&scene, key).await;
        assert!(write.allows(&scene.group.get(key).await.unwrap()), "{write:?}");
        assert_eq!(scene.stub.reads().len(), 1, "{write:?}");
    }
}

/// Checks that a write since the key moved excludes a read for as long as previous owners are read, and not only for
/// the second after the write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_written_since_it_moved_stays_excluded() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(3);
    // The stub acknowledges the write and keeps its values, as a node that has not heard of the write.
    scene.stub.answer_with(|_| Some(value("from a")));
    scene.drain_a().await;
    Write::Remove.at_b(&scene, &keys[0]).await;
    assert!(scene.group.get(&keys[1]).await.unwrap() == "from a");
    // Waits out the second after a write in which no read is made: a condition of time, not of another task.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(scene.group.get(&keys[2]).await.unwrap(), "from a", "a is still read");
    assert!(Write::Remove.allows(&scene.group.get(&keys[0]).await.unwrap()));
    assert_eq!(scene.stub.reads().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clear_ends_previous_owner_reads() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(2);
    scene.stub.answer_with(|_| Some(value("from a")));
    scene.drain_a().await;
    assert_eq!(scene.group.get(&keys[0]).await.unwrap(), "from a");
    Write::Clear.at_b(&scene, &keys[0]).await;
    // Waits out the second after a write in which no read is made: a condition of time alone.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    for key in &keys {
        assert!(Write::Clear.allows(&scene.group.get(key).await.unwrap()));
    }
    assert_eq!(scene.stub.reads().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_under_a_delete_hold_is_loaded_and_not_cached() {
    let scene = Scene::start().await;
    let key = &scene.keys_of_a(1)[0];
    scene.stub.answer_with(|_| Some(value("from a")));
    scene.group.remove_with(key, RemoveOptions::new().hold(Duration::from_secs(60))).await.unwrap().log_pending();
    scene.drain_a().await;
    // Waits out the second after the remove, so that only the delete hold prevents the read.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    for load in [1, 2] {
        assert!(scene.group.get(key).await.unwrap().ends_with(&format!("by load {load}")));
    }
    assert_eq!(scene.stub.reads().len(), 0);
}
