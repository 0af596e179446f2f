//! The pauses between two attempts, in virtual time.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc::{self, Receiver},
    time::{Instant, sleep},
};

use crate::peer::client::{HURRIED, RECONNECT_MAX, keep};
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

/// A link to where nobody listens, and what it says.
fn in_vain() -> (Arc<Link>, Events) {
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
async fn a_peer_that_may_be_back_is_not_waited_for_as_long() {
    let (link, mut events) = in_vain();
    failures(&mut events, 10).await;
    let begun = Instant::now();
    link.retry_soon();
    failures(&mut events, 1).await;
    let slack = Duration::from_millis(10); // timers may be a millisecond late, and an attempt takes a moment
    assert!(begun.elapsed() <= RECONNECT_MAX / HURRIED + slack, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_may_be_back_all_the_time_is_not_dialled_all_the_time() {
    let (link, mut events) = in_vain();
    failures(&mut events, 10).await;
    let time = 4 * RECONNECT_MAX;
    for _ in 0..time.as_millis() {
        link.retry_soon();
        sleep(Duration::from_millis(1)).await;
    }
    let attempts = std::iter::from_fn(|| events.try_recv().ok()).count() as u32;
    assert!((4 * HURRIED - 4..=4 * HURRIED * 2).contains(&attempts), "{attempts}");
}
