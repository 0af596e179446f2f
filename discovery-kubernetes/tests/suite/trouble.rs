//! Faults of the API server: expired versions, hanging or broken connections, refusals and garbage. No peer is lost, no
//! change is missed, and the health has the reason. In virtual time.

use std::time::Duration;

use discovery_kubernetes::Pods;
use groupcache_core::discovery::Health;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::{
    NAMESPACE, Observer, Simulated, THREE, TWO, World, eventually,
    fake::{Mode, WatchFault},
    pod, running, two_pods, two_pods_with,
};

const MINUTE: Duration = Duration::from_secs(60);

/// Checks that a watch that breaks within or after an event continues from its version, and misses no change.
#[tokio::test(start_paused = true)]
async fn broken_watch_continues_without_a_list() {
    for fault in [WatchFault::BreaksWithinEvent, WatchFault::BreaksAfterEvent] {
        let prepare = |world: &Simulated| world.fake.state().watch_faults.push_back(fault.clone());
        let (mut world, mut observer) = two_pods_with(prepare, |pods| pods).await;
        world.start("p3", "10.0.0.3").await;
        let took = observer.until(&THREE).await;
        assert!(took < Duration::from_secs(1), "{fault:?}: {took:?}");
        let stats = observer.pods.stats();
        assert_eq!((stats.lists, stats.watches), (1, 2), "{fault:?}: {stats:?}");
        assert_eq!(observer.bench.health(), Some(Health::Connected), "a broken watch does not change the health");
    }
}

/// Checks that a silent watch is replaced after its requested life of 60 to 120 s, and that a list follows it.
#[tokio::test(start_paused = true)]
async fn hanging_watch_is_replaced_within_two_minutes() {
    let prepare = |world: &Simulated| world.fake.state().watch_faults.push_back(WatchFault::Silent);
    let (mut world, mut observer) = two_pods_with(prepare, |pods| pods).await;
    let begun = Instant::now();
    world.start("p3", "10.0.0.3").await;
    eventually("30 s have passed", async || {
        sleep(Duration::from_secs(5)).await;
        begun.elapsed() > Duration::from_secs(30)
    })
    .await;
    assert_eq!(observer.pods.stats().silent, 0, "not within the first minute");
    while observer.pods.stats().silent == 0 {
        assert!(begun.elapsed() < 2 * MINUTE + Duration::from_secs(3), "{:?}", begun.elapsed());
        sleep(Duration::from_millis(100)).await;
    }
    assert!(begun.elapsed() > MINUTE, "{:?}", begun.elapsed());
    observer.until(&THREE).await;
    assert_eq!(observer.pods.stats().lists, 2, "a silent watch proves nothing, so a list follows");
}

/// Checks that a 410, as a status or as an event, causes one list, and that the next watch reports changes again.
#[tokio::test(start_paused = true)]
async fn expired_version_is_followed_by_list() {
    for as_status in [false, true] {
        let (mut world, mut observer) = two_pods(|pods| pods).await;
        world.fake.state().gone_is_a_status = as_status;
        world.fake.set(Mode::Down);
        world.start("p3", "10.0.0.3").await;
        world.delete("p1").await;
        world.fake.compact();
        sleep(Duration::from_millis(300)).await;
        assert_eq!(observer.set(), TWO);
        world.fake.set(Mode::Normal);
        observer.until(&["p2@10.0.0.2", "p3@10.0.0.3"]).await;
        observer.until_connected().await;
        let stats = observer.pods.stats();
        assert_eq!((stats.expired, stats.lists), (1, 2), "as a status {as_status}: {stats:?}");
        let published = stats.published;
        world.start("p4", "10.0.0.4").await;
        observer.until(&["p2@10.0.0.2", "p3@10.0.0.3", "p4@10.0.0.4"]).await;
        assert_eq!(observer.pods.stats().published - published, 1, "the next watch reports changes");
    }
}

