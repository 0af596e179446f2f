//! Writes: the state of logs, company and horizon that the connections, the engines and the tasks of a node share.
//!
//! A single lock guards the state. No other lock is taken under it, and no user code runs under it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use tokio::sync::{Notify, watch};

use crate::{
    identity::{Instance, PeerId},
    protocol::{
        message::{Bounds, Hello, WriteName},
        wire::features,
    },
    runtime::{stats::NodeCounters, sync::Mutex},
    write::{
        horizon::{Horizon, HorizonInfo},
        index::Shown,
        log::Entry,
        logs::Logs,
        peers::Peers,
        pulls::PULL_AFTER,
        settling::{Settling, Unsettled},
        state::{State, show},
    },
};

/// Logs, company and horizon of a node.
#[derive(Debug)]
pub(crate) struct Writes {
    pub(super) own: Instance,
    pub(super) state: Mutex<State>,
    /// Number of announced entries, after which a peer may lack one.
    pub(super) announced: AtomicU64,
    pub(super) company_version: AtomicU64,
    horizon_ms: AtomicU64,
    /// Last time at which a node entered the company, or at which this node started.
    entered_ms: AtomicU64,
    /// Signal that a log lacks entries.
    pub(crate) lacks: Notify,
    /// Signal to ping every peer now: this node has applied entries that it had to ask for, or a node has entered the
    /// company, and every other node is to be heard since.
    pub(crate) ping_all: Notify,
    horizon_info: watch::Sender<HorizonInfo>,
    counters: Arc<NodeCounters>,
    /// Whether a group of this node bounds its staleness, so that loads record the age of what they read.
    pub(crate) has_bounds: AtomicBool,
    /// Whether other nodes may have forgotten writes that this node has not heard of.
    may_have_missed: AtomicBool,
}

impl Writes {
    pub(crate) fn new(own: Instance, now_ms: u64, counters: Arc<NodeCounters>) -> Self {
        let state = State {
            logs: Logs::new(own.clone()),
            peers: Peers::new(own.clone(), now_ms),
            unsettled: Unsettled::default(),
            horizon: Horizon::new(now_ms),
            lacking: BTreeMap::new(),
            is_alone: false,
        };
        Self {
            own,
            state: Mutex::new(state),
            announced: AtomicU64::new(1),
            company_version: AtomicU64::new(1),
            horizon_ms: AtomicU64::new(now_ms),
            entered_ms: AtomicU64::new(now_ms),
            lacks: Notify::new(),
            ping_all: Notify::new(),
            horizon_info: watch::Sender::new(HorizonInfo { age: Duration::ZERO, held_back_by: None }),
            counters,
            has_bounds: AtomicBool::new(false),
            may_have_missed: AtomicBool::new(false),
        }
    }

    /// Returns the time until which this node has applied every write.
    #[inline]
    pub(crate) fn horizon_ms(&self) -> u64 {
        self.horizon_ms.load(SeqCst)
    }

    /// Returns whether the horizon counts for values of other nodes: every node of the company was heard since the last
    /// one entered. Before that, another node may know of writers that the horizon does not cover.
    pub(crate) fn vouches_for_others(&self) -> bool {
        self.horizon_ms() > self.entered_ms.load(SeqCst) || mutant!(HorizonVouchesForAll)
    }

    pub(crate) fn horizon(&self) -> watch::Receiver<HorizonInfo> {
        self.horizon_info.subscribe()
    }

    // The company.

    /// Records a Hello; the first of a connection if `is_new`.
    pub(crate) fn greeted(&self, hello: &Hello, is_new: bool, now_ms: u64) {
        let has_log = hello.features & features::WRITE_LOG != 0;
        let mut state = self.state.lock();
        let instance = hello.instance();
        if is_new && state.peers.was_away(&instance, now_ms) {
            self.may_have_missed.store(true, SeqCst);
        }
        state.peers.greeted(&instance, has_log, is_new, now_ms);
        if let Some(peer) = state.peers.of(&instance) {
            let bounds = hello.groups.iter().map(|group| (Arc::clone(&group.name), group.bounds));
            // A group that is gone may have left values in flight, so that its bounds are kept.
            for (name, bounds) in bounds {
                let known = peer.bounds.entry(name).or_insert(bounds);
                *known = wider(*known, bounds);
            }
        }
        self.refresh(&mut state, now_ms);
    }

    /// Records the end of a connection.
    pub(crate) fn disconnected(&self, instance: &Instance, now_ms: u64) {
        let mut state = self.state.lock();
        state.peers.disconnected(instance, now_ms);
        self.refresh(&mut state, now_ms);
    }

    pub(crate) fn said_goodbye(&self, instance: &Instance, now_ms: u64) {
        let mut state = self.state.lock();
        state.peers.said_goodbye(instance);
        self.refresh(&mut state, now_ms);
    }

