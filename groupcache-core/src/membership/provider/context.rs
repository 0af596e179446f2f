//! Channels between the run of a provider and its node: peer sets and reports one way, signals the other.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};

use crate::{
    identity::{Incarnation, PeerId},
    membership::provider::{Health, Me, Peer, PeerSet, Signal, Trust},
    runtime::sync::Mutex,
};

/// A report of a provider to the node, other than a peer set.
#[derive(Debug)]
pub(crate) enum Report {
    Left { id: PeerId, incarnation: Option<Incarnation> },
    Health(Health),
}

/// Maximum number of resolve requests that a provider has not received. More are dropped, because one lookup answers
/// all.
const RESOLVE_QUEUE: usize = 4;
/// Maximum number of reports that the node has not received. More are dropped, because reports are hints.
const REPORT_QUEUE: usize = 256;

/// The connection of a provider to its node: the node to announce, the signals of the node, and the way for peer sets.
///
/// Publishing and reporting never wait. The latest complete set replaces an earlier one that the node has not read, so
/// that a busy node reads fewer sets and never an older one.
#[derive(Debug)]
pub struct ProviderContext {
    me: watch::Receiver<Me>,
    resolve: mpsc::Receiver<Vec<PeerId>>,
    leaving: watch::Receiver<bool>,
    reached: Reached,
    trust: Trust,
    sets: Arc<watch::Sender<Published>>,
    reports: mpsc::Sender<Report>,
}

/// The members with a live connection, as a channel.
pub(crate) type Reached = watch::Receiver<BTreeSet<PeerId>>;

/// The peer sets that a provider has published and the node has not read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Published {
    /// The last complete set until the node takes it. The set may be large, and is needed once.
    complete: Arc<Mutex<Option<PeerSet>>>,
    /// Records from partial sets since the last complete set.
    pub(crate) hints: Vec<Peer>,
}

impl Published {
    /// Creates the state after one complete set.
    pub(crate) fn complete(set: PeerSet) -> Self {
        Self { complete: Arc::new(Mutex::new(Some(set))), hints: Vec::new() }
    }

    /// Takes the complete set, if one was published since the last call. An equal set counts, because it confirms the
    /// last one.
    pub(crate) fn take_complete(&self) -> Option<PeerSet> {
        self.complete.lock().take()
    }
}

/// Maximum number of records from partial sets that the node has not read. The next complete set replaces them.
const MAX_HINTS: usize = 2_000;

impl ProviderContext {
    /// Returns the local node, as it is to be announced.
    pub fn me(&self) -> Me {
        self.me.borrow().clone()
    }

    /// Returns whether the peer is a member with a live connection, as of about 50 ms ago.
    ///
    /// Use it if a missing record does not prove that the peer has left, because a connected peer is present.
    pub fn reaches(&self, id: &PeerId) -> bool {
        self.reached.borrow().contains(id)
    }

    /// Waits for the next signal of the node. After [`Signal::Leaving`], always returns it again.
    ///
    /// # Cancellation
    /// A dropped future loses no signal.
    pub async fn next(&mut self) -> Signal {
        // A closed channel means that the node is gone, which counts as leaving.
        if *self.leaving.borrow() {
            return Signal::Leaving;
        }
        tokio::select! {
            biased;
            _ = self.leaving.changed() => Signal::Leaving,
            changed = self.me.changed() => if changed.is_ok() { Signal::MeChanged } else { Signal::Leaving },
            ids = self.resolve.recv() => ids.map_or(Signal::Leaving, Signal::Resolve),
        }
    }

    /// Waits for a request to look again, and takes it.
    pub(crate) async fn asked(&mut self) {
        if self.resolve.recv().await.is_none() {
            std::future::pending().await // the node is gone, and ends the caller
        }
    }

    /// Waits until the node leaves. Other signals stay for [`next`](Self::next).
    ///
    /// # Cancellation
    /// A dropped future loses no signal.
    pub async fn leaving(&self) {
        let mut leaving = self.leaving.clone();
        // An error means that the node is gone.
        let _ = leaving.wait_for(|leaving| *leaving).await;
    }

    /// Waits for the next signal as [`next`](Self::next) does, for at most `wait`. Returns `None` if there was no
    /// signal.
    pub async fn next_within(&mut self, wait: Duration) -> Option<Signal> {
        tokio::time::timeout(wait, self.next()).await.ok()
    }

    /// Publishes a peer set.
    ///
    /// A complete set replaces all earlier sets. A partial set adds to the last complete set. Limit: 2,000 records from
    /// partial sets that the node has not read.
    pub fn publish(&self, mut set: PeerSet) {
        for peer in &mut set.peers {
            peer.trust = self.trust;
        }
        self.publish_of_sources(set);
    }

    /// Publishes a peer set of records that have the trust of their sources.
    pub(crate) fn publish_of_sources(&self, set: PeerSet) {
        self.sets.send_modify(|published| {
            if set.is_complete {
                *published.complete.lock() = Some(set);
                published.hints.clear();
            } else {
                if mutant!(SnapshotWatchGap) {
                    published.complete.lock().take();
                }
                published.hints.extend(set.peers);
                published.hints.sort_unstable();
                published.hints.dedup();
                published.hints.truncate(MAX_HINTS);
            }
        });
    }

    /// Reports that a peer has announced its departure.
    ///
    /// The report is a hint. The node pings the peer, and removes it if the ping fails. A report about a stale
    /// `incarnation` is ignored.
    pub fn left(&self, id: PeerId, incarnation: Option<Incarnation>) {
        let _ = self.reports.try_send(Report::Left { id, incarnation });
    }

