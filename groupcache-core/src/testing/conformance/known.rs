//! The published sets, as a reader of them accumulates them.

use crate::membership::provider::{Peer, PeerSet, ProviderFeed};

/// The published peers: the last complete set, and the hints since then.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// The last complete set.
    pub(super) complete: Option<PeerSet>,
    /// Number of complete sets. Sets that were published between two reads count once.
    pub(super) count: u64,
    /// Peers of the partial sets since the last complete set.
    pub(super) hints: Vec<Peer>,
}

impl Known {
    /// Reads the sets that were published since the last call.
    pub(super) fn read(&mut self, feed: &mut ProviderFeed) {
        let published = feed.sets.borrow_and_update().clone();
        if let Some(set) = published.take_complete() {
            self.complete = Some(set);
            self.count += 1;
        }
        self.hints = published.hints;
    }
}
