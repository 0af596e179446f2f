//! Asks for what is cached before anybody else does, so that it is there, and young.
use std::{collections::BTreeSet, sync::Arc, time::Duration};

use groupcache_discovery::{Group, Node, Prost};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::documents::Document;

/// Into how many looks the time between two refreshes is divided: a value that is due is asked for that soon.
const LOOKS: u32 = 20;

/// Looks after the paths that this node owns, for as long as it is polled. A get of a value that is due begins a load in
/// the background: one in the whole cluster, since its owner begins it.
pub(crate) async fn keep(
    node: Node,
    documents: Group<Prost<Document>>,
    paths: Arc<BTreeSet<String>>,
    refresh: Duration,
) {
    let mut look = interval(refresh / LOOKS);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let mut asked = JoinSet::new();
        for path in paths.iter().filter(|path| documents.owner_of(path) == node.id()) {
            let (documents, path) = (documents.clone(), path.clone());
            asked.spawn(async move { documents.get(&path).await });
        }
        while let Some(ended) = asked.join_next().await {
            // Nobody waits for it here; who asks gets the error himself.
            if let Ok(Err(e)) = ended {
                tracing::warn!(error = %e, "a path could not be cached");
            }
        }
    }
}
