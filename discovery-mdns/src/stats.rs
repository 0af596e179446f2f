//! Statistics: the counters of a provider.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Counts of a provider since its creation. Clones of a provider share their counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MdnsStats {
    /// Number of records of peers that were read.
    pub heard: u64,
    /// Number of records of nodes in other clusters.
    pub strangers: u64,
    /// Number of unusable records, for example with another version of the TXT record or no accepted address.
    pub garbage: u64,
    /// Number of records that arrived without TXT. The records of nodes arrive again with TXT.
    pub bare: u64,
    /// Number of records of peers that were withdrawn, expired or not confirmed by a verification.
    pub lost: u64,
    /// Number of records that were verified because the node could not reach their peers.
    pub verified: u64,
    /// Number of times that the subscription to records was renewed, because events arrived faster than they were read.
    /// The listing of the new subscription contains the lost events.
    pub reopened: u64,
    /// Number of times that this node stopped receiving its own announcement.
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
    /// Numbers of events for which a line may be logged.
    renamed: AtomicU64,
    errors: AtomicU64,
}

/// Counts an event, and logs the 1st, 2nd, 4th, 8th and so on.
fn count_and_log(counter: &AtomicU64, log: impl FnOnce(u64)) {
    let count = counter.fetch_add(1, Relaxed) + 1;
    if count.is_power_of_two() {
        log(count);
    }
}

impl Counters {
    pub(crate) fn heard(&self) {
        self.0.heard.fetch_add(1, Relaxed);
    }

    pub(crate) fn stranger(&self) {
        self.0.strangers.fetch_add(1, Relaxed);
    }

    pub(crate) fn garbage(&self, instance: &str, why: &str) {
        count_and_log(&self.0.garbage, |count| {
            tracing::warn!(count, ?instance, why, "ignored an unusable record of this service");
        });
    }

    pub(crate) fn renamed(&self, log: impl FnOnce(u64)) {
        count_and_log(&self.0.renamed, log);
    }

    pub(crate) fn error(&self, log: impl FnOnce(u64)) {
        count_and_log(&self.0.errors, log);
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
