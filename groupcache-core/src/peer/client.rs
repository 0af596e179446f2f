//! The client of one peer: one connection, one stream of frames each way, kept up until the peer is none any more.
//!
//! Callers put requests into the [`Table`](crate::peer::table::Table) and go; the stream that HTTP/2 polls for our
//! next message takes up to 256 of them at a time, and the task that reads the answers tells whoever waits. So a
//! request costs no task, no timer and no channel, and what 64 callers ask at once is one message.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures_core::Stream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::DropGuard;
use tonic::{Code, Status, Streaming};

use crate::{
    config::{BATCH_REQUESTS, CONNECT, HELLO, RECONNECT_MAX, RECONNECT_MIN},
    error::{Error, Kind},
    identity::{Address, NodeState, PeerId},
    membership::stabilizer::Refusal,
    message::{Answer, Hello},
    net::Attempt,
    peer::{
        breaker::{Breaker, End},
        hello::objection,
        link::{Link, LinkEvent, LinkEvents, Target, tell, wake},
        table::{Ended, Outcome},
    },
    wire::{Answered, Incoming, Outgoing, peer_client},
};

/// A connection that lived this long was a good one: the next attempt comes at once, the pauses begin anew.
const GOOD_CONNECTION: Duration = Duration::from_secs(1);

/// After a frame with so many answers, those who were told have their turn before the next is read.
const MANY_ANSWERS: usize = 8;

/// How long callers may wait for a broken connection to be replaced.
const MENDING: Duration = Duration::from_secs(1);

/// An eighth of a pause is waited for in any case: where nobody shows who it is, anybody may connect in the name of a peer
/// any number of times, and who connects may be somebody else than the peer behind a hint.
const HURRIED: u32 = 8;

/// How long they may wait for the attempt to begin: the first pause, and no later one.
const MENDING_PAUSE: Duration = Duration::from_millis(2 * RECONNECT_MIN.as_millis() as u64);

/// Keeps the link up until it is hung up: connects, reads, and connects again with back-off and jitter.
pub(crate) async fn keep(link: Arc<Link>, events: LinkEvents, seed: u64) {
    let mut pauses = pauses(seed);
    loop {
        let is_mending = link.table.lock().breaker == Breaker::Mending;
        let attempt = connect(&link);
        let attempt = match is_mending {
            true => timeout(MENDING, attempt)
                .await
                .unwrap_or_else(|_| Err(Failure::NotConnected("it did not come back at once".to_owned()))),
            false => attempt.await,
        };
        let pause = match attempt {
            Ok(open) => {
                let began = Instant::now();
                let end = converse(&link, open, &events).await;
                let was_good = began.elapsed() >= GOOD_CONNECTION;
                if was_good {
                    pauses = self::pauses(seed);
                }
                // One attempt at once after a good connection: whoever waits is owed its outcome.
                let is_owed = end == End::Renewed || (was_good && end == End::Broken);
                let pause = if is_owed { Duration::ZERO } else { pauses.next().unwrap_or(RECONNECT_MAX) };
                let end = if end == End::Broken && pause > MENDING_PAUSE { End::Fickle } else { end };
                finish(&link, end, &events).await;
                pause
            }
            Err(failure) => {
                fail(&link, failure, &events).await;
                pauses.next().unwrap_or(RECONNECT_MAX)
            }
        };
        if link.is_gone() {
            return;
        }
        if !pause.is_zero() {
            rest(&link, pause).await;
        }
        if link.is_gone() {
            return;
        }
    }
}

/// Waits before the next attempt; not so long when the peer may be back.
async fn rest(link: &Link, pause: Duration) {
    let hurried = async {
        sleep(pause / HURRIED).await;
        link.hurried.notified().await;
    };
    tokio::select! {
        biased;
        () = link.retry.notified() => {}
        () = hurried => {}
        () = sleep(pause) => {}
    }
}

/// A connection has ended: its calls wait for the next one, or are told.
async fn finish(link: &Link, end: End, events: &LinkEvents) {
    let counters = &link.local.counters;
    if end != End::Renewed {
        counters.lost.up();
    }
    if end == End::Silent {
        counters.silent.up();
    }
    // The table is changed before the membership hears of it: it may ping the peer at once.
    let (ended, waker) = {
        let mut table = link.table.lock();
        let ended = table.ended(end, link.local.clock.now_ms());
        // Its stream sleeps until it is woken, and holds the socket open until it ends.
        let (_, waker) = table.begin_connection();
        (ended, waker)
    };
    wake(waker);
    tell(ended);
    if end != End::Renewed {
        send(events, link, LinkEvent::Lost).await;
    }
}

