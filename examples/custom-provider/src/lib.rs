//! Custom provider: reads the peers from a registry over HTTP.
//!
//! The provider itself is [`registry`], in twenty lines. The rest of the crate fetches a JSON document and plays the
//! registry.
mod fetch;
mod service;

use std::time::Duration;

use groupcache_discovery::{
    BoxError, PeerId,
    discovery::{Address, Peer, Provider, poll},
};
use serde::{Deserialize, Serialize};

pub use crate::{
    fetch::json,
    service::{Mood, Registry},
};

/// Interval between two reads of the registry. A node that doubts the list causes a read in between.
const INTERVAL: Duration = Duration::from_secs(1);

/// Item of the registry's answer: `[{"id": "a", "address": "10.0.0.7:7946"}]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Id of the node.
    pub id: String,
    /// Address, `host:port`, at which peers dial the node.
    pub address: String,
}

/// Finds the peers that the document at `url` lists.
pub fn registry(url: &str) -> impl Provider + use<> {
    let url = url.to_owned();
    poll("registry", INTERVAL, move || peers(url.clone()))
}

/// Returns all peers or an error. The node removes a peer that a list omits, and keeps its peers after an error.
async fn peers(url: String) -> Result<Vec<Peer>, BoxError> {
    let entries: Vec<Entry> = json(&url).await?;
    let peer = |entry: Entry| Ok(Peer::member(PeerId::new(entry.id)?, [Address::new(entry.address)?]));
    entries.into_iter().map(peer).collect()
}
