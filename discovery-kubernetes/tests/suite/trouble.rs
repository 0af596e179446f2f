//! An API server that forgets, hangs, cuts off, refuses or talks nonsense: nobody is lost, nothing is missed, and
//! what is wrong is said. In virtual time.

use std::time::Duration;

use discovery_kubernetes::Pods;
use groupcache_core::Health;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::{
    BOTH, Eyes, NAMESPACE, Simulated, THREE, World, eventually,
    fake::{Mishap, Mode},
    pod, running, settled, settled_with,
};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_cut_off_goes_on_where_it_was_and_misses_nothing() {
    for mishap in [Mishap::CutEvent, Mishap::Closed] {
        let prepare = |world: &Simulated| world.fake.world().mishaps.push_back(mishap.clone());
        let (mut world, mut eyes) = settled_with(prepare, |pods| pods).await;
        world.start("p3", "10.0.0.3").await;
        let took = eyes.until(&THREE).await;
        assert!(took < Duration::from_secs(1), "{mishap:?}: {took:?}");
        let stats = eyes.pods.stats();
        assert_eq!((stats.lists, stats.watches), (1, 2), "{mishap:?}: {stats:?}");
        assert_eq!(eyes.bench.health(), Some(Health::Connected), "nothing to speak of");
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_hangs_is_left_after_two_minutes_at_most() {
    let prepare = |world: &Simulated| world.fake.world().mishaps.push_back(Mishap::Silent);
    let (mut world, mut eyes) = settled_with(prepare, |pods| pods).await;
    let begun = Instant::now();
    world.start("p3", "10.0.0.3").await;
    eventually("it is left", async || {
        sleep(Duration::from_secs(5)).await;
        begun.elapsed() > Duration::from_secs(30)
    })
    .await;
    assert_eq!(eyes.pods.stats().silent, 0, "not before a minute");
    while eyes.pods.stats().silent == 0 {
        assert!(begun.elapsed() < 2 * MINUTE + Duration::from_secs(3), "{:?}", begun.elapsed());
        sleep(Duration::from_millis(100)).await;
    }
    assert!(begun.elapsed() > MINUTE, "{:?}", begun.elapsed());
    eyes.until(&THREE).await;
    assert_eq!(eyes.pods.stats().lists, 1, "from where it was");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_too_old_is_followed_by_a_list() {
    for as_event in [false, true] {
        let (mut world, mut eyes) = settled(|pods| pods).await;
        world.fake.world().gone_is_an_event = as_event;
        world.fake.set(Mode::Down);
        world.start("p3", "10.0.0.3").await;
        world.delete("p1").await;
        world.fake.compact();
        sleep(Duration::from_millis(300)).await;
        assert_eq!(eyes.set(), BOTH);
        world.fake.set(Mode::Well);
        eyes.until(&["p2@10.0.0.2", "p3@10.0.0.3"]).await;
        eyes.until_well().await;
        let stats = eyes.pods.stats();
        assert_eq!((stats.expired, stats.lists), (1, 2), "as an event {as_event}: {stats:?}");
        let published = stats.published;
        world.start("p4", "10.0.0.4").await;
        eyes.until(&["p2@10.0.0.2", "p3@10.0.0.3", "p4@10.0.0.4"]).await;
        assert_eq!(eyes.pods.stats().published - published, 1, "and what is new is heard of again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_whose_rest_is_forgotten_begins_again_and_never_half_of_it_is_published() {
    let mut world = Simulated::new();
    for n in 0..30 {
        world.start(&format!("p{n:02}"), &format!("10.0.0.{n}")).await;
    }
    world.start("a-first", "10.0.1.1").await;
    world.fake.world().forgets_pages = 2;
    world.fake.world().gone_with_pages = Some("a-first".to_owned());
    let mut eyes = Eyes::open(world.pods().page_size(10));
    let all: Vec<_> = (0..30).map(|n| format!("p{n:02}@10.0.0.{n}")).collect();
    eyes.until(&all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let stats = eyes.pods.stats();
    assert_eq!((stats.expired, stats.published, eyes.bench.sets()), (2, 1, 1), "{stats:?}");
    // For ever: it says so, and keeps what it has.
    world.fake.world().forgets_pages = 1_000;
    sleep(ASK).await;
    eyes.bench.ask();
    eyes.until_stale(&["cannot list pods", "410"]).await;
    assert_eq!((eyes.set().len(), eyes.bench.sets()), (30, 1));
}

const ASK: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn whatever_the_server_answers_nobody_is_gone_and_the_reason_is_told() {
    let cases: [(u16, Option<&'static str>, &[&str]); 9] = [
        (500, None, &["cannot list pods in the namespace prod", "500"]),
        (503, Some("<html>upstream"), &["503", "<html>upstream"]),
        // A proxy's refusal is no Status of Kubernetes.
        (403, Some("{}"), &["this node may not list pods in the namespace prod", "pod-reader"]),
        (403, Some(""), &["this node may not list pods"]),
        (400, None, &["does not understand", "check the selector"]),
        (410, None, &["cannot list pods", "410"]),
        // What is no list is not a list of nobody.
        (200, Some("{}"), &["no list"]),
        (200, Some(r#"{"kind":"Status","metadata":{},"status":"Success"}"#), &["no list"]),
        (200, Some("hello"), &["no list"]),
    ];
    for (code, body, words) in cases {
        let (world, mut eyes) = settled(|pods| pods).await;
        let sets = eyes.bench.sets();
        world.fake.set(Mode::Refuses { verb: "list", code, body });
        world.fake.compact();
        eyes.until_stale(words).await;
        sleep(MINUTE).await;
        assert_eq!((eyes.set().as_slice(), eyes.bench.sets()), (BOTH.map(str::to_owned).as_slice(), sets), "{code}");
        world.fake.set(Mode::Well);
        eyes.until_well().await;
        assert_eq!(eyes.set(), BOTH);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_requests_and_answers_none_is_stale_within_seconds() {
    let (world, mut eyes) = settled(|pods| pods).await;
    world.fake.set(Mode::Hangs);
    let begun = Instant::now();
    eyes.until_stale(&["no answer within 15 s"]).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    world.fake.set(Mode::Well);
    eyes.until_well().await;
    assert_eq!(eyes.set(), BOTH);
}

#[tokio::test(start_paused = true)]
async fn who_may_list_and_not_watch_is_told_so_and_still_hears_of_changes() {
    let (mut world, mut eyes) = settled(|pods| pods).await;
    world.fake.set(Mode::Refuses { verb: "watch", code: 403, body: None });
    eyes.until_stale(&["may not watch pods in the namespace prod", "kind: Role\n"]).await;
    world.start("p3", "10.0.0.3").await;
    let took = eyes.until(&THREE).await;
    assert!(took < Duration::from_secs(45), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn bookmarks_carry_a_quiet_watch_past_what_is_forgotten() {
    let prepare = |world: &Simulated| world.fake.world().bookmarks_every = Some(Duration::from_secs(10));
    let (mut world, mut eyes) = settled_with(prepare, |pods| pods).await;
    let other = json!({ "metadata": { "name": "other", "namespace": "elsewhere" } });
    for _ in 0..200 {
        world.fake.put("pods", other.clone());
        sleep(Duration::from_secs(1)).await;
    }
    // All of the 200 versions are too old for a watch now, but not what the last bookmark said.
    let last = world.fake.compact_but(30);
    sleep(2 * MINUTE).await;
    world.start("p3", "10.0.0.3").await;
    eyes.until(&THREE).await;
    let stats = eyes.pods.stats();
    assert!(stats.bookmarks > 20 && stats.watches >= 3, "{stats:?}");
    assert_eq!((stats.lists, stats.expired), (1, 0), "up to {last}: {stats:?}");
}

#[tokio::test(start_paused = true)]
async fn everything_is_listed_again_every_ten_minutes_or_so_and_nothing_is_published_for_it() {
    let (world, mut eyes) = settled(|pods| pods).await;
    let mut between = Vec::new();
    let mut last = Instant::now();
    for lists in 2..=8 {
        while eyes.pods.stats().lists < lists {
            sleep(Duration::from_secs(1)).await;
        }
        between.push(last.elapsed().as_secs());
        last = Instant::now();
    }
    assert!(between.iter().all(|seconds| (478..=724).contains(seconds)), "{between:?}");
    assert!(
        between.windows(2).any(|pair| pair[0].abs_diff(pair[1]) > 5),
        "all nodes would do it together: {between:?}"
    );
    assert_eq!(eyes.bench.sets(), 1);
    // One that a watch never told of is found by it.
    world.fake.lose("pods", NAMESPACE, "p1");
    sleep(Duration::from_secs(721)).await;
    assert_eq!(eyes.set(), ["p2@10.0.0.2"]);
    assert_eq!(world.fake.watches().1, 1);
}

#[tokio::test(start_paused = true)]
async fn a_question_is_answered_by_a_list_and_many_by_few() {
    let (world, mut eyes) = settled(|pods| pods).await;
    sleep(2 * ASK).await;
    let sets = eyes.bench.sets();
    eyes.bench.ask();
    eventually("an answer, though it is the same", async || eyes.bench.sets() == sets + 1).await;
    let (asked, begun) = (world.fake.asked("limit=500"), Instant::now());
    while begun.elapsed() < Duration::from_secs(5) {
        eyes.bench.ask();
        sleep(Duration::from_millis(10)).await;
    }
    let lists = world.fake.asked("limit=500") - asked;
    assert!((4..=6).contains(&lists), "{lists} lists in 5 s");
    assert_eq!(world.fake.watches().1, 1, "one after the other");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_loses_its_label_is_gone_and_one_that_gets_it_is_there() {
    let (world, mut eyes) = settled(|pods| pods).await;
    let mut stranger = pod("p2", "uid-2");
    stranger["metadata"]["labels"]["app.kubernetes.io/name"] = json!("orders");
    world.fake.put("pods", stranger);
    eyes.until(&["p1@10.0.0.1"]).await;
    let mut back = pod("p2", "uid-2");
    back["status"] = running(&["10.0.0.2", "fd00::2"], true);
    world.fake.put("pods", back);
    eyes.until(&["p1@10.0.0.1", "p2@10.0.0.2+[fd00::2]"]).await;
}

#[tokio::test(start_paused = true)]
async fn what_nobody_can_read_harms_nobody() {
    let lines = ["", "{", r#"{"type":"LATER","object":{}}"#, r#"{"type":"BOOKMARK","object":7}"#];
    for line in lines {
        let says = Mishap::Says(vec![line.to_owned()]);
        let (mut world, mut eyes) = settled_with(|world| world.fake.world().mishaps.push_back(says), |pods| pods).await;
        world.start("p3", "10.0.0.3").await;
        eyes.until(&THREE).await;
        // Whom a line is about that is no event at all nobody knows, so all are looked at.
        let lists = if line == "{" { 2 } else { 1 };
        assert_eq!(eyes.pods.stats().lists, lists, "{line}");
    }
    // One pod that cannot be read: known ones stay as they were, unknown ones are nobody.
    let (mut world, mut eyes) = settled(|pods| pods).await;
    for name in ["p1", "p9"] {
        let mut odd = pod(name, "x");
        odd["status"] = json!("gone");
        world.fake.put("pods", odd);
    }
    world.start("p3", "10.0.0.3").await;
    eyes.until(&THREE).await;
    sleep(ASK).await;
    let sets = eyes.bench.sets();
    eyes.bench.ask();
    eventually("a list", async || eyes.bench.sets() > sets).await;
    assert_eq!(eyes.set(), THREE);
    let stats = eyes.pods.stats();
    assert!(stats.garbage >= 4 && stats.failures == 0, "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_as_soon_as_it_begins_is_not_asked_for_again_and_again() {
    let (world, mut eyes) = settled(|pods| pods).await;
    world.fake.world().mishaps.extend(std::iter::repeat_n(Mishap::Ends, 1_000));
    world.fake.disconnect();
    let watches = eyes.pods.stats().watches;
    sleep(10 * MINUTE).await;
    let watches = eyes.pods.stats().watches - watches;
    assert!((15..=60).contains(&watches), "{watches} in 10 minutes");
    assert!(matches!(eyes.bench.health(), Some(Health::Stale(why)) if why.contains("as soon as it has begun")));
}

#[tokio::test(start_paused = true)]
async fn namespaces_have_a_watch_each_and_a_set_is_complete_when_all_have_been_listed() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    let mut other = pod("p2", "u2");
    other["metadata"]["namespace"] = json!("blue");
    other["status"] = running(&["10.0.0.2"], true);
    world.fake.put("pods", other);
    world.fake.world().mode = Mode::Down;
    let mut eyes = Eyes::open(world.pods().namespace("blue").namespace(NAMESPACE));
    world.fake.refuse_namespace(Some("blue"));
    world.fake.set(Mode::Well);
    eventually("who is known is published as an addition", async || eyes.set() == ["p1@10.0.0.1"]).await;
    let why = eyes.until_stale(&["namespace blue"]).await;
    assert!(why.contains("namespace: blue"), "{why}");
    sleep(MINUTE).await;
    assert_eq!(eyes.bench.sets(), 0, "nobody knows who is in blue");
    world.fake.refuse_namespace(None);
    eyes.until(&BOTH).await;
    eyes.until_well().await;
    assert_eq!(world.fake.watches(), (2, 2));
    // A pod of the same name in the second namespace is another one: the first keeps it.
    let mut twin = pod("p1", "u9");
    twin["metadata"]["namespace"] = json!("blue");
    twin["status"] = running(&["10.0.0.9"], true);
    world.fake.put("pods", twin);
    eventually("it is counted", async || eyes.pods.stats().conflicts > 0).await;
    assert_eq!(eyes.set(), BOTH);
}

#[tokio::test(start_paused = true)]
async fn a_list_can_come_as_a_watch_where_the_server_knows_how() {
    let prepare = |world: &Simulated| world.fake.world().knows_initial_events = true;
    let (mut world, mut eyes) = settled_with(prepare, Pods::streaming_lists).await;
    assert_eq!((world.fake.asked("limit="), eyes.pods.stats().lists), (0, 1));
    world.start("p3", "10.0.0.3").await;
    eyes.until(&THREE).await;
    assert_eq!(world.fake.asked("watch=true"), 1, "the same watch goes on");
    world.fake.set(Mode::Down);
    world.delete("p3").await;
    world.fake.compact();
    world.fake.set(Mode::Well);
    eyes.until(&BOTH).await;
    assert_eq!(world.fake.asked("limit="), 0);

    let (mut world, mut eyes) = settled(Pods::streaming_lists).await;
    assert_eq!(world.fake.asked("limit="), 1, "one that cannot is asked for pages");
    world.start("p3", "10.0.0.3").await;
    eyes.until(&THREE).await;
    assert_eq!(world.fake.asked("sendInitialEvents"), 1, "and not for anything else again");
}

#[tokio::test(start_paused = true)]
async fn half_of_a_state_that_comes_as_a_watch_is_not_published() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    world.start("p2", "10.0.0.2").await;
    let added = json!({ "type": "ADDED", "object": world.fake.get("pods", NAMESPACE, "p1") }).to_string();
    let half = Mishap::Half(vec![added]);
    {
        let mut state = world.fake.world();
        state.knows_initial_events = true;
        state.mishaps.extend([half.clone(), half]);
    }
    let mut eyes = Eyes::open(world.pods().streaming_lists());
    eyes.until(&BOTH).await;
    assert_eq!((eyes.bench.sets(), eyes.pods.stats().failures), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn who_goes_while_the_first_state_comes_is_not_a_part_of_it() {
    let mut world = Simulated::new();
    for (name, ip) in [("p1", "10.0.0.1"), ("p2", "10.0.0.2"), ("p3", "10.0.0.3")] {
        world.start(name, ip).await;
    }
    let line = |kind: &str, object: &Value| json!({ "type": kind, "object": object }).to_string();
    let pod = |name: &str| world.fake.get("pods", NAMESPACE, name).unwrap();
    let (p1, p3) = (pod("p1"), pod("p3"));
    let mut ended = p3.clone();
    ended["status"]["phase"] = json!("Succeeded");
    // The fake goes on with those who are still there, and the end of the first state.
    let says = [line("ADDED", &p1), line("ADDED", &p3), line("DELETED", &p1), line("MODIFIED", &ended)];
    world.delete("p1").await;
    world.delete("p3").await;
    {
        let mut state = world.fake.world();
        state.knows_initial_events = true;
        state.mishaps.push_back(Mishap::Says(says.into()));
    }
    let mut eyes = Eyes::open(world.pods().streaming_lists());
    eyes.until_well().await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!((eyes.set(), eyes.pods.stats().lists), (vec!["p2@10.0.0.2".to_owned()], 1));
}
