//! The options of a remove, and the outcome of a write.

use std::time::Duration;

use crate::identity::PeerId;

/// Options of [`Group::remove_with`](crate::Group::remove_with).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoveOptions {
    pub(crate) hold: Duration,
    pub(crate) is_owner_only: bool,
}

impl RemoveOptions {
    /// Returns the options of a plain remove: every node drops the value, and the next load is cached.
    pub fn new() -> Self {
        Self::default()
    }

    /// Caches no value of the key that is loaded within `hold` from now on. Default: zero. Range: 1 ms to 1 h; other
    /// values are cut.
    ///
    /// For a source that is written in one place and read from replicas which lag behind by less than `hold`. Concurrent
    /// gets still share one load. A value that is [`set`](crate::Group::set) meanwhile is kept, and not refreshed until the
    /// hold ends. Nodes that are named as pending drop their values when they can be reached again, and hold nothing; nor
    /// does a node that joins later. With more than 10,000 keys held at once, no load of the group is cached that begins
    /// before the last of the others ends.
    #[must_use]
    pub fn hold(mut self, hold: Duration) -> Self {
        // Less than a millisecond is not nothing.
        self.hold = hold.max(Duration::from_millis(1));
        self
    }

    /// Drops the value at its owner and at the writer, and notifies no other node: one message.
    ///
    /// The other nodes are named as pending. Replicas there are served until they end, at most
    /// [`replica_time_to_live`](crate::GroupBuilder::replica_time_to_live). Nodes that owned the key within the last
    /// 10 minutes are notified too; otherwise a new owner could take the old value from one of them.
    #[must_use]
    pub fn owner_only(mut self) -> Self {
        self.is_owner_only = true;
        self
    }
}

/// The outcome of a write: which nodes may still have the old value.
///
/// A pending node may serve the value it held before until that expires.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a write that did not reach everyone leaves old values there; log_unreached() is the least"]
pub struct WriteOutcome {
    pub(crate) pending: Vec<PeerId>,
    pub(crate) views_differed: bool,
}

impl WriteOutcome {
    /// Returns the outcome of a write that no other node needs to receive.
    pub(crate) fn nobody() -> Self {
        Self { pending: Vec::new(), views_differed: false }
    }

    /// Adds the outcome of another write.
    pub(crate) fn add(&mut self, other: Self) {
        self.pending.extend(other.pending);
        self.pending.sort();
        self.pending.dedup();
        self.views_differed |= other.views_differed;
    }

    /// Returns whether every known node has dropped the old value: no get that starts now, anywhere, sees it.
    pub fn is_complete(&self) -> bool {
        self.pending.is_empty()
    }

    /// Returns the nodes that did not acknowledge the write within a second, and those that discovery names and that have
    /// never answered: by their addresses, where no more is known of them.
    pub fn pending(&self) -> &[PeerId] {
        &self.pending
    }

    /// Returns whether some node had another view of the owners at that moment; nodes that this one does not know were not
    /// asked.
    pub fn views_differed(&self) -> bool {
        self.views_differed
    }

    /// Logs a warning that names the pending nodes, if there are any.
    pub fn log_pending(&self) {
        if !self.is_complete() {
            tracing::warn!(pending = ?self.pending, "a write is pending at some nodes; their old values expire by themselves");
        }
    }
}
