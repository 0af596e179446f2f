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
        message::{Bounds, Hello, Knowledge, LogEntry, LogPart, Position, Relayed, WriteName},
        wire::features,
    },
    runtime::{stats::NodeCounters, sync::Mutex},
    write::{
        horizon::{Horizon, HorizonInfo},
        log::Entry,
        logs::{Logs, Named, Positions, Shown},
        peers::{Peers, Pong},
        settling::{Settling, Unsettled, pending},
    },
};

/// Time after which a node asks for entries that a peer has shown, because the writer sends them itself meanwhile.
const PULL_AFTER: Duration = Duration::from_millis(100);

/// Time after which a writer asks other nodes for the acknowledgements that it lacks.
const ASK_AFTER: Duration = Duration::from_millis(100);

/// Maximum number of nodes of which acknowledgements are asked for at once.
const MAX_ASKED: usize = 100;

/// Maximum number of pongs of a peer that wait for their positions to be reached.
const MAX_PONGS: usize = 8;

/// Log that lacks entries which a peer has shown.
#[derive(Debug, Default)]
struct Lacking {
    due_ms: u64,
    is_running: bool,
    /// Peers that were asked and have not moved the position.
    asked: BTreeSet<PeerId>,
}

#[derive(Debug)]
struct State {
    logs: Logs,
    peers: Peers,
    unsettled: Unsettled,
    horizon: Horizon,
    lacking: BTreeMap<Instance, Lacking>,
    /// Whether discovery has answered and lists no other node.
    is_alone: bool,
}

/// Part of its knowledge that a node has shown on a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SentKnowledge {
    changes: u64,
    company: u64,
}

/// Request for the entries after some positions, to one peer.
#[derive(Debug)]
pub(crate) struct Pull {
    pub(crate) from: PeerId,
    pub(crate) after: Vec<WriteName>,
}

/// Logs, company and horizon of a node.
#[derive(Debug)]
pub(crate) struct Writes {
    own: Instance,
    state: Mutex<State>,
    /// Number of announced entries, after which a peer may lack one.
    announced: AtomicU64,
    company_version: AtomicU64,
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

