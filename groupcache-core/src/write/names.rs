//! Names of writes: which writes of a key a request must name, and whether this node has heard of a named one.

use std::sync::{
    Arc,
    atomic::{
        AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
};

use crate::{
    identity::Instance,
    protocol::message::{Position, WriteName},
    write::{
        index::{Named, Positions, Shown},
        shared::Writes,
        state::State,
    },
};

impl Writes {
    /// Returns the writes of a key that this node has heard of and a peer has not said that it has. The caller has
    /// registered its flight before. A peer of an earlier release says nothing, so that no base is named. `level` keeps
    /// the number of announced entries, all of which the peer has.
    pub(crate) fn names_for(&self, peer: &Instance, level: &AtomicU64, group: &str, key: &str) -> Vec<WriteName> {
        let announced = self.announced.load(SeqCst);
        if level.load(Relaxed) == announced || mutant!(NamesLeftOut) {
            return Vec::new();
        }
        let mut state = self.state.lock();
        let wide_changes = state.logs.index.wide_changes;
        let State { logs, peers, .. } = &mut *state;
        let Some(peer) = peers.of(peer) else { return logs.index.names(group, key, &Positions::new(), Named::All) };
        if !peer.has_log {
            return logs.index.names(group, key, &Positions::new(), Named::Group);
        }
        if peer.wide_said != Some(wide_changes) && logs.index.has_said_all_wide(&peer.positions) {
            peer.wide_said = Some(wide_changes);
        }
        let named = if peer.wide_said == Some(wide_changes) { Named::Key } else { Named::All };
        let mut names = logs.index.names(group, key, &peer.positions, named);
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
        self.state.lock().logs.index.names(group, key, &Positions::new(), Named::All)
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
        if !state.logs.index.names(group, key, &said, Named::Key).is_empty() {
            return true;
        }
        let wide = state.logs.index.names(group, key, &said, Named::All);
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
            Some(positions) => !state.logs.index.names(group, key, positions, Named::All).is_empty(),
            None => !state.logs.index.names(group, key, &Positions::new(), Named::Group).is_empty(),
        }
    }

    /// Returns all positions of this node, for a page.
    pub(crate) fn positions(&self) -> Vec<Position> {
        self.state.lock().logs.positions_since(0).0
    }
}
