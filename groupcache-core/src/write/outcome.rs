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

    /// Sets the delete hold: the time after the remove during which loaded values of the key are returned and not
    /// cached. Default: zero. Range: 1 ms to 1 h; other values are moved to the nearer end.
    ///
    /// The hold is for a source that is written in one place and read from replicas that lag behind by less than
    /// `hold`. Concurrent gets still share one load. A value that is [`set`](crate::Group::set) meanwhile is cached,
    /// and not refreshed until the hold ends.
    ///
    /// Pending nodes drop their values once they can be reached again, and do not hold the key. A node that joins later
    /// does not hold the key either. When more than 10,000 keys of a group are held at once, each further hold applies
    /// to all keys of the group until it ends.
    #[must_use]
    pub fn hold(mut self, hold: Duration) -> Self {
        // A hold of less than 1 ms would otherwise be none.
        self.hold = hold.max(Duration::from_millis(1));
        self
    }

    /// Drops the value at its owner and at the local node, and notifies no other member, so that the remove is one
    /// message.
    ///
    /// The other members are reported as pending and do not receive the remove later either. Replicas there are served
    /// until they end, for at most [`replica_time_to_live`](crate::GroupBuilder::replica_time_to_live). Nodes that
    /// owned the key within the last 10 minutes are notified too. Otherwise a new owner could receive the old value
    /// from one of them.
    #[must_use]
    pub fn owner_only(mut self) -> Self {
        self.is_owner_only = true;
        self
    }
}

/// The outcome of a write, with the nodes that may still hold the old value.
///
/// A pending node may serve the old value until the value expires there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a write may leave old values at pending nodes; call log_pending() at least"]
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

    /// Returns whether every known node has dropped the old value, so that no get that starts now returns it.
    pub fn is_complete(&self) -> bool {
        self.pending.is_empty()
    }

    /// Returns the nodes that may still hold the old value.
    ///
    /// Included are the nodes that have not acknowledged the write within 1 s. A target of discovery that never
    /// answered is not a node, and is counted by [`Node::discovery`](crate::Node::discovery). After a remove with
    /// [`owner_only`](RemoveOptions::owner_only) the members that were not notified are included too.
    pub fn pending(&self) -> &[PeerId] {
        &self.pending
    }

    /// Returns whether a peer had another view of the owners during the write. Nodes that are unknown to the local node
    /// were not notified.
    pub fn views_differed(&self) -> bool {
        self.views_differed
    }

    /// Logs a warning that names the pending nodes, if there are any.
    pub fn log_pending(&self) {
        if !self.is_complete() {
            tracing::warn!(
                pending = ?self.pending,
                "a write is pending at some nodes; they receive the write once they can be reached, unless the remove \
                 was for the owner only"
            );
        }
    }
}
