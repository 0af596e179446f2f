//! Asking the former owner of one key.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use groupcache_core::{
    BatchLoader, BoxError, DecodeError, EncodeError, Limits, LoadError, Loaded, Node, Value,
    bytes::{Bytes, BytesMut},
};
use tokio::task::JoinSet;

use super::stub::{LOADER_ERROR, Scene, Stub, UNSUPPORTED, not_held, value};
use crate::proto::Answer;
use crate::support::{
    Cluster, Loads, eventually,
    raw::{OVERLOADED, TOO_LARGE},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_is_taken_over_with_its_age_and_what_is_left_of_its_time() {
    let scene = Scene::start().await;
    let key = &scene.keys_of_a(1)[0];
    scene.stub.answers(|_| Some(Answer { age_ms: 50_000, remaining_ms: Some(60_000), ..value("theirs") }));
    scene.a_drains().await;
    assert_eq!(scene.group.get(key).await.unwrap(), "theirs");
    assert_eq!(scene.group.get(key).await.unwrap(), "theirs");
    let entry = scene.group.local_entries(10).into_iter().find(|entry| entry.key == *key).expect("it is kept");
    assert!((50..60).contains(&entry.age.as_secs()), "{:?}", entry.age);
    assert!((50..=60).contains(&entry.fresh_for.expect("not for ever").as_secs()), "{:?}", entry.fresh_for);
    let stats = scene.group.stats();
    assert_eq!((stats.peeks, stats.peeked, stats.loads, stats.hits), (1, 1, 0, 1));
    assert_eq!(scene.stub.peeks().len(), 1);
    assert!(scene.stub.peeks()[0].no_load, "from memory or not at all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_question_is_under_way_for_a_key_however_many_want_it() {
    let scene = Scene::start().await;
    let key = &scene.keys_of_a(1)[0];
    scene.stub.answers(|_| None);
    scene.a_drains().await;
    let mut gets = JoinSet::new();
    for _ in 0..100 {
        let (group, key) = (scene.group.clone(), key.clone());
        gets.spawn(async move { group.get(&key).await.unwrap() });
    }
    let values = gets.join_all().await;
    assert!(values.iter().all(|value| value.ends_with("by load 1")), "it said nothing: one load for all");
    assert_eq!(scene.stub.peeks().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_former_owner_does_not_have_is_loaded_and_it_is_asked_on_for_the_rest() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(10);
    scene.stub.answers(|_| Some(not_held()));
    scene.a_drains().await;
    for key in &keys {
        assert!(scene.group.get(key).await.unwrap().ends_with("by load 1"));
    }
    // On a busy machine it is late now and then, and there are pauses.
    let asked = scene.stub.peeks().len();
    assert!((2..=10).contains(&asked), "{asked}");
    assert_eq!((scene.gate.loads.total(), scene.group.stats().peeked), (10, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_owner_with_nothing_or_next_to_nothing_is_left_alone() {
    // How many of so many first questions it has an answer to, and how often it is asked of 600 at most: less often where
    // this machine is so busy that answers are late, or a little more often, since those do not count.
    for (has, of, asked) in [(0, 1, 1..=64 + 32), (1, 64, 1..=256 + 32)] {
        let scene = Scene::start().await;
        let keys = scene.keys_of_a(600);
        let mut n = 0;
        scene.stub.answers(move |_| {
            n += 1;
            Some(if has > 0 && n % of == 0 { value("theirs") } else { not_held() })
        });
        scene.a_drains().await;
        for key in &keys {
            scene.group.get(key).await.unwrap();
        }
        let peeks = scene.stub.peeks().len();
        assert!(asked.contains(&peeks), "{has} of {of}: {peeks}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_owner_that_fails_or_declines_is_not_asked_again() {
    let failures = [
        Answer { status: LOADER_ERROR, ..Answer::default() },
        Answer { status: UNSUPPORTED, ..Answer::default() },
        Answer { status: 99, ..Answer::default() },
    ];
    for failure in failures {
        let scene = Scene::start().await;
        let keys = scene.keys_of_a(10);
        let answer = failure.clone();
        scene.stub.answers(move |_| Some(answer.clone()));
        scene.a_drains().await;
        for key in &keys {
            assert!(scene.group.get(key).await.unwrap().ends_with("by load 1"));
        }
        assert_eq!(scene.stub.peeks().len(), 1, "{failure:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_owner_that_has_no_room_or_too_large_a_value_is_asked_for_others() {
    for status in [OVERLOADED, TOO_LARGE] {
        let scene = Scene::start().await;
        let keys = scene.keys_of_a(10);
        let mut peeks = 0;
        scene.stub.answers(move |_| {
            peeks += 1;
            Some(if peeks == 1 { Answer { status, ..Answer::default() } } else { value("theirs") })
        });
        scene.a_drains().await;
        assert!(scene.group.get(&keys[0]).await.unwrap().ends_with("by load 1"));
        for key in &keys[1..] {
            assert_eq!(scene.group.get(key).await.unwrap(), "theirs", "after {status}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_owner_that_could_not_be_asked_for_want_of_room_is_asked_for_others() {
    let mut limits = Limits::default();
    limits.max_in_flight_per_peer = 1;
    let scene = Scene::with(Stub::new(), |builder| builder.limits(limits)).await;
    let (keys, asked_first) = (scene.keys_of_a(20), Arc::new(AtomicU64::new(0)));
    let first = Arc::clone(&asked_first);
    scene.stub.answers(move |asked| match (asked.op, asked.role) {
        (0, 0) => {
            first.store(asked.id, Relaxed);
            None
        }
        (0, _) => Some(value("theirs")),
        _ => Some(not_held()),
    });
    let waiting = scene.get(&keys[0]);
    eventually("it is asked for a key", || asked_first.load(Relaxed) > 0).await;
    scene.a_drains().await;
    assert!(scene.group.get(&keys[1]).await.unwrap().ends_with("by load 1"));
    scene.stub.say(Answer { id: asked_first.load(Relaxed), ..value("theirs") });
    waiting.await.unwrap();
    // A request for a page may have the one place at some of these moments.
    let mut theirs = 0;
    for key in &keys[2..] {
        theirs += usize::from(scene.group.get(key).await.unwrap() == "theirs");
    }
    assert!(theirs > 10, "{theirs} of 18");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_owner_that_never_answers_costs_little_and_is_left_alone() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(400);
    scene.stub.answers(|_| None);
    scene.a_drains().await;
    for key in &keys[..100] {
        assert!(scene.group.get(key).await.unwrap().ends_with("by load 1"));
    }
    assert!(scene.stub.peeks().len() <= 7, "after each silence there is a pause: {}", scene.stub.peeks().len());
    let mut keys = keys[100..].iter();
    // After the seventh it is over; some of these gets are made within the pauses.
    while scene.stub.peeks().len() < 7 {
        scene.group.get(keys.next().expect("the pauses end")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for key in keys {
        scene.group.get(key).await.unwrap();
    }
    assert_eq!(scene.stub.peeks().len(), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_nodes_and_those_that_are_told_not_to_neither_ask_nor_are_asked() {
    let older = Scene::with(Stub::older(), |builder| builder).await;
    let told = Scene::with(Stub::new(), |builder| builder.hand_over(false)).await;
    for scene in [older, told] {
        let keys = scene.keys_of_a(10);
        scene.stub.answers(|_| Some(value("theirs")));
        scene.a_drains().await;
        for key in &keys {
            assert!(scene.group.get(key).await.unwrap().ends_with("by load 1"));
        }
        assert_eq!((scene.stub.peeks().len(), scene.stub.pages().len()), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_get_that_is_given_up_while_the_former_owner_is_asked_harms_nobody() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(2);
    scene.stub.answers(|_| None);
    scene.a_drains().await;
    for (key, answer) in keys.iter().zip([Some(value("theirs")), None]) {
        let asked = scene.stub.peeks().len();
        let given_up = scene.get(key);
        eventually("it is asked", || scene.stub.peeks().len() > asked).await;
        given_up.abort();
        assert!(given_up.await.is_err());
        if let Some(answer) = answer {
            let id = scene.stub.peeks().last().unwrap().id;
            scene.stub.say(Answer { id, ..answer });
        }
        eventually("it is there", || scene.group.local_entries(10).iter().any(|entry| entry.key == *key)).await;
        // Not to be in the pause that follows an answer that was late.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(scene.group.get(&keys[1]).await.unwrap().ends_with("by load 1"), "nobody waited, and it was loaded");
}

/// A value of a version that cannot read what the other wrote.
#[derive(Clone, Debug)]
pub struct Picky(pub String);

impl Value for Picky {
    fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(())
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let text = String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError::new("no text"))?;
        assert_ne!(text, "panic", "as it was asked to");
        Ok(Self(text))
    }

    fn weight(&self) -> usize {
        assert_ne!(self.0, "heavy", "as it was asked to");
        self.0.len()
    }
}

impl Drop for Picky {
    fn drop(&mut self) {
        assert!(self.0 != "explosive" || std::thread::panicking(), "as it was asked to");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_loaded() {
    for theirs in ["panic", "heavy", "\u{0}"] {
        let scene = Scene::start().await;
        assert!(scene.b.remove_group("data"));
        let load = async |_: &(), key: &str| Ok::<_, BoxError>(Picky(key.to_owned()));
        let group = scene.b.group::<Picky>("data").capacity_bytes(1 << 20).loader_with((), load).build().unwrap();
        let key = &scene.keys_of_a(1)[0];
        scene.stub.answers(move |_| {
            let value = if theirs == "\u{0}" { Bytes::from_static(&[0xff]) } else { theirs.into() };
            Some(Answer { value, ..value_of_any_kind() })
        });
        scene.a_drains().await;
        assert_eq!(group.get(key).await.unwrap().0, *key, "{theirs:?}");
        assert_eq!((group.stats().peeks, group.stats().peeked, group.stats().loads), (1, 0, 1));
    }
}

fn value_of_any_kind() -> Answer {
    value("")
}

struct Many(Loads);

impl BatchLoader<String> for Many {
    async fn load_many(&self, keys: &[&str]) -> Result<Vec<Result<Loaded<String>, LoadError>>, LoadError> {
        Ok(keys.iter().map(|key| Ok(Loaded::new(self.0.begin(key).to_string()))).collect())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_batch_loader_are_asked_for_too_and_the_rest_is_loaded_together() {
    let scene = Scene::start().await;
    assert!(scene.b.remove_group("data"));
    let loads = Loads::default();
    let group = scene.b.group::<String>("data").capacity_bytes(1 << 20).batch_loader(Many(loads.clone()));
    let group = group.build().unwrap();
    let keys = scene.keys_of_a(20);
    let has = keys[..10].to_vec();
    scene.stub.answers(move |asked| {
        let is_there = has.iter().any(|key| key.as_bytes() == asked.key);
        Some(if is_there { value("theirs") } else { not_held() })
    });
    scene.a_drains().await;
    let values = group.get_many(&keys).await;
    let theirs = values.iter().filter(|value| value.as_ref().unwrap() == "theirs").count();
    assert_eq!((theirs, loads.total()), (10, 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_real_nodes_next_to_nothing_is_loaded_again_when_an_owner_leaves_or_another_comes() {
    let (loads, cluster) = (Loads::default(), Cluster::start(3).await);
    let load = async |loads: &Loads, key: &str| Ok::<_, BoxError>(loads.begin(key).to_string());
    let build = |_: usize, node: &Node| {
        node.group::<String>("data").capacity_bytes(8 << 20).hot_copies(false).loader_with(loads.clone(), load)
    };
    let groups = cluster.group(build).await;
    let keys: Vec<_> = (0..300).map(|n| format!("key-{n}")).collect();
    for key in &keys {
        groups[0].get(key).await.unwrap();
    }
    assert_eq!(loads.total(), 300);
    cluster.nodes[1].drain().await.unwrap();
    for key in &keys {
        groups[2].get(key).await.unwrap();
    }
    // A busy machine may be late with one answer or the other.
    assert!(loads.total() <= 303, "b has left, and a and c have what it had: {} loads", loads.total());
    let d = Node::builder().identity(crate::support::identity("d")).provider(cluster.peers.clone());
    let d = d.start().await.unwrap();
    let of_d = build(3, &d).build().unwrap();
    cluster.peers.change(|peers| peers.push(crate::support::peer(&d)));
    eventually("all see it", || {
        let nodes = cluster.nodes.iter().chain([&d]);
        nodes.clone().all(|node| node.fingerprint() == d.fingerprint())
            && d.members().iter().filter(|member| member.owns).count() == 3
            && d.peers_with_group("data") == 3
    })
    .await;
    for key in &keys {
        of_d.get(key).await.unwrap();
    }
    assert!(loads.total() <= 306, "d has come, and has what a and c had: {} loads", loads.total());
    assert!(of_d.entries() > 50, "it owns a third");
    d.shutdown_within(Duration::from_secs(1)).await.unwrap();
    cluster.shutdown().await;
}
