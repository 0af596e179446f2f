//! Tests of the suite: the adapters of this crate must pass with a source in memory, and faulty providers must fail.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::stream;
use tokio::sync::watch;

use crate::testing::conformance::*;
use crate::{
    BoxError,
    membership::{
        merge::merge,
        poll::poll,
        provider::{Peer, PeerSet, ProviderContext, ProviderError, Signal},
        stream::from_stream,
    },
};

/// A registry in memory: rows that can be watched, or an error.
#[derive(Clone)]
struct Registry(watch::Sender<Result<BTreeMap<PeerId, Peer>, String>>);

impl Default for Registry {
    fn default() -> Self {
        Self(watch::channel(Ok(BTreeMap::new())).0)
    }
}

fn peer(member: &Me) -> Peer {
    Peer::member(member.id.clone(), member.addresses.clone()).with_incarnation(member.incarnation)
}

impl Registry {
    fn change(&self, change: impl FnOnce(&mut BTreeMap<PeerId, Peer>)) {
        self.0.send_modify(|rows| {
            if let Ok(rows) = rows {
                change(rows);
            }
        });
    }

    fn read(&self) -> Result<Vec<Peer>, BoxError> {
        self.0.borrow().clone().map(|rows| rows.into_values().collect()).map_err(BoxError::from)
    }

    fn poll(&self) -> impl Provider + use<> {
        let this = self.clone();
        poll("polled", Duration::from_millis(100), move || {
            let peers = this.read();
            async { peers }
        })
    }

    fn stream(&self) -> impl Provider + use<> {
        let this = self.clone();
        from_stream("followed", move || {
            let watch = this.0.subscribe();
            stream::unfold((watch, true), async |(mut watch, is_first)| {
                if !is_first {
                    watch.changed().await.ok()?;
                }
                let rows = watch.borrow_and_update().clone();
                let set = rows.map(|rows| PeerSet::complete(rows.into_values().collect())).map_err(BoxError::from);
                Some((set, (watch, false)))
            })
        })
    }
}

type Make = fn(&Registry) -> Arc<dyn Provider>;

struct InMemory {
    registry: Registry,
    make: Make,
    can_be_asked: bool,
}

#[async_trait]
impl Source for InMemory {
    fn provider(&mut self) -> Arc<dyn Provider> {
        (self.make)(&self.registry)
    }

    async fn join(&mut self, member: &Me) -> Result<(), Cannot> {
        self.registry.change(|rows| _ = rows.insert(member.id.clone(), peer(member)));
        Ok(())
    }

    async fn leave(&mut self, member: &Me) -> Result<(), Cannot> {
        self.registry.change(|rows| _ = rows.remove(&member.id));
        Ok(())
    }

    async fn crash(&mut self, _: &Me) -> Result<(), Cannot> {
        Err(Cannot("a registry in memory does not detect crashes"))
    }

    async fn fail(&mut self) -> Result<(), Cannot> {
        let _ = self.registry.0.send_replace(Err("the registry is down".to_owned()));
        Ok(())
    }

    async fn refuse(&mut self) -> Result<(), Cannot> {
        let _ = self.registry.0.send_replace(Err("the registry refuses".to_owned()));
        Ok(())
    }

    async fn mend(&mut self, members: &[Me]) {
        let rows = members.iter().map(|member| (member.id.clone(), peer(member))).collect();
        let _ = self.registry.0.send_replace(Ok(rows));
    }

    async fn garbage(&mut self) -> Result<(), Cannot> {
        Err(Cannot("the rows have types"))
    }

    fn can_be_asked(&self) -> Result<(), Cannot> {
        if self.can_be_asked { Ok(()) } else { Err(Cannot("a stream cannot be asked")) }
    }
}

async fn report(can_be_asked: bool, make: Make) -> Report {
    conform(async || InMemory { registry: Registry::default(), make, can_be_asked }).await
}

