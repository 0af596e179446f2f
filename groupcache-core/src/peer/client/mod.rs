//! The client of one peer: one connection with one stream of frames each way, kept up until the peer is removed.
//!
//! Callers put requests into the [`RequestTable`](crate::peer::client::request_table::RequestTable). The stream that
//! HTTP/2 polls for the next message takes many of them at a time, and the task that reads the responses calls their
//! receivers. A request costs no task, no timer and no channel, and simultaneous requests of many callers share a
//! frame.

pub(crate) mod breaker;
pub(crate) mod call;
mod deadlines;
mod dial;
pub(crate) mod dial_limits;
mod in_flight;
#[cfg(all(test, shuttle))]
mod interleavings;
pub(crate) mod link;
mod outbound;
pub(crate) mod receiver;
pub(crate) mod request;
pub(crate) mod request_table;
mod send_queue;
pub(crate) mod sent_write;
mod silence;
mod slots;
#[cfg(all(test, not(shuttle)))]
mod tests;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::peer::client::{
    dial::{Failure, Open, connect},
    dial_limits::{Arrival, Claim, DialError},
};
use crate::{
    error::{Error, Kind},
    identity::{Instance, NodeState, PeerId},
    limits::{BATCH_REQUESTS, RECONNECT_MAX, RECONNECT_MIN},
    membership::stabilizer::Refusal,
    peer::client::{
        breaker::{Breaker, End},
        call::{Ended, Outcome},
        link::{Link, LinkEvent, LinkEvents, Target, tell, wake},
    },
    peer::witnesses::Witness,
    protocol::{
        message::{Hello, Response},
        wire::{Answered, Incoming},
    },
    runtime::backoff::pauses,
};

/// Shortest life of a good connection, after which the next attempt is made at once and the pauses begin anew.
const GOOD_CONNECTION: Duration = Duration::from_secs(1);

/// Number of responses in a frame after which their callers run before the next frame is read.
const MANY_ANSWERS: usize = 8;

/// Longest time that callers wait for a broken connection to be replaced.
const MENDING: Duration = Duration::from_secs(1);

/// Divisor of a pause that is expedited: an eighth of it is always waited for. Without authentication anybody may
/// connect in the name of a peer any number of times, and the node that connects may be another than the target of a
/// hint.
const EXPEDITED: u32 = 8;

/// Shortest time between two attempts that are expedited.
const EXPEDITED_PAUSE: Duration = Duration::from_secs(1);

/// Factor of the pauses after a refusal, by the peer or by this node: the target is there, and is not the one that this
/// node looks for.
const REFUSED: u32 = 4;

/// Longest time that callers wait for an attempt to begin: the first pause, and no later one.
const MENDING_PAUSE: Duration = Duration::from_millis(2 * RECONNECT_MIN.as_millis() as u64);

/// Keeps a link connected until it is closed: connects, reads, and connects again with back-off and jitter.
///
/// Until the target has answered for the first time, [`DialLimits`](dial_limits::DialLimits) decide when it is dialled.
pub(crate) async fn keep(link: Arc<Link>, events: LinkEvents, seed: u64) {
    let anew = || pauses(RECONNECT_MIN, RECONNECT_MAX, seed);
    let (mut pauses, mut has_answered, mut expedited_at) = (anew(), false, None);
    for turn in 0.. {
        let claim = if has_answered { None } else { claim(&link, &events).await };
        if link.is_gone() {
            return;
        }
        let begun = Instant::now();
        let attempt = attempt(&link, claim.as_ref(), turn).await;
        if let (Some(claim), Err(failure)) = (&claim, &attempt) {
            claim.failed(failure, seed);
        }
        drop(claim);
        let pause = match attempt {
            Ok(open) => {
                has_answered = true;
                let began = Instant::now();
                let end = converse_safely(&link, open, &events).await;
                let was_good = began.elapsed() >= GOOD_CONNECTION;
                if was_good {
                    pauses = anew();
                }
                // The first attempt after a good connection starts at once, because callers wait for its outcome.
                let is_owed = end == End::Renewed || (was_good && end == End::Broken);
                let pause = if is_owed { Duration::ZERO } else { pauses.next().unwrap_or(RECONNECT_MAX) };
                let pause = if end == End::ClosedLocally { pause * REFUSED } else { pause };
                let end = if end == End::Broken && pause > MENDING_PAUSE { End::Flapping } else { end };
                finish(&link, end, &events).await;
                pause
            }
            Err(failure) => {
                let factor = if matches!(failure, Failure::Refused(..)) { REFUSED } else { 1 };
                fail(&link, failure, &events).await;
                let pause = pauses.next().unwrap_or(RECONNECT_MAX) * factor;
                pause.saturating_sub(begun.elapsed()).max(RECONNECT_MIN)
            }
        };
        if link.is_gone() {
            return;
        }
        if has_answered && !pause.is_zero() {
            rest(&link, pause, &mut expedited_at).await;
        }
        if link.is_gone() {
            return;
        }
    }
}

