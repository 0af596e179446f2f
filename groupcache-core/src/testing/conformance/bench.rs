//! A provider on the bench: run as a node runs it, with no node.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::testing::conformance::{CLUSTER, known::Known, member};
use crate::{
    error::Error,
    identity::{Incarnation, PeerId},
    membership::{
        provider::{Health, Me, Peer, Provider, ProviderFeed, ProviderHandle, Report},
        supervise::supervise,
    },
    runtime::clock,
};

/// A provider that runs as in a node, without the node: for tests of what it publishes, and when.
///
/// Its node is called `under-test` and is of the cluster [`CLUSTER`]. Dropping it drops the provider.
#[derive(Debug)]
pub struct Bench {
    me: watch::Sender<Me>,
    leaving: watch::Sender<bool>,
    reached: watch::Sender<BTreeSet<PeerId>>,
    feed: ProviderFeed,
    known: Known,
    asks: watch::Receiver<Option<mpsc::Sender<Vec<PeerId>>>>,
    run: JoinHandle<()>,
    /// How many tasks there were before the provider had any.
    tasks_before: usize,
    pub(super) health: Option<Health>,
    /// Who was said to have left, in this order.
    left: Vec<(PeerId, Option<Incarnation>)>,
}

/// What is known of the peers: the last complete set, and the hints since then.
pub(super) struct Seen(pub(super) Known);

impl Bench {
    /// Runs a provider, again and again if it must, as a node does.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn start(provider: Arc<dyn Provider>) -> Result<Self, Error> {
        let me = Me { id: PeerId::new("under-test")?, cluster: CLUSTER.into(), ..member(9_999)? };
        let (me, announced) = watch::channel(me);
        let (leaving, is_leaving) = watch::channel(false);
        let (reached, reached_feed) = watch::channel(BTreeSet::new());
        let (handle, feed) = ProviderHandle::new(announced, is_leaving.clone(), reached_feed);
        let (ask, asks) = watch::channel(None);
        let tasks_before = Handle::current().metrics().num_alive_tasks();
        let run = tokio::spawn(supervise(provider, handle, ask, || {}, is_leaving, 1));
        let (known, left) = (Known::default(), Vec::new());
        Ok(Self { me, leaving, reached, feed, known, asks, run, tasks_before, health: None, left })
    }

    /// Who is listed now: the last complete set, and the hints since.
    pub fn peers(&mut self) -> Vec<Peer> {
        self.seen().peers().cloned().collect()
    }

    /// How many complete sets there have been.
    pub fn sets(&mut self) -> u64 {
        self.seen().0.count
    }

    /// What the provider said last of its source.
    pub fn health(&mut self) -> Option<Health> {
        self.seen();
        self.health.clone()
    }

    /// Who was said to have left ([`ProviderContext::left`](crate::discovery::ProviderContext::left)) since this was asked last,
    /// each as often as it was said.
    pub fn left(&mut self) -> Vec<(PeerId, Option<Incarnation>)> {
        self.seen();
        std::mem::take(&mut self.left)
    }

    /// Tells the provider that the node leaves, and waits until it has returned, as long as a node would.
    pub async fn stop(self) {
        let _ = self.leave(Duration::from_secs(1)).await;
    }

    pub(super) fn seen(&mut self) -> Seen {
        while let Ok(report) = self.feed.reports.try_recv() {
            match report {
                Report::Health(health) => self.health = Some(health),
                Report::Left { id, incarnation } => self.left.push((id, incarnation)),
            }
        }
        self.known.read(&mut self.feed);
        Seen(self.known.clone())
    }

    /// Waits until what is known satisfies `condition`.
    pub(super) async fn until(
        &mut self,
        limit: Duration,
        what: &str,
        condition: impl Fn(&Seen) -> bool,
    ) -> Result<(), String> {
        let end = clock::deadline(limit);
        loop {
            let seen = self.seen();
            if condition(&seen) {
                return Ok(());
            }
            match timeout_at(end, self.feed.sets.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(format!("the provider has ended: {what}, {seen}")),
                Err(_) => {
                    let health = self.health.as_ref();
                    return Err(format!("not within {limit:?}: {what}; {seen}, its health is {health:?}"));
                }
            }
        }
    }

    /// Sees to it that what is known satisfies `condition` at each moment of `time`.
    pub(super) async fn throughout(
        &mut self,
        time: Duration,
        what: &str,
        condition: impl Fn(&Seen) -> bool,
    ) -> Result<(), String> {
        let end = clock::deadline(time);
        loop {
            let seen = self.seen();
            if !condition(&seen) {
                return Err(format!("not so any more: {what}; {seen}"));
            }
            match timeout_at(end, self.feed.sets.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(format!("the provider has ended: {what}")),
                Err(_) => {
                    self.seen(); // what it has reported since
                    return Ok(());
                }
            }
        }
    }

    /// Asks the provider to look again, as a node does that doubts a set.
    pub fn ask(&self) {
        self.ask_for([]);
    }

    /// Asks the provider for these peers, as a node does that cannot reach them though they are listed.
    pub fn ask_for(&self, ids: impl IntoIterator<Item = PeerId>) {
        if let Some(ask) = &*self.asks.borrow() {
            let _ = ask.try_send(ids.into_iter().collect());
        }
    }

    /// Lets the node have connections to these peers, and to no others.
    pub fn reach(&self, ids: impl IntoIterator<Item = PeerId>) {
        self.reached.send_replace(ids.into_iter().collect());
    }

    /// Changes what the provider announces.
    pub(super) fn change_me(&self, change: impl FnOnce(&mut Me)) {
        self.me.send_modify(change);
    }

    /// Tells the provider that the node leaves, and waits until it has returned. Tells how many tasks there were
    /// before it had any, for [`tasks_end`].
    pub(super) async fn leave(mut self, returns: Duration) -> Result<usize, String> {
        self.leaving.send_replace(true);
        // The supervisor gives up on it after a second, and would hide a provider that does not return.
        let begun = Instant::now();
        let ended = timeout(returns + Duration::from_secs(2), &mut self.run).await;
        if begun.elapsed() > returns || ended.is_err() {
            return Err(format!("the provider did not return within {returns:?} of Leaving"));
        }
        Ok(self.tasks_before)
    }

    /// Drops the provider where it stands.
    pub(super) async fn drop_it(mut self, tasks: Duration) -> Result<(), String> {
        self.run.abort();
        let _ = (&mut self.run).await;
        tasks_end(self.tasks_before, tasks).await
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.run.abort();
    }
}

