//! Settings of a group.

use std::{sync::Arc, time::Duration};

use crate::{cache::freshness::FreshnessPolicy, engine::load_control::LoadPolicy, membership::view::Scope};

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
}