    /// Returns the nodes that must be told of a write, without this node.
    pub(crate) fn company(&self) -> Vec<PeerId> {
        self.state.lock().peers.company().members.iter().map(|member| member.id.clone()).collect()
    }

    /// Records the peers that discovery lists. `is_alone` says that discovery has answered and lists no other node.
    pub(crate) fn listed(&self, ids: &BTreeSet<PeerId>, is_alone: bool, now_ms: u64) {
        let mut state = self.state.lock();
        state.peers.listed(ids);
        state.is_alone = is_alone;
        self.refresh(&mut state, now_ms);
    }

    fn refresh(&self, state: &mut State, now_ms: u64) {
        let change = state.peers.refresh(now_ms);
        if change.has_changed {
            self.company_version.store(state.peers.company().version, SeqCst);
        }
        if change.has_lost {
            state.horizon.lost_a_node(now_ms);
        }
        if change.has_gained {
            self.entered_ms.store(now_ms, SeqCst);
            self.ping_all.notify_one();
        }
        self.settle(state);
    }

    /// Returns once whether this node met another node after a time that is nearly as long as logs reach back.
    pub(crate) fn take_may_have_missed(&self) -> bool {
        self.may_have_missed.load(Relaxed) && self.may_have_missed.swap(false, SeqCst)
    }

    // The own log.

    /// Appends a write that this node has applied.
    pub(crate) fn append(&self, group: &Arc<str>, key: Option<&Arc<str>>, now_ms: u64) -> Arc<Settling> {
        let mut state = self.state.lock();
        let number = state.logs.append(group, key, now_ms);
        self.announced.fetch_add(1, SeqCst);
        state.unsettled.add(number, group, now_ms)
    }

    /// Records that a peer has applied every write of this node up to `number`.
    pub(crate) fn acknowledged(&self, peer: &Instance, number: u64) {
        let mut state = self.state.lock();
        let number = number.min(state.logs.own_position());
        state.peers.acknowledged(peer, number);
        let own = self.own.clone();
        if let Some(peer) = state.peers.of(peer) {
            show(&mut peer.positions, &own, Shown { number, base: 0 });
            peer.wide_said = None;
        }
        self.settle(&mut state);
    }

    /// Records that a peer of an earlier release has dropped the value of a write of this node.
    pub(crate) fn acknowledged_one(&self, peer: &Instance, number: u64) {
        let mut state = self.state.lock();
        state.peers.acknowledged_one(peer, number);
        self.settle(&mut state);
    }

    pub(super) fn settle(&self, state: &mut State) {
        if !state.unsettled.is_empty() {
            let number = state.peers.acknowledged_by_all();
            state.unsettled.settle_until(number);
        }
    }

    /// Settles a write without peers at once, and returns the nodes that have not acknowledged a write yet.
    pub(crate) fn pending(&self, number: u64) -> Vec<PeerId> {
        let mut state = self.state.lock();
        self.settle(&mut state);
        state.pending(number).into_iter().collect()
    }

    /// Returns the number of writes of this node that some node has not acknowledged yet.
    pub(crate) fn unacknowledged_by_some(&self) -> u64 {
        let mut state = self.state.lock();
        let acknowledged = state.peers.acknowledged_by_all();
        state.logs.own_position().saturating_sub(acknowledged)
    }

    /// Returns whether one of the nodes that a write was sent to has not acknowledged it yet and is connected.
    pub(crate) fn may_acknowledge_soon(&self, number: u64, sent_to: &BTreeSet<PeerId>) -> bool {
        let mut state = self.state.lock();
        let pending = state.pending(number);
        let is_close = |id: &PeerId| {
            let peer = state.peers.by_id.get(id);
            sent_to.contains(id) && peer.is_some_and(|peer| peer.has_log && peer.is_connected())
        };
        pending.iter().any(is_close)
    }

    /// Returns the name of a write of this node.
    pub(crate) fn own_name(&self, number: u64) -> WriteName {
        WriteName { writer: self.own.clone(), number }
    }

    /// Returns a write that is in no log.
    pub(crate) fn unlogged(&self) -> Arc<Settling> {
        Unsettled::unlogged()
    }

    /// Counts a write at its outcome.
    pub(crate) fn count_written(&self, settling: &Settling) {
        if settling.is_settled() && settling.count_once() {
            self.counters.writes_complete.up();
        }
    }

    /// Counts a write that has settled after its outcome.
    pub(crate) fn count_settled(&self, settling: &Settling) {
        if settling.count_once() {
            self.counters.writes_settled.up();
            self.counters.settling_ms.add(settling.elapsed().as_millis() as u64);
        }
    }

