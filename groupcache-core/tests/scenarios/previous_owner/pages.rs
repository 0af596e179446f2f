//! Pages of a previous owner, which is a stub, and their receipt by a node.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use groupcache_core::{BoxError, Limits, bytes::Bytes};
use prost::Message;
use tokio::time::Instant;

use super::reads::Picky;
use super::stub::{DECLINED, PAGE, Scene, Stub, UNSUPPORTED, not_held, value};
use crate::proto::{Answer, Handed, Page, Request};
use crate::support::{eventually, raw::OVERLOADED};

fn page(entries: Vec<Handed>, next: u64) -> Answer {
    let value = Page { entries, next, ..Page::default() }.encode_to_vec().into();
    Answer { status: PAGE, value, ..Answer::default() }
}

/// Time without a received value after which no further one is expected.
const AT_REST: Duration = Duration::from_millis(300);

fn handed(key: &str, value: &str) -> Handed {
    Handed {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        age_ms: 50_000,
        remaining_ms: Some(60_000),
        as_of_age_ms: None,
    }
}

fn all(keys: &[String]) -> Vec<Handed> {
    keys.iter().map(|key| handed(key, "from a")).collect()
}

/// Returns a function that answers page requests with these entries and a last empty page, and holds no key that is
/// read alone.
fn in_pages(pages: Vec<Vec<Handed>>) -> impl FnMut(&Request) -> Option<Answer> {
    move |request| {
        if request.op != 4 {
            return Some(not_held());
        }
        let entries = pages.get(request.cursor as usize).cloned();
        let next = if entries.is_some() { request.cursor + 1 } else { 0 };
        Some(page(entries.unwrap_or_default(), next))
    }
}

