//! Table of the peers that are connected to the local node, each with what its last Hello says.
//!
//! Membership reads the table, because discovery may lack a peer that is connected.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::{
    identity::{Address, PeerId},
    membership::stabilizer::InboundPeer,
    protocol::message::Hello,
    runtime::sync::Mutex,
};

/// The peers that are connected to the local node, by number of the connection.
#[derive(Debug, Default)]
pub(crate) struct InboundPeers {
    peers: Mutex<BTreeMap<u64, InboundPeer>>,
    /// Number that grows with each change, so that a reader skips a table that has not changed.
    version: AtomicU64,
}

impl InboundPeers {
    pub(super) fn insert(&self, connection: u64, hello: &Hello, is_proven: bool) {
        let peer = InboundPeer {
            id: hello.id.clone(),
            state: hello.state,
            addresses: hello.addresses.clone(),
            is_proven,
            fingerprint: hello.fingerprint,
        };
        self.peers.lock().insert(connection, peer);
        self.version.fetch_add(1, Relaxed);
    }

    pub(super) fn remove(&self, connection: u64) {
        self.peers.lock().remove(&connection);
        self.version.fetch_add(1, Relaxed);
    }

    pub(super) fn update(&self, connection: u64, change: impl FnOnce(&mut InboundPeer)) {
        if let Some(peer) = self.peers.lock().get_mut(&connection) {
            change(peer);
        }
        self.version.fetch_add(1, Relaxed);
    }

    /// Returns the addresses that a connected peer says of itself. Of an unproven peer the first one counts, because
    /// anybody may connect in the name of a peer.
    pub(crate) fn said_addresses(&self, id: &PeerId) -> Vec<Address> {
        let peers = self.peers.lock();
        let of_id = peers.values().filter(|peer| peer.id == *id);
        of_id
            .flat_map(|peer| peer.addresses.iter().take(if peer.is_proven { usize::MAX } else { 1 }))
            .cloned()
            .collect()
    }

    /// Returns the number of changes so far.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    /// Returns all connected peers, the connection that was opened last at the end.
    pub(crate) fn all(&self) -> Vec<InboundPeer> {
        self.peers.lock().values().cloned().collect()
    }
}
