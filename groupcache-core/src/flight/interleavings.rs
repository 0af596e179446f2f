//! Flights alone under a scheduler that tries orders.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use shuttle::future::spawn;

use crate::flight::{CompleteOnDrop, Flights, InvalidationStripes, Join, Kind};
use crate::{runtime::sync::Mutex, testing::interleavings::check};

/// A group of one key, whose source is a counter.
struct Scene {
    flights: Flights<u64, ()>,
    /// What the store holds.
    stored: Mutex<Option<u64>>,
    loads: AtomicU64,
    /// The load that was begun last.
    load: Mutex<Option<shuttle::future::JoinHandle<()>>>,
    /// What the source says now.
    source: AtomicU64,
}

impl Scene {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            flights: Flights::new(Arc::new(InvalidationStripes::new()), 1),
            stored: Mutex::new(None),
            loads: AtomicU64::new(0),
            load: Mutex::new(None),
            source: AtomicU64::new(0),
        })
    }

    /// A get, as a group does it: the load is a task of its own.
    async fn get(self: Arc<Self>) -> u64 {
        let flight = match self.flights.join(Kind::Load, "k", 0, |()| true, || *self.stored.lock(), || ()) {
            Join::Found(value) => return value,
            Join::Shared(flight) => flight,
            Join::Started(flight) => {
                let (scene, flight_of_load) = (Arc::clone(&self), Arc::clone(&flight));
                let (of_guard, flight_of_guard) = (Arc::clone(&self), Arc::clone(&flight));
                // Before the task begins: it may be dropped before it is polled once.
                let guard = CompleteOnDrop::new(move || {
                    of_guard.flights.complete(&flight_of_guard, u64::MAX, || ());
                });
                let load = spawn(async move {
                    scene.loads.fetch_add(1, SeqCst);
                    let value = scene.source.load(SeqCst);
                    shuttle::future::yield_now().await;
                    scene.flights.complete(&flight_of_load, value, || *scene.stored.lock() = Some(value));
                    guard.defuse();
                });
                *self.load.lock() = Some(load);
                flight
            }
        };
        flight.outcome().await
    }

    /// The source changes, and then the cache is told.
    fn write(&self) -> u64 {
        let value = self.source.fetch_add(1, SeqCst) + 1;
        self.flights.write("k", 0, || *self.stored.lock() = None);
        value
    }
}

#[test]
fn any_number_of_gets_are_one_load() {
    check(|| async {
        let scene = Scene::new();
        let gets: Vec<_> = (0..3).map(|_| spawn(Arc::clone(&scene).get())).collect();
        for get in gets {
            assert_eq!(get.await.unwrap(), 0);
        }
        assert_eq!(scene.loads.load(SeqCst), 1);
    });
}

/// A runtime that ends drops its loads; who waits in another one must not wait for ever.
#[test]
fn a_load_that_is_dropped_anywhere_lands_and_leaves_a_key_that_works() {
    check(|| async {
        let scene = Scene::new();
        let get = spawn(Arc::clone(&scene).get());
        let other = spawn(Arc::clone(&scene).get());
        let ends = spawn({
            let scene = Arc::clone(&scene);
            async move {
                shuttle::future::yield_now().await;
                if let Some(load) = scene.load.lock().take() {
                    load.abort();
                }
            }
        });
        ends.await.unwrap();
        for get in [get, other] {
            let got = get.await.unwrap();
            assert!(got == 0 || got == u64::MAX, "{got} is neither what was loaded nor the word that it was dropped");
        }
        assert!(scene.flights.running(Kind::Load, "k").is_none());
    });
}

#[test]
fn no_get_that_starts_after_a_write_sees_what_was_before_it() {
    check(|| async {
        let scene = Scene::new();
        let before: Vec<_> = (0..2).map(|_| spawn(Arc::clone(&scene).get())).collect();
        let writer = spawn({
            let scene = Arc::clone(&scene);
            async move {
                let written = scene.write();
                assert!(Arc::clone(&scene).get().await >= written);
                assert!(scene.get().await >= written, "nor later, from the store");
            }
        });
        for get in before {
            get.await.unwrap();
        }
        writer.await.unwrap();
    });
}
