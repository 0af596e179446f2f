//! Channels of the membership task.

use std::collections::BTreeSet;

use tokio::sync::{mpsc, watch};

use crate::{
    identity::{Address, PeerId},
    membership::{
        provider::{Me, ProviderFeed},
        stabilizer::DialId,
    },
    peer::client::link::{LinkEvent, LinkEvents},
};

/// Capacity of each queue of the membership task. When the queue of link events is full, a link waits. When the queue
/// of arrivals is full, an arrival is dropped.
pub(super) const EVENT_QUEUE: usize = 1024;

/// Command of the node to its membership task.
#[derive(Debug)]
pub(super) enum Command {
    Drain,
}

/// State of the membership, as the node waits for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Status {
    pub(super) is_ready: bool,
    pub(super) is_draining: bool,
    pub(super) ready_members: usize,
    /// Addresses of another live node with the id of this node, if there is one.
    pub(super) duplicate_at: Option<Vec<Address>>,
}

/// Inputs of the membership task.
pub(super) struct Feeds {
    pub(super) provider: ProviderFeed,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) events: mpsc::Receiver<(DialId, LinkEvent)>,
    /// Peers that have connected to this node, or that send again after a silence.
    pub(super) arrivals: mpsc::Receiver<PeerId>,
}

/// Channels of the membership task to links, provider and node.
pub(super) struct Outputs {
    pub(super) links: LinkEvents,
    /// Channel for resolve requests to the current run of the provider.
    pub(super) requests: watch::Receiver<Option<mpsc::Sender<Vec<PeerId>>>>,
    pub(super) me: watch::Sender<Me>,
    pub(super) reached: watch::Sender<BTreeSet<PeerId>>,
    pub(super) status: watch::Sender<Status>,
}
