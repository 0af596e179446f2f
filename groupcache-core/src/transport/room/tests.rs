use std::{
    future::poll_fn,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::*;
use crate::transport::received::ReceivedBytes;

const MIB: usize = 1 << 20;

/// Node with 32 MiB for received bytes.
struct Scene {
    sessions: Sessions,
    received: Arc<ReceivedBytes>,
    closed: Mutex<Vec<SocketAddr>>,
}

impl Scene {
    fn new() -> Self {
        let received = Arc::new(ReceivedBytes::new(32 * MIB));
        Self { sessions: Sessions::new(100, Arc::clone(&received)), received, closed: Mutex::default() }
    }

    /// Opens a connection of a host. A peer has a stream of frames.
    fn open(&self, host: u8, is_peer: bool) -> Arc<Session> {
        let session = self.sessions.admit(SocketAddr::from((Ipv4Addr::new(10, 0, 0, host), 1)), 0).0;
        assert!(!is_peer || session.takes_its_stream());
        session
    }

    /// Returns whether the connection may be read, or waits.
    fn poll(&self, room: &mut Room, session: &Session, cx: &mut Context<'_>) -> Poll<()> {
        room.poll(cx, session, &self.sessions, |closed| self.close(&closed))
    }

    fn close(&self, closed: &[Arc<Session>]) {
        self.closed.lock().unwrap().extend(closed.iter().map(|session| session.remote));
    }

    /// Receives bytes as a connection does.
    fn receive(&self, session: &Session, bytes: usize) {
        if session.held().add(bytes) {
            self.close(&self.sessions.relieve());
        }
    }

    /// Receives a message in parts of 64 KiB, each of which takes a millisecond.
    async fn receive_message(&self, session: &Session, bytes: usize) {
        let mut room = Room::default();
        for _ in 0..bytes.div_ceil(64 << 10) {
            poll_fn(|cx| self.poll(&mut room, session, cx)).await;
            self.receive(session, 64 << 10);
            sleep(Duration::from_millis(1)).await;
        }
        session.held().take(bytes);
    }

    fn closed(&self) -> Vec<SocketAddr> {
        self.closed.lock().unwrap().clone()
    }
}

/// Checks that eleven peers with messages that do not fit into the budget together send them, and send others afterwards,
/// without the end of a connection.
#[tokio::test(start_paused = true)]
async fn messages_that_come_at_once_end_no_connection() {
    let scene = Scene::new();
    let (most, complete) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let peers = (1..=11).map(async |host| {
        let session = scene.open(host, true);
        for _ in 0..5 {
            scene.receive_message(&session, 3 * MIB).await;
            most.fetch_max(scene.received.used(), Relaxed);
            complete.fetch_add(1, Relaxed);
        }
    });
    futures_util::future::join_all(peers).await;
    assert_eq!((scene.closed(), complete.into_inner()), (Vec::new(), 55));
    let most = most.into_inner();
    assert!(most > 21 * MIB && most <= 28 * MIB, "three quarters, and one message: {most}");
    assert_eq!(scene.received.used(), 0);
}

/// Checks that peers which stand still in their messages hold the turn for 100 ms each, and end nobody while others
/// complete theirs.
#[tokio::test(start_paused = true)]
async fn peer_that_stands_still_passes_its_turn_on() {
    let scene = Scene::new();
    let still: Vec<_> = (1..=8).map(|host| scene.open(host, true)).collect();
    still.iter().for_each(|session| scene.receive(session, 3 * MIB));
    scene.receive(&still[0], 1);
    assert!(still[0].may_read(Instant::now()), "has the turn");
    let peer = scene.open(9, true);
    let begun = Instant::now();
    scene.receive_message(&peer, MIB / 2).await;
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(100) && took < Duration::from_millis(130), "{took:?}");
    assert!(scene.closed().is_empty());
}