/// Connects, within the time that callers wait if they wait for a replacement of a connection.
async fn attempt(link: &Arc<Link>, claim: Option<&Claim<'_>>, turn: usize) -> Result<Open, Failure> {
    let is_mending = link.table.lock().breaker == Breaker::Reconnecting;
    let attempt = connect(link, claim, turn);
    if !is_mending {
        return attempt.await;
    }
    let too_late = || Failure::NotConnected("the peer did not come back at once".to_owned());
    timeout(MENDING, attempt).await.unwrap_or_else(|_| Err(too_late()))
}

/// Waits until the target may be dialled for another first attempt. Returns `None` once the link is closed.
async fn claim<'a>(link: &'a Link, events: &LinkEvents) -> Option<Claim<'a>> {
    let mut arrival = Arrival::None;
    while !link.is_gone() {
        let target = link.target.load_full();
        match link.local.dial_limits.turn(Arc::clone(&target), arrival) {
            Ok(turn) => tokio::select! {
                biased;
                () = link.retry.notified() => {} // other addresses, or the end
                () = link.awaited.notified(), if arrival < Arrival::OfTarget => arrival = Arrival::OfTarget,
                begun = turn.begin() => if begun.is_some() { return begun }, // otherwise another target is dialled there
            },
            Err(wait) => {
                // Once, because this target may not be dialled for minutes; later failures are its own.
                let is_unreported = link.failure.lock().is_none();
                if let Some((found, error)) = wait.failure.filter(|_| is_unreported) {
                    report(link, &target, found, error, events).await;
                }
                let ended = async {
                    match wait.ended {
                        Some(mut ended) => _ = ended.changed().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    () = link.retry.notified() => {}
                    () = link.awaited.notified(), if arrival < Arrival::OfTarget => arrival = Arrival::OfTarget,
                    () = link.expedited.notified(), if arrival == Arrival::None => arrival = Arrival::OfAnyPeer,
                    () = ended => {}
                    () = sleep_until(wait.until) => {}
                }
            }
        }
    }
    None
}

/// Reports the failure of another target at the same address, where `found` has answered.
async fn report(link: &Link, target: &Target, found: Option<PeerId>, error: DialError, events: &LinkEvents) {
    let (refusal, text) = match (found, &target.expected) {
        (Some(found), Some(expected)) if found != *expected => {
            let text =
                format!("{:?} is {found} and not {expected}; the address belongs to another node", target.addresses);
            (Some(Refusal::WrongId { found: Some(found) }), text)
        }
        _ => (error.refusal.filter(|why| !matches!(why, Refusal::WrongId { .. })), error.text.to_string()),
    };
    tell(link.table.lock().failed(false, link.local.clock.now_ms()));
    let kind = if refusal == Some(Refusal::Untrusted) { Kind::Unauthenticated } else { Kind::Unreachable };
    *link.failure.lock() = Some(Error::new(kind, text.clone()));
    let event = match refusal {
        Some(why) => LinkEvent::Refused(why, text),
        None => LinkEvent::Failed(text),
    };
    send(events, link, event).await;
}

/// Waits before the next attempt, for a shorter time when the peer may be back.
async fn rest(link: &Link, pause: Duration, expedited_at: &mut Option<Instant>) {
    let earliest = expedited_at.map_or_else(Instant::now, |at| at + EXPEDITED_PAUSE);
    let expedited = async {
        sleep_until(earliest.max(Instant::now() + pause / EXPEDITED)).await;
        link.expedited.notified().await;
    };
    tokio::select! {
        biased;
        () = link.retry.notified() => {}
        () = expedited => *expedited_at = Some(Instant::now()),
        () = sleep(pause) => {}
    }
}

