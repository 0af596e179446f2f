//! Provider made of two providers, with the peers of both.

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    identity::{Identity, PeerId},
    membership::{
        provider::{
            Health, Peer, PeerSet, Provider, ProviderContext, ProviderError, ProviderFeed, Report, Signal, Trust,
        },
        stabilizer::distinct,
        supervise::supervise,
    },
};

/// Makes one provider of two. A peer that either of them lists is listed.
///
/// Each provider runs by itself, is restarted by itself, and keeps its own last complete set, so that the failure of
/// one removes no peer. Until both providers have published a complete set, their peers are published as a partial set.
/// A peer is missing when neither provider lists it, and the [`Trust`] in the last provider that listed it decides when
/// it leaves. The health is [`Health::Stale`](crate::discovery::Health::Stale)
/// while one of them is stale. For more than two providers, merge again.
///
/// The name of the merged provider is made of both names, such as `old+new`.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use groupcache_core::{BoxError, discovery::{Peer, merge, poll}};
///
/// async fn old_hosts() -> Result<Vec<Peer>, BoxError> {
///     Ok(vec![Peer::at("10.0.0.7:7946")?])
/// }
/// async fn new_hosts() -> Result<Vec<Peer>, BoxError> {
///     Ok(vec![Peer::at("10.1.0.7:7946")?])
/// }
///
/// let every = Duration::from_secs(5);
/// let provider = merge(poll("old", every, old_hosts), poll("new", every, new_hosts));
/// # let _: &dyn groupcache_core::discovery::Provider = &provider;
/// ```
pub fn merge(first: impl Provider, second: impl Provider) -> MergedProvider {
    let name = format!("{}+{}", first.name(), second.name());
    MergedProvider { name, sources: [Arc::new(first), Arc::new(second)] }
}

/// The provider made by [`merge`].
pub struct MergedProvider {
    name: String,
    sources: [Arc<dyn Provider>; 2],
}

impl fmt::Debug for MergedProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MergedProvider").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl Provider for MergedProvider {
    fn name(&self) -> &str {
        &self.name
    }

    async fn run(&self, cx: ProviderContext) -> Result<(), ProviderError> {
        let [first, second] = &self.sources;
        let (run_first, first) = start(&cx, first, 1);
        let (run_second, second) = start(&cx, second, 2);
        let exchange = exchange(cx, first, second);
        // All three run in one task, so that dropping it leaves nothing of the sources.
        tokio::join!(run_first, run_second, exchange);
        Ok(())
    }

    /// Returns the lower trust of both. The record of a peer keeps the trust of the provider that lists it.
    fn trust(&self) -> Trust {
        let [first, second] = &self.sources;
        first.trust().min(second.trust())
    }

    fn check_for(&self, identity: &Identity) -> Result<(), ProviderError> {
        self.sources.iter().try_for_each(|source| source.check_for(identity))
    }
}

/// A provider of the two, with its channels and its last reports.
struct Source {
    name: String,
    feed: ProviderFeed,
    asks: watch::Receiver<Option<mpsc::Sender<Vec<PeerId>>>>,
    state: SourceState,
}

/// The last reports of a source.
#[derive(Default)]
struct SourceState {
    complete: Option<PeerSet>,
    hints: Vec<Peer>,
    /// Whether the source has published a complete set since the last union and since the last resolve request.
    is_fresh: bool,
    /// Reason for which the source is stale.
    stale: Option<String>,
}

/// Creates the supervised run of a provider, and its source.
fn start(
    cx: &ProviderContext,
    provider: &Arc<dyn Provider>,
    number: u64,
) -> (impl Future<Output = ()> + use<>, Source) {
    let (handle, feed) = cx.child(provider.trust());
    let (asks, ask) = watch::channel(None);
    let me = cx.me();
    let seed = xxh3_64_with_seed(me.id.as_str().as_bytes(), me.incarnation.0.wrapping_add(number));
    let source = Source { name: provider.name().to_owned(), feed, asks: ask, state: SourceState::default() };
    (supervise(Arc::clone(provider), handle, asks, || {}, cx.leaving_flag(), seed), source)
}

