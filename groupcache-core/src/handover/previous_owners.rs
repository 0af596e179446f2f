//! Previous owners of a group's keys: the ones that are worth a request, and the keys that were overwritten since they
//! moved.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::{
    handover::{PreviousViews, overwritten::OverwrittenKeys, usefulness::Usefulness},
    identity::PeerId,
    runtime::sync::Mutex,
};

/// State of a group about the previous owners of its keys.
#[derive(Debug, Default)]
pub(crate) struct PreviousOwners {
    /// Results of earlier requests, by previous owner.
    usefulness: Mutex<BTreeMap<PeerId, Usefulness>>,
    overwritten: OverwrittenKeys,
    /// Coarse time of the last clear. Views that were replaced before it are not read.
    cleared_ms: AtomicU64,
}

impl PreviousOwners {
    /// Records that a key was written or loaded here. Called before the lock of the key's flights is taken.
    pub(crate) fn mark_overwritten(&self, views: &PreviousViews, hash: u64, now_ms: u64) {
        if views.is_open(now_ms) {
            self.overwritten.add(views.number(), hash);
        }
    }

    /// Returns whether a key was written or loaded here after the previous view of that number was replaced.
    pub(crate) fn is_overwritten(&self, number: u64, hash: u64) -> bool {
        self.overwritten.has(number, hash)
    }

    /// Records a clear of the group.
    pub(crate) fn clear(&self, now_ms: u64) {
        self.cleared_ms.fetch_max(now_ms, Relaxed);
    }

    /// Returns whether the group was cleared since `since_ms`.
    pub(crate) fn is_cleared_since(&self, since_ms: u64) -> bool {
        since_ms <= self.cleared_ms.load(Relaxed)
    }

    /// Returns whether a request to `peer`, an owner in the previous view of that number, is worth its time.
    pub(crate) fn may_be_asked(&self, number: u64, peer: &PeerId, now_ms: u64) -> bool {
        let usefulness = self.usefulness.lock();
        usefulness.get(peer).is_none_or(|peer| peer.number < number || peer.may_be_asked(now_ms))
    }

    /// Records the result of a request to `peer`, an owner in the previous view of that number.
    pub(crate) fn judge(&self, number: u64, peer: &PeerId, judge: impl FnOnce(&mut Usefulness)) {
        let mut all = self.usefulness.lock();
        let usefulness = all.entry(peer.clone()).or_default();
        if usefulness.number < number {
            *usefulness = Usefulness::unknown(number);
        }
        judge(usefulness);
    }

    /// Forgets the results of views that are not read any more.
    pub(crate) fn sweep(&self, views: &PreviousViews) {
        let oldest = views.previous_views().last().map(|view| view.number);
        self.overwritten.sweep(oldest);
        self.usefulness.lock().retain(|_, peer| oldest.is_some_and(|oldest| peer.number >= oldest));
    }
}
