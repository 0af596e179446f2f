//! What the provider counts.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// What a provider has counted since it was made; clones of a provider count together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MdnsStats {
    /// Records of peers that were read.
    pub heard: u64,
    /// Records of nodes of other clusters.
    pub strangers: u64,
    /// Records that nobody can use: another version of the TXT, no address that is accepted.
    pub garbage: u64,
    /// Records that came without TXT; those of nodes are heard again with it.
    pub bare: u64,
    /// Records of peers that have gone: withdrawn, expired, or not confirmed when asked for.
    pub lost: u64,
    /// Peers that were asked for, since the node could not reach them.
    pub verified: u64,
    /// Times that discovery began anew, because its events came faster than they were read.
    pub reopened: u64,
    /// Times that what this node announces stopped coming back to it.
    pub outages: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Counters(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    heard: AtomicU64,
    strangers: AtomicU64,
    garbage: AtomicU64,
    bare: AtomicU64,
    lost: AtomicU64,
    verified: AtomicU64,
    reopened: AtomicU64,
    outages: AtomicU64,
}

impl Counters {
    pub(crate) fn heard(&self) {
        self.0.heard.fetch_add(1, Relaxed);
    }

    pub(crate) fn stranger(&self) {
        self.0.strangers.fetch_add(1, Relaxed);
    }

    /// Counts it, and says so now and then: the 1st, 2nd, 4th, 8th…
    pub(crate) fn garbage(&self, instance: &str, why: &str) {
        let before = self.0.garbage.fetch_add(1, Relaxed);
        if (before + 1).is_power_of_two() {
            tracing::warn!(count = before + 1, ?instance, why, "a record of this service cannot be used");
        }
    }

    pub(crate) fn bare(&self) {
        self.0.bare.fetch_add(1, Relaxed);
    }

    pub(crate) fn lost(&self) {
        self.0.lost.fetch_add(1, Relaxed);
    }

    pub(crate) fn verified(&self) {
        self.0.verified.fetch_add(1, Relaxed);
    }

    pub(crate) fn reopened(&self) {
        self.0.reopened.fetch_add(1, Relaxed);
    }

    pub(crate) fn outage(&self) {
        self.0.outages.fetch_add(1, Relaxed);
    }

    pub(crate) fn read(&self) -> MdnsStats {
        MdnsStats {
            heard: self.0.heard.load(Relaxed),
            strangers: self.0.strangers.load(Relaxed),
            garbage: self.0.garbage.load(Relaxed),
            bare: self.0.bare.load(Relaxed),
            lost: self.0.lost.load(Relaxed),
            verified: self.0.verified.load(Relaxed),
            reopened: self.0.reopened.load(Relaxed),
            outages: self.0.outages.load(Relaxed),
        }
    }
}
