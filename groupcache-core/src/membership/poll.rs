//! Provider made of a function that is called at an interval.

use std::time::Duration;

use async_trait::async_trait;

use crate::{
    error::BoxError,
    membership::provider::{Health, Peer, PeerSet, Provider, ProviderContext, ProviderError, Signal, Trust},
};

/// Makes a provider of a function that returns all peers.
///
/// The provider calls the function at the start, `interval` after each call, and after each signal of the node. `name`
/// appears in logs. The provider does not announce the node, so the source must list it by other means.
///
/// # Errors
/// An error keeps the last set, and is reported as [`Health::Stale`](crate::discovery::Health::Stale). The next call
/// follows after `interval`. An empty list is not an error and means that there are no peers.
///
/// # Cancellation
/// The future of the function is dropped when the node leaves.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use groupcache_core::{BoxError, discovery::{Peer, poll}};
///
/// async fn peers_from_the_database() -> Result<Vec<Peer>, BoxError> {
///     Ok(vec![Peer::at("10.0.0.7:7946")?])
/// }
///
/// let provider = poll("database", Duration::from_secs(5), peers_from_the_database);
/// # let _: &dyn groupcache_core::discovery::Provider = &provider;
/// ```
pub fn poll<F, Fut>(name: &'static str, interval: Duration, peers: F) -> PollProvider<F>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<Peer>, BoxError>> + Send,
{
    PollProvider { name, interval, peers, trust: Trust::Hints }
}

/// The provider made by [`poll`].
#[derive(Debug)]
pub struct PollProvider<F> {
    name: &'static str,
    interval: Duration,
    peers: F,
    trust: Trust,
}

impl<F> PollProvider<F> {
    /// Sets the trust in the source. Default: [`Trust::Hints`].
    pub fn with_trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }
}

#[async_trait]
impl<F, Fut> Provider for PollProvider<F>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<Peer>, BoxError>> + Send,
{
    fn name(&self) -> &str {
        self.name
    }

    fn trust(&self) -> Trust {
        self.trust
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        loop {
            // A function that never returns must not keep the provider from leaving.
            let peers = tokio::select! {
                biased;
                peers = (self.peers)() => peers,
                () = cx.leaving() => return Ok(()),
            };
            match peers {
                Ok(peers) => {
                    cx.publish(PeerSet::complete(peers));
                    cx.report(Health::Connected);
                }
                Err(e) => cx.report(Health::Stale(e.to_string())),
            }
            match cx.next_within(self.interval).await {
                Some(Signal::Leaving) => return Ok(()),
                Some(Signal::MeChanged | Signal::Resolve(_)) | None => {}
            }
        }
    }
}
