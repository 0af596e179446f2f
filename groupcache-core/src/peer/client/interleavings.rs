//! Interleavings of one link's requests: under each order of locks, a request gets one outcome, with its own value.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_core::Stream;
use shuttle::future::{spawn, yield_now};
use tokio::sync::{mpsc, oneshot};

use crate::peer::client::{finish, outbound::Outbound, take};
use crate::{
    identity::{Incarnation, Instance, PeerId},
    membership::stabilizer::DialId,
    peer::client::{
        breaker::End,
        call::{Call, Outcome},
        link::{Link, Target, wake},
        receiver::{Receiver, Reply},
    },
    protocol::{
        chain::LoadChain,
        message::{Encoded, Op, Response, Source},
        wire::{Incoming, Outgoing},
    },
    runtime::sync::Mutex,
    testing::interleavings::{check, local, pass},
};

const DEADLINE: Duration = Duration::from_millis(100);

/// Receiver of one outcome; a second one is a failure.
struct Waiting(Mutex<Option<oneshot::Sender<Outcome>>>);

impl Reply for Waiting {
    fn reply(self: Arc<Self>, outcome: Outcome, _: tokio::time::Instant) {
        let waiting = self.0.lock().take().expect("told once");
        waiting.send(outcome).expect("it waits");
    }
}

/// A link to a peer that the test plays.
struct Scene {
    link: Arc<Link>,
    /// Requests that have reached the peer, by key.
    asked: Mutex<BTreeMap<String, usize>>,
    /// Keys of each frame, in order.
    frames: Mutex<Vec<Vec<String>>>,
    answered: AtomicUsize,
}

impl Scene {
    fn new() -> Arc<Self> {
        let link = Link::new(DialId(1), Target { expected: None, addresses: Vec::new() }, local());
        Arc::new(Self { link, asked: Mutex::default(), frames: Mutex::default(), answered: AtomicUsize::new(0) })
    }

    /// Returns this node's half of a new connection whose Hello has arrived, as HTTP/2 polls it.
    fn connect(&self) -> Outbound {
        let (connection, waker) = self.link.table.lock().begin_connection();
        wake(waker);
        let waker = {
            let mut table = self.link.table.lock();
            let peer = Instance { id: PeerId::new("peer").unwrap(), incarnation: Incarnation(1) };
            table.connected(peer, self.link.local.clock.now_ms());
            table.waker.take()
        };
        wake(waker);
        Outbound { link: Arc::clone(&self.link), connection, expected: None }
    }

    /// Returns a request and the receiver of its outcome.
    fn call(&self, key: &str) -> (Call, oneshot::Receiver<Outcome>) {
        let (told, outcome) = oneshot::channel();
        let call = Call {
            op: Op::Get,
            group: 1,
            key: key.into(),
            deadline_ms: self.link.local.clock.now_ms() + DEADLINE.as_millis() as u64,
            rank: 0,
            chain: LoadChain::EMPTY,
            number: 0,
            known: Vec::new(),
            strikes: None,
            reply: Receiver::new(Arc::new(Waiting(Mutex::new(Some(told))))),
        };
        (call, outcome)
    }

    /// Sends a request and waits for its outcome.
    async fn ask(self: Arc<Self>, key: &'static str) -> Outcome {
        let (call, outcome) = self.call(key);
        self.link.send(call).expect("there is room");
        self.answer_of(key, outcome).await
    }

    /// Waits for the outcome of a request and checks that a value is that of its key.
    async fn answer_of(&self, key: &str, outcome: oneshot::Receiver<Outcome>) -> Outcome {
        let outcome = outcome.await.expect("told");
        if let Outcome::Answered(answer) = &outcome {
            let Response::Value(value) = answer else { panic!("{answer:?}") };
            assert_eq!(value.bytes, key, "another call's answer");
            self.answered.fetch_add(1, SeqCst);
        }
        outcome
    }

    /// Answers what a frame asks for, each in a task of its own and so in any order; `frame` is what the peer read.
    fn answer(self: &Arc<Self>, frame: Incoming) {
        let keys = frame.requests.iter().map(|request| String::from_utf8_lossy(&request.key).into_owned());
        self.frames.lock().push(keys.collect());
        for request in frame.requests {
            let key = String::from_utf8(request.key.to_vec()).expect("a key of ours");
            *self.asked.lock().entry(key).or_default() += 1;
            let (scene, link) = (Arc::clone(self), Arc::clone(&self.link));
            spawn(async move {
                yield_now().await;
                let value = Encoded {
                    as_of_age_ms: None,
                    bytes: request.key,
                    age_ms: 0,
                    remaining_ms: None,
                    borrow_ms: 0,
                    is_hot: false,
                    source: Source::Memory,
                };
                let mut frame = Outgoing::new(0);
                frame.answer(request.id, Response::Value(value));
                take(&link, frame.arrived());
                drop(scene);
            });
        }
    }

