//! Session: announces the node on its segment, follows the records of its peers, verifies peers that the node cannot
//! reach, and withdraws the record when the node leaves.

mod due;
mod heard;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use groupcache_core::{
    PeerId,
    discovery::{Health, Incarnation, Me, Peer, PeerSet, ProviderContext, ProviderError, Signal},
};
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

/// Interval of the checks of records, connections and verifications.
const LOOK: Duration = Duration::from_millis(100);
/// Debounce of published sets, so that changes close in time (IPv4 and IPv6 addresses of a peer) make one set.
const SETTLE: Duration = Duration::from_millis(20);

/// Delay after which a change is announced a second time, as a whole record. The library itself repeats only the
/// changed TXT record, 1.1 s after the change, and for a second after that its answers leave the TXT record out.
const AGAIN: Duration = Duration::from_millis(2_500);

/// State of one run of the provider.
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
    /// Incarnations under which this run has announced the node. Records of these incarnations are its own.
    lives: BTreeSet<Incarnation>,
    /// Instance name under which the daemon announces this node, once it has accepted the record.
    registered: Option<String>,
    /// Reason why this node cannot be announced.
    unpublished: Option<String>,
    /// Time at which the record is given to the daemon.
    register_at: Option<Instant>,
    /// Time at which the last change is announced a second time; see [`AGAIN`].
    again_at: Option<Instant>,
    /// Instances that were resolved without a TXT record, with the time of the first such event.
    bare: BTreeMap<String, Instant>,
    /// Time from which the library's cache may be dropped because of `bare` instances.
    forget_at: Instant,
    /// Time from which a listing counts. Earlier listings miss instances that were dropped from the cache.
    listings_count_from: Instant,
    /// Time of the next listing and query. The daemon's own queries become rarer, down to one per hour.
    browse_at: Instant,
    /// Peers that the node asked for and that are to be verified.
    to_verify: BTreeSet<PeerId>,
    /// Peers under verification, with the end of each verification.
    verified: BTreeMap<PeerId, Instant>,
    begun: Instant,
    look_at: Instant,
    /// Time at which a changed set is published.
    news_at: Option<Instant>,
    /// Time at which a request of the node is answered with a set, even if nothing has changed.
    answer_at: Option<Instant>,
    /// Whether sets are complete, as all are after the first complete one.
    is_complete: bool,
    published: Option<Vec<Peer>>,
    /// Whether the one check that may log that this node is alone has run.
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

    /// Runs until the node leaves or the daemon ends.
    pub(crate) async fn live(mut self, cx: &mut ProviderContext) -> Result<(), ProviderError> {
        loop {
            self.act(cx)?;
            // The channels of the library do not yield to other tasks.
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
                        self.news(); // published sets include this node
                    }
                    Signal::Resolve(ids) => self.look_again(cx, ids),
                },
                word = self.events.next() => self.take(cx, word),
                event = self.monitor.recv_async() => self.note(event),
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Returns the time of the next action that needs no event.
    fn wake_at(&self) -> Instant {
        let all = [self.news_at, self.answer_at, self.register_at, self.again_at];
        all.into_iter().flatten().fold(self.look_at.min(self.browse_at), Instant::min)
    }

    fn news(&mut self) {
        self.news_at.get_or_insert(Instant::now() + SETTLE);
    }

    /// Gives the record of this node to the daemon. Only the first registration probes whether the name is free,
    /// because a probe would delay a change of state by a second.
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