/// Ends a connection: its calls wait for the next one, or get their outcome.
async fn finish(link: &Link, end: End, events: &LinkEvents) {
    let counters = &link.local.counters;
    if end != End::Renewed {
        counters.lost.up();
    }
    if end == End::Silent {
        counters.ping_timeouts.up();
    }
    // The table changes before the membership receives the event, because that may ping the peer at once.
    let (ended, waker) = {
        let mut table = link.table.lock();
        let ended = table.ended(end, link.leaves.load(Relaxed), link.local.clock.now_ms());
        // The stream of the ended connection sleeps, and holds the socket open until it is woken and ends.
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
    // Other refusals come from a process that was started in the place of the peer.
    let is_alive = matches!(&failure, Failure::Refused(Refusal::Untrusted | Refusal::Rejected, _));
    let ended = link.table.lock().failed(is_alive, link.local.clock.now_ms());
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

async fn send(events: &LinkEvents, link: &Link, event: LinkEvent) {
    // The membership task is gone only when the node is.
    let _ = events.send((link.dial, event)).await;
}

/// Reads one connection to its end. A panic is the end of the connection and not of the link.
async fn converse_safely(link: &Arc<Link>, open: Open, events: &LinkEvents) -> End {
    let end = AssertUnwindSafe(converse(link, open, events)).catch_unwind().await;
    end.unwrap_or_else(|_| {
        link.local.counters.connection_panics.up();
        let say = || tracing::error!(peer = ?link.target().expected, "the task that reads a connection panicked");
        let _ = catch_unwind(AssertUnwindSafe(say)); // the subscriber may be what panics
        End::Broken
    })
}

/// Reads one connection to its end.
async fn converse(link: &Arc<Link>, open: Open, events: &LinkEvents) -> End {
    let Open { close_on_drop: _close_on_drop, mut inbound, hello, first } = open;
    take_hello(link, &hello);
    let _greeted = Greeted::new(link, &hello);
    let id = hello.id.clone();
    link.local.counters.connected.up();
    *link.failure.lock() = None;
    // Before the membership receives the event, because requests must flow once the peer is in the view.
    let waker = {
        let mut table = link.table.lock();
        table.connected(hello.instance(), link.local.clock.now_ms());
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
                // The callers of these responses send more requests while the peer works on the rest.
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
                link.local.writes.greeted(&hello, false, link.local.clock.read_ms());
                send(events, link, LinkEvent::Hello(hello)).await;
            }
            // A connection belongs to one node as long as it lasts.
            Some(_) => return End::Broken,
            None => {}
        }
        // Checked after each frame, because a busy peer may keep the branch above from ever running.
        if let Some(end) = link.table.lock().dismissal() {
            return end;
        }
        next = Some(frame);
    }
}

/// Connection to a greeted peer. Dropping it records the end, however the task of the connection ends.
struct Greeted<'a>(&'a Link, Instance);

impl<'a> Greeted<'a> {
    fn new(link: &'a Arc<Link>, hello: &Hello) -> Self {
        link.set_instance(hello.instance());
        link.local.witnesses.add(hello.id.clone(), Arc::downgrade(link) as Weak<dyn Witness>);
        link.local.writes.greeted(hello, true, link.local.clock.read_ms());
        link.local.quarantine.is_alive(&hello.instance(), link.local.clock.read_ms());
        Self(link, hello.instance())
    }
}

impl Drop for Greeted<'_> {
    fn drop(&mut self) {
        self.0.local.writes.disconnected(&self.1, self.0.local.clock.read_ms());
    }
}

fn take_hello(link: &Link, hello: &Hello) {
    link.set_offers(hello.groups.iter().map(|g| (Arc::clone(&g.name), g.format)).collect());
    link.max_requests.store(hello.max_requests_per_frame.min(BATCH_REQUESTS) as u64, Relaxed);
    link.max_value_bytes.store(hello.max_value_bytes as u64, Relaxed);
    link.features.store(hello.features, Relaxed);
    link.leaves.store(hello.state == NodeState::Draining, Relaxed);
    link.fingerprint.store(hello.fingerprint, Relaxed);
}

/// Takes what a frame shows of the writes that the peer has applied. `pong` is the time at which the answered ping left,
/// and whether the pong is the first one.
fn take_knowledge(link: &Link, frame: &mut Incoming, pong: Option<(u64, bool)>) {
    let knowledge = frame.knowledge();
    if knowledge.is_none() && frame.acknowledged == 0 {
        return;
    }
    let (writes, now_ms) = (&link.local.writes, link.local.clock.read_ms());
    let Some(peer) = link.instance() else { return };
    if let Some(knowledge) = knowledge {
        writes.shown(&peer, knowledge, pong, now_ms);
    }
    if frame.acknowledged > 0 {
        writes.acknowledged(&peer, frame.acknowledged);
    }
}

/// Takes everything but the Hello out of a frame, and returns the event for the membership, if there is one.
fn take(link: &Link, mut frame: Incoming) -> Option<LinkEvent> {
    let counters = &link.local.counters;
    let mut ended = Ended::with_capacity(frame.answers.len());
    let pong = link.table.lock().read(link.local.clock.now_ms(), frame.pong);
    // Before the answers, because an acknowledgement shows the company of its sender.
    take_knowledge(link, &mut frame, pong);
    link.local.quarantine.take(&frame.suspects, link.local.clock.read_ms());
    let waker = {
        let now_ms = link.local.clock.now_ms();
        let mut table = link.table.lock();
        for Answered { id, answer, is_known } in frame.answers {
            if !is_known {
                counters.unknown_answers.up();
            }
            match answer {
                Response::Pending => counters.pending.up(), // the peer works on it; any frame ends its silence
                Response::Held => table.held(id),
                Response::Begun => table.begun(id),
                answer => ended.extend(table.answered(id, now_ms).map(|reply| (reply, Outcome::Answered(answer)))),
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
        if let Some(peer) = link.instance() {
            link.local.writes.said_goodbye(&peer, link.local.clock.read_ms());
        }
        return Some(LinkEvent::Goodbye(incarnation));
    }
    if link.fingerprint.swap(frame.fingerprint, Relaxed) != frame.fingerprint {
        return Some(LinkEvent::Fingerprint(frame.fingerprint));
    }
    None
}
