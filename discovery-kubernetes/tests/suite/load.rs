//! Load on an API server that is slow, overloaded or faulty: few requests, and not from all nodes at once. In virtual
//! time.

use std::time::Duration;

use discovery_kubernetes::Pods;
use groupcache_core::discovery::Health;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::{
    Observer, Simulated, THREE, TWO, World, eventually,
    fake::{Mode, WatchFault},
    two_pods, two_pods_with,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Checks that permanent requests for lists of 3 s leave time for a watch, and that events are still published soon.
#[tokio::test(start_paused = true)]
async fn watch_opens_while_slow_lists_are_requested() {
    let (mut world, mut observer) = two_pods(|pods| pods).await;
    world.fake.state().list_delay = 3 * SECOND;
    let (before, begun) = (observer.pods.stats(), Instant::now());
    let (mut samples, mut open) = (0, 0);
    while begun.elapsed() < MINUTE {
        observer.bench.ask();
        sleep(SECOND / 4).await;
        samples += 1;
        open += world.fake.watches().0;
    }
    let (watches, lists) = (observer.pods.stats().watches - before.watches, observer.pods.stats().lists - before.lists);
    assert!(watches >= 5 && open * 3 >= samples, "{watches} watches, open in {open} of {samples} samples");
    assert!((5..=11).contains(&lists), "{lists} lists of 3 s, with pauses of 3 s");
    world.start("p3", "10.0.0.3").await;
    let took = observer.until(&THREE).await;
    assert!(took < 4 * SECOND, "{took:?}");
}

/// Checks that one 410 does not change the health, and that the second one in a row makes the provider stale, until a
/// watch is good.
#[tokio::test(start_paused = true)]
async fn second_expired_version_in_a_row_is_stale() {
    let (world, mut observer) = two_pods(|pods| pods).await;
    sleep(10 * SECOND).await;
    world.fake.compact();
    world.fake.disconnect();
    let begun = Instant::now();
    while begun.elapsed() < 10 * SECOND {
        assert_eq!(observer.bench.health(), Some(Health::Connected), "after {:?}", begun.elapsed());
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!((observer.pods.stats().expired, observer.pods.stats().lists), (1, 2));
    world.fake.set(Mode::Refuses { verb: "watch", code: 410, body: None });
    observer.until_stale(&["cannot watch pods", "410"]).await;
    let lists = observer.pods.stats().lists;
    sleep(10 * MINUTE).await;
    let lists = observer.pods.stats().lists - lists;
    assert!((15..=60).contains(&lists), "{lists} lists in 10 minutes");
    world.fake.set(Mode::Normal);
    eventually("a watch is opened again", async || world.fake.watches().0 == 1).await;
    observer.until_connected().await;
    sleep(3 * MINUTE).await;
    world.fake.compact();
    world.fake.disconnect();
    sleep(10 * SECOND).await;
    assert_eq!(observer.bench.health(), Some(Health::Connected), "a good watch resets the count");
}

/// Checks that 20 nodes that receive a 410 at the same time list at different times.
#[tokio::test(start_paused = true)]
async fn lists_of_many_nodes_are_spread() {
    const NODES: usize = 20;
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    let mut all: Vec<_> = (0..NODES).map(|_| Observer::start(world.pods())).collect();
    for observer in &mut all {
        observer.until_connected().await;
    }
    sleep(10 * SECOND).await;
    world.fake.compact();
    world.fake.disconnect();
    let before = world.fake.count_requests("limit=");
    sleep(10 * SECOND).await;
    let at = world.fake.request_times("limit=").split_off(before);
    assert_eq!(at.len(), NODES);
    let spread = at[NODES - 1] - at[0];
    assert!(spread > SECOND && spread < 6 * SECOND, "within {spread:?}");
    let crowd = at.windows(NODES / 2).map(|some| some[NODES / 2 - 1] - some[0]).min().unwrap();
    assert!(crowd > SECOND / 4, "half of them within {crowd:?}");
}

/// Checks that a requested delay, in a status or in a header, is respected and spread over the nodes.
#[tokio::test(start_paused = true)]
async fn overloaded_server_is_retried_after_its_delay() {
    let status = r#"{"kind":"Status","message":"too many requests","code":429,"details":{"retryAfterSeconds":20}}"#;
    let by_status = Mode::Refuses { verb: "", code: 429, body: Some(status) };
    for mode in [by_status, Mode::Overloaded { seconds: 20 }] {
        let (world, _observer) = two_pods(|pods| pods).await;
        let before = world.fake.count_requests("/pods");
        world.fake.set(mode.clone());
        sleep(5 * MINUTE).await;
        let at = world.fake.request_times("/pods").split_off(before);
        let between: Vec<_> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let (least, most) = (between.iter().min().unwrap(), between.iter().max().unwrap());
        assert!(*least >= 20 * SECOND && *most <= 31 * SECOND, "{mode:?}: {between:?}");
    }
    const NODES: usize = 20;
    let world = Simulated::new();
    let mut all: Vec<_> = (0..NODES).map(|_| Observer::start(world.pods())).collect();
    for observer in &mut all {
        observer.until_connected().await;
    }
    world.fake.set(Mode::Overloaded { seconds: 20 });
    sleep(2 * SECOND).await;
    let before = world.fake.count_requests("/pods");
    sleep(30 * SECOND).await;
    let at = world.fake.request_times("/pods").split_off(before);
    let spread = at[NODES - 1] - at[0];
    assert!(spread > 3 * SECOND, "all within {spread:?}");
}

/// Checks that a failed periodic list makes the provider stale and keeps the watch open, and that a good list resets
/// the back-off.
#[tokio::test(start_paused = true)]
async fn failed_list_keeps_the_watch() {
    let (mut world, mut observer) = two_pods(|pods| pods).await;
    world.fake.state().mode = Mode::Refuses { verb: "list", code: 500, body: None };
    sleep(724 * SECOND).await;
    let why = observer.until_stale(&["cannot list pods", "500"]).await;
    world.start("p3", "10.0.0.3").await;
    let took = observer.until(&THREE).await;
    assert!(took < SECOND, "{took:?} with {why}");
    let before = observer.pods.stats();
    sleep(10 * MINUTE).await;
    let after = observer.pods.stats();
    assert!(after.watches - before.watches <= 10, "{before:?}, then {after:?}");
    assert!((15..=60).contains(&(after.failures - before.failures)), "{before:?}, then {after:?}");
    world.fake.state().mode = Mode::Normal;
    let took = observer.until_connected().await;
    assert!(took < 31 * SECOND, "{took:?}");
    assert_eq!((observer.pods.stats().lists, observer.set()), (2, THREE.map(str::to_owned).to_vec()));
    // A good list resets the count of failures.
    world.fake.state().mode = Mode::Refuses { verb: "list", code: 500, body: None };
    sleep(2 * SECOND).await;
    observer.bench.ask();
    observer.until_stale(&["cannot list pods", "500"]).await;
    world.fake.state().mode = Mode::Normal;
    let took = observer.until_connected().await;
    assert!(took < SECOND, "{took:?}");
}

/// Checks that a list replaces a version that may be the cause of repeated failures.
#[tokio::test(start_paused = true)]
async fn repeatedly_failing_watch_is_followed_by_list() {
    let (mut world, mut observer) = two_pods(|pods| pods).await;
    world.fake.set(Mode::Refuses { verb: "watch", code: 500, body: None });
    sleep(SECOND / 4).await;
    world.start("p3", "10.0.0.3").await;
    let took = observer.until(&THREE).await;
    assert!(took < 5 * SECOND, "repeated failures may be caused by the version: {took:?}");
}

/// Checks that the next client continues from the last versions, and that the periodic lists are not delayed.
#[tokio::test(start_paused = true)]
async fn refused_credentials_cost_no_list() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    world.fake.state().bookmarks_every = Some(4 * SECOND);
    let mut observer = Observer::start(world.pods().namespace("blue"));
    observer.until_connected().await;
    world.start("p2", "10.0.0.2").await;
    observer.until(&TWO).await;
    let lists = observer.pods.stats().lists;
    sleep(10 * SECOND).await;
    world.fake.compact_except_last(0); // versions of the first lists expire, those of events and bookmarks do not
    world.fake.set(Mode::Refuses { verb: "watch", code: 401, body: None });
    observer.until_stale(&["401", "refuses the credentials"]).await;
    world.start("p3", "10.0.0.3").await;
    world.delete("p1").await;
    sleep(SECOND).await;
    world.fake.set(Mode::Normal);
    observer.until(&["p2@10.0.0.2", "p3@10.0.0.3"]).await;
    observer.until_connected().await;
    assert_eq!((lists, observer.pods.stats().lists), (2, 2), "each namespace continues from its last version");
    assert_eq!(world.fake.watches(), (2, 2));
    // New clients do not delay the periodic lists.
    for _ in 0..4 {
        sleep(4 * MINUTE).await;
        world.fake.set(Mode::Refuses { verb: "watch", code: 401, body: None });
        sleep(SECOND).await;
        world.fake.set(Mode::Normal);
    }
    assert!(observer.pods.stats().lists >= 4, "{:?}", observer.pods.stats());
}

/// Checks the number of watches in 10 minutes if each one opens and then reports a 401.
#[tokio::test(start_paused = true)]
async fn repeatedly_refused_credentials_back_off() {
    let (world, mut observer) = two_pods(|pods| pods).await;
    let refusal = json!({ "type": "ERROR", "object": { "kind": "Status", "code": 401, "message": "expired" } });
    let fault = WatchFault::BeginsWith(vec![refusal.to_string()]);
    world.fake.state().watch_faults.extend(std::iter::repeat_n(fault, 10_000));
    world.fake.disconnect();
    let before = observer.pods.stats();
    sleep(10 * MINUTE).await;
    let after = observer.pods.stats();
    let watches = after.watches - before.watches;
    assert!((15..=60).contains(&watches), "{watches} watches in 10 minutes, all of which open");
    assert_eq!(observer.set(), TWO);
}

/// Checks that a slow list succeeds, and that a list fails after 15 s without data or 120 s in all.
#[tokio::test(start_paused = true)]
async fn slow_list_succeeds_while_data_arrives() {
    let mut world = Simulated::new();
    for n in 0..30 {
        world.start(&format!("p{n:02}"), &format!("10.0.0.{n}")).await;
    }
    world.fake.state().list_pace = Some((500, 2 * SECOND));
    let mut observer = Observer::start(world.pods());
    let begun = Instant::now();
    while observer.bench.sets() == 0 {
        assert!(begun.elapsed() < 2 * MINUTE, "{:?}", observer.bench.health());
        sleep(SECOND / 4).await;
    }
    assert_eq!((observer.set().len(), observer.pods.stats().failures), (30, 0));
    assert!(begun.elapsed() > 20 * SECOND, "{:?}", begun.elapsed());
    for (pace, words) in
        [((500, 16 * SECOND), "no further data within 15 s"), ((10, 10 * SECOND), "no complete page within 120 s")]
    {
        world.fake.state().list_pace = Some(pace);
        observer.bench.ask();
        sleep(MINUTE * 2).await;
        observer.until_stale(&["cannot list pods", words]).await;
        world.fake.state().list_pace = None;
        sleep(MINUTE).await;
    }
}

/// Checks that more than 1,000 pages, or a page of more than 32 MiB, make the provider stale and keep the peers.
#[tokio::test(start_paused = true)]
async fn endless_list_and_huge_page_are_errors() {
    let (world, mut observer) = two_pods(|pods| pods).await;
    world.fake.state().is_endless = true;
    sleep(2 * SECOND).await;
    observer.bench.ask();
    observer.until_stale(&["cannot list pods", "1000 pages", "narrow the selector"]).await;
    assert_eq!(observer.set(), TWO);
    world.fake.state().is_endless = false;
    observer.until_connected().await;
    let long: &'static str = Box::leak(" ".repeat((32 << 20) + 1).into_boxed_str());
    world.fake.state().mode = Mode::Refuses { verb: "list", code: 200, body: Some(long) };
    sleep(2 * SECOND).await;
    observer.bench.ask();
    observer.until_stale(&["cannot list pods", "33554432 bytes", "page_size"]).await;
    assert_eq!(observer.set(), TWO);
}

/// Checks that two silent watches in a row make the provider stale and cause a list, until a watch sends an event.
#[tokio::test(start_paused = true)]
async fn repeatedly_silent_watches_make_source_stale() {
    let silent = |world: &Simulated| {
        world.fake.state().watch_faults.extend(std::iter::repeat_n(WatchFault::Silent, 4));
        world.fake.state().bookmarks_every = Some(MINUTE / 2);
    };
    let (mut world, mut observer) = two_pods_with(silent, |pods| pods).await;
    let begun = Instant::now();
    world.start("p3", "10.0.0.3").await;
    while observer.pods.stats().silent < 2 {
        assert_eq!(observer.bench.health(), Some(Health::Connected));
        sleep(SECOND).await;
    }
    observer.until_stale(&["cannot watch pods", "send nothing"]).await;
    observer.until(&THREE).await;
    assert!(begun.elapsed() < 5 * MINUTE, "published by a list: {:?}", begun.elapsed());
    while observer.pods.stats().silent < 4 {
        assert!(
            matches!(observer.bench.health(), Some(Health::Stale(_))),
            "an open watch without an event proves nothing"
        );
        sleep(SECOND).await;
    }
    observer.until_connected().await;
    world.delete("p3").await;
    observer.until(&TWO).await;
    // A single silent watch does not make the provider stale.
    world.fake.state().watch_faults.push_back(WatchFault::Silent);
    world.fake.disconnect();
    while observer.pods.stats().silent < 5 {
        assert_eq!(observer.bench.health(), Some(Health::Connected));
        sleep(SECOND).await;
    }
    sleep(SECOND).await;
    assert_eq!(observer.bench.health(), Some(Health::Connected), "a watch with events resets the count");
}

/// Checks that a requested list as a watch replaces the open watch.
#[tokio::test(start_paused = true)]
async fn requested_streaming_list_opens_no_second_watch() {
    let prepare = |world: &Simulated| world.fake.state().supports_initial_events = true;
    let (mut world, mut observer) = two_pods_with(prepare, Pods::streaming_lists).await;
    sleep(10 * SECOND).await;
    observer.bench.ask();
    sleep(2 * SECOND).await;
    assert_eq!((world.fake.watches(), observer.pods.stats().lists), ((1, 1), 2), "never two watches at a time");
    world.start("p3", "10.0.0.3").await;
    observer.until(&THREE).await;
}
