//! Witnesses of the ends of processes: a newer process in the place of a peer proves that the process before it has
//! ended.
//!
//! A supervisor may have started a process again before this node has read the end of its connection. The new process
//! learns from the answer to its Hello which keys may have ended the one before, so that its own callers load none of
//! them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use crate::{identity::PeerId, protocol::message::Hello, runtime::sync::Mutex};

/// Waiter for the answers of a process.
pub(crate) trait Witness: Send + Sync {
    /// Records that a newer process has come. At one of the same addresses, the process before it has ended.
    fn succeeded(&self, newer: &Hello);
}

/// Witnesses of the ends of processes, by the id of the peer.
#[derive(Debug, Default)]
pub(crate) struct Witnesses(Mutex<BTreeMap<PeerId, Weak<dyn Witness>>>);

impl Witnesses {
    /// Records the witness of a peer.
    pub(crate) fn add(&self, peer: PeerId, witness: Weak<dyn Witness>) {
        let mut witnesses = self.0.lock();
        witnesses.retain(|_, witness| witness.strong_count() > 0);
        witnesses.insert(peer, witness);
    }

    /// Tells the witness of a peer that a process has come under its id.
    pub(crate) fn arrived(&self, process: &Hello) {
        let witness = self.0.lock().get(&process.id).and_then(Weak::upgrade);
        witness.iter().for_each(|witness: &Arc<dyn Witness>| witness.succeeded(process));
    }
}
