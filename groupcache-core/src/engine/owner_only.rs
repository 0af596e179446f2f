//! Removes at the owner only: one message instead of one to every node.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    engine::{
        Engine, apply, previous_owner,
        write::{AtOwner, Change, LoggedWrite, run_detached, send, write_at_owner, write_everywhere},
    },
    error::Result,
    identity::PeerId,
    limits::INVALIDATION,
    peer::client::call::Outcome,
    protocol::message::{Decline, Op, Response},
    value::Value,
    write::{delete_hold::MAX_HOLD, outcome::WriteOutcome},
};

/// Drops a value at its owner and on this node, and notifies no other node except for the previous owners, from which
/// the next owner could receive the old value. The write is in no log, and all other members are pending.
pub(crate) async fn remove<V: Value>(
    engine: &Arc<Engine<V>>,
    key: &str,
    hold: Duration,
    limit: Duration,
) -> Result<WriteOutcome> {
    engine.check(key)?;
    engine.counters.writes.up();
    let hold = hold.min(MAX_HOLD);
    let (writer, key): (_, Arc<str>) = (Arc::clone(engine), key.into());
    let remove = async move {
        let engine = writer;
        let view = engine.context.view();
        let token = apply::drop_and_hold(&engine, &key, hold);
        let end = Instant::now() + INVALIDATION;
        let settling = engine.context.local.writes.unlogged();
        let write = LoggedWrite { key, settling, known: Vec::new(), token, end };
        let AtOwner { acting, unreached, .. } = write_at_owner(&engine, &view, &write, Change::Remove { hold }).await;
        let is_member = |id: &PeerId| view.members().iter().any(|member| member.id == *id);
        let has_forgotten = engine.context.handover.has_forgotten(engine.context.now_ms());
        if !unreached.is_empty() || has_forgotten || !engine.context.local.writes.company().iter().all(is_member) {
            // A candidate that was not reached, or a node outside of the view, may be the owner before its old value
            // ends, and only a log tells it of the write then. So it is with a previous owner that is forgotten.
            return write_everywhere(engine, write.key, Change::Remove { hold }, Vec::new()).await;
        }
        let previous = previous_owner::owned_before(&engine, &write.key);
        let (mut pending, mut notified) = (Vec::new(), Vec::new());
        for member in view.members().iter().filter(|member| !member.is_local() && Some(&member.id) != acting.as_ref()) {
            let is_previous = previous.contains(&member.id);
            match is_previous.then(|| send(&engine, member, &write, Op::Remove { hold }, 0)).flatten() {
                Some(sent) => notified.push((member.id.clone(), sent)),
                None => pending.push(member.id.clone()),
            }
        }
        for (id, sent) in notified {
            if !has_dropped(&engine, sent.await.ok()) {
                pending.push(id);
            }
        }
        pending.sort();
        // Replicas of other nodes end by then.
        let until = Instant::now() + engine.settings.freshness.replica_time_to_live;
        Ok(WriteOutcome::at_owner(pending, until, engine.context.timers.clone()))
    };
    run_detached(engine, limit, remove).await
}

/// Returns whether a node holds no older value after a write was sent to it.
///
/// A node without the group holds no value of it. If the group was removed from this node meanwhile, however, the
/// response proves nothing, because the peer may not know the group by its index any more.
fn has_dropped<V: Value>(engine: &Engine<V>, outcome: Option<Outcome>) -> bool {
    match outcome {
        Some(Outcome::Answered(Response::Done)) => true,
        Some(Outcome::Answered(Response::Declined(Decline::UnknownGroup))) => !engine.is_removed.load(Relaxed),
        _ => false,
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use super::*;
    use crate::Node;

    /// Checks that "unknown group" proves that a peer has dropped the value, unless the group was removed from this
    /// node.
    #[tokio::test]
    async fn removed_group_makes_unknown_group_no_proof() {
        let node = Node::builder().start().await.unwrap();
        let group = node.group::<String>("data").capacity_bytes(1 << 20);
        let group = group.loader(async |key: &str| Ok::<_, std::io::Error>(key.to_owned())).build().unwrap();
        let has_dropped = |answer| has_dropped(&group.engine, Some(Outcome::Answered(answer)));
        let unknown = || Response::Declined(Decline::UnknownGroup);
        assert!(has_dropped(unknown()) && has_dropped(Response::Done));
        assert!(!has_dropped(Response::Declined(Decline::Closing)) && !super::has_dropped(&group.engine, None));
        node.remove_group("data");
        assert!(!has_dropped(unknown()) && has_dropped(Response::Done));
    }
}
