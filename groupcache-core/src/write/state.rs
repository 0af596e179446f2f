//! State of the writes under its lock: logs, peers, unsettled writes, horizon, and the logs that lack entries.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    identity::{Instance, PeerId},
    protocol::message::Relayed,
    write::{
        horizon::Horizon,
        index::{Positions, Shown},
        logs::Logs,
        peers::{Peers, Pong},
        settling::{Unsettled, pending},
    },
};

/// Time after which a writer asks other nodes for the acknowledgements that it lacks.
const ASK_AFTER: Duration = Duration::from_millis(100);

/// Maximum number of nodes of which acknowledgements are asked for at once.
const MAX_ASKED: usize = 100;

/// Maximum number of pongs of a peer that wait for their positions to be reached.
const MAX_PONGS: usize = 8;

/// Log that lacks entries which a peer has shown.
#[derive(Debug, Default)]
pub(super) struct Lacking {
    pub(super) due_ms: u64,
    pub(super) is_running: bool,
    /// Peers that were asked and have not moved the position.
    pub(super) asked: BTreeSet<PeerId>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) logs: Logs,
    pub(super) peers: Peers,
    pub(super) unsettled: Unsettled,
    pub(super) horizon: Horizon,
    pub(super) lacking: BTreeMap<Instance, Lacking>,
    /// Whether discovery has answered and lists no other node.
    pub(super) is_alone: bool,
}

/// Records a position that a peer has shown. Positions never decrease within one incarnation, but two connections may
/// show them out of order.
pub(super) fn show(positions: &mut Positions, writer: &Instance, shown: Shown) {
    match positions.get_mut(writer) {
        Some(known) if known.number > shown.number => {}
        Some(known) => *known = shown,
        None => drop(positions.insert(writer.clone(), shown)),
    }
}

impl State {
    /// Records that a log lacks entries, which are asked for from `due_ms` on.
    pub(super) fn lack(&mut self, writer: &Instance, due_ms: u64) {
        self.lacking
            .entry(writer.clone())
            .and_modify(|lack| lack.due_ms = lack.due_ms.min(due_ms))
            .or_insert_with(|| Lacking { due_ms, ..Lacking::default() });
    }

    /// Returns the last number of a log that a peer has shown.
    pub(super) fn shown(&self, writer: &Instance) -> u64 {
        let shown = self.peers.by_id.values().filter_map(|peer| peer.positions.get(writer));
        shown.map(|shown| shown.number).max().unwrap_or(0)
    }

    /// Records a pong, which counts once this node has applied what the pong has shown.
    pub(super) fn pong(&mut self, from: &Instance, left_ms: u64) {
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
    pub(super) fn advance(&mut self) {
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

    pub(super) fn pending(&mut self, number: u64) -> BTreeSet<PeerId> {
        let closure = self.peers.closure().to_vec();
        pending(&closure, number, |node| self.peers.acknowledged_by(node))
    }

    pub(super) fn settle_by_time(&mut self, now_ms: u64) {
        if self.unsettled.is_empty() {
            return;
        }
        let closure = self.peers.closure().to_vec();
        let Self { peers, unsettled, .. } = self;
        let pending = |number| pending(&closure, number, |node| peers.acknowledged_by(node)).into_iter().collect();
        unsettled.settle_by_time(now_ms, pending, &peers.by_id);
    }

    /// Returns the nodes other than `to` of which this node lacks acknowledgements for longer than [`ASK_AFTER`].
    pub(super) fn asked(&mut self, to: &PeerId, now_ms: u64) -> Vec<PeerId> {
        let last = self.unsettled.last_before(now_ms.saturating_sub(ASK_AFTER.as_millis() as u64));
        let Some(last) = last else { return Vec::new() };
        self.pending(last).into_iter().filter(|id| id != to).take(MAX_ASKED).collect()
    }

    /// Returns the acknowledgements of other nodes that a writer has asked for.
    pub(super) fn relayed(&self, to: &PeerId, asked: &[PeerId]) -> Vec<Relayed> {
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
