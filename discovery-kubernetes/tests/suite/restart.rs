//! Restarts of the API server: etcd from a backup, with versions of the past, and the first second without Roles.
//! In virtual time.

use std::time::Duration;

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

/// Raises the version of the API server, as objects elsewhere do.
fn age(world: &Simulated) {
    let other = json!({ "metadata": { "name": "other", "namespace": "elsewhere" } });
    for _ in 0..900 {
        world.fake.put("pods", other.clone());
    }
}

/// Waits in steps for the set, at most `limit` long.
async fn until_within(observer: &mut Observer, expected: &[&str], limit: Duration) {
    let begun = Instant::now();
    while observer.set() != expected {
        assert!(begun.elapsed() < limit, "{:?} after {:?}", observer.set(), begun.elapsed());
        sleep(SECOND).await;
    }
}

/// Checks that a watch from a version of the future, which is accepted and silent, is followed by a list at its end.
#[tokio::test(start_paused = true)]
async fn watch_from_the_future_is_followed_by_list() {
    let (mut world, mut observer) = two_pods_with(age, |pods| pods).await;
    sleep(10 * SECOND).await;
    world.fake.restore();
    world.start("p3", "10.0.0.3").await;
    until_within(&mut observer, &THREE, 2 * MINUTE + 10 * SECOND).await;
    let lists = observer.pods.stats().lists;
    world.delete("p3").await;
    until_within(&mut observer, &TWO, SECOND).await;
    sleep(5 * MINUTE).await;
    assert_eq!((lists, observer.pods.stats().lists), (2, 2), "the version of the list is one of the present");
    assert_eq!(observer.bench.health(), Some(Health::Connected));
}

/// Checks that connections which are cut before a bookmark is due do not hide a version of the future.
#[tokio::test(start_paused = true)]
async fn cut_watches_from_the_future_are_followed_by_list() {
    let (mut world, mut observer) = two_pods_with(age, |pods| pods).await;
    sleep(10 * SECOND).await;
    world.fake.restore();
    world.start("p3", "10.0.0.3").await;
    let begun = Instant::now();
    while observer.set() != THREE {
        assert!(begun.elapsed() < 2 * MINUTE, "{:?}", begun.elapsed());
        sleep(20 * SECOND).await;
        world.fake.disconnect();
    }
}

/// Checks that a list follows the answer 504 to a version of the future.
#[tokio::test(start_paused = true)]
async fn too_large_version_is_followed_by_list() {
    let (mut world, mut observer) = two_pods_with(age, |pods| pods).await;
    sleep(10 * SECOND).await;
    world.fake.state().refuses_future = true;
    world.fake.restore();
    world.start("p3", "10.0.0.3").await;
    until_within(&mut observer, &THREE, 5 * SECOND).await;
    observer.until_connected().await;
    assert_eq!((observer.pods.stats().lists, observer.pods.stats().expired), (2, 1));
}

/// Checks that a quiet watch with bookmarks costs no list, and that a list follows each watch without bookmarks.
#[tokio::test(start_paused = true)]
async fn only_watch_without_bookmarks_is_followed_by_list() {
    for (sends_no_bookmarks, least, most) in [(false, 0, 0), (true, 3, 9)] {
        let prepare = |world: &Simulated| world.fake.state().sends_no_bookmarks = sends_no_bookmarks;
        let (_world, observer) = two_pods_with(prepare, |pods| pods).await;
        sleep(7 * MINUTE).await;
        let lists = observer.pods.stats().lists - 1;
        assert!((least..=most).contains(&lists), "{lists} lists in 7 minutes");
        assert_eq!(observer.pods.stats().published, 1);
    }
}

/// Checks that the 403 of a server that has just started names no Role, costs no list, and that the Role is named in
/// one line once the right is missing a second later.
#[tokio::test(start_paused = true)]
async fn role_is_named_at_second_refusal_in_a_row() {
    let prepare = |world: &Simulated| world.fake.state().bookmarks_every = Some(SECOND);
    let (world, mut observer) = two_pods_with(prepare, |pods| pods).await;
    for _ in 0..20 {
        world.fake.set(Mode::Down);
        sleep(SECOND / 10).await;
        world.fake.set(Mode::Normal);
        let begun = Instant::now();
        while begun.elapsed() < 10 * SECOND {
            if let Some(Health::Stale(why)) = observer.bench.health() {
                assert!(!why.contains("Role") && !why.contains("kubectl"), "{why}");
            }
            sleep(SECOND / 20).await;
        }
        assert_eq!(observer.bench.health(), Some(Health::Connected));
    }
    assert_eq!(observer.pods.stats().lists, 1, "the version of the watch outlives the 403");
    world.fake.set(Mode::Refuses { verb: "", code: 403, body: None });
    let why = observer.until_stale(&["this node may not", "kubectl -n prod create role pod-reader"]).await;
    assert_eq!(why.lines().count(), 1, "{why}");
}

/// Checks that a failed list is repeated once the API server answers again, and not only at the time of the next
/// periodic list.
#[tokio::test(start_paused = true)]
async fn failed_list_is_due_until_one_is_good() {
    for minutes in 1..8 {
        let (world, mut observer) = two_pods(|pods| pods).await;
        world.fake.set(Mode::Down);
        sleep(minutes * MINUTE).await;
        world.fake.set(Mode::Normal);
        let took = observer.until_connected().await;
        assert!(took < 40 * SECOND, "{took:?} after {minutes} minutes");
    }
}

/// Checks that each answer that is no 403 begins the count of refusals anew.
#[tokio::test(start_paused = true)]
async fn other_failure_ends_a_row_of_refusals() {
    let (world, mut observer) = two_pods(|pods| pods).await;
    let event = |code: u16| {
        json!({ "type": "ERROR", "object": { "kind": "Status", "code": code, "message": "no" } }).to_string()
    };
    let faults = [403, 500].into_iter().cycle().take(40);
    world.fake.state().watch_faults.extend(faults.map(|code| WatchFault::BeginsWith(vec![event(code)])));
    world.fake.disconnect();
    eventually("all faults have been met", async || {
        if let Some(Health::Stale(why)) = observer.bench.health() {
            assert!(!why.contains("kubectl"), "{why}");
        }
        sleep(SECOND).await;
        world.fake.state().watch_faults.len() < 34
    })
    .await;
}
