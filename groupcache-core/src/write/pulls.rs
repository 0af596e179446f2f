//! Pulls: the entries that this node asks others for, and those that it passes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    identity::{Instance, PeerId},
    protocol::message::{LogEntry, LogPart, WriteName},
    write::{index::Shown, shared::Writes, state::State},
};

/// Time after which a node asks for entries that a peer has shown, because the writer sends them itself meanwhile.
pub(super) const PULL_AFTER: Duration = Duration::from_millis(100);

/// Request for the entries after some positions, to one peer.
#[derive(Debug)]
pub(crate) struct Pull {
    pub(crate) from: PeerId,
    pub(crate) after: Vec<WriteName>,
}

impl Writes {
    /// Returns the logs that have not begun here, each with the last number that a peer has shown.
    pub(crate) fn unbegun(&self, now_ms: u64) -> Vec<(Instance, u64)> {
        let state = self.state.lock();
        let is_unbegun = |writer: &Instance| state.logs.position(writer) == 0;
        let due = state.lacking.iter().filter(|(_, lack)| lack.due_ms <= now_ms && !lack.is_running);
        let shown =
            due.filter(|(writer, _)| is_unbegun(writer)).map(|(writer, _)| (writer.clone(), state.shown(writer)));
        shown.filter(|(_, number)| *number > 0).collect()
    }

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
}
