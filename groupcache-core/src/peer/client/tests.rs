//! Tests of the pauses between two attempts, in virtual time.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc::{self, Receiver},
    time::{Instant, sleep},
};

use crate::peer::client::{EXPEDITED, RECONNECT_MAX, keep};
use crate::{
    identity::Address,
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

/// Returns a link to a port where nobody listens, and its events.
fn unreachable_link() -> (Arc<Link>, Events) {
    let local = Arc::new(LocalNode::new(hello("a"), Limits::default(), Security::Open { is_insecure: true }));
    let nobody = Address::from(SocketAddr::from(([127, 0, 0, 1], 1)));
    let target = Target { expected: None, addresses: vec![nobody] };
    let link = Link::new(DialId(1), target, local);
    let (events, feed) = mpsc::channel(1024);
    tokio::spawn(keep(Arc::clone(&link), events, 7));
    (link, feed)
}

async fn failures(events: &mut Events, n: usize) {
    for _ in 0..n {
        assert!(matches!(events.recv().await, Some((_, LinkEvent::Failed(_)))));
    }
}

#[tokio::test(start_paused = true)]
async fn expedited_attempt_comes_early() {
    let (link, mut events) = unreachable_link();
    failures(&mut events, 10).await;
    let begun = Instant::now();
    link.retry_soon();
    failures(&mut events, 1).await;
    let slack = Duration::from_millis(10); // timers may be a millisecond late, and an attempt takes a moment
    assert!(begun.elapsed() <= RECONNECT_MAX / EXPEDITED + slack, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn expedited_attempts_are_bounded_by_the_pause() {
    let (link, mut events) = unreachable_link();
    failures(&mut events, 10).await;
    let time = 4 * RECONNECT_MAX;
    for _ in 0..time.as_millis() {
        link.retry_soon();
        sleep(Duration::from_millis(1)).await;
    }
    let attempts = std::iter::from_fn(|| events.try_recv().ok()).count() as u32;
    assert!((4 * EXPEDITED - 4..=4 * EXPEDITED * 2).contains(&attempts), "{attempts}");
}
