//! Counters of a provider.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Counters of a provider since its creation. Clones of a provider share their counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KubernetesStats {
    /// Number of complete lists: the first, those every 10 minutes, those after a lost watch, and those that the node
    /// requests.
    pub lists: u64,
    /// Number of watches that the API server accepted.
    pub watches: u64,
    /// Number of watch events that put or removed an object. Bookmarks are not included.
    pub events: u64,
    /// Number of bookmarks that were read.
    pub bookmarks: u64,
    /// Number of answers 410, or 504 to a version of the future: the API server does not know the version of the last
    /// event, or has forgotten the rest of a list, so that a list is due.
    pub expired: u64,
    /// Number of watches that the API server did not end in time, because it or something on the path to it hangs.
    pub silent: u64,
    /// Number of failed requests and watches, including refused ones. An answer 410 counts as
    /// [`expired`](Self::expired) instead, unless a list fails because of repeated ones.
    pub failures: u64,
    /// Number of refused requests: 401 and 403.
    pub refused: u64,
    /// Number of unreadable objects and events. The last known content of such an object stays.
    pub garbage: u64,
    /// Number of objects that were ignored beyond the limit of 10,000 per namespace.
    pub ignored: u64,
    /// Current number of names that pods of several namespaces share. Each name is one peer, the pod of the first
    /// namespace.
    pub conflicts: u64,
    /// Number of peer sets that were published, complete and partial.
    pub published: u64,
    /// Current number of pods that have no address yet, or no port of the configured name.
    pub waiting: u64,
}

/// Counters that the clones of a provider share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters(Arc<Inner>);

/// Counters with the meanings in [`KubernetesStats`].
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
    /// Adds 1 to a counter.
    pub(crate) fn count(&self, counter: impl FnOnce(&Inner) -> &AtomicU64) {
        counter(&self.0).fetch_add(1, Relaxed);
    }

    /// Counts an unreadable object or event, and logs the 1st, 2nd, 4th, 8th and so on.
    pub(crate) fn garbage(&self, resource: &str, why: &serde_json::Error) {
        let count = self.0.garbage.fetch_add(1, Relaxed) + 1;
        if count.is_power_of_two() {
            tracing::warn!(
                count,
                %why,
                "an object or event of {resource} is unreadable; its last known content stays, check proxies on the way"
            );
        }
    }

    pub(crate) fn ignored(&self, objects: usize) {
        self.0.ignored.fetch_add(objects as u64, Relaxed);
    }

    pub(crate) fn conflicts(&self, now: usize) {
        self.0.conflicts.store(now as u64, Relaxed);
    }

    /// Sets the number of pods without an address or a port. Returns the number before.
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
