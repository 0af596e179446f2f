//! The outcome of a write.

use crate::identity::PeerId;

/// How far a write has come.
///
/// Who is not reached may serve what it held before until that expires.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a write that did not reach everyone leaves old values there; log_unreached() is the least"]
pub struct WriteOutcome {
    pub(crate) unreached: Vec<PeerId>,
    pub(crate) views_differed: bool,
}

impl WriteOutcome {
    /// Of a write that nobody has to hear of.
    pub(crate) fn nobody() -> Self {
        Self { unreached: Vec::new(), views_differed: false }
    }

    /// Both together.
    pub(crate) fn add(&mut self, other: Self) {
        self.unreached.extend(other.unreached);
        self.unreached.sort();
        self.unreached.dedup();
        self.views_differed |= other.views_differed;
    }

    /// Every node that is known of has dropped the old value: no get that starts now, anywhere, sees it.
    pub fn is_complete(&self) -> bool {
        self.unreached.is_empty()
    }

    /// The nodes that did not acknowledge within a second, and those that discovery names and that have never answered: by
    /// their addresses, where no more is known of them.
    pub fn unreached(&self) -> &[PeerId] {
        &self.unreached
    }

    /// Some node had another set of owners in mind at that moment; nodes that this one does not know were not asked.
    pub fn views_differed(&self) -> bool {
        self.views_differed
    }

    /// Logs a warning that names who was not reached, if anybody.
    pub fn log_unreached(&self) {
        if !self.is_complete() {
            tracing::warn!(unreached = ?self.unreached, "a write did not reach every node; what they hold expires by itself");
        }
    }
}