async fn fail(link: &Link, failure: Failure, events: &LinkEvents) {
    let ended = link.table.lock().failed(link.local.clock.now_ms());
    tell(ended);
    let counters = &link.local.counters;
    let (kind, event) = match failure {
        Failure::Refused(why, text) => {
            counters.refused.up();
            let kind = if why == Refusal::Untrusted { Kind::Unauthenticated } else { Kind::Unreachable };
            (kind, LinkEvent::Refused(why, text))
        }
        Failure::NotConnected(why) => {
            counters.connect_failed.up();
            (Kind::Unreachable, LinkEvent::Failed(why))
        }
    };
    let (LinkEvent::Refused(_, text) | LinkEvent::Failed(text)) = &event else { return };
    *link.failure.lock() = Some(Error::new(kind, text.clone()));
    send(events, link, event).await;
}

fn pauses(seed: u64) -> impl Iterator<Item = Duration> {
    // Without a seed its jitter comes from a generator of the thread, which no simulation could repeat.
    ExponentialBuilder::default()
        .with_min_delay(RECONNECT_MIN)
        .with_max_delay(RECONNECT_MAX / 2) // the jitter comes on top, and is as long at most
        .without_max_times()
        .with_jitter()
        .with_jitter_seed(seed)
        .build()
}

async fn send(events: &LinkEvents, link: &Link, event: LinkEvent) {
    // The membership task is gone only when the node is.
    let _ = events.send((link.dial, event)).await;
}

enum Failure {
    NotConnected(String),
    Refused(Refusal, String),
}

/// A connection whose peer has said Hello.
struct Open {
    /// The connection is closed when this is dropped.
    of_use: DropGuard,
    inbound: Streaming<Incoming>,
    hello: Hello,
    /// What else the first frame said.
    first: Incoming,
}

/// Tries the addresses in turn until one says Hello.
async fn connect(link: &Arc<Link>) -> Result<Open, Failure> {
    let target = link.target.load_full();
    let mut failure = Failure::NotConnected("it has no address".to_owned());
    for address in &target.addresses {
        if link.is_gone() {
            return Err(failure);
        }
        match timeout(CONNECT + HELLO, open(link, &target, address)).await {
            Ok(Ok(open)) => return Ok(open),
            // That somebody else is at one of its addresses is what the membership must hear, whatever the others say.
            Ok(Err(_)) | Err(_) if matches!(failure, Failure::Refused(Refusal::WrongId { .. }, _)) => {}
            Ok(Err(why)) => failure = why,
            Err(_) => failure = Failure::NotConnected(format!("{address} did not say Hello within {HELLO:?}")),
        }
    }
    Err(failure)
}

async fn open(link: &Arc<Link>, target: &Target, address: &Address) -> Result<Open, Failure> {
    let local = &link.local;
    let not_connected = |why: &dyn std::fmt::Display| Failure::NotConnected(format!("{address}: {why}"));
    let attempt = Attempt::new(&link.bytes_read);
    let of_use = attempt.of_use();
    let channel = local.net.channel(address.as_str(), &local.limits, &attempt).map_err(|e| not_connected(&e))?;
    let failed = |status: &Status| failure(address, &attempt, status);
    let mut client = peer_client::PeerClient::new(channel)
        .max_decoding_message_size(local.limits.max_message_bytes())
        .max_encoding_message_size(local.limits.max_message_bytes());
    let (connection, waker) = link.table.lock().begin_connection();
    wake(waker);
    let outbound = Outbound { link: Arc::clone(link), connection, expected: target.expected.clone() };
    let mut inbound = match client.connect(outbound).await {
        Ok(response) => response.into_inner(),
        Err(status) => return Err(failed(&status)),
    };
    let first = inbound.message().await.map_err(|status| failed(&status))?;
    let first = first.and_then(|mut frame| frame.hello().map(|hello| (hello, frame)));
    let Some((hello, first)) = first else {
        let text = format!("{address} answers, and not with a Hello: is it a groupcache node?");
        return Err(Failure::Refused(Refusal::Rejected, text));
    };
    let hello = hello.map_err(|bad| Failure::Refused(Refusal::NoCommonVersion, bad.0))?;
    if let Some(why) = objection(&local.hello(), &hello) {
        return Err(Failure::Refused(Refusal::OtherCluster, why));
    }
    if let Some(why) = attempt.server().objection(&hello.id) {
        return Err(Failure::Refused(Refusal::Untrusted, format!("{address}: {why}")));
    }
    if let Some(expected) = target.expected.as_ref().filter(|expected| **expected != hello.id) {
        let text = format!("{address} is {} and not {expected}: the address was given to another node", hello.id);
        return Err(Failure::Refused(Refusal::WrongId { found: Some(hello.id) }, text));
    }
    Ok(Open { of_use, inbound, hello, first })
}

