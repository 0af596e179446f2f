//! Queue of the responses that wait to be sent to one peer, in order and within a limit of bytes.
//!
//! The reader of the connection pushes responses, and HTTP/2 polls [`Outbound`] for frames. The reader waits for room
//! only while the peer takes responses. A peer that takes none for a second receives `overloaded` instead of longer
//! responses, so that it cannot make the node hold more memory.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_core::Stream;
use tokio::{sync::Notify, time::sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    identity::{Instance, PeerId},
    limits::{BATCH_BYTES, MEMORY_PARTS, RETRY_AFTER},
    peer::local::LocalNode,
    protocol::{
        message::{Hello, Response},
        wire::{Outgoing, answer_bytes, features},
    },
    runtime::{clock::later, memory_limit, sync::Mutex},
    write::knowledge::SentKnowledge,
};

/// Maximum number of queued responses. Responses no longer than `overloaded` are queued beyond the byte limit too, and
/// the connection of a peer that does not read them ends above this number.
const MAX_QUEUED_ANSWERS: usize = 1 << 16;

/// Least maximum of the bytes of responses that are queued for all peers: those of sixteen peers with the default limit
/// that read nothing.
const QUEUED_FOR_ALL: usize = 128 << 20;

/// Least maximum of these bytes in limits of one peer.
const QUEUES: usize = 16;

/// Factor by which the byte limit is higher for responses of loads that have ended, because nothing can make them wait.
const COMPLETED_FACTOR: usize = 4;

/// Time without a taken response after which a peer receives `overloaded` instead of further responses.
const STUCK: Duration = Duration::from_secs(1);

/// Responses, pong, Hello and goodbye that wait to be sent to one peer.
pub(crate) struct ResponseQueue {
    local: Arc<LocalNode>,
    queue: Mutex<Queue>,
    /// Notified when responses were taken.
    taken: Notify,
    /// Number of requests that wait for loads.
    waiting: AtomicUsize,
    /// Cancelled when the sending stream is dropped, because the connection is gone then.
    abandoned: CancellationToken,
    /// The peer, if it keeps logs of writes.
    writer: Option<Instance>,
}

#[derive(Default)]
struct Queue {
    answers: VecDeque<(u64, Response)>,
    bytes: usize,
    /// Coarse time at which a frame was taken last, or at which the first response entered the empty queue.
    taken_ms: u64,
    /// Number of the ping to answer; 0 = none.
    pong: u64,
    /// Nodes of which that ping asked for the acknowledgements.
    asked: Vec<PeerId>,
    /// Knowledge of writes that this node has shown on this connection.
    knowledge_sent: SentKnowledge,
    /// Number of the change of strikes up to which this node has shown them on this connection.
    strikes_sent: u64,
    /// Whether the queue has the acknowledgement of a write.
    has_acknowledgement: bool,
    /// Version of the Hello that was sent last; 0 = none.
    hello_sent: u64,
    goodbye_due: bool,
    /// Present once the stream is to end, with the error that the peer receives before.
    closed: Option<Option<Status>>,
    waker: Option<Waker>,
}

impl Queue {
    /// Adds what the frame is to show of writes: with a pong all that has changed, and otherwise the company, if it has
    /// changed, and the position in the log of the peer. The company precedes the answers, so that an acknowledgement
    /// shows the company of its moment or later.
    fn show_writes(&mut self, writer: &Instance, local: &LocalNode, frame: &mut Outgoing) {
        let writes = &local.writes;
        // Before the company, because an acknowledgement shows the company of its moment or later.
        let acknowledged = std::mem::take(&mut self.has_acknowledgement).then(|| writes.position(writer));
        if self.pong != 0 || writes.owes_company(&self.knowledge_sent) {
            let asked = std::mem::take(&mut self.asked);
            let sent = &mut self.knowledge_sent;
            frame.knowledge(&writes.knowledge_for(&writer.id, sent, Some(&asked), local.clock.now_ms()));
        }
        frame.acknowledged(acknowledged.unwrap_or(0));
    }
}

impl ResponseQueue {
    /// Makes the queue of a peer that has sent this Hello.
    pub(crate) fn new(local: Arc<LocalNode>, hello: &Hello) -> Self {
        let has_log = hello.features & features::WRITE_LOG != 0;
        Self {
            writer: has_log.then(|| hello.instance()),
            local,
            queue: Mutex::default(),
            taken: Notify::new(),
            waiting: AtomicUsize::new(0),
            abandoned: CancellationToken::new(),
        }
    }

    /// Queues responses. Without [`room`](Self::room), each response that is longer than `overloaded` becomes
    /// `overloaded`. Shorter ones are kept, so that a write that was done is not reported as refused.
    pub(crate) fn push(&self, answers: impl ExactSizeIterator<Item = (u64, Response)>) {
        self.push_within(self.local.limits.max_queued_answer_bytes, answers);
    }

    /// Queues the response of a load that has ended. The limit is higher, because the value is in memory already.
    pub(crate) fn push_completed(&self, id: u64, answer: Response) {
        self.push_within(self.completed_limit(), std::iter::once((id, answer)));
    }

