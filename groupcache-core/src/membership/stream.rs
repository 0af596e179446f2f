//! Provider made of a stream of peer sets.

use std::{fmt, pin::pin};

use async_trait::async_trait;
use futures_core::Stream;
use futures_util::StreamExt;

use crate::{
    error::BoxError,
    membership::provider::{Health, PeerSet, Provider, ProviderContext, ProviderError, Signal, Trust},
};

/// Makes a provider of a stream of peer sets, such as the watch of a registry.
///
/// The provider calls `open` at the start, and again after each end of the stream, after a pause that grows from 100 ms
/// to 30 s. Each set is published as it arrives. `name` appears in logs.
///
/// The provider cannot answer [`Signal::Resolve`](crate::discovery::Signal::Resolve), because a stream takes no
/// questions. If most members are missing from a set, the node therefore decides by its pings, unless the stream
/// repeats the set.
///
/// # Errors
/// An error in the stream keeps the last set, and is reported as [`Health::Stale`](crate::discovery::Health::Stale).
/// The stream continues.
///
/// # Cancellation
/// The stream is dropped when the node leaves.
///
/// # Example
///
/// ```
/// use futures_util::stream;
/// use groupcache_core::{BoxError, discovery::{Peer, PeerSet, from_stream}};
///
/// let provider = from_stream("registry", || {
///     let peers = vec![Peer::at("10.0.0.7:7946")];
///     stream::iter(peers).map(|peer| Ok::<_, BoxError>(PeerSet::complete(vec![peer?])))
/// });
/// # use futures_util::StreamExt;
/// # let _: &dyn groupcache_core::discovery::Provider = &provider;
/// ```
pub fn from_stream<F, S>(name: &'static str, open: F) -> StreamProvider<F>
where
    F: Fn() -> S + Send + Sync + 'static,
    S: Stream<Item = Result<PeerSet, BoxError>> + Send,
{
    StreamProvider { name, open, trust: Trust::Hints }
}

/// The provider made by [`from_stream`].
pub struct StreamProvider<F> {
    name: &'static str,
    open: F,
    trust: Trust,
}

impl<F> StreamProvider<F> {
    /// Sets the trust in the source. Default: [`Trust::Hints`].
    pub fn with_trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }
}

impl<F> fmt::Debug for StreamProvider<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamProvider").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl<F, S> Provider for StreamProvider<F>
where
    F: Fn() -> S + Send + Sync + 'static,
    S: Stream<Item = Result<PeerSet, BoxError>> + Send,
{
    fn name(&self) -> &str {
        self.name
    }

    fn trust(&self) -> Trust {
        self.trust
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        let mut sets = pin!((self.open)());
        loop {
            tokio::select! {
                biased;
                signal = cx.next() => match signal {
                    Signal::Leaving => return Ok(()),
                    Signal::MeChanged | Signal::Resolve(_) => {}
                },
                set = sets.next() => match set {
                    Some(Ok(set)) => {
                        cx.publish(set);
                        cx.report(Health::Connected);
                    }
                    Some(Err(e)) => cx.report(Health::Stale(e.to_string())),
                    None => return Err("the stream of peer sets has ended; the provider opens it again".into()),
                },
            }
        }
    }
}