    fn settle(&self, state: &mut State) {
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

    /// Returns the logs that have not begun here, each with the last number that a peer has shown.
    pub(crate) fn unbegun(&self, now_ms: u64) -> Vec<(Instance, u64)> {
        let state = self.state.lock();
        let is_unbegun = |writer: &Instance| state.logs.position(writer) == 0;
        let due = state.lacking.iter().filter(|(_, lack)| lack.due_ms <= now_ms && !lack.is_running);
        let shown =
            due.filter(|(writer, _)| is_unbegun(writer)).map(|(writer, _)| (writer.clone(), state.shown(writer)));
        shown.filter(|(_, number)| *number > 0).collect()
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

    // Names.

    /// Returns the writes of a key that this node has heard of and a peer has not said that it has. The caller has
    /// registered its flight before. A peer of an earlier release says nothing, so that no base is named. `level` keeps the number of announced entries all of which the peer has.
    pub(crate) fn names_for(&self, peer: &Instance, level: &AtomicU64, group: &str, key: &str) -> Vec<WriteName> {
        let announced = self.announced.load(SeqCst);
        if level.load(Relaxed) == announced || mutant!(NamesLeftOut) {
            return Vec::new();
        }
        let mut state = self.state.lock();
        let wide_changes = state.logs.wide_changes;
        let State { logs, peers, .. } = &mut *state;
        let Some(peer) = peers.of(peer) else { return logs.names(group, key, &Positions::new(), Named::All) };
        if !peer.has_log {
            return logs.names(group, key, &Positions::new(), Named::Group);
        }
        if peer.wide_said != Some(wide_changes) && logs.has_said_all_wide(&peer.positions) {
            peer.wide_said = Some(wide_changes);
        }
        let named = if peer.wide_said == Some(wide_changes) { Named::Key } else { Named::All };
        let mut names = logs.names(group, key, &peer.positions, named);
        if named == Named::Key && logs.has_said_all(&peer.positions) {
            level.store(announced, Relaxed);
        }
        if mutant!(OneWriterNamed) {
            names.truncate(1);
        }
        names
    }

    /// Returns the last writes of a key, and of all keys of its group, that this node has heard of, of each writer.
    pub(crate) fn known(&self, group: &str, key: &str) -> Vec<WriteName> {
        if mutant!(SetWithoutPositions) {
            return vec![];
        }
        self.state.lock().logs.names(group, key, &Positions::new(), Named::All)
    }

    /// Remembers the named writes of a key that this node has not applied. Returns whether there was one, after which the
    /// caller drops the value and calls [`dropped`](Self::dropped).
    pub(crate) fn remember(&self, group: &Arc<str>, key: &str, names: &[WriteName], now_ms: u64) -> bool {
        if names.is_empty() {
            return false;
        }
        let has_lacked = self.state.lock().logs.remember(group, key, names, now_ms);
        if has_lacked {
            self.announced.fetch_add(1, SeqCst);
        }
        has_lacked
    }

    /// Records that the value of a key was dropped after named writes of it were remembered.
    pub(crate) fn dropped(&self, group: &str, key: &str, names: &[WriteName]) {
        self.state.lock().logs.dropped(group, key, names);
    }

    /// Returns whether this node has heard of a write of a key, or of all keys of its group, that a writer did not know
    /// of: the write is not among `known`, and `writer` has not shown it with its positions. A write of the key itself
    /// must be among `known`, because a position may be newer than the call.
    pub(crate) fn has_heard_beyond(&self, writer: &Instance, group: &str, key: &str, known: &[WriteName]) -> bool {
        if mutant!(SetWithoutPositions) {
            return false;
        }
        let state = self.state.lock();
        let said: Positions =
            known.iter().map(|name| (name.writer.clone(), Shown { number: name.number, base: 0 })).collect();
        if !state.logs.names(group, key, &said, Named::Key).is_empty() {
            return true;
        }
        let wide = state.logs.names(group, key, &said, Named::All);
        let positions = state.peers.by_id.get(&writer.id).filter(|peer| peer.incarnation == writer.incarnation);
        let has_shown = |name: &WriteName| {
            let shown = positions.and_then(|peer| peer.positions.get(&name.writer));
            shown.is_some_and(|shown| shown.number >= name.number)
        };
        !wide.iter().all(has_shown)
    }

    /// Returns this node in the incarnation that names its log.
    pub(crate) fn own(&self) -> &Instance {
        &self.own
    }

    /// Returns whether this node has heard of a write of a key beyond the positions of a page. `positions` is `None` for
    /// a peer of an earlier release, which shows none.
    pub(crate) fn has_heard_beyond_page(&self, group: &str, key: &str, positions: Option<&Positions>) -> bool {
        let state = self.state.lock();
        match positions {
            Some(positions) => !state.logs.names(group, key, positions, Named::All).is_empty(),
            None => !state.logs.names(group, key, &Positions::new(), Named::Group).is_empty(),
        }
    }

    /// Returns all positions of this node, for a page.
    pub(crate) fn positions(&self) -> Vec<Position> {
        self.state.lock().logs.positions_since(0).0
    }

    // Knowledge.

    /// Returns whether the company has changed since it was shown on a connection.
    pub(crate) fn owes_company(&self, sent: &SentKnowledge) -> bool {
        self.company_version.load(SeqCst) != sent.company
    }

    /// Returns what is to be shown to a peer with a ping (`asked` is `None`), or with a pong for a ping that asked for
    /// acknowledgements.
    pub(crate) fn knowledge_for(
        &self,
        to: &PeerId,
        sent: &mut SentKnowledge,
        asked: Option<&[PeerId]>,
        now_ms: u64,
    ) -> Knowledge {
        let mut state = self.state.lock();
        let company = state.peers.company();
        let company = (company.version != sent.company).then(|| company.as_ref().clone());
        let (positions, changes) = state.logs.positions_since(sent.changes);
        *sent = SentKnowledge { changes, company: state.peers.company().version };
        let lists_receiver = state.peers.by_id.get(to).is_some_and(|peer| peer.is_listed());
        let relayed = asked.map_or(Vec::new(), |asked| state.relayed(to, asked));
        let asked = if asked.is_none() { state.asked(to, now_ms) } else { Vec::new() };
        let is_partial = changes < state.logs.changes();
        Knowledge { company, positions, is_partial, asked, relayed, lists_receiver }
    }

    /// Takes what a peer has shown. `pong` is the time at which the answered ping left, and whether this is the first
    /// pong of its connection.
    pub(crate) fn shown(&self, from: &Instance, knowledge: Knowledge, pong: Option<(u64, bool)>, now_ms: u64) {
        let mut state = self.state.lock();
        let Knowledge { company, positions, is_partial, relayed, lists_receiver, .. } = knowledge;
        if state.peers.of(from).is_none() {
            return;
        }
        if let Some(company) = company {
            state.peers.showed_company(from, company);
        }
        let due_ms = if pong.is_some_and(|(_, is_first)| is_first) { 0 } else { PULL_AFTER.as_millis() as u64 };
        let own = self.own.clone();
        for Position { writer, number, base } in positions {
            // A connected writer knows its own position best.
            let number = number.min(state.peers.own_position_of(&writer, from));
            if writer == own {
                let number = number.min(state.logs.own_position());
                state.peers.acknowledged(from, number);
            } else if number > state.logs.position(&writer) {
                state.lack(&writer, now_ms + due_ms);
            }
            if let Some(peer) = state.peers.of(from) {
                show(&mut peer.positions, &writer, Shown { number, base });
            }
        }
        if let Some(peer) = state.peers.of(from) {
            peer.lists_us = lists_receiver;
            peer.wide_said = None;
        }
        for Relayed { node, number, company } in relayed {
            if !mutant!(RelayedWithoutCompany) {
                state.peers.showed_company(&node, company);
            }
            let number = number.min(state.logs.own_position());
            state.peers.acknowledged(&node, number);
        }
        if let Some((left_ms, _)) = pong.filter(|_| !is_partial) {
            state.pong(from, left_ms);
        }
        state.advance();
        self.settle(&mut state);
        self.publish_horizon(&state, now_ms);
        let is_lacking = !state.lacking.is_empty();
        drop(state);
        if is_lacking {
            self.lacks.notify_one();
        }
    }

    // Pulls.

    /// Returns whether any log lacks entries.
    pub(crate) fn is_lacking(&self) -> bool {
        !self.state.lock().lacking.is_empty()
    }

    /// Returns the pulls that are due, each from the best of the reachable peers, and marks their logs as running.
    pub(crate) fn due_pulls(&self, now_ms: u64, reachable: &BTreeSet<PeerId>) -> Vec<Pull> {
        let mut state = self.state.lock();
        let State { logs, peers, lacking, .. } = &mut *state;
        let mut pulls: BTreeMap<PeerId, Vec<WriteName>> = BTreeMap::new();
        lacking.retain(|writer, lack| {
            let position = logs.position(writer);
            let sources = peers.by_id.iter().filter_map(|(id, peer)| {
                let shown = peer.positions.get(writer)?;
                (peer.has_log && shown.number > position).then_some((id, shown))
            });
            let sources: Vec<_> = sources.collect();
            if sources.is_empty() && !lack.is_running {
                return false; // due again with the next position that a peer shows
            }
            if lack.is_running || lack.due_ms > now_ms {
                return true;
            }
            // The writer itself has everything. Another node may lack the entries before its base.
            let rank =
                |(id, shown): &(&PeerId, &Shown)| (lack.asked.contains(*id), shown.base > position, **id != writer.id);
            let askable = sources.into_iter().filter(|(id, _)| reachable.contains(*id));
            match askable.min_by_key(|source| (rank(source), source.0.clone())) {
                Some((id, _)) => {
                    lack.is_running = true;
                    lack.asked.insert(id.clone());
                    pulls.entry(id.clone()).or_default().push(WriteName { writer: writer.clone(), number: position });
                }
                None => {
                    lack.asked.clear();
                    lack.due_ms = now_ms + PULL_AFTER.as_millis() as u64;
                }
            }
            true
        });
        pulls.into_iter().map(|(from, after)| Pull { from, after }).collect()
    }

    /// Records the end of a pull. A log that still lacks entries is due again, at another peer if there is one.
    pub(crate) fn pulled(&self, pull: &Pull, now_ms: u64) {
        let mut state = self.state.lock();
        for WriteName { writer, number } in &pull.after {
            let has_moved = state.logs.position(writer) > *number;
            if let Some(lack) = state.lacking.get_mut(writer) {
                lack.is_running = false;
                if has_moved {
                    lack.asked.clear();
                    lack.due_ms = now_ms;
                } else {
                    // A peer that has forgotten the log too is seldom asked again.
                    lack.due_ms = now_ms + PULL_AFTER.as_millis() as u64 * lack.asked.len().min(10) as u64;
                }
            }
        }
        state.advance();
        self.publish_horizon(&state, now_ms);
        drop(state);
        self.lacks.notify_one();
        self.ping_all.notify_one();
    }

    /// Returns the entries after these, for a peer.
    pub(crate) fn parts(&self, after: &[WriteName], now_ms: u64) -> Vec<LogPart> {
        self.state.lock().logs.parts(after, now_ms)
    }

    /// Returns the peers that may have the entries after `after` which this node has not received, the writer first.
    pub(crate) fn sources_before_base(&self, name: &WriteName) -> Vec<PeerId> {
        let state = self.state.lock();
        if state.logs.base(&name.writer) <= name.number {
            return Vec::new();
        }
        let has_them = |shown: &Shown| shown.base <= name.number && shown.number >= state.logs.base(&name.writer);
        let peers = state.peers.by_id.iter();
        let mut ids: Vec<_> = peers
            .filter(|(_, peer)| peer.has_log && peer.positions.get(&name.writer).is_some_and(has_them))
            .map(|(id, _)| id.clone())
            .collect();
        ids.sort_by_key(|id| *id != name.writer.id);
        ids
    }

    /// Adds the entries of a log from before its base.
    pub(crate) fn fill(&self, part: &LogPart, after: u64, now_ms: u64) {
        self.state.lock().logs.fill(part, after, now_ms);
    }

    // Peers that do not pull: those of an earlier release, and those that do not dial this node.

    /// Returns the writes of this node that a connected peer has not acknowledged although this node has looked before,
    /// at most `max` of them.
    pub(crate) fn unacknowledged(&self, peer: &Instance, max: usize, now_ms: u64) -> Vec<LogEntry> {
        let mut state = self.state.lock();
        let position = state.logs.own_position();
        let Some(known) = state.peers.of(peer) else { return Vec::new() };
        let number = known.acknowledged;
        let was_seen = known.unacknowledged_after.replace(number) == Some(number);
        if number >= position || !was_seen {
            return Vec::new();
        }
        let after = WriteName { writer: self.own.clone(), number };
        let parts = state.logs.parts(std::slice::from_ref(&after), now_ms);
        parts.into_iter().flat_map(|part| part.entries).take(max).collect()
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

    /// Settles writes by time, forgets what is old, and publishes the horizon. Runs about once a second.
    pub(crate) fn sweep(&self, now_ms: u64) {
        let mut state = self.state.lock();
        self.refresh(&mut state, now_ms);
        state.logs.sweep(now_ms);
        let State { logs, peers, .. } = &mut *state;
        logs.forget_gone(now_ms, |writer| {
            peers.by_id.get(&writer.id).is_none_or(|peer| peer.incarnation != writer.incarnation)
        });
        state.settle_by_time(now_ms);
        state.advance();
        self.publish_horizon(&state, now_ms);
    }

    fn publish_horizon(&self, state: &State, now_ms: u64) {
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

/// Records a position that a peer has shown. Positions never decrease within one incarnation, but two connections may
/// show them out of order.
fn show(positions: &mut Positions, writer: &Instance, shown: Shown) {
    match positions.get_mut(writer) {
        Some(known) if known.number > shown.number => {}
        Some(known) => *known = shown,
        None => drop(positions.insert(writer.clone(), shown)),
    }
}

impl State {
    /// Records that a log lacks entries, which are asked for from `due_ms` on.
    fn lack(&mut self, writer: &Instance, due_ms: u64) {
        self.lacking
            .entry(writer.clone())
            .and_modify(|lack| lack.due_ms = lack.due_ms.min(due_ms))
            .or_insert_with(|| Lacking { due_ms, ..Lacking::default() });
    }

    /// Returns the last number of a log that a peer has shown.
    fn shown(&self, writer: &Instance) -> u64 {
        let shown = self.peers.by_id.values().filter_map(|peer| peer.positions.get(writer));
        shown.map(|shown| shown.number).max().unwrap_or(0)
    }

    /// Records a pong, which counts once this node has applied what the pong has shown.
    fn pong(&mut self, from: &Instance, left_ms: u64) {
        let Self { logs, peers, lacking, .. } = self;
        let Some(peer) = peers.of(from) else { return };
        let lacks = |writer: &Instance| {
            let shown = peer.positions.get(writer)?.number;
            (shown > logs.position(writer)).then(|| (writer.clone(), shown))
        };
        let lacking = lacking.keys().filter_map(lacks).filter(|_| !mutant!(PongBeforeEntries)).collect();
        if peer.pongs.len() >= MAX_PONGS {
            peer.pongs.pop_back();
        }
        peer.pongs.push_back(Pong { left_ms, lacking });
    }

    /// Moves the times of the peers with pongs that are reached, and the horizon.
    fn advance(&mut self) {
        let Self { logs, peers, horizon, .. } = self;
        let waiting = peers.by_id.iter().filter(|(_, peer)| !peer.pongs.is_empty());
        let waiting: Vec<_> =
            waiting.map(|(id, peer)| Instance { id: id.clone(), incarnation: peer.incarnation }).collect();
        for instance in waiting {
            // A pong of a node with another company may come before a write that only that node has heard of.
            let counts = peers.has_same_company(&instance) || mutant!(PongOfOtherCompany);
            let Some(peer) = peers.of(&instance) else { continue };
            let is_reached = |pong: &Pong| pong.lacking.iter().all(|(writer, number)| logs.position(writer) >= *number);
            let reached = peer.pongs.iter().filter(|pong| is_reached(pong)).map(|pong| pong.left_ms).max();
            peer.pongs.retain(|pong| !is_reached(pong));
            peer.applied_ms = peer.applied_ms.max(reached.filter(|_| counts));
        }
        let company = peers.company();
        horizon.advance(company.members.iter().map(|member| peers.by_id.get(&member.id)?.applied_ms));
    }

    fn pending(&mut self, number: u64) -> BTreeSet<PeerId> {
        let closure = self.peers.closure().to_vec();
        pending(&closure, number, |node| self.peers.acknowledged_by(node))
    }

    fn settle_by_time(&mut self, now_ms: u64) {
        if self.unsettled.is_empty() {
            return;
        }
        let closure = self.peers.closure().to_vec();
        let Self { peers, unsettled, .. } = self;
        let pending = |number| pending(&closure, number, |node| peers.acknowledged_by(node)).into_iter().collect();
        unsettled.settle_by_time(now_ms, pending, &peers.by_id);
    }

    /// Returns the nodes other than `to` of which this node lacks acknowledgements for longer than [`ASK_AFTER`].
    fn asked(&mut self, to: &PeerId, now_ms: u64) -> Vec<PeerId> {
        let last = self.unsettled.last_before(now_ms.saturating_sub(ASK_AFTER.as_millis() as u64));
        let Some(last) = last else { return Vec::new() };
        self.pending(last).into_iter().filter(|id| id != to).take(MAX_ASKED).collect()
    }

    /// Returns the acknowledgements of other nodes that a writer has asked for.
    fn relayed(&self, to: &PeerId, asked: &[PeerId]) -> Vec<Relayed> {
        let Some(writer) = self.peers.by_id.get(to) else { return Vec::new() };
        let writer = Instance { id: to.clone(), incarnation: writer.incarnation };
        let relayed = |id: &PeerId| {
            let peer = self.peers.by_id.get(id).filter(|peer| peer.is_connected())?;
            let number = peer.positions.get(&writer)?.number;
            let node = Instance { id: id.clone(), incarnation: peer.incarnation };
            Some(Relayed { node, number, company: peer.company.as_deref()?.clone() })
        };
        asked.iter().take(MAX_ASKED).filter_map(relayed).collect()
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests;
