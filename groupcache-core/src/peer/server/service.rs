//! The peer service of a node: the state that all connections of peers share.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    identity::PeerId,
    peer::{group_service::Registry, local::LocalNode},
    protocol::message::{LogPart, WriteName},
    runtime::{byte_budget::ByteBudget, log_limit::LogRateLimit, sync::Keyed},
};

/// Request of a peer for the writes after the given ones, which a task of the node answers.
#[derive(Debug)]
pub(crate) struct LogRequest {
    pub(crate) after: Vec<WriteName>,
    pub(crate) answer: oneshot::Sender<Vec<LogPart>>,
}

/// Channel to the task that answers requests for writes.
pub(crate) type LogReaders = mpsc::Sender<LogRequest>;

/// State that all connections share.
pub(crate) struct Service {
    pub(crate) local: Arc<LocalNode>,
    pub(crate) registry: Arc<Registry>,
    /// Channel to the membership for peers that connect, or send again after a silence.
    pub(crate) arrivals: mpsc::Sender<PeerId>,
    pub(crate) closing: CancellationToken,
    pub(crate) hasher: Keyed,
    /// Number of requests of all peers that wait for loads on this node.
    pub(crate) waiting: Arc<AtomicUsize>,
    /// Bytes of the values in sets of all peers that wait to be decoded.
    pub(crate) values: Arc<ByteBudget>,
    pub(crate) lines: LogRateLimit,
    pub(crate) logs: LogReaders,
}

impl Service {
    /// Reports that a peer has connected to this node, or sends again after a silence, so that it is dialled soon.
    pub(crate) fn report_arrival(&self, peer: &PeerId) {
        let _ = self.arrivals.try_send(peer.clone()); // if the channel is full, the peer is dialled a little later
    }

    /// Takes one of the `max_serving` slots for requests that wait for loads on this node, if one is free.
    pub(crate) fn take_waiting_slot(&self) -> Option<WaitingSlot> {
        let slot = WaitingSlot(Arc::clone(&self.waiting));
        (slot.0.fetch_add(1, Relaxed) < self.local.limits.max_serving).then_some(slot)
    }
}

/// Slot of one request that waits for a load on this node. Dropping it gives the slot back.
pub(crate) struct WaitingSlot(Arc<AtomicUsize>);

impl Drop for WaitingSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
