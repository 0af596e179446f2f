//! A request with one response, for a task that waits for it.

use std::sync::Arc;

use tokio::{sync::oneshot, time::Instant};

use crate::{
    peer::client::{
        call::{Call, Outcome},
        link::Link,
        receiver::{Receiver, Reply},
    },
    protocol::{chain::LoadChain, message::Op},
    runtime::sync::Mutex,
};

/// Receiver of the outcome of one request.
pub(crate) type PendingOutcome = oneshot::Receiver<Outcome>;

impl Link {
    /// Sends a request that serves no load; `None` when the breaker is open or too many requests wait.
    ///
    /// `group` is the index of the group in this node's Hello, and `rank` the rank at which the peer is asked: 0 as the
    /// owner. Dropping the receiver discards the outcome.
    pub(crate) fn request(
        &self,
        op: Op,
        group: u32,
        key: &Arc<str>,
        deadline_ms: u64,
        rank: usize,
    ) -> Option<PendingOutcome> {
        self.request_by(|reply| Call {
            op,
            group,
            key: Arc::clone(key),
            deadline_ms,
            rank,
            chain: LoadChain::EMPTY,
            number: 0,
            known: Vec::new(),
            strikes: None,
            reply,
        })
    }

    /// Sends the request that `call` makes of the receiver of its outcome. Otherwise as [`request`](Self::request).
    pub(crate) fn request_by(&self, call: impl FnOnce(Receiver) -> Call) -> Option<PendingOutcome> {
        let (outcome, pending) = oneshot::channel();
        let reply = Arc::new(SendOutcome(Mutex::new(Some(outcome))));
        self.send(call(Receiver::new(reply))).ok().map(|()| pending)
    }
}

/// Sends the outcome of a request to the task that waits for it.
struct SendOutcome(Mutex<Option<oneshot::Sender<Outcome>>>);

impl Reply for SendOutcome {
    fn reply(self: Arc<Self>, outcome: Outcome, _: Instant) {
        if let Some(waiting) = self.0.lock().take() {
            // Fails only when the task has given up.
            let _ = waiting.send(outcome);
        }
    }
}
