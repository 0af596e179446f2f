//! Settings of a group.

use std::{sync::Arc, time::Duration};

use crate::{
    cache::freshness::FreshnessPolicy, engine::load_control::LoadPolicy, membership::view::Scope,
    protocol::message::Bounds,
};

/// Settings that a group was built with.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) name: Arc<str>,
    pub(crate) format: u32,
    pub(crate) freshness: FreshnessPolicy,
    pub(crate) load_deadline: Duration,
    /// Whether the group keeps replicas of hot values.
    pub(crate) has_replicas: bool,
    pub(crate) scope: Scope,
    pub(crate) load_policy: LoadPolicy,
    /// Bound on the staleness of values, in milliseconds.
    pub(crate) max_staleness_ms: Option<u64>,
}

impl Settings {
    /// Returns the times after which this node serves no value of the group that lacks a write.
    pub(crate) fn bounds(&self) -> Bounds {
        let longest = self.freshness.longest_kept().map(|kept| kept.saturating_add(self.load_deadline));
        let longest_ms = longest.map(|longest| u64::try_from(longest.as_millis()).unwrap_or(u64::MAX));
        Bounds { longest_ms, max_staleness_ms: self.max_staleness_ms }
    }
}
