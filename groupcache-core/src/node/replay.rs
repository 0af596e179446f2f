//! Replay: the delivery of missed writes to a peer that is connected again.
//!
//! A replayed write removes values and stores none, so that replaying a write twice does no harm. The record of missed
//! writes is [`crate::write::missed`].

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    context::NodeContext,
    identity::PeerId,
    peer::client::{link::Link, request::PendingOutcome, request_table::Outcome},
    protocol::message::{Op, Response},
    runtime::clock::later,
    write::missed::Missed,
};

/// Number of writes in flight at once: far fewer than the requests that wait for a peer in normal operation.
const AT_ONCE: usize = 1000;

/// Time limit of one replayed write. No caller waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends its missed writes to a peer. A write that the peer does not acknowledge stays recorded as missed.
pub(super) async fn replay(context: Arc<NodeContext>, peer: PeerId, link: Arc<Link>) {
    let indices: BTreeMap<_, _> = context.local.hello().groups.iter().map(|g| (Arc::clone(&g.name), g.index)).collect();
    let missed = context.missed_writes.take(&peer, |group| indices.contains_key(group));
    if missed.is_empty() {
        return;
    }
    let mut writes: Vec<(Arc<str>, Option<Arc<str>>)> = Vec::new();
    for (group, missed) in missed {
        match missed {
            Missed::Everything => writes.push((group, None)),
            Missed::Keys(keys) => writes.extend(keys.into_iter().map(|key| (Arc::clone(&group), Some(key)))),
        }
    }
    tracing::info!(%peer, writes = writes.len(), "replaying missed writes to a peer");
    for batch in writes.chunks(AT_ONCE) {
        let sent: Vec<_> = batch
            .iter()
            .map(|(group, key)| {
                let index = *indices.get(group)?;
                Some((group, key, send(&context, &link, index, key.as_ref())))
            })
            .collect();
        for (group, key, response) in sent.into_iter().flatten() {
            let is_acknowledged = match response {
                Some(response) => {
                    matches!(response.await, Ok(Outcome::Answered(Response::Done | Response::Declined(_))))
                }
                None => false,
            };
            if !is_acknowledged {
                context.missed_writes.missed(&peer, group, key.as_ref());
            }
        }
    }
}

/// Sends one write: the remove of a key, or a clear without one.
fn send(context: &NodeContext, link: &Link, group: u32, key: Option<&Arc<str>>) -> Option<PendingOutcome> {
    let op = if key.is_some() { Op::Remove { hold: Duration::ZERO } } else { Op::Clear };
    let key = key.cloned().unwrap_or_else(|| "".into());
    link.request(op, group, &key, later(context.local.clock.read_ms(), PATIENCE), 0)
}
