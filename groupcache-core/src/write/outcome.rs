//! The options of a remove, and the outcome of a write.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    identity::PeerId,
    runtime::timers::Timers,
    write::{settling::Settling, shared::Writes},
};

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
    /// cached. Default: zero. Range: 1 ms to 10 min; other values are moved to the nearer end.
    ///
    /// The hold is for a source that is written in one place and read from replicas that lag behind by less than
    /// `hold`. Concurrent gets still share one load. A value that is [`set`](crate::Group::set) meanwhile is cached,
    /// and not refreshed until the hold ends.
    ///
    /// Pending nodes drop their values once they can be reached again, and do not hold the key. A node that joins later
    /// does not hold the key either. When more than 10,000 keys of a group are held at once on a node, each further
    /// hold also applies to about one of 65,536 other keys.
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
/// A write is *complete* when every node that the writer knows of, or that one of these nodes knows of, has dropped the
/// old value. A node that cannot be reached hears of the write from any other node, as soon as it is connected to one.
#[derive(Clone, Debug)]
#[must_use = "a write may leave old values at pending nodes; call log_pending() at least"]
pub struct WriteOutcome {
    pending: Vec<PeerId>,
    /// Writes that were pending at the time of the outcome.
    settling: Vec<Arc<Settling>>,
    /// Time at which the values of nodes that are not notified end, for a remove at the owner only.
    until: Option<(Instant, Timers)>,
    writes: Option<Arc<Writes>>,
}

impl WriteOutcome {
    /// Returns the outcome of a write that no other node needs to receive.
    pub(crate) fn nobody() -> Self {
        Self { pending: Vec::new(), settling: Vec::new(), until: None, writes: None }
    }

    /// Returns the outcome of a logged write.
    pub(crate) fn of(pending: Vec<PeerId>, settling: Arc<Settling>, writes: Arc<Writes>) -> Self {
        let settling = if settling.is_settled() { Vec::new() } else { vec![settling] };
        Self { pending, settling, writes: Some(writes), ..Self::nobody() }
    }

    /// Returns the outcome of a remove at the owner only. The values of other nodes end by `until`.
    pub(crate) fn at_owner(pending: Vec<PeerId>, until: Instant, timers: Timers) -> Self {
        let until = Some((until, timers)).filter(|_| !pending.is_empty());
        Self { pending, until, ..Self::nobody() }
    }

    /// Adds the outcome of another write.
    pub(crate) fn add(&mut self, other: Self) {
        self.pending.extend(other.pending);
        self.pending.sort();
        self.pending.dedup();
        self.settling.extend(other.settling);
        self.until = match (self.until.take(), other.until) {
            (Some(one), Some(other)) => Some(if one.0 < other.0 { other } else { one }),
            (one, other) => one.or(other),
        };
        self.writes = self.writes.take().or(other.writes);
    }

    /// Returns whether every node had dropped the old value, so that no get that starts now returns it.
    pub fn is_complete(&self) -> bool {
        self.pending.is_empty()
    }

    /// Returns the nodes that had not acknowledged the write within 1 s, and may still hold the old value.
    ///
    /// The list does not change later; see [`settled`](Self::settled). A target of discovery that never answered is not
    /// a node, and is counted by [`Node::discovery`](crate::Node::discovery). After a remove with
    /// [`owner_only`](RemoveOptions::owner_only) the members that were not notified are included too.
    pub fn pending(&self) -> &[PeerId] {
        &self.pending
    }

    /// Waits until nothing is pending any more: no node returns the old value to a get that starts afterwards.
    ///
    /// A node stops being pending when it has acknowledged the write, directly or through another node, when it has
    /// said goodbye, when it has left the cluster by the discovery of all nodes, or when nothing that it may hold can
    /// be served any longer. The last is after the longest time to live of the group there, or after its
    /// [`max_staleness`](crate::GroupBuilder::max_staleness). A write through a broken connection takes 2 to 4 s as
    /// long as both nodes are connected to a third one.
    ///
    /// In a group without either bound, the call waits as long as discovery lists a node that does not answer. Dropping
    /// the future is safe, and the method may be called again.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # async fn f(users: groupcache_core::Group<String>) -> Result<(), groupcache_core::Error> {
    /// let outcome = users.remove("12345").await?;
    /// if !outcome.is_complete() && tokio::time::timeout(Duration::from_secs(5), outcome.settled()).await.is_err() {
    ///     outcome.log_pending();
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn settled(&self) {
        for settling in &self.settling {
            settling.settled().await;
        }
        if let (Some(writes), false) = (&self.writes, self.settling.is_empty()) {
            self.settling.iter().for_each(|settling| writes.count_settled(settling));
        }
        if let Some((until, timers)) = &self.until {
            timers.sleep_until(*until).await;
        }
    }

    /// Logs a warning that names the pending nodes, if there are any.
    pub fn log_pending(&self) {
        if !self.is_complete() {
            tracing::warn!(
                pending = ?self.pending,
                "a write is pending at some nodes; they receive the write once they are connected to any node, unless \
                 the remove was for the owner only"
            );
        }
    }
}
