//! Interleavings of a whole group: flights, store and view under a scheduler that tries many orders.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use shuttle::future::{JoinHandle, spawn, yield_now};

use crate::group::{Group, GroupBuilder};
use crate::{
    context::NodeContext,
    error::BoxError,
    peer::group_service::GroupService,
    protocol::message::Response,
    testing::interleavings::{alone, check, owned_by, pass},
};

const TIME_TO_LIVE: Duration = Duration::from_secs(1);
const REPLICA_TIME_TO_LIVE: Duration = Duration::from_secs(10);
const MOMENT: Duration = Duration::from_millis(1);

/// Group of one key with a counter as its source, on a node without a network.
#[derive(Clone)]
struct Scene {
    node: Arc<NodeContext>,
    group: Group<String>,
    source: Arc<Source>,
}

#[derive(Default)]
struct Source {
    /// Value that a load reads now.
    value: AtomicU64,
    loads: AtomicU64,
}

impl Scene {
    fn new(configure: impl FnOnce(GroupBuilder<String>) -> GroupBuilder<String>) -> Self {
        let (node, source) = (alone(), Arc::<Source>::default());
        let builder = GroupBuilder::new(Arc::clone(&node), "numbers").capacity_bytes(1 << 16).replicas(false);
        let loader = async |source: &Arc<Source>, _: &str| {
            source.loads.fetch_add(1, SeqCst);
            let value = source.value.load(SeqCst);
            yield_now().await;
            Ok::<_, BoxError>(value.to_string())
        };
        let group = configure(builder).loader_with(Arc::clone(&source), loader).build().expect("a group");
        Self { node, group, source }
    }

    async fn get(&self) -> u64 {
        self.group.get("k").await.expect("a value").parse().expect("a number")
    }

    /// Returns the value in memory, without a load.
    fn hit(&self) -> Option<u64> {
        self.group.engine.hit("k").map(|value| value.expect("a value").parse().expect("a number"))
    }

    fn loads(&self) -> u64 {
        self.source.loads.load(SeqCst)
    }

    /// Spawns a task with this scene.
    fn beside<F: Future<Output = ()> + Send + 'static>(&self, task: impl FnOnce(Self) -> F) -> JoinHandle<()> {
        spawn(task(self.clone()))
    }

    /// Checks that the accounted bytes are the weights of the entries.
    fn assert_accounts(&self) {
        let store = &self.group.engine.cache.owned;
        let weights: u64 = store.iter().map(|(key, entry)| entry.weight(&key)).sum();
        assert_eq!((store.bytes(), store.len()), (weights, store.iter().count()));
        assert!(weights <= store.capacity());
    }
}

async fn all(tasks: impl IntoIterator<Item = JoinHandle<()>>) {
    for task in tasks {
        task.await.expect("no panic");
    }
}

/// Runs gets, a concurrent write, and gets after the write, which must not return the older value.
async fn gets_and_a_write<F: Future<Output = ()> + Send>(write: impl FnOnce(Scene) -> F + Send + 'static) {
    let scene = Scene::new(|builder| builder);
    let get_twice = async |scene: Scene| {
        let first = scene.get().await;
        assert!(scene.get().await >= first, "the values that a caller gets never become older");
    };
    let gets: Vec<_> = (0..2).map(|_| scene.beside(get_twice)).collect();
    let writer = scene.beside(async |scene| {
        let written = scene.source.value.fetch_add(1, SeqCst) + 1;
        write(scene.clone()).await;
        assert!(scene.get().await >= written);
        assert!(scene.get().await >= written, "nor later, from memory");
    });
    all(gets.into_iter().chain([writer])).await;
    assert_eq!(scene.hit(), Some(1), "the last load is kept");
    scene.assert_accounts();
}

#[test]
fn remove_ends_the_older_value() {
    check(|| {
        gets_and_a_write(async |scene: Scene| {
            assert!(scene.group.remove("k").await.expect("removed").is_complete());
        })
    });
}

#[test]
fn clear_ends_the_older_value() {
    check(|| {
        gets_and_a_write(async |scene: Scene| {
            assert!(scene.group.clear().await.expect("cleared").is_complete());
        })
    });
}

#[test]
fn set_ends_the_older_value() {
    check(|| {
        gets_and_a_write(async |scene: Scene| {
            assert!(scene.group.set("k", "1").await.expect("set").is_complete());
        })
    });
}