    /// Serves a connection until its stream ends.
    async fn serve(self: Arc<Self>, mut outbound: Outbound) {
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut outbound).poll_next(cx)).await {
            self.answer(frame.arrived());
        }
    }
}

#[test]
fn each_request_is_answered_once_with_its_own_value() {
    check(|| async {
        let scene = Scene::new();
        let peer = spawn(Arc::clone(&scene).serve(scene.connect()));
        let asks = ["a", "b", "c"].map(|key| spawn(Arc::clone(&scene).ask(key)));
        for ask in asks {
            assert!(matches!(ask.await.expect("no panic"), Outcome::Answered(_)));
        }
        assert!(scene.asked.lock().values().all(|times| *times == 1));
        assert_eq!(scene.link.in_flight(), 0);
        scene.link.close();
        peer.await.expect("the stream ends");
    });
}

/// Checks that a response which arrives after its call has ended finds the slot given away.
#[test]
fn late_response_reaches_no_other_call() {
    check(|| async {
        let scene = Scene::new();
        let peer = spawn(Arc::clone(&scene).serve(scene.connect()));
        let first = spawn(Arc::clone(&scene).ask("a"));
        let tick = spawn({
            let scene = Arc::clone(&scene);
            async move {
                pass(&scene.link.local, DEADLINE).await;
                scene.link.sweep(scene.link.local.clock.now_ms(), false);
            }
        });
        let second = spawn({
            let scene = Arc::clone(&scene);
            async move {
                yield_now().await;
                scene.ask("b").await
            }
        });
        for ask in [first, second] {
            assert!(matches!(ask.await.expect("no panic"), Outcome::Answered(_) | Outcome::Expired));
        }
        tick.await.expect("no panic");
        assert_eq!(scene.link.in_flight(), 0);
        scene.link.close();
        peer.await.expect("the stream ends");
    });
}

/// Ends one connection after the other in one way, while requests are sent.
fn calls_over_connections(end: End) {
    check(move || async move {
        let scene = Scene::new();
        let (events, _membership) = mpsc::channel(16);
        let first = scene.connect();
        let peer = spawn({
            let scene = Arc::clone(&scene);
            async move {
                let mut outbound = first;
                for _ in 0..2 {
                    let served = spawn(Arc::clone(&scene).serve(outbound));
                    yield_now().await;
                    finish(&scene.link, end, &events).await;
                    served.await.expect("the stream of a connection that is over ends");
                    outbound = scene.connect();
                }
                scene.serve(outbound).await;
            }
        });
        let asks = ["a", "b"].map(|key| spawn(Arc::clone(&scene).ask(key)));
        for ask in asks {
            let outcome = ask.await.expect("no panic");
            // A request is sent twice at most, unless nothing is wrong with the peer.
            let may_fail = end != End::Renewed;
            assert!(
                matches!(outcome, Outcome::Answered(_))
                    || may_fail && matches!(outcome, Outcome::Unreachable | Outcome::Died { .. })
            );
        }
        let most = if end == End::Renewed { 3 } else { 2 };
        assert!(scene.asked.lock().values().all(|times| *times <= most), "{:?}", scene.asked.lock());
        assert_eq!(scene.link.in_flight(), 0);
        scene.link.close();
        peer.await.expect("the last stream ends");
    });
}

#[test]
fn requests_of_a_broken_connection_are_sent_again() {
    calls_over_connections(End::Broken);
}

#[test]
fn requests_outlive_connections_that_are_renewed() {
    calls_over_connections(End::Renewed);
}

/// Checks frames while other callers send, and earlier requests leave too.
#[test]
fn requests_of_one_call_share_a_frame() {
    check(|| async {
        let scene = Scene::new();
        let peer = spawn(Arc::clone(&scene).serve(scene.connect()));
        let alone = spawn(Arc::clone(&scene).ask("alone"));
        let asks = [["a", "b"], ["c", "d"]].map(|keys| {
            let scene = Arc::clone(&scene);
            spawn(async move {
                let (calls, outcomes): (Vec<_>, Vec<_>) = keys.iter().map(|key| scene.call(key)).unzip();
                assert_eq!(scene.link.send_all(calls.into_iter()), (2, None));
                for (key, outcome) in keys.iter().zip(outcomes) {
                    assert!(matches!(scene.answer_of(key, outcome).await, Outcome::Answered(_)));
                }
                let frames = scene.frames.lock();
                assert!(frames.iter().any(|frame| keys.iter().all(|key| frame.iter().any(|asked| asked == key))));
            })
        });
        for ask in asks {
            ask.await.expect("no panic");
        }
        alone.await.expect("no panic");
        scene.link.close();
        peer.await.expect("the stream ends");
    });
}