/// What an attempt that failed before the Hello came to. HTTP/2 knows little of what lies below it.
fn failure(address: &Address, attempt: &Attempt, status: &Status) -> Failure {
    match (attempt.trouble(), status.code()) {
        (Some(trouble), _) if trouble.is_about_trust() => {
            Failure::Refused(Refusal::Untrusted, format!("{address}: {trouble}"))
        }
        (Some(trouble), _) => Failure::NotConnected(format!("{address}: {trouble}")),
        // The server's own words; a transport that fails says Unavailable or Unknown.
        (None, Code::FailedPrecondition) => Failure::Refused(Refusal::Rejected, status.message().to_owned()),
        (None, Code::Unauthenticated) => {
            Failure::Refused(Refusal::Untrusted, format!("{address}: {}", status.message()))
        }
        (None, _) => Failure::NotConnected(format!("{address}: {}", status.message())),
    }
}

/// Reads one connection to its end.
async fn converse(link: &Arc<Link>, open: Open, events: &LinkEvents) -> End {
    let Open { of_use: _of_use, mut inbound, hello, first } = open;
    take_hello(link, &hello);
    let id = hello.id.clone();
    link.local.counters.connected.up();
    *link.failure.lock() = None;
    // Before the membership hears of it: once the peer is in the view, requests must flow.
    let waker = {
        let mut table = link.table.lock();
        table.connected(link.local.clock.now_ms());
        table.waker.take()
    };
    wake(waker);
    send(events, link, LinkEvent::Hello(hello)).await;
    let mut next = Some(first);
    loop {
        if let Some(frame) = next.take() {
            let answers = frame.answers.len();
            if let Some(event) = take(link, frame) {
                send(events, link, event).await;
            }
            if answers >= MANY_ANSWERS {
                // Those who were told ask for more, and that is sent, while the peer is at work on the rest.
                tokio::task::yield_now().await;
            }
        }
        let frame = tokio::select! {
            biased;
            frame = inbound.message() => frame,
            () = link.look.notified() => match link.table.lock().verdict(link.local.clock.now_ms()) {
                Some(end) => return end,
                None => continue,
            },
        };
        let mut frame = match frame {
            Ok(Some(frame)) => frame,
            Ok(None) | Err(_) => return End::Broken,
        };
        match frame.hello() {
            Some(Ok(hello)) if hello.id == id => {
                take_hello(link, &hello);
                send(events, link, LinkEvent::Hello(hello)).await;
            }
            // A connection speaks for one node all its life.
            Some(_) => return End::Broken,
            None => {}
        }
        // However much a peer says: the branch that waits to look may never have its turn.
        if let Some(end) = link.table.lock().dismissal() {
            return end;
        }
        next = Some(frame);
    }
}

fn take_hello(link: &Link, hello: &Hello) {
    link.offers.store(Arc::new(hello.groups.iter().map(|g| (Arc::clone(&g.name), g.format)).collect()));
    link.max_requests.store(hello.max_requests_per_frame.min(BATCH_REQUESTS) as u64, Relaxed);
    link.max_value_bytes.store(hello.max_value_bytes as u64, Relaxed);
    link.features.store(hello.features, Relaxed);
    link.leaves.store(hello.state == NodeState::Draining, Relaxed);
    link.fingerprint.store(hello.fingerprint, Relaxed);
}

