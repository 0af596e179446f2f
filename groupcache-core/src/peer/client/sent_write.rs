//! A write on its way to many peers, and the wait until each of them has answered or cannot.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire},
    },
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    identity::{Instance, PeerId},
    peer::{
        client::{
            call::{Call, Outcome},
            link::Link,
            receiver::{Receiver, Reply},
        },
        local::LocalNode,
    },
    protocol::message::{Decline, Response},
    runtime::sync::Mutex,
};

/// Write that is sent to many peers.
pub(crate) struct SentWrite {
    local: Arc<LocalNode>,
    number: u64,
    /// Number of requests without an outcome, and one more until all are sent.
    waiting: AtomicUsize,
    answered: Notify,
    /// Peers that the write was sent to.
    peers: Mutex<BTreeSet<PeerId>>,
}

impl SentWrite {
    pub(crate) fn new(local: Arc<LocalNode>, number: u64) -> Arc<Self> {
        Arc::new(Self { local, number, waiting: AtomicUsize::new(1), answered: Notify::new(), peers: Mutex::default() })
    }

    /// Sends the request that `call` makes. A peer that takes no request hears of the write from others, or asks for it.
    pub(crate) fn send(self: &Arc<Self>, link: &Link, call: impl FnOnce(Receiver) -> Call) {
        let Some(peer) = link.instance() else { return };
        self.waiting.fetch_add(1, AcqRel);
        self.peers.lock().insert(peer.id.clone());
        let reply = Arc::new(SentTo { write: Arc::clone(self), peer, has_log: link.has_log() });
        if link.send(call(Receiver::new(reply))).is_err() {
            self.one_less();
        }
    }

    /// Records that the write was sent to a peer by other means.
    pub(crate) fn was_sent_to(&self, id: &PeerId) {
        self.peers.lock().insert(id.clone());
    }

    /// Returns the peers that the write was sent to.
    pub(crate) fn peers(&self) -> BTreeSet<PeerId> {
        self.peers.lock().clone()
    }

    /// Records that the write is sent to all peers.
    pub(crate) fn all_sent(&self) {
        self.one_less();
    }

    fn one_less(&self) {
        if self.waiting.fetch_sub(1, AcqRel) == 1 {
            self.answered.notify_waiters();
        }
    }

    /// Waits until each request has an outcome. Dropping the future leaves nothing behind.
    pub(crate) async fn answered(&self) {
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            if self.waiting.load(Acquire) == 0 {
                return;
            }
            answered.await;
        }
    }
}

/// Receiver of the outcome of one request. A peer that keeps logs acknowledges by its position, in the same frame.
struct SentTo {
    write: Arc<SentWrite>,
    peer: Instance,
    has_log: bool,
}

impl Reply for SentTo {
    fn reply(self: Arc<Self>, outcome: Outcome, _: Instant) {
        // A node without the group holds no value of it.
        let is_done = matches!(outcome, Outcome::Answered(Response::Done | Response::Declined(Decline::UnknownGroup)));
        if is_done && !self.has_log {
            self.write.local.writes.acknowledged_one(&self.peer, self.write.number);
        }
        self.write.one_less();
    }
}
