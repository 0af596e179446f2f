//! What the provider counts.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// What a provider has counted since it was made; clones of a provider count together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KubernetesStats {
    /// Lists that were complete: the first, those after a watch that was lost, those every 10 minutes.
    pub lists: u64,
    /// Watches that the API server accepted.
    pub watches: u64,
    /// Events of watches that were read, bookmarks left out.
    pub events: u64,
    /// Bookmarks that were read.
    pub bookmarks: u64,
    /// Times that the API server no longer had what happened since the last event (410), so that a list was due.
    pub expired: u64,
    /// Watches that nothing ended in time: the API server, or something on the way to it, hangs.
    pub silent: u64,
    /// Requests that failed, those that were refused among them.
    pub failures: u64,
    /// Requests that were refused: 401 and 403.
    pub refused: u64,
    /// Objects that nobody can read; what was known of them before stays.
    pub garbage: u64,
    /// Objects beyond the limit of 10,000 of one namespace.
    pub ignored: u64,
    /// Now, no sum: names that pods of several namespaces have, which would be one peer. The first namespace has it.
    pub conflicts: u64,
    /// Sets of peers that were published, and additions to them.
    pub published: u64,
    /// Now, no sum: pods that are there and have no address yet, or no port of the name that was asked for.
    pub waiting: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Counters(Arc<Inner>);

/// As in [`KubernetesStats`].
#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) lists: AtomicU64,
    pub(crate) watches: AtomicU64,
    pub(crate) events: AtomicU64,
    pub(crate) bookmarks: AtomicU64,
    pub(crate) expired: AtomicU64,
    pub(crate) silent: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) garbage: AtomicU64,
    pub(crate) ignored: AtomicU64,
    pub(crate) conflicts: AtomicU64,
    pub(crate) published: AtomicU64,
    pub(crate) waiting: AtomicU64,
}

impl Counters {
    /// One more of these.
    pub(crate) fn count(&self, counter: impl FnOnce(&Inner) -> &AtomicU64) {
        counter(&self.0).fetch_add(1, Relaxed);
    }

    /// Counts it, and says so now and then: the 1st, 2nd, 4th, 8th…
    pub(crate) fn garbage(&self, resource: &str, why: &serde_json::Error) {
        let count = self.0.garbage.fetch_add(1, Relaxed) + 1;
        if count.is_power_of_two() {
            tracing::warn!(count, %why, "one of the {resource} cannot be read; what was known of it stays");
        }
    }

    pub(crate) fn ignored(&self, objects: usize) {
        self.0.ignored.fetch_add(objects as u64, Relaxed);
    }

    pub(crate) fn conflicts(&self, now: usize) {
        self.0.conflicts.store(now as u64, Relaxed);
    }

    /// How many wait now; tells how many did before.
    pub(crate) fn waiting(&self, now: usize) -> u64 {
        self.0.waiting.swap(now as u64, Relaxed)
    }

    pub(crate) fn read(&self) -> KubernetesStats {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        KubernetesStats {
            lists: read(&self.0.lists),
            watches: read(&self.0.watches),
            events: read(&self.0.events),
            bookmarks: read(&self.0.bookmarks),
            expired: read(&self.0.expired),
            silent: read(&self.0.silent),
            failures: read(&self.0.failures),
            refused: read(&self.0.refused),
            garbage: read(&self.0.garbage),
            ignored: read(&self.0.ignored),
            conflicts: read(&self.0.conflicts),
            published: read(&self.0.published),
            waiting: read(&self.0.waiting),
        }
    }
}