/// Checks that a sweep removes the expired entry and not a younger one: a load may store one between the two steps of
/// the sweep.
#[test]
fn sweep_removes_the_expired_entry_and_no_younger_one() {
    check(|| async {
        let scene = Scene::new(|builder| builder.time_to_live(TIME_TO_LIVE).jitter(0.0));
        assert_eq!(scene.get().await, 0);
        scene.source.value.store(1, SeqCst);
        pass(&scene.node.local, TIME_TO_LIVE).await;
        let sweep = scene.beside(async |scene| Arc::clone(&scene.group.engine).sweep().await);
        let gets =
            (0..2).map(|_| scene.beside(async |scene| assert_eq!(scene.get().await, 1, "not the expired value")));
        all(gets.chain([sweep]).collect::<Vec<_>>()).await;
        assert_eq!((scene.hit(), scene.loads()), (Some(1), 2), "loaded once more, and the entry stays");
        scene.assert_accounts();
    });
}

/// Checks that a lookup returns no entry that had expired when the lookup began.
#[test]
fn lookup_returns_no_expired_entry() {
    check(|| async {
        let scene = Scene::new(|builder| builder.time_to_live(TIME_TO_LIVE).jitter(0.0));
        let clock = scene.beside(async |scene| {
            for _ in 0..4 {
                pass(&scene.node.local, TIME_TO_LIVE / 2).await;
            }
        });
        let gets = (0..2).map(|_| {
            scene.beside(async |scene| {
                scene.get().await;
                scene.get().await;
            })
        });
        let lookups = scene.beside(async |scene| {
            for _ in 0..4 {
                let begun_ms = scene.node.now_ms();
                if let Some(entry) = scene.group.engine.cache.owned.get("k", begun_ms) {
                    assert!(begun_ms < entry.hit_until_ms(), "until {} at {begun_ms}", entry.hit_until_ms());
                    // No other task prolongs the entry.
                    yield_now().await;
                    assert!(entry.is_expired(entry.hit_until_ms()));
                }
                yield_now().await;
            }
        });
        let sweep = scene.beside(async |scene| Arc::clone(&scene.group.engine).sweep().await);
        all(gets.chain([clock, lookups, sweep]).collect::<Vec<_>>()).await;
        scene.assert_accounts();
    });
}

/// Checks that a task with an older view leaves no entry that counts as checked against the new one.
#[test]
fn entry_of_a_previous_view_ends_with_the_time_of_replicas() {
    check(|| async {
        let scene = Scene::new(|builder| builder.replica_time_to_live(REPLICA_TIME_TO_LIVE));
        let install = scene.beside(async |scene| {
            scene.node.install_view(owned_by(2, "a"));
            scene.node.install_view(owned_by(3, "b"));
        });
        let gets = (0..2).map(|_| {
            scene.beside(async |scene| {
                scene.get().await;
                scene.hit();
            })
        });
        // The set of a peer that takes this node for the owner, which does not depend on this node's view.
        let set = scene.beside(async |scene| {
            assert_eq!(Arc::clone(&scene.group.engine).set("k", "5".into(), None, None).await, Response::Done);
        });
        all(gets.chain([install, set]).collect::<Vec<_>>()).await;
        pass(&scene.node.local, REPLICA_TIME_TO_LIVE + MOMENT).await;
        assert_eq!(scene.hit(), None, "writes do not reach the entry any more");
    });
}

/// Checks that an entry keeps its time through changes of the view if this node owns the key in all of them.
#[test]
fn entry_of_an_owned_key_survives_view_changes() {
    check(|| async {
        let scene = Scene::new(|builder| builder.replica_time_to_live(REPLICA_TIME_TO_LIVE));
        scene.get().await;
        let install = scene.beside(async |scene| {
            for epoch in 2..5 {
                scene.node.install_view(owned_by(epoch, "a"));
            }
        });
        let gets = (0..2).map(|_| scene.beside(async |scene| assert_eq!(scene.get().await, 0)));
        all(gets.chain([install]).collect::<Vec<_>>()).await;
        pass(&scene.node.local, REPLICA_TIME_TO_LIVE + MOMENT).await;
        assert_eq!((scene.hit(), scene.loads()), (Some(0), 1));
    });
}