/// Waits until there are no more tasks than before. Only of use where the source itself begins none meanwhile.
pub(super) async fn tasks_end(before: usize, limit: Duration) -> Result<(), String> {
    let end = clock::deadline(limit);
    loop {
        let now = Handle::current().metrics().num_alive_tasks();
        if now <= before {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("{} of its tasks are left {limit:?} after its end", now - before));
        }
        sleep(Duration::from_millis(10)).await;
    }
}

impl Seen {
    pub(super) fn is_complete(&self) -> bool {
        self.0.complete.is_some()
    }

    fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.0.complete.iter().flat_map(|set| &set.peers).chain(&self.0.hints)
    }

    /// The entries that speak of this member: by its name, or by an address of its where there is no name.
    pub(super) fn entries(&self, member: &Me) -> Vec<&Peer> {
        let is_of = |peer: &&Peer| match peer.id() {
            Some(id) => *id == member.id,
            None => peer.addresses().iter().any(|address| member.addresses.contains(address)),
        };
        self.peers().filter(is_of).collect()
    }

    pub(super) fn has(&self, member: &Me) -> bool {
        !self.entries(member).is_empty()
    }

    pub(super) fn has_all(&self, members: &[Me]) -> bool {
        members.iter().all(|member| self.has(member))
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named = |peer: &Peer| match peer.id() {
            Some(id) => id.to_string(),
            None => format!("{:?}", peer.addresses()),
        };
        let sets = self.0.count;
        match self.peers().map(named).collect::<Vec<_>>() {
            peers if peers.len() > 20 => write!(f, "it lists {} peers after {sets} complete sets", peers.len()),
            peers => write!(f, "it lists {peers:?} after {sets} complete sets"),
        }
    }
}
