//! What the provider asks of an API server that is slow, overloaded or confused: little, and not all nodes at once.
//! In virtual time.

use std::time::Duration;

use discovery_kubernetes::Pods;
use groupcache_core::Health;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::{
    BOTH, Eyes, Simulated, THREE, World, eventually,
    fake::{Mishap, Mode},
    running, settled, settled_with,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn questions_during_slow_lists_do_not_keep_the_watch_from_opening() {
    let (mut world, mut eyes) = settled(|pods| pods).await;
    world.fake.world().list_takes = 3 * SECOND;
    let (before, begun) = (eyes.pods.stats(), Instant::now());
    let (mut looks, mut open) = (0, 0);
    while begun.elapsed() < MINUTE {
        eyes.bench.ask();
        sleep(SECOND / 4).await;
        looks += 1;
        open += world.fake.watches().0;
    }
    let (watches, lists) = (eyes.pods.stats().watches - before.watches, eyes.pods.stats().lists - before.lists);
    assert!(watches >= 5 && open * 3 >= looks, "{watches} watches, open at {open} of {looks} looks");
    assert!((5..=11).contains(&lists), "{lists} lists of 3 s: as much time between them");
    world.start("p3", "10.0.0.3").await;
    let took = eyes.until(&THREE).await;
    assert!(took < 4 * SECOND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn one_version_that_is_too_old_is_nothing_to_speak_of_and_the_second_in_a_row_is() {
    let (world, mut eyes) = settled(|pods| pods).await;
    sleep(10 * SECOND).await;
    world.fake.compact();
    world.fake.disconnect();
    let begun = Instant::now();
    while begun.elapsed() < 10 * SECOND {
        assert_eq!(eyes.bench.health(), Some(Health::Connected), "after {:?}", begun.elapsed());
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!((eyes.pods.stats().expired, eyes.pods.stats().lists), (1, 2));
    world.fake.set(Mode::Refuses { verb: "watch", code: 410, body: None });
    eyes.until_stale(&["cannot watch pods", "410"]).await;
    let lists = eyes.pods.stats().lists;
    sleep(10 * MINUTE).await;
    let lists = eyes.pods.stats().lists - lists;
    assert!((15..=60).contains(&lists), "{lists} lists in 10 minutes");
    world.fake.set(Mode::Well);
    eventually("it is tried again", async || world.fake.watches().0 == 1).await;
    eyes.until_well().await;
    sleep(3 * MINUTE).await;
    world.fake.compact();
    world.fake.disconnect();
    sleep(10 * SECOND).await;
    assert_eq!(eyes.bench.health(), Some(Health::Connected), "a watch has been good since");
}

#[tokio::test(start_paused = true)]
async fn many_nodes_that_must_list_at_the_same_time_do_not() {
    const NODES: usize = 20;
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    let mut all: Vec<_> = (0..NODES).map(|_| Eyes::open(world.pods())).collect();
    for eyes in &mut all {
        eyes.until_well().await;
    }
    sleep(10 * SECOND).await;
    world.fake.compact();
    world.fake.disconnect();
    let before = world.fake.asked("limit=");
    sleep(10 * SECOND).await;
    let at = world.fake.asked_at("limit=").split_off(before);
    assert_eq!(at.len(), NODES);
    let spread = at[NODES - 1] - at[0];
    assert!(spread > SECOND && spread < 6 * SECOND, "within {spread:?}");
    let crowd = at.windows(NODES / 2).map(|some| some[NODES / 2 - 1] - some[0]).min().unwrap();
    assert!(crowd > SECOND / 4, "half of them within {crowd:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_overloaded_is_asked_again_when_it_said_and_not_by_all_at_once() {
    let status = r#"{"kind":"Status","message":"too many requests","code":429,"details":{"retryAfterSeconds":20}}"#;
    let by_status = Mode::Refuses { verb: "", code: 429, body: Some(status) };
    for mode in [by_status, Mode::Overloaded { seconds: 20 }] {
        let (world, _eyes) = settled(|pods| pods).await;
        let before = world.fake.asked("/pods");
        world.fake.set(mode.clone());
        sleep(5 * MINUTE).await;
        let at = world.fake.asked_at("/pods").split_off(before);
        let between: Vec<_> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let (least, most) = (between.iter().min().unwrap(), between.iter().max().unwrap());
        assert!(*least >= 20 * SECOND && *most <= 31 * SECOND, "{mode:?}: {between:?}");
    }
    const NODES: usize = 20;
    let world = Simulated::new();
    let mut all: Vec<_> = (0..NODES).map(|_| Eyes::open(world.pods())).collect();
    for eyes in &mut all {
        eyes.until_well().await;
    }
    world.fake.set(Mode::Overloaded { seconds: 20 });
    sleep(2 * SECOND).await;
    let before = world.fake.asked("/pods");
    sleep(30 * SECOND).await;
    let at = world.fake.asked_at("/pods").split_off(before);
    let spread = at[NODES - 1] - at[0];
    assert!(spread > 3 * SECOND, "all within {spread:?}");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_fails_does_not_cost_the_watch() {
    let (mut world, mut eyes) = settled(|pods| pods).await;
    world.fake.world().mode = Mode::Refuses { verb: "list", code: 500, body: None };
    sleep(724 * SECOND).await;
    let why = eyes.until_stale(&["cannot list pods", "500"]).await;
    world.start("p3", "10.0.0.3").await;
    let took = eyes.until(&THREE).await;
    assert!(took < SECOND, "{took:?} with {why}");
    let before = eyes.pods.stats();
    sleep(10 * MINUTE).await;
    let after = eyes.pods.stats();
    assert!(after.watches - before.watches <= 10, "{before:?}, then {after:?}");
    assert!((15..=60).contains(&(after.failures - before.failures)), "{before:?}, then {after:?}");
    world.fake.world().mode = Mode::Well;
    let took = eyes.until_well().await;
    assert!(took < 31 * SECOND, "{took:?}");
    assert_eq!((eyes.pods.stats().lists, eyes.set()), (2, THREE.map(str::to_owned).to_vec()));
    // What had failed is forgotten with the list that has not.
    world.fake.world().mode = Mode::Refuses { verb: "list", code: 500, body: None };
    sleep(2 * SECOND).await;
    eyes.bench.ask();
    eyes.until_stale(&["cannot list pods", "500"]).await;
    world.fake.world().mode = Mode::Well;
    let took = eyes.until_well().await;
    assert!(took < SECOND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_fails_again_and_again_is_followed_by_a_list() {
    let (mut world, mut eyes) = settled(|pods| pods).await;
    world.fake.set(Mode::Refuses { verb: "watch", code: 500, body: None });
    sleep(SECOND / 4).await;
    world.start("p3", "10.0.0.3").await;
    let took = eyes.until(&THREE).await;
    assert!(took < 5 * SECOND, "what goes wrong may do so because of the version: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn credentials_that_are_refused_once_cost_a_connection_and_no_list() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    world.fake.world().bookmarks_every = Some(4 * SECOND);
    let mut eyes = Eyes::open(world.pods().namespace("blue"));
    eyes.until_well().await;
    world.start("p2", "10.0.0.2").await;
    eyes.until(&BOTH).await;
    let lists = eyes.pods.stats().lists;
    sleep(10 * SECOND).await;
    world.fake.compact_but(0); // what they know by events and bookmarks, not what they began with
    world.fake.set(Mode::Refuses { verb: "watch", code: 401, body: None });
    eyes.until_stale(&["401", "does not know the credentials"]).await;
    world.start("p3", "10.0.0.3").await;
    world.delete("p1").await;
    sleep(SECOND).await;
    world.fake.set(Mode::Well);
    eyes.until(&["p2@10.0.0.2", "p3@10.0.0.3"]).await;
    eyes.until_well().await;
    assert_eq!((lists, eyes.pods.stats().lists), (2, 2), "each namespace goes on where it was");
    assert_eq!(world.fake.watches(), (2, 2));
    // The lists every ten minutes are not put off by it.
    for _ in 0..4 {
        sleep(4 * MINUTE).await;
        world.fake.set(Mode::Refuses { verb: "watch", code: 401, body: None });
        sleep(SECOND).await;
        world.fake.set(Mode::Well);
    }
    assert!(eyes.pods.stats().lists >= 4, "{:?}", eyes.pods.stats());
}

#[tokio::test(start_paused = true)]
async fn credentials_that_are_refused_again_and_again_are_tried_less_and_less() {
    let (world, mut eyes) = settled(|pods| pods).await;
    let refusal = json!({ "type": "ERROR", "object": { "kind": "Status", "code": 401, "message": "expired" } });
    let says = Mishap::Says(vec![refusal.to_string()]);
    world.fake.world().mishaps.extend(std::iter::repeat_n(says, 10_000));
    world.fake.disconnect();
    let before = eyes.pods.stats();
    sleep(10 * MINUTE).await;
    let after = eyes.pods.stats();
    let watches = after.watches - before.watches;
    assert!((15..=60).contains(&watches), "{watches} watches in 10 minutes, each of which opens");
    assert_eq!(eyes.set(), BOTH);
}

#[tokio::test(start_paused = true)]
async fn a_list_may_be_slow_as_long_as_it_moves() {
    let mut world = Simulated::new();
    for n in 0..30 {
        world.start(&format!("p{n:02}"), &format!("10.0.0.{n}")).await;
    }
    world.fake.world().list_pace = Some((500, 2 * SECOND));
    let mut eyes = Eyes::open(world.pods());
    let begun = Instant::now();
    while eyes.bench.sets() == 0 {
        assert!(begun.elapsed() < 2 * MINUTE, "{:?}", eyes.bench.health());
        sleep(SECOND / 4).await;
    }
    assert_eq!((eyes.set().len(), eyes.pods.stats().failures), (30, 0));
    assert!(begun.elapsed() > 20 * SECOND, "{:?}", begun.elapsed());
    for (pace, words) in
        [((500, 16 * SECOND), "no more of the answer within 15 s"), ((10, 10 * SECOND), "no end within 120 s")]
    {
        world.fake.world().list_pace = Some(pace);
        eyes.bench.ask();
        sleep(MINUTE * 2).await;
        eyes.until_stale(&["cannot list pods", words]).await;
        world.fake.world().list_pace = None;
        sleep(MINUTE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_without_end_and_a_page_of_any_size_are_errors() {
    let (world, mut eyes) = settled(|pods| pods).await;
    world.fake.world().is_endless = true;
    sleep(2 * SECOND).await;
    eyes.bench.ask();
    eyes.until_stale(&["cannot list pods", "1000 pages", "narrow the selector"]).await;
    assert_eq!(eyes.set(), BOTH);
    world.fake.world().is_endless = false;
    eyes.until_well().await;
    let long: &'static str = Box::leak(" ".repeat((32 << 20) + 1).into_boxed_str());
    world.fake.world().mode = Mode::Refuses { verb: "list", code: 200, body: Some(long) };
    sleep(2 * SECOND).await;
    eyes.bench.ask();
    eyes.until_stale(&["cannot list pods", "33554432 bytes", "page_size"]).await;
    assert_eq!(eyes.set(), BOTH);
}

#[tokio::test(start_paused = true)]
async fn watches_that_say_nothing_again_and_again_are_no_source() {
    let silent = |world: &Simulated| {
        world.fake.world().mishaps.extend(std::iter::repeat_n(Mishap::Silent, 4));
        world.fake.world().bookmarks_every = Some(MINUTE / 2);
    };
    let (mut world, mut eyes) = settled_with(silent, |pods| pods).await;
    let begun = Instant::now();
    world.start("p3", "10.0.0.3").await;
    while eyes.pods.stats().silent < 2 {
        assert_eq!(eyes.bench.health(), Some(Health::Connected));
        sleep(SECOND).await;
    }
    eyes.until_stale(&["cannot watch pods", "says nothing"]).await;
    eyes.until(&THREE).await;
    assert!(begun.elapsed() < 5 * MINUTE, "by a list: {:?}", begun.elapsed());
    while eyes.pods.stats().silent < 4 {
        assert!(matches!(eyes.bench.health(), Some(Health::Stale(_))), "one that opens is not one that speaks");
        sleep(SECOND).await;
    }
    eyes.until_well().await;
    world.delete("p3").await;
    eyes.until(&BOTH).await;
    // One more, alone.
    world.fake.world().mishaps.push_back(Mishap::Silent);
    world.fake.disconnect();
    while eyes.pods.stats().silent < 5 {
        assert_eq!(eyes.bench.health(), Some(Health::Connected));
        sleep(SECOND).await;
    }
    sleep(SECOND).await;
    assert_eq!(eyes.bench.health(), Some(Health::Connected), "some have spoken since");
}

#[tokio::test(start_paused = true)]
async fn machines_without_a_zone_are_not_asked_for_again_and_again_and_never_in_a_burst() {
    const MACHINES: usize = 100;
    const ZONES: usize = 50;
    let mut world = Simulated::new();
    for n in 0..MACHINES {
        let name = format!("p{n:03}");
        world.create(&name).await;
        world.change(&name, |pod| pod["spec"]["nodeName"] = json!(format!("m{n:03}")));
        world.status(&name, running(&[&format!("10.0.0.{n}")], true)).await;
        let labels = if n < ZONES { json!({ "topology.kubernetes.io/zone": "a" }) } else { json!({}) };
        world.fake.put("nodes", json!({ "metadata": { "name": format!("m{n:03}"), "labels": labels } }));
    }
    let mut eyes = Eyes::open(world.pods().zones_from_nodes());
    eyes.until_well().await;
    let (begun, sets) = (Instant::now(), eyes.pods.stats().published);
    sleep(SECOND).await;
    let asked = world.fake.asked("/nodes/");
    assert!(asked <= 15, "{asked} within a second");
    world.create("late").await;
    world.status("late", running(&["10.0.1.1"], true)).await;
    let late = || "late@10.0.1.1".to_owned();
    let took = eventually("a pod is no zone, and waits for none", async || eyes.set().contains(&late())).await;
    assert!(took < SECOND / 4, "{took:?}");
    sleep(6 * SECOND).await;
    let sets = eyes.pods.stats().published - sets;
    assert!((3..=10).contains(&sets), "{sets} sets while {ZONES} zones became known");
    world.delete("late").await;
    while begun.elapsed() < 30 * MINUTE {
        eyes.bench.ask();
        sleep(5 * SECOND).await;
    }
    assert_eq!(world.fake.asked("/nodes/"), MACHINES);
    assert!(eyes.set().contains(&"p000@10.0.0.0 in a".to_owned()), "{:?}", eyes.set());
    sleep(40 * MINUTE).await;
    eyes.bench.ask();
    sleep(MINUTE).await;
    assert_eq!(world.fake.asked("/nodes/"), 2 * MACHINES - ZONES, "those without a zone may have got one");
    assert_eq!(world.fake.asked("/nodes/m000"), 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_of_this_is_worse_where_lists_come_as_watches() {
    let prepare = |world: &Simulated| world.fake.world().knows_initial_events = true;
    let (mut world, mut eyes) = settled_with(prepare, Pods::streaming_lists).await;
    sleep(10 * SECOND).await;
    eyes.bench.ask();
    sleep(2 * SECOND).await;
    assert_eq!((world.fake.watches(), eyes.pods.stats().lists), ((1, 1), 2), "one after the other");
    world.start("p3", "10.0.0.3").await;
    eyes.until(&THREE).await;
}
