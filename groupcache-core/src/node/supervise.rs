//! The provider of a node: runs for as long as the node lives, with its restarts counted.

use std::sync::Arc;

use tokio::sync::watch;

pub(super) use crate::membership::supervise::Asks;
use crate::{
    membership::{
        provider::{Provider, ProviderHandle},
        supervise,
    },
    peer::local::LocalNode,
};

/// Runs the provider until the node leaves and the provider has withdrawn its announcement, or has taken too long to do
/// so.
pub(super) async fn supervise(
    provider: Arc<dyn Provider>,
    handle: ProviderHandle,
    asks: Asks,
    local: Arc<LocalNode>,
    leaving: watch::Receiver<bool>,
    seed: u64,
) {
    supervise::supervise(provider, handle, asks, || local.counters.provider_restarts.up(), leaving, seed).await;
}
