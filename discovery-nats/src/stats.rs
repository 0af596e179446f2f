//! Counters of the provider.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Counters of a provider since it was made. Clones of a provider share them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NatsStats {
    /// Number of messages of peers that were read.
    pub heard: u64,
    /// Number of messages that cannot be read: over 1 KiB, no JSON object, another version, a bad field, or no address.
    pub garbage: u64,
    /// Number of messages of a stale incarnation, or of a peer beyond the limit of 2,000.
    pub ignored: u64,
    /// Number of messages that were published.
    pub published: u64,
    /// Number of peers that expired because no message of theirs arrived within their time to live.
    pub expired: u64,
    /// Number of times that the connection, or the path through the server, was lost.
    pub lost: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Counters(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    heard: AtomicU64,
    garbage: AtomicU64,
    ignored: AtomicU64,
    published: AtomicU64,
    expired: AtomicU64,
    lost: AtomicU64,
}

impl Counters {
    pub(crate) fn heard(&self) {
        self.0.heard.fetch_add(1, Relaxed);
    }

    /// Counts an unreadable message, and logs the 1st, 2nd, 4th, 8th and so on.
    pub(crate) fn garbage(&self, why: &str) {
        let before = self.0.garbage.fetch_add(1, Relaxed);
        if (before + 1).is_power_of_two() {
            tracing::warn!(
                count = before + 1,
                why,
                "unreadable message on the subject of this cluster; check what publishes there"
            );
        }
    }

    pub(crate) fn ignored(&self) {
        self.0.ignored.fetch_add(1, Relaxed);
    }

    pub(crate) fn published(&self) {
        self.0.published.fetch_add(1, Relaxed);
    }

    pub(crate) fn expired(&self, peers: usize) {
        self.0.expired.fetch_add(peers as u64, Relaxed);
    }

    pub(crate) fn lost(&self) {
        self.0.lost.fetch_add(1, Relaxed);
    }

    pub(crate) fn read(&self) -> NatsStats {
        NatsStats {
            heard: self.0.heard.load(Relaxed),
            garbage: self.0.garbage.load(Relaxed),
            ignored: self.0.ignored.load(Relaxed),
            published: self.0.published.load(Relaxed),
            expired: self.0.expired.load(Relaxed),
            lost: self.0.lost.load(Relaxed),
        }
    }
}
