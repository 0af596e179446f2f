//! Writes that meet a look at the former owner: what it has never comes back.

use std::time::Duration;

use tokio::time::Instant;

use super::stub::{Scene, value};
use crate::proto::Answer;
use crate::support::eventually;

/// How a key, or all of them, is written at `b`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Write {
    Remove,
    Set,
    Clear,
}

const WRITES: [Write; 3] = [Write::Remove, Write::Set, Write::Clear];

impl Write {
    async fn at_b(self, scene: &Scene, key: &str) {
        let written = match self {
            Self::Remove => scene.group.remove(key).await,
            Self::Set => scene.group.set(key, "set").await,
            Self::Clear => scene.group.clear().await,
        };
        assert!(written.unwrap().is_complete());
    }

    /// What a get after it sees.
    fn sees(self, value: &str) -> bool {
        if self == Self::Set { value == "set" } else { value.contains("by load") }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_before_is_not_asked_for() {
    for write in WRITES {
        let scene = Scene::start().await;
        let keys = scene.keys_of_a(2);
        scene.stub.answers(|_| Some(value("theirs")));
        scene.a_drains().await;
        assert_eq!(scene.group.get(&keys[1]).await.unwrap(), "theirs", "it would have it");
        write.at_b(&scene, &keys[0]).await;
        assert!(write.sees(&scene.group.get(&keys[0]).await.unwrap()), "{write:?}");
        assert_eq!(scene.stub.peeks().len(), 1, "{write:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_shortly_before_the_key_moved_is_not_asked_for() {
    for write in [Write::Remove, Write::Clear] {
        // Within a second, which a busy machine may miss.
        let mut attempts = 0;
        while !shortly_before(write).await {
            attempts += 1;
            assert!(attempts < 20, "this machine stands still");
        }
    }
}

/// Whether it was fast enough to tell.
async fn shortly_before(write: Write) -> bool {
    let scene = Scene::start().await;
    let key = &scene.keys_of_a(1)[0];
    scene.stub.answers(|_| Some(value("theirs")));
    let begun = Instant::now();
    // The stub owns it and says that it is done; to be sure of it is another matter within a second.
    write.at_b(&scene, key).await;
    scene.a_drains().await;
    let got = scene.group.get(key).await.unwrap();
    let is_in_time = begun.elapsed() < Duration::from_millis(900);
    if is_in_time {
        assert!(write.sees(&got), "{write:?}: {got}");
        assert_eq!(scene.stub.peeks().len(), 0, "{write:?}");
    }
    is_in_time
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_meanwhile_is_handed_to_those_who_waited_and_not_kept() {
    for write in WRITES {
        let scene = Scene::start().await;
        let key = &scene.keys_of_a(1)[0];
        scene.stub.answers(|_| None);
        scene.a_drains().await;
        let before = scene.get(key);
        eventually("it is asked", || scene.stub.peeks().len() == 1).await;
        write.at_b(&scene, key).await;
        let after = scene.get(key).await.unwrap();
        assert!(write.sees(&after), "{write:?}: {after}");
        scene.stub.say(Answer { id: scene.stub.peeks()[0].id, ..value("theirs") });
        before.await.unwrap();
        let now = scene.group.get(key).await.unwrap();
        assert!(write.sees(&now), "{write:?}: {now}");
        assert_eq!(scene.stub.peeks().len(), 1, "{write:?}: it is not asked twice at once, nor after a write");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_afterwards_is_gone_and_is_not_asked_for_again() {
    for write in WRITES {
        let scene = Scene::start().await;
        let key = &scene.keys_of_a(1)[0];
        scene.stub.answers(|_| Some(value("theirs")));
        scene.a_drains().await;
        assert_eq!(scene.group.get(key).await.unwrap(), "theirs");
        write.at_b(&scene, key).await;
        assert!(write.sees(&scene.group.get(key).await.unwrap()), "{write:?}");
        assert_eq!(scene.stub.peeks().len(), 1, "{write:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_while_the_window_is_open_is_not_asked_for_even_much_later() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(3);
    // It says that it is done and keeps everything, as one would that the write has not come to.
    scene.stub.answers(|_| Some(value("theirs")));
    scene.a_drains().await;
    Write::Remove.at_b(&scene, &keys[0]).await;
    assert!(scene.group.get(&keys[1]).await.unwrap() == "theirs");
    // Past the second in which nothing is asked for that was written: a condition of time, not of another task.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(scene.group.get(&keys[2]).await.unwrap(), "theirs", "it is still asked");
    assert!(Write::Remove.sees(&scene.group.get(&keys[0]).await.unwrap()));
    assert_eq!(scene.stub.peeks().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_clear_nobody_is_asked_even_much_later() {
    let scene = Scene::start().await;
    let keys = scene.keys_of_a(2);
    scene.stub.answers(|_| Some(value("theirs")));
    scene.a_drains().await;
    assert_eq!(scene.group.get(&keys[0]).await.unwrap(), "theirs");
    Write::Clear.at_b(&scene, &keys[0]).await;
    // Past the second in which nothing is asked for anyhow: a condition of time alone.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    for key in &keys {
        assert!(Write::Clear.sees(&scene.group.get(key).await.unwrap()));
    }
    assert_eq!(scene.stub.peeks().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_is_loaded_and_not_kept() {
    let scene = Scene::start().await;
    let key = &scene.keys_of_a(1)[0];
    scene.stub.answers(|_| Some(value("theirs")));
    scene.group.remove_and_hold(key, Duration::from_secs(60)).await.unwrap().log_unreached();
    scene.a_drains().await;
    // Past the second of the remove itself.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    for load in [1, 2] {
        assert!(scene.group.get(key).await.unwrap().ends_with(&format!("by load {load}")));
    }
    assert_eq!(scene.stub.peeks().len(), 0);
}