/// Waits until all pages have been requested and received. A page is stored while the next one is requested, so that
/// the number of received values comes to rest a little later than the requests.
async fn wait_for_pages(scene: &Scene, pages: usize) {
    eventually("b requests all pages", || scene.stub.page_requests().len() == pages).await;
    let mut last = (scene.group.stats().handover_received, Instant::now());
    eventually("b has stored all pages", || {
        let received = scene.group.stats().handover_received;
        if received != last.0 {
            last = (received, Instant::now());
        }
        last.1.elapsed() >= AT_REST
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn received_values_keep_age_and_remaining_time() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(300);
    let pages: Vec<_> = keys.chunks(100).map(all).collect();
    scene.stub.answer_with(in_pages(pages));
    scene.drain_a().await;
    wait_for_pages(&scene, 4).await;
    eventually("b has stored the last page", || scene.group.inspect().entries() == 300).await;
    for key in &keys {
        assert_eq!(scene.group.get(key).await.unwrap(), "from a");
    }
    let entries = scene.group.inspect().local_entries(1000);
    assert!(entries.iter().all(|entry| (50..60).contains(&entry.age.as_secs())));
    assert!(entries.iter().all(|entry| entry.fresh_for.is_some_and(|left| (50..=60).contains(&left.as_secs()))));
    let stats = scene.group.stats();
    assert_eq!(
        (stats.handover_received, stats.handover_received_bytes, stats.loads, stats.previous_owner_reads),
        (300, 300 * 6, 0, 0)
    );
    assert_eq!(scene.stub.page_requests().iter().map(|request| request.cursor).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

/// Checks a page that holds a key which `b` has cached already, a value without remaining time, a value that is not
/// UTF-8, an empty key and a key of 1,025 bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_replaces_no_value_and_stores_no_invalid_one() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(5);
    scene.stub.answer_with(|request| (request.op != 4).then(|| value("first")));
    scene.drain_a().await;
    eventually("b requests a page", || scene.stub.page_requests().len() == 1).await;
    assert_eq!(scene.group.get(&keys[0]).await.unwrap(), "first");
    scene.stub.answer_with(in_pages(Vec::new()));
    let mut entries: Vec<_> = keys.iter().map(|key| handed(key, "second")).collect();
    entries[1].remaining_ms = Some(0);
    entries[2].value = Bytes::from_static(&[0xff]);
    entries.insert(0, handed("", "invalid key"));
    entries.insert(0, handed(&"k".repeat(1025), "invalid key"));
    scene.stub.send_answer(Answer { id: scene.stub.page_requests()[0].id, ..page(entries, 1) });
    wait_for_pages(&scene, 2).await;
    for (key, is_second) in keys.iter().zip([false, false, false, true, true]) {
        let got = scene.group.get(key).await.unwrap();
        assert_eq!(got == "second", is_second, "{key}: {got}");
    }
    assert_eq!(scene.group.get(&keys[0]).await.unwrap(), "first");
}

/// Checks a clear that the previous owner may not have heard of, followed by another pull for an unrelated reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cleared_values_do_not_return_with_a_later_pull() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(3);
    scene.stub.answer_with(in_pages(Vec::new()));
    scene.drain_a().await;
    wait_for_pages(&scene, 1).await;
    scene.group.clear().await.unwrap().log_pending();
    scene.stub.answer_with(in_pages(vec![all(&keys)]));
    // A new group makes node b pull again.
    let other = scene.b.group::<String>("other").capacity_bytes(1 << 20);
    let _other = other.loader(async |key: &str| Ok::<_, BoxError>(key.to_owned())).build().unwrap();
    eventually("b requests another page", || scene.stub.page_requests().len() >= 2).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!((scene.group.inspect().entries(), scene.group.stats().handover_received), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_does_not_undo_recent_or_concurrent_writes() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(6);
    scene.stub.answer_with(|request| (request.op != 4).then(not_held));
    // A write shortly before the key moves, which the stub may not have heard of.
    scene.group.remove(&keys[0]).await.unwrap().log_pending();
    scene.drain_a().await;
    eventually("b requests a page", || scene.stub.page_requests().len() == 1).await;
    scene.group.remove(&keys[1]).await.unwrap().log_pending();
    scene.group.set(&keys[2], "set").await.unwrap().log_pending();
    // A set and a remove, after which the key is not cached.
    scene.group.set(&keys[3], "set").await.unwrap().log_pending();
    scene.group.remove(&keys[3]).await.unwrap().log_pending();
    scene.stub.answer_with(in_pages(Vec::new()));
    scene.stub.send_answer(Answer { id: scene.stub.page_requests()[0].id, ..page(all(&keys), 1) });
    wait_for_pages(&scene, 2).await;
    let mut got = Vec::new();
    for key in &keys {
        got.push(scene.group.get(key).await.unwrap());
    }
    for written in [0, 1, 3] {
        assert!(got[written].ends_with("by load 1"), "{written}: {got:?}");
    }
    assert_eq!((got[2].as_str(), got[4].as_str(), got[5].as_str()), ("set", "from a", "from a"));
}

/// Checks that a page undoes no write or load since the keys moved, also when the page was requested more than a second
/// later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_does_not_undo_older_writes_since_the_move() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(3);
    scene.stub.answer_with(|request| (request.op != 4).then(not_held));
    scene.drain_a().await;
    eventually("b requests a page", || scene.stub.page_requests().len() == 1).await;
    scene.group.remove(&keys[0]).await.unwrap().log_pending();
    // A load since the key moved: the value of the stub may be older.
    scene.group.get(&keys[1]).await.unwrap();
    // Waits out the second after a write in which no page is stored: a condition of time alone.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    // The first page arrives late and empty. The request for the second page follows after that second.
    let pages = vec![Vec::new(), all(&keys)];
    scene.stub.answer_with(in_pages(pages));
    scene.stub.send_answer(Answer { id: scene.stub.page_requests()[0].id, ..page(Vec::new(), 1) });
    wait_for_pages(&scene, 3).await;
    assert!(scene.group.get(&keys[0]).await.unwrap().ends_with("by load 1"));
    assert!(scene.group.get(&keys[1]).await.unwrap().ends_with("by load 1"));
    assert_eq!(scene.group.get(&keys[2]).await.unwrap(), "from a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clear_ends_the_pull() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(4);
    scene.stub.answer_with(|request| (request.op != 4).then(not_held));
    scene.drain_a().await;
    eventually("b requests a page", || scene.stub.page_requests().len() == 1).await;
    scene.group.clear().await.unwrap().log_pending();
    // Waits out the second after a write in which no page is stored. A page requested later would be stored.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    scene.stub.answer_with(in_pages(vec![Vec::new(), all(&keys[2..])]));
    scene.stub.send_answer(Answer { id: scene.stub.page_requests()[0].id, ..page(all(&keys[..2]), 1) });
    // Long enough for a request for the next page, which must not come.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let requests = scene.stub.page_requests();
    assert_eq!(requests.len(), 3, "the second request was under way, and the third ends the hand-over");
    assert_eq!(requests[2].cursor, u64::MAX);
    for key in &keys {
        assert!(scene.group.get(key).await.unwrap().ends_with("by load 1"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_of_keys_moved_on_is_not_stored() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(10);
    scene.stub.answer_with(|request| (request.op != 4).then(not_held));
    scene.drain_a().await;
    eventually("b requests a page", || scene.stub.page_requests().len() == 1).await;
    scene.stub.return_to_ready();
    eventually("a owns its share again", || scene.b.members().iter().filter(|member| member.owns).count() == 2).await;
    scene.stub.answer_with(in_pages(Vec::new()));
    scene.stub.send_answer(Answer { id: scene.stub.page_requests()[0].id, ..page(all(&keys), 1) });
    eventually("the pull ends", || scene.stub.page_requests().len() >= 2).await;
    assert_eq!((scene.group.stats().handover_received, scene.group.inspect().entries()), (0, 0));
}

/// Checks that a peer which declines or does not support page requests gets no second one, and still answers reads of
/// single keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn declined_page_request_is_not_repeated() {
    for status in [DECLINED, UNSUPPORTED, 99] {
        let scene = Scene::start().await;
        let keys = scene.keys_of_a(3);
        scene.stub.answer_with(move |request| {
            Some(if request.op == 4 { Answer { status, ..Answer::default() } } else { value("from a") })
        });
        scene.drain_a().await;
        eventually("b requests a page", || scene.stub.page_requests().len() == 1).await;
        for key in &keys {
            assert_eq!(scene.group.get(key).await.unwrap(), "from a", "a answers reads of single keys");
        }
        assert_eq!(scene.stub.page_requests().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn value_panicking_in_decode_or_weight_is_skipped() {
    let scene = Scene::start().await;
    assert!(scene.b.remove_group("data"));
    let load = async |_: &(), key: &str| Ok::<_, BoxError>(Picky(key.to_owned()));
    let group = scene.b.group::<Picky>("data").capacity_bytes(1 << 20).loader_with((), load).build().unwrap();
    let keys = scene.keys_of_a(3);
    let values = ["panic", "heavy", "from a"];
    let entries = keys.iter().zip(values).map(|(key, value)| handed(key, value)).collect();
    scene.stub.answer_with(in_pages(vec![entries]));
    scene.drain_a().await;
    eventually("the third value is stored", || group.stats().handover_received == 1).await;
    for (key, value) in keys.iter().zip([&keys[0], &keys[1], "from a"]) {
        assert_eq!(group.get(key).await.unwrap().0, value);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn value_panicking_on_drop_does_not_end_the_pull() {
    let scene = Scene::start().await;
    assert!(scene.b.remove_group("data"));
    let load = async |_: &(), key: &str| Ok::<_, BoxError>(Picky(key.to_owned()));
    let group = scene.b.group::<Picky>("data").capacity_bytes(1 << 20).loader_with((), load).build().unwrap();
    let keys = scene.keys_of_a(2);
    let (entries, is_ready) =
        (vec![handed(&keys[0], "explosive"), handed(&keys[1], "from a")], Arc::new(AtomicBool::new(false)));
    let (mut pages, later) = (in_pages(vec![entries]), Arc::clone(&is_ready));
    scene.stub.answer_with(move |request| match request.op == 4 && !later.load(Relaxed) {
        true => Some(Answer { status: OVERLOADED, retry_after_ms: 200, ..Answer::default() }),
        false => pages(request),
    });
    scene.drain_a().await;
    // After this remove the value of a for the first key is not stored, so that it is dropped.
    group.get(&keys[0]).await.unwrap();
    group.remove(&keys[0]).await.unwrap().log_pending();
    is_ready.store(true, Relaxed);
    eventually("the second value is stored", || group.stats().handover_received == 1).await;
    assert_eq!((&*group.get(&keys[0]).await.unwrap().0, &*group.get(&keys[1]).await.unwrap().0), (&*keys[0], "from a"));
}

/// Checks that a page request which has no room among the requests to the peer is made once there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_request_without_room_is_retried() {
    let mut limits = Limits::default();
    limits.max_in_flight_per_peer = 1;
    let scene = Scene::with(Stub::new(), |builder| builder.limits(limits)).await;
    let keys = scene.keys_of_a(100);
    let (mut pages, first_get) = (in_pages(vec![all(&keys[1..])]), Arc::new(AtomicU64::new(0)));
    let first = Arc::clone(&first_get);
    scene.stub.answer_with(move |request| match request.op == 0 && request.role == 0 {
        true => {
            first.store(request.id, Relaxed);
            None
        }
        false => pages(request),
    });
    let waiting = scene.get(&keys[0]);
    eventually("b gets a key from a", || first_get.load(Relaxed) > 0).await;
    scene.drain_a().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(scene.stub.page_requests().len(), 0, "the get takes the only place");
    scene.stub.send_answer(Answer { id: first_get.load(Relaxed), ..value("from a") });
    waiting.await.unwrap();
    eventually("b receives the values", || scene.group.stats().handover_received == 99).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_page_ends_the_pull() {
    let invalid = [
        Answer { status: PAGE, value: Bytes::from_static(&[0xff; 64]), ..Answer::default() },
        // The cursor of the next page is that of the first one.
        page(vec![handed("key-1", "from a")], 0),
    ];
    for answer in invalid {
        let scene = Scene::start().await;
        scene.stub.answer_with(move |request| Some(if request.op == 4 { answer.clone() } else { not_held() }));
        scene.drain_a().await;
        eventually("b requests a page", || scene.stub.page_requests().len() == 1).await;
        assert!(scene.group.get("another").await.unwrap().ends_with("by load 1"), "b serves other gets");
        assert_eq!(scene.stub.page_requests().len(), 1);
    }
}

/// Checks a group of 8 MiB to which the previous owner offers 30 MB: the budget holds, the pull ends after the free
/// part of the budget and a quarter of it, and the pages received first are not evicted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pull_keeps_the_budget_and_the_first_pages() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(300);
    let large = "x".repeat(100_000);
    let pages: Vec<Vec<_>> = keys.iter().map(|key| vec![handed(key, &large)]).collect();
    scene.stub.answer_with(in_pages(pages));
    scene.drain_a().await;
    let (mut before, mut unchanged) = (0, 0);
    eventually("the pages end", || {
        assert!(scene.group.inspect().bytes() <= scene.group.inspect().capacity_bytes());
        let requests = scene.stub.page_requests().len();
        unchanged = if requests == before { unchanged + 1 } else { 0 };
        before = requests;
        requests > 70 && unchanged > 50
    })
    .await;
    let requests = scene.stub.page_requests().len();
    assert!((70..=110).contains(&requests), "{requests} page requests for 1.25 budgets");
    assert!(scene.group.inspect().entries() > 55, "{} entries", scene.group.inspect().entries());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pull_rate_is_limited() {
    let mut limits = Limits::default();
    limits.handover_bytes_per_second = 200_000;
    let scene = Scene::with(Stub::new(), |builder| builder.limits(limits)).await;
    let keys = scene.keys_of_a(5);
    let large = "x".repeat(100_000);
    let pages: Vec<Vec<_>> = keys.iter().map(|key| vec![handed(key, &large)]).collect();
    scene.stub.answer_with(in_pages(pages));
    let begun = Instant::now();
    scene.drain_a().await;
    wait_for_pages(&scene, 6).await;
    // The first page is free, and each of the four others takes half a second. The promise is about time.
    assert!(begun.elapsed() >= Duration::from_millis(1_900), "{:?}", begun.elapsed());
}