/// Checks that connections with streams which never complete a message end once a peer has waited for half a second,
/// and that the peer lives.
#[tokio::test(start_paused = true)]
async fn long_wait_ends_the_holder_of_most_bytes() {
    let scene = Scene::new();
    let greedy: Vec<_> = (0..20).map(|_| scene.open(1, true)).collect();
    greedy.iter().for_each(|session| scene.receive(session, 5 * MIB / 4));
    let peer = scene.open(2, true);
    let mut room = Room::default();
    let begun = Instant::now();
    poll_fn(|cx| {
        let _ = greedy.iter().any(|session| session.may_read(Instant::now())); // one of them has the turn at any time
        scene.poll(&mut room, &peer, cx)
    })
    .await;
    let took = begun.elapsed();
    assert!(took >= STEP * STEPS && took < STEP * STEPS * 2, "{took:?}");
    assert_eq!(scene.closed(), [greedy[0].remote], "until the budget is relieved");
    assert!(!peer.close_token().is_cancelled() && scene.received.is_relieved());
}

/// Checks that unary clients with large messages end at once, before a peer waits for its turn.
#[tokio::test(start_paused = true)]
async fn unary_holders_end_before_a_peer_waits() {
    let scene = Scene::new();
    let peers: Vec<_> = (1..=8).map(|host| scene.open(host, true)).collect();
    peers.iter().for_each(|session| scene.receive(session, 2 * MIB));
    let unary: Vec<_> = (0..10).map(|_| scene.open(99, false)).collect();
    unary.iter().for_each(|session| scene.receive(session, MIB));
    assert!(peers[1].may_read(Instant::now()), "has the turn");
    poll_fn(|cx| {
        assert!(scene.poll(&mut Room::default(), &peers[0], cx).is_ready());
        Poll::Ready(())
    })
    .await;
    assert_eq!(scene.closed(), [unary[0].remote; 2]);
}

/// Checks that a connection with more bytes than one stream can have ends at once, although it has a stream of frames.
#[tokio::test(start_paused = true)]
async fn holder_of_more_than_a_stream_ends_before_a_peer_waits() {
    let scene = Scene::new();
    let (greedy, peers) = (scene.open(1, true), [scene.open(2, true), scene.open(3, true)]);
    scene.receive(&greedy, 26 * MIB);
    assert!(peers[0].may_read(Instant::now()), "has the turn");
    poll_fn(|cx| {
        assert!(scene.poll(&mut Room::default(), &peers[1], cx).is_ready());
        Poll::Ready(())
    })
    .await;
    assert_eq!(scene.closed(), [greedy.remote]);
}

/// Checks that a peer which is alone in want of room has turn after turn, and that two alternate.
#[tokio::test(start_paused = true)]
async fn turn_passes_on_only_if_another_waits() {
    let scene = Scene::new();
    let still: Vec<_> = (1..=9).map(|host| scene.open(host, true)).collect();
    still.iter().for_each(|session| scene.receive(session, 3 * MIB));
    let peers = [scene.open(10, true), scene.open(11, true)];
    let begun = Instant::now();
    for _ in 0..100 {
        assert!(peers[0].may_read(Instant::now()));
        scene.receive(&peers[0], 100);
        peers[0].held().take(100);
    }
    assert_eq!(begun.elapsed(), Duration::ZERO, "no pause between its turns");
    assert!(peers[0].may_read(Instant::now()) && !peers[1].may_read(Instant::now()));
    scene.receive(&peers[0], 100);
    peers[0].held().take(100);
    assert!(!peers[0].may_read(Instant::now()) && peers[1].may_read(Instant::now()), "the other one has waited");
}

/// Checks that a connection which has just sent its Hello lives when holders with streams spend the budget, and that it
/// never waits.
#[tokio::test(start_paused = true)]
async fn fresh_hello_ends_for_no_holder_with_a_stream() {
    let scene = Scene::new();
    let fresh = scene.open(1, false);
    scene.receive(&fresh, 300 << 10);
    let holders: Vec<_> = (0..32).map(|host| scene.open(10 + host % 2, true)).collect();
    holders.iter().for_each(|session| scene.receive(session, MIB + (64 << 10)));
    assert!(!fresh.close_token().is_cancelled() && !scene.closed().is_empty());
    let all = holders.iter().filter(|session| !session.close_token().is_cancelled());
    all.for_each(|session| assert!(scene.received.is_relieved() || session.held().get() > 0));
    scene.receive(&holders[31], 8 * MIB);
    assert!(fresh.may_read(Instant::now()), "reads without a turn");
}