/// Takes everything else that a frame says; returns what the membership should hear.
fn take(link: &Link, frame: Incoming) -> Option<LinkEvent> {
    let counters = &link.local.counters;
    let mut ended = Ended::with_capacity(frame.answers.len());
    let waker = {
        let mut table = link.table.lock();
        table.read(link.local.clock.now_ms(), frame.pong);
        for Answered { id, answer, is_known } in frame.answers {
            if !is_known {
                counters.unknown_answers.up();
            }
            if answer == Answer::Pending {
                counters.pending.up(); // it is at work on it; what counts is that it said something
            } else {
                ended.extend(table.answered(id).map(|reply| (reply, Outcome::Answered(answer))));
            }
        }
        if frame.ping == 0 {
            None
        } else {
            table.pong_due = frame.ping;
            table.waker.take()
        }
    };
    wake(waker);
    tell(ended);
    if let Some(incarnation) = frame.goodbye {
        link.leaves.store(true, Relaxed);
        return Some(LinkEvent::Goodbye(incarnation));
    }
    if link.fingerprint.swap(frame.fingerprint, Relaxed) != frame.fingerprint {
        return Some(LinkEvent::Fingerprint(frame.fingerprint));
    }
    None
}

#[cfg(all(test, shuttle))]
mod interleavings;

/// Our half of a connection: yields a frame whenever something is due.
struct Outbound {
    link: Arc<Link>,
    connection: u64,
    expected: Option<PeerId>,
}

impl Stream for Outbound {
    type Item = Outgoing;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Outgoing>> {
        let local = &self.link.local;
        let mut frame = Outgoing::new(local.fingerprint());
        {
            let mut table = self.link.table.lock();
            // Read under the lock: a change after it finds the waker there.
            let version = local.version();
            if !table.is_current(self.connection) {
                return Poll::Ready(None);
            }
            let is_greeted = table.hello_sent == version;
            // Requests wait until the peer has said Hello: until then the breaker is not closed.
            let may_ask = table.breaker == Breaker::Closed;
            if is_greeted && !(may_ask && table.has_due()) {
                table.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            table.hello_sent = version;
            if may_ask {
                let max = self.link.max_requests.load(Relaxed) as usize;
                table.fill(&mut frame, max, local.clock.now_ms());
                if std::mem::take(&mut table.goodbye_due) {
                    frame.goodbye(local.hello().incarnation);
                }
            }
            if !is_greeted {
                let hello = Hello { expected: self.expected.clone(), ..Hello::clone(&local.hello()) };
                frame.hello(&hello, local.limits.max_in_flight_per_peer);
            }
        }
        if frame.requests() > 0 {
            local.counters.frames_sent.up();
            local.counters.requests_sent.add(frame.requests() as u64);
        }
        Poll::Ready(Some(frame))
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::{net::SocketAddr, sync::Arc, time::Duration};

    use tokio::{
        sync::mpsc::{self, Receiver},
        time::{Instant, sleep},
    };

    use super::{HURRIED, RECONNECT_MAX, RECONNECT_MIN, keep, pauses};
    use crate::{
        config::Limits,
        identity::Address,
        membership::stabilizer::DialId,
        net::Security,
        peer::{
            hello::Local,
            link::{Link, LinkEvent, Target},
        },
        testing::hello,
    };

    #[test]
    fn pauses_grow_to_the_longest_and_not_beyond() {
        for seed in 0..100 {
            let pauses: Vec<_> = pauses(seed).take(40).collect();
            assert!((RECONNECT_MIN..=2 * RECONNECT_MIN).contains(&pauses[0]), "{pauses:?}");
            assert!(pauses.iter().all(|pause| *pause <= RECONNECT_MAX), "{pauses:?}");
            assert!(pauses[20..].iter().all(|pause| *pause >= RECONNECT_MAX / 2), "{pauses:?}");
        }
    }

    type Events = Receiver<(DialId, LinkEvent)>;

    /// A link to where nobody listens, and what it says.
    fn in_vain() -> (Arc<Link>, Events) {
        let local = Arc::new(Local::new(hello("a"), Limits::default(), Security::Open { is_insecure: true }));
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
        link.hurry();
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
            link.hurry();
            sleep(Duration::from_millis(1)).await;
        }
        let attempts = std::iter::from_fn(|| events.try_recv().ok()).count() as u32;
        assert!((4 * HURRIED - 4..=4 * HURRIED * 2).contains(&attempts), "{attempts}");
    }
}
