//! A provider of one's own: whoever a registry lists, asked over HTTP.
//!
//! What is particular to it is [`registry`], in twenty lines; the rest fetches a JSON document, and plays the registry.
mod fetch;
mod service;

use std::time::Duration;

use groupcache_discovery::{Address, BoxError, Peer, PeerId, Provider, poll};
use serde::{Deserialize, Serialize};

pub use crate::{
    fetch::json,
    service::{Mood, Registry},
};

/// How often the registry is asked; a node that doubts the list asks in between.
const INTERVAL: Duration = Duration::from_secs(1);

/// A line of what the registry answers: `[{"id": "a", "address": "10.0.0.7:7946"}]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The name of the node.
    pub id: String,
    /// Where its peers dial it.
    pub address: String,
}

/// Finds the peers that the document at `url` lists.
pub fn registry(url: &str) -> impl Provider + use<> {
    let url = url.to_owned();
    poll("registry", INTERVAL, move || peers(url.clone()))
}

/// All of them or an error, which keeps those that are known: whoever is missing from a list is taken to have gone.
async fn peers(url: String) -> Result<Vec<Peer>, BoxError> {
    let entries: Vec<Entry> = json(&url).await?;
    let peer = |entry: Entry| Ok(Peer::member(PeerId::new(entry.id)?, [Address::new(entry.address)?]));
    entries.into_iter().map(peer).collect()
}
