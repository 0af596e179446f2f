//! Session: turns the news of all namespaces into peer sets, reports of departed peers, and the health of the source.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{StreamExt, stream::select_all};
use groupcache_core::{
    PeerId,
    discovery::{Address, Health, Peer, PeerSet, ProviderContext, Signal},
};
use kube::Client;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    api::Api,
    connect::{Cluster, Connected},
    ending::Ending,
    options::Options,
    table::{Merged, Table},
    watch::{News, Place, Watch},
};

/// Delay between a change and its publication, so that simultaneous changes are published together.
const SETTLE: Duration = Duration::from_millis(20);
/// Minimum life of a good client. After a shorter life the pause grows, because the next client may fail as early.
const GOOD_CLIENT: Duration = Duration::from_secs(60);

/// Reason for the end of a client.
pub(crate) enum Over {
    Leaving,
    /// The API server refuses the credentials of the client, or has not given a good answer for too long.
    Renew {
        why: String,
        /// Whether the client worked for a while, so that the back-off starts again.
        was_good: bool,
    },
}

/// State that outlives a client.
pub(crate) struct Session<'a> {
    options: &'a Options,
    table: Table,
    /// Last complete set. An equal set is published again only if the node requests it.
    published: Option<Vec<Peer>>,
    /// Last partial set since then.
    hinted: Option<Vec<Peer>>,
    ending: Ending,
    /// Names that pods of several namespaces share.
    conflicts: BTreeSet<PeerId>,
    /// Namespaces to list before the next answer to the node.
    asked: BTreeSet<usize>,
    /// Whether the node has requested a set that is not published yet.
    is_answer_due: bool,
    /// Time at which changes are published. `None` if nothing has changed.
    news_at: Option<Instant>,
    /// Failures of namespaces.
    troubles: BTreeMap<usize, String>,
    /// Namespaces that have had an open watch on this client.
    well: BTreeSet<usize>,
    namespaces: Vec<String>,
    cluster: Cluster,
    /// Time since which all namespaces have failed. `None` while a namespace works or the API server requests a delay.
    silent_since: Option<Instant>,
    /// Position of the watch of each namespace.
    places: BTreeMap<usize, Place>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(options: &'a Options) -> Self {
        Self {
            options,
            table: Table::new(options.namespaces.len()),
            published: None,
            hinted: None,
            ending: Ending::default(),
            conflicts: BTreeSet::new(),
            asked: BTreeSet::new(),
            is_answer_due: false,
            news_at: None,
            troubles: BTreeMap::new(),
            well: BTreeSet::new(),
            namespaces: Vec::new(),
            cluster: None,
            silent_since: None,
            places: BTreeMap::new(),
        }
    }

    /// Runs on a client until the node leaves or the client no longer works. No task is spawned, so dropping the future
    /// drops everything.
    pub(crate) async fn live(
        &mut self,
        cx: &mut ProviderContext,
        Connected { client, namespaces, cluster }: Connected,
        rng: &mut fastrand::Rng,
    ) -> Over {
        if namespaces != self.namespaces {
            self.table = Table::new(namespaces.len());
            self.namespaces = namespaces;
            self.places.clear();
        }
        if cluster != self.cluster {
            self.places.clear();
            self.cluster = cluster;
        }
        self.silent_since = None;
        self.troubles.clear();
        self.well.clear();
        if self.is_answer_due {
            self.ask();
        }
        let (ask, asked) = watch::channel(0_u64);
        let watches = (0..self.namespaces.len()).map(|number| {
            let (api, place) = (self.api(&client, number), self.places.get(&number).cloned());
            let watch =
                Watch::new(api, self.options.is_streaming, rng.u64(..), asked.clone(), self.is_answer_due, place);
            Box::pin(watch.news().map(move |news| (number, news)))
        });
        let (mut all, begun) = (select_all(watches), Instant::now());
        loop {
            let (wake, end, renew) = (self.news_at, self.ending.next(), self.renew_at());
            tokio::select! {
                biased;
                signal = cx.next() => match signal {
                    Signal::Leaving => return Over::Leaving,
                    // Kubernetes announces pods, so the provider announces nothing.
                    Signal::MeChanged => {}
                    Signal::Resolve(_) => {
                        self.ask();
                        ask.send_modify(|times| *times += 1);
                    }
                },
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => self.publish(cx),
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => self.say_left(cx),
                Some((number, news)) = all.next() => {
                    if let Some(why) = self.take(cx, number, news) {
                        return self.over(why, begun);
                    }
                }
                () = sleep_until(renew.unwrap_or_else(Instant::now)), if renew.is_some() => {
                    let why = self.troubles.values().next().cloned().unwrap_or_default();
                    return self.over(why, begun);
                }
            }
        }
    }

    /// Records a question of the node. All namespaces are listed before the answer.
    pub(crate) fn ask(&mut self) {
        self.asked = (0..self.namespaces.len()).collect();
        self.is_answer_due = true;
    }

    /// Returns the end of a client that began at `begun`.
    fn over(&self, why: String, begun: Instant) -> Over {
        Over::Renew { why, was_good: !self.well.is_empty() && begun.elapsed() >= GOOD_CLIENT }
    }

    /// Returns when a client without good answers is replaced, because the kubeconfig may have changed its address or
    /// authority. `None` unless a kubeconfig is used.
    fn renew_at(&self) -> Option<Instant> {
        self.silent_since.filter(|_| self.options.access.is_kubeconfig()).map(|since| since + self.options.unreachable)
    }

    fn api(&self, client: &Client, number: usize) -> Api {
        Api {
            client: client.clone(),
            kind: self.options.kind,
            namespace: self.namespaces.get(number).cloned().unwrap_or_default(),
            selector: self.options.selector.clone().unwrap_or_default(),
            port: self.options.port.clone(),
            page: self.options.page,
            counters: self.options.counters.clone(),
        }
    }

    /// Applies the news of a namespace. Returns the reason if the client must be replaced.
    fn take(&mut self, cx: &ProviderContext, number: usize, news: News) -> Option<String> {
        let is_stale = matches!(news, News::Stale(_));
        match news {
            News::Listed(objects, version) => {
                let now = Instant::now();
                self.places.insert(number, Place { version, listed_at: now, proven_at: now });
                let ignored = self.table.list(number, objects);
                self.ignore(ignored);
                self.asked.remove(&number);
                self.news();
            }
            News::Put(object) => {
                self.is_at(number, &object.version);
                if !self.table.put(number, object) {
                    self.ignore(1);
                }
                self.news();
            }
            News::Removed(name, version) => {
                self.is_at(number, &version);
                self.table.remove(number, &name);
                self.news();
            }
            News::Until(version) => self.is_at(number, &version),
            News::Well => {
                self.well.insert(number);
                self.troubles.remove(&number);
                self.report(cx);
            }
            News::Stale(why) | News::Busy(why) => {
                self.troubles.insert(number, why);
                self.report(cx);
            }
            News::Unknown(why) => return Some(why),
        }
        // A namespace without a failure and without news is merely quiet.
        let is_silent = is_stale && self.troubles.len() == self.namespaces.len();
        self.silent_since = is_silent.then(|| self.silent_since.unwrap_or_else(Instant::now));
        None
    }

    /// Records the version from which another client continues.
    fn is_at(&mut self, number: usize, version: &str) {
        if let Some(place) = self.places.get_mut(&number).filter(|_| !version.is_empty()) {
            version.clone_into(&mut place.version);
            place.proven_at = Instant::now();
        }
    }

    fn ignore(&self, objects: usize) {
        if objects > 0 {
            self.options.counters.ignored(objects);
            tracing::warn!(objects, "objects beyond the limit of a namespace are ignored; narrow the selector");
        }
    }

    fn news(&mut self) {
        self.news_at.get_or_insert_with(|| Instant::now() + SETTLE);
    }

    fn report(&self, cx: &ProviderContext) {
        match self.troubles.values().next() {
            Some(why) => cx.report(Health::Stale(why.clone())),
            None if self.well.len() == self.namespaces.len() => cx.report(Health::Connected),
            None => {}
        }
    }

    /// Merges the table, reports departed peers, and publishes the set if it is new or answers the node.
    fn publish(&mut self, cx: &ProviderContext) {
        self.news_at = None;
        let Merged { peers, is_complete, waiting, conflicts, terminating, gone } = self.table.merge();
        self.tell_waiting(waiting);
        self.tell_conflicts(conflicts);
        self.ending.follow(Instant::now(), terminating);
        for id in gone {
            cx.left(id, None);
        }
        let is_answered = self.asked.is_empty();
        // An equal set before the requested lists are complete would wrongly confirm the peers that the node doubts.
        let would_confirm = self.is_answer_due
            && !is_answered
            && self.published.as_ref().is_some_and(|before| who(before).eq(who(&peers)));
        // While a namespace has not been listed, the known peers exist, but there may be others.
        if !is_complete || would_confirm {
            return self.hint(cx, peers);
        }
        let is_answer = self.is_answer_due && is_answered;
        if self.published.as_ref() == Some(&peers) && !is_answer {
            return;
        }
        if is_answer {
            self.is_answer_due = false;
        }
        self.options.counters.count(|all| &all.published);
        cx.publish(PeerSet::complete(peers.clone()));
        (self.published, self.hinted) = (Some(peers), None);
    }

    /// Publishes a partial set, which removes no peer. An equal set is not published again.
    fn hint(&mut self, cx: &ProviderContext, peers: Vec<Peer>) {
        let before = self.hinted.as_ref().or(self.published.as_ref());
        if before != Some(&peers) {
            self.options.counters.count(|all| &all.published);
            cx.publish(PeerSet::partial(peers.clone()));
            self.hinted = Some(peers);
        }
    }

    /// Reports overdue pods as having left. The node verifies a report before it acts.
    fn say_left(&mut self, cx: &ProviderContext) {
        for id in self.ending.due(Instant::now()) {
            tracing::info!(%id, "the deletion of this pod exceeds its grace period; check whether its machine is dead");
            cx.left(id, None);
        }
    }

    /// Counts shared names, and logs new ones.
    fn tell_conflicts(&mut self, conflicts: BTreeSet<PeerId>) {
        self.options.counters.conflicts(conflicts.len());
        let mut new = conflicts.difference(&self.conflicts);
        if let Some(id) = new.next() {
            let others = new.count();
            tracing::warn!(%id, others, "pods of several namespaces have the same name; give each another name");
        }
        self.conflicts = conflicts;
    }

    /// Counts pods without an address or a port, and logs the first ones.
    fn tell_waiting(&self, waiting: usize) {
        let before = self.options.counters.waiting(waiting);
        if waiting > 0 && before == 0 {
            let port = &self.options.port;
            tracing::info!(waiting, ?port, "pods have no address yet, or no such port; check the port if they stay so");
        }
    }
}

/// Returns the ids of a set, and the addresses of peers without an id, as the node compares sets.
fn who(peers: &[Peer]) -> impl Iterator<Item = (Option<&PeerId>, &[Address])> {
    peers.iter().map(|peer| (peer.id(), if peer.id().is_none() { peer.addresses() } else { &[] }))
}
