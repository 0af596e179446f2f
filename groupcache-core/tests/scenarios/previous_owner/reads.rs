//! Previous-owner reads: requests for one key to its previous owner.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use groupcache_core::{
    BoxError, Limits, LoadError, Loaded, Node, Value,
    bytes::{Bytes, BytesMut},
    loader::BatchLoader,
    value::{DecodeError, EncodeError},
};
use tokio::task::JoinSet;

use super::stub::{LOADER_ERROR, Scene, Stub, UNSUPPORTED, not_held, value};
use crate::proto::Answer;
use crate::support::{
    Cluster, Loads, eventually,
    raw::{OVERLOADED, TOO_LARGE},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn value_read_keeps_its_age_and_remaining_time() {
    let scene = Scene::start().await;
    let key = &scene.keys_of_a(1)[0];
    scene.stub.answer_with(|_| Some(Answer { age_ms: 50_000, remaining_ms: Some(60_000), ..value("from a") }));
    scene.drain_a().await;
    assert_eq!(scene.group.get(key).await.unwrap(), "from a");
    assert_eq!(scene.group.get(key).await.unwrap(), "from a");
    let entry = scene
        .group
        .inspect()
        .local_entries(10)
        .into_iter()
        .find(|entry| entry.key == *key)
        .expect("the value is cached");
    assert!((50..60).contains(&entry.age.as_secs()), "{:?}", entry.age);
    assert!((50..=60).contains(&entry.fresh_for.expect("the time is limited").as_secs()), "{:?}", entry.fresh_for);
    let stats = scene.group.stats();
    assert_eq!((stats.previous_owner_reads, stats.previous_owner_hits, stats.loads, stats.hits), (1, 1, 0, 1));
    assert_eq!(scene.stub.reads().len(), 1);
    assert!(scene.stub.reads()[0].no_load, "the previous owner must not load");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_gets_share_one_read() {
    let scene = Scene::start().await;
    let key = &scene.keys_of_a(1)[0];
    scene.stub.answer_with(|_| None);
    scene.drain_a().await;
    let mut gets = JoinSet::new();
    for _ in 0..100 {
        let (group, key) = (scene.group.clone(), key.clone());
        gets.spawn(async move { group.get(&key).await.unwrap() });
    }
    let values = gets.join_all().await;
    assert!(values.iter().all(|value| value.ends_with("by load 1")), "without an answer, one load serves all");
    assert_eq!(scene.stub.reads().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_value_is_loaded_and_reads_go_on() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(10);
    scene.stub.answer_with(|_| Some(not_held()));
    scene.drain_a().await;
    for key in &keys {
        assert!(scene.group.get(key).await.unwrap().ends_with("by load 1"));
    }
    // Answers are late now and then on a busy machine, and pauses follow.
    let reads = scene.stub.reads().len();
    assert!((2..=10).contains(&reads), "{reads}");
    assert_eq!((scene.gate.loads.total(), scene.group.stats().previous_owner_hits), (10, 0));
}

/// Checks that reads from a peer end after 64 misses from the start, and after 256 reads with fewer than 5 hits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_end_at_a_peer_with_next_to_no_values() {
    // The share of reads that the stub answers, and the expected number of reads for 600 keys. On a busy machine late
    // answers cause pauses, so that there are fewer reads, or a few more, because late answers are not counted.
    for (hits, of, expected) in [(0, 1, 1..=64 + 32), (1, 64, 1..=256 + 32)] {
        let scene = Scene::start().await;
        let keys = scene.keys_of_a(600);
        let mut n = 0;
        scene.stub.answer_with(move |_| {
            n += 1;
            Some(if hits > 0 && n % of == 0 { value("from a") } else { not_held() })
        });
        scene.drain_a().await;
        for key in &keys {
            scene.group.get(key).await.unwrap();
        }
        let reads = scene.stub.reads().len();
        assert!(expected.contains(&reads), "{hits} of {of}: {reads}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn error_or_unsupported_answer_ends_reads_at_a_peer() {
    let failures = [
        Answer { status: LOADER_ERROR, ..Answer::default() },
        Answer { status: UNSUPPORTED, ..Answer::default() },
        Answer { status: 99, ..Answer::default() },
    ];
    for failure in failures {
        let scene = Scene::start().await;
        let keys = scene.keys_of_a(10);
        let answer = failure.clone();
        scene.stub.answer_with(move |_| Some(answer.clone()));
        scene.drain_a().await;
        for key in &keys {
            assert!(scene.group.get(key).await.unwrap().ends_with("by load 1"));
        }
        assert_eq!(scene.stub.reads().len(), 1, "{failure:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overloaded_or_too_large_answer_does_not_end_reads() {
    for status in [OVERLOADED, TOO_LARGE] {
        let scene = Scene::start().await;
        let keys = scene.keys_of_a(10);
        let mut reads = 0;
        scene.stub.answer_with(move |_| {
            reads += 1;
            Some(if reads == 1 { Answer { status, ..Answer::default() } } else { value("from a") })
        });
        scene.drain_a().await;
        assert!(scene.group.get(&keys[0]).await.unwrap().ends_with("by load 1"));
        for key in &keys[1..] {
            assert_eq!(scene.group.get(key).await.unwrap(), "from a", "after {status}");
        }
    }
}

/// Checks that a read which had no room among the requests to the peer does not count against the peer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_request_table_does_not_end_reads() {
    let mut limits = Limits::default();
    limits.max_in_flight_per_peer = 1;
    let scene = Scene::with(Stub::new(), |builder| builder.limits(limits)).await;
    let (keys, first_get) = (scene.keys_of_a(20), Arc::new(AtomicU64::new(0)));
    let first = Arc::clone(&first_get);
    scene.stub.answer_with(move |request| match (request.op, request.role) {
        (0, 0) => {
            first.store(request.id, Relaxed);
            None
        }
        (0, _) => Some(value("from a")),
        _ => Some(not_held()),
    });
    let waiting = scene.get(&keys[0]);
    eventually("b gets a key from a", || first_get.load(Relaxed) > 0).await;
    scene.drain_a().await;
    assert!(scene.group.get(&keys[1]).await.unwrap().ends_with("by load 1"));
    scene.stub.send_answer(Answer { id: first_get.load(Relaxed), ..value("from a") });
    waiting.await.unwrap();
    // A page request may take the only place at some of these moments.
    let mut hits = 0;
    for key in &keys[2..] {
        hits += usize::from(scene.group.get(key).await.unwrap() == "from a");
    }
    assert!(hits > 10, "{hits} of 18");
}

/// Checks that a pause follows each late answer from the third in a row on, and that the seventh ends the reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_peer_is_given_up_after_seven_reads() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(400);
    scene.stub.answer_with(|_| None);
    scene.drain_a().await;
    for key in &keys[..100] {
        assert!(scene.group.get(key).await.unwrap().ends_with("by load 1"));
    }
    assert!(scene.stub.reads().len() <= 7, "pauses separate the reads: {}", scene.stub.reads().len());
    let mut keys = keys[100..].iter();
    // The seventh read without an answer is the last. Gets within a pause make no read.
    while scene.stub.reads().len() < 7 {
        scene.group.get(keys.next().expect("the pauses end")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for key in keys {
        scene.group.get(key).await.unwrap();
    }
    assert_eq!(scene.stub.reads().len(), 7);
}

/// Checks that neither reads nor page requests are made when the peer does not offer a hand-over, or when the local
/// node has it disabled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_requests_without_handover_at_both_nodes() {
    let not_offered = Scene::with(Stub::without_handover(), |builder| builder).await;
    let disabled = Scene::with(Stub::new(), |builder| builder.handover(false)).await;
    for scene in [not_offered, disabled] {
        let keys = scene.keys_of_a(10);
        scene.stub.answer_with(|_| Some(value("from a")));
        scene.drain_a().await;
        for key in &keys {
            assert!(scene.group.get(key).await.unwrap().ends_with("by load 1"));
        }
        assert_eq!((scene.stub.reads().len(), scene.stub.page_requests().len()), (0, 0));
    }
}

/// Checks that a read goes on when its only caller is cancelled: the key is cached from the answer, or from a load when
/// no answer comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_get_does_not_end_its_read() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(2);
    scene.stub.answer_with(|_| None);
    scene.drain_a().await;
    for (key, answer) in keys.iter().zip([Some(value("from a")), None]) {
        let reads = scene.stub.reads().len();
        let cancelled = scene.get(key);
        eventually("b reads the key from a", || scene.stub.reads().len() > reads).await;
        cancelled.abort();
        assert!(cancelled.await.is_err());
        if let Some(answer) = answer {
            let id = scene.stub.reads().last().unwrap().id;
            scene.stub.send_answer(Answer { id, ..answer });
        }
        eventually("the key is cached", || {
            scene.group.inspect().local_entries(10).iter().any(|entry| entry.key == *key)
        })
        .await;
        // Waits out the pause that may follow a late answer.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(scene.group.get(&keys[1]).await.unwrap().ends_with("by load 1"), "the key was loaded without a waiter");
}

/// A value that panics in `decode`, `weight` or `drop` for certain texts, as a value of an incompatible version may.
#[derive(Clone, Debug)]
pub struct Picky(pub String);

impl Value for Picky {
    fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(())
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let text = String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError::new("the bytes are not UTF-8"))?;
        assert_ne!(text, "panic", "the test wants a panic");
        Ok(Self(text))
    }

    fn weight(&self) -> usize {
        assert_ne!(self.0, "heavy", "the test wants a panic");
        self.0.len()
    }
}

impl Drop for Picky {
    fn drop(&mut self) {
        assert!(self.0 != "explosive" || std::thread::panicking(), "the test wants a panic");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unusable_value_is_loaded_instead() {
    for text in ["panic", "heavy", "\u{0}"] {
        let scene = Scene::start().await;
        assert!(scene.b.remove_group("data"));
        let load = async |_: &(), key: &str| Ok::<_, BoxError>(Picky(key.to_owned()));
        let group = scene.b.group::<Picky>("data").capacity_bytes(1 << 20).loader_with((), load).build().unwrap();
        let key = &scene.keys_of_a(1)[0];
        scene.stub.answer_with(move |_| {
            let bytes = if text == "\u{0}" { Bytes::from_static(&[0xff]) } else { text.into() };
            Some(Answer { value: bytes, ..value("") })
        });
        scene.drain_a().await;
        assert_eq!(group.get(key).await.unwrap().0, *key, "{text:?}");
        assert_eq!(
            (group.stats().previous_owner_reads, group.stats().previous_owner_hits, group.stats().loads),
            (1, 0, 1)
        );
    }
}

struct CountingBatchLoader(Loads);

impl BatchLoader<String> for CountingBatchLoader {
    async fn load_many(&self, keys: &[&str]) -> Result<Vec<Result<Loaded<String>, LoadError>>, LoadError> {
        Ok(keys.iter().map(|key| Ok(Loaded::new(self.0.begin(key).to_string()))).collect())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_loader_loads_only_keys_without_a_value_read() {
    let scene = Scene::start().await;
    assert!(scene.b.remove_group("data"));
    let loads = Loads::default();
    let group =
        scene.b.group::<String>("data").capacity_bytes(1 << 20).batch_loader(CountingBatchLoader(loads.clone()));
    let group = group.build().unwrap();
    let keys = scene.keys_of_a(20);
    let held = keys[..10].to_vec();
    scene.stub.answer_with(move |request| {
        let is_held = held.iter().any(|key| key.as_bytes() == request.key);
        Some(if is_held { value("from a") } else { not_held() })
    });
    scene.drain_a().await;
    let values = group.get_many(&keys).await;
    let read = values.iter().filter(|value| value.as_ref().unwrap() == "from a").count();
    assert_eq!((read, loads.total()), (10, 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_or_joining_owner_causes_almost_no_loads() {
    let (loads, cluster) = (Loads::default(), Cluster::start(3).await);
    let load = async |loads: &Loads, key: &str| Ok::<_, BoxError>(loads.begin(key).to_string());
    let build = |_: usize, node: &Node| {
        node.group::<String>("data").capacity_bytes(8 << 20).replicas(false).loader_with(loads.clone(), load)
    };
    let groups = cluster.group(build).await;
    let keys: Vec<_> = (0..300).map(|n| format!("key-{n}")).collect();
    for key in &keys {
        groups[0].get(key).await.unwrap();
    }
    assert_eq!(loads.total(), 300);
    cluster.nodes[1].drain(Duration::from_secs(3)).await.unwrap();
    for key in &keys {
        groups[2].get(key).await.unwrap();
    }
    // A few answers may be late on a busy machine.
    assert!(loads.total() <= 303, "b has left, and a and c read its values: {} loads", loads.total());
    let d = Node::builder().identity(crate::support::identity("d")).provider(cluster.peers.clone());
    let d = d.start().await.unwrap();
    let of_d = build(3, &d).build().unwrap();
    cluster.peers.change(|peers| peers.push(crate::support::peer(&d)));
    eventually("all nodes see d", || {
        let nodes = cluster.nodes.iter().chain([&d]);
        nodes.clone().all(|node| node.fingerprint() == d.fingerprint())
            && d.members().iter().filter(|member| member.owns).count() == 3
            && d.peers_with_group("data") == 3
    })
    .await;
    for key in &keys {
        of_d.get(key).await.unwrap();
    }
    assert!(loads.total() <= 306, "d has joined, and reads the values of a and c: {} loads", loads.total());
    assert!(of_d.inspect().entries() > 50, "d owns a third");
    d.shutdown_within(Duration::from_secs(1)).await.unwrap();
    cluster.shutdown().await;
}
