//! Writes: the acting owner first and then every other node, so that no node fetches the old value from the owner
//! again.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{sync::oneshot, time::timeout};

use crate::{
    cache::{self, payload::Slot},
    engine::{Engine, entry, previous_owner},
    error::{Error, Kind, Result},
    flight::WriteToken,
    identity::PeerId,
    limits::INVALIDATION,
    membership::{
        stabilizer::Member,
        view::{Scope, View},
    },
    peer::client::{link::Link, request::PendingOutcome, request_table::Outcome},
    protocol::message::{Decline, Op, Response},
    runtime::clock::later,
    value::Value,
    write::{delete_hold::MAX_HOLD, outcome::WriteOutcome},
};

/// Change that a write makes to a key.
pub(crate) enum Change<V: Value> {
    /// The entry becomes the value of the key.
    Set(Slot<V>),
    /// The value is dropped, and values that are loaded within `hold` are not cached.
    Remove { hold: Duration },
}

impl<V: Value> Change<V> {
    /// Returns the request to the acting owner.
    fn at_owner(&self) -> Op {
        match self {
            Self::Set(slot) => slot.payload.encoded().cloned().map_or(self.elsewhere(), Op::Set),
            Self::Remove { .. } => self.elsewhere(),
        }
    }

    /// Returns the request to all other nodes.
    fn elsewhere(&self) -> Op {
        Op::Remove { hold: self.hold() }
    }

    fn hold(&self) -> Duration {
        match self {
            Self::Set(_) => Duration::ZERO,
            Self::Remove { hold } => *hold,
        }
    }
}

/// Outcome of a write at its acting owner.
struct AtOwner {
    /// The peer that took the write; `None` = this node.
    acting: Option<PeerId>,
    /// Candidates before the acting owner that are unreachable or did not answer in time.
    unreached: Vec<PeerId>,
    /// Whether the owner refused the value as too large, so that the old value was only dropped.
    is_too_large: bool,
}

/// Sets a value, in a task that goes on if the caller gives up after `limit`.
pub(crate) async fn set<V: Value>(
    engine: &Arc<Engine<V>>,
    key: &str,
    value: V,
    limit: Duration,
) -> Result<WriteOutcome> {
    engine.check(key)?;
    let (now_ms, hash) = (engine.context.local.clock.read_ms(), engine.ownership.hash(key));
    let slot = entry::of_set(engine, key, hash, now_ms, value)?;
    carry_out(engine, key, Change::Set(slot), limit).await
}

/// Removes a value, in a task that goes on if the caller gives up after `limit`.
pub(crate) async fn remove<V: Value>(
    engine: &Arc<Engine<V>>,
    key: &str,
    hold: Duration,
    limit: Duration,
) -> Result<WriteOutcome> {
    engine.check(key)?;
    carry_out(engine, key, Change::Remove { hold: hold.min(MAX_HOLD) }, limit).await
}

async fn carry_out<V: Value>(
    engine: &Arc<Engine<V>>,
    key: &str,
    change: Change<V>,
    limit: Duration,
) -> Result<WriteOutcome> {
    engine.counters.writes.up();
    tracing::trace!(group = &*engine.settings.name, key, "write.start");
    run_detached(engine, limit, write_everywhere(Arc::clone(engine), Arc::from(key), change)).await
}

/// Runs `work` in a task of its own, because a caller that gives up must not leave some nodes with the old value.
async fn run_detached<V: Value, T: Send + 'static>(
    engine: &Engine<V>,
    limit: Duration,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let (done, outcome) = oneshot::channel();
    engine.context.tasks.load(async move {
        let _ = done.send(work.await);
    });
    match timeout(limit, outcome).await {
        Ok(outcome) => outcome.unwrap_or_else(|_| Err(engine.errors.closed())),
        Err(_) => Err(engine.errors.timed_out(limit, None)),
    }
}

/// Makes a write at the acting owner, on this node and on all other members.
async fn write_everywhere<V: Value>(engine: Arc<Engine<V>>, key: Arc<str>, change: Change<V>) -> Result<WriteOutcome> {
    let view = engine.context.view();
    let (elsewhere, hold) = (change.elsewhere(), change.hold());
    let AtOwner { acting, unreached, is_too_large } = write_at_owner(&engine, &view, &key, change).await?;
    if acting.is_some() {
        drop_and_hold(&engine, &key, hold);
    }
    unreached.iter().for_each(|peer| record_missed(&engine, peer, Some(&key)));
    let outcome = broadcast(&engine, &view, Some(&key), &elsewhere, acting.as_ref(), unreached).await;
    if is_too_large {
        let name = &engine.settings.name;
        let text = format!(
            "the value exceeds limits.max_value_bytes of the owner of its key in group {name:?}; the old value was \
             dropped, the new one is not kept; give all nodes the same limits"
        );
        return Err(Error::new(Kind::TooLarge, text));
    }
    Ok(outcome)
}

