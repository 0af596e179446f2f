//! A whole group under a scheduler that tries orders: its flights, its store, its view.

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
const BORROWED: Duration = Duration::from_secs(10);
const MOMENT: Duration = Duration::from_millis(1);

/// A group of one key whose source is a counter, on a node without a network.
#[derive(Clone)]
struct Scene {
    node: Arc<NodeContext>,
    group: Group<String>,
    source: Arc<Source>,
}

#[derive(Default)]
struct Source {
    /// What it says now.
    value: AtomicU64,
    loads: AtomicU64,
}

impl Scene {
    fn new(configure: impl FnOnce(GroupBuilder<String>) -> GroupBuilder<String>) -> Self {
        let (node, source) = (alone(), Arc::<Source>::default());
        let builder = GroupBuilder::new(Arc::clone(&node), "numbers").capacity_bytes(1 << 16).hot_copies(false);
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

    /// What memory has, without a load.
    fn hit(&self) -> Option<u64> {
        self.group.engine.hit("k").map(|value| value.expect("a value").parse().expect("a number"))
    }

    fn loads(&self) -> u64 {
        self.source.loads.load(SeqCst)
    }

    /// Runs with this scene beside others.
    fn beside<F: Future<Output = ()> + Send + 'static>(&self, task: impl FnOnce(Self) -> F) -> JoinHandle<()> {
        spawn(task(self.clone()))
    }

    /// Accounted bytes are those of the entries that are there.
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

/// Gets, a write of one kind, and gets after it.
async fn gets_and_a_write<F: Future<Output = ()> + Send>(write: impl FnOnce(Scene) -> F + Send + 'static) {
    let scene = Scene::new(|builder| builder);
    let get_twice = async |scene: Scene| {
        let first = scene.get().await;
        assert!(scene.get().await >= first, "what a caller sees never becomes older");
    };
    let gets: Vec<_> = (0..2).map(|_| scene.beside(get_twice)).collect();
    let writer = scene.beside(async |scene| {
        let written = scene.source.value.fetch_add(1, SeqCst) + 1;
        write(scene.clone()).await;
        assert!(scene.get().await >= written);
        assert!(scene.get().await >= written, "nor later, from the store");
    });
    all(gets.into_iter().chain([writer])).await;
    assert_eq!(scene.hit(), Some(1), "the last load is kept");
    scene.assert_accounts();
}

#[test]
fn what_was_before_a_removal_is_not_seen_after_it() {
    check(|| {
        gets_and_a_write(async |scene: Scene| {
            assert!(scene.group.remove("k").await.expect("removed").is_complete());
        })
    });
}

#[test]
fn what_was_before_a_clear_is_not_seen_after_it() {
    check(|| {
        gets_and_a_write(async |scene: Scene| {
            assert!(scene.group.clear().await.expect("cleared").is_complete());
        })
    });
}

#[test]
fn what_was_before_a_set_is_not_seen_after_it() {
    check(|| {
        gets_and_a_write(async |scene: Scene| {
            assert!(scene.group.set("k", "1").await.expect("set").is_complete());
        })
    });
}

/// The sweep looks at an entry and takes it out in two steps; a load may come in between.
#[test]
fn the_sweep_takes_what_is_gone_and_nothing_younger() {
    check(|| async {
        let scene = Scene::new(|builder| builder.time_to_live(TIME_TO_LIVE).jitter(0.0));
        assert_eq!(scene.get().await, 0);
        scene.source.value.store(1, SeqCst);
        pass(&scene.node.local, TIME_TO_LIVE).await;
        let sweep = scene.beside(async |scene| Arc::clone(&scene.group.engine).sweep().await);
        let gets = (0..2).map(|_| scene.beside(async |scene| assert_eq!(scene.get().await, 1, "not what has expired")));
        all(gets.chain([sweep]).collect::<Vec<_>>()).await;
        assert_eq!((scene.hit(), scene.loads()), (Some(1), 2), "loaded once more, and it stays");
        scene.assert_accounts();
    });
}

#[test]
fn nobody_gets_what_had_expired_when_the_get_began() {
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
        let look = scene.beside(async |scene| {
            for _ in 0..4 {
                let begun_ms = scene.node.now_ms();
                if let Some(entry) = scene.group.engine.store.get("k", begun_ms) {
                    assert!(begun_ms < entry.loaded_at_ms + 1000, "of {} at {begun_ms}", entry.loaded_at_ms);
                    // Nothing makes it live longer.
                    yield_now().await;
                    assert!(entry.is_expired(entry.loaded_at_ms + 1000));
                }
                yield_now().await;
            }
        });
        let sweep = scene.beside(async |scene| Arc::clone(&scene.group.engine).sweep().await);
        all(gets.chain([clock, look, sweep]).collect::<Vec<_>>()).await;
        scene.assert_accounts();
    });
}

/// Whoever looked at the view before it changed must not leave an entry behind that counts as looked at since.
#[test]
fn what_was_owned_in_a_former_view_ends_with_the_time_of_copies() {
    check(|| async {
        let scene = Scene::new(|builder| builder.borrowed_time_to_live(BORROWED));
        let install = scene.beside(async |scene| {
            scene.node.install(owned_by(2, "a"));
            scene.node.install(owned_by(3, "b"));
        });
        let gets = (0..2).map(|_| {
            scene.beside(async |scene| {
                scene.get().await;
                scene.hit();
            })
        });
        // A peer that takes this node for the owner; it asks no view of ours.
        let set = scene.beside(async |scene| {
            assert_eq!(Arc::clone(&scene.group.engine).set("k", "5".into()).await, Response::Done);
        });
        all(gets.chain([install, set]).collect::<Vec<_>>()).await;
        pass(&scene.node.local, BORROWED + MOMENT).await;
        assert_eq!(scene.hit(), None, "writes no longer reach it");
    });
}

/// A key that comes back is kept as long as it ever was.
#[test]
fn what_is_owned_all_the_time_is_not_lost_by_views_that_change() {
    check(|| async {
        let scene = Scene::new(|builder| builder.borrowed_time_to_live(BORROWED));
        scene.get().await;
        let install = scene.beside(async |scene| {
            for epoch in 2..5 {
                scene.node.install(owned_by(epoch, "a"));
            }
        });
        let gets = (0..2).map(|_| scene.beside(async |scene| assert_eq!(scene.get().await, 0)));
        all(gets.chain([install]).collect::<Vec<_>>()).await;
        pass(&scene.node.local, BORROWED + MOMENT).await;
        assert_eq!((scene.hit(), scene.loads()), (Some(0), 1));
    });
}