/// Carries signals of the node to both sources, and their sets and reports to the node, until the node leaves.
async fn exchange(mut cx: ProviderContext, mut first: Source, mut second: Source) {
    let mut union = Union::default();
    loop {
        tokio::select! {
            biased;
            signal = cx.next() => match signal {
                Signal::Leaving => return,
                // Each source has the channel with the change.
                Signal::MeChanged => {}
                Signal::Resolve(ids) => {
                    first.resolve(&ids);
                    second.resolve(&ids);
                }
            },
            Ok(()) = first.feed.sets.changed() => {
                first.read_sets();
                union.publish(&cx, &mut first.state, &mut second.state);
            }
            Ok(()) = second.feed.sets.changed() => {
                second.read_sets();
                union.publish(&cx, &mut first.state, &mut second.state);
            }
            Some(report) = first.feed.reports.recv() => {
                first.forward(&cx, report);
                report_health(&cx, &[&first, &second]);
            }
            Some(report) = second.feed.reports.recv() => {
                second.forward(&cx, report);
                report_health(&cx, &[&first, &second]);
            }
            // The sources have ended, because the node leaves.
            else => return,
        }
    }
}

impl Source {
    /// Asks the source to look again. A set from before the request is no answer.
    fn resolve(&mut self, ids: &[PeerId]) {
        self.state.is_fresh = false;
        if let Some(ask) = &*self.asks.borrow() {
            let _ = ask.try_send(ids.to_vec()); // a full queue holds enough requests
        }
    }

    fn read_sets(&mut self) {
        let published = self.feed.sets.borrow_and_update().clone();
        if let Some(set) = published.take_complete() {
            self.state.complete = Some(set);
            self.state.is_fresh = true;
        }
        self.state.hints = published.hints;
    }

    fn forward(&mut self, cx: &ProviderContext, report: Report) {
        match report {
            Report::Left { id, incarnation } => cx.left(id, incarnation),
            Report::Health(Health::Connected) => self.state.stale = None,
            Report::Health(Health::Stale(why)) => self.state.stale = Some(format!("{}: {why}", self.name)),
        }
    }
}

/// Reports that the merged provider is connected if both sources are, and stale with all reasons otherwise.
fn report_health(cx: &ProviderContext, sources: &[&Source]) {
    let stale: Vec<_> = sources.iter().filter_map(|source| source.state.stale.clone()).collect();
    cx.report(if stale.is_empty() { Health::Connected } else { Health::Stale(stale.join("; ")) });
}

/// The peers of both sources, as they were published last.
#[derive(Default)]
struct Union(Option<PeerSet>);

impl Union {
    fn publish(&mut self, cx: &ProviderContext, first: &mut SourceState, second: &mut SourceState) {
        let is_complete = first.complete.is_some() && second.complete.is_some();
        let known = |source: &SourceState| source.complete.clone().map(|set| set.peers).unwrap_or_default();
        let peers = unite(known(first).into_iter().chain(known(second)));
        let set = PeerSet { peers, is_complete };
        let hints: Vec<_> = first.hints.iter().chain(&second.hints).cloned().collect();
        // An equal set confirms the last one, and is published only after both sources have looked again.
        let is_answer = first.is_fresh && second.is_fresh;
        if is_answer || self.0.as_ref() != Some(&set) {
            cx.publish_of_sources(set.clone());
            self.0 = Some(set);
            first.is_fresh = false;
            second.is_fresh = false;
        }
        // A complete set clears earlier partial sets, so the partial sets of the sources follow it.
        if !hints.is_empty() {
            cx.publish_of_sources(PeerSet::partial(hints));
        }
    }
}

/// Returns each id once, with the addresses from both sources, the addresses of the newer incarnation first. Also
/// returns each address without an id once, unless it is an address of one of the ids.
fn unite(peers: impl Iterator<Item = Peer>) -> Vec<Peer> {
    let mut named: BTreeMap<_, Peer> = BTreeMap::new();
    let mut targets = Vec::new();
    for peer in peers {
        let Some(id) = peer.id.clone() else {
            targets.push(peer);
            continue;
        };
        match named.remove(&id) {
            None => _ = named.insert(id, peer),
            Some(known) => {
                // The record of an authority comes first, because anybody may announce a higher incarnation.
                let is_newer = (peer.trust, peer.incarnation) > (known.trust, known.incarnation);
                let (mut best, other) = if is_newer { (peer, known) } else { (known, peer) };
                best.addresses = distinct(best.addresses.into_iter().chain(other.addresses));
                best.trust = best.trust.max(other.trust);
                named.insert(id, best);
            }
        }
    }
    // A record of less trust says nothing about the node at an address.
    let is_covered = |target: &Peer, peer: &Peer| {
        peer.trust >= target.trust && target.addresses.iter().all(|address| peer.addresses.contains(address))
    };
    targets.retain(|target| !named.values().any(|peer| is_covered(target, peer)));
    targets.sort_unstable();
    targets.dedup();
    named.into_values().chain(targets).collect()
}

#[cfg(test)]
mod tests;
