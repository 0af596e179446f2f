//! The bench: runs a provider as a node does, without a node.

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

/// A provider that runs as in a node, without the node, for tests of the sets that it publishes.
///
/// The provider announces a node with the id `under-test` in the cluster [`CLUSTER`]. An error, a panic or an early
/// return of the provider starts it again, as in a node. Dropping the bench drops the provider.
#[derive(Debug)]
pub struct Bench {
    me: watch::Sender<Me>,
    leaving: watch::Sender<bool>,
    reached: watch::Sender<BTreeSet<PeerId>>,
    feed: ProviderFeed,
    known: Known,
    /// Channel for resolve requests to the current run of the provider.
    resolve_requests: watch::Receiver<Option<mpsc::Sender<Vec<PeerId>>>>,
    run: JoinHandle<()>,
    /// Number of tasks in the runtime before the provider has any.
    tasks_before: usize,
    pub(super) health: Option<Health>,
    /// Departure notices, in their order.
    left: Vec<(PeerId, Option<Incarnation>)>,
}

/// The published peers at one moment.
pub(super) struct Seen(pub(super) Known);

impl Bench {
    /// Starts a provider in a task. The call needs a tokio runtime.
    ///
    /// # Errors
    /// None that a caller can cause.
    pub fn start(provider: Arc<dyn Provider>) -> Result<Self, Error> {
        let me = Me { id: PeerId::new("under-test")?, cluster: CLUSTER.into(), ..member(9_999)? };
        let (me, announced) = watch::channel(me);
        let (leaving, is_leaving) = watch::channel(false);
        let (reached, reached_feed) = watch::channel(BTreeSet::new());
        let (handle, feed) = ProviderHandle::new(announced, is_leaving.clone(), reached_feed, provider.trust());
        let (requests, resolve_requests) = watch::channel(None);
        let tasks_before = Handle::current().metrics().num_alive_tasks();
        let run = tokio::spawn(supervise(provider, handle, requests, || {}, is_leaving, 1));
        let (known, left) = (Known::default(), Vec::new());
        Ok(Self { me, leaving, reached, feed, known, resolve_requests, run, tasks_before, health: None, left })
    }

    /// Returns the peers of the last complete set and of the partial sets since then.
    pub fn peers(&mut self) -> Vec<Peer> {
        self.seen().peers().cloned().collect()
    }

    /// Returns the number of complete sets so far. Sets that were published between two calls of the bench count once.
    pub fn sets(&mut self) -> u64 {
        self.seen().0.count
    }

    /// Returns the last report of the provider about its source; `None` before the first.
    pub fn health(&mut self) -> Option<Health> {
        self.seen();
        self.health.clone()
    }

    /// Returns the departure notices of the provider
    /// ([`ProviderContext::left`](crate::discovery::ProviderContext::left)) since the last call, including repeated
    /// ones.
    pub fn left(&mut self) -> Vec<(PeerId, Option<Incarnation>)> {
        self.seen();
        std::mem::take(&mut self.left)
    }

    /// Sends `Leaving` to the provider, and waits until it has returned, for as long as a node does.
    pub async fn stop(self) {
        let _ = self.leave(Duration::from_secs(1)).await;
    }

    /// Reads the reports and the sets since the last call, and returns the published peers.
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

    /// Waits until the published peers satisfy `condition`, for `limit` at most.
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
                Ok(Err(_)) => return Err(format!("the provider has ended before this was so: {what}; {seen}")),
                Err(_) => {
                    let health = self.health.as_ref();
                    return Err(format!("not within {limit:?}: {what}; {seen}, and its health is {health:?}"));
                }
            }
        }
    }

    /// Checks that the published peers satisfy `condition` at each moment of `time`.
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
                return Err(format!("not so any longer: {what}; {seen}"));
            }
            match timeout_at(end, self.feed.sets.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(format!("the provider has ended: {what}")),
                Err(_) => {
                    self.seen(); // reads the last reports
                    return Ok(());
                }
            }
        }
    }

    /// Asks the provider to read its source again, as a node does that doubts a set.
    pub fn ask(&self) {
        self.ask_for([]);
    }

    /// Asks the provider to read its source again for these peers, as a node does that cannot reach listed peers.
    pub fn ask_for(&self, ids: impl IntoIterator<Item = PeerId>) {
        if let Some(requests) = &*self.resolve_requests.borrow() {
            let _ = requests.try_send(ids.into_iter().collect());
        }
    }

    /// Reports to the provider that the node is connected to these peers, and to no others.
    pub fn reach(&self, ids: impl IntoIterator<Item = PeerId>) {
        self.reached.send_replace(ids.into_iter().collect());
    }

    /// Changes the facts that the provider announces.
    pub(super) fn change_me(&self, change: impl FnOnce(&mut Me)) {
        self.me.send_modify(change);
    }

    /// Sends `Leaving` to the provider, and waits until it has returned, for `returns` at most. Returns the number of
    /// tasks before the provider had any, for [`tasks_end`].
    pub(super) async fn leave(mut self, returns: Duration) -> Result<usize, String> {
        self.leaving.send_replace(true);
        // The limit is checked here too, because the supervisor drops a provider that does not return within a second.
        let begun = Instant::now();
        let ended = timeout(returns + Duration::from_secs(2), &mut self.run).await;
        if begun.elapsed() > returns || ended.is_err() {
            return Err(format!("the provider did not return within {returns:?} of Leaving"));
        }
        Ok(self.tasks_before)
    }

    /// Drops the provider while it runs, and waits until its tasks have ended.
    pub(super) async fn drop_provider(mut self, tasks: Duration) -> Result<(), String> {
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

/// Waits until there are no more tasks than before. The source itself must not start tasks meanwhile.
pub(super) async fn tasks_end(before: usize, limit: Duration) -> Result<(), String> {
    let end = clock::deadline(limit);
    loop {
        let now = Handle::current().metrics().num_alive_tasks();
        if now <= before {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("{} tasks of the provider are left {limit:?} after its end", now - before));
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

    /// Returns the entries of a member: those with its id, and those with one of its addresses and no id.
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
            peers if peers.len() > 20 => {
                write!(f, "the provider lists {} peers after {sets} complete sets", peers.len())
            }
            peers => write!(f, "the provider lists {peers:?} after {sets} complete sets"),
        }
    }
}
