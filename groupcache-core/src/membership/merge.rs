//! Two providers that are one: what either finds is there.

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    identity::PeerId,
    membership::{
        provider::{Health, Peer, PeerSet, Provider, ProviderContext, ProviderError, ProviderFeed, Report, Signal},
        stabilizer::distinct,
        supervise::supervise,
    },
};

/// Makes one provider of two: a peer that either lists is there.
///
/// Each keeps its own last good set, and each is run, and run again when it fails, by itself. A source that fails,
/// or has not spoken yet, never takes a peer away: until both have published a complete set, what either says is
/// published as an addition. A peer is gone when both say so. For more than two, merge again.
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

/// What [`merge`] makes.
pub struct MergedProvider {
    name: String,
    sources: [Arc<dyn Provider>; 2],
}

impl fmt::Debug for MergedProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merge").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl Provider for MergedProvider {
    fn name(&self) -> &str {
        &self.name
    }

    async fn run(&self, cx: ProviderContext) -> Result<(), ProviderError> {
        let [first, second] = &self.sources;
        let (run_first, first) = begin(&cx, first, 1);
        let (run_second, second) = begin(&cx, second, 2);
        let all = pump(cx, first, second);
        // One task for all three: when it is dropped, nothing of the sources is left.
        tokio::join!(run_first, run_second, all);
        Ok(())
    }
}

/// One of the two, as the merging sees it.
struct Source {
    name: String,
    feed: ProviderFeed,
    asks: watch::Receiver<Option<mpsc::Sender<Vec<PeerId>>>>,
    said: Said,
}

/// What a source has said so far.
#[derive(Default)]
struct Said {
    complete: Option<PeerSet>,
    hints: Vec<Peer>,
    /// It has published a complete set since the last union went out, or since it was asked.
    is_fresh: bool,
    stale: Option<String>,
}

fn begin(
    cx: &ProviderContext,
    provider: &Arc<dyn Provider>,
    number: u64,
) -> (impl Future<Output = ()> + use<>, Source) {
    let (handle, feed) = cx.child();
    let (asks, ask) = watch::channel(None);
    let me = cx.me();
    let seed = xxh3_64_with_seed(me.id.as_str().as_bytes(), me.incarnation.0.wrapping_add(number));
    let source = Source { name: provider.name().to_owned(), feed, asks: ask, said: Said::default() };
    (supervise(Arc::clone(provider), handle, asks, || {}, cx.leaving_flag(), seed), source)
}

/// Carries what the node says to both, and what both say to the node, until the node leaves.
async fn pump(mut cx: ProviderContext, mut first: Source, mut second: Source) {
    let mut union = Union::default();
    loop {
        tokio::select! {
            biased;
            signal = cx.next() => match signal {
                Signal::Leaving => return,
                // Both have the flag that says so.
                Signal::MeChanged => {}
                Signal::Resolve(ids) => {
                    first.ask(&ids);
                    second.ask(&ids);
                }
            },
            Ok(()) = first.feed.sets.changed() => {
                first.take();
                union.publish(&cx, &mut first.said, &mut second.said);
            }
            Ok(()) = second.feed.sets.changed() => {
                second.take();
                union.publish(&cx, &mut first.said, &mut second.said);
            }
            Some(report) = first.feed.reports.recv() => {
                first.tell(&cx, report);
                health(&cx, &[&first, &second]);
            }
            Some(report) = second.feed.reports.recv() => {
                second.tell(&cx, report);
                health(&cx, &[&first, &second]);
            }
            // Both have ended, which they do when the node leaves.
            else => return,
        }
    }
}

impl Source {
    /// Asks it to look again; what it said before is no answer.
    fn ask(&mut self, ids: &[PeerId]) {
        self.said.is_fresh = false;
        if let Some(ask) = &*self.asks.borrow() {
            let _ = ask.try_send(ids.to_vec()); // full = it is asked already
        }
    }

    fn take(&mut self) {
        let published = self.feed.sets.borrow_and_update().clone();
        if let Some(set) = published.take_complete() {
            self.said.complete = Some(set);
            self.said.is_fresh = true;
        }
        self.said.hints = published.hints;
    }

    fn tell(&mut self, cx: &ProviderContext, report: Report) {
        match report {
            Report::Left { id, incarnation } => cx.left(id, incarnation),
            Report::Health(Health::Connected) => self.said.stale = None,
            Report::Health(Health::Stale(why)) => self.said.stale = Some(format!("{}: {why}", self.name)),
        }
    }
}

/// Connected when both are.
fn health(cx: &ProviderContext, sources: &[&Source]) {
    let stale: Vec<_> = sources.iter().filter_map(|source| source.said.stale.clone()).collect();
    cx.report(if stale.is_empty() { Health::Connected } else { Health::Stale(stale.join("; ")) });
}

/// What was published last.
#[derive(Default)]
struct Union(Option<PeerSet>);

impl Union {
    fn publish(&mut self, cx: &ProviderContext, first: &mut Said, second: &mut Said) {
        let is_complete = first.complete.is_some() && second.complete.is_some();
        let known = |said: &Said| said.complete.clone().map(|set| set.peers).unwrap_or_default();
        let peers = united(known(first).into_iter().chain(known(second)));
        let set = PeerSet { peers, is_complete };
        let hints: Vec<_> = first.hints.iter().chain(&second.hints).cloned().collect();
        // The same set again answers a node that doubts it: only when both have looked again.
        let is_answer = first.is_fresh && second.is_fresh;
        if is_answer || self.0.as_ref() != Some(&set) {
            cx.publish(set.clone());
            self.0 = Some(set);
            first.is_fresh = false;
            second.is_fresh = false;
        }
        // A complete set ends the hints before it, and these are still what a source says.
        if !hints.is_empty() {
            cx.publish(PeerSet::partial(hints));
        }
    }
}

/// Each id once, with the addresses that both know of it, those of its newer life first; each place to dial once,
/// and not when it is known whose it is.
fn united(peers: impl Iterator<Item = Peer>) -> Vec<Peer> {
    let mut named: BTreeMap<_, Peer> = BTreeMap::new();
    let mut places = Vec::new();
    for peer in peers {
        let Some(id) = peer.id.clone() else {
            places.push(peer);
            continue;
        };
        match named.remove(&id) {
            None => _ = named.insert(id, peer),
            Some(known) => {
                let is_newer = peer.incarnation > known.incarnation;
                let (mut best, other) = if is_newer { (peer, known) } else { (known, peer) };
                best.addresses = distinct(best.addresses.into_iter().chain(other.addresses));
                named.insert(id, best);
            }
        }
    }
    places.retain(|place| !named.values().any(|peer| place.addresses.iter().all(|a| peer.addresses.contains(a))));
    places.sort_unstable();
    places.dedup();
    named.into_values().chain(places).collect()
}

#[cfg(test)]
mod tests;