    /// Returns whether the response of a load that has ended would be queued as it is.
    pub(crate) fn has_room_for_completed(&self) -> bool {
        self.queue.lock().bytes < self.share(self.completed_limit())
    }

    /// Returns the limit of this queue: the given one, and at most what all queues leave free. Slow peers therefore leave
    /// room for another one; see [`ByteBudget::take_share`](crate::runtime::byte_budget::ByteBudget::take_share).
    fn share(&self, limit: usize) -> usize {
        let limit_of_one = self.local.limits.max_queued_answer_bytes;
        let of_all = limit_of_one.saturating_mul(QUEUES).max(QUEUED_FOR_ALL);
        let of_all = memory_limit::part(MEMORY_PARTS, of_all).max(limit_of_one);
        limit.min(of_all.saturating_sub(self.local.queued_answer_bytes.load(Relaxed)))
    }

    fn completed_limit(&self) -> usize {
        self.local.limits.max_queued_answer_bytes.saturating_mul(COMPLETED_FACTOR)
    }

    fn push_within(&self, limit: usize, answers: impl ExactSizeIterator<Item = (u64, Response)>) {
        if answers.len() == 0 {
            return;
        }
        let (now_ms, limit) = (self.local.clock.now_ms(), self.share(limit));
        self.change(|queue| {
            let before = queue.bytes;
            if queue.answers.is_empty() {
                queue.taken_ms = now_ms;
            }
            // The limit is checked once for the batch, because the reader pushes one batch at a time. A batch may
            // exceed the limit, and an empty queue takes one whatever the queues of others have; otherwise a large
            // response would never be sent, and peers that read nothing would keep it from those that read.
            let has_room = queue.bytes == 0 || queue.bytes < limit;
            for (id, mut answer) in answers {
                let overloaded = Response::Overloaded { retry_after: RETRY_AFTER };
                if !has_room && answer_bytes(&answer) > answer_bytes(&overloaded) {
                    self.local.counters.answers_without_room.up();
                    answer = overloaded;
                }
                queue.has_acknowledgement |= answer == Response::Done;
                queue.bytes += answer_bytes(&answer);
                if answer == Response::Begun {
                    queue.answers.push_front((id, answer)); // has to leave before the process may end
                } else {
                    queue.answers.push_back((id, answer));
                }
            }
            self.local.queued_answer_bytes.fetch_add(queue.bytes - before, Relaxed);
        });
    }

    /// Waits for room as long as the peer takes responses, and returns without room once it has taken none for
    /// [`STUCK`]. Dropping the future is safe.
    pub(crate) async fn room(&self) {
        loop {
            let stuck_ms = {
                let queue = self.queue.lock();
                if queue.bytes == 0 || queue.bytes < self.share(self.local.limits.max_queued_answer_bytes) {
                    return;
                }
                later(queue.taken_ms, STUCK)
            };
            if self.local.clock.read_ms() >= stuck_ms {
                return;
            }
            tokio::select! {
                () = self.taken.notified() => {}
                () = sleep_until(self.local.clock.instant(stuck_ms)) => {}
            }
        }
    }

    /// Sets the number of requests that wait for loads.
    pub(crate) fn set_waiting(&self, requests: usize) {
        self.waiting.store(requests, Relaxed);
    }

    /// Returns whether the connection has not taken the goodbye yet.
    pub(crate) fn owes_goodbye(&self) -> bool {
        self.queue.lock().goodbye_due
    }

    /// Returns the number of requests without a response, plus the responses that are not sent yet.
    pub(crate) fn owes(&self) -> usize {
        self.waiting.load(Relaxed) + self.queue.lock().answers.len()
    }

    /// Drops the responses of a peer that does not read them.
    pub(crate) fn clear(&self) {
        self.change(|queue| {
            queue.answers.clear();
            self.taken_bytes(std::mem::take(&mut queue.bytes));
        });
    }

    /// Records that bytes have left the queue.
    fn taken_bytes(&self, bytes: usize) {
        self.local.queued_answer_bytes.fetch_sub(bytes, Relaxed);
    }

    /// Answers a ping with the next frame. `asked` are the nodes of which the ping asked for the acknowledgements.
    pub(crate) fn pong(&self, number: u64, asked: Vec<PeerId>) {
        self.change(|queue| (queue.pong, queue.asked) = (number, asked));
    }

    /// Sends a goodbye with the next frame.
    pub(crate) fn say_goodbye(&self) {
        self.change(|queue| queue.goodbye_due = true);
    }

    /// Ends the stream after the queued responses, with an error if the peer is to receive one. The first call counts.
    pub(crate) fn close(&self, status: Option<Status>) {
        self.change(|queue| {
            queue.closed.get_or_insert(status);
        });
    }

    /// Wakes the stream, so that it sends a changed Hello.
    pub(crate) fn wake(&self) {
        self.change(|_| ());
    }