    /// Reports the health of the source. The node logs changes.
    pub fn report(&self, health: Health) {
        let _ = self.reports.try_send(Report::Health(health));
    }

    /// Creates the handle and the feed of a child, for a provider that is made of others.
    pub(crate) fn child(&self, trust: Trust) -> (ProviderHandle, ProviderFeed) {
        ProviderHandle::new(self.me.clone(), self.leaving.clone(), self.reached.clone(), trust)
    }

    /// Returns the flag that becomes true when the node leaves.
    pub(crate) fn leaving_flag(&self) -> watch::Receiver<bool> {
        self.leaving.clone()
    }
}

/// The node's side of [`ProviderContext`], which outlives the runs of the provider.
#[derive(Debug)]
pub(crate) struct ProviderHandle {
    me: watch::Receiver<Me>,
    leaving: watch::Receiver<bool>,
    reached: Reached,
    trust: Trust,
    sets: Arc<watch::Sender<Published>>,
    reports: mpsc::Sender<Report>,
}

/// The peer sets and reports of a provider, for the membership task.
#[derive(Debug)]
pub(crate) struct ProviderFeed {
    pub(crate) sets: watch::Receiver<Published>,
    pub(crate) reports: mpsc::Receiver<Report>,
}

impl ProviderHandle {
    pub(crate) fn new(
        me: watch::Receiver<Me>,
        leaving: watch::Receiver<bool>,
        reached: Reached,
        trust: Trust,
    ) -> (Self, ProviderFeed) {
        let (sets, set_feed) = watch::channel(Published::default());
        let (reports, report_feed) = mpsc::channel(REPORT_QUEUE);
        let feed = ProviderFeed { sets: set_feed, reports: report_feed };
        (Self { me, leaving, reached, trust, sets: Arc::new(sets), reports }, feed)
    }

    /// Creates the context of one run, and the sender of its resolve requests.
    pub(crate) fn context(&self) -> (ProviderContext, mpsc::Sender<Vec<PeerId>>) {
        let (ask, resolve) = mpsc::channel(RESOLVE_QUEUE);
        let cx = ProviderContext {
            me: self.me.clone(),
            resolve,
            leaving: self.leaving.clone(),
            reached: self.reached.clone(),
            trust: self.trust,
            sets: Arc::clone(&self.sets),
            reports: self.reports.clone(),
        };
        (cx, ask)
    }

    /// Publishes peer sets for a node without a provider.
    pub(crate) fn publish(&self, published: Published) {
        self.sets.send_replace(published);
    }

    pub(crate) fn report(&self, health: Health) {
        let _ = self.reports.try_send(Report::Health(health));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{identity::PeerId, testing::unit::me};

    fn start() -> (ProviderContext, ProviderFeed) {
        let reached = watch::channel(BTreeSet::from([PeerId::new("b").expect("a good id")])).1;
        let (handle, feed) =
            ProviderHandle::new(watch::channel(me("me")).1, watch::channel(false).1, reached, Trust::Hints);
        (handle.context().0, feed)
    }

    fn peers(names: &[&str]) -> Vec<Peer> {
        names.iter().map(|name| Peer::member(PeerId::new(name).expect("a good id"), [])).collect()
    }

    fn read(feed: &mut ProviderFeed) -> Published {
        feed.sets.borrow_and_update().clone()
    }

    /// Checks that a provider and its children see the connected members.
    #[test]
    fn reaches_reports_connected_members_to_children_too() {
        let (cx, _feed) = start();
        let (child, _child_feed) = cx.child(Trust::Hints);
        for cx in [&cx, &child.context().0] {
            let reaches = |name: &str| cx.reaches(&PeerId::new(name).expect("a good id"));
            assert_eq!((reaches("a"), reaches("b")), (false, true));
        }
    }

    /// Checks that partial sets keep an unread complete set, and each other's records.
    #[test]
    fn partial_sets_add_up_beside_an_unread_complete_set() {
        let (cx, mut feed) = start();
        cx.publish(PeerSet::complete(peers(&["a"])));
        cx.publish(PeerSet::partial(peers(&["b"])));
        cx.publish(PeerSet::partial(peers(&["c"])));
        let published = read(&mut feed);
        assert_eq!(
            published.take_complete(),
            Some(PeerSet::complete(peers(&["a"]))),
            "partial sets keep the complete set"
        );
        assert_eq!(published.hints, peers(&["b", "c"]), "the second partial set keeps the first");
    }

    /// Checks that a complete set replaces earlier partial sets, is taken once, and counts again when it is published
    /// again.
    #[test]
    fn complete_set_replaces_earlier_partial_sets() {
        let (cx, mut feed) = start();
        cx.publish(PeerSet::partial(peers(&["b"])));
        cx.publish(PeerSet::complete(peers(&["a"])));
        let published = read(&mut feed);
        assert_eq!((published.take_complete(), published.hints), (Some(PeerSet::complete(peers(&["a"]))), Vec::new()));
        cx.publish(PeerSet::partial(peers(&["c"])));
        let again = read(&mut feed);
        assert_eq!((again.take_complete(), again.hints), (None, peers(&["c"])), "the complete set is taken once");
        cx.publish(PeerSet::complete(peers(&["a"])));
        assert!(read(&mut feed).take_complete().is_some(), "an equal set counts again");
    }
}