/// Drops all values of the group on all nodes, in a task that goes on if the caller gives up after `limit`.
pub(crate) async fn clear<V: Value>(engine: &Arc<Engine<V>>, limit: Duration) -> Result<WriteOutcome> {
    engine.check_open()?;
    let clearing = Arc::clone(engine);
    let clear = async move {
        clearing.counters.writes.up();
        let view = clearing.context.view();
        drop_all(&clearing);
        Ok(broadcast(&clearing, &view, None, &Op::Clear, None, Vec::new()).await)
    };
    run_detached(engine, limit, clear).await
}

/// Sends a write to every other member, except for the acting owner and the members in `unreached`, and waits for the
/// responses. `key` is `None` for a clear.
async fn broadcast<V: Value>(
    engine: &Engine<V>,
    view: &View,
    key: Option<&Arc<str>>,
    op: &Op,
    acting: Option<&PeerId>,
    mut unreached: Vec<PeerId>,
) -> WriteOutcome {
    unreached.extend(absent_peers(engine, view, key));
    let no_key: Arc<str> = "".into();
    let mut pending = Vec::new();
    for member in view.members().iter().filter(|member| !member.is_local() && Some(&member.id) != acting) {
        if key.is_some() && unreached.contains(&member.id) {
            continue;
        }
        match send(engine, member, key.unwrap_or(&no_key), op.clone(), 0) {
            Some(outcome) => pending.push((member.id.clone(), outcome)),
            None => {
                record_missed(engine, &member.id, key);
                unreached.push(member.id.clone());
            }
        }
    }
    for (id, outcome) in pending {
        if !has_dropped(engine, outcome.await.ok()) {
            record_missed(engine, &id, key);
            unreached.push(id);
        }
    }
    unreached.sort();
    unreached.dedup(); // a joining peer may be listed as a member and as an absent peer
    WriteOutcome { pending: unreached, views_differed: views_differ(engine, view) }
}

