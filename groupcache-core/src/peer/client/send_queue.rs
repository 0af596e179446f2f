//! Queue of what is to be sent to one peer: requests and cancels, in order and within a bound.
//!
//! A peer may talk and never read, so that its connection lives and nothing leaves. An item takes 16 bytes. The queue
//! lets go of requests that have ended unsent. Cancels leave before later requests, so that they are no more than the
//! requests that the peer can have.

use std::collections::VecDeque;

/// Number of requests that have ended unsent which are kept before the queue is searched for them: 16 KiB of items, so
/// that a search is worth its time.
const MAX_ENDED: usize = 1024;

/// Item of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queued {
    Request(u64),
    Cancel(u64),
}

/// Requests and cancels that wait for a frame.
#[derive(Debug, Default)]
pub(super) struct SendQueue {
    items: VecDeque<Queued>,
    /// Number of requests that have ended unsent and are still in the queue; an estimate from above.
    ended: usize,
}

impl SendQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Adds a request.
    pub(super) fn request(&mut self, id: u64) {
        self.items.push_back(Queued::Request(id));
    }

    /// Adds the cancel of a request that was sent.
    pub(super) fn cancel(&mut self, id: u64) {
        self.items.push_back(Queued::Cancel(id));
    }

    /// Records that a request has ended before it was sent. Requests for which `waits` is false are removed once they are
    /// more than half of the queue, so that each costs the time of two items.
    pub(super) fn ended_unsent(&mut self, waits: impl Fn(u64) -> bool) {
        self.ended += 1;
        if self.ended > MAX_ENDED && self.ended > self.items.len() / 2 {
            self.items.retain(|item| match item {
                Queued::Request(id) => waits(*id),
                Queued::Cancel(_) => true,
            });
            self.ended = 0;
        }
    }

    /// Takes the next item. An item that has ended unsent is found by its caller.
    pub(super) fn next(&mut self) -> Option<Queued> {
        let next = self.items.pop_front();
        if self.items.is_empty() {
            self.ended = 0;
        }
        next
    }

    pub(super) fn clear(&mut self) {
        self.items.clear();
        self.ended = 0;
    }
}
