//! What a node does on its segment: it announces itself, listens, asks for whom it misses, and says goodbye.

mod due;
mod heard;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use groupcache_core::{Health, Incarnation, Me, Peer, PeerId, PeerSet, ProviderContext, ProviderError, Signal};
use mdns_sd::{DaemonEvent, Receiver};
use tokio::{
    task::consume_budget,
    time::{Instant, sleep_until},
};

use crate::{
    daemon::{Daemon, Refused},
    interfaces::Seen,
    options::Mdns,
    path::Path,
    record::announcement,
    subscription::Subscription,
    table::Table,
};

/// How often records, connections and questions are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Changes that come together are published together: the addresses of the two families of a peer, for instance.
const SETTLE: Duration = Duration::from_millis(20);

/// A change is announced once more, with all that belongs to it, after this time. For the second after the library has
/// said again what is new, which is the TXT record alone and 1.1 s later, its answers are without that record.
const AGAIN: Duration = Duration::from_millis(2_500);

/// One run of the provider.
pub(crate) struct Session<'a> {
    options: &'a Mdns,
    daemon: Daemon,
    monitor: Receiver<DaemonEvent>,
    events: Subscription,
    seen: Seen,
    domain: String,
    cluster: String,
    rng: fastrand::Rng,
    table: Table,
    path: Path,
    /// The incarnations under which this run has announced the node: records with them are our own.
    lives: BTreeSet<Incarnation>,
    /// What the daemon calls us, once it has been told.
    registered: Option<String>,
    /// Why it cannot be told.
    unpublished: Option<String>,
    /// When it is told again what we are.
    register_at: Option<Instant>,
    again_at: Option<Instant>,
    /// Instances that were resolved without a TXT record, and since when.
    bare: BTreeMap<String, Instant>,
    /// When what the library remembers may be forgotten because of those.
    forget_at: Instant,
    /// From when on a listing without a peer says something: what was forgotten is not in it.
    listings_count_from: Instant,
    /// When all is listed and asked for again: the daemon itself asks ever less often, up to once an hour.
    browse_at: Instant,
    /// Peers that the node misses and whose records are to be verified, and those that are, until when.
    to_verify: BTreeSet<PeerId>,
    verified: BTreeMap<PeerId, Instant>,
    begun: Instant,
    look_at: Instant,
    /// Something has changed, and is published at that time.
    news_at: Option<Instant>,
    /// The node has asked, and gets a set even if nothing has changed.
    answer_at: Option<Instant>,
    /// A complete set has been published: from then on every set is complete.
    is_complete: bool,
    published: Option<Vec<Peer>>,
    /// It has been said that nobody else is heard, or somebody is.
    is_alone_told: bool,
}

impl<'a> Session<'a> {
    pub(crate) fn new(options: &'a Mdns, daemon: Daemon, monitor: Receiver<DaemonEvent>, seen: Seen, me: &Me) -> Self {
        let now = Instant::now();
        Self {
            options,
            daemon,
            monitor,
            events: Subscription::default(),
            seen,
            domain: options.domain(),
            cluster: me.cluster.to_string(),
            rng: fastrand::Rng::new(),
            table: Table::default(),
            path: Path::new(now),
            lives: BTreeSet::new(),
            registered: None,
            unpublished: None,
            register_at: Some(now),
            again_at: None,
            bare: BTreeMap::new(),
            forget_at: now,
            listings_count_from: now,
            browse_at: now,
            to_verify: BTreeSet::new(),
            verified: BTreeMap::new(),
            begun: now,
            look_at: now,
            news_at: None,
            answer_at: None,
            is_complete: false,
            published: None,
            is_alone_told: false,
        }
    }

    /// Lives until the node leaves, or the daemon ends.
    pub(crate) async fn live(mut self, cx: &mut ProviderContext) -> Result<(), ProviderError> {
        loop {
            self.act(cx)?;
            // The channels of the library never let others have their turn.
            consume_budget().await;
            let wake = self.wake_at();
            tokio::select! {
                biased;
                signal = cx.next() => match signal {
                    Signal::Leaving => {
                        if let Some(instance) = &self.registered {
                            self.daemon.withdraw(instance).await;
                        }
                        return Ok(());
                    }
                    Signal::MeChanged => {
                        self.register_at = Some(Instant::now());
                        self.news(); // our own record is part of what we publish
                    }
                    Signal::Resolve(ids) => self.look_again(cx, ids),
                },
                word = self.events.next() => self.take(cx, word),
                event = self.monitor.recv_async() => self.note(event),
                () = sleep_until(wake) => {}
            }
        }
    }

    /// When there is something to do though nothing is heard.
    fn wake_at(&self) -> Instant {
        let all = [self.news_at, self.answer_at, self.register_at, self.again_at];
        all.into_iter().flatten().fold(self.look_at.min(self.browse_at), Instant::min)
    }

    fn news(&mut self) {
        self.news_at.get_or_insert(Instant::now() + SETTLE);
    }

    /// Tells the daemon what we are. Only the first time are the others asked whether the name is free: each time
    /// would keep a change of state from them for a second.
    fn register(&mut self, cx: &ProviderContext) -> Result<(), ProviderError> {
        let me = cx.me();
        let mut info = match announcement(&me, self.options) {
            Ok(info) => info,
            Err(why) => {
                cx.report(Health::Stale(why.clone()));
                self.unpublished = Some(why);
                return Ok(());
            }
        };
        self.unpublished = None;
        info.set_requires_probe(self.registered.is_none());
        let instance = info.get_fullname().to_owned();
        match self.daemon.register(info) {
            Ok(()) => {
                self.lives.insert(me.incarnation);
                self.registered = Some(instance);
                self.again_at = Some(Instant::now() + AGAIN);
            }
            Err(Refused::Busy) => self.register_at = Some(Instant::now() + LOOK),
            Err(Refused::Ended(why)) => return Err(why.into()),
        }
        Ok(())
    }

    fn publish(&mut self, cx: &ProviderContext, is_answer: bool) {
        self.news_at = None;
        if !self.is_complete {
            cx.publish(PeerSet::partial(self.table.peers().collect()));
            return;
        }
        let me = cx.me();
        let this = Peer::member(me.id, me.addresses).with_incarnation(me.incarnation).with_state(me.state);
        let peers: Vec<_> = std::iter::once(this).chain(self.table.peers()).collect();
        if is_answer || self.published.as_ref() != Some(&peers) {
            cx.publish(PeerSet::complete(peers.clone()));
            self.published = Some(peers);
        }
    }
}
