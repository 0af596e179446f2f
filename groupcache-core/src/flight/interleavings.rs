//! Interleavings of flights: gets, writes and dropped loads of one key under a scheduler that tries many orders.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use shuttle::future::spawn;

use crate::flight::{CompleteOnDrop, Flights, InvalidationStripes, Join, Kind};
use crate::{runtime::sync::Mutex, testing::interleavings::check};

/// Group of one key with a counter as its source.
struct Scene {
    flights: Flights<u64, ()>,
    /// Value in the store.
    stored: Mutex<Option<u64>>,
    loads: AtomicU64,
    /// Task of the last load.
    load: Mutex<Option<shuttle::future::JoinHandle<()>>>,
    /// Present value of the source.
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

    /// Gets the key as a group does: the load is a task of its own.
    async fn get(self: Arc<Self>) -> u64 {
        let flight = match self.flights.join(Kind::Load, "k", 0, |()| true, || *self.stored.lock(), || ()) {
            Join::Found(value) => return value,
            Join::Shared(flight) => flight,
            Join::Started(flight) => {
                let (scene, flight_of_load) = (Arc::clone(&self), Arc::clone(&flight));
                let (scene_of_guard, flight_of_guard) = (Arc::clone(&self), Arc::clone(&flight));
                // Made before the task begins, because the task may be dropped before its first poll.
                let guard = CompleteOnDrop::new(move || {
                    scene_of_guard.flights.complete(&flight_of_guard, u64::MAX, 0, || ());
                });
                let load = spawn(async move {
                    scene.loads.fetch_add(1, SeqCst);
                    let value = scene.source.load(SeqCst);
                    shuttle::future::yield_now().await;
                    scene.flights.complete(&flight_of_load, value, 0, || *scene.stored.lock() = Some(value));
                    guard.defuse();
                });
                *self.load.lock() = Some(load);
                flight
            }
        };
        flight.outcome().await
    }

    /// Changes the source and then writes to the cache. Returns the new value.
    fn write(&self) -> u64 {
        let value = self.source.fetch_add(1, SeqCst) + 1;
        self.flights.write("k", || *self.stored.lock() = None);
        value
    }
}

#[test]
fn concurrent_gets_share_one_load() {
    check(|| async {
        let scene = Scene::new();
        let gets: Vec<_> = (0..3).map(|_| spawn(Arc::clone(&scene).get())).collect();
        for get in gets {
            assert_eq!(get.await.unwrap(), 0);
        }
        assert_eq!(scene.loads.load(SeqCst), 1);
    });
}

/// A runtime that ends drops its loads, at any step. Waiters on another runtime must not wait forever, and the key must
/// have no flight afterwards.
#[test]
fn dropped_load_completes_its_flight() {
    check(|| async {
        let scene = Scene::new();
        let get = spawn(Arc::clone(&scene).get());
        let other = spawn(Arc::clone(&scene).get());
        let abort = spawn({
            let scene = Arc::clone(&scene);
            async move {
                shuttle::future::yield_now().await;
                if let Some(load) = scene.load.lock().take() {
                    load.abort();
                }
            }
        });
        abort.await.unwrap();
        for get in [get, other] {
            let got = get.await.unwrap();
            assert!(got == 0 || got == u64::MAX, "{got} is neither the loaded value nor the error of a dropped load");
        }
        assert!(scene.flights.running(Kind::Load, "k").is_none());
    });
}

#[test]
fn get_after_write_returns_new_value() {
    check(|| async {
        let scene = Scene::new();
        let before: Vec<_> = (0..2).map(|_| spawn(Arc::clone(&scene).get())).collect();
        let writer = spawn({
            let scene = Arc::clone(&scene);
            async move {
                let written = scene.write();
                assert!(Arc::clone(&scene).get().await >= written);
                assert!(scene.get().await >= written, "a later get, from the store");
            }
        });
        for get in before {
            get.await.unwrap();
        }
        writer.await.unwrap();
    });
}
