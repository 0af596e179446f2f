//! What waits to be sent to one peer: answers in order, within a byte limit that the reader never waits for.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    config::{BATCH_BYTES, RETRY_AFTER},
    message::Answer,
    peer::hello::Local,
    sync::Mutex,
    wire::{Outgoing, answer_bytes},
};

/// Small answers that may wait for a peer on top of the byte limit; one that reads none of them is cut off.
const MAX_QUEUED_ANSWERS: usize = 1 << 16;

/// What waits to be sent to one peer.
pub(crate) struct Outbox {
    local: Arc<Local>,
    queue: Mutex<Queue>,
    /// Requests that wait for loads.
    waiting: AtomicUsize,
    /// The stream that sends was dropped: the peer is gone.
    abandoned: CancellationToken,
}

#[derive(Default)]
struct Queue {
    answers: VecDeque<(u64, Answer)>,
    bytes: usize,
    pong: u64,
    hello_sent: u64,
    goodbye_due: bool,
    closed: Option<Option<Status>>,
    waker: Option<Waker>,
}

impl Outbox {
    pub(super) fn new(local: Arc<Local>) -> Self {
        Self { local, queue: Mutex::default(), waiting: AtomicUsize::new(0), abandoned: CancellationToken::new() }
    }

    /// Queues answers; those for which there is no room become `overloaded`.
    pub(super) fn push(&self, answers: impl ExactSizeIterator<Item = (u64, Answer)>) {
        if answers.len() == 0 {
            return;
        }
        self.change(|queue| {
            for (id, mut answer) in answers {
                let mut bytes = answer_bytes(&answer);
                if queue.bytes + bytes > self.local.limits.max_queued_answer_bytes {
                    answer = Answer::Overloaded { retry_after: RETRY_AFTER };
                    bytes = answer_bytes(&answer);
                }
                queue.bytes += bytes;
                queue.answers.push_back((id, answer));
            }
        });
    }

    pub(super) fn now_waiting(&self, requests: usize) {
        self.waiting.store(requests, Relaxed);
    }

    /// Whether the goodbye has yet to be taken by the connection.
    pub(super) fn owes_goodbye(&self) -> bool {
        self.queue.lock().goodbye_due
    }

    /// Requests that are not answered, and answers that are not sent.
    pub(super) fn owes(&self) -> usize {
        self.waiting.load(Relaxed) + self.queue.lock().answers.len()
    }

    /// Forgets what waits for a peer that does not read.
    pub(super) fn clear(&self) {
        self.change(|queue| {
            queue.answers.clear();
            queue.bytes = 0;
        });
    }

    pub(super) fn pong(&self, number: u64) {
        self.change(|queue| queue.pong = number);
    }

    pub(super) fn say_goodbye(&self) {
        self.change(|queue| queue.goodbye_due = true);
    }

    /// Ends the stream after what is queued; with an error when the peer is to know one.
    pub(super) fn close(&self, status: Option<Status>) {
        self.change(|queue| {
            queue.closed.get_or_insert(status);
        });
    }

    pub(super) fn wake(&self) {
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

    pub(super) fn is_overrun(&self) -> bool {
        self.queue.lock().answers.len() > MAX_QUEUED_ANSWERS
    }

    pub(super) async fn abandoned(&self) {
        self.abandoned.cancelled().await;
    }
}

/// Our half of a connection that a peer opened.
pub(crate) struct Outbound(pub(super) Arc<Outbox>);

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
        // Written outside of the lock: whoever reads the connection has more of them.
        drop(queue);
        frame.answers(answers);
        Poll::Ready(Some(Ok(frame)))
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        self.0.abandoned.cancel();
    }
}
