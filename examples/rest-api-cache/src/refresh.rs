//! Refresh: gets the cached paths before clients do, so that their documents are in memory and fresh.
use std::{collections::BTreeSet, sync::Arc, time::Duration};

use groupcache_discovery::{Group, Node, Prost};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::documents::Document;

/// Number of gets of a path in the time between two refreshes. A refresh that is due starts within one of these parts.
const LOOKS: u32 = 20;

/// Gets the paths that this node owns, over and over, until the future is dropped.
///
/// A get of a document that is due starts a refresh in the background. The whole cluster has one refresh, because only
/// the owner of the path starts it.
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
        for path in paths.iter().filter(|path| documents.inspect().owner_of(path) == node.id()) {
            let (documents, path) = (documents.clone(), path.clone());
            asked.spawn(async move { documents.get(&path).await });
        }
        while let Some(ended) = asked.join_next().await {
            // No client waits for this get. A client that gets the path receives the error itself.
            if let Ok(Err(e)) = ended {
                tracing::warn!(error = %e, "a path could not be cached; the next get tries again");
            }
        }
    }
}
