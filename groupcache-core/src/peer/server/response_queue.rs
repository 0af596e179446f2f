//! What waits to be sent to one peer: answers in order, within a byte limit that the reader never waits for.

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
    limits::{BATCH_BYTES, RETRY_AFTER},
    peer::local::LocalNode,
    protocol::{
        message::Response,
        wire::{Outgoing, answer_bytes},
    },
    runtime::{clock::later, sync::Mutex},
};

/// Small answers that may wait for a peer on top of the byte limit; one that reads none of them is cut off.
const MAX_QUEUED_ANSWERS: usize = 1 << 16;

/// Answers of loads that have ended may be so many times what others may be: nothing can make them wait.
const LOADED: usize = 4;

/// A peer that takes none of its answers for so long is told `overloaded` instead of more of them.
const STUCK: Duration = Duration::from_secs(1);

/// What waits to be sent to one peer.
pub(crate) struct ResponseQueue {
    local: Arc<LocalNode>,
    queue: Mutex<Queue>,
    /// Some of it was taken.
    taken: Notify,
    /// Requests that wait for loads.
    waiting: AtomicUsize,
    /// The stream that sends was dropped: the peer is gone.
    abandoned: CancellationToken,
}

#[derive(Default)]
struct Queue {
    answers: VecDeque<(u64, Response)>,
    bytes: usize,
    /// When some of them were taken, or there were none.
    taken_ms: u64,
    pong: u64,
    hello_sent: u64,
    goodbye_due: bool,
    closed: Option<Option<Status>>,
    waker: Option<Waker>,
}

impl ResponseQueue {
    pub(crate) fn new(local: Arc<LocalNode>) -> Self {
        Self {
            local,
            queue: Mutex::default(),
            taken: Notify::new(),
            waiting: AtomicUsize::new(0),
            abandoned: CancellationToken::new(),
        }
    }

    /// Queues answers. Where there is no [`room`](Self::room) those that are longer than `overloaded` become that: a write
    /// that was done is not refused.
    pub(crate) fn push(&self, answers: impl ExactSizeIterator<Item = (u64, Response)>) {
        self.push_within(self.local.limits.max_queued_answer_bytes, answers);
    }

    /// Queues the answer of a load that has ended: it is there already.
    pub(crate) fn push_completed(&self, id: u64, answer: Response) {
        self.push_within(self.limit_of_loaded(), std::iter::once((id, answer)));
    }

    /// Whether the answer of a load that has ended would not become `overloaded`.
    pub(crate) fn has_room_for_loaded(&self) -> bool {
        self.queue.lock().bytes < self.limit_of_loaded()
    }

    fn limit_of_loaded(&self) -> usize {
        self.local.limits.max_queued_answer_bytes.saturating_mul(LOADED)
    }

    fn push_within(&self, limit: usize, answers: impl ExactSizeIterator<Item = (u64, Response)>) {
        if answers.len() == 0 {
            return;
        }
        let now_ms = self.local.clock.now_ms();
        self.change(|queue| {
            if queue.answers.is_empty() {
                queue.taken_ms = now_ms;
            }
            // For all of them, which are few: those of one turn of the reader. What is pushed may go beyond the limit, or a
            // large answer would never be sent.
            let has_room = queue.bytes < limit;
            for (id, mut answer) in answers {
                let overloaded = Response::Overloaded { retry_after: RETRY_AFTER };
                if !has_room && answer_bytes(&answer) > answer_bytes(&overloaded) {
                    answer = overloaded;
                }
                queue.bytes += answer_bytes(&answer);
                queue.answers.push_back((id, answer));
            }
        });
    }

    /// Waits for room, as long as the peer goes on to take its answers. Dropping the future is safe.
    pub(crate) async fn room(&self) {
        loop {
            let stuck_ms = {
                let queue = self.queue.lock();
                if queue.bytes < self.local.limits.max_queued_answer_bytes {
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

    pub(crate) fn now_waiting(&self, requests: usize) {
        self.waiting.store(requests, Relaxed);
    }

    /// Whether the goodbye has yet to be taken by the connection.
    pub(crate) fn owes_goodbye(&self) -> bool {
        self.queue.lock().goodbye_due
    }

    /// Requests that are not answered, and answers that are not sent.
    pub(crate) fn owes(&self) -> usize {
        self.waiting.load(Relaxed) + self.queue.lock().answers.len()
    }

    /// Forgets what waits for a peer that does not read.
    pub(crate) fn clear(&self) {
        self.change(|queue| {
            queue.answers.clear();
            queue.bytes = 0;
        });
    }

    pub(crate) fn pong(&self, number: u64) {
        self.change(|queue| queue.pong = number);
    }

    pub(crate) fn say_goodbye(&self) {
        self.change(|queue| queue.goodbye_due = true);
    }

    /// Ends the stream after what is queued; with an error when the peer is to know one.
    pub(crate) fn close(&self, status: Option<Status>) {
        self.change(|queue| {
            queue.closed.get_or_insert(status);
        });
    }

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

    pub(crate) fn is_overrun(&self) -> bool {
        self.queue.lock().answers.len() > MAX_QUEUED_ANSWERS
    }

    pub(crate) async fn abandoned(&self) {
        self.abandoned.cancelled().await;
    }
}

/// Our half of a connection that a peer opened.
pub(crate) struct Outbound(pub(crate) Arc<ResponseQueue>);

impl Stream for Outbound {
    type Item = Result<Outgoing, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let local = &self.0.local;
        let mut frame = Outgoing::new(local.fingerprint());
        let mut queue = self.0.queue.lock();
        // Read under the lock: a change after it finds the waker there.
        let version = local.version();
        let is_greeted = queue.hello_sent == version;
        if is_greeted && queue.answers.is_empty() && queue.pong == 0 && !queue.goodbye_due {
            return match queue.closed.take() {
                Some(status) => {
                    queue.closed = Some(None); // said once
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
        queue.taken_ms = local.clock.now_ms();
        // Written outside of the lock: whoever reads the connection has more of them.
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