/// Checks that a list with an expired continuation begins again, and that no set has only some of the pages.
#[tokio::test(start_paused = true)]
async fn expired_list_restarts_and_is_published_whole() {
    let mut world = Simulated::new();
    for n in 0..30 {
        world.start(&format!("p{n:02}"), &format!("10.0.0.{n}")).await;
    }
    world.start("a-first", "10.0.1.1").await;
    world.fake.state().forgets_pages = 2;
    world.fake.state().deleted_with_pages = Some("a-first".to_owned());
    let mut observer = Observer::start(world.pods().page_size(10));
    let all: Vec<_> = (0..30).map(|n| format!("p{n:02}@10.0.0.{n}")).collect();
    observer.until(&all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let stats = observer.pods.stats();
    assert_eq!((stats.expired, stats.published, observer.bench.sets()), (2, 1, 1), "{stats:?}");
    // If every continuation expires, the provider is stale and keeps its peers.
    world.fake.state().forgets_pages = 1_000;
    sleep(ASK).await;
    observer.bench.ask();
    observer.until_stale(&["cannot list pods", "410"]).await;
    assert_eq!((observer.set().len(), observer.bench.sets()), (30, 1));
}

const ASK: Duration = Duration::from_secs(1);

/// Checks errors and answers that are no list: each keeps the peers, and the health has the reason.
#[tokio::test(start_paused = true)]
async fn failed_list_keeps_peers_and_reports_reason() {
    let cases: [(u16, Option<&'static str>, &[&str]); 9] = [
        (500, None, &["cannot list pods in the namespace prod", "500"]),
        (503, Some("<html>upstream"), &["503", "<html>upstream"]),
        // The refusal of a proxy is no Status of Kubernetes.
        (403, Some("{}"), &["this node may not list pods in the namespace prod", "pod-reader"]),
        (403, Some(""), &["this node may not list pods"]),
        (400, None, &["as an invalid request", "check the selector"]),
        (410, None, &["cannot list pods", "410"]),
        // An answer that is no list is not an empty list.
        (200, Some("{}"), &["no list"]),
        (200, Some(r#"{"kind":"Status","metadata":{},"status":"Success"}"#), &["no list"]),
        (200, Some("hello"), &["no list"]),
    ];
    for (code, body, words) in cases {
        let (world, mut observer) = two_pods(|pods| pods).await;
        let sets = observer.bench.sets();
        world.fake.set(Mode::Refuses { verb: "list", code, body });
        world.fake.compact();
        observer.until_stale(words).await;
        sleep(MINUTE).await;
        assert_eq!(
            (observer.set().as_slice(), observer.bench.sets()),
            (TWO.map(str::to_owned).as_slice(), sets),
            "{code}"
        );
        world.fake.set(Mode::Normal);
        observer.until_connected().await;
        assert_eq!(observer.set(), TWO);
    }
}

/// Checks that a server that accepts requests and answers none makes the provider stale.
#[tokio::test(start_paused = true)]
async fn hanging_server_is_stale_within_20_s() {
    let (world, mut observer) = two_pods(|pods| pods).await;
    world.fake.set(Mode::Hangs);
    let begun = Instant::now();
    observer.until_stale(&["no answer within 15 s"]).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    world.fake.set(Mode::Normal);
    observer.until_connected().await;
    assert_eq!(observer.set(), TWO);
}

/// Checks that the health names the missing right to watch, and that lists report changes meanwhile.
#[tokio::test(start_paused = true)]
async fn lists_report_changes_without_right_to_watch() {
    let (mut world, mut observer) = two_pods(|pods| pods).await;
    world.fake.set(Mode::Refuses { verb: "watch", code: 403, body: None });
    observer.until_stale(&["may not watch pods in the namespace prod", "create role pod-reader"]).await;
    world.start("p3", "10.0.0.3").await;
    let took = observer.until(&THREE).await;
    assert!(took < Duration::from_secs(45), "{took:?}");
}

/// Checks that a watch without events continues from its last bookmark after older versions have expired.
#[tokio::test(start_paused = true)]
async fn bookmarks_keep_quiet_watch_from_expiring() {
    let prepare = |world: &Simulated| world.fake.state().bookmarks_every = Some(Duration::from_secs(10));
    let (mut world, mut observer) = two_pods_with(prepare, |pods| pods).await;
    let other = json!({ "metadata": { "name": "other", "namespace": "elsewhere" } });
    for _ in 0..200 {
        world.fake.put("pods", other.clone());
        sleep(Duration::from_secs(1)).await;
    }
    // Most of the 200 versions are too old for a watch, but the version of the last bookmark is not.
    let last = world.fake.compact_except_last(30);
    sleep(2 * MINUTE).await;
    world.start("p3", "10.0.0.3").await;
    observer.until(&THREE).await;
    let stats = observer.pods.stats();
    assert!(stats.bookmarks > 20 && stats.watches >= 3, "{stats:?}");
    assert_eq!((stats.lists, stats.expired), (1, 0), "up to {last}: {stats:?}");
}

/// Checks the interval and the spread of periodic lists, that an equal list is not published, and that a list finds a
/// deletion without an event.
#[tokio::test(start_paused = true)]
async fn periodic_list_publishes_only_changes() {
    let (world, mut observer) = two_pods(|pods| pods).await;
    let mut between = Vec::new();
    let mut last = Instant::now();
    for lists in 2..=8 {
        while observer.pods.stats().lists < lists {
            sleep(Duration::from_secs(1)).await;
        }
        between.push(last.elapsed().as_secs());
        last = Instant::now();
    }
    assert!(between.iter().all(|seconds| (478..=724).contains(seconds)), "{between:?}");
    assert!(
        between.windows(2).any(|pair| pair[0].abs_diff(pair[1]) > 5),
        "the lists of all nodes would coincide: {between:?}"
    );
    assert_eq!(observer.bench.sets(), 1);
    // A list finds a deletion that no watch has reported.
    world.fake.delete_silently("pods", NAMESPACE, "p1");
    sleep(Duration::from_secs(721)).await;
    assert_eq!(observer.set(), ["p2@10.0.0.2"]);
    assert_eq!(world.fake.watches().1, 1);
}

/// Checks that a request of the node causes a list and an equal set, and that many requests cause one list per second.
#[tokio::test(start_paused = true)]
async fn requested_lists_are_answered_and_limited() {
    let (world, mut observer) = two_pods(|pods| pods).await;
    sleep(2 * ASK).await;
    let sets = observer.bench.sets();
    observer.bench.ask();
    eventually("an equal set answers the request", async || observer.bench.sets() == sets + 1).await;
    let (asked, begun) = (world.fake.count_requests("limit=500"), Instant::now());
    while begun.elapsed() < Duration::from_secs(5) {
        observer.bench.ask();
        sleep(Duration::from_millis(10)).await;
    }
    let lists = world.fake.count_requests("limit=500") - asked;
    assert!((4..=6).contains(&lists), "{lists} lists in 5 s");
    assert_eq!(world.fake.watches().1, 1, "never two watches at a time");
}

/// Checks that a pod that no longer matches the selector is removed, and a pod that matches again is added.
#[tokio::test(start_paused = true)]
async fn label_change_removes_or_adds_peer() {
    let (world, mut observer) = two_pods(|pods| pods).await;
    let mut unlabelled = pod("p2", "uid-2");
    unlabelled["metadata"]["labels"]["app.kubernetes.io/name"] = json!("orders");
    world.fake.put("pods", unlabelled);
    observer.until(&["p1@10.0.0.1"]).await;
    let mut back = pod("p2", "uid-2");
    back["status"] = running(&["10.0.0.2", "fd00::2"], true);
    world.fake.put("pods", back);
    observer.until(&["p1@10.0.0.1", "p2@10.0.0.2+[fd00::2]"]).await;
}

/// Checks unreadable lines of a watch and unreadable pods: a known pod keeps its last state, an unknown one stays
/// unknown.
#[tokio::test(start_paused = true)]
async fn unreadable_lines_and_pods_change_nothing() {
    let lines = ["", "{", r#"{"type":"LATER","object":{}}"#, r#"{"type":"BOOKMARK","object":7}"#];
    for line in lines {
        let fault = WatchFault::BeginsWith(vec![line.to_owned()]);
        let (mut world, mut observer) =
            two_pods_with(|world| world.fake.state().watch_faults.push_back(fault), |pods| pods).await;
        world.start("p3", "10.0.0.3").await;
        observer.until(&THREE).await;
        // The object of a line that is no event is unknown, so a list reads all objects again.
        let lists = if line == "{" { 2 } else { 1 };
        assert_eq!(observer.pods.stats().lists, lists, "{line}");
    }
    // Unreadable pods: a known one keeps its last state, an unknown one is no peer.
    let (mut world, mut observer) = two_pods(|pods| pods).await;
    for name in ["p1", "p9"] {
        let mut odd = pod(name, "x");
        odd["status"] = json!("gone");
        world.fake.put("pods", odd);
    }
    world.start("p3", "10.0.0.3").await;
    observer.until(&THREE).await;
    sleep(ASK).await;
    let sets = observer.bench.sets();
    observer.bench.ask();
    eventually("the request is answered", async || observer.bench.sets() > sets).await;
    assert_eq!(observer.set(), THREE);
    let stats = observer.pods.stats();
    assert!(stats.garbage >= 4 && stats.failures == 0, "{stats:?}");
}

/// Checks the number of watches in 10 minutes if each one ends right after it opens.
#[tokio::test(start_paused = true)]
async fn watch_that_ends_at_once_backs_off() {
    let (world, mut observer) = two_pods(|pods| pods).await;
    world.fake.state().watch_faults.extend(std::iter::repeat_n(WatchFault::EndsAtOnce, 1_000));
    world.fake.disconnect();
    let watches = observer.pods.stats().watches;
    sleep(10 * MINUTE).await;
    let watches = observer.pods.stats().watches - watches;
    assert!((15..=60).contains(&watches), "{watches} in 10 minutes");
    assert!(matches!(observer.bench.health(), Some(Health::Stale(why)) if why.contains("right after it opens")));
}

/// Checks that peers are published in partial sets while a namespace is refused, that each namespace has one watch, and
/// that the first namespace has a shared name.
#[tokio::test(start_paused = true)]
async fn set_is_complete_once_all_namespaces_are_listed() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    let mut other = pod("p2", "u2");
    other["metadata"]["namespace"] = json!("blue");
    other["status"] = running(&["10.0.0.2"], true);
    world.fake.put("pods", other);
    world.fake.state().mode = Mode::Down;
    let mut observer = Observer::start(world.pods().namespace("blue").namespace(NAMESPACE));
    world.fake.refuse_namespace(Some("blue"));
    world.fake.set(Mode::Normal);
    eventually("the known peers are published as a partial set", async || observer.set() == ["p1@10.0.0.1"]).await;
    let why = observer.until_stale(&["namespace blue"]).await;
    assert!(why.contains("this node may not"), "{why}");
    observer.until_stale(&["kubectl -n blue create role"]).await;
    sleep(MINUTE).await;
    assert_eq!(observer.bench.sets(), 0, "the peers in blue are unknown");
    world.fake.refuse_namespace(None);
    observer.until(&TWO).await;
    observer.until_connected().await;
    assert_eq!(world.fake.watches(), (2, 2));
    // A pod of the same name in the second namespace is another pod; the first namespace keeps the name.
    let mut twin = pod("p1", "u9");
    twin["metadata"]["namespace"] = json!("blue");
    twin["status"] = running(&["10.0.0.9"], true);
    world.fake.put("pods", twin);
    eventually("the conflict is counted", async || observer.pods.stats().conflicts > 0).await;
    assert_eq!(observer.set(), TWO);
}

/// Checks that the first state is read from a watch if the API server supports it, and from pages otherwise.
#[tokio::test(start_paused = true)]
async fn streaming_list_falls_back_to_pages() {
    let prepare = |world: &Simulated| world.fake.state().supports_initial_events = true;
    let (mut world, mut observer) = two_pods_with(prepare, Pods::streaming_lists).await;
    assert_eq!((world.fake.count_requests("limit="), observer.pods.stats().lists), (0, 1));
    world.start("p3", "10.0.0.3").await;
    observer.until(&THREE).await;
    assert_eq!(world.fake.count_requests("watch=true"), 1, "the same watch continues");
    world.fake.set(Mode::Down);
    world.delete("p3").await;
    world.fake.compact();
    world.fake.set(Mode::Normal);
    observer.until(&TWO).await;
    assert_eq!(world.fake.count_requests("limit="), 0);

    let (mut world, mut observer) = two_pods(Pods::streaming_lists).await;
    assert_eq!(world.fake.count_requests("limit="), 1, "pages are requested instead");
    world.start("p3", "10.0.0.3").await;
    observer.until(&THREE).await;
    assert_eq!(world.fake.count_requests("sendInitialEvents"), 1, "streaming is not tried again");
}

/// Checks that a first state that breaks off is discarded.
#[tokio::test(start_paused = true)]
async fn incomplete_streaming_list_is_not_published() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    world.start("p2", "10.0.0.2").await;
    let added = json!({ "type": "ADDED", "object": world.fake.get("pods", NAMESPACE, "p1") }).to_string();
    let half = WatchFault::BreaksAfter(vec![added]);
    {
        let mut state = world.fake.state();
        state.supports_initial_events = true;
        state.watch_faults.extend([half.clone(), half]);
    }
    let mut observer = Observer::start(world.pods().streaming_lists());
    observer.until(&TWO).await;
    assert_eq!((observer.bench.sets(), observer.pods.stats().failures), (1, 2));
}

/// Checks that a pod that is deleted, or ends, while the first state arrives is not published.
#[tokio::test(start_paused = true)]
async fn pod_deleted_during_streaming_list_is_left_out() {
    let mut world = Simulated::new();
    for (name, ip) in [("p1", "10.0.0.1"), ("p2", "10.0.0.2"), ("p3", "10.0.0.3")] {
        world.start(name, ip).await;
    }
    let line = |kind: &str, object: &Value| json!({ "type": kind, "object": object }).to_string();
    let pod = |name: &str| world.fake.get("pods", NAMESPACE, name).unwrap();
    let (p1, p3) = (pod("p1"), pod("p3"));
    let mut ended = p3.clone();
    ended["status"]["phase"] = json!("Succeeded");
    // The fake continues with the remaining pods and the end of the first state.
    let lines = [line("ADDED", &p1), line("ADDED", &p3), line("DELETED", &p1), line("MODIFIED", &ended)];
    world.delete("p1").await;
    world.delete("p3").await;
    {
        let mut state = world.fake.state();
        state.supports_initial_events = true;
        state.watch_faults.push_back(WatchFault::BeginsWith(lines.into()));
    }
    let mut observer = Observer::start(world.pods().streaming_lists());
    observer.until_connected().await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!((observer.set(), observer.pods.stats().lists), (vec!["p2@10.0.0.2".to_owned()], 1));
}