    // Entries of others.

    /// Announces an entry that is about to be applied; `None` if it is applied already.
    pub(crate) fn begin(&self, writer: &Instance, entry: Entry, now_ms: u64) -> Option<Entry> {
        let mut state = self.state.lock();
        if *writer == self.own || state.logs.is_applied(writer, &entry) {
            return None;
        }
        state.logs.announce(writer, &entry, now_ms);
        self.announced.fetch_add(1, SeqCst);
        Some(entry)
    }

    /// Records an entry that was applied: the value is dropped, and its flights are detached.
    pub(crate) fn commit(&self, writer: &Instance, entry: Entry, now_ms: u64) {
        let mut state = self.state.lock();
        let shown = Shown { number: entry.number, base: 0 };
        state.logs.commit(writer, entry, now_ms);
        let is_lacking = state.logs.has_gap(writer);
        if let Some(peer) = state.peers.of(writer).filter(|_| is_lacking) {
            show(&mut peer.positions, writer, shown);
        }
        if is_lacking {
            state.lack(writer, now_ms + PULL_AFTER.as_millis() as u64);
        }
        drop(state);
        if is_lacking {
            self.lacks.notify_one();
        }
    }

    /// Records that every entry of a log up to `number` is applied.
    pub(crate) fn reach(&self, writer: &Instance, number: u64, now_ms: u64) {
        self.state.lock().logs.reach(writer, number, now_ms);
    }

    /// Returns the position of this node in a log.
    pub(crate) fn position(&self, writer: &Instance) -> u64 {
        self.state.lock().logs.position(writer)
    }

    /// Announces that the logs are about to begin at these numbers.
    pub(crate) fn announce_bases(&self, bases: &[(Instance, u64)], now_ms: u64) {
        let mut state = self.state.lock();
        bases.iter().for_each(|(writer, number)| state.logs.announce_base(writer, *number, now_ms));
        self.announced.fetch_add(1, SeqCst);
    }

    /// Begins the logs at these numbers, after all values were dropped and all flights detached.
    pub(crate) fn begin_at(&self, bases: &[(Instance, u64)], now_ms: u64) {
        let mut state = self.state.lock();
        bases.iter().for_each(|(writer, number)| state.logs.begin_at(writer, *number, now_ms));
        self.ping_all.notify_one();
        state.advance();
        self.publish_horizon(&state, now_ms);
    }

    // Time.

    /// Moves the horizon of a node that is alone. Runs with each tick.
    pub(crate) fn tick(&self, now_ms: u64) {
        let mut state = self.state.lock();
        if state.is_alone && state.peers.company().members.is_empty() {
            state.horizon.alone(now_ms);
            self.horizon_ms.fetch_max(now_ms, SeqCst);
        }
    }

    /// Settles the writes of which no pending node can serve an older value any longer.
    pub(crate) fn settle_by_time(&self, now_ms: u64) {
        self.state.lock().settle_by_time(now_ms);
    }

    /// Forgets what is old, and publishes the horizon. Runs about once a second.
    pub(crate) fn sweep(&self, now_ms: u64) {
        let mut state = self.state.lock();
        self.refresh(&mut state, now_ms);
        state.logs.sweep(now_ms);
        let State { logs, peers, .. } = &mut *state;
        let company = Arc::clone(peers.company());
        logs.forget_gone(now_ms, |writer| !company.members.contains(writer));
        state.advance();
        self.publish_horizon(&state, now_ms);
    }

    pub(super) fn publish_horizon(&self, state: &State, now_ms: u64) {
        let reached_ms = state.horizon.reached_ms();
        self.horizon_ms.fetch_max(reached_ms, SeqCst);
        let company = &state.peers.company().members;
        let heard = |instance: &Instance| state.peers.by_id.get(&instance.id).and_then(|peer| peer.applied_ms);
        let held_back_by = company.iter().min_by_key(|instance| heard(instance)).map(|instance| instance.id.clone());
        let age = Duration::from_millis(now_ms.saturating_sub(reached_ms));
        let info = HorizonInfo { age, held_back_by };
        self.horizon_info.send_if_modified(|known| {
            let has_changed = *known != info;
            *known = info;
            has_changed
        });
    }

    pub(crate) fn count_pulled(&self, entries: usize) {
        self.counters.pulled_writes.add(entries as u64);
    }
}

/// Returns the wider of two bounds of one group: the one that holds for values of both.
fn wider(a: Bounds, b: Bounds) -> Bounds {
    let widest = |a: Option<u64>, b: Option<u64>| Some(a?.max(b?));
    Bounds {
        longest_ms: widest(a.longest_ms, b.longest_ms),
        max_staleness_ms: widest(a.max_staleness_ms, b.max_staleness_ms),
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests;