#[tokio::test(start_paused = true)]
async fn polled_function_conforms() {
    println!("{}", report(true, |registry| Arc::new(registry.poll())).await.passed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn followed_stream_conforms() {
    println!("{}", report(false, |registry| Arc::new(registry.stream())).await.passed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn merge_of_poll_and_stream_conforms() {
    println!(
        "{}",
        report(false, |registry| Arc::new(merge(registry.poll(), registry.stream()))).await.passed().unwrap()
    );
}

/// Checks that a merge of two providers with resolve requests runs the scenario about them.
#[tokio::test(start_paused = true)]
async fn merge_of_two_polled_functions_answers_requests() {
    let report = report(true, |registry| Arc::new(merge(registry.poll(), registry.poll()))).await.passed().unwrap();
    assert!(report.left_out().iter().all(|(name, _)| !name.contains("resolve request")), "{report}");
}

/// Checks that the provider fails in a scenario with this text in its name.
async fn must_fail(scenario: &str, make: Make) {
    let report = report(true, make).await.passed().expect_err("the provider does not conform").to_string();
    let failed = report.lines().filter(|line| line.starts_with("FAILED"));
    assert!(failed.into_iter().any(|line| line.contains(scenario)), "{scenario} did not fail:\n{report}");
}

/// Checks that a provider that takes an error for an empty source fails.
#[tokio::test(start_paused = true)]
async fn error_read_as_empty_set_is_found() {
    must_fail("is down removes no member", |registry| {
        let registry = registry.clone();
        Arc::new(poll("hasty", Duration::from_millis(100), move || {
            let peers = registry.read().unwrap_or_default();
            async { Ok::<_, BoxError>(peers) }
        }))
    })
    .await;
}

/// A provider with faults to choose from.
struct Faulty {
    registry: Registry,
    /// Whether the provider returns after `Leaving`.
    leaves: bool,
    /// Interval of the sets.
    every: Duration,
    /// Whether the provider starts a task that never ends.
    spawns: bool,
}

#[async_trait]
impl Provider for Faulty {
    fn name(&self) -> &str {
        "faulty"
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        if self.spawns {
            tokio::spawn(std::future::pending::<()>());
        }
        loop {
            if let Ok(peers) = self.registry.read() {
                cx.publish(PeerSet::complete(peers));
            }
            tokio::time::sleep(self.every).await;
            if self.leaves && cx.next_within(Duration::ZERO).await == Some(Signal::Leaving) {
                return Ok(());
            }
        }
    }
}

const TICK: Duration = Duration::from_millis(100);

/// Checks that a provider that ignores `Leaving` fails.
#[tokio::test(start_paused = true)]
async fn provider_that_does_not_leave_is_found() {
    must_fail("leaves in time with no task left", |registry| {
        Arc::new(Faulty { registry: registry.clone(), leaves: false, every: TICK, spawns: false })
    })
    .await;
}

/// Checks that a provider with a task that never ends fails.
#[tokio::test(start_paused = true)]
async fn task_left_behind_is_found() {
    must_fail("can be dropped at any time", |registry| {
        Arc::new(Faulty { registry: registry.clone(), leaves: true, every: TICK, spawns: true })
    })
    .await;
}

/// Checks that a provider that publishes a set every 2 ms fails.
#[tokio::test(start_paused = true)]
async fn storm_of_sets_is_found() {
    must_fail("no storm", |registry| {
        Arc::new(Faulty { registry: registry.clone(), leaves: true, every: Duration::from_millis(2), spawns: false })
    })
    .await;
}

/// Checks that a provider that never reports that it is stale fails.
#[tokio::test(start_paused = true)]
async fn unreported_outage_is_found() {
    must_fail("is down removes no member", |registry| {
        Arc::new(Faulty { registry: registry.clone(), leaves: true, every: TICK, spawns: false })
    })
    .await;
}

/// A provider that keeps the earlier incarnations of an id.
struct Twice(Arc<Mutex<Vec<Peer>>>, Registry);

#[async_trait]
impl Provider for Twice {
    fn name(&self) -> &str {
        "twice"
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        loop {
            for found in self.1.read()? {
                let mut all = self.0.lock().unwrap();
                if !all.contains(&found) {
                    all.push(found);
                }
            }
            cx.publish(PeerSet::complete(self.0.lock().unwrap().clone()));
            if cx.next_within(TICK).await == Some(Signal::Leaving) {
                return Ok(());
            }
        }
    }
}

/// Checks that a provider that lists two incarnations of an id fails.
#[tokio::test(start_paused = true)]
async fn stale_incarnation_beside_the_new_one_is_found() {
    must_fail("new incarnation of an id", |registry| Arc::new(Twice(Arc::default(), registry.clone()))).await;
}
