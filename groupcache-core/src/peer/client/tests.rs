//! Tests of the pauses between two attempts, in virtual time.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc::{self, Receiver},
    time::{Instant, sleep, timeout},
};

use crate::peer::client::{
    EXPEDITED, EXPEDITED_PAUSE, RECONNECT_MAX, RECONNECT_MIN,
    dial_limits::{Arrival, Claim},
    keep, rest,
};
use crate::{
    identity::{Address, PeerId},
    limits::Limits,
    membership::stabilizer::DialId,
    peer::{
        client::link::{Link, LinkEvent, Target},
        local::LocalNode,
    },
    testing::unit::hello,
    transport::Security,
};

type Events = Receiver<(DialId, LinkEvent)>;

/// Returns a link to a port where nobody listens, which nothing keeps.
fn idle_link() -> Arc<Link> {
    let local =
        Arc::new(LocalNode::new(hello("a"), Limits::default(), Security::Open { is_insecure: true }, Arc::default()));
    let nobody = Address::from(SocketAddr::from(([127, 0, 0, 1], 1)));
    Link::new(DialId(1), Target { expected: None, addresses: vec![nobody] }, local)
}

/// Returns a link to a port where nobody listens, and its events.
fn unreachable_link() -> (Arc<Link>, Events) {
    let link = idle_link();
    let (events, feed) = mpsc::channel(1024);
    tokio::spawn(keep(Arc::clone(&link), events, 7));
    (link, feed)
}

async fn failures(events: &mut Events, n: usize) {
    for _ in 0..n {
        assert!(matches!(events.recv().await, Some((_, LinkEvent::Failed(_)))));
    }
}

/// Checks that a target which has never answered is dialled within a second when its peer connects to this node.
#[tokio::test(start_paused = true)]
async fn expedited_attempt_comes_early() {
    let (link, mut events) = unreachable_link();
    failures(&mut events, 15).await;
    let begun = Instant::now();
    link.retry_soon(Arrival::OfAnyPeer);
    failures(&mut events, 1).await;
    let slack = Duration::from_millis(10); // timers may be a millisecond late, and an attempt takes a moment
    assert!(begun.elapsed() <= EXPEDITED_PAUSE + slack, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn expedited_attempts_are_at_most_one_a_second() {
    let (link, mut events) = unreachable_link();
    failures(&mut events, 15).await;
    for _ in 0..20_000 {
        link.retry_soon(Arrival::OfAnyPeer);
        sleep(Duration::from_millis(1)).await;
    }
    let attempts = std::iter::from_fn(|| events.try_recv().ok()).count();
    assert!((18..=21).contains(&attempts), "{attempts}");
}

/// Checks the pause of a target that has answered before: an eighth is always waited for, and a second between two
/// expedited attempts.
#[tokio::test(start_paused = true)]
async fn expedited_rest_of_a_peer_is_short() {
    let link = idle_link();
    let (mut expedited_at, slack) = (None, Duration::from_millis(10));
    let mut rests = async || {
        let begun = Instant::now();
        link.retry_soon(Arrival::OfAnyPeer);
        rest(&link, RECONNECT_MAX, &mut expedited_at).await;
        begun.elapsed()
    };
    let first = rests().await;
    assert!((RECONNECT_MAX / EXPEDITED..=RECONNECT_MAX / EXPEDITED + slack).contains(&first), "{first:?}");
    let second = rests().await;
    assert!((EXPEDITED_PAUSE..=EXPEDITED_PAUSE + slack).contains(&second), "{second:?}");
    let begun = Instant::now();
    rest(&link, RECONNECT_MIN, &mut None).await;
    assert!(begun.elapsed() <= RECONNECT_MIN + slack);
}

/// Checks that links to one address report its failure without a dial of their own.
#[tokio::test(start_paused = true)]
async fn links_to_one_dead_address_share_its_failure() {
    let (link, mut events) = unreachable_link();
    failures(&mut events, 15).await;
    let dials = link.local.counters.connect_failed.get();
    let target = Target { expected: Some(PeerId::new("b").unwrap()), ..Target::clone(&link.target()) };
    let other = Link::new(DialId(2), target, Arc::clone(&link.local));
    let (sender, mut of_other) = mpsc::channel(1024);
    tokio::spawn(keep(Arc::clone(&other), sender, 8));
    failures(&mut of_other, 1).await;
    assert!(other.failure().is_some());
    assert_eq!(link.local.counters.connect_failed.get(), dials);
    // The end of a link that waits is not delayed.
    other.close();
    assert!(of_other.recv().await.is_none());
}

/// Dials targets at addresses of their own, until every other target without a failure has to wait.
async fn fill_first_lane(local: &LocalNode) -> Vec<Claim<'_>> {
    let mut claims = Vec::new();
    for n in 0.. {
        let target = Target { expected: None, addresses: vec![SocketAddr::from(([10, 0, 0, n], 1)).into()] };
        let Ok(turn) = local.dial_limits.turn(Arc::new(target), Arrival::None) else { break };
        match timeout(Duration::from_secs(60), turn.begin()).await {
            Ok(claim) => claims.extend(claim),
            Err(_) => break,
        }
    }
    claims
}

/// Checks that an invented id which waits in a full lane keeps the peer at its address out of no dial once that peer
/// arrives, whether the peer is listed by its id or by its address alone.
#[tokio::test(start_paused = true)]
async fn arrived_peer_passes_a_queued_invention() {
    for expected in [Some("b"), None] {
        let local = Arc::clone(&idle_link().local);
        let claims = fill_first_lane(&local).await;
        let queued = |expected: Option<&str>| {
            let expected = expected.map(|id| PeerId::new(id).unwrap());
            let target = Target { expected, ..Target::clone(&idle_link().target()) };
            let link = Link::new(DialId(2), target, Arc::clone(&local));
            let (events, feed) = mpsc::channel(1024);
            tokio::spawn(keep(Arc::clone(&link), events, 7));
            (link, feed)
        };
        let (_invention, mut of_invention) = queued(Some("invented"));
        let (link, mut events) = queued(expected);
        link.retry_soon(Arrival::OfAnyPeer);
        assert!(timeout(Duration::from_secs(60), events.recv()).await.is_err(), "the lane is full");
        link.retry_soon(Arrival::OfTarget);
        let failed = timeout(Duration::from_secs(60), failures(&mut events, 1)).await;
        assert!(failed.is_ok(), "{expected:?} is dialled");
        assert_eq!(local.counters.connect_failed.get(), 1);
        assert!(of_invention.try_recv().is_err(), "the invention waits");
        drop(claims);
        failures(&mut of_invention, 1).await;
    }
}
