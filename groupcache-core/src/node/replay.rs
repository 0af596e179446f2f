//! Tells a peer that is connected again what it has missed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    context::NodeContext,
    identity::PeerId,
    peer::client::{link::Link, request::PendingOutcome, request_table::Outcome},
    protocol::message::{Op, Response},
    runtime::clock::later,
    write::missed::Missed,
};

/// Writes that are under way at once: far fewer than wait for a peer in normal times.
const AT_ONCE: usize = 1000;

/// How long one of them may take: nobody waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells it; what it does not acknowledge it has still missed.
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
    tracing::info!(%peer, writes = writes.len(), "telling a peer what it has missed");
    for some in writes.chunks(AT_ONCE) {
        let told: Vec<_> = some
            .iter()
            .map(|(group, key)| {
                let index = *indices.get(group)?;
                Some((group, key, tell(&context, &link, index, key.as_ref())))
            })
            .collect();
        for (group, key, answer) in told.into_iter().flatten() {
            let is_told = match answer {
                Some(answer) => matches!(answer.await, Ok(Outcome::Answered(Response::Done | Response::Declined(_)))),
                None => false,
            };
            if !is_told {
                context.missed_writes.missed(&peer, group, key.as_ref());
            }
        }
    }
}

fn tell(context: &NodeContext, link: &Link, group: u32, key: Option<&Arc<str>>) -> Option<PendingOutcome> {
    let op = if key.is_some() { Op::Remove { hold: Duration::ZERO } } else { Op::Clear };
    let key = key.cloned().unwrap_or_else(|| "".into());
    link.request(op, group, &key, later(context.local.clock.read_ms(), PATIENCE), 0)
}