/// Drops a value at its owner and on this node, and notifies no other node except for the previous owners, from which
/// the next owner could receive the old value. All other members are pending.
pub(crate) async fn remove_at_owner<V: Value>(
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
        let AtOwner { acting, unreached, .. } = write_at_owner(&engine, &view, &key, Change::Remove { hold }).await?;
        if acting.is_some() {
            drop_and_hold(&engine, &key, hold);
        }
        // An earlier candidate, or a peer outside of the view, may be the owner again before its old value ends.
        unreached.iter().for_each(|peer| record_missed(&engine, peer, Some(&key)));
        let mut outcome = WriteOutcome { pending: unreached, views_differed: views_differ(&engine, &view) };
        outcome.pending.extend(absent_peers(&engine, &view, Some(&key)));
        let previous = previous_owner::owned_before(&engine, &key);
        let mut notified = Vec::new();
        for member in view.members().iter().filter(|member| !member.is_local() && Some(&member.id) != acting.as_ref()) {
            let is_previous = previous.contains(&member.id) && !outcome.pending.contains(&member.id);
            match is_previous.then(|| send(&engine, member, &key, Op::Remove { hold }, 0)).flatten() {
                Some(pending) => notified.push((member.id.clone(), pending)),
                None => outcome.pending.push(member.id.clone()),
            }
        }
        for (id, pending) in notified {
            // Not recorded for replay, because a previous owner that cannot be reached sends no old value either.
            if !has_dropped(&engine, pending.await.ok()) {
                outcome.pending.push(id);
            }
        }
        outcome.pending.sort();
        outcome.pending.dedup();
        Ok(outcome)
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

/// Records the write for replay to peers outside of the view. Returns the members of the current view that a writer
/// with this view does not notify. A target that never answered is no peer, so that no write has missed it.
fn absent_peers<V: Value>(engine: &Engine<V>, view: &View, key: Option<&Arc<str>>) -> Vec<PeerId> {
    let notified = view.members().iter().map(|member| &member.id);
    engine.context.missed_writes.record_write(&engine.settings.name, key, notified)
}

/// Records a missed write, which is replayed as soon as the peer can be reached.
fn record_missed<V: Value>(engine: &Engine<V>, peer: &PeerId, key: Option<&Arc<str>>) {
    engine.context.missed_writes.missed(peer, &engine.settings.name, key);
}

/// Returns whether a connected member has another view of the owners.
fn views_differ<V: Value>(engine: &Engine<V>, view: &View) -> bool {
    let mut links = view.members().iter().filter_map(|member| engine.context.link(member));
    links.any(|link| link.admits() && link.fingerprint() != view.fingerprint())
}

/// Makes a write at the first candidate that takes it, which may be this node.
///
/// # Errors
/// No candidate took the write, and one of them could not be reached.
async fn write_at_owner<V: Value>(
    engine: &Engine<V>,
    view: &View,
    key: &Arc<str>,
    mut change: Change<V>,
) -> Result<AtOwner> {
    let hash = engine.ownership.hash(key);
    let name = &engine.settings.name;
    let (mut unreached, mut is_too_large) = (Vec::new(), false);
    let mut candidates = view.candidates(engine.ownership.scope, hash).enumerate();
    let is_here = loop {
        // The write of a group with zones goes on without an owner, because the other zones must be notified.
        let Some((rank, member)) = candidates.next() else {
            break unreached.is_empty() || engine.ownership.scope == Scope::Zone;
        };
        if member.is_local() {
            break true;
        }
        // A get of this node skips the candidate too, and the acting owner must be the candidate that gets are sent to.
        let offers = |link: &Link| link.offers(name, engine.settings.format);
        if engine.context.link(member).is_some_and(|link| link.admits() && !offers(&link)) {
            continue;
        }
        let mut outcome = request(engine, member, key, change.at_owner(), rank).await;
        if matches!(outcome, Some(Outcome::Answered(Response::TooLarge))) {
            // The write becomes a remove. A successor must not keep the value, because gets go to this owner.
            (change, is_too_large) = (Change::Remove { hold: Duration::ZERO }, true);
            outcome = request(engine, member, key, change.at_owner(), rank).await;
        }
        match outcome {
            Some(Outcome::Answered(Response::Done)) => {
                return Ok(AtOwner { acting: Some(member.id.clone()), unreached, is_too_large });
            }
            Some(Outcome::Answered(_)) => {} // declined, and notified with the other members
            Some(Outcome::Unreachable | Outcome::Expired) | None => unreached.push(member.id.clone()),
        }
    };
    if !is_here {
        let text =
            format!("no candidate of a key of group {name:?} took the write, try it again; unreachable: {unreached:?}");
        return Err(Error::new(Kind::Unreachable, text));
    }
    match change {
        Change::Set(slot) => store_written(engine, key, slot),
        Change::Remove { hold } => drop_and_hold(engine, key, hold),
    }
    Ok(AtOwner { acting: None, unreached, is_too_large })
}

/// Sends a write to one node and waits for the outcome.
async fn request<V: Value>(
    engine: &Engine<V>,
    member: &Member,
    key: &Arc<str>,
    op: Op,
    rank: usize,
) -> Option<Outcome> {
    send(engine, member, key, op, rank)?.await.ok()
}

/// Sends a write to one node. Returns `None` if its breaker is open or too many requests wait.
fn send<V: Value>(engine: &Engine<V>, member: &Member, key: &Arc<str>, op: Op, rank: usize) -> Option<PendingOutcome> {
    let link = engine.context.link(member)?;
    if let Op::Set(value) = &op
        && !link.takes(value.len())
    {
        // Not sent, because the peer would close the connection.
        let (outcome, pending) = oneshot::channel();
        let _ = outcome.send(Outcome::Answered(Response::TooLarge));
        return Some(pending);
    }
    let end_ms = later(engine.context.local.clock.read_ms(), INVALIDATION);
    link.request(op, engine.index(), key, end_ms, rank)
}

/// Drops the value of a key on this node, and detaches its flights, so that their values are not cached.
pub(crate) fn drop_written<V: Value>(engine: &Engine<V>, key: &str) -> WriteToken {
    mark_overwritten(engine, key);
    let replica = || if mutant!(CopyNotInvalidated) { None } else { engine.cache.remove_replica(key) };
    let remove = || (engine.cache.owned.remove(key), replica());
    let (dropped, token) = engine.flights.write(key, engine.context.local.clock.read_ms(), remove);
    if dropped.0.is_some() || dropped.1.is_some() {
        engine.counters.invalidations.up();
    }
    token
}

/// Records that the values of previous owners are older than this write.
fn mark_overwritten<V: Value>(engine: &Engine<V>, key: &str) {
    let now_ms = engine.context.local.clock.read_ms();
    engine.handover.previous.mark_overwritten(&engine.context.handover, engine.ownership.hash(key), now_ms);
}

/// Drops the value of a key on this node, and caches no value of the key that is loaded within `hold`.
pub(crate) fn drop_and_hold<V: Value>(engine: &Engine<V>, key: &str, hold: Duration) {
    if !hold.is_zero() {
        let now_ms = engine.context.local.clock.read_ms();
        // Before the write, because a flight that begins after the write must find the hold.
        engine.holds.hold(key, now_ms, later(now_ms, hold.min(MAX_HOLD)));
    }
    drop_written(engine, key);
}

/// Stores a written value, and detaches the flights of the key, so that they do not replace the value.
fn store_written<V: Value>(engine: &Engine<V>, key: &str, slot: Slot<V>) {
    mark_overwritten(engine, key);
    let store = || (engine.cache.owned.insert(key, slot), engine.cache.remove_replica(key));
    let ((inserted, replica), _) = engine.flights.write(key, engine.context.now_ms(), store);
    drop(replica);
    engine.cache.after_insert(key, inserted, false);
}

/// Drops all values on this node, and detaches all flights, so that their values are not cached.
pub(crate) fn drop_all<V: Value>(engine: &Engine<V>) {
    let now_ms = engine.context.local.clock.read_ms();
    engine.handover.previous.clear(now_ms);
    let dropped = engine.flights.clear(now_ms, || engine.cache.clear());
    engine.counters.invalidations.add(dropped.len() as u64);
    cache::drop_in_background(dropped);
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