    fn change(&self, change: impl FnOnce(&mut Queue)) {
        let waker = {
            let mut queue = self.queue.lock();
            change(&mut queue);
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Returns whether more responses are queued than the maximum.
    pub(crate) fn is_overrun(&self) -> bool {
        self.queue.lock().answers.len() > MAX_QUEUED_ANSWERS
    }

    /// Waits until the sending stream is dropped.
    pub(crate) async fn abandoned(&self) {
        self.abandoned.cancelled().await;
    }
}

impl Drop for ResponseQueue {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Stream of the frames that this node sends on a connection that a peer opened.
pub(crate) struct Outbound(pub(crate) Arc<ResponseQueue>);

impl Stream for Outbound {
    type Item = Result<Outgoing, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let local = &self.0.local;
        let mut frame = Outgoing::new(local.fingerprint());
        let mut queue = self.0.queue.lock();
        // Read under the lock, so that a later change finds the waker in its place.
        let version = local.version();
        let is_greeted = queue.hello_sent == version;
        if is_greeted && queue.answers.is_empty() && queue.pong == 0 && !queue.goodbye_due {
            return match queue.closed.take() {
                Some(status) => {
                    queue.closed = Some(None); // the error is returned once, and later polls end the stream
                    Poll::Ready(status.map(Err))
                }
                None => {
                    queue.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        if !is_greeted {
            queue.hello_sent = version;
            frame.hello(&local.hello(), local.limits.max_serving_per_peer);
        }
        if std::mem::take(&mut queue.goodbye_due) {
            frame.goodbye(local.hello().incarnation);
        }
        if !is_greeted || queue.pong != 0 {
            frame.suspects(local.quarantine.news(&mut queue.strikes_sent, local.clock.now_ms()));
        }
        if let Some(writer) = &self.0.writer {
            queue.show_writes(writer, local, &mut frame);
        }
        frame.pong(std::mem::take(&mut queue.pong));
        let (mut answers, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES
            && let Some((id, answer)) = queue.answers.pop_front()
        {
            let size = answer_bytes(&answer);
            queue.bytes -= size;
            bytes += size;
            answers.push((id, answer));
        }
        self.0.taken_bytes(bytes);
        queue.taken_ms = local.clock.now_ms();
        // Encoded outside of the lock, because the reader of the connection pushes more responses meanwhile.
        drop(queue);
        self.0.taken.notify_one();
        frame.answers(answers);
        Poll::Ready(Some(Ok(frame)))
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        self.0.abandoned.cancel();
    }
}

#[cfg(test)]
#[cfg(not(any(shuttle, simulation)))]
mod tests {
    use bytes::Bytes;
    use futures_util::{FutureExt, StreamExt};

    use super::*;
    use crate::{
        limits::Limits,
        protocol::message::{Encoded, Source},
        testing::unit::hello,
        transport::Security,
    };

    const MIB: usize = 1 << 20;

    fn value() -> Response {
        let bytes = Bytes::from_static(&[0; MIB]);
        let source = Source::Loaded;
        let (as_of_age_ms, remaining_ms) = (None, None);
        Response::Value(Encoded { bytes, age_ms: 0, as_of_age_ms, remaining_ms, borrow_ms: 0, is_hot: false, source })
    }

    /// Checks that peers which read nothing have a part of the bytes of all queues each, that another peer has room beside
    /// them, and that a queue gives its bytes back when it is read, cleared or dropped.
    #[tokio::test]
    async fn slow_peers_leave_room_for_responses_to_another() {
        let local = Arc::new(LocalNode::new(
            hello("a"),
            Limits::default(),
            Security::Open { is_insecure: true },
            Arc::default(),
        ));
        let queue = |id: &str| Arc::new(ResponseQueue::new(Arc::clone(&local), &hello(id)));
        let used = || local.queued_answer_bytes.load(Relaxed);
        let fill = |queue: &ResponseQueue, count: u64| {
            (0..count).for_each(|id| queue.push(std::iter::once((id, value()))));
            queue.queue.lock().bytes / MIB
        };
        let slow: Vec<_> = (0..40).map(|_| queue("slow")).collect();
        let filled: Vec<_> = slow.iter().map(|queue| fill(queue, 20)).collect();
        assert_eq!(filled[..15], [8; 15], "the limit of one peer");
        assert!(used() <= 130 * MIB + 40 * MIB, "{filled:?}");
        assert!(fill(&queue("other"), 1) >= 1, "a peer that reads, beside slow ones that have everything");
        drop(slow);
        assert_eq!(used(), 0, "queues that are gone");
        let slow: Vec<_> = (0..40).map(|_| queue("slow")).collect();
        for _ in 0..20 {
            slow.iter().for_each(|queue| assert!(fill(queue, 1) <= 8));
        }
        let other = queue("other");
        assert!(fill(&other, 20) >= 2, "room beside 40 slow peers, which have {} MiB", used() / MIB);
        let (before, mut outbound) = (used(), Outbound(Arc::clone(&other)));
        while let Some(Some(_)) = outbound.next().now_or_never() {}
        assert!(used() < before - MIB && other.room().now_or_never().is_some(), "read");
        slow.iter().for_each(|queue| queue.clear());
        assert_eq!(used(), 0);
    }
}
