//! Knowledge: what two nodes show each other of logs and company with pings and pongs.

use std::sync::atomic::Ordering::SeqCst;

use crate::{
    identity::{Instance, PeerId},
    protocol::message::{Knowledge, Position, Relayed},
    write::{index::Shown, pulls::PULL_AFTER, shared::Writes, state::show},
};

/// Part of its knowledge that a node has shown on a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SentKnowledge {
    changes: u64,
    company: u64,
}

impl Writes {
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
}
