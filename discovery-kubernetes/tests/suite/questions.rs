//! Answers to questions of the node while the provider backs off. In virtual time.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::support::{Observer, TWO, World, eventually, fake::Mode, two_pods};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// Longest time for an answer: the pause of 1 s between two tries, and the publication.
const ANSWER: Duration = Duration::from_millis(1_500);

/// Asks and waits for the answer. Returns the time that the answer took.
async fn ask(observer: &mut Observer) -> Duration {
    let sets = observer.bench.sets();
    observer.bench.ask();
    eventually("the question is answered", async || observer.bench.sets() > sets).await
}

/// Checks that a question is answered at once after the API server was down, refused, or could not list for minutes.
#[tokio::test(start_paused = true)]
async fn back_off_does_not_delay_an_answer() {
    let modes = [
        Mode::Down,
        Mode::Refuses { verb: "", code: 500, body: None },
        Mode::Refuses { verb: "list", code: 500, body: None },
        Mode::Refuses { verb: "watch", code: 500, body: None },
        // A new client follows refused credentials.
        Mode::Refuses { verb: "", code: 401, body: None },
    ];
    for mode in modes {
        for minutes in [6, 11, 13, 17, 23] {
            let (mut world, mut observer) = two_pods(|pods| pods).await;
            world.fake.state().knows_roles = true;
            world.fake.set(mode.clone());
            sleep(minutes * MINUTE).await;
            world.fake.set(Mode::Normal);
            world.start("p3", "10.0.0.3").await;
            world.delete("p3").await;
            let took = ask(&mut observer).await;
            assert!(took < ANSWER, "{mode:?}: {took:?} after {minutes} minutes");
            assert_eq!(observer.set(), TWO);
            observer.until_connected().await;
        }
    }
}

/// Checks that a question is answered although watches fail, and that a watch is tried after the answer.
#[tokio::test(start_paused = true)]
async fn failing_watch_does_not_delay_an_answer() {
    let (mut world, mut observer) = two_pods(|pods| pods).await;
    world.fake.set(Mode::Refuses { verb: "watch", code: 500, body: None });
    sleep(13 * MINUTE).await;
    let took = ask(&mut observer).await;
    assert!(took < ANSWER, "{took:?}");
    world.fake.set(Mode::Normal);
    let took = ask(&mut observer).await;
    assert!(took < ANSWER, "{took:?}");
    let took = observer.until_connected().await;
    assert!(took < SECOND, "{took:?}");
    world.delete("p2").await;
    observer.until(&["p1@10.0.0.1"]).await;
}

/// Checks that many questions cause one try per second, and that a delay of the server comes before a question.
#[tokio::test(start_paused = true)]
async fn questions_are_limited_and_heed_the_server() {
    let modes = [
        (Mode::Refuses { verb: "", code: 500, body: None }, 3, 7),
        (Mode::Refuses { verb: "", code: 401, body: None }, 3, 14), // a watch and a list
        (Mode::Overloaded { seconds: 30 }, 0, 1),
    ];
    for (mode, least, most) in modes {
        let (world, observer) = two_pods(|pods| pods).await;
        world.fake.set(mode.clone());
        sleep(MINUTE).await;
        let (before, begun) = (world.fake.count_requests("/pods"), Instant::now());
        while begun.elapsed() < 5 * SECOND {
            observer.bench.ask();
            sleep(SECOND / 50).await;
        }
        let tries = world.fake.count_requests("/pods") - before;
        assert!((least..=most).contains(&tries), "{mode:?}: {tries} requests in 5 s");
    }
}
