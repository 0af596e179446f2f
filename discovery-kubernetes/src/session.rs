//! What is done with the news of all namespaces: sets of peers, hints of who is gone, and how the source is doing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{StreamExt, stream::select_all};
use groupcache_core::{Address, Health, Peer, PeerId, PeerSet, ProviderContext, Signal};
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
    zones::Zones,
};

/// Changes that come together are published together.
const SETTLE: Duration = Duration::from_millis(20);

/// And zones, which come one by one and move no key.
const ZONES: Duration = Duration::from_secs(1);
/// A client that was good for less than this was not: what refuses it may refuse the next as soon.
const GOOD_CLIENT: Duration = Duration::from_secs(60);

/// Why a client is left.
pub(crate) enum Over {
    Leaving,
    /// Its credentials are not good, or it leads nowhere. `was_good`: it was.
    Renew {
        why: String,
        was_good: bool,
    },
}

/// What outlives a client.
pub(crate) struct Session<'a> {
    options: &'a Options,
    table: Table,
    zones: Zones,
    /// The last set, if it was complete: the same again is not published, unless a node asks for it.
    published: Option<Vec<Peer>>,
    /// What has been published since, as additions.
    hinted: Option<Vec<Peer>>,
    ending: Ending,
    /// Names that are in several namespaces.
    conflicts: BTreeSet<PeerId>,
    /// Namespaces that a node wants to have listed before the next answer.
    asked: BTreeSet<usize>,
    is_answer_due: bool,
    /// Something has changed, and is published at that time.
    news_at: Option<Instant>,
    /// Which namespaces do not work, and why.
    troubles: BTreeMap<usize, String>,
    /// Those whose watch has been open since this client was made.
    well: BTreeSet<usize>,
    namespaces: Vec<String>,
    cluster: Cluster,
    /// Since when no namespace has had a good answer, where that is so.
    silent_since: Option<Instant>,
    /// Where the watch of each namespace is.
    places: BTreeMap<usize, Place>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(options: &'a Options) -> Self {
        Self {
            options,
            table: Table::new(options.namespaces.len()),
            zones: Zones::default(),
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

    /// Lives on a client until its credentials are bad, it is of no more use, or the node leaves. It spawns nothing: when
    /// it is dropped, everything is.
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
        self.zones.begin();
        let (ask, asked) = watch::channel(0_u64);
        let watches = (0..self.namespaces.len()).map(|number| {
            let (api, place) = (self.api(&client, number), self.places.get(&number).cloned());
            let watch = Watch::new(api, self.options.is_streaming, rng.u64(..), asked.clone(), place);
            Box::pin(watch.news().map(move |news| (number, news)))
        });
        let (mut all, begun) = (select_all(watches), Instant::now());
        loop {
            let (wake, end, renew) = (self.news_at, self.ending.next(), self.renew_at());
            tokio::select! {
                biased;
                signal = cx.next() => match signal {
                    Signal::Leaving => return Over::Leaving,
                    // A pod is announced by Kubernetes, not by us.
                    Signal::MeChanged => {}
                    Signal::Resolve(_) => {
                        self.asked = (0..self.namespaces.len()).collect();
                        self.is_answer_due = true;
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
                found = self.zones.next(&client), if self.zones.is_busy() => {
                    self.zones.found(found);
                    self.news_within(ZONES);
                }
            }
        }
    }

    fn over(&self, why: String, begun: Instant) -> Over {
        Over::Renew { why, was_good: !self.well.is_empty() && begun.elapsed() >= GOOD_CLIENT }
    }

    /// When a client is left that leads nowhere: a kubeconfig may name another address by now, or another authority.
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

    /// Takes the news of a namespace; tells why the client is no longer good, if it is not.
    fn take(&mut self, cx: &ProviderContext, number: usize, news: News) -> Option<String> {
        let is_stale = matches!(news, News::Stale(_));
        match news {
            News::Listed(objects, version) => {
                self.places.insert(number, Place { version, listed_at: Instant::now() });
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
        // A namespace without troubles that says nothing is a quiet one.
        let is_silent = is_stale && self.troubles.len() == self.namespaces.len();
        self.silent_since = is_silent.then(|| self.silent_since.unwrap_or_else(Instant::now));
        None
    }

    /// Another client goes on from there.
    fn is_at(&mut self, number: usize, version: &str) {
        if let Some(place) = self.places.get_mut(&number).filter(|_| !version.is_empty()) {
            version.clone_into(&mut place.version);
        }
    }

    fn ignore(&self, objects: usize) {
        if objects > 0 {
            self.options.counters.ignored(objects);
            tracing::warn!(objects, "there are more objects than a provider keeps; narrow the selector");
        }
    }

    fn news(&mut self) {
        self.news_within(SETTLE);
    }

    fn news_within(&mut self, time: Duration) {
        let at = Instant::now() + time;
        self.news_at = Some(self.news_at.map_or(at, |before| before.min(at)));
    }

    fn report(&self, cx: &ProviderContext) {
        match self.troubles.values().next() {
            Some(why) => cx.report(Health::Stale(why.clone())),
            None if self.well.len() == self.namespaces.len() => cx.report(Health::Connected),
            None => {}
        }
    }

    fn publish(&mut self, cx: &ProviderContext) {
        self.news_at = None;
        if self.options.zones_from_nodes {
            self.zones.want(self.table.machines());
        }
        let merged = self.table.merge(|name| self.zones.of(name));
        let Merged { peers, is_complete, waiting, conflicts, terminating, gone } = merged;
        self.tell_waiting(waiting);
        self.tell_conflicts(conflicts);
        self.ending.follow(Instant::now(), terminating);
        for id in gone {
            cx.left(id, None);
        }
        let is_answered = self.asked.is_empty();
        // The same peers once more would confirm what the node doubts, before anybody has looked again.
        let would_confirm = self.is_answer_due
            && !is_answered
            && self.published.as_ref().is_some_and(|before| who(before).eq(who(&peers)));
        // Where one of the namespaces has not been listed: who is there is, who else is nobody knows.
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

    /// Publishes peers that are there, and nothing about others.
    fn hint(&mut self, cx: &ProviderContext, peers: Vec<Peer>) {
        let before = self.hinted.as_ref().or(self.published.as_ref());
        if before != Some(&peers) {
            self.options.counters.count(|all| &all.published);
            cx.publish(PeerSet::partial(peers.clone()));
            self.hinted = Some(peers);
        }
    }

    /// Says of pods that should have ended that they have. The node asks them before it believes it.
    fn say_left(&mut self, cx: &ProviderContext) {
        for id in self.ending.due(Instant::now()) {
            tracing::info!(%id, "this pod is being deleted for longer than it may take; is its machine dead?");
            cx.left(id, None);
        }
    }

    fn tell_conflicts(&mut self, conflicts: BTreeSet<PeerId>) {
        self.options.counters.conflicts(conflicts.len());
        let mut new = conflicts.difference(&self.conflicts);
        if let Some(id) = new.next() {
            let others = new.count();
            tracing::warn!(%id, others, "a pod of this name is in several namespaces; give it another name in each");
        }
        self.conflicts = conflicts;
    }

    fn tell_waiting(&self, waiting: usize) {
        let before = self.options.counters.waiting(waiting);
        if waiting > 0 && before == 0 {
            let port = &self.options.port;
            tracing::info!(waiting, ?port, "pods are waited for: they have no address yet, or no port of that name");
        }
    }
}

/// Whom a set names, and which addresses that have no name, as the node compares sets.
fn who(peers: &[Peer]) -> impl Iterator<Item = (Option<&PeerId>, &[Address])> {
    peers.iter().map(|peer| (peer.id(), if peer.id().is_none() { peer.addresses() } else { &[] }))
}
