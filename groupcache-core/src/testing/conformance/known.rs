//! What has been published so far, as one who looks at it remembers it.

use crate::membership::provider::{Peer, PeerSet, ProviderFeed};

/// The last complete set, how many there have been (those that came together count once), and the hints since.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) complete: Option<PeerSet>,
    pub(super) count: u64,
    pub(super) hints: Vec<Peer>,
}

impl Known {
    pub(super) fn read(&mut self, feed: &mut ProviderFeed) {
        let published = feed.sets.borrow_and_update().clone();
        if let Some(set) = published.take_complete() {
            self.complete = Some(set);
            self.count += 1;
        }
        self.hints = published.hints;
    }
}
